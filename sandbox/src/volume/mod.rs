//! Volumes: named directories that live longer than any job, and that jobs may share.
//!
//! ```text
//! $data/volumes/default/    of the one tenant there is; locked by who adds or removes
//!   <name>/                 ours alone; locked, shared, by each who needs the volume
//!     volume.json           when it was made, and its bound
//!     files/                what containers are shown, open to every user of theirs
//!   .new-<name>-<pid>/      one being made
//!   .old-<name>/            one being removed
//! ```
//!
//! All above `files` is closed to everyone but its owner: what a job wrote has the ids that it had
//! inside, and outside a container these are ids of this host. What is in `files` is never opened
//! by path from outside a container. Locks are taken on what no container sees: a program that
//! could lock a volume could keep others from it.

mod mounted;
mod quota;
mod store;

use std::fmt;
use std::io;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use mounted::hold;
pub use mounted::{is_on_disk, open_directory};
pub use store::{VolumeHold, VolumeStore};

/// The longest name of a volume.
pub const MAX_NAME_LENGTH: usize = 64;
/// The smallest bound of a volume's size, in bytes.
pub const MIN_SIZE_BYTES: u64 = 1 << 20;
/// The largest bound of a volume's size, in bytes: the kernel counts in blocks of 1 KiB.
pub const MAX_SIZE_BYTES: u64 = 1 << 60;

/// The result of everything about volumes that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something about a volume failed. A variant for each answer that a caller gives.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no volume of this name.
    #[error("there is no volume `{0}`")]
    NotFound(String),
    /// There is one already.
    #[error("there is a volume `{0}` already")]
    Exists(VolumeName),
    /// A job needs it still.
    #[error("volume `{0}` is in use")]
    InUse(VolumeName),
    /// The name cannot be a volume's.
    #[error(
        "`{0}` cannot be the name of a volume: it has 1 to {MAX_NAME_LENGTH} characters, lower \
         case letters and digits, and after the first one also `_`, `.` and `-`"
    )]
    BadName(String),
    /// Its size cannot be bounded, or not so.
    #[error("the size of a volume cannot be bounded: {why}: {mend}")]
    NoBound {
        /// What is in the way.
        why: String,
        /// What would be right.
        mend: String,
    },
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A volume of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What jobs call it.
    pub name: VolumeName,
    /// The most that its files may take together, if that is bounded.
    pub size_bytes: Option<u64>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// The name that jobs call a volume by: also that of its directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VolumeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_part = |byte: u8| is_plain(&byte) || matches!(byte, b'_' | b'.' | b'-');
        let is_name = text.len() <= MAX_NAME_LENGTH
            && text.as_bytes().first().is_some_and(is_plain)
            && text.bytes().all(is_part);
        if is_name {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::BadName(text.chars().take(MAX_NAME_LENGTH).collect()))
    }
}

impl TryFrom<String> for VolumeName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_plain_file_name_that_is_not_hidden() {
        for name in ["a", "0", "cache", "a_b.c-d", &"a".repeat(64)] {
            assert_eq!(name.parse::<VolumeName>().expect("a name").as_str(), name);
        }
        let long = "a".repeat(65);
        for name in ["", ".", "..", ".a", "-a", "_a", "A", "aB", "a/b", "a b", "a\0", "é", &long] {
            assert!(name.parse::<VolumeName>().is_err(), "{name:?}");
        }
    }
}
