//! Marks that directories of a layer bear: extended attributes that an image cannot set.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::entry::EntryPath;
use super::{Doing as _, Result, tree};

/// Marks a directory that hides what lower layers have below it.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";
/// Marks these directories, and the root of a layer that has any. An overlay neither shows nor
/// copies what has such a name.
pub(super) const IMPLIED: &str = "trusted.overlay.lazaret.implied";
/// Marks these directories of the layer below `root`.
pub(super) fn mark_implied(root: BorrowedFd<'_>, directories: &BTreeSet<EntryPath>) -> Result<()> {
    let mark = |path: &EntryPath| {
        let directory = tree::open_beneath(root, path.as_bytes())?;
        fsetxattr(&directory, IMPLIED, b"y", XattrFlags::empty())
    };
    let top = directories.first().map(|_| EntryPath::parse(b"")).transpose()?;
    let mut marked = directories.iter().chain(&top);
    marked.try_for_each(mark).doing(|| "could not mark the directories of a layer".into())
}

/// Whether a directory hides what lower layers have below it.
pub(super) fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0; 1];
    fgetxattr(directory, OPAQUE, &mut value) == Ok(1) && value == *b"y"
}

/// Whether a directory of a layer is one that its archive left out.
pub(super) fn is_implied(directory: &OwnedFd) -> bool {
    has(directory, IMPLIED) == Ok(true)
}

/// Whether a directory bears a mark.
pub(super) fn has(directory: &OwnedFd, name: &str) -> Result<bool, Errno> {
    match fgetxattr(directory, name, &mut [0; 8]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error),
    }
}
