//! The way out: the blobs that a registry lacks, then the manifest that names them.

use std::sync::Arc;

use lazaret_sandbox::image::oci::Descriptor;
use lazaret_sandbox::image::{
    self, Digest, Documents, Image, ImageStore, Layer, MANIFEST, PackedLayer,
};
use oci_client::RegistryOperation;
use reqwest::Body;

use super::client::Registry;
use super::patience::Patience;
use super::progress::{LayerProgress, LayerState, Teller};
use super::upload::FileBody;
use super::{Credentials, LocalStore, PullError, Source, Transport, ask, in_parallel, unusable};

/// Where an image of the store goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRequest {
    /// Which image.
    pub image: Image,
    /// Where it goes.
    pub target: Source,
}

impl PushRequest {
    /// The request that a client's words make: the name of an image of `images`, and where it goes
    /// if its name does not say so.
    ///
    /// # Errors
    /// [`PullError::Refused`] if there is no such image, or it cannot go there.
    pub fn parse(
        images: &ImageStore,
        name: &str,
        target: Option<&str>,
        transport: Transport,
    ) -> Result<Self, PullError> {
        let refused = |error: image::Error| PullError::Refused(error.to_string());
        let image = images.get(name).map_err(refused)?;
        let image = image.ok_or_else(|| refused(image::Error::NotFound { name: name.into() }))?;
        images.can_leave(&image).map_err(refused)?;
        let target = Source::parse(target.unwrap_or(image.name.as_str()), transport)?;
        if target.digest().is_some() {
            let reason = format!("`{target}` has a digest, which what is pushed gives itself");
            return Err(PullError::Refused(reason));
        }
        Ok(Self { image, target })
    }
}

/// Pushes an image. Answers with the digest that the registry knows it by.
///
/// # Errors
/// Why it is not there.
pub async fn push(
    local: &LocalStore,
    request: &PushRequest,
    credentials: Credentials,
    teller: &Teller,
) -> Result<Digest, PullError> {
    let target = &request.target;
    let image = request.image.clone();
    let hold = ask(local, move |images| images.hold(&image)).await;
    let _hold = hold.map_err(|source| unusable(target, source))?;
    let registry = Registry::open(target.clone(), credentials, RegistryOperation::Push).await?;
    let layers: Vec<Layer> = request.image.layers.iter().rev().copied().collect();
    let waiting = layers.iter().map(|layer| LayerProgress {
        digest: layer.digest,
        total_bytes: layer.size_bytes,
        done_bytes: 0,
        state: LayerState::Waiting,
    });
    teller.resolved(request.image.digest, waiting.collect());
    let packed = in_parallel(layers.into_iter().enumerate().collect(), target, |(index, layer)| {
        let (registry, local, teller) = (Arc::clone(&registry), local.clone(), teller.clone());
        async move { give_layer(&registry, &local, (index, layer), &teller).await }
    });
    let Documents { config, manifest } = Documents::of(&request.image, &packed.await?);
    let mut patience = Patience::new();
    while let Err(error) = give_documents(&registry, &config, &manifest).await {
        patience.wait(error, teller).await?;
    }
    Ok(Digest::of(&manifest))
}

async fn give_documents(
    registry: &Registry,
    config: &[u8],
    manifest: &[u8],
) -> Result<(), PullError> {
    let digest = Digest::of(config);
    if !registry.has(&digest).await? {
        let body = |_: &_| Body::from(config.to_vec());
        registry.upload(&digest, config.len() as u64, body).await?;
    }
    registry.put_manifest(MANIFEST, manifest).await
}

/// Sees to it that the registry has a layer. It is packed only if it is not known what the registry
/// may have it as.
async fn give_layer(
    registry: &Registry,
    local: &LocalStore,
    (index, layer): (usize, Layer),
    teller: &Teller,
) -> Result<PackedLayer, PullError> {
    let unusable = |source| unusable(&registry.source, source);
    for known in ask(local, move |images| images.packed(&layer.digest)).await.map_err(unusable)? {
        if is_there(registry, &known.blob.digest, teller).await? || mounts(registry, &known).await?
        {
            return Ok(given((index, known), LayerState::Exists, teller));
        }
    }
    let packed = ask(local, move |images| {
        let mut file = images.unnamed_file()?;
        Ok((images.pack(&layer, &mut file)?, file))
    });
    let (packed, file) = packed.await.map_err(unusable)?;
    let file = Arc::new(file);
    let mut patience = Patience::new();
    loop {
        if is_there(registry, &packed.blob.digest, teller).await? {
            return Ok(given((index, packed), LayerState::Exists, teller));
        }
        teller.layer(index, LayerState::Uploading, 0);
        let Descriptor { digest, size_bytes, .. } = packed.blob;
        match registry.upload(&digest, size_bytes, |sent| FileBody::of(&file, sent)).await {
            Ok(()) => break,
            Err(error) => patience.wait(error, teller).await?,
        }
    }
    let known = packed.clone().at(registry.source.place());
    let remembered = ask(local, move |images| images.remember_packed(&layer.digest, known)).await;
    remembered.map_err(unusable)?;
    Ok(given((index, packed), LayerState::Uploaded, teller))
}

/// Whether the registry has a blob elsewhere and takes it from there.
async fn mounts(registry: &Registry, known: &PackedLayer) -> Result<bool, PullError> {
    match &known.repository {
        Some(place) if *place != registry.source.place() => {
            registry.mount(&known.blob.digest, place).await
        }
        Some(_) | None => Ok(false),
    }
}

/// Whether the registry has a blob; asked patiently.
async fn is_there(
    registry: &Registry,
    digest: &Digest,
    teller: &Teller,
) -> Result<bool, PullError> {
    let mut patience = Patience::new();
    loop {
        match registry.has(digest).await {
            Ok(is_there) => return Ok(is_there),
            Err(error) => patience.wait(error, teller).await?,
        }
    }
}

fn given((index, packed): (usize, PackedLayer), state: LayerState, teller: &Teller) -> PackedLayer {
    let Descriptor { digest, size_bytes, .. } = packed.blob;
    teller.packed(index, digest, size_bytes);
    teller.layer(index, state, size_bytes);
    packed
}
