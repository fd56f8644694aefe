//! Containers of one command: started, followed and ended here, without a server.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use lazaret_sandbox::image::Upper;
use lazaret_sandbox::outcome::Outcome;
use lazaret_sandbox::spec::ContainerSpec;
use lazaret_sandbox::{Container, Event, Settings, Zygote, reap_dead};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use uuid::Uuid;

use super::CliError;
use super::output::{Output, Shown};

/// Where containers of all these commands keep their state, and lock their ids with the servers'.
const RUN_DIR: &str = "/run/lazaret/run";
const IDS_DIR: &str = "/run/lazaret/ids";
/// The cgroup below which these containers get theirs.
const CGROUP_PARENT: &str = "lazaret/run";

/// What starts containers.
#[derive(Debug)]
pub(super) struct Containers {
    zygote: Zygote,
}

/// A container that has ended.
pub(super) struct Ran {
    /// How.
    pub(super) outcome: Outcome,
    /// What it wrote to its root, if it succeeded.
    pub(super) upper: Option<Upper>,
    /// What it wrote to its streams.
    pub(super) output: Output,
}

impl Containers {
    /// Forks what starts them: before there is a second thread.
    pub(super) fn start() -> Result<Self, CliError> {
        let settings = Settings {
            run_dir: RUN_DIR.into(),
            ids_dir: IDS_DIR.into(),
            cgroup_parent: CGROUP_PARENT.into(),
            memory_bytes: None,
            cpuset: None,
        };
        let zygote = Zygote::start(&settings).map_err(CliError::refused)?;
        // What others of this command left that were killed, whose ends nobody waits for.
        reap_dead(&settings).map_err(CliError::failed)?;
        Ok(Self { zygote })
    }

    /// Runs one to its end. What asks this command for its end cancels it.
    pub(super) fn run(
        &self,
        spec: ContainerSpec,
        data: &Path,
        shown: Shown,
    ) -> Result<Ran, CliError> {
        let spool = anonymous_file(data)?;
        let signals = Signals::block()?;
        let id = Uuid::now_v7().to_string();
        let mut container = self.zygote.spawn(&id).map_err(CliError::failed)?;
        container.start(spec, spool.as_fd()).map_err(CliError::failed)?;
        let mut output = Output::new(spool, shown);
        // If this fails the container ends with the conversation: it is for this command alone.
        let outcome = follow(&mut container, &signals.fd, &mut output)?;
        let upper = container.take_upper();
        container.acknowledge().map_err(CliError::failed)?;
        Ok(Ran { outcome, upper, output })
    }
}

/// A file on the disk of the data directory that goes with its last descriptor.
fn anonymous_file(directory: &Path) -> Result<File, CliError> {
    let path = directory.join(format!("run-{}.spool", std::process::id()));
    let doing = |error: io::Error| CliError::refused(format!("`{}`: {error}", path.display()));
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.map_err(doing)?;
    fs::remove_file(&path).map_err(doing)?;
    Ok(file)
}

/// What asks for the end, as a descriptor, while there is a container. The zygote does not share
/// this.
struct Signals {
    set: SigSet,
    fd: SignalFd,
}

impl Signals {
    fn block() -> Result<Self, CliError> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGHUP);
        set.thread_block().map_err(CliError::refused)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&set, flags).map_err(CliError::failed)?;
        Ok(Self { set, fd })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // What came too late ends this command now. It cannot fail: the set was blocked before.
        let _unblocked = self.set.thread_unblock();
    }
}

/// Takes output as it comes, until the container is gone. The first signal cancels; should the
/// reader of the output go, that cancels too.
fn follow(
    container: &mut Container,
    signals: &SignalFd,
    output: &mut Output,
) -> Result<Outcome, CliError> {
    loop {
        {
            let mut fds =
                [PollFd::new(&*container, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut fds, None)).map_err(CliError::refused)?;
        }
        if signals.read_signal().map_err(CliError::refused)?.is_some() {
            container.cancel().map_err(CliError::refused)?;
        }
        while let Some(event) = container.try_event().map_err(CliError::refused)? {
            output.take()?;
            if output.is_unread() {
                container.cancel().map_err(CliError::refused)?;
            }
            if let Event::Finished(outcome) = event {
                return Ok(outcome);
            }
        }
    }
}
