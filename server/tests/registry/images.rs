//! Images that a test makes, as a registry has them.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layers;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What other tools call the image of a layout.
pub(crate) const LAYOUT_TAG: &str = "made";

/// Some bytes, and what is said of them.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) size: usize,
    pub(crate) media_type: String,
    /// What is sent, which a test may have changed.
    pub(crate) sent: Vec<u8>,
}

/// An image, or an index of images.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) manifest: Blob,
    pub(crate) config: Option<Blob>,
    pub(crate) layers: Vec<Blob>,
}

impl Blob {
    pub(crate) fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        let (digest, size) = (digest(&bytes), bytes.len());
        Self { digest, size, media_type: media_type.to_owned(), sent: bytes }
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }
}

impl Made {
    /// What is in it, but for the manifest.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.config.iter().chain(&self.layers)
    }
}

/// An image for this machine of layers with these files, the lowest first.
pub(crate) fn image(layers: &[&[(&str, &[u8])]]) -> Made {
    let layers: Vec<_> = layers.iter().map(|files| (OCI_LAYER, archive(files))).collect();
    image_of("linux", architecture(), &layers)
}

/// A busybox, which does what its name in `/bin` says.
pub(crate) fn busybox() -> Vec<u8> {
    std::fs::read("/bin/busybox").expect("`packaging/setup` installs it")
}

/// An image of a busybox, below a layer with only a name in it.
pub(crate) fn named(name: &str) -> Made {
    let busybox = busybox();
    image(&[&[("bin/sh", &busybox), ("bin/cat", &busybox)], &[("name", name.as_bytes())]])
}

/// An image of these archives, compressed as their kinds say.
pub(crate) fn image_of(os: &str, architecture: &str, archives: &[(&str, Vec<u8>)]) -> Made {
    let diff_ids: Vec<String> = archives.iter().map(|(_, tar)| digest(tar)).collect();
    let layers = archives.iter().map(|(kind, tar)| Blob::new(kind, compressed(kind, tar)));
    image_of_blobs((os, architecture), layers.collect(), &diff_ids)
}

/// An image of these layers, which are said to have these digests once they are unpacked.
pub(crate) fn image_of_blobs(
    (os, architecture): (&str, &str),
    layers: Vec<Blob>,
    diff_ids: &[String],
) -> Made {
    let config = json!({
        "os": os, "architecture": architecture,
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = Blob::new(OCI_CONFIG, config.to_string().into_bytes());
    let descriptors: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": config.descriptor(), "layers": descriptors,
    });
    let manifest = Blob::new(OCI_MANIFEST, manifest.to_string().into_bytes());
    Made { manifest, config: Some(config), layers }
}

/// An index of images for these platforms.
pub(crate) fn index(images: &[(&str, &str, &Made)]) -> Made {
    let manifests = images.iter().map(|(os, architecture, made)| {
        let mut descriptor = made.manifest.descriptor();
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    });
    let manifests: Vec<Value> = manifests.collect();
    let text = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let manifest = Blob::new(OCI_INDEX, text.to_string().into_bytes());
    Made { manifest, config: None, layers: Vec::new() }
}

/// An archive of files that everyone may run.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let entries = files.iter().map(|(name, content)| layers::file(name, content));
    layers::archive(&entries.collect::<Vec<_>>())
}

/// Writes a directory as the OCI wants it: `made`, with all images if it is an index of these.
pub(crate) fn write_layout(layout: &Path, made: &Made, images: &[&Made]) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("made");
    let write = |path: &Path, text: &[u8]| std::fs::write(path, text).expect("written");
    for made in images.iter().copied().chain([made]) {
        for blob in made.blobs().chain([&made.manifest]) {
            write(&blobs.join(blob.digest.trim_start_matches("sha256:")), &blob.sent);
        }
    }
    let mut descriptor = made.manifest.descriptor();
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": LAYOUT_TAG });
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    write(&layout.join("index.json"), index.to_string().as_bytes());
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion": "1.0.0"}"#);
}

/// As the kind of the layer says.
fn compressed(kind: &str, tar: &[u8]) -> Vec<u8> {
    match kind.rsplit(['+', '.']).next() {
        Some("gzip") => gzip(tar),
        Some("zstd") => zstd::encode_all(tar, 0).expect("written"),
        _ => tar.to_vec(),
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("written")
}

/// Bytes that no compression makes fewer.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let blocks = (0_u64..).flat_map(|number| Sha256::digest(number.to_le_bytes()));
    blocks.take(bytes).collect()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// This machine's, as Go calls it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
