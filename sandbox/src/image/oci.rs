//! The documents of an image, as registries and archives have them (OCI image-spec 1.1, and
//! Docker's schema 2, of which it was made): an index names a manifest for each platform, a
//! manifest names a config and layers, a config says how to run it and what its layers are once
//! unpacked.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{self as spec, Arch, MediaType, Os};
use serde::{Deserialize, Serialize};

use super::{Digest, Error, ImageConfig, Result};

/// Media types of Docker's documents (distribution, image manifest version 2 schema 2).
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The most layers of an image: the names of more do not fit the page of options that mount(2)
/// takes.
pub const MAX_LAYERS: usize = 128;

/// What the programs of an image are for, e.g. `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system, as Go calls it.
    pub os: String,
    /// Architecture, as Go calls it.
    pub architecture: String,
    /// Which of several of that architecture.
    pub variant: Option<String>,
}

/// What a blob is, and where it is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Of the blob as it is transferred.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
    /// What is in it.
    pub media_type: String,
}

/// What a manifest's digest may stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Manifests for several platforms.
    Index(PlatformIndex),
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The config.
    pub config: Descriptor,
    /// The layers, compressed or not, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Manifests, each with the platform that it is for, if that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformIndex {
    manifests: Vec<(Descriptor, Option<Platform>)>,
}

/// What a config says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// What a job starts with when it does not say otherwise.
    pub config: ImageConfig,
    /// Digests of the layers unpacked from compression, the lowest first.
    pub diff_ids: Vec<Digest>,
    /// What its programs are for.
    pub platform: Platform,
}

impl Platform {
    /// That of this machine.
    #[must_use]
    pub fn of_host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            other => (other, None),
        };
        Self { os: std::env::consts::OS.into(), architecture: architecture.into(), variant }
    }

    /// Whether programs for `self` are those that `wanted` asks for. Who names no variant takes
    /// any.
    fn is(&self, wanted: &Self) -> bool {
        let has_variant = wanted.variant.is_none() || wanted.variant == self.variant;
        self.os == wanted.os && self.architecture == wanted.architecture && has_variant
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split('/');
        let is_word =
            |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let mut next = || parts.next().filter(is_word).map(str::to_owned);
        let (os, architecture, variant) = (next(), next(), next());
        match (os, architecture, parts.next()) {
            (Some(os), Some(architecture), None) if !text.ends_with('/') => {
                Ok(Self { os, architecture, variant })
            }
            _ => Err(no_image(format!(
                "`{}` is no platform: write `os/architecture[/variant]`, e.g. `linux/amd64`",
                text.escape_debug()
            ))),
        }
    }
}

impl Document {
    /// Reads an index or a manifest.
    ///
    /// # Errors
    /// [`Error::NoImage`] if it is neither, or is of a kind that is not supported.
    pub fn parse(text: &[u8]) -> Result<Self> {
        /// What tells the kinds apart, in all of them.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            schema_version: u32,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let kind: Kind = parse("manifest", text)?;
        if kind.schema_version != 2 {
            let version = kind.schema_version;
            return Err(no_image(format!(
                "its manifest is of schema {version}, which nobody makes any more: push it anew"
            )));
        }
        let media_type = kind.media_type.map(|text| MediaType::from(text.as_str()));
        let is_index = match &media_type {
            Some(MediaType::ImageIndex) => true,
            Some(MediaType::ImageManifest) => false,
            Some(MediaType::Other(text)) if text == DOCKER_INDEX => true,
            Some(MediaType::Other(text)) if text == DOCKER_MANIFEST => false,
            Some(other) => {
                return Err(no_image(format!("its manifest is of the kind `{other}`")));
            }
            // OCI lets it be left out.
            None => kind.manifests.is_some(),
        };
        if is_index {
            PlatformIndex::parse(text).map(Self::Index)
        } else {
            Manifest::parse(text).map(Self::Manifest)
        }
    }
}

impl PlatformIndex {
    fn parse(text: &[u8]) -> Result<Self> {
        let index: spec::ImageIndex = parse("index", text)?;
        let manifests = index.manifests().iter().map(|manifest| {
            Ok((descriptor(manifest)?, manifest.platform().as_ref().map(Platform::from)))
        });
        Ok(Self { manifests: manifests.collect::<Result<_>>()? })
    }

    /// The manifest for this platform. One whose platform is not said is taken if there is no
    /// other.
    ///
    /// # Errors
    /// [`Error::NoImage`], naming the platforms there are.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor> {
        if let [(only, None)] = self.manifests.as_slice() {
            return Ok(only);
        }
        let said =
            || self.manifests.iter().filter_map(|(one, for_what)| Some((one, for_what.as_ref()?)));
        if let Some((chosen, _)) = said().find(|(_, platform)| platform.is(wanted)) {
            return Ok(chosen);
        }
        let offered: Vec<String> = said()
            // Attestations stand beside the images.
            .filter(|(_, platform)| platform.os != "unknown")
            .map(|(_, platform)| format!("`{platform}`"))
            .collect();
        Err(no_image(format!("it is not for `{wanted}`: there is {}", offered.join(", "))))
    }
}

impl Manifest {
    fn parse(text: &[u8]) -> Result<Self> {
        let manifest: spec::ImageManifest = parse("manifest", text)?;
        let layers = manifest.layers();
        if layers.len() > MAX_LAYERS {
            return Err(no_image(format!("it has {} layers: {MAX_LAYERS} at most", layers.len())));
        }
        Ok(Self {
            config: descriptor(manifest.config())?,
            layers: layers.iter().map(descriptor).collect::<Result<_>>()?,
        })
    }
}

impl Configuration {
    /// Reads a config.
    ///
    /// # Errors
    /// [`Error::NoImage`] if it is none.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let document: spec::ImageConfiguration = parse("config", text)?;
        let diff_ids = document.rootfs().diff_ids().iter();
        let platform = Platform {
            os: document.os().to_string(),
            architecture: document.architecture().to_string(),
            variant: document.variant().clone(),
        };
        Ok(Self {
            config: document.config().as_ref().map_or_else(ImageConfig::default, image_config),
            diff_ids: diff_ids.map(|text| text.parse().map_err(no_image)).collect::<Result<_>>()?,
            platform,
        })
    }

    /// Whether its programs are for the platform that is asked for.
    ///
    /// # Errors
    /// [`Error::NoImage`], naming what they are for.
    pub fn check(&self, wanted: &Platform) -> Result<()> {
        if self.platform.is(wanted) {
            return Ok(());
        }
        Err(no_image(format!("it is for `{}`, not for `{wanted}`", self.platform)))
    }

    /// The layers of the manifest with their digests once unpacked from compression, the lowest
    /// first.
    ///
    /// # Errors
    /// [`Error::NoImage`] if config and manifest are of different images.
    pub fn layers<'a>(&'a self, manifest: &'a Manifest) -> Result<Vec<(Digest, &'a Descriptor)>> {
        if self.diff_ids.len() != manifest.layers.len() {
            let (one, other) = (self.diff_ids.len(), manifest.layers.len());
            return Err(no_image(format!("its config has {one} layers, its manifest {other}")));
        }
        Ok(self.diff_ids.iter().copied().zip(&manifest.layers).collect())
    }
}

impl From<&spec::Platform> for Platform {
    fn from(platform: &spec::Platform) -> Self {
        let (os, architecture): (&Os, &Arch) = (platform.os(), platform.architecture());
        Self {
            os: os.to_string(),
            architecture: architecture.to_string(),
            variant: platform.variant().clone(),
        }
    }
}

/// What is kept of a config; what it leaves out is that of a plain root file system.
fn image_config(config: &spec::Config) -> ImageConfig {
    let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let variable = |text: &String| {
        let (name, value) = text.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    let mut env: Vec<(String, String)> =
        config.env().iter().flatten().filter_map(variable).collect();
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.extend(ImageConfig::default().env);
    }
    ImageConfig {
        env,
        workdir: said(config.working_dir()),
        user: said(config.user()),
        command: config.cmd().clone().unwrap_or_default(),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        ports: config.exposed_ports().iter().flatten().cloned().collect(),
    }
}

fn descriptor(descriptor: &spec::Descriptor) -> Result<Descriptor> {
    Ok(Descriptor {
        digest: descriptor.digest().to_string().parse().map_err(no_image)?,
        size_bytes: descriptor.size(),
        media_type: descriptor.media_type().to_string(),
    })
}

fn parse<'a, T: Deserialize<'a>>(what: &str, text: &'a [u8]) -> Result<T> {
    serde_json::from_slice(text)
        .map_err(|error| no_image(format!("its {what} cannot be read: {error}")))
}

fn no_image(what: String) -> Error {
    Error::NoImage { what }
}
