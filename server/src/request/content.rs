//! Bytes inside JSON: text as it is, anything else as base64.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Bytes: a text, or `{"base64": "..."}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// The bytes of this text in UTF-8.
    Text(String),
    /// The bytes that this stands for.
    Base64 {
        /// Standard base64 with padding (RFC 4648).
        base64: String,
    },
}

/// A file: a text, or `{"base64": "...", "mode": "0755"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum FileContent {
    /// The bytes of this text in UTF-8, with the mode 0644.
    Text(String),
    /// The bytes that `base64` stands for, or `text` has.
    Object(FileObject),
}

/// A file with more to say than its text. Exactly one of `text` and `base64`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileObject {
    /// Standard base64 with padding (RFC 4648).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// The bytes of this text in UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Permission bits in octal digits. Default: `0644`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "0755", pattern = "^0?[0-7]{3}$")]
    pub mode: Option<String>,
}

impl Content {
    /// The bytes.
    ///
    /// # Errors
    /// What is wrong with the base64.
    pub fn into_bytes(self) -> Result<Vec<u8>, String> {
        match self {
            Self::Text(text) => Ok(text.into_bytes()),
            Self::Base64 { base64 } => decode(&base64),
        }
    }
}

/// The bytes that base64 stands for.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode(base64: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(base64).map_err(|error| format!("not base64: {error}"))
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Object {
            base64: String,
        }
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or an object with `base64`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Content, A::Error> {
                let object = Object::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Content::Base64 { base64: object.base64 })
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl<'de> Deserialize<'de> for FileContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = FileContent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or an object with `base64` or `text`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<FileContent, E> {
                Ok(FileContent::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FileContent, A::Error> {
                let object = FileObject::deserialize(MapAccessDeserializer::new(map))?;
                if object.base64.is_some() == object.text.is_some() {
                    return Err(A::Error::custom("a file has exactly one of `text` and `base64`"));
                }
                Ok(FileContent::Object(object))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}
