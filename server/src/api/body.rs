//! Request bodies: read within bounds, then parsed so that a mistake can be named.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt as _;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Code, Problem};
use crate::request::{FieldError, escaped};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Room for the bodies of all requests together, in blocks of [`BLOCK_BYTES`]: a thousand clients
/// with a large body each must not be more than the host has.
#[derive(Debug, Clone)]
pub struct BodyRoom {
    max_bytes: usize,
    blocks: Arc<Semaphore>,
}

const BLOCK_BYTES: usize = 4 << 10;
/// Bodies of the largest size that are held at one time.
const LARGEST_AT_ONCE: usize = 4;

/// A body, and the room it takes until this is dropped.
#[derive(Debug)]
pub struct HeldBody {
    /// What was sent.
    pub text: Bytes,
    _blocks: OwnedSemaphorePermit,
}

impl BodyRoom {
    /// Room for bodies of at most `max_bytes` each.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        let blocks = max_bytes.div_ceil(BLOCK_BYTES) * LARGEST_AT_ONCE;
        Self { max_bytes, blocks: Arc::new(Semaphore::new(blocks)) }
    }

    /// Reads a body that says it is JSON, waiting while there is no room for it.
    ///
    /// # Errors
    /// The problem for the client.
    pub async fn read_json(&self, headers: &HeaderMap, body: Body) -> Result<HeldBody, Problem> {
        refuse_other_types(headers)?;
        let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let announced = announced.and_then(|text| text.parse::<usize>().ok());
        if announced.is_some_and(|bytes| bytes > self.max_bytes) {
            return Err(self.too_large());
        }
        // Who does not say how much is coming gets room for the most.
        let blocks = announced.unwrap_or(self.max_bytes).div_ceil(BLOCK_BYTES);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.blocks).acquire_many_owned(blocks);
        let Ok(Ok(room)) = tokio::time::timeout(BODY_TIMEOUT, room).await else {
            return Err(Problem::new(Code::Unavailable, "too many large bodies at one time"));
        };
        let read = self.read_whole(body, announced);
        match tokio::time::timeout(BODY_TIMEOUT, read).await {
            Ok(Ok(text)) => Ok(HeldBody { text: text.into(), _blocks: room }),
            Ok(Err(problem)) => Err(problem),
            Err(_elapsed) => {
                let detail = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
                Err(Problem::new(Code::RequestTimeout, detail))
            }
        }
    }

    /// Into one buffer of the size that was announced: thousands of small ones, kept until the last
    /// has come, would leave the heap full of holes.
    async fn read_whole(
        &self,
        mut body: Body,
        announced: Option<usize>,
    ) -> Result<Vec<u8>, Problem> {
        let mut text = Vec::with_capacity(announced.unwrap_or_default());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let detail = format!("the body did not arrive whole: {error}");
                Problem::new(Code::Malformed, detail)
            })?;
            // Trailers say nothing of a body.
            let Ok(part) = frame.into_data() else { continue };
            if part.len() > self.max_bytes - text.len() {
                return Err(self.too_large());
            }
            text.extend_from_slice(&part);
        }
        Ok(text)
    }

    fn too_large(&self) -> Problem {
        let detail = format!("the body may have at most {} bytes", self.max_bytes);
        Problem::new(Code::BodyTooLarge, detail)
    }
}

fn refuse_other_types(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = given.and_then(|text| text.parse::<mime::Mime>().ok()).is_some_and(|mime| {
        mime.type_() == mime::APPLICATION
            && (mime.subtype() == mime::JSON || mime.suffix() == Some(mime::JSON))
    });
    if is_json {
        return Ok(());
    }
    let given = given.map_or_else(|| "missing".to_owned(), |text| format!("`{text}`"));
    Err(Problem::new(
        Code::UnsupportedMediaType,
        format!("`Content-Type` is {given}: send `application/json`"),
    ))
}

/// As [`parse`], for a request, which is an object: serde would take an array, too, by the order of
/// the fields.
///
/// # Errors
/// As [`parse`].
pub fn parse_object<T: DeserializeOwned>(text: &[u8]) -> Result<(T, Vec<FieldError>), Problem> {
    let is_object = text.trim_ascii_start().first().is_none_or(|byte| *byte == b'{');
    if !is_object && serde_json::from_slice::<IgnoredAny>(text).is_ok() {
        let detail = "the body is not an object: `{…}` is expected".to_owned();
        return Err(Problem::invalid(vec![FieldError { pointer: String::new(), detail }]));
    }
    parse(text)
}

/// The value that a JSON text holds, with every unknown field of it.
///
/// # Errors
/// The problem for the client: malformed with line and column, or the first value of a wrong type.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<(T, Vec<FieldError>), Problem> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_slice(text);
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let parsed = serde_ignored::deserialize(tracked, |path| {
        let pointer = pointer_of_ignored(&path);
        let name = pointer.rsplit('/').next().unwrap_or_default();
        unknown.push(FieldError { detail: format!("there is no field `{name}`"), pointer });
    });
    let value = parsed.map_err(|error: serde_json::Error| {
        // A value that is no word of an enumeration is told as an error of syntax, too.
        if !error.is_data() && serde_json::from_slice::<IgnoredAny>(text).is_err() {
            return malformed(&error);
        }
        let pointer = pointer_of(&track.path());
        if !error.is_data() {
            return Problem::invalid(vec![FieldError { pointer, detail: unreadable(&error) }]);
        }
        // The position is said by the pointer already.
        let message = error.to_string();
        let detail = message.split(" at line ").next().unwrap_or(&message);
        Problem::invalid(vec![
            twice(&pointer, detail)
                .unwrap_or_else(|| FieldError { detail: detail.to_owned(), pointer }),
        ])
    })?;
    json.end().map_err(|error| malformed(&error))?;
    Ok((value, unknown))
}

/// What is wrong with a value that is told as an error of syntax, in a text that is none as long as
/// nobody looks at its values.
fn unreadable(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let reason = message.split(" at line ").next().unwrap_or(&message);
    match reason {
        "expected value" => "the value has the wrong type: a string is expected".to_owned(),
        "number out of range" => "the number is beyond all that can be meant".to_owned(),
        "invalid unicode code point" => "the text is not UTF-8".to_owned(),
        reason => format!("the value cannot be read: {reason}"),
    }
}

/// The error of a field of the object at `pointer` that comes twice: serde points to the object
/// (`serde::de::Error::duplicate_field`).
fn twice(pointer: &str, detail: &str) -> Option<FieldError> {
    let name = detail.strip_prefix("duplicate field `")?.strip_suffix('`')?;
    let detail = format!("`{name}` is there twice: leave one of them out");
    Some(FieldError { pointer: format!("{pointer}/{}", escaped(name)), detail })
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::new(Code::Malformed, format!("the body is not JSON: {error}"))
}

fn pointer_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let segments = path.iter().map(|segment| match segment {
        Segment::Seq { index } => index.to_string(),
        Segment::Map { key } => escaped(key),
        Segment::Enum { variant } => escaped(variant),
        Segment::Unknown => "?".to_owned(),
    });
    segments.map(|segment| format!("/{segment}")).collect()
}

fn pointer_of_ignored(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}/{index}", pointer_of_ignored(parent)),
        Path::Map { parent, key } => format!("{}/{}", pointer_of_ignored(parent), escaped(key)),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => pointer_of_ignored(parent),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its shape is asked for")]
    struct Shape {
        number: Option<u32>,
        inner: Option<BTreeMap<String, Inner>>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its shape is asked for")]
    struct Inner {
        flag: bool,
    }

    #[test]
    fn every_unknown_field_is_named_by_its_pointer() {
        let text = br#"{"one": 1, "inner": {"a/b": {"flag": true, "two": []}}}"#;
        let (_, unknown) = parse::<Shape>(text).expect("parsed");
        let pointers: Vec<_> = unknown.iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(pointers, ["/one", "/inner/a~1b/two"]);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_by_its_pointer() {
        let problem = parse::<Shape>(br#"{"inner": {"x": {"flag": 3}}}"#).expect_err("refused");
        let text = format!("{problem:?}");
        assert!(text.contains("/inner/x/flag") && text.contains("expected a boolean"), "{text}");
    }

    #[test]
    fn what_is_json_but_no_request_is_invalid_not_malformed() {
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Word {
            Kill,
        }
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only its shape is asked for")]
        struct Sentence {
            word: Option<Word>,
        }
        for (text, pointer) in [("[1]", ""), ("null", ""), ("{\"word\": 1}", "/word")] {
            let problem = parse_object::<Sentence>(text.as_bytes()).expect_err("refused");
            let shown = format!("{problem:?}");
            assert!(shown.contains(&format!("pointer: {pointer:?}")), "{text}: {shown}");
        }
    }

    #[test]
    fn what_is_not_json_is_malformed_with_line_and_column() {
        for text in ["{\"number\": ", "{\n  nope", "", "{} {}"] {
            let problem = parse::<Shape>(text.as_bytes()).expect_err("refused");
            let text = format!("{problem:?}");
            assert!(text.contains("Malformed") && text.contains("line"), "{text}");
        }
    }
}
