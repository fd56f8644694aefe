//! Volumes in a container: opened while the host is in sight, attached once the image is the root.
//!
//! A program has written what is in a volume, and an image where it goes: neither is opened by a
//! path that could lead elsewhere. Ids 0 to 65535 of the volume are those of the container, of
//! whatever image: the mount is id-mapped, as those of layers are. It is `nosuid` and `nodev`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dev, ResolveFlags, fstat};
use rustix::mount::MountAttrFlags;

use super::files::make_directories;
use super::mounts::{PLAIN, attach, clone_of, set_attributes};
use crate::error::Context;
use crate::spec::{Access, VolumeMount};
use crate::volume::open_directory;

/// A volume that is attached nowhere yet.
#[derive(Debug)]
pub(crate) struct OpenVolume<'a> {
    tree: OwnedFd,
    target: &'a str,
}

/// Opens the volumes of a container whose ids are those of `user_namespace`.
pub(crate) fn open<'a>(
    volumes: &'a [VolumeMount],
    user_namespace: BorrowedFd<'_>,
) -> io::Result<Vec<OpenVolume<'a>>> {
    let open = |volume: &'a VolumeMount| {
        let source = volume.source.display();
        let directory =
            open_directory(&volume.source).context(|| format!("could not open `{source}`"))?;
        let tree = clone_of(directory.as_fd())?;
        let attributes = match volume.access {
            Access::ReadOnly => PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY,
            Access::ReadWrite => PLAIN,
        };
        set_attributes(tree.as_fd(), attributes, Some(user_namespace))
            .context(|| format!("could not id-map the volume `{source}`"))?;
        Ok(OpenVolume { tree, target: &volume.target })
    };
    volumes.iter().map(open).collect()
}

/// Attaches the volumes in the root of this process, each where it is to be shown, making what is
/// missing of that as the job's, whose ids on the host are `owner`. Answers with their devices.
pub(crate) fn place(volumes: &[OpenVolume<'_>], owner: (u32, u32)) -> io::Result<Vec<Dev>> {
    let place = |OpenVolume { tree, target }: &OpenVolume<'_>| {
        let doing = || format!("could not show a volume at `{target}`");
        // A link of the image could lead it over what the container has of its own.
        let directory =
            make_directories(target, owner, ResolveFlags::NO_SYMLINKS).context(doing)?;
        attach(tree.as_fd(), directory.as_fd()).context(doing)?;
        Ok(fstat(tree)?.st_dev)
    };
    volumes.iter().map(place).collect()
}
