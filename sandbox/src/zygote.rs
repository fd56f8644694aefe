//! The process that forks shims: small, single-threaded, made before the server has threads.
//! It holds no data of any client.
//!
//! ```text
//! server ── Fork { id } + one end of a socket pair ──▶ zygote ── fork ──▶ shim
//! server ◀── pid ──────────────────────────────────── zygote
//! server ◀═════════════ the socket pair ══════════════════════════════▶ shim
//! ```
//!
//! The zygote ends when its socket does, and takes away what it made if nobody needs it any more;
//! shims are sessions of their own and go on. A shim that ends in any other way than by finishing
//! has its container killed and cleaned up by the zygote.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{PidfdFlags, WaitOptions, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::container::proc::Covers;
use crate::container::rlimits::set_inherited_limits;
use crate::container::seccomp::Filters;
use crate::cpuset::Cpuset;
use crate::error::{At as _, Error, Result, Stage};
use crate::handle::Container;
use crate::orders::Failure;
use crate::premises::{self, Premises};
use crate::run_dir;
use crate::settings::Settings;
use crate::shim::{self, Shared};
use crate::sys::{self, Fork as Forked, OneThread};
use crate::wire::{self, Channel, MAX_FRAME_BYTES};

/// How long shims that wait for a job may take to end when there is no server any more.
const SHIMS_BOUND: Duration = Duration::from_secs(3);
/// How long the zygote may take to end: shims, then cgroups.
const END_BOUND: Duration = Duration::from_secs(5);

/// The server's end of the zygote.
#[derive(Debug)]
pub struct Zygote {
    channel: Mutex<Channel>,
    process: OwnedFd,
}

/// What the server asks of the zygote: a shim for the container `id`. One end of a socket pair
/// travels along.
#[derive(Debug, Serialize, Deserialize)]
struct Fork {
    id: String,
}

/// The zygote's answer, also to being started: nothing, or why it could not be done.
type Answer = std::result::Result<(), Failure>;

impl Zygote {
    /// Forks the zygote. Called first thing in `main`, as the host's root.
    ///
    /// # Errors
    /// At [`Stage::Zygote`] if the process already has a second thread or cannot fork, at
    /// [`Stage::Cgroup`] if this host cannot bound a container, at [`Stage::Cpuset`] if it cannot
    /// keep containers to the CPUs that were chosen, at [`Stage::RunDirectory`] if
    /// `$run` cannot be made.
    pub fn start(settings: &Settings) -> Result<Self> {
        let (ours, theirs) = wire::pair().at(Stage::Zygote)?;
        let one_thread = OneThread::verify().at(Stage::Zygote)?;
        match sys::fork(&one_thread).at(Stage::Zygote)? {
            Forked::Child => {
                drop(ours);
                main(Channel::new(theirs, MAX_FRAME_BYTES), settings, one_thread)
            }
            Forked::Parent(pid) => {
                drop(theirs);
                // A child that nobody has waited for: its pid is still its own.
                let process = pidfd_open(pid, PidfdFlags::empty()).at(Stage::Zygote)?;
                let mut channel = Channel::new(ours, MAX_FRAME_BYTES);
                let (answer, _): (Answer, _) = channel.recv().at(Stage::Zygote)?;
                answer.map_err(Error::from)?;
                Ok(Self { channel: Mutex::new(channel), process })
            }
        }
    }

    /// The process itself: readable, for poll(2), once it has ended (pidfd_open(2)). No container
    /// can be made then, and a process with threads cannot fork another zygote.
    #[must_use]
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Has the zygote end, and waits until it has. What it made, `$run` and the parent cgroup, is
    /// gone then unless a container is left. No container can be made any more.
    ///
    /// # Errors
    /// At [`Stage::Zygote`] if it does not end in time.
    pub fn end(&self) -> Result<()> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        match shutdown(&*channel, Shutdown::Both) {
            // It is gone already.
            Ok(()) | Err(Errno::NOTCONN) => {}
            Err(error) => return Err(error).at(Stage::Zygote),
        }
        let bound = Timespec::try_from(END_BOUND).map_err(io::Error::other).at(Stage::Zygote)?;
        let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
        let ended = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&bound)));
        match ended.at(Stage::Zygote)? {
            0 => Err(io::Error::from(ErrorKind::TimedOut)).at(Stage::Zygote),
            _ => Ok(()),
        }
    }

    /// An empty container that waits for its only job. `id` names its directory in `$run` and its
    /// cgroup: lower case letters, digits and `-`, unique among the living.
    ///
    /// # Errors
    /// At [`Stage::Zygote`] if the zygote is gone, `id` is no such name, or the host has no more
    /// processes to give.
    pub fn spawn(&self, id: &str) -> Result<Container> {
        check_id(id).at(Stage::Zygote)?;
        let (ours, theirs) = wire::pair().at(Stage::Zygote)?;
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.send(&Fork { id: id.to_owned() }, &[theirs.as_fd()]).at(Stage::Zygote)?;
        let (answer, _): (Answer, _) = channel.recv().at(Stage::Zygote)?;
        answer.map_err(Error::from)?;
        Ok(Container::new(id.to_owned(), ours))
    }
}

/// An id becomes a file name, so it is checked on both sides of the socket.
fn check_id(id: &str) -> io::Result<()> {
    const MAX_ID_BYTES: usize = 64;
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(is_plain) {
        return Err(io::Error::new(ErrorKind::InvalidInput, format!("`{id}` is no container id")));
    }
    Ok(())
}

/// Lives as the zygote.
fn main(mut server: Channel, settings: &Settings, one_thread: OneThread) -> ! {
    let code = match prepare(settings, one_thread) {
        Ok((premises, shared)) => match serve(&mut server, &shared) {
            Ok(Side::Zygote) => end(premises, &shared),
            Ok(Side::Shim(id, socket)) => {
                // A copy of it would keep the zygote's end open beyond the zygote's own life.
                drop((server, premises));
                shim::main(&id, socket, &shared)
            }
            Err(_server_gone) => 1,
        },
        Err(error) => {
            let told = server.send(&Answer::Err(error.into()), &[]);
            i32::from(told.is_err()) + 1
        }
    };
    sys::exit(code)
}

/// All that shims will need, made once.
fn prepare(settings: &Settings, one_thread: OneThread) -> Result<(Premises, Shared)> {
    // A session of its own: what the terminal sends to the server is not for containers.
    rustix::process::setsid().at(Stage::Zygote)?;
    sys::name_process(c"lazaret-zygote").at(Stage::Zygote)?;
    sys::reset_signals();
    set_inherited_limits().at(Stage::Rlimits)?;
    let (premises, mut cgroup) = premises::enter(settings)?;
    let (filters, covers) = match confine(settings, &mut cgroup) {
        Ok(confined) => confined,
        Err(error) => {
            // Why it cannot start is what has to be mended first.
            drop(premises.leave(&settings.run_dir, || cgroup.remove_made()));
            return Err(error);
        }
    };
    let (settings, cores) = (settings.clone(), cores(settings));
    Ok((premises, Shared { settings, cgroup, filters, covers, cores, one_thread }))
}

/// Confines this process, and with it all containers, to the chosen CPUs and the allowed calls.
fn confine(settings: &Settings, cgroup: &mut cgroup::Parent) -> Result<(Filters, Covers)> {
    let kept = cgroup.keep_to(&settings.cgroup_parent, settings.cpuset.as_ref());
    kept.at(Stage::Cpuset)?;
    let filters = Filters::compile().at(Stage::Seccomp)?;
    filters.install_on_zygote().at(Stage::Seccomp)?;
    Ok((filters, Covers::find().at(Stage::Proc)?))
}

/// How many CPUs containers have.
fn cores(settings: &Settings) -> u64 {
    let all = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    settings.cpuset.as_ref().map_or_else(all, Cpuset::count) as u64
}

/// What comes out of the zygote's loop: its end, or a new shim, which has left it behind.
enum Side {
    Zygote,
    Shim(String, OwnedFd),
}

/// Forks shims until the server closes its end.
fn serve(server: &mut Channel, shared: &Shared) -> Result<Side> {
    let children = watch_children().at(Stage::Zygote)?;
    server.send(&Answer::Ok(()), &[]).at(Stage::Zygote)?;
    let mut shims: HashMap<i32, String> = HashMap::new();
    loop {
        while let Some((request, fds)) = receive(server).at(Stage::Zygote)? {
            let Some(Fork { id }) = request else { return Ok(Side::Zygote) };
            let answer: Answer = match fork_shim(&id, fds, &shared.one_thread).at(Stage::Shim) {
                Ok(Born::Here(socket)) => return Ok(Side::Shim(id, socket)),
                Ok(Born::There(pid)) => {
                    shims.insert(pid, id);
                    Ok(())
                }
                Err(error) => Err(error.into()),
            };
            server.send(&answer, &[]).at(Stage::Zygote)?;
        }
        while children.read_signal().at(Stage::Zygote)?.is_some() {}
        reap(&mut shims, shared)?;
        let mut fds = [PollFd::new(&*server, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).at(Stage::Zygote)?;
    }
}

/// The next request if it has arrived; the inner `None` says that the server has closed its end.
fn receive(server: &mut Channel) -> io::Result<Option<(Option<Fork>, Vec<OwnedFd>)>> {
    match server.try_recv() {
        Ok(received) => Ok(received.map(|(fork, fds)| (Some(fork), fds))),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Some((None, Vec::new()))),
        Err(error) => Err(error),
    }
}

/// Where a shim was born: this process, or another.
enum Born {
    Here(OwnedFd),
    There(i32),
}

fn fork_shim(id: &str, fds: Vec<OwnedFd>, one_thread: &OneThread) -> io::Result<Born> {
    check_id(id)?;
    let mut fds = fds.into_iter();
    let socket = fds.next().ok_or_else(|| io::Error::other("no socket came"))?;
    match sys::fork(one_thread)? {
        Forked::Child => Ok(Born::Here(socket)),
        Forked::Parent(pid) => Ok(Born::There(pid.as_raw_nonzero().get())),
    }
}

/// Has the ends of children told by a descriptor.
fn watch_children() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&signals, flags)?)
}

/// Reaps shims that have ended, and has those cleaned up after that did not do it themselves.
fn reap(shims: &mut HashMap<i32, String>, shared: &Shared) -> Result<()> {
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(reaped)) => reaped,
            Ok(None) | Err(Errno::CHILD) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).at(Stage::Zygote),
        };
        let Some(id) = shims.remove(&pid.as_raw_nonzero().get()) else { continue };
        if status.exit_status() != Some(0) {
            clean_up(id, shared)?;
        }
    }
}

/// Takes away what was made for the containers, once those are gone that only waited for a job.
/// Answers with the exit code.
fn end(premises: Premises, shared: &Shared) -> i32 {
    let left = match await_shims() {
        Ok(Shims::Ended) => {
            premises.leave(&shared.settings.run_dir, || shared.cgroup.remove_made())
        }
        // The next server takes them up, and all of this.
        Ok(Shims::Run) => Ok(()),
        Err(error) => Err(error),
    };
    let Err(error) = left else { return 0 };
    let line = format!("lazaret: the zygote could not take away what it made: {error}\n");
    i32::from(rustix::io::write(rustix::stdio::stderr(), line.as_bytes()).is_ok()) + 1
}

/// What has become of the shims.
enum Shims {
    Ended,
    Run,
}

/// Waits for the shims, but not for those that run a job. They are reaped and no more: a successor
/// may be cleaning up after them already.
fn await_shims() -> io::Result<Shims> {
    let children = watch_children()?;
    let deadline = Instant::now() + SHIMS_BOUND;
    loop {
        while children.read_signal()?.is_some() {}
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(Errno::CHILD) => return Ok(Shims::Ended),
                Err(error) => return Err(error.into()),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&children, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&left)))? == 0 {
            return Ok(Shims::Run);
        }
    }
}

/// Cleans up after a shim in a process of its own: waiting for a cgroup to be empty is not to hold
/// up the next container.
fn clean_up(id: String, shared: &Shared) -> Result<()> {
    if let Forked::Parent(_) = sys::fork(&shared.one_thread).at(Stage::Zygote)? {
        return Ok(());
    }
    let text = format!("lazaret: could not clean up after the shim of `{id}`");
    let reaped = run_dir::reap(&shared.settings.run_dir, &shared.cgroup, id);
    let code = match reaped.and_then(|orphan| orphan.forget()) {
        Ok(()) => 0,
        Err(error) => {
            let line = format!("{text}: {error}\n");
            i32::from(rustix::io::write(rustix::stdio::stderr(), line.as_bytes()).is_ok()) + 1
        }
    };
    sys::exit(code)
}
