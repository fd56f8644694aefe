//! `/proc`: the container's own processes, and of the kernel only what ordinary programs read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, lstat, openat};
use rustix::mount::MountAttrFlags;
use rustix::process::Pid;

use super::mounts::{PLAIN, attach, attach_at, clone_tree_at, new_filesystem, set_attributes};
use crate::error::Context;

/// What tells about the host, its kernel's addresses or its other tenants: shown empty.
const MASKED: [&str; 29] = [
    "acpi",
    "allocinfo",
    "asound",
    "config.gz",
    "diskstats",
    "interrupts",
    "iomem",
    "ioports",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "locks",
    "partitions",
    "pressure",
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
}

impl Proc {
    /// A `/proc` that is attached nowhere yet.
    pub(crate) fn new() -> io::Result<Self> {
        let attributes = PLAIN | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = new_filesystem("proc", &[("hidepid", "invisible")], attributes)?;
        bound_sockets(mount.as_fd())?;
        Ok(Self { mount })
    }

    /// The directory of a process.
    pub(crate) fn process(&self, pid: Pid) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.mount, pid.as_raw_nonzero().to_string(), flags, Mode::empty())
            .context(|| format!("could not open process `{pid}`", pid = pid.as_raw_nonzero()))
    }

    /// `/proc/sys/user`, opened while it can still be written: see `forbid_namespaces`.
    pub(crate) fn user_limits(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.mount, "sys/user", flags, Mode::empty())
            .context(|| "could not open `/proc/sys/user`".into())
    }

    /// Attaches it at `target` and covers what a container must not see or write. `empty` is a
    /// read-only mount that holds an empty file `file` and an empty directory `directory`. Answers
    /// with the mount that has all the others below it.
    pub(crate) fn attach(
        self,
        target: BorrowedFd<'_>,
        empty: BorrowedFd<'_>,
        covers: &Covers,
    ) -> io::Result<OwnedFd> {
        attach(self.mount.as_fd(), target)?;
        let proc = self.mount.as_fd();
        for (name, cover) in &covers.masked {
            let cover = clone_tree_at(empty, Path::new(cover))?;
            attach_at(cover.as_fd(), (proc, name))
                .context(|| format!("could not mask `/proc/{name}`"))?;
        }
        for name in &covers.read_only {
            let cover = clone_tree_at(proc, Path::new(name))?;
            set_attributes(cover.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, None)?;
            attach_at(cover.as_fd(), (proc, name))
                .context(|| format!("could not make `/proc/{name}` read-only"))?;
        }
        Ok(self.mount)
    }
}

/// Bounds what each TCP socket may hold: the limit of the cgroup is soft on v1, because the kernel
/// grants every socket a minimum beyond it. The files answer for the network namespace of whoever
/// opens them, which is the container's.
fn bound_sockets(proc: BorrowedFd<'_>) -> io::Result<()> {
    /// Bytes at least, at first and at most (tcp(7)).
    const TCP_BYTES: &[u8] = b"4096 16384 65536";
    for name in ["sys/net/ipv4/tcp_rmem", "sys/net/ipv4/tcp_wmem"] {
        let file = openat(proc, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("could not open `/proc/{name}`"))?;
        rustix::io::write(&file, TCP_BYTES).context(|| format!("could not bound `{name}`"))?;
    }
    Ok(())
}

/// What of this kernel's `/proc` has to be covered: found out once, as it is the same in every
/// container.
#[derive(Debug)]
pub(crate) struct Covers {
    /// Each name with what covers it.
    masked: Vec<(&'static str, &'static str)>,
    read_only: Vec<&'static str>,
}

impl Covers {
    /// Looks through the host's `/proc`.
    pub(crate) fn find() -> io::Result<Self> {
        let mut covers = Self { masked: Vec::new(), read_only: Vec::new() };
        for name in MASKED {
            match kind_of(name)? {
                None => {}
                Some(kind) if kind.is_dir() => covers.masked.push((name, "directory")),
                Some(_) => covers.masked.push((name, "file")),
            }
        }
        for name in READ_ONLY {
            covers.read_only.extend(kind_of(name)?.map(|_| name));
        }
        Ok(covers)
    }
}

/// What an entry of `/proc` is; none where this kernel has no such entry.
fn kind_of(name: &str) -> io::Result<Option<FileType>> {
    match lstat(format!("/proc/{name}")) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
