//! Images as they are handed over in files: an OCI layout, as a directory or an archive, or what
//! `docker save` writes.
//!
//! ```text
//! index.json ─▶ index ─▶ manifest ─▶ config, layers      OCI: each a blob, by its digest
//! manifest.json ─────────────────▶ config, layers        docker: each a file, by its name
//! ```
//!
//! What is believed is what has the digest that was believed before: of the config, which has those
//! of the layers once they are unpacked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::Deserialize;
use tar::{Archive, EntryType};

use super::oci::{Configuration, Descriptor, Document, Manifest, Platform};
use super::{Digest, Doing as _, Error, Result};

/// The largest index, manifest or config, as registries have it.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Files in an archive: more layers than an image may have, with what describes them.
const MAX_FILES: usize = 10_000;
/// Indexes that stand one in another.
const MAX_INDEXES: usize = 3;
/// The files that say what there is.
const OCI_INDEX: &str = "index.json";
const DOCKER_MANIFEST: &str = "manifest.json";
const OCI_LAYOUT: &str = "oci-layout";

/// The files of images, wherever they are.
#[derive(Debug)]
pub(super) enum Bundle {
    /// A directory of the host.
    Directory(OwnedFd),
    /// An archive that is not compressed, and where in it the files are.
    Archive(Arc<File>, HashMap<String, Place>),
}

/// Where a file lies in an archive.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// From this byte on, so many.
    At(u64, u64),
    /// Under another name.
    LinkTo(String),
}

/// An image of a bundle, and where its layers are.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) digest: Digest,
    pub(super) aliases: Vec<Digest>,
    pub(super) configuration: Configuration,
    /// What each is once unpacked, and the file it is in; the lowest first.
    pub(super) layers: Vec<(Digest, String)>,
}

/// An entry of `manifest.json`, as `docker save` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// Whether an archive that starts with this name holds images, and not a root file system.
pub(super) fn is_bundle(first: &[u8]) -> bool {
    let name = first.strip_prefix(b"./").unwrap_or(first);
    let top = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    let is_digest = |text: &[u8]| text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit);
    let names: [&[u8]; 5] =
        [b"blobs", b"oci-layout", b"index.json", b"manifest.json", b"repositories"];
    names.contains(&top) || is_digest(top) || top.strip_suffix(b".json").is_some_and(is_digest)
}

impl Bundle {
    /// The OCI layout in a directory, if it is one.
    pub(super) fn of_directory(directory: OwnedFd) -> Result<Option<Self>> {
        let bundle = Self::Directory(directory);
        Ok(bundle.open(OCI_LAYOUT)?.is_some().then_some(bundle))
    }

    /// The files of an archive that is not compressed.
    pub(super) fn of_archive(file: File) -> Result<Self> {
        let doing = || "could not read the archive".to_owned();
        let mut places = HashMap::new();
        let mut archive = Archive::new(&file);
        for entry in archive.entries_with_seek().doing(doing)? {
            let entry = entry.doing(doing)?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let kind = entry.header().entry_type();
            let place = if kind == EntryType::Regular {
                Place::At(entry.raw_file_position(), entry.size())
            } else if let Some(target) = target_of(&path, &entry) {
                Place::LinkTo(target)
            } else {
                continue;
            };
            if places.len() == MAX_FILES {
                return Err(no_image(format!("it has more than {MAX_FILES} files")));
            }
            places.insert(plain(&path), place);
        }
        Ok(Self::Archive(Arc::new(file), places))
    }

    /// The image for this platform.
    pub(super) fn describe(&self, platform: &Platform) -> Result<Described> {
        if let Some(index) = self.document(OCI_INDEX)? {
            return self.describe_layout(index, platform);
        }
        let Some(saved) = self.document(DOCKER_MANIFEST)? else {
            return Err(no_image(format!("it has neither `{OCI_INDEX}` nor `{DOCKER_MANIFEST}`")));
        };
        self.describe_saved(&saved, platform)
    }

    /// A file, from its start; none if there is no such file.
    pub(super) fn open(&self, path: &str) -> Result<Option<Box<dyn Read>>> {
        match self {
            Self::Directory(directory) => {
                Ok(open_beneath(directory, path)?.map(|file| Box::new(file) as Box<dyn Read>))
            }
            Self::Archive(file, places) => {
                let mut place = places.get(path);
                // Docker's own links lead to a file at once.
                if let Some(Place::LinkTo(target)) = place {
                    place = places.get(target);
                }
                Ok(match place {
                    Some(Place::At(start, length)) => Some(Box::new(Slice {
                        file: Arc::clone(file),
                        at: *start,
                        end: start.saturating_add(*length),
                    })),
                    Some(Place::LinkTo(_)) | None => None,
                })
            }
        }
    }

    fn describe_layout(&self, index: Vec<u8>, platform: &Platform) -> Result<Described> {
        let mut aliases = Vec::new();
        let (mut text, mut digest) = (index, None);
        for _ in 0..=MAX_INDEXES {
            let chosen = match Document::parse(&text)? {
                Document::Index(index) => index.choose(platform)?.clone(),
                Document::Manifest(manifest) => {
                    let digest = digest.unwrap_or_else(|| Digest::of(&text));
                    return self.describe_manifest(&manifest, (digest, aliases), platform);
                }
            };
            // The layout's own index is of this bundle only.
            aliases.extend(digest.replace(chosen.digest));
            text = self.blob(&chosen)?;
        }
        Err(no_image("its indexes lead to no manifest".into()))
    }

    fn describe_manifest(
        &self,
        manifest: &Manifest,
        (digest, aliases): (Digest, Vec<Digest>),
        platform: &Platform,
    ) -> Result<Described> {
        let configuration = Configuration::parse(&self.blob(&manifest.config)?)?;
        configuration.check(platform)?;
        let layers = configuration.layers(manifest)?.into_iter();
        let layers = layers.map(|(diff_id, layer)| (diff_id, blob_path(&layer.digest))).collect();
        Ok(Described { digest, aliases, configuration, layers })
    }

    fn describe_saved(&self, saved: &[u8], platform: &Platform) -> Result<Described> {
        let mut saved: Vec<Saved> = serde_json::from_slice(saved)
            .map_err(|error| no_image(format!("`{DOCKER_MANIFEST}` cannot be read: {error}")))?;
        let (Some(Saved { config, layers }), true) = (saved.pop(), saved.is_empty()) else {
            return Err(no_image("it holds several images: save one at a time".into()));
        };
        let text = self.document(&config)?.ok_or_else(|| missing(&config))?;
        let configuration = Configuration::parse(&text)?;
        configuration.check(platform)?;
        if layers.len() != configuration.diff_ids.len() {
            let (one, other) = (configuration.diff_ids.len(), layers.len());
            return Err(no_image(format!("its config has {one} layers, its manifest {other}")));
        }
        let layers = configuration.diff_ids.iter().copied().zip(layers).collect();
        let (digest, aliases) = (Digest::of(&text), Vec::new());
        Ok(Described { digest, aliases, configuration, layers })
    }

    /// A document by its digest.
    fn blob(&self, wanted: &Descriptor) -> Result<Vec<u8>> {
        let path = blob_path(&wanted.digest);
        let text = self.document(&path)?.ok_or_else(|| missing(&path))?;
        let (expected, found) = (wanted.digest, Digest::of(&text));
        if found != expected {
            return Err(Error::WrongDigest { expected, found });
        }
        Ok(text)
    }

    fn document(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open(path)? else { return Ok(None) };
        let mut text = Vec::new();
        file.take(MAX_DOCUMENT_BYTES + 1)
            .read_to_end(&mut text)
            .doing(|| format!("could not read `{path}`"))?;
        if text.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(no_image(format!("`{path}` has more than {MAX_DOCUMENT_BYTES} bytes")));
        }
        Ok(Some(text))
    }
}

/// A part of a file, read from its start, whatever others read of it meanwhile.
#[derive(Debug)]
struct Slice {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let bytes = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += bytes as u64;
        Ok(bytes)
    }
}

/// Opens a regular file of a directory, by way of no link.
fn open_beneath(directory: &OwnedFd, path: &str) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(directory.as_fd(), path, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).doing(|| format!("could not open `{path}`")),
    }
}

/// Where a link leads; none if it is no link.
fn target_of<R: Read>(path: &str, entry: &tar::Entry<'_, R>) -> Option<String> {
    let target = entry.link_name_bytes().unwrap_or_default();
    let target = String::from_utf8_lossy(&target);
    let kind = entry.header().entry_type();
    if kind == EntryType::Link {
        return Some(plain(&target));
    }
    (kind == EntryType::Symlink).then(|| plain(&format!("{path}/../{target}")))
}

/// A path without what does not name anything. It is looked for among names only.
fn plain(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

fn missing(path: &str) -> Error {
    no_image(format!("the file `{}` is missing", path.escape_debug()))
}

fn no_image(what: String) -> Error {
    Error::NoImage { what }
}
