//! An image that is about to be taken in: its layers are there, and what is left open is filled in.

use jiff::Timestamp;

use super::oci::Platform;
use super::{Digest, Doing as _, Image, ImageConfig, ImageName, Layer, Result};

/// An image whose layers are there.
#[derive(Debug)]
pub struct NewImage {
    /// What jobs call it.
    pub name: ImageName,
    /// Its digest, if whoever it came from gave it one.
    pub digest: Option<Digest>,
    /// Other digests that it can be asked for by.
    pub aliases: Vec<Digest>,
    /// Its layers, the topmost first.
    pub layers: Vec<Layer>,
    /// What its programs are for; this machine, if nobody said.
    pub platform: Option<Platform>,
    /// What a job starts with when it does not say otherwise.
    pub config: ImageConfig,
}

impl NewImage {
    /// An image of one layer, which came without a digest of its own.
    pub(super) fn of_layer(name: ImageName, layer: Layer, config: ImageConfig) -> Self {
        let (digest, aliases, layers, platform) = (None, Vec::new(), vec![layer], None);
        Self { name, digest, aliases, layers, platform, config }
    }

    /// The image, as the store keeps it.
    pub(super) fn into_image(self, created_at: Option<Timestamp>) -> Result<Image> {
        let Self { name, digest, aliases, layers, platform, config } = self;
        let platform = platform.unwrap_or_else(Platform::of_host).to_string();
        let digest = match digest {
            Some(digest) => digest,
            None => Digest::of(
                &serde_json::to_vec(&(&platform, &config, &layers))
                    .doing(|| "could not describe an image".into())?,
            ),
        };
        let size_bytes = layers.iter().map(|layer| layer.size_bytes).sum();
        Ok(Image { name, digest, aliases, size_bytes, layers, platform, config, created_at })
    }
}
