//! The bound of a volume's size: a project quota of the file system (quotactl(2)), where it has
//! any that are enforced. XFS and ext4 can.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Error, MAX_SIZE_BYTES, MIN_SIZE_BYTES, Result};
use crate::sys::{self, ProjectLimits};

/// The unit in which the kernel takes bounds of space.
const BLOCK_BYTES: u64 = 1024;
/// One inode is allowed for so many bytes, and so many at the least: a bound of space alone would
/// leave those of the whole file system to one volume.
const BYTES_PER_INODE: u64 = 4096;
const MIN_INODES: u64 = 2048;
/// Volumes have the projects from this one on; the numbers below are left to people.
const FIRST_PROJECT: u32 = 1 << 30;
/// What would mend a file system that holds no bound.
const MEND: &str = "put the data directory on XFS mounted with `prjquota`, or on ext4 made with \
     `-O quota,project` and mounted with `prjquota`; or make the volume without a size";

/// Bounds what the files in an empty directory of ours may take together, apart from those in
/// `others`.
pub(super) fn bound(directory: &Path, others: &[PathBuf], bytes: u64) -> Result<()> {
    if !(MIN_SIZE_BYTES..=MAX_SIZE_BYTES).contains(&bytes) {
        let why = format!("`{bytes}` bytes is not allowed");
        let mend = format!("choose {MIN_SIZE_BYTES} to {MAX_SIZE_BYTES}");
        return Err(Error::NoBound { why, mend });
    }
    let file = File::open(directory)?;
    match sys::enforces_project_quotas(file.as_fd()) {
        Ok(true) => {}
        Ok(false) => return Err(unheld("it counts what projects use, and holds them to nothing")),
        Err(error) if is_unsupported(&error) => return Err(unheld("it has no project quotas")),
        Err(error) => return Err(error.into()),
    }
    let project = free_project(&file, others)?;
    let limits = ProjectLimits {
        blocks: bytes.div_ceil(BLOCK_BYTES),
        inodes: (bytes / BYTES_PER_INODE).max(MIN_INODES),
    };
    // The limits first: what has the project is bounded from its first byte on.
    sys::limit_project(file.as_fd(), project, limits)?;
    match sys::join_project(file.as_fd(), project) {
        Err(error) if is_unsupported(&error) => Err(unheld("its inodes cannot have a project")),
        joined => Ok(joined?),
    }
}

/// A project that none of `others` has, looked for from the one that the inode falls on: its number
/// is its own on a file system, but has more bits than a project.
fn free_project(file: &File, others: &[PathBuf]) -> Result<u32> {
    let taken = others.iter().map(|other| Ok(sys::project_of(File::open(other)?.as_fd())?));
    let taken: HashSet<u32> = taken.collect::<Result<_>>()?;
    let inode = u32::try_from(file.metadata()?.ino() % u64::from(FIRST_PROJECT));
    let first = inode.map_err(io::Error::other)?;
    let numbers = (0..FIRST_PROJECT).map(|step| (first + step) % FIRST_PROJECT);
    let free = numbers.map(|number| FIRST_PROJECT + number).find(|one| !taken.contains(one));
    Ok(free.ok_or_else(|| io::Error::other("all projects are taken"))?)
}

fn unheld(why: &str) -> Error {
    let why = format!("the file system of the data directory does not hold it: {why}");
    Error::NoBound { why, mend: MEND.into() }
}

/// What kernels answer where there are no quotas: none built in, none of this file system, none
/// switched on.
fn is_unsupported(error: &io::Error) -> bool {
    let errors = [libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOTTY, libc::ESRCH, libc::EINVAL];
    error.kind() == ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|number| errors.contains(&number))
}
