//! Volumes in a container: opened by the shim, which sees the host as it is now, while init has
//! known it as it was when the container was made; attached by init once the image is the root.
//!
//! A program has written what is in a volume, and an image where it goes: neither is opened by a
//! path that could lead elsewhere. Ids 0 to 65535 of the volume are those of the container, of
//! whatever image: the mount is id-mapped, as those of layers are. It is `nosuid` and `nodev`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dev, ResolveFlags, fstat};
use rustix::mount::MountAttrFlags;

use super::files::make_directories;
use super::mounts::{PLAIN, attach, clone_of, make_private, set_attributes};
use crate::error::Context;
use crate::spec::{Access, VolumeMount};

/// A mount of an open directory of the host, attached nowhere yet, as `access` says.
pub(crate) fn clone_for(directory: BorrowedFd<'_>, access: Access) -> io::Result<OwnedFd> {
    let tree = clone_of(directory)?;
    make_private(tree.as_fd())?;
    let attributes = match access {
        Access::ReadOnly => PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY,
        Access::ReadWrite => PLAIN,
    };
    set_attributes(tree.as_fd(), attributes, None)?;
    Ok(tree)
}

/// A volume that is attached nowhere yet.
#[derive(Debug)]
pub(crate) struct Unplaced<'a> {
    tree: OwnedFd,
    target: &'a str,
}

/// The volumes of a container whose ids are those of `user_namespace`, from their mounts.
pub(crate) fn id_map<'a>(
    volumes: &'a [VolumeMount],
    trees: Vec<OwnedFd>,
    user_namespace: BorrowedFd<'_>,
) -> io::Result<Vec<Unplaced<'a>>> {
    if trees.len() != volumes.len() {
        return Err(io::Error::other("there are not as many mounts as volumes"));
    }
    let id_map = |(volume, tree): (&'a VolumeMount, OwnedFd)| {
        set_attributes(tree.as_fd(), MountAttrFlags::empty(), Some(user_namespace))
            .context(|| format!("could not id-map the volume `{}`", volume.source.display()))?;
        Ok(Unplaced { tree, target: &volume.target })
    };
    volumes.iter().zip(trees).map(id_map).collect()
}

/// Attaches the volumes in the root of this process, each where it is to be shown, making what is
/// missing of that as the job's, whose ids on the host are `owner`. Answers with their devices.
pub(crate) fn place(volumes: &[Unplaced<'_>], owner: (u32, u32)) -> io::Result<Vec<Dev>> {
    let place = |Unplaced { tree, target }: &Unplaced<'_>| {
        let doing = || format!("could not show a volume at `{target}`");
        // A link of the image could lead it over what the container has of its own.
        let directory =
            make_directories(target, owner, ResolveFlags::NO_SYMLINKS).context(doing)?;
        attach(tree.as_fd(), directory.as_fd()).context(doing)?;
        Ok(fstat(tree)?.st_dev)
    };
    volumes.iter().map(place).collect()
}
