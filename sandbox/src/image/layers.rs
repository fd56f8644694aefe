//! The directories below `layers/`: made under a name of their own, given their last name when
//! they are whole, locked while someone needs them, removed when nobody does.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{Digest, Doing as _, Result, tree};

/// Opens the name of a layer that is being unpacked.
const UNFINISHED: &str = "new-";
/// Opens the name of a layer that is being removed.
const GONE: &str = "old-";
/// How many names are tried for a new directory before giving up.
const MAX_ATTEMPTS: u32 = 1000;

/// A layer being unpacked: locked while we are at it, gone if it is not published.
#[derive(Debug)]
pub(super) struct Unfinished {
    layers: PathBuf,
    name: String,
    /// Held so that nobody takes it for what a killed process left.
    _lock: OwnedFd,
}

impl Unfinished {
    /// Makes the directory. The store's lock is held, so that nobody cleans before ours is.
    pub(super) fn make(layers: &Path) -> Result<Self> {
        let doing = || format!("could not make a directory in `{}`", layers.display());
        for attempt in 0..MAX_ATTEMPTS {
            let name = format!("{UNFINISHED}{}-{attempt}", std::process::id());
            let path = layers.join(&name);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error).doing(doing),
            }
            // Not left to `mkdir`, which the umask of whoever started us bends.
            fs::set_permissions(&path, Permissions::from_mode(0o755)).doing(doing)?;
            let lock = tree::open_directory(&path).doing(doing)?;
            flock(&lock, FlockOperation::LockShared).doing(doing)?;
            return Ok(Self { layers: layers.to_owned(), name, _lock: lock });
        }
        Err(io::Error::from(ErrorKind::AlreadyExists)).doing(doing)
    }

    /// The directory to write to.
    pub(super) fn open(&self) -> Result<OwnedFd> {
        let path = self.layers.join(&self.name);
        tree::open_directory(&path).doing(|| format!("could not open `{}`", path.display()))
    }

    /// Gives the layer its name, unless it has been unpacked before. Answers with a lock that keeps
    /// it. The store's lock is held.
    pub(super) fn publish(self, digest: &Digest) -> Result<OwnedFd> {
        let doing = || format!("could not name the layer `{digest}`");
        let path = self.layers.join(digest.directory());
        if !path.is_dir() {
            fs::rename(self.layers.join(&self.name), &path).doing(doing)?;
            tree::sync_directory(&self.layers).doing(doing)?;
        }
        let layer = tree::open_directory(&path).doing(doing)?;
        flock(&layer, FlockOperation::LockShared).doing(doing)?;
        Ok(layer)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // What stays is found by whoever cleans next.
        drop(remove(&self.layers, OsStr::new(&self.name)));
    }
}

/// Removes every directory of `layers` that is not kept, unless someone has locked it. The store's
/// lock is held.
pub(super) fn clean(layers: &Path, is_kept: impl Fn(&[u8]) -> bool) -> Result<()> {
    let doing = || format!("could not clean `{}`", layers.display());
    for entry in fs::read_dir(layers).doing(doing)? {
        let name = entry.doing(doing)?.file_name();
        if !is_kept(name.as_bytes()) {
            remove_if_free(layers, &name)?;
        }
    }
    Ok(())
}

/// Whether someone has locked a layer. One that is not there, nobody has.
pub(super) fn is_held(path: &Path) -> Result<bool> {
    match tree::lock_if_free(path) {
        Ok(lock) => Ok(lock.is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).doing(|| format!("could not lock `{}`", path.display())),
    }
}

/// Removes a layer, or what a killed process left, unless someone has locked it.
fn remove_if_free(layers: &Path, name: &OsStr) -> Result<()> {
    let doing = || format!("could not remove `{}`", layers.join(name).display());
    let Some(_lock) = tree::lock_if_free(&layers.join(name)).doing(doing)? else { return Ok(()) };
    // Renamed under the lock: whoever waits to hold it sees that it has gone.
    let mut gone = OsString::from(GONE);
    gone.push(name);
    if name.as_bytes().starts_with(GONE.as_bytes()) {
        gone = name.to_owned();
    }
    fs::rename(layers.join(name), layers.join(&gone)).doing(doing)?;
    remove(layers, &gone).doing(doing)
}

fn remove(directory: &Path, name: &OsStr) -> io::Result<()> {
    let parent = tree::open_directory(directory)?;
    tree::remove_tree(parent.as_fd(), &CString::new(name.as_bytes())?)
}
