//! `/proc`: the container's own processes, and of the kernel only what ordinary programs read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, statat};
use rustix::mount::MountAttrFlags;

use super::mounts::{PLAIN, attach, attach_at, clone_tree_at, new_filesystem, set_attributes};
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

    /// Attaches it at `target` and covers what a container must not see or write. `empty` is a
    /// read-only mount that holds an empty file `file` and an empty directory `directory`.
    pub(crate) fn attach(&self, target: BorrowedFd<'_>, empty: BorrowedFd<'_>) -> io::Result<()> {
        attach(self.mount.as_fd(), target)?;
        let proc = self.mount.as_fd();
        for name in MASKED {
            let cover = match kind_of(proc, name)? {
                None => continue,
                Some(kind) if kind.is_dir() => "directory",
                Some(_) => "file",
            };
            let cover = clone_tree_at(empty, Path::new(cover))?;
            attach_at(cover.as_fd(), (proc, name))
                .context(|| format!("could not mask `/proc/{name}`"))?;
        }
        for name in READ_ONLY {
            if kind_of(proc, name)?.is_none() {
                continue;
            }
            let cover = clone_tree_at(proc, Path::new(name))?;
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
            set_attributes(cover.as_fd(), attributes, None)?;
            attach_at(cover.as_fd(), (proc, name))
                .context(|| format!("could not make `/proc/{name}` read-only"))?;
        }
        Ok(())
    }
}

/// What an entry of `/proc` is; none where this kernel has no such entry.
fn kind_of(proc: BorrowedFd<'_>, name: &str) -> io::Result<Option<FileType>> {
    match statat(proc, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
