//! One layer on its way from the registry into the store.
//!
//! ```text
//! registry ─▶ download: hashed, counted, resumed ─▶ feed ─▶ unpack: blocking, in the store
//! ```
//!
//! The unpacker sees an end only after the digest was right, and makes nothing visible before.

use std::sync::Arc;

use axum::body::Bytes;
use lazaret_sandbox::image::oci::Descriptor;
use lazaret_sandbox::image::{self, Digest, HeldLayer};
use sha2::{Digest as _, Sha256};

use super::client::{Registry, first_cause};
use super::patience::Patience;
use super::progress::{LayerState, Teller};
use super::{LocalStore, PullError};
use crate::feed::{self, Feeder, Unread};

/// A layer that is wanted.
#[derive(Debug, Clone)]
pub(super) struct WantedLayer {
    /// Its place in the image, from the lowest.
    pub(super) index: usize,
    /// As it is transferred.
    pub(super) blob: Descriptor,
    /// Its digest when it is unpacked from compression.
    pub(super) diff_id: Digest,
}

/// Why a download ended early.
enum Stop {
    /// The unpacker knows why.
    Unread,
    /// This.
    Failed(PullError),
}

impl From<Unread> for Stop {
    fn from(_: Unread) -> Self {
        Self::Unread
    }
}

impl From<PullError> for Stop {
    fn from(error: PullError) -> Self {
        Self::Failed(error)
    }
}

/// Where a download is.
struct Download<'a> {
    registry: &'a Registry,
    wanted: &'a WantedLayer,
    feeder: &'a Feeder,
    teller: &'a Teller,
    /// Of all bytes handed over.
    hasher: Sha256,
    /// So many.
    done_bytes: u64,
}

/// Downloads and unpacks a layer.
pub(super) async fn fetch(
    registry: &Registry,
    local: &LocalStore,
    wanted: &WantedLayer,
    teller: &Teller,
) -> Result<HeldLayer, PullError> {
    let (feeder, feed) = feed::channel();
    let (images, bounds) = (Arc::clone(&local.images), local.bounds);
    let diff_id = wanted.diff_id;
    let unpack = move || images.unpack(feed, Some(diff_id), bounds);
    let unpacking = local.unpacking.spawn_blocking(unpack);
    let downloaded = download(registry, wanted, feeder, teller).await;
    let unpacked = unpacking.await;
    let interrupted = || PullError::Interrupted { image: registry.source.to_string() };
    let unpacked = unpacked.map_err(|_panicked| interrupted())?;
    if let Err(Stop::Failed(error)) = downloaded {
        return Err(error);
    }
    let layer = unpacked.map_err(|source| unusable(registry, wanted, source))?;
    teller.layer(wanted.index, LayerState::Unpacked, wanted.blob.size_bytes);
    Ok(layer)
}

async fn download(
    registry: &Registry,
    wanted: &WantedLayer,
    feeder: Feeder,
    teller: &Teller,
) -> Result<(), Stop> {
    let (hasher, feeds) = (Sha256::new(), &feeder);
    let mut download = Download { registry, wanted, feeder: feeds, teller, hasher, done_bytes: 0 };
    let mut patience = Patience::new();
    loop {
        teller.layer(wanted.index, LayerState::Downloading, download.done_bytes);
        match download.go_on().await {
            Ok(()) => break,
            Err(Stop::Unread) => return Err(Stop::Unread),
            Err(Stop::Failed(error)) => patience.wait(error, teller).await?,
        }
    }
    download.check()?;
    Ok(feeder.end().await?)
}

impl Download<'_> {
    /// Gets what is missing, as far as one connection carries.
    async fn go_on(&mut self) -> Result<(), Stop> {
        let mut blob = self.registry.blob(&self.wanted.blob.digest, self.done_bytes).await?;
        // A registry that knows no ranges starts anew: what is there already is passed over.
        let mut known_bytes = if blob.is_partial { 0 } else { self.done_bytes };
        loop {
            let chunk = blob.response.chunk().await;
            let chunk = chunk.map_err(|error| self.broken(&first_cause(&error)))?;
            let Some(mut chunk) = chunk else { break };
            let skipped = usize::try_from(known_bytes).unwrap_or(usize::MAX).min(chunk.len());
            known_bytes -= skipped as u64;
            self.take(chunk.split_off(skipped)).await?;
        }
        if self.done_bytes < self.wanted.blob.size_bytes {
            return Err(self.broken("the registry sent no more").into());
        }
        Ok(())
    }

    async fn take(&mut self, bytes: Bytes) -> Result<(), Stop> {
        let size_bytes = self.wanted.blob.size_bytes;
        self.hasher.update(&bytes);
        self.done_bytes += bytes.len() as u64;
        if self.done_bytes > size_bytes {
            let limit = format!("the {size_bytes} bytes that its manifest announces");
            let source = image::Error::TooLarge { limit };
            return Err(unusable(self.registry, self.wanted, source).into());
        }
        self.feeder.feed(bytes).await?;
        self.teller.layer(self.wanted.index, LayerState::Downloading, self.done_bytes);
        Ok(())
    }

    /// Whether what came is what was asked for.
    fn check(self) -> Result<(), PullError> {
        let hash = self.hasher.finalize();
        let text: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = self.wanted.blob.digest;
        match format!("sha256:{text}").parse::<Digest>() {
            Ok(found) if found != expected => {
                let source = image::Error::WrongDigest { expected, found };
                Err(unusable(self.registry, self.wanted, source))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn broken(&self, reason: &str) -> PullError {
        let (done, size) = (self.done_bytes, self.wanted.blob.size_bytes);
        PullError::Broken {
            image: self.registry.source.to_string(),
            layer: self.wanted.blob.digest,
            reason: format!("it is cut off after {done} of {size} bytes: {reason}"),
        }
    }
}

fn unusable(registry: &Registry, wanted: &WantedLayer, source: image::Error) -> PullError {
    let (image, layer) = (registry.source.to_string(), wanted.blob.digest);
    PullError::Layer { image, layer, source: Box::new(source) }
}
