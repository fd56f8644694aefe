//! cgroup v1: a hierarchy for each controller (kernel: admin-guide/cgroup-v1).

use std::io::{self, ErrorKind};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cgroups_rs::fs::hierarchies::V1;
use cgroups_rs::fs::{Cgroup, Controllers};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};

use super::{
    CPU_PERIOD_US, Counters, MAX_SOCKET_BYTES, bound_memory, cpu_quota_us, cpuset, field, open,
    open_directory, pids_max, read, read_number, remove, whole_lines, without_init, write,
    write_number,
};
use crate::cpuset::Cpuset;
use crate::error::Context;
use crate::spec::Limits;

/// Controllers that count and bound each container.
const CONTROLLERS: [Controllers; 4] =
    [Controllers::Cpu, Controllers::CpuAcct, Controllers::Mem, Controllers::Pids];
/// Shares of the CPU for a container of one CPU: the kernel's default.
const CPU_SHARES: u64 = 1024;
/// The devices that containers have, and pseudo terminals; all others are denied.
const DEVICES: [&str; 8] = [
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// The parent's directory in each hierarchy.
#[derive(Debug)]
pub(crate) struct Parent {
    cpu: OwnedFd,
    cpuacct: OwnedFd,
    memory: OwnedFd,
    pids: OwnedFd,
    /// Devices are denied to all containers alike, so they share the parent's own cgroup.
    devices: OwnedFd,
    /// So they do for the CPUs that they are kept to, if they are: entering one more cgroup takes
    /// its time.
    cpuset: Option<OwnedFd>,
    /// Where containers with volumes have one more leaf, if the controller is mounted.
    blkio: Option<OwnedFd>,
    /// The paths of those that were missing.
    made: Vec<PathBuf>,
}

impl Parent {
    pub(super) fn make(path: &str, memory_bytes: Option<NonZeroU64>) -> io::Result<Self> {
        let hierarchy = V1::new();
        let blkio = hierarchy.get_mount_point(Controllers::BlkIo).map(|_| &Controllers::BlkIo);
        let controllers = || CONTROLLERS.iter().chain([&Controllers::Devices]).chain(blkio);
        let place = |controller: &Controllers| match hierarchy.get_mount_point(controller.clone()) {
            Some((mount_point, _)) => Ok(mount_point.join(path)),
            None => Err(io::Error::other(format!(
                "the cgroup controller `{controller}` is not mounted"
            ))),
        };
        let mut made: Vec<PathBuf> = controllers().map(place).collect::<io::Result<_>>()?;
        made.retain(|directory| !directory.exists());
        let names = Some(controllers().map(ToString::to_string).collect());
        let handle = Cgroup::new_with_specified_controllers(Box::new(V1::new()), path, names)
            .map_err(io::Error::other)?;
        bound_memory(&handle, memory_bytes)?;
        let directory = |controller| open_directory(rustix::fs::CWD, &place(controller)?);
        let parent = Self {
            cpu: directory(&Controllers::Cpu)?,
            cpuacct: directory(&Controllers::CpuAcct)?,
            memory: directory(&Controllers::Mem)?,
            pids: directory(&Controllers::Pids)?,
            devices: directory(&Controllers::Devices)?,
            cpuset: None,
            blkio: blkio.map(directory).transpose()?,
            made,
        };
        parent.deny_devices()?;
        Ok(parent)
    }

    pub(super) fn keep_to(&mut self, path: &str, cpuset: Option<&Cpuset>) -> io::Result<()> {
        if let Some(cpuset) = cpuset {
            let (parent, made) = cpuset::make_v1(path, cpuset)?;
            self.cpuset = Some(parent);
            self.made.extend(made);
        }
        Ok(())
    }

    fn deny_devices(&self) -> io::Result<()> {
        write(self.devices.as_fd(), "devices.deny", "a")?;
        for device in DEVICES {
            write(self.devices.as_fd(), "devices.allow", device)?;
        }
        Ok(())
    }

    /// The parent's directory in each hierarchy that all containers have leaves in.
    fn of_all(&self) -> [BorrowedFd<'_>; 4] {
        [self.cpu.as_fd(), self.cpuacct.as_fd(), self.memory.as_fd(), self.pids.as_fd()]
    }

    /// The parent's directory in each hierarchy that some container may have a leaf in.
    pub(super) fn directories(&self) -> Vec<BorrowedFd<'_>> {
        self.of_all().into_iter().chain(self.blkio()).collect()
    }

    /// The parent's directory in the hierarchy in which only containers with volumes have leaves.
    pub(super) fn blkio(&self) -> Option<BorrowedFd<'_>> {
        self.blkio.as_ref().map(OwnedFd::as_fd)
    }

    /// The directories that were missing.
    pub(super) fn made(&self) -> &[PathBuf] {
        &self.made
    }

    pub(super) fn make_leaf(&self, id: &str) -> io::Result<Leaf> {
        for parent in self.of_all() {
            match rustix::fs::mkdirat(parent, id, Mode::from_raw_mode(0o755)) {
                // Controllers may share a hierarchy, as cpu and cpuacct mostly do.
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error).context(|| format!("could not make `{id}`")),
            }
        }
        let memory = open_directory(self.memory.as_fd(), id.as_ref())?;
        let cpuacct = open_directory(self.cpuacct.as_fd(), id.as_ref())?;
        let cpu = open_directory(self.cpu.as_fd(), id.as_ref())?;
        // Before the first socket, or it is not counted at all. UDP keeps to this; for each TCP
        // socket the kernel makes an exception of one segment or window, up to 64 KiB (measured:
        // 8,000 sockets hold 546 MiB).
        write_number(memory.as_fd(), "memory.kmem.tcp.limit_in_bytes", MAX_SOCKET_BYTES)?;
        let oom_control = open(memory.as_fd(), "memory.oom_control", OFlags::RDONLY)?;
        let oom_notice = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        register_oom_notice(memory.as_fd(), &oom_notice, &oom_control)?;
        Ok(Leaf {
            id: id.to_owned(),
            parents: self
                .of_all()
                .into_iter()
                .map(|parent| parent.try_clone_to_owned())
                .collect::<io::Result<_>>()?,
            devices: self.devices.try_clone()?,
            cpuset: self.cpuset.as_ref().map(OwnedFd::try_clone).transpose()?,
            cpu_usage: open(cpuacct.as_fd(), "cpuacct.usage", OFlags::RDONLY)?,
            cpu_user: open(cpuacct.as_fd(), "cpuacct.usage_user", OFlags::RDONLY)?,
            cpu_stat: open(cpu.as_fd(), "cpu.stat", OFlags::RDONLY)?,
            memory_peak: open(memory.as_fd(), "memory.max_usage_in_bytes", OFlags::RDWR)?,
            pids: open_directory(self.pids.as_fd(), id.as_ref())?,
            cpuacct,
            cpu,
            memory,
            oom_control,
            oom_notice,
        })
    }
}

/// Has the kernel count up `notice` when the cgroup is out of memory (cgroup-v1/memory.rst, 10).
fn register_oom_notice(
    memory: BorrowedFd<'_>,
    notice: &OwnedFd,
    oom_control: &OwnedFd,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let registration = format!("{} {}", notice.as_raw_fd(), oom_control.as_raw_fd());
    write(memory, "cgroup.event_control", &registration)
}

/// A container's directory in each hierarchy, and the files that are read often.
#[derive(Debug)]
pub(crate) struct Leaf {
    id: String,
    parents: Vec<OwnedFd>,
    devices: OwnedFd,
    cpuset: Option<OwnedFd>,
    cpu: OwnedFd,
    cpuacct: OwnedFd,
    memory: OwnedFd,
    pids: OwnedFd,
    cpu_usage: OwnedFd,
    cpu_user: OwnedFd,
    cpu_stat: OwnedFd,
    memory_peak: OwnedFd,
    oom_control: OwnedFd,
    oom_notice: OwnedFd,
}

impl Leaf {
    pub(super) fn tasks(&self) -> io::Result<Vec<OwnedFd>> {
        [&self.cpu, &self.cpuacct, &self.memory, &self.pids, &self.devices]
            .into_iter()
            .chain(&self.cpuset)
            .map(|directory| open(directory.as_fd(), "tasks", OFlags::WRONLY))
            .collect()
    }

    /// The pids of the few processes that are in it before the first step.
    pub(super) fn members(&self) -> io::Result<Vec<String>> {
        let processes = read(&open(self.pids.as_fd(), "cgroup.procs", OFlags::RDONLY)?)?;
        Ok(whole_lines(&processes).map(ToOwned::to_owned).collect())
    }

    pub(super) fn bound_memory_and_pids(&self, limits: &Limits) -> io::Result<()> {
        self.set_memory(limits.memory_bytes.get())?;
        write_number(self.pids.as_fd(), "pids.max", pids_max(limits))
    }

    pub(super) fn bound_cpu(&self, limits: &Limits) -> io::Result<()> {
        let quota = cpu_quota_us(limits);
        // The period is the kernel's default, which a new cgroup has.
        write_number(self.cpu.as_fd(), "cpu.cfs_quota_us", quota)?;
        let shares = CPU_SHARES * quota / CPU_PERIOD_US;
        write_number(self.cpu.as_fd(), "cpu.shares", shares.max(2))
    }

    pub(super) fn lift_cpu(&self) -> io::Result<()> {
        write(self.cpu.as_fd(), "cpu.cfs_quota_us", "-1")
    }

    /// Memory alone and memory with swap get the same bound, so that there is no swap. The second
    /// may never be below the first, which decides the order of the two writes.
    fn set_memory(&self, bytes: u64) -> io::Result<()> {
        let memory = self.memory.as_fd();
        write_number(memory, "memory.kmem.tcp.limit_in_bytes", bytes.min(MAX_SOCKET_BYTES))?;
        match write_number(memory, "memory.limit_in_bytes", bytes) {
            Ok(()) => write_number(memory, "memory.memsw.limit_in_bytes", bytes),
            // More than the other bound is so far.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                write_number(memory, "memory.memsw.limit_in_bytes", bytes)?;
                write_number(memory, "memory.limit_in_bytes", bytes)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn reset_peak(&self) -> io::Result<()> {
        rustix::io::pwrite(&self.memory_peak, b"0", 0)?;
        Ok(())
    }

    pub(super) fn cpu_us(&self) -> io::Result<u64> {
        Ok(read_number(&self.cpu_usage)? / 1000)
    }

    pub(super) fn counters(&self) -> io::Result<Counters> {
        let cpu_us = self.cpu_us()?;
        let cpu_user_us = (read_number(&self.cpu_user)? / 1000).min(cpu_us);
        Ok(Counters {
            cpu_us,
            cpu_user_us,
            cpu_system_us: cpu_us - cpu_user_us,
            throttled_us: field(&read(&self.cpu_stat)?, "throttled_time")? / 1000,
            memory_peak_bytes: read_number(&self.memory_peak)?,
            pids_peak: self.pids_peak()?,
            oom_kills: self.oom_kills()?,
        })
    }

    fn pids_peak(&self) -> io::Result<Option<u64>> {
        match rustix::fs::openat(&self.pids, "pids.peak", OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => read_number(&file).map(without_init).map(Some),
            // Before Linux 6.1.
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// No socket is counted as memory.
    pub(super) fn memory_with_sockets(&self, uncounted_bytes: u64) -> io::Result<Option<u64>> {
        let number = |name| read_number(&open(self.memory.as_fd(), name, OFlags::RDONLY)?);
        let sockets = number("memory.kmem.tcp.usage_in_bytes")?.max(uncounted_bytes);
        if sockets <= MAX_SOCKET_BYTES {
            return Ok(None);
        }
        let stat = read(&open(self.memory.as_fd(), "memory.stat", OFlags::RDONLY)?)?;
        let cache = field(&stat, "inactive_file")? + field(&stat, "active_file")?;
        let memory = number("memory.usage_in_bytes")?.saturating_sub(cache);
        Ok(Some(memory.saturating_add(sockets)))
    }

    /// `memory.failcnt` stays 0 through an OOM kill; this counts.
    pub(super) fn oom_kills(&self) -> io::Result<u64> {
        field(&read(&self.oom_control)?, "oom_kill")
    }

    pub(super) fn oom_notice(&self) -> BorrowedFd<'_> {
        self.oom_notice.as_fd()
    }

    pub(super) fn take_oom_notice(&self) -> io::Result<()> {
        match rustix::io::read(&self.oom_notice, &mut [0; 8]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        for parent in &self.parents {
            remove(parent.as_fd(), self.id.as_ref(), || Ok(()))?;
        }
        Ok(())
    }
}
