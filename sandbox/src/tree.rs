//! Directories by descriptor: opened without following a link, locked, removed without recursion.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, ResolveFlags, flock, openat, openat2, unlinkat,
};
use rustix::io::Errno;

/// Opens a directory of ours by its path.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// Opens the directory `path` below `root`. No part of it may be a link, leave `root`, or lie on
/// another file system.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // A rename anywhere on the host may make the kernel ask for another try.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// Locks what nobody, of this or another process, has locked.
pub(crate) fn lock_if_free(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty())?;
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(opened)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Has the names in a directory written to disk.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Names in a directory, in the kernel's order, without `.` and `..`.
pub(crate) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !is_dot(entry.file_name()) {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes `name` in `parent` and all below it, however deep: one descriptor at a time, no
/// recursion. The tree must be ours alone, for it climbs by `..`.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    if !unlink_unless_directory(parent, name)? {
        return Ok(());
    }
    // Names from the tree's top down to the directory at hand.
    let mut above = vec![name.to_owned()];
    let mut at_hand = open_child(parent, name)?;
    while let Some(name) = above.last() {
        if let Some(child) = empty_of_files(at_hand.as_fd())? {
            at_hand = open_child(at_hand.as_fd(), &child)?;
            above.push(child);
        } else {
            at_hand = open_child(at_hand.as_fd(), c"..")?;
            unlinkat(&at_hand, name, AtFlags::REMOVEDIR)?;
            above.pop();
        }
    }
    Ok(())
}

fn open_child(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Removes what is not a directory, up to the first directory, and answers with that.
fn empty_of_files(directory: BorrowedFd<'_>) -> io::Result<Option<CString>> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_dot(name) && unlink_unless_directory(directory, name)? {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Whether `name` is a directory; whatever else it was is gone.
fn unlink_unless_directory(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_deeper_than_there_are_descriptors_is_removed() {
        let scratch = tempfile::tempdir().expect("a directory");
        let top = open_directory(scratch.path()).expect("opened");
        let mut at_hand = top.try_clone().expect("a copy");
        for _ in 0..3000 {
            mkdirat(&at_hand, "deep", Mode::RWXU).expect("made");
            at_hand = open_child(at_hand.as_fd(), c"deep").expect("opened");
        }
        remove_tree(top.as_fd(), c"deep").expect("removed");
        assert!(names(top.as_fd()).expect("read").is_empty());
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_leads_to() {
        let scratch = tempfile::tempdir().expect("a directory");
        let canary = tempfile::tempdir().expect("a directory");
        std::fs::write(canary.path().join("canary"), "alive").expect("written");
        std::fs::create_dir_all(scratch.path().join("tree/a")).expect("made");
        std::os::unix::fs::symlink(canary.path(), scratch.path().join("tree/a/link"))
            .expect("linked");
        let top = open_directory(scratch.path()).expect("opened");
        remove_tree(top.as_fd(), c"tree").expect("removed");
        remove_tree(top.as_fd(), c"never there").expect("nothing to do");
        assert!(canary.path().join("canary").exists());
    }
}
