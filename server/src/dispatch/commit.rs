//! The wish, come late, that what a job writes becomes an image.

use std::sync::Arc;

use lazaret_sandbox::image::ImageName;

use super::{Dispatch, Inner};
use crate::job::JobId;
use crate::store::{Effect, StoreError};

impl Dispatch {
    /// Has an image of this name made of what an unfinished job writes. False if that is too late.
    ///
    /// # Errors
    /// If the store fails; then there may be an image, or not.
    pub async fn commit(&self, id: JobId, name: ImageName) -> Result<bool, StoreError> {
        let inner = Arc::clone(&self.0);
        let task = self.0.tracker.spawn(async move { inner.commit(id, name).await });
        task.await.map_err(|_panicked| StoreError::Closed)?
    }
}

impl Inner {
    /// First the attempt that runs is told, then the store, for the next one.
    async fn commit(&self, id: JobId, name: ImageName) -> Result<bool, StoreError> {
        let Some(job) = self.live.get(id).filter(|job| job.wish_commit(name.clone())) else {
            return Ok(false);
        };
        let effect = self.store.set_commit(id, name).await?;
        job.changed();
        Ok(matches!(effect, Effect::Done))
    }
}
