//! Images from registries: what a reference means there, its layers streamed into the store.
//!
//! ```text
//! reference ─▶ index ─▶ manifest of a platform ─▶ config ─▶ layers, up to four at a time ─▶ image
//! ```
//!
//! The other way, `push`: only what the registry lacks.
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
mod push;
mod resolve;
mod source;
mod upload;

use std::sync::Arc;

use jiff::Timestamp;
use lazaret_sandbox::image::oci::{Descriptor, Platform};
use lazaret_sandbox::image::{
    self, Bounds, HOST_IMAGE, HeldLayer, Image, ImageName, ImageStore, Layer, NewImage, PackedLayer,
};
use oci_client::RegistryOperation;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

pub use client::provide_tls;
pub use credentials::{Credentials, Secret};
pub use error::PullError;
pub use progress::{LayerProgress, LayerState, Progress, Teller};
pub use pulls::{Pull, Pulls, TooMany};
pub use push::{PushRequest, push};
pub use source::{Source, Transport};

use client::Registry;
use layer::WantedLayer;
use resolve::Resolved;

/// Layers that come at one time.
const LAYERS_AT_ONCE: usize = 4;

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
}

/// The images of this host, and the threads that read and write them.
#[derive(Debug, Clone)]
pub struct LocalStore {
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
    local: &LocalStore,
    request: &PullRequest,
    credentials: Credentials,
    teller: &Teller,
) -> Result<Image, PullError> {
    let purpose = RegistryOperation::Pull;
    let registry = Registry::open(request.source.clone(), credentials, purpose).await?;
    let resolved = resolve::resolve(&registry, &request.platform, teller).await?;
    let held = fetch_layers(&registry, local, &resolved, teller).await?;
    let new = new_image(request, &resolved, held.iter().map(|held| held.layer).collect());
    // Nobody removes the layers while they are held.
    let added = ask(local, move |images| {
        let image = images.add(new, Timestamp::now());
        drop(held);
        image
    });
    added.await.map_err(|source| unusable(&request.source, source))
}

/// The layers, the lowest first.
async fn fetch_layers(
    registry: &Arc<Registry>,
    local: &LocalStore,
    resolved: &Resolved,
    teller: &Teller,
) -> Result<Vec<HeldLayer>, PullError> {
    let fetching = in_parallel(resolved.layers.clone(), &registry.source, |wanted| {
        let (registry, local) = (Arc::clone(registry), local.clone());
        let teller = teller.clone();
        async move { have_layer(&registry, &local, &wanted, &teller).await }
    });
    fetching.await
}

/// Does the work of each layer, a few at a time; the answers stand in the order of the layers. The
/// first error ends the others.
async fn in_parallel<L, T, F>(
    layers: Vec<L>,
    source: &Source,
    work: impl Fn(L) -> F,
) -> Result<Vec<T>, PullError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, PullError>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(LAYERS_AT_ONCE));
    let mut going = JoinSet::new();
    for (index, layer) in layers.into_iter().enumerate() {
        let (room, work) = (Arc::clone(&room), work(layer));
        going.spawn(async move {
            let _room = room.acquire().await;
            Ok::<_, PullError>((index, work.await?))
        });
    }
    let mut done = Vec::with_capacity(going.len());
    while let Some(one) = going.join_next().await {
        let image = || source.to_string();
        done.push(one.map_err(|_panicked| PullError::Interrupted { image: image() })??);
    }
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, answer)| answer).collect())
}

/// The layer: from the store, or else from the registry.
async fn have_layer(
    registry: &Registry,
    local: &LocalStore,
    wanted: &WantedLayer,
    teller: &Teller,
) -> Result<HeldLayer, PullError> {
    let diff_id = wanted.diff_id;
    let known = ask(local, move |images| images.held_layer(&diff_id)).await;
    match known.map_err(|source| unusable(&registry.source, source))? {
        Some(layer) => {
            teller.layer(wanted.index, LayerState::Exists, wanted.blob.size_bytes);
            Ok(layer)
        }
        None => {
            let layer = layer::fetch(registry, local, wanted, teller).await?;
            let Descriptor { digest, size_bytes, media_type } = &wanted.blob;
            let packed = PackedLayer::new(diff_id, (*digest, *size_bytes), media_type);
            let packed = packed.at(registry.source.place());
            let remember = move |images: &ImageStore| images.remember_packed(&diff_id, packed);
            let remembered = ask(local, remember).await;
            remembered.map_err(|source| unusable(&registry.source, source))?;
            Ok(layer)
        }
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
    local: &LocalStore,
    question: impl FnOnce(&ImageStore) -> image::Result<T> + Send + 'static,
) -> image::Result<T> {
    let images = Arc::clone(&local.images);
    let asked = local.unpacking.spawn_blocking(move || question(&images)).await;
    asked.unwrap_or_else(|_panicked| {
        let source = std::io::Error::other("it panicked");
        Err(image::Error::Io { doing: "could not ask the store".into(), source })
    })
}
