//! Directories that a layer has without a word of them: an archive may hold `home/ann/notes` and
//! none of its directories. Put on other layers, they are what these say; an overlay, however,
//! shows what the topmost layer has. Where that makes a difference, an image gets one more layer on
//! top: these directories, as they should be, and nothing in them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{AtFlags, FileType, Timespec, fstat, statat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::entry::{Attributes, Entries as _, EntryPath};
use super::layer::Bounds;
use super::marks::{IMPLIED, OPAQUE, has};
use super::oci::MAX_LAYERS;
use super::uses::{HeldLayer, Hold};
use super::{Digest, Doing as _, Error, ImageStore, NewImage, Result, tree, walk};

/// Of an image; those that tools leave out are a few for each layer.
const MAX_IMPLIED: usize = 100_000;
/// Opens what the digest of such a layer is made of: no other digest is made of it.
const DOMAIN: &[u8] = b"lazaret: directories\0";

impl ImageStore {
    /// The image with the layer that it needs for its directories, if it needs one. All layers are
    /// there for as long as the holds are.
    pub(super) fn complete(&self, mut new: NewImage) -> Result<(NewImage, Vec<Hold>)> {
        let missing = || Error::NotFound { name: new.name.to_string() };
        let held = self.hold_layers(&new.layers, missing)?;
        if new.layers.len() < 2 {
            return Ok((new, vec![held]));
        }
        let directories = corrections(held.layers())?;
        if directories.is_empty() {
            return Ok((new, vec![held]));
        }
        if new.layers.len() >= MAX_LAYERS {
            let what = format!(
                "it has {MAX_LAYERS} layers, and needs one more for the directories that they \
                 leave out"
            );
            return Err(Error::NoImage { what });
        }
        let made = self.make_layer(Bounds::default(), |layer| {
            for (path, attributes) in &directories {
                layer.directory(path, attributes)?;
            }
            Ok(Some(digest(&directories)))
        });
        let HeldLayer { layer, hold } = made?;
        new.layers.insert(0, layer);
        Ok((new, vec![held, hold]))
    }
}

/// What an overlay of these layers, the topmost first, would show otherwise, and the directories
/// that it lies in, each before what is in it.
fn corrections(layers: &[OwnedFd]) -> Result<Vec<(EntryPath, Attributes)>> {
    let mut implied = BTreeSet::new();
    // What lies below all others is shown as it is.
    for layer in layers.iter().rev().skip(1) {
        collect(layer, &mut implied)?;
    }
    let mut wrong = BTreeSet::new();
    for path in &implied {
        if shown(layers, path)?.is_some_and(|(shown, right)| !is_alike(&shown, &right)) {
            wrong.extend(with_parents(path)?);
        }
    }
    let right = |path: EntryPath| Ok(shown(layers, &path)?.map(|(_, right)| (path, right)));
    wrong.into_iter().filter_map(|path| right(path).transpose()).collect()
}

/// The marked directories of a layer.
fn collect(layer: &OwnedFd, implied: &mut BTreeSet<EntryPath>) -> Result<()> {
    let doing = || "could not read the directories of a layer".to_owned();
    if !has(layer, IMPLIED).doing(doing)? {
        return Ok(());
    }
    let mut pending = vec![EntryPath::parse(b"")?];
    while let Some(path) = pending.pop() {
        let directory = tree::open_beneath(layer.as_fd(), path.as_bytes()).doing(doing)?;
        for name in tree::names(directory.as_fd()).doing(doing)? {
            let stat = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let child = [path.as_bytes(), name.as_bytes()].join(&b'/');
                pending.push(EntryPath::parse(&child)?);
            }
        }
        if !path.as_bytes().is_empty() && has(&directory, IMPLIED).doing(doing)? {
            implied.insert(path);
        }
        if implied.len() > MAX_IMPLIED {
            let limit = format!("{MAX_IMPLIED} directories that it says nothing of");
            return Err(Error::TooLarge { limit });
        }
    }
    Ok(())
}

/// How an overlay would show a directory, and how it is; none if it shows no such directory.
fn shown(layers: &[OwnedFd], path: &EntryPath) -> Result<Option<(Attributes, Attributes)>> {
    let mut shown = None;
    for layer in layers {
        let (directory, is_last) =
            find(layer, path).doing(|| "could not read the directories of a layer".into())?;
        if let Some((attributes, is_implied)) = directory {
            let shown = shown.get_or_insert_with(|| attributes.clone());
            if !is_implied {
                return Ok(Some((shown.clone(), attributes)));
            }
        }
        if is_last {
            break;
        }
    }
    Ok(shown.map(|shown| (shown.clone(), shown)))
}

/// A directory of one layer, and whether it is marked; then whether the layer hides what lower ones
/// have of this name.
fn find(layer: &OwnedFd, path: &EntryPath) -> Result<(Option<(Attributes, bool)>, bool), Errno> {
    let mut is_last = false;
    let mut directory = tree::open_beneath(layer.as_fd(), b"")?;
    for part in path.as_bytes().split(|byte| *byte == b'/') {
        is_last |= has(&directory, OPAQUE)?;
        directory = match tree::open_beneath(directory.as_fd(), part) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok((None, is_last)),
            // A file, a link or a whiteout.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok((None, true)),
            Err(error) => return Err(error),
        };
    }
    let stat = fstat(&directory)?;
    let attributes = Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid.into(),
        gid: stat.st_gid.into(),
        modified_at: Timespec { tv_sec: stat.st_mtime, tv_nsec: 0 },
        xattrs: walk::extended_attributes(&directory)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?,
    };
    Ok((Some((attributes, has(&directory, IMPLIED)?)), is_last))
}

/// When a directory was changed says when it was unpacked, where nothing else did.
fn is_alike(one: &Attributes, other: &Attributes) -> bool {
    let what = |attributes: &Attributes| (attributes.mode, attributes.uid, attributes.gid);
    what(one) == what(other) && one.xattrs == other.xattrs
}

/// The path and those of the directories it lies in, but for the root: a container's is its own.
fn with_parents(path: &EntryPath) -> Result<Vec<EntryPath>> {
    let bytes = path.as_bytes();
    let slashes = (0..bytes.len()).filter(|place| bytes[*place] == b'/');
    slashes.chain([bytes.len()]).map(|end| EntryPath::parse(&bytes[..end])).collect()
}

fn digest(directories: &[(EntryPath, Attributes)]) -> Digest {
    let mut hasher = Sha256::new_with_prefix(DOMAIN);
    let mut note = |field: &[u8]| {
        hasher.update((field.len() as u64).to_le_bytes());
        hasher.update(field);
    };
    for (path, Attributes { mode, uid, gid, modified_at: _, xattrs }) in directories {
        note(path.as_bytes());
        note(format!("{mode:o} {uid} {gid} {}", xattrs.len()).as_bytes());
        for (name, value) in xattrs {
            note(name.as_bytes());
            note(value);
        }
    }
    Digest::finish(hasher)
}
