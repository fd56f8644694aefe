//! `/proc`: the container's own processes, and of the kernel only what ordinary programs read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::MountAttrFlags;

use super::mounts::{PLAIN, attach, clone_tree_at, new_filesystem, set_attributes};
use crate::error::Context;

/// What tells about the host, its kernel's addresses or its other tenants: shown empty.
const MASKED: [&str; 22] = [
    "acpi",
    "allocinfo",
    "asound",
    "interrupts",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "sched_debug",
    "schedstat",
    "scsi",
    "slabinfo",
    "softirqs",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
];

/// What may be read but holds the kernel's knobs.
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "mtrr", "sys"];

/// The container's `/proc`, made by its init: the mount belongs to the pid namespace of whoever
/// makes it.
#[derive(Debug)]
pub(crate) struct Proc {
    mount: OwnedFd,
    /// `/proc/sys/user`, opened while it could still be written: see `forbid_namespaces`.
    pub(crate) user_limits: OwnedFd,
}

impl Proc {
    /// A `/proc` that is attached nowhere yet.
    pub(crate) fn new() -> io::Result<Self> {
        let attributes = PLAIN | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = new_filesystem("proc", &[("hidepid", "invisible")], attributes)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let user_limits = rustix::fs::openat(&mount, "sys/user", flags, Mode::empty())
            .context(|| "could not open `/proc/sys/user`".into())?;
        Ok(Self { mount, user_limits })
    }

    /// Attaches it at `target` and covers what a container must not see or write. `empty` holds
    /// an empty file `file` and an empty directory `directory`.
    pub(crate) fn attach(&self, target: BorrowedFd<'_>, empty: BorrowedFd<'_>) -> io::Result<()> {
        attach(self.mount.as_fd(), target)?;
        let proc = self.mount.as_fd();
        for name in MASKED {
            let Some((place, is_directory)) = entry(proc, name)? else {
                continue;
            };
            let cover = if is_directory { "directory" } else { "file" };
            cover_with(empty, cover, place.as_fd())
                .context(|| format!("could not mask `/proc/{name}`"))?;
        }
        for name in READ_ONLY {
            let Some((place, _)) = entry(proc, name)? else {
                continue;
            };
            cover_with(proc, name, place.as_fd())
                .context(|| format!("could not make `/proc/{name}` read-only"))?;
        }
        Ok(())
    }
}

/// An entry of `/proc` and whether it is a directory; none where this kernel has no such entry.
fn entry(proc: BorrowedFd<'_>, name: &str) -> io::Result<Option<(OwnedFd, bool)>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let place = match rustix::fs::openat2(proc, name, flags, Mode::empty(), resolve) {
        Ok(place) => place,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mode = rustix::fs::fstat(&place)?.st_mode;
    Ok(Some((place, rustix::fs::FileType::from_raw_mode(mode).is_dir())))
}

fn cover_with(directory: BorrowedFd<'_>, name: &str, place: BorrowedFd<'_>) -> io::Result<()> {
    let tree = clone_tree_at(directory, Path::new(name))?;
    let attributes = PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    set_attributes(tree.as_fd(), attributes, None)?;
    attach(tree.as_fd(), place)
}
