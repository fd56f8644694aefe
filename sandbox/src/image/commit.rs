//! What a container wrote becomes a layer.

use std::os::fd::{AsFd as _, OwnedFd};

use jiff::Timestamp;

use super::layer::Bounds;
use super::oci::MAX_LAYERS;
use super::walk::{Owners, walk};
use super::{Error, HeldLayer, Image, ImageName, ImageStore, NewImage, Result};

/// The writable layer of a container whose processes have ended. It goes when this is dropped.
#[derive(Debug)]
pub struct Upper(OwnedFd);

impl Upper {
    pub(crate) const fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }
}

impl ImageStore {
    /// Makes an image of `base` and what a container in it has written: what the container removed
    /// is hidden, what it changed is there as it left it, and the rest is shared.
    ///
    /// # Errors
    /// [`Error::NoImage`] if nothing can be built on `base`; [`Error::BadName`] for the built-in
    /// image's name; [`Error::BadArchive`] and [`Error::TooLarge`] for what was written;
    /// [`Error::NotFound`] if `base` has been removed meanwhile.
    pub fn commit(
        &self,
        base: &Image,
        upper: &Upper,
        name: ImageName,
        (now, bounds): (Timestamp, Bounds),
    ) -> Result<Image> {
        self.can_build_on(base)?;
        let HeldLayer { layer, hold: _hold } = self.commit_layer(upper, bounds)?;
        let layers = layer.on(&base.layers);
        let (digest, aliases) = (None, Vec::new());
        let (platform, config) = (Some(base.platform.parse()?), base.config.clone());
        self.add(NewImage { name, digest, aliases, layers, platform, config }, now)
    }

    /// Makes a layer of what a container has written.
    ///
    /// # Errors
    /// [`Error::BadArchive`] and [`Error::TooLarge`] for what was written.
    pub fn commit_layer(&self, upper: &Upper, bounds: Bounds) -> Result<HeldLayer> {
        self.make_layer(bounds, |layer| {
            walk(upper.0.as_fd(), Owners::Container, layer)?;
            Ok(None)
        })
    }

    /// Whether `base` may have one more layer.
    ///
    /// # Errors
    /// [`Error::NoImage`], saying why not.
    pub fn can_build_on(&self, base: &Image) -> Result<()> {
        self.can_leave(base)?;
        if base.layers.len() >= MAX_LAYERS {
            let what = format!("`{}` has {MAX_LAYERS} layers, the most there may be", base.name);
            return Err(Error::NoImage { what });
        }
        Ok(())
    }

    /// Whether all that `image` is made of is in this store.
    ///
    /// # Errors
    /// [`Error::NoImage`] for the built-in image.
    pub fn can_leave(&self, image: &Image) -> Result<()> {
        if self.rootfs(image).is_id_mapped {
            return Ok(());
        }
        let what = format!("`{}` is this machine itself, of which no copy is made", image.name);
        Err(Error::NoImage { what })
    }
}
