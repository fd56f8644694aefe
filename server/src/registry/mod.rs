//! Images from registries: what a reference means there, its layers streamed into the store.
//!
//! ```text
//! reference ─▶ index ─▶ manifest of a platform ─▶ config ─▶ layers, up to four at a time ─▶ image
//! ```
//!
//! Every document and every layer is checked against the digest that named it. The image appears
//! when all of its layers are there; layers that came before an interruption are kept for the next
//! pull, until `prune`.

mod client;
mod credentials;
mod error;
mod layer;
mod patience;
mod progress;
mod pulls;
mod resolve;
mod source;

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use lazaret_sandbox::image::oci::Platform;
use lazaret_sandbox::image::{
    self, Bounds, HOST_IMAGE, Image, ImageName, ImageStore, Layer, NewImage,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

pub use client::provide_tls;
pub use credentials::{Credentials, Secret};
pub use error::PullError;
pub use progress::{LayerProgress, LayerState, Progress, Teller};
pub use pulls::{Pull, Pulls, TooMany};
pub use source::{Source, Transport};

use client::Registry;
use layer::WantedLayer;
use resolve::Resolved;

/// Layers that come at one time.
const LAYERS_AT_ONCE: usize = 4;
/// How often a pull is made if somebody removes its layers meanwhile.
const ROUNDS: usize = 2;

/// What is pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// Where it comes from.
    pub source: Source,
    /// What jobs will call it.
    pub name: ImageName,
    /// What its programs shall be for.
    pub platform: Platform,
}

impl PullRequest {
    /// The request that a client's words make: the reference, and a name and platform if it chose
    /// any.
    ///
    /// # Errors
    /// [`PullError::Refused`], saying which of them cannot be.
    pub fn parse(
        reference: &str,
        transport: Transport,
        name: Option<&str>,
        platform: Option<&str>,
    ) -> Result<Self, PullError> {
        let refused = |error: image::Error| PullError::Refused(error.to_string());
        let source = Source::parse(reference, transport)?;
        let name = match name {
            Some(name) => name.parse().map_err(refused)?,
            None => source.default_name(reference)?,
        };
        if name.as_str() == HOST_IMAGE {
            let reason = format!("`{HOST_IMAGE}` is the built-in image's name: choose another");
            return Err(PullError::Refused(reason));
        }
        let platform = platform.map_or_else(|| Ok(Platform::of_host()), str::parse);
        Ok(Self { source, name, platform: platform.map_err(refused)? })
    }

    /// Who docker says pulls from this registry.
    ///
    /// # Errors
    /// [`PullError::Refused`] if docker's configuration cannot be read.
    pub fn credentials(&self, docker_config: Option<&Path>) -> Result<Credentials, PullError> {
        docker_config.map_or(Ok(Credentials::Anonymous), |path| {
            Credentials::of_docker(path, self.source.registry())
        })
    }
}

/// Where images go.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Has them.
    pub images: Arc<ImageStore>,
    /// What a layer may be when it is unpacked.
    pub bounds: Bounds,
    /// The threads that unpack. They outlive a pull that is given up, for as long as they need to
    /// clean up.
    pub unpacking: TaskTracker,
}

/// Pulls an image. Whoever drops this before its end leaves nothing visible.
///
/// # Errors
/// Why there is no image.
pub async fn pull(
    destination: &Destination,
    request: &PullRequest,
    credentials: Credentials,
    teller: &Teller,
) -> Result<Image, PullError> {
    let registry = Registry::open(request.source.clone(), credentials).await?;
    let resolved = resolve::resolve(&registry, &request.platform, teller).await?;
    let mut round = 1;
    loop {
        let layers = fetch_layers(&registry, destination, &resolved, teller).await?;
        let new = new_image(request, &resolved, layers);
        match ask(destination, move |images| images.add(new, Timestamp::now())).await {
            // Somebody has pruned meanwhile.
            Err(image::Error::NotFound { .. }) if round < ROUNDS => round += 1,
            added => {
                return added.map_err(|source| unusable(&request.source, source));
            }
        }
    }
}

/// The layers, the lowest first.
async fn fetch_layers(
    registry: &Arc<Registry>,
    destination: &Destination,
    resolved: &Resolved,
    teller: &Teller,
) -> Result<Vec<Layer>, PullError> {
    let room = Arc::new(Semaphore::new(LAYERS_AT_ONCE));
    // Dropped at the first error, which ends the others.
    let mut coming = JoinSet::new();
    for wanted in resolved.layers.iter().cloned() {
        let (registry, destination) = (Arc::clone(registry), destination.clone());
        let (room, teller) = (Arc::clone(&room), teller.clone());
        coming.spawn(async move {
            let _room = room.acquire().await;
            let layer = have_layer(&registry, &destination, &wanted, &teller).await?;
            Ok::<_, PullError>((wanted.index, layer))
        });
    }
    let mut layers = Vec::with_capacity(resolved.layers.len());
    while let Some(come) = coming.join_next().await {
        let image = || registry.source.to_string();
        layers.push(come.map_err(|_panicked| PullError::Interrupted { image: image() })??);
    }
    layers.sort_by_key(|(index, _)| *index);
    Ok(layers.into_iter().map(|(_, layer)| layer).collect())
}

/// The layer: from the store, or else from the registry.
async fn have_layer(
    registry: &Registry,
    destination: &Destination,
    wanted: &WantedLayer,
    teller: &Teller,
) -> Result<Layer, PullError> {
    let diff_id = wanted.diff_id;
    let known = ask(destination, move |images| images.layer(&diff_id)).await;
    match known.map_err(|source| unusable(&registry.source, source))? {
        Some(layer) => {
            teller.layer(wanted.index, LayerState::Exists, wanted.blob.size_bytes);
            Ok(layer)
        }
        None => layer::fetch(registry, destination, wanted, teller).await,
    }
}

fn new_image(request: &PullRequest, resolved: &Resolved, layers: Vec<Layer>) -> NewImage {
    NewImage {
        name: request.name.clone(),
        digest: Some(resolved.digest),
        aliases: resolved.index_digest.into_iter().collect(),
        layers: layers.into_iter().rev().collect(),
        platform: Some(resolved.configuration.platform.clone()),
        config: resolved.configuration.config.clone(),
    }
}

fn unusable(source: &Source, error: image::Error) -> PullError {
    PullError::Image { image: source.to_string(), source: Box::new(error) }
}

/// Asks the store, which reads and writes files and waits for locks.
async fn ask<T: Send + 'static>(
    destination: &Destination,
    question: impl FnOnce(&ImageStore) -> image::Result<T> + Send + 'static,
) -> image::Result<T> {
    let images = Arc::clone(&destination.images);
    let asked = destination.unpacking.spawn_blocking(move || question(&images)).await;
    asked.unwrap_or_else(|_panicked| {
        let source = std::io::Error::other("it panicked");
        Err(image::Error::Io { doing: "could not ask the store".into(), source })
    })
}
