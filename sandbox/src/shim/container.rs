//! A container as its shim holds it: the cgroup, init, the storage; from the first to the last.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

use super::volumes::Volumes;
use crate::cgroup::{self, Leaf};
use crate::container::idmap::Slot;
use crate::container::mounts::open_directory;
use crate::container::rootfs::UPPER;
use crate::error::{At as _, Error, Result, Stage};
use crate::orders::{self, Order, Report};
use crate::outcome::{LimitHit, LimitName};
use crate::spec::{ContainerSpec, User};
use crate::wire::{Channel, MAX_FRAME_BYTES};

/// How long one stage of our own set-up may take. The machine may be busy, but a set-up that takes
/// longer does not come to an end.
pub(super) const SET_UP_BOUND: Duration = Duration::from_secs(30);

/// What there is once init was forked.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) leaf: Leaf,
    pub(super) init: Channel,
    /// Init's pid on the host, and the process itself.
    pid: Pid,
    pub(super) process: OwnedFd,
    /// The container's host ids, held until it is gone.
    slot: Slot,
    /// The container's own file system, once init has made it.
    storage: Option<OwnedFd>,
    /// What it has beside that, if it has any.
    volumes: Option<Volumes>,
    is_reaped: bool,
}

impl Container {
    /// The container around an init that was just forked.
    pub(super) fn new(leaf: Leaf, slot: Slot, (init, pid): (OwnedFd, Pid)) -> io::Result<Self> {
        Ok(Self {
            leaf,
            init: Channel::new(init, MAX_FRAME_BYTES),
            pid,
            // A child that nobody has waited for: its pid is still its own.
            process: pidfd_open(pid, PidfdFlags::empty())?,
            slot,
            storage: None,
            volumes: None,
            is_reaped: false,
        })
    }

    /// Waits until init has prepared all that can be without knowing the job.
    pub(super) fn await_prepared(&mut self) -> Result<()> {
        match self.report()? {
            (Report::Prepared, mut fds) => {
                self.storage = fds.pop();
                Ok(())
            }
            (report, _) => Err(unexpected(&report)),
        }
    }

    /// Holds the volumes of a container, and bounds how fast it uses their disks.
    pub(super) fn take_volumes(
        &mut self,
        (id, spec): (&str, &ContainerSpec),
        parent: &cgroup::Parent,
    ) -> io::Result<()> {
        self.volumes = Volumes::take((id, spec), (parent, &self.leaf))?;
        Ok(())
    }

    /// The user's ids on the host.
    pub(super) fn host_ids(&self, user: &User) -> (Uid, Gid) {
        let host_id = |inner| self.slot.host_id(inner);
        (Uid::from_raw(host_id(user.uid)), Gid::from_raw(host_id(user.gid)))
    }

    /// Sends init an order, with its descriptors.
    pub(super) fn order(&mut self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.init.send(order, fds).map_err(|error| why_refused(&mut self.init, error))
    }

    /// Orders init to become the job's container, with its files in place.
    pub(super) fn order_build(&mut self, spec: &ContainerSpec) -> Result<()> {
        let order = Order::Become(orders::Container {
            rootfs: spec.rootfs.clone(),
            volumes: spec.volumes.clone(),
            user: spec.user.clone(),
            workdir: spec.workdir.clone(),
            disk_bytes: spec.disk_bytes,
            root_use: spec.root_use,
            files: spec.files.len(),
        });
        let trees = self.volumes.as_mut().map(Volumes::take_trees).unwrap_or_default();
        self.order(&order, &trees.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        for file in &spec.files {
            let order = Order::File {
                path: file.path.clone(),
                mode: file.mode,
                bytes: file.content.len() as u64,
            };
            self.order(&order, &[])?;
            let sent = self.init.send_raw(&file.content);
            sent.map_err(|error| why_refused(&mut self.init, error))?;
        }
        Ok(())
    }

    /// Waits until that is done.
    pub(super) fn await_built(&mut self) -> Result<()> {
        match self.report()? {
            (Report::Built, _) => Ok(()),
            (report, _) => Err(unexpected(&report)),
        }
    }

    /// Waits until the process of a step is gone that never became its program.
    pub(super) fn await_ended(&mut self) -> Result<()> {
        match self.report()? {
            (Report::Ended(_), _) => Ok(()),
            (report, _) => Err(unexpected(&report)),
        }
    }

    /// Init's next report; its failures are errors.
    fn report(&mut self) -> Result<(Report, Vec<OwnedFd>)> {
        match self.init.recv_within(SET_UP_BOUND).at(Stage::Init)? {
            (Report::Failed(failure), _) => Err(Error::from(failure)),
            report => Ok(report),
        }
    }

    /// Counts of the sockets in the container's network namespace: `/proc/net/sockstat` (proc(5)),
    /// and the same for IPv6 where the kernel has it. None if init has just ended.
    pub(super) fn open_socket_counts(&self) -> io::Result<Vec<OwnedFd>> {
        let mut counts = Vec::new();
        for name in ["sockstat", "sockstat6"] {
            let path = format!("/proc/{}/net/{name}", self.pid.as_raw_nonzero());
            match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(file) => counts.push(file),
                Err(Errno::NOENT | Errno::SRCH | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(counts)
    }

    /// Kills everything in the container, init first: with PID 1 the kernel ends all others.
    pub(super) fn kill(&self) -> Result<()> {
        if self.is_reaped {
            return Ok(());
        }
        // First, so that dying is not slowed down; but what is to end ends even if this fails.
        let throttle = self.volumes.as_ref().map_or(Ok(()), Volumes::lift);
        let lifted = self.leaf.lift_cpu().and(throttle).at(Stage::Cgroup);
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => lifted,
            Err(error) => Err(error).at(Stage::Init),
        }
    }

    /// Waits for init, which has ended or was killed. Afterwards the container is empty: the
    /// kernel lets PID 1 be reaped last.
    pub(super) fn reap(&mut self) -> Result<()> {
        if !self.is_reaped {
            rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()))
                .at(Stage::Init)?;
            self.is_reaped = true;
        }
        Ok(())
    }

    /// What the storage has no more of, if that is so: blocks or inodes.
    pub(super) fn full_storage(&self) -> Result<Option<LimitHit>> {
        let Some(storage) = &self.storage else {
            return Ok(None);
        };
        let stat = rustix::fs::fstatvfs(storage).at(Stage::Rootfs)?;
        Ok(if stat.f_bfree == 0 {
            let bytes = stat.f_blocks * stat.f_frsize;
            Some(LimitHit { limit: LimitName::DiskBytes, allowed: bytes, observed: bytes })
        } else if stat.f_ffree == 0 {
            let files = stat.f_files;
            Some(LimitHit { limit: LimitName::DiskFiles, allowed: files, observed: files })
        } else {
            None
        })
    }

    /// What it wrote, for who wants to keep it; none if there is no descriptor to be had.
    pub(super) fn upper(&self) -> Option<OwnedFd> {
        open_directory(self.storage.as_ref()?.as_fd(), UPPER).ok()
    }

    /// Ends every process of the container.
    pub(super) fn end(&mut self) -> Result<()> {
        self.kill()?;
        self.reap()
    }

    /// Ends the container and removes all of it.
    pub(super) fn tear_down(mut self) -> Result<()> {
        self.end()?;
        self.storage = None;
        let volumes = self.volumes.take().map_or(Ok(()), Volumes::let_go);
        self.leaf.remove().and(volumes).at(Stage::Cgroup)
    }
}

/// Why an order did not arrive. Orders are sent ahead of the answers, so init may have failed at an
/// earlier one, and ended: then it said why, and that is the reason.
fn why_refused(init: &mut Channel, error: io::Error) -> Error {
    match init.try_recv() {
        Ok(Some((Report::Failed(failure), _))) => Error::from(failure),
        Ok(_) | Err(_) => Error { stage: Stage::Init, source: error },
    }
}

fn unexpected(report: &Report) -> Error {
    Error { stage: Stage::Init, source: io::Error::other(format!("init answered `{report:?}`")) }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::wire;

    #[test]
    fn what_init_said_before_it_ended_is_why_an_order_did_not_arrive() {
        let (ours, theirs) = wire::pair().expect("a socket pair");
        let mut init = Channel::new(ours, MAX_FRAME_BYTES);
        let shim = Channel::new(theirs, MAX_FRAME_BYTES);
        let full = Error { stage: Stage::Files, source: ErrorKind::StorageFull.into() };
        shim.send(&Report::Failed(full.into()), &[]).expect("sent");
        init.send(&Order::Kill, &[]).expect("taken, and never read");
        drop(shim);
        let error = init.send(&Order::Kill, &[]).expect_err("nobody is there");
        let why = why_refused(&mut init, error);
        assert_eq!((why.stage, why.source.kind()), (Stage::Files, ErrorKind::StorageFull));
    }

    #[test]
    fn an_init_that_said_nothing_is_gone() {
        let (ours, theirs) = wire::pair().expect("a socket pair");
        let mut init = Channel::new(ours, MAX_FRAME_BYTES);
        drop(theirs);
        let error = init.send(&Order::Kill, &[]).expect_err("nobody is there");
        assert_eq!(why_refused(&mut init, error).stage, Stage::Init);
    }
}
