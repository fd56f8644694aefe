//! The images that unfinished jobs are to run in: each held once, however many jobs it is for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lazaret_sandbox::image::{Digest, HOST_IMAGE, Hold, Image, ImageStore, Result};

use crate::job::JobImage;

/// What is held, by the digest of the image.
#[derive(Debug, Default)]
pub struct Holds {
    held: Mutex<HashMap<Digest, Weak<Hold>>>,
}

impl Holds {
    /// Holds the image of a job until the answer is dropped. None if it is not there any more.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn take(&self, images: &ImageStore, wanted: &JobImage) -> Result<Option<Arc<Hold>>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hold) = held.get(&wanted.digest).and_then(Weak::upgrade) {
            return Ok(Some(hold));
        }
        let Some(image) = find(images, wanted)? else { return Ok(None) };
        let hold = Arc::new(images.hold(&image)?);
        held.retain(|_, other| other.strong_count() > 0);
        held.insert(wanted.digest, Arc::downgrade(&hold));
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
