//! Names of images: `[registry[:port]/]path[:tag]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// The longest name, tag included.
pub const MAX_NAME_LENGTH: usize = 255;
/// The longest tag.
const MAX_TAG_LENGTH: usize = 128;

/// The name that jobs call an image by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ImageName(String);

impl ImageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without its tag.
    #[must_use]
    pub fn path(&self) -> &str {
        split_tag(&self.0).0
    }

    /// The tag, if it has one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        split_tag(&self.0).1
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match fault_of(text) {
            None => Ok(Self(text.to_owned())),
            Some(reason) => {
                let name = text.chars().take(MAX_NAME_LENGTH).collect();
                Err(Error::BadName { name, reason })
            }
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What keeps `text` from being a name.
fn fault_of(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > MAX_NAME_LENGTH {
        return Some("it is longer than 255 characters");
    }
    let (path, tag) = split_tag(text);
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Some(
            "a tag is 1 to 128 letters, digits, `_`, `.` and `-`, not opened by `.` or `-`",
        );
    }
    let (registry, path) = split_registry(path);
    if registry.is_some_and(|registry| !is_registry(registry)) {
        return Some("a registry is a host name and perhaps `:` and a port");
    }
    if !path.split('/').all(is_component) {
        return Some("each part is lower case letters and digits, joined by `.`, `_` or `-`");
    }
    None
}

/// Path and tag. A colon before a slash belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (text, None),
    }
}

/// The registry, if the first part can only be one, and the rest.
fn split_registry(path: &str) -> (Option<&str>, &str) {
    match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (Some(first), rest)
        }
        _ => (None, path),
    }
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG_LENGTH
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Lower case words joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_are_words = bytes.first().is_some_and(is_word) && bytes.last().is_some_and(is_word);
    let joints_are_right = bytes
        .split(is_word)
        .filter(|joint| !joint.is_empty())
        .all(|joint| matches!(joint, b"." | b"_" | b"__") || joint.iter().all(|c| *c == b'-'));
    ends_are_words && joints_are_right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_people_use_are_names() {
        for text in [
            "host",
            "python:3.13",
            "library/python",
            "docker.io/library/python:3.13-slim",
            "localhost:5000/a/b_c:V1",
            "localhost/x",
            "a--b",
            "a__b.c",
        ] {
            assert_eq!(text.parse::<ImageName>().map(String::from).ok().as_deref(), Some(text));
        }
    }

    #[test]
    fn what_could_be_taken_for_a_path_or_an_option_is_no_name() {
        let long = "a".repeat(MAX_NAME_LENGTH + 1);
        let long_tag = format!("a:{}", "b".repeat(MAX_TAG_LENGTH + 1));
        for text in [
            "",
            "/",
            "..",
            "../x",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "-a",
            "A",
            "a b",
            "a\0",
            "a\n",
            "a:",
            "a:.x",
            "a:-x",
            "a:b c",
            "a.:80/b",
            "a.b:99999/c",
            "a..b",
            "a___b",
            "é",
            &long,
            &long_tag,
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
    }
}
