//! How far a pull is: what bars, lines and events are made of.

use std::sync::Arc;

use lazaret_sandbox::image::{Digest, Image};
use tokio::sync::watch;

use super::PullError;

/// How far a pull is. Whoever watches may miss a step between, but never the last.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The image's digest, once it is known.
    pub digest: Option<Digest>,
    /// Its layers, the lowest first, once they are known.
    pub layers: Vec<LayerProgress>,
    /// Why something is being tried again.
    pub retry: Option<String>,
    /// The image, or why there is none.
    pub end: Option<Result<Arc<Image>, Arc<PullError>>>,
}

/// How far a layer is.
#[derive(Debug, Clone)]
pub struct LayerProgress {
    /// As it is transferred.
    pub digest: Digest,
    /// As it is transferred.
    pub total_bytes: u64,
    /// Of these have come.
    pub done_bytes: u64,
    /// What happens to it.
    pub state: LayerState,
}

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Others come first.
    Waiting,
    /// It comes, and is unpacked as it does.
    Downloading,
    /// It has come.
    Unpacked,
    /// It goes to the registry.
    Uploading,
    /// The registry has it now.
    Uploaded,
    /// It was there.
    Exists,
}

impl LayerState {
    /// As clients see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Unpacked => "unpacked",
            Self::Uploading => "uploading",
            Self::Uploaded => "uploaded",
            Self::Exists => "exists",
        }
    }

    /// Whether there is nothing left to do.
    #[must_use]
    pub const fn is_done(self) -> bool {
        match self {
            Self::Waiting | Self::Downloading | Self::Uploading => false,
            Self::Unpacked | Self::Uploaded | Self::Exists => true,
        }
    }
}

/// What a pull tells how far it is.
#[derive(Debug, Clone)]
pub struct Teller(watch::Sender<Progress>);

impl Teller {
    /// A pull that has not begun, and what watches it.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Progress>) {
        let (sender, receiver) = watch::channel(Progress::default());
        (Self(sender), receiver)
    }

    /// What the image is, and what it is made of.
    pub(super) fn resolved(&self, digest: Digest, layers: Vec<LayerProgress>) {
        self.0.send_modify(|progress| {
            progress.digest = Some(digest);
            progress.layers = layers;
        });
    }

    /// What a layer is, where that was not known before.
    pub(super) fn packed(&self, index: usize, digest: Digest, total_bytes: u64) {
        self.0.send_modify(|progress| {
            if let Some(layer) = progress.layers.get_mut(index) {
                (layer.digest, layer.total_bytes) = (digest, total_bytes);
            }
        });
    }

    /// Something is tried again.
    pub(super) fn retry(&self, error: &PullError) {
        self.0.send_modify(|progress| progress.retry = Some(error.to_string()));
    }

    /// A layer has come this far.
    pub(super) fn layer(&self, index: usize, state: LayerState, done_bytes: u64) {
        self.0.send_modify(|progress| {
            if let Some(layer) = progress.layers.get_mut(index) {
                layer.state = state;
                layer.done_bytes = done_bytes;
            }
        });
    }

    /// There is nothing more to come.
    pub fn end(&self, end: Result<Image, PullError>) {
        self.0.send_modify(|progress| progress.end = Some(end.map(Arc::new).map_err(Arc::new)));
    }
}
