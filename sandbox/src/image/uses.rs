//! Who needs which image: a file for each, locked by every job that is to run in it, of any
//! process. The kernel takes the locks back, however a process ends.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Digest, Doing as _, Layer, Result};

/// How often the file of an image may be removed by others while it is being locked.
const MAX_TURNS: usize = 100;

/// The files of one store.
#[derive(Debug)]
pub(super) struct Uses {
    directory: PathBuf,
}

/// The shared lock of an image's file.
#[derive(Debug)]
pub(super) struct Use {
    _lock: File,
}

/// Keeps an image and its layers from being removed, by any process, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    /// None for the built-in image, which nobody can remove.
    _image: Option<Use>,
    /// Each locked with a shared lock.
    layers: Vec<OwnedFd>,
}

/// A layer that is there for as long as this is.
#[derive(Debug)]
pub struct HeldLayer {
    /// Which one.
    pub layer: Layer,
    /// Keeps it.
    pub hold: Hold,
}

impl Hold {
    pub(super) const fn new(image: Option<Use>, layers: Vec<OwnedFd>) -> Self {
        Self { _image: image, layers }
    }

    /// The directories of the layers.
    pub(super) fn layers(&self) -> &[OwnedFd] {
        &self.layers
    }

    pub(super) fn with_image(self, image: Option<Use>) -> Self {
        Self { _image: image, ..self }
    }
}

impl Uses {
    /// Those of the store at `directory`.
    pub(super) fn open(store: &Path) -> Result<Self> {
        let directory = store.join("uses");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .doing(|| format!("could not make `{}`", directory.display()))?;
        Ok(Self { directory })
    }

    /// Says that the image is needed. It may have been removed just before.
    pub(super) fn hold(&self, image: &Digest) -> Result<Use> {
        let path = self.path(image);
        let held = (0..MAX_TURNS).find_map(|_| try_hold(&path).transpose());
        held.unwrap_or_else(|| Err(io::Error::other("it is removed again and again")))
            .map(|lock| Use { _lock: lock })
            .doing(|| format!("could not lock `{}`", path.display()))
    }

    /// Whether nobody needs the image.
    pub(super) fn is_free(&self, image: &Digest) -> Result<bool> {
        let path = self.path(image);
        let doing = || format!("could not lock `{}`", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error).doing(doing),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error).doing(doing),
        }
    }

    /// Removes the file of an image that the index does not name any more.
    pub(super) fn forget(&self, image: &Digest) -> Result<()> {
        let path = self.path(image);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).doing(|| format!("could not remove `{}`", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, image: &Digest) -> PathBuf {
        self.directory.join(image.directory())
    }
}

/// The locked file at `path`; none if it was removed before it was locked.
fn try_hold(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    flock(&file, FlockOperation::LockShared)?;
    let is_there = match fs::metadata(path) {
        Ok(there) => there.ino() == file.metadata()?.ino(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    Ok(is_there.then_some(file))
}
