//! `/dev`: a small file system of the container's own, with the few devices that programs need.
//!
//! The nodes are made anew rather than bound from the host's: a lock taken on a device node by
//! one job is then never seen by another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, symlinkat};
use rustix::mount::MountAttrFlags;

use super::mounts::{attach, make_directory, new_filesystem, open_directory};
use crate::error::Context;

/// Devices, all character devices that everyone may use (kernel: admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The group that pseudo terminals belong to inside, by Debian's and Fedora's convention.
const TTY_GROUP: u32 = 5;

/// Makes `/dev` at `target`, with `shared_memory` as `/dev/shm`; `host_id` tells which host id an
/// inner one is. Answers with the mount that has the others below it.
pub(crate) fn mount_devices(
    target: BorrowedFd<'_>,
    shared_memory: BorrowedFd<'_>,
    host_id: impl Fn(u32) -> u32,
) -> io::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [("size", "64k"), ("nr_inodes", "64"), ("mode", "0755")];
    let dev = new_filesystem("tmpfs", &options, attributes)?;
    fill(dev.as_fd(), host_id(0))?;
    make_directory(dev.as_fd(), "pts", 0o755, host_id(0))?;
    make_directory(dev.as_fd(), "shm", 0o755, host_id(0))?;
    let pts = open_directory(dev.as_fd(), "pts")?;
    let shm = open_directory(dev.as_fd(), "shm")?;
    // Attached first: before Linux 6.15 nothing can be mounted below a detached tree, and the
    // two directories stay reachable by their descriptors.
    attach(dev.as_fd(), target)?;
    attach(terminals(host_id(TTY_GROUP))?.as_fd(), pts.as_fd())?;
    attach(shared_memory, shm.as_fd())?;
    Ok(dev)
}

fn fill(dev: BorrowedFd<'_>, owner: u32) -> io::Result<()> {
    // Not by an option of the mount: that would show the host's id in the container's mountinfo.
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    chownat(dev, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(dev, name, FileType::CharacterDevice, mode, makedev(major, minor))
            .context(|| format!("could not make the device `{name}`"))?;
    }
    for (name, to) in LINKS {
        symlinkat(to, dev, name)?;
    }
    Ok(())
}

/// An instance of the pseudo terminals that no one else has.
fn terminals(group: u32) -> io::Result<OwnedFd> {
    let group = group.to_string();
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", group.as_str())];
    new_filesystem(
        "devpts",
        &options,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}
