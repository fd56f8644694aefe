//! What a container is shown of the host beside its image: opened, and held while it lives.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags, flock, fstat, openat2, stat};
use rustix::io::Errno;

use crate::cgroup::Disk;
use crate::error::Context as _;

/// Opens a directory of the host by its absolute path, of which no part may be a symbolic link:
/// only as a place, neither to read nor to write.
///
/// # Errors
/// `NotFound`, `NotADirectory` or, for a link, `FilesystemLoop`, as openat2(2) has them.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(CWD, path, flags, Mode::empty(), resolve)?)
}

/// Whether a directory lies on a disk, so that what a job does to it there can be throttled.
///
/// # Errors
/// If the directory cannot be opened.
pub fn is_on_disk(directory: &Path) -> io::Result<bool> {
    Ok(Disk::below(stat(directory)?.st_dev)?.is_some())
}

/// Keeps the volume at `directory` from being removed, until the answer is dropped. None if it has
/// gone.
pub(crate) fn hold(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let doing = || format!("could not hold `{}`", directory.display());
    let held = match rustix::fs::open(directory, flags, Mode::empty()) {
        Ok(held) => held,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).context(doing),
    };
    match flock(&held, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        // Only who removes it has it alone.
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error).context(doing),
    }
    let ours = fstat(&held)?;
    match stat(directory) {
        Ok(found) if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino) => Ok(Some(held)),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).context(doing),
    }
}
