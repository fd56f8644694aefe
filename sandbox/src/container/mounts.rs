//! Mounts made and placed by descriptor, never by a path that an image controls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::Context;
use crate::sys::{self, MountAttributes};

/// `nosuid,nodev`: what every mount of a container has at the least, but for `/dev` itself.
pub(crate) const PLAIN: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// A new file system that is attached nowhere yet.
pub(crate) fn new_filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .context(|| format!("could not open the file system `{kind}`"))?;
    for (key, value) in options {
        fsconfig_set_string(fs.as_fd(), *key, *value)
            .context(|| format!("could not set `{key}` of `{kind}`"))?;
    }
    fsconfig_create(fs.as_fd()).context(|| format!("could not make a `{kind}`"))?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .context(|| format!("could not mount a `{kind}`"))
}

/// A second mount of what `source` names on the host, attached nowhere yet.
pub(crate) fn clone_tree(source: &Path) -> io::Result<OwnedFd> {
    clone_tree_at(CWD, source)
}

/// As [`clone_tree`], with a path that is relative to a directory.
pub(crate) fn clone_tree_at(directory: BorrowedFd<'_>, source: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    open_tree(directory, source, flags)
        .context(|| format!("could not open the tree `{}`", source.display()))
}

/// A second mount of an open directory, attached nowhere yet.
pub(crate) fn clone_of(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, "", flags).context(|| "could not open the tree of a directory".into())
}

/// Sets attributes of a mount that is attached nowhere yet.
pub(crate) fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    id_map: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    change(mount, MountAttributes { set: attributes.bits().into(), propagation: 0, id_map })
}

/// Has a mount that is attached nowhere yet take part in no other's: what the host mounts below
/// what it was cloned from is not to be seen in it.
pub(crate) fn make_private(mount: BorrowedFd<'_>) -> io::Result<()> {
    let propagation = MountPropagationFlags::PRIVATE.bits().into();
    change(mount, MountAttributes { set: 0, propagation, id_map: None })
}

fn change(mount: BorrowedFd<'_>, attributes: MountAttributes<'_>) -> io::Result<()> {
    sys::set_mount_attributes(mount, attributes)
        .context(|| "could not set the attributes of a mount".into())
}

/// Attaches `mount` where `target` is.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// Attaches `mount` on an entry of a directory that no one else can change.
pub(crate) fn attach_at(
    mount: BorrowedFd<'_>,
    (directory, name): (BorrowedFd<'_>, &str),
) -> io::Result<()> {
    Ok(move_mount(mount, "", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Opens a path below `root` as a place to mount on; a symbolic link anywhere in it is refused.
pub(crate) fn place(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
    .context(|| format!("could not open `/{}` in the container", path.display()))
}

/// Shows `source`, relative to `directory`, read-only at `target`.
pub(crate) fn bind_read_only(
    (directory, source): (BorrowedFd<'_>, &Path),
    target: BorrowedFd<'_>,
) -> io::Result<()> {
    let tree = clone_tree_at(directory, source)?;
    set_attributes(tree.as_fd(), PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY, None)?;
    attach(tree.as_fd(), target)
}

/// Makes a directory with these permissions, owned as `owner` says. The process has no umask.
pub(crate) fn make_directory(
    parent: BorrowedFd<'_>,
    name: &str,
    mode: u32,
    owner: u32,
) -> io::Result<()> {
    use rustix::fs::{AtFlags, Gid, Uid, chownat, mkdirat};
    mkdirat(parent, name, Mode::from_raw_mode(mode))
        .context(|| format!("could not make the directory `{name}`"))?;
    if owner == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Opens a directory of ours.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
        .context(|| format!("could not open the directory `{name}`"))
}
