//! cgroup v2: one hierarchy for all controllers (kernel: admin-guide/cgroup-v2).

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cgroups_rs::fs::hierarchies::V2;
use cgroups_rs::fs::{Cgroup, Hierarchy};
use rustix::fs::{Mode, OFlags};

use super::{
    CPU_PERIOD_US, Counters, MAX_SOCKET_BYTES, bound_memory, cpu_quota_us, cpuset, field, open,
    open_directory, pids_max, read, read_number, remove, without_init, write, write_number,
};
use crate::cpuset::Cpuset;
use crate::error::Context;
use crate::spec::Limits;

/// The controllers that containers need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The weight of a container of one CPU: the kernel's default.
const CPU_WEIGHT: u64 = 100;
const MAX_CPU_WEIGHT: u64 = 10_000;

/// The parent's directory.
#[derive(Debug)]
pub(crate) struct Parent {
    directory: OwnedFd,
    /// Its path below the root of the hierarchy.
    path: String,
    /// Its path, if it was missing.
    made: Option<PathBuf>,
}

impl Parent {
    pub(super) fn make(path: &str, memory_bytes: Option<NonZeroU64>) -> io::Result<Self> {
        let hierarchy = V2::new();
        let directory = hierarchy.root().join(path);
        let made = (!directory.exists()).then(|| directory.clone());
        let names = CONTROLLERS.iter().map(ToString::to_string).collect();
        let handle = Cgroup::new_with_specified_controllers(Box::new(hierarchy), path, Some(names))
            .map_err(io::Error::other)?;
        bound_memory(&handle, memory_bytes)?;
        let directory = open_directory(rustix::fs::CWD, &directory)?;
        for controller in CONTROLLERS {
            write(directory.as_fd(), "cgroup.subtree_control", &format!("+{controller}"))?;
        }
        refuse_uncounted_swap(directory.as_fd())?;
        Ok(Self { directory, path: path.to_owned(), made })
    }

    pub(super) fn keep_to(&self, path: &str, cpuset: Option<&Cpuset>) -> io::Result<()> {
        match cpuset {
            Some(cpuset) => cpuset::set_v2(self.directory.as_fd(), path, cpuset),
            None => cpuset::lift_v2(self.directory.as_fd()),
        }
    }

    /// Hands one more controller down to the containers. False if the kernel does not offer it.
    pub(super) fn enable(&self, controller: &str) -> io::Result<bool> {
        let hierarchy = V2::new();
        let offered = std::fs::read_to_string(hierarchy.root().join("cgroup.controllers"))?;
        if !offered.split_whitespace().any(|one| one == controller) {
            return Ok(false);
        }
        let names = Some(vec![controller.to_owned()]);
        // From the root to the parent, and from there.
        Cgroup::new_with_specified_controllers(Box::new(hierarchy), &self.path, names)
            .map_err(io::Error::other)?;
        let enable = format!("+{controller}");
        write(self.directory.as_fd(), "cgroup.subtree_control", &enable).map(|()| true)
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The directories that were missing.
    pub(super) fn made(&self) -> &[PathBuf] {
        self.made.as_slice()
    }

    pub(super) fn make_leaf(&self, id: &str) -> io::Result<Leaf> {
        let parent = self.directory.try_clone()?;
        rustix::fs::mkdirat(&parent, id, Mode::from_raw_mode(0o755))
            .context(|| format!("could not make `{id}`"))?;
        let directory = open_directory(parent.as_fd(), id.as_ref())?;
        let leaf = directory.as_fd();
        // One process out of memory is the end of all: a job half of whose processes were killed
        // has no result worth keeping.
        write_number(leaf, "memory.oom.group", 1)?;
        Ok(Leaf {
            id: id.to_owned(),
            cpu_stat: open(leaf, "cpu.stat", OFlags::RDONLY)?,
            memory_events: open(leaf, "memory.events", OFlags::RDONLY)?,
            memory_peak: open_peak(leaf)?,
            parent,
            directory,
        })
    }
}

/// A kernel may have been told not to count swap (`swapaccount=0`): then a limit of memory is none.
fn refuse_uncounted_swap(parent: BorrowedFd<'_>) -> io::Result<()> {
    match open(parent, "memory.swap.max", OFlags::RDONLY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map(drop),
    }
    // The first line is a heading; without such a file the kernel has no swap at all.
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() > 1 {
        return Err(io::Error::other("this host has swap and does not count it: `swapoff -a`"));
    }
    Ok(())
}

/// `memory.peak`, writable where the kernel can reset it (Linux 6.12); none before 5.19.
fn open_peak(leaf: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::CLOEXEC;
    match rustix::fs::openat(leaf, "memory.peak", flags | OFlags::RDWR, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(_read_only) => open(leaf, "memory.peak", OFlags::RDONLY).map(Some),
    }
}

/// A container's directory, and the files that are read often.
#[derive(Debug)]
pub(crate) struct Leaf {
    id: String,
    parent: OwnedFd,
    directory: OwnedFd,
    cpu_stat: OwnedFd,
    memory_events: OwnedFd,
    memory_peak: Option<OwnedFd>,
}

impl Leaf {
    pub(super) fn directory(&self) -> io::Result<OwnedFd> {
        self.directory.try_clone()
    }

    pub(super) fn bound_memory_and_pids(&self, limits: &Limits) -> io::Result<()> {
        let leaf = self.directory.as_fd();
        write_number(leaf, "memory.max", limits.memory_bytes.get())?;
        // A kernel that does not count swap has no such file: see `refuse_uncounted_swap`.
        match open(leaf, "memory.swap.max", OFlags::WRONLY) {
            Ok(file) => rustix::io::write(&file, b"0").map(drop)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        write_number(leaf, "pids.max", pids_max(limits))
    }

    pub(super) fn bound_cpu(&self, limits: &Limits) -> io::Result<()> {
        let leaf = self.directory.as_fd();
        let quota = cpu_quota_us(limits);
        write(leaf, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
        let weight = (CPU_WEIGHT * quota / CPU_PERIOD_US).clamp(1, MAX_CPU_WEIGHT);
        write_number(leaf, "cpu.weight", weight)
    }

    pub(super) fn lift_cpu(&self) -> io::Result<()> {
        write(self.directory.as_fd(), "cpu.max", "max")
    }

    pub(super) fn reset_peak(&self) -> io::Result<()> {
        let Some(peak) = &self.memory_peak else {
            return Ok(());
        };
        match rustix::io::write(peak, b"reset\n") {
            // Before Linux 6.12 the peak is that of the container so far.
            Ok(_) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::BADF) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn cpu_us(&self) -> io::Result<u64> {
        field(&read(&self.cpu_stat)?, "usage_usec")
    }

    pub(super) fn counters(&self) -> io::Result<Counters> {
        let cpu = read(&self.cpu_stat)?;
        Ok(Counters {
            cpu_us: field(&cpu, "usage_usec")?,
            cpu_user_us: field(&cpu, "user_usec")?,
            cpu_system_us: field(&cpu, "system_usec")?,
            throttled_us: field(&cpu, "throttled_usec")?,
            memory_peak_bytes: self.memory_peak.as_ref().map_or(Ok(0), read_number)?,
            pids_peak: self.pids_peak()?,
            oom_kills: self.oom_kills()?,
        })
    }

    fn pids_peak(&self) -> io::Result<Option<u64>> {
        match rustix::fs::openat(&self.directory, "pids.peak", OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => read_number(&file).map(without_init).map(Some),
            // Before Linux 6.1.
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sockets are counted as memory, but for TCP connections that nobody has accepted yet.
    pub(super) fn memory_with_sockets(&self, uncounted_bytes: u64) -> io::Result<Option<u64>> {
        if uncounted_bytes <= MAX_SOCKET_BYTES {
            return Ok(None);
        }
        let leaf = self.directory.as_fd();
        let stat = read(&open(leaf, "memory.stat", OFlags::RDONLY)?)?;
        let (cache, sockets) =
            (field(&stat, "inactive_file")? + field(&stat, "active_file")?, field(&stat, "sock")?);
        let memory = read_number(&open(leaf, "memory.current", OFlags::RDONLY)?)?;
        let rest = memory.saturating_sub(cache).saturating_sub(sockets);
        Ok(Some(rest.saturating_add(sockets.max(uncounted_bytes))))
    }

    pub(super) fn oom_kills(&self) -> io::Result<u64> {
        field(&read(&self.memory_events)?, "oom_kill")
    }

    pub(super) fn oom_notice(&self) -> BorrowedFd<'_> {
        self.memory_events.as_fd()
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        remove(self.parent.as_fd(), self.id.as_ref(), || Ok(()))
    }
}
