//! `index.json`: which images and layers a store has. Read without a lock, for it is replaced by
//! rename; written by who holds the store's.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::outgoing::PackedLayer;
use super::{Digest, Doing as _, Image, ImageName, Layer, Result, tree};

const INDEX: &str = "index.json";
const NEW_INDEX: &str = "index.json.new";
/// The version of the index's form.
const VERSION: u32 = 1;

/// What a store has.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    /// The images that have a name, each another one.
    pub(super) images: Vec<Image>,
    /// Those whose name another one got while somebody still needs them.
    #[serde(default)]
    pub(super) replaced: Vec<Image>,
    /// Every layer that was unpacked whole, whether or not an image needs it yet: what a pull that
    /// was interrupted has done already.
    #[serde(default)]
    pub(super) layers: Vec<Layer>,
    /// Layers, and archives that they are known to be.
    #[serde(default)]
    pub(super) packed: Vec<(Digest, PackedLayer)>,
    /// Steps of builds, and the layers that they have made.
    #[serde(default)]
    pub(super) built: Vec<(Digest, Digest)>,
}

impl Default for Index {
    /// That of an empty store.
    fn default() -> Self {
        let (images, replaced, layers, packed, built) = Default::default();
        Self { version: VERSION, images, replaced, layers, packed, built }
    }
}

impl Index {
    /// That of the store at `directory`; an empty one if there is none.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(INDEX);
        let doing = || format!("could not read `{}`", path.display());
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error).doing(doing),
        };
        let index: Self = serde_json::from_slice(&text).doing(doing)?;
        if index.version != VERSION {
            let what = format!("it has version {}, this is {VERSION}", index.version);
            return Err(io::Error::new(ErrorKind::InvalidData, what)).doing(doing);
        }
        Ok(index)
    }

    /// Replaces that of the store at `directory`, whose lock is held: the temporary name is ours.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let (path, new) = (directory.join(INDEX), directory.join(NEW_INDEX));
        let doing = || format!("could not write `{}`", path.display());
        let text = serde_json::to_vec_pretty(self).doing(doing)?;
        let mut file = File::create(&new).doing(doing)?;
        file.write_all(&text).doing(doing)?;
        file.sync_all().doing(doing)?;
        fs::rename(&new, &path).doing(doing)?;
        tree::sync_directory(directory).doing(doing)
    }

    /// The image that `name` means: the one of this name, or of this name and the tag `latest`,
    /// or, if it ends in `@` and a digest, the one with that digest.
    pub(super) fn named(&self, name: &str) -> Option<&Image> {
        if let Some((path, digest)) = name.split_once('@') {
            let digest = digest.parse().ok()?;
            let is_it = |image: &&Image| {
                image.name.path() == path && (image.digest == digest || image.has_alias(&digest))
            };
            return self.images.iter().find(is_it);
        }
        let exact = self.images.iter().find(|image| image.name.as_str() == name);
        exact.or_else(|| {
            self.images
                .iter()
                .find(|image| image.name.as_str().strip_suffix(":latest") == Some(name))
        })
    }

    /// The image with this digest, with a name or without.
    pub(super) fn image(&self, digest: &Digest) -> Option<&Image> {
        self.images.iter().chain(&self.replaced).find(|image| image.digest == *digest)
    }

    /// The layer with this digest, if it was unpacked.
    pub(super) fn layer(&self, digest: &Digest) -> Option<&Layer> {
        let of_images = self.images.iter().chain(&self.replaced).flat_map(|image| &image.layers);
        self.layers.iter().chain(of_images).find(|layer| layer.digest == *digest)
    }

    /// Whether some image is made of this layer.
    pub(super) fn needs(&self, layer: &Digest) -> bool {
        let images = self.images.iter().chain(&self.replaced);
        images.flat_map(|image| &image.layers).any(|needed| needed.digest == *layer)
    }

    /// Forgets what it knows of layers that have gone.
    pub(super) fn forget_layers(&mut self) {
        let packed = std::mem::take(&mut self.packed).into_iter();
        self.packed = packed.filter(|(layer, _)| self.layer(layer).is_some()).collect();
        let built = std::mem::take(&mut self.built).into_iter();
        self.built = built.filter(|(_, layer)| self.layer(layer).is_some()).collect();
    }

    /// Takes an image in. Answers with the one that had its name before, if it was another.
    pub(super) fn insert(&mut self, image: Image) -> Option<Image> {
        let before = self.remove(&image.name);
        self.replaced.retain(|other| other.digest != image.digest);
        let replaced = before.filter(|before| before.digest != image.digest);
        self.images.push(image);
        // An image with two names is not without one.
        replaced.filter(|replaced| self.image(&replaced.digest).is_none())
    }

    /// Takes the image of this name out.
    pub(super) fn remove(&mut self, name: &ImageName) -> Option<Image> {
        let at = self.images.iter().position(|image| image.name == *name)?;
        Some(self.images.remove(at))
    }
}
