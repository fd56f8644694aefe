//! Images on their way out: to an OCI layout (image-spec 1.1, image-layout), or, layer by layer, to
//! whoever sends them to a registry.
//!
//! A store keeps no archives. A layer is packed anew, into the same bytes each time; where it is
//! known what archive it came as, or was packed as before, that need not be done if the other side
//! has it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::oci::Descriptor;
use super::pack::pack_compressed;
use super::{Digest, Doing as _, Image, ImageConfig, ImageStore, Layer, Result, tree};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The media type of the manifests that are made here.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What an image without a tag is called in a layout, as everywhere.
const DEFAULT_TAG: &str = "latest";

/// A layer as an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedLayer {
    /// Of the archive before it was compressed.
    pub diff_id: Digest,
    /// The compressed one.
    pub blob: Descriptor,
    /// Where it is known to be: registry and repository, joined by a slash.
    #[serde(default)]
    pub repository: Option<String>,
}

/// What describes an image to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The config.
    pub config: Vec<u8>,
    /// The manifest, which names config and layers.
    pub manifest: Vec<u8>,
}

impl PackedLayer {
    /// A layer that came, or comes, as this blob. Docker's names of the kinds have OCI's of the
    /// same: a manifest may not mix them.
    #[must_use]
    pub fn new(diff_id: Digest, (digest, size_bytes): (Digest, u64), kind: &str) -> Self {
        let compression =
            ["gzip", "zstd"].into_iter().find(|compression| kind.ends_with(compression));
        let media_type = match compression {
            Some(compression) => format!("{LAYER}+{compression}"),
            None => LAYER.into(),
        };
        Self { diff_id, blob: Descriptor { digest, size_bytes, media_type }, repository: None }
    }

    /// The same, known to be in this repository.
    #[must_use]
    pub fn at(self, repository: String) -> Self {
        Self { repository: Some(repository), ..self }
    }
}

impl Documents {
    /// Those of `image`, made of these layers, the lowest first.
    #[must_use]
    pub fn of(image: &Image, layers: &[PackedLayer]) -> Self {
        let config = config(image, layers).to_string().into_bytes();
        let descriptors: Vec<Value> = layers.iter().map(|layer| descriptor(&layer.blob)).collect();
        let blob = Descriptor {
            digest: Digest::of(&config),
            size_bytes: config.len() as u64,
            media_type: CONFIG.into(),
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(&blob),
            "layers": descriptors,
        });
        Self { config, manifest: manifest.to_string().into_bytes() }
    }
}

impl ImageStore {
    /// Writes `image` as an OCI layout to the directory `destination`, which must not be there yet.
    /// Answers with the digest of its manifest. What was written goes if the rest cannot be.
    ///
    /// # Errors
    /// If `destination` is there already, or cannot be written.
    pub fn export(&self, image: &Image, destination: &Path) -> Result<Digest> {
        let _hold = self.hold(image)?;
        self.can_leave(image)?;
        let doing = || format!("could not make `{}`", destination.display());
        if destination.symlink_metadata().is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists)).doing(doing);
        }
        // Whoever is killed halfway leaves nothing that looks like a layout, or is in the way.
        let mut unfinished = destination.as_os_str().to_owned();
        unfinished.push(format!(".unfinished-{}", std::process::id()));
        let unfinished = Path::new(&unfinished);
        DirBuilder::new().mode(0o755).create(unfinished).doing(doing)?;
        let exported = self.export_into(image, unfinished).and_then(|digest| {
            renameat_with(CWD, unfinished, CWD, destination, RenameFlags::NOREPLACE)
                .doing(doing)?;
            Ok(digest)
        });
        exported.inspect_err(|_failed| {
            // It is ours; the error that is told is the first.
            drop(fs::remove_dir_all(unfinished));
        })
    }

    fn export_into(&self, image: &Image, destination: &Path) -> Result<Digest> {
        let blobs = destination.join("blobs/sha256");
        fs::create_dir_all(&blobs).doing(|| format!("could not make `{}`", blobs.display()))?;
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in image.layers.iter().rev() {
            let unnamed = blobs.join("unfinished");
            let doing = || format!("could not write `{}`", unnamed.display());
            let mut file = File::create(&unnamed).doing(doing)?;
            let packed = self.pack(layer, &mut file)?;
            let named = blobs.join(packed.blob.digest.hex());
            fs::rename(&unnamed, &named).doing(doing)?;
            layers.push(packed);
        }
        let Documents { config, manifest } = Documents::of(image, &layers);
        for document in [&config, &manifest] {
            write(&blobs.join(Digest::of(document).hex()), document)?;
        }
        let digest = Digest::of(&manifest);
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": digest,
                "size": manifest.len(),
                "platform": platform(image),
                "annotations": {
                    "org.opencontainers.image.ref.name": image.name.tag().unwrap_or(DEFAULT_TAG),
                },
            }],
        });
        write(&destination.join("index.json"), index.to_string().as_bytes())?;
        // The last one: without it, it is no layout.
        write(&destination.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(digest)
    }

    /// Packs a layer, and remembers what it became.
    ///
    /// # Errors
    /// If it cannot be read, or `out` cannot be written.
    pub fn pack(&self, layer: &Layer, out: impl Write) -> Result<PackedLayer> {
        let path = self.layers().join(layer.digest.directory());
        let directory =
            tree::open_directory(&path).doing(|| format!("could not open `{}`", path.display()))?;
        let packed = pack_compressed(directory.as_fd(), out)?;
        let blob = (packed.digest, packed.size_bytes);
        let packed = PackedLayer::new(packed.diff_id, blob, "gzip");
        self.remember_packed(&layer.digest, packed.clone())?;
        Ok(packed)
    }

    /// A file without a name on the disk of the store: it goes with its descriptor.
    ///
    /// # Errors
    /// If there can be none.
    pub fn unnamed_file(&self) -> Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(CWD, self.layers(), flags, Mode::RUSR | Mode::WUSR);
        Ok(File::from(file.doing(|| "could not make a temporary file".into())?))
    }
}

/// The config of an image, whose keys stand in order: the same image has the same bytes.
fn config(image: &Image, layers: &[PackedLayer]) -> Value {
    let ImageConfig { env, workdir, user, command, entrypoint, labels, ports } = &image.config;
    let mut config = serde_json::Map::new();
    let mut said = |key: &str, value: Value, is_there: bool| {
        if is_there {
            config.insert(key.into(), value);
        }
    };
    let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let exposed: serde_json::Map<_, _> =
        ports.iter().map(|port| (port.clone(), json!({}))).collect();
    said("Env", json!(env), !env.is_empty());
    said("WorkingDir", json!(workdir), workdir.is_some());
    said("User", json!(user), user.is_some());
    said("Cmd", json!(command), !command.is_empty());
    said("Entrypoint", json!(entrypoint), !entrypoint.is_empty());
    said("Labels", json!(labels), !labels.is_empty());
    said("ExposedPorts", json!(exposed), !exposed.is_empty());
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    let mut document = platform(image);
    document["config"] = config.into();
    document["created"] = json!(image.created_at);
    document["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
    document
}

fn platform(image: &Image) -> Value {
    let mut parts = image.platform.split('/');
    let mut platform = json!({ "os": parts.next(), "architecture": parts.next() });
    if let Some(variant) = parts.next() {
        platform["variant"] = variant.into();
    }
    platform
}

fn descriptor(blob: &Descriptor) -> Value {
    json!({ "mediaType": blob.media_type, "digest": blob.digest, "size": blob.size_bytes })
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let written: io::Result<()> = fs::write(path, content);
    written.doing(|| format!("could not write `{}`", path.display()))
}
