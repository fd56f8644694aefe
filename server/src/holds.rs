//! What unfinished jobs need, images and volumes: each held once, however many jobs it is for.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lazaret_sandbox::image::{Digest, HOST_IMAGE, Hold, Image, ImageStore, Result};
use lazaret_sandbox::volume::{self, VolumeHold, VolumeName, VolumeStore};

use crate::job::JobImage;

/// What is held: images by their digest, volumes by their name.
#[derive(Debug, Default)]
pub struct Holds {
    images: Shared<Digest, Hold>,
    volumes: Shared<VolumeName, VolumeHold>,
}

/// What one job needs, which stays until this is dropped.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Its image. None if it had gone before this server came.
    pub image: Option<Arc<Hold>>,
    /// Its volumes, but for those that had gone.
    pub volumes: Vec<Arc<VolumeHold>>,
}

impl Holds {
    /// Holds the image of a job until the answer is dropped. None if it is not there any more.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn take(&self, images: &ImageStore, wanted: &JobImage) -> Result<Option<Arc<Hold>>> {
        self.images.take(&wanted.digest, || match find(images, wanted)? {
            Some(image) => images.hold(&image).map(Some),
            None => Ok(None),
        })
    }

    /// Holds a volume until the answer is dropped. None if it is not there any more.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn take_volume(
        &self,
        volumes: &VolumeStore,
        name: &VolumeName,
    ) -> volume::Result<Option<Arc<VolumeHold>>> {
        self.volumes.take(name, || match volumes.hold(name) {
            Err(volume::Error::NotFound(_)) => Ok(None),
            held => held.map(Some),
        })
    }
}

/// Holds of one kind.
#[derive(Debug)]
struct Shared<K, H>(Mutex<HashMap<K, Weak<H>>>);

impl<K, H> Default for Shared<K, H> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, H> Shared<K, H> {
    /// The hold that another job has, or a new one.
    fn take<E>(
        &self,
        key: &K,
        hold: impl FnOnce() -> Result<Option<H>, E>,
    ) -> Result<Option<Arc<H>>, E> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hold) = held.get(key).and_then(Weak::upgrade) {
            return Ok(Some(hold));
        }
        let Some(hold) = hold()?.map(Arc::new) else { return Ok(None) };
        held.retain(|_, other| other.strong_count() > 0);
        held.insert(key.clone(), Arc::downgrade(&hold));
        Ok(Some(hold))
    }
}

/// The image that a job was accepted for, whatever its name stands for by now. The built-in one is
/// this machine's own: after an upgrade it has another digest, and there is no older one.
///
/// # Errors
/// If the store cannot be read.
pub fn find(images: &ImageStore, wanted: &JobImage) -> Result<Option<Image>> {
    if wanted.name == HOST_IMAGE {
        return images.get(HOST_IMAGE);
    }
    images.find(&wanted.digest)
}
