//! Control groups: what bounds a container and counts what it uses, the same for cgroup v1 and v2.
//!
//! One leaf for a container. Its init is born in it, and so is everything that init starts;
//! nothing is ever moved, because writing another's pid to `cgroup.procs` waits for an RCU grace
//! period (8 ms). Limits are rewritten for each step, and usage is a difference of two readings.
//!
//! cgroups-rs finds the hierarchies, makes the parent and bounds it, once. The leaf is ours: it
//! needs files that cgroups-rs does not know (`memory.oom.group`, `memory.peak`, `kmem.tcp`, birth
//! in the cgroup), and opens each file once instead of at every use.

mod cpuset;
mod throttle;
mod v1;
mod v2;

use std::io::{self, ErrorKind};
use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::{Cgroup, hierarchies};
use rustix::event::PollFlags;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

pub(crate) use self::throttle::{Disk, Throttle};
use crate::cpuset::Cpuset;
use crate::error::Context;
use crate::spec::Limits;

/// Length of the period in which a container may use its share of CPU, in microseconds: the
/// kernel's default.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// What buffers of sockets may take beside the memory limit at the most.
const MAX_SOCKET_BYTES: u64 = 16 << 20;
/// Init's own place among the container's processes.
const INIT_PIDS: u64 = 1;
/// How long a leaf may take to become removable once its last process is gone.
const REMOVAL_BOUND: Duration = Duration::from_secs(10);
/// How long to wait between attempts to remove it, at first and at most.
const REMOVAL_PAUSES: (Duration, Duration) =
    (Duration::from_micros(100), Duration::from_millis(50));

/// The cgroup below which all containers of one server have their leaves.
#[derive(Debug)]
pub(crate) enum Parent {
    /// A hierarchy for each controller.
    V1(v1::Parent),
    /// One hierarchy for all.
    V2(v2::Parent),
}

/// A container's cgroup.
#[derive(Debug)]
pub(crate) enum Leaf {
    /// A directory in each hierarchy.
    V1(v1::Leaf),
    /// One directory.
    V2(v2::Leaf),
}

/// How a process comes to be in a leaf.
#[derive(Debug)]
pub(crate) enum Birth {
    /// It writes `0` to each of these `tasks` files first of all (v1): 0.5 ms, against 8 for
    /// having its parent write its pid to `cgroup.procs`.
    Enter(Vec<OwnedFd>),
    /// It is made in this directory (clone3(2), v2).
    Into(OwnedFd),
}

/// A reading of what the container has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    /// CPU time, in microseconds.
    pub(crate) cpu_us: u64,
    /// The part of it spent in user mode.
    pub(crate) cpu_user_us: u64,
    /// The part of it spent in the kernel.
    pub(crate) cpu_system_us: u64,
    /// How long the CPU quota held processes, in microseconds.
    pub(crate) throttled_us: u64,
    /// The highest memory since the last [`Leaf::reset_peak`].
    pub(crate) memory_peak_bytes: u64,
    /// The most processes at one time, init left out, since the container was made.
    pub(crate) pids_peak: Option<u64>,
    /// Processes ended by the OOM killer.
    pub(crate) oom_kills: u64,
}

impl Parent {
    /// Makes the parent cgroup, or finds it, and bounds what all containers together may hold in
    /// memory.
    pub(crate) fn make(path: &str, memory_bytes: Option<NonZeroU64>) -> io::Result<Self> {
        if hierarchies::is_cgroup2_unified_mode() {
            v2::Parent::make(path, memory_bytes).map(Self::V2)
        } else {
            v1::Parent::make(path, memory_bytes).map(Self::V1)
        }
    }

    /// Keeps all containers to these CPUs; without any, to none in particular. Fails with
    /// `Unsupported` if the controller is missing.
    pub(crate) fn keep_to(&mut self, path: &str, cpuset: Option<&Cpuset>) -> io::Result<()> {
        match self {
            Self::V1(parent) => parent.keep_to(path, cpuset),
            Self::V2(parent) => parent.keep_to(path, cpuset),
        }
    }

    /// Makes the leaf of a container.
    pub(crate) fn make_leaf(&self, id: &str) -> io::Result<Leaf> {
        match self {
            Self::V1(parent) => parent.make_leaf(id).map(Leaf::V1),
            Self::V2(parent) => parent.make_leaf(id).map(Leaf::V2),
        }
    }

    /// Kills what is left in the leaf of a container whose shim is gone, and removes it.
    pub(crate) fn sweep(&self, id: &str) -> io::Result<()> {
        let directories = match self {
            Self::V1(parent) => parent.directories(),
            Self::V2(parent) => vec![parent.directory()],
        };
        // First: who waits for a disk cannot be killed.
        directories.iter().try_for_each(|parent| throttle::lift_all(*parent, id))?;
        for parent in directories {
            remove(parent, id.as_ref(), || kill_members(parent, id))?;
        }
        Ok(())
    }

    /// Removes what was missing when this was made. The last leaf is gone.
    pub(crate) fn remove_made(&self) -> io::Result<()> {
        let made = match self {
            Self::V1(parent) => parent.made(),
            Self::V2(parent) => parent.made(),
        };
        made.iter().try_for_each(|directory| remove(CWD, directory, || Ok(())))
    }
}

impl Leaf {
    /// What a process needs to come to be in it.
    pub(crate) fn birth(&self) -> io::Result<Birth> {
        match self {
            Self::V1(leaf) => leaf.tasks().map(Birth::Enter),
            Self::V2(leaf) => leaf.directory().map(Birth::Into),
        }
    }

    /// Bounds memory and processes of the next step. Fails with `ResourceBusy` if what the
    /// container holds already is more (v1; on v2 the OOM killer acts instead).
    pub(crate) fn bound_memory_and_pids(&self, limits: &Limits) -> io::Result<()> {
        match self {
            Self::V1(leaf) => leaf.bound_memory_and_pids(limits),
            Self::V2(leaf) => leaf.bound_memory_and_pids(limits),
        }
    }

    /// Bounds the CPU of the next step, from when our own set-up is done.
    pub(crate) fn bound_cpu(&self, limits: &Limits) -> io::Result<()> {
        match self {
            Self::V1(leaf) => leaf.bound_cpu(limits),
            Self::V2(leaf) => leaf.bound_cpu(limits),
        }
    }

    /// Lifts the bound of the CPU, so that killing what runs is not slowed down by it.
    pub(crate) fn lift_cpu(&self) -> io::Result<()> {
        match self {
            Self::V1(leaf) => leaf.lift_cpu(),
            Self::V2(leaf) => leaf.lift_cpu(),
        }
    }

    /// Forgets the highest memory so far, where the kernel can (v1; v2 from Linux 6.12).
    pub(crate) fn reset_peak(&self) -> io::Result<()> {
        match self {
            Self::V1(leaf) => leaf.reset_peak(),
            Self::V2(leaf) => leaf.reset_peak(),
        }
    }

    /// CPU time used so far, in microseconds.
    pub(crate) fn cpu_us(&self) -> io::Result<u64> {
        match self {
            Self::V1(leaf) => leaf.cpu_us(),
            Self::V2(leaf) => leaf.cpu_us(),
        }
    }

    /// All that was used so far.
    pub(crate) fn counters(&self) -> io::Result<Counters> {
        match self {
            Self::V1(leaf) => leaf.counters(),
            Self::V2(leaf) => leaf.counters(),
        }
    }

    /// Memory that cannot be reclaimed and buffers of sockets together, if these are more than a
    /// container may have beside its memory. `uncounted_bytes` is what they hold at the least by
    /// their number: the kernel counts some in no cgroup.
    pub(crate) fn memory_with_sockets(&self, uncounted_bytes: u64) -> io::Result<Option<u64>> {
        match self {
            Self::V1(leaf) => leaf.memory_with_sockets(uncounted_bytes),
            Self::V2(leaf) => leaf.memory_with_sockets(uncounted_bytes),
        }
    }

    /// How many processes the OOM killer has ended.
    pub(crate) fn oom_kills(&self) -> io::Result<u64> {
        match self {
            Self::V1(leaf) => leaf.oom_kills(),
            Self::V2(leaf) => leaf.oom_kills(),
        }
    }

    /// What poll(2) tells of when the container is out of memory, and by which event.
    pub(crate) fn oom_notice(&self) -> (BorrowedFd<'_>, PollFlags) {
        match self {
            Self::V1(leaf) => (leaf.oom_notice(), PollFlags::IN),
            Self::V2(leaf) => (leaf.oom_notice(), PollFlags::PRI),
        }
    }

    /// Takes the notice, so that poll(2) waits for the next.
    pub(crate) fn take_oom_notice(&self) -> io::Result<()> {
        match self {
            Self::V1(leaf) => leaf.take_oom_notice(),
            // Reading the counter is what makes the kernel tell again.
            Self::V2(leaf) => leaf.oom_kills().map(drop),
        }
    }

    /// Removes the leaf, whose last process is gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match self {
            Self::V1(leaf) => leaf.remove(),
            Self::V2(leaf) => leaf.remove(),
        }
    }
}

/// Bounds the memory of a cgroup that cgroups-rs made.
fn bound_memory(cgroup: &Cgroup, bytes: Option<NonZeroU64>) -> io::Result<()> {
    let memory = cgroup.controller_of::<MemController>();
    let memory = memory.ok_or_else(|| io::Error::other("the memory controller is missing"))?;
    // -1 is the kernel's word for no bound.
    let bytes = bytes.map_or(-1, |bytes| i64::try_from(bytes.get()).unwrap_or(i64::MAX));
    memory.set_limit(bytes).map_err(io::Error::other)
}

/// The most processes that a step's limit allows in the cgroup.
fn pids_max(limits: &Limits) -> u64 {
    u64::from(limits.pids.get()) + INIT_PIDS
}

/// CPU time allowed in each period, in microseconds.
fn cpu_quota_us(limits: &Limits) -> u64 {
    u64::from(limits.cpus.millis()) * CPU_PERIOD_US / 1000
}

/// Processes at one time as the kernel counts them, without init.
fn without_init(pids: u64) -> u64 {
    pids.saturating_sub(INIT_PIDS)
}

fn open_directory(parent: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, path, flags, Mode::empty())
        .context(|| format!("could not open `{}`", path.display()))
}

/// Opens a control file below `directory`.
fn open(directory: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    rustix::fs::openat(directory, name, flags | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("could not open `{name}`"))
}

fn write(directory: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let file = open(directory, name, OFlags::WRONLY)?;
    rustix::io::write(&file, value.as_bytes())
        .context(|| format!("could not write `{value}` to `{name}`"))?;
    Ok(())
}

fn write_number(directory: BorrowedFd<'_>, name: &str, number: u64) -> io::Result<()> {
    write(directory, name, &number.to_string())
}

/// Reads a control file from its start. None of those read here is longer but the list of
/// processes, of which the first are enough: it is read again while any are left.
fn read(file: &OwnedFd) -> io::Result<String> {
    let mut buffer = [0; 4096];
    let bytes = rustix::io::pread(file, &mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..bytes]).into_owned())
}

fn read_number(file: &OwnedFd) -> io::Result<u64> {
    let text = read(file)?;
    text.trim().parse().map_err(|error| not_a_number(text.trim(), &error))
}

fn not_a_number(text: &str, error: &std::num::ParseIntError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("`{text}` is no number: {error}"))
}

/// The number after `key` in a file of lines `key number`; 0 where there is no such line.
fn field(text: &str, key: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    match line {
        Some(number) => number.trim().parse().map_err(|error| not_a_number(number, &error)),
        None => Ok(0),
    }
}

/// Removes the directory `path` below `parent`, calling `on_busy` while it cannot go yet. A cgroup
/// without processes may still refuse for a moment, with `EBUSY`.
fn remove(
    parent: BorrowedFd<'_>,
    path: &Path,
    mut on_busy: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let (mut pause, longest) = REMOVAL_PAUSES;
    let started = Instant::now();
    loop {
        match rustix::fs::unlinkat(parent, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if started.elapsed() < REMOVAL_BOUND => {
                on_busy()?;
                std::thread::sleep(pause);
                pause = (pause * 2).min(longest);
            }
            Err(error) => {
                return Err(error).context(|| format!("could not remove `{}`", path.display()));
            }
        }
    }
}

/// The lines of a text but for a last one that has no end: of a list longer than one read, half a
/// number is the number of something else.
fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

/// Kills every process in the cgroup `id`, by pid: the shim that held a better handle is gone.
fn kill_members(parent: BorrowedFd<'_>, id: &str) -> io::Result<()> {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let members = || -> io::Result<Vec<i32>> {
        let procs = match open(parent, &format!("{id}/cgroup.procs"), OFlags::RDONLY) {
            Ok(procs) => procs,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let text = match read(&procs) {
            // Removed since it was opened.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(Vec::new()),
            text => text?,
        };
        Ok(whole_lines(&text).filter_map(|pid| pid.parse().ok()).collect())
    };
    for pid in members()?.into_iter().filter_map(Pid::from_raw) {
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // The pid may have gone to another process since it was read: the descriptor cannot.
        if members()?.contains(&pid.as_raw_nonzero().get()) {
            match pidfd_send_signal(&process, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_pid_is_no_pid() {
        assert_eq!(whole_lines("12\n345\n67").collect::<Vec<_>>(), ["12", "345"]);
        assert_eq!(whole_lines("").count(), 0);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "oom 3\noom_kill 2\nlow 1\n";
        assert_eq!(field(text, "oom").expect("a number"), 3);
        assert_eq!(field(text, "oom_kill").expect("a number"), 2);
        assert_eq!(field(text, "oom_group_kill").expect("absent"), 0);
        assert!(field("oom x\n", "oom").is_err());
    }
}
