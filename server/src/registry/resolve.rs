//! From a tag or digest to the manifest of one platform, its config and its layers.

use lazaret_sandbox::image::oci::{Configuration, Document, Manifest, Platform};
use lazaret_sandbox::image::{self, Digest};

use super::PullError;
use super::client::Registry;
use super::layer::WantedLayer;
use super::patience::Patience;
use super::progress::{LayerProgress, LayerState, Teller};

/// Layers of these kinds are not in registries: their makers must not give them away.
const FOREIGN: [&str; 2] = ["foreign", "nondistributable"];

/// What an image is made of.
pub(super) struct Resolved {
    /// Of the manifest.
    pub(super) digest: Digest,
    /// Of the index that named it, if one did.
    pub(super) index_digest: Option<Digest>,
    /// How it is run.
    pub(super) configuration: Configuration,
    /// The lowest first, each once.
    pub(super) layers: Vec<WantedLayer>,
}

/// Finds out what the image is made of, and tells.
pub(super) async fn resolve(
    registry: &Registry,
    platform: &Platform,
    teller: &Teller,
) -> Result<Resolved, PullError> {
    let unusable = |source| unusable(registry, source);
    let asked = registry.source.digest();
    let text = get(registry, &Wanted::Manifest(registry.source.handle(), asked), teller).await?;
    let (mut digest, mut index_digest) = (Digest::of(&text), None);
    let mut document = Document::parse(&text).map_err(unusable)?;
    if let Document::Index(index) = &document {
        let chosen = index.choose(platform).map_err(unusable)?.digest;
        let wanted = Wanted::Manifest(chosen.to_string(), Some(chosen));
        let text = get(registry, &wanted, teller).await?;
        index_digest = Some(std::mem::replace(&mut digest, chosen));
        document = Document::parse(&text).map_err(unusable)?;
    }
    let Document::Manifest(manifest) = document else {
        return Err(unusable(no_image("its index names another index".into())));
    };
    let text = get(registry, &Wanted::Config(manifest.config.digest), teller).await?;
    let configuration = Configuration::parse(&text).map_err(unusable)?;
    refuse_others(&configuration, platform).map_err(unusable)?;
    let layers = layers(registry, &configuration, &manifest)?;
    let waiting = layers.iter().map(|layer| LayerProgress {
        digest: layer.blob.digest,
        total_bytes: layer.blob.size_bytes,
        done_bytes: 0,
        state: LayerState::Waiting,
    });
    teller.resolved(digest, waiting.collect());
    Ok(Resolved { digest, index_digest, configuration, layers })
}

/// A document.
enum Wanted {
    /// Index or manifest, by tag or digest.
    Manifest(String, Option<Digest>),
    /// Config.
    Config(Digest),
}

/// Gets a document, patiently.
async fn get(registry: &Registry, wanted: &Wanted, teller: &Teller) -> Result<Vec<u8>, PullError> {
    let mut patience = Patience::new();
    loop {
        let got = match wanted {
            Wanted::Manifest(handle, digest) => registry.manifest(handle, *digest).await,
            Wanted::Config(digest) => registry.config(*digest).await,
        };
        match got {
            Ok(text) => return Ok(text),
            Err(error) => patience.wait(error, teller).await?,
        }
    }
}

/// A manifest that stands alone does not say what it is for; its config does.
fn refuse_others(configuration: &Configuration, wanted: &Platform) -> image::Result<()> {
    let found = &configuration.platform;
    if (&found.os, &found.architecture) == (&wanted.os, &wanted.architecture) {
        return Ok(());
    }
    Err(no_image(format!("it is not for `{wanted}`, but for `{found}`")))
}

/// The layers to get. An overlay has no layer twice; where an image has, the lower adds nothing.
fn layers(
    registry: &Registry,
    configuration: &Configuration,
    manifest: &Manifest,
) -> Result<Vec<WantedLayer>, PullError> {
    let layers = configuration.layers(manifest).map_err(|source| unusable(registry, source))?;
    let mut wanted: Vec<WantedLayer> = Vec::with_capacity(layers.len());
    for (diff_id, blob) in layers.into_iter().rev() {
        if FOREIGN.iter().any(|kind| blob.media_type.contains(kind)) {
            let what = format!("its kind `{}` is not in registries", blob.media_type);
            let (image, source) = (registry.source.to_string(), Box::new(no_image(what)));
            return Err(PullError::Layer { image, layer: blob.digest, source });
        }
        if !wanted.iter().any(|one| one.diff_id == diff_id) {
            wanted.push(WantedLayer { index: 0, blob: blob.clone(), diff_id });
        }
    }
    wanted.reverse();
    for (index, layer) in wanted.iter_mut().enumerate() {
        layer.index = index;
    }
    Ok(wanted)
}

fn unusable(registry: &Registry, source: image::Error) -> PullError {
    PullError::Image { image: registry.source.to_string(), source: Box::new(source) }
}

fn no_image(what: String) -> image::Error {
    image::Error::NoImage { what }
}
