//! Images: root file systems kept on the host, and what their makers say about running them.
//!
//! ```text
//! $data/images/
//!   lock                one writer of the index at a time (flock)
//!   index.json          every image: name, digest, layers, config; replaced by rename
//!   uses/<short>        of an image: locked, shared, by each who needs it
//!   layers/<short>/     one unpacked layer, read-only, shared by all images that have it
//!   layers/new-<n>-<n>/ a layer being unpacked, locked by who unpacks it; renamed when whole
//! ```
//!
//! The directory is closed to everyone but its owner: layers hold setuid programs with the ids
//! that the image gave them, and outside a container these are ids of this host.

mod archive;
mod bundle;
mod commit;
mod config;
mod copy;
mod entry;
mod files;
mod host;
mod implied;
mod import;
mod index;
mod known;
mod layer;
mod layers;
mod marks;
mod new_image;
pub mod oci;
mod outgoing;
mod pack;
mod reference;
mod store;
mod unpack;
mod users;
mod uses;
mod walk;

use std::fmt;
use std::io;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::tree;

pub use commit::Upper;
pub use config::ImageConfig;
pub use copy::Copying;
pub use files::{FileTree, Kind, Place};
pub use host::HOST_IMAGE;
pub use import::ImportOptions;
pub use layer::Bounds;
pub use new_image::NewImage;
pub use outgoing::{Documents, MANIFEST, PackedLayer};
pub use reference::{ImageName, MAX_NAME_LENGTH};
pub use store::{ImageStore, Pruned};
pub use uses::{HeldLayer, Hold};
pub use walk::{Choice, Chooser};

/// The result of everything about images that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something about an image failed. A variant for each answer that a caller gives.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no image of this name.
    #[error("there is no image `{name}`")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// A job needs it still.
    #[error("image `{name}` is in use")]
    InUse {
        /// The image's name.
        name: String,
    },
    /// The name cannot be an image's, or is taken for good.
    #[error("`{name}` cannot be the name of an image: {reason}")]
    BadName {
        /// The name given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The image has no such user or group, or its id is beyond those a container has.
    #[error("user `{user}` cannot be found in the image: {reason}")]
    BadUser {
        /// The user asked for.
        user: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file that is something else altogether.
    #[error("neither a tar archive, as it is or compressed with gzip or zstd, nor a directory")]
    NoArchive,
    /// What should describe an image does not, or describes one that cannot be used here.
    #[error("it is no image that can be used: {what}")]
    NoImage {
        /// What is wrong with it.
        what: String,
    },
    /// The archive or directory holds something that an image must not have.
    #[error("entry `{entry}` {what}")]
    BadArchive {
        /// Path of the entry, as the archive has it.
        entry: String,
        /// What is wrong with it.
        what: String,
    },
    /// A layer of an image that has several.
    #[error("layer `{layer}`: {error}")]
    InLayer {
        /// Its digest, unpacked.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        error: Box<Error>,
    },
    /// A stream is not what its digest says.
    #[error("its digest is `{found}`, not `{expected}`")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// Unpacked, the layer would be beyond a bound.
    #[error("the layer is too large: more than {limit}")]
    TooLarge {
        /// The bound, with its unit.
        limit: String,
    },
    /// The operating system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What it answered.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether this host failed, not the image or whoever asked for it: no room, no permission.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::InLayer { error, .. } => error.is_failure(),
            Self::NotFound { .. }
            | Self::InUse { .. }
            | Self::BadName { .. }
            | Self::BadUser { .. }
            | Self::NoArchive
            | Self::NoImage { .. }
            | Self::BadArchive { .. }
            | Self::WrongDigest { .. }
            | Self::TooLarge { .. } => false,
        }
    }

    /// Whether the disk is full: then it is not what was asked for that is wrong.
    #[must_use]
    pub fn is_full_disk(&self) -> bool {
        let mut error = self;
        while let Self::InLayer { error: inner, .. } = error {
            error = inner;
        }
        matches!(error, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// Says what was being done when the operating system refused.
trait Doing<T> {
    /// The same result, its error opened with what `doing` says.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { doing: doing(), source: source.into() })
    }
}

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What jobs call it.
    pub name: ImageName,
    /// Identifies layers and config together: two images with one digest run alike. That of an
    /// image from a registry is its manifest's.
    pub digest: Digest,
    /// Other digests that it can be asked for by: that of an index with images for many platforms.
    #[serde(default)]
    pub aliases: Vec<Digest>,
    /// Bytes of all files of all layers.
    pub size_bytes: u64,
    /// The layers, the topmost first.
    pub layers: Vec<Layer>,
    /// Operating system and architecture that its programs are for, e.g. `linux/amd64`.
    pub platform: String,
    /// What a job starts with when it does not say otherwise.
    pub config: ImageConfig,
    /// When it came to this store; the built-in image has always been there.
    pub created_at: Option<Timestamp>,
}

impl Image {
    fn has_alias(&self, digest: &Digest) -> bool {
        self.aliases.contains(digest)
    }
}

/// One layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Of the uncompressed archive that it came as, or would be packed as.
    pub digest: Digest,
    /// Bytes of its files.
    pub size_bytes: u64,
}

impl Layer {
    /// These layers, the topmost first, with this one on top. An overlay has no layer twice: where
    /// it was there already, that one adds nothing any more.
    #[must_use]
    pub fn on(self, base: &[Self]) -> Vec<Self> {
        let others = base.iter().copied().filter(|layer| layer.digest != self.digest);
        std::iter::once(self).chain(others).collect()
    }
}

/// A SHA-256, written `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// The digits alone.
    fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The layer's directory below `layers/`: 120 bits, too many to collide on purpose, and few
    /// enough that 128 of them fit the 4 KiB in which older kernels take an overlay's options.
    fn directory(&self) -> String {
        self.0[..15].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("`{text}` is not `sha256:` and 64 hexadecimal digits");
        let digits = text.strip_prefix("sha256:").ok_or_else(refused)?.as_bytes();
        if digits.len() != 64 {
            return Err(refused());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = (hex_digit(pair[0]), hex_digit(pair[1]));
            *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or_else(refused)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The value of a lower case hexadecimal digit.
const fn hex_digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(digest.directory(), "e3b0c44298fc1c149afbf4c8996fb9");
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let long = format!("sha256:{}", "0".repeat(65));
        let upper = format!("sha256:{}", "A".repeat(64));
        let wide = format!("sha256:{}", "é".repeat(32));
        for text in ["", "sha256:", "sha512:00", "sha256:../../x", &long, &upper, &wide] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
