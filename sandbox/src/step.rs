//! The process that becomes the untrusted program: from the fork to the exec.
//!
//! ```text
//! user namespace → session → no_new_privs, seccomp │ parked │ stdio → limits → ids → capabilities
//!                                                           → workdir │ gate │ exec
//! ```
//!
//! All that needs no job comes first, so that one process waits there ready for the first step of
//! its container ([`Parked`]); later steps do it all at once. The filters leave it the few calls
//! that ids, limits and capabilities take. At the gate the shim reads the counters and starts the
//! clock, so that nothing to the left of it is charged to the program.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, chdir};
use serde::{Deserialize, Serialize};

use crate::container::privileges::{
    drop_capabilities, forbid_namespaces, narrow_bounding_set, set_ids,
};
use crate::container::proc::Proc;
use crate::container::rlimits::set_open_files;
use crate::container::seccomp::Filters;
use crate::error::{At as _, Context as _, Error, Result, Stage};
use crate::inherited::Inherited;
use crate::orders::{Failure, Step};
use crate::spec::User;
use crate::sys::{self, Fork, Namespaces};
use crate::wire::{self, Channel, MAX_FRAME_BYTES};

/// Where a program without `/` is looked for when the step's environment has no `PATH`.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the step tells the shim through the gate. That the program runs is told by the kernel: it
/// closes the gate in execve(2).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum GateReport {
    /// Everything is set up; waiting for [`Go`].
    Ready,
    /// Setting up failed.
    Failed(Failure),
    /// The working directory could not be entered, for this error number.
    NoWorkdir(i32),
    /// The program could not be executed, for this error number.
    NotExecuted(i32),
}

/// What the shim answers to [`GateReport::Ready`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Go;

/// The descriptors that a step starts with.
#[derive(Debug)]
pub(crate) struct Stdio {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    gate: OwnedFd,
}

impl TryFrom<Vec<OwnedFd>> for Stdio {
    type Error = io::Error;

    fn try_from(fds: Vec<OwnedFd>) -> io::Result<Self> {
        let [stdin, stdout, stderr, gate] = <[OwnedFd; 4]>::try_from(fds)
            .map_err(|fds| io::Error::other(format!("{} descriptors came", fds.len())))?;
        Ok(Self { stdin, stdout, stderr, gate })
    }
}

/// A process that is confined already, and waits to become the first step.
#[derive(Debug)]
pub(crate) struct Parked {
    pid: Pid,
    control: Channel,
}

/// What a parked process is to become; the descriptors of [`Stdio`] travel along.
#[derive(Debug, Serialize, Deserialize)]
struct Become {
    step: Step,
    user: User,
}

impl Parked {
    /// Forks the process into a user namespace of the container's own, and waits until it is
    /// parked. Answers with the namespace, too. `proc` is the container's `/proc`.
    pub(crate) fn new(inherited: &Inherited<'_>, proc: &Proc) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = wire::pair().at(Stage::Step)?;
        let born = sys::clone_process(inherited.one_thread, Namespaces::USER, None);
        match born.at(Stage::Namespaces)? {
            Fork::Child => {
                drop(ours);
                park(Channel::new(theirs, MAX_FRAME_BYTES), inherited.filters, proc)
            }
            Fork::Parent(pid) => {
                drop(theirs);
                let process = proc.process(pid).at(Stage::Namespaces)?;
                let user_namespace = inherited.slot.map(process.as_fd()).at(Stage::Namespaces)?;
                let mut control = Channel::new(ours, MAX_FRAME_BYTES);
                let (parked, _): (std::result::Result<(), Failure>, _) =
                    control.recv().at(Stage::Step)?;
                parked.map_err(Error::from)?;
                Ok((Self { pid, control }, user_namespace))
            }
        }
    }

    /// Has it become the step; answers with its pid.
    pub(crate) fn release(self, step: Step, user: &User, stdio: &Stdio) -> Result<Pid> {
        let Stdio { stdin, stdout, stderr, gate } = stdio;
        let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), gate.as_fd()];
        self.control.send(&Become { step, user: user.clone() }, &fds).at(Stage::Step)?;
        Ok(self.pid)
    }
}

/// Lives as the parked process, in which nothing of the job is known.
fn park(mut init: Channel, filters: &Filters, proc: &Proc) -> ! {
    let parked = confine_ahead(filters, proc).map_err(Failure::from);
    let told = init.send(&parked, &[]);
    if parked.is_err() || told.is_err() {
        sys::exit(125);
    }
    match init.recv() {
        Ok((Become { step, user }, fds)) => match Stdio::try_from(fds) {
            Ok(stdio) => become_program(&step, &user, stdio),
            Err(_) => sys::exit(125),
        },
        // Thrown away unused.
        Err(_) => sys::exit(0),
    }
}

fn confine_ahead(filters: &Filters, proc: &Proc) -> Result<()> {
    // The root of this process is changed with init's, its directory too if it is the root.
    chdir("/").at(Stage::Step)?;
    // For all that is ever in this namespace, while the files can still be written.
    let user_limits = proc.user_limits().at(Stage::Proc)?;
    forbid_namespaces(user_limits.as_fd()).at(Stage::Privileges)?;
    confine(filters)
}

/// Confines this process, a fork of init, and becomes the program.
pub(crate) fn main(step: &Step, user: &User, stdio: Stdio, filters: &Filters) -> ! {
    match confine(filters) {
        Ok(()) => become_program(step, user, stdio),
        Err(error) => {
            let gate = Channel::new(stdio.gate, MAX_FRAME_BYTES);
            let told = gate.send(&GateReport::Failed(error.into()), &[]);
            sys::exit(if told.is_ok() { 126 } else { 125 })
        }
    }
}

fn confine(filters: &Filters) -> Result<()> {
    sys::let_signals_through();
    rustix::process::setsid().at(Stage::Step)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    narrow_bounding_set().at(Stage::Privileges)?;
    filters.install_on_step().at(Stage::Seccomp)
}

/// Becomes the program, or tells through the gate why not.
fn become_program(step: &Step, user: &User, stdio: Stdio) -> ! {
    let Stdio { stdin, stdout, stderr, gate } = stdio;
    let mut gate = Channel::new(gate, MAX_FRAME_BYTES);
    let report = match set_up([stdin, stdout, stderr], step, user) {
        Ok(program) => program.run(&mut gate),
        Err(error) => GateReport::Failed(error.into()),
    };
    // If the shim is gone, so is the reason to tell.
    let told = gate.send(&report, &[]);
    sys::exit(if told.is_ok() { 126 } else { 125 })
}

fn set_up(stdio: [OwnedFd; 3], step: &Step, user: &User) -> Result<Program> {
    let program = Program::new(step).at(Stage::Step)?;
    let [stdin, stdout, stderr] = stdio;
    rustix::stdio::dup2_stdin(&stdin).at(Stage::Step)?;
    rustix::stdio::dup2_stdout(&stdout).at(Stage::Step)?;
    rustix::stdio::dup2_stderr(&stderr).at(Stage::Step)?;
    set_open_files(step.open_files).at(Stage::Rlimits)?;
    set_ids(user).at(Stage::Privileges)?;
    drop_capabilities(user).at(Stage::Privileges)?;
    Ok(program)
}

fn wait_at(gate: &mut Channel) -> io::Result<()> {
    gate.send(&GateReport::Ready, &[])?;
    let (Go, _) = gate.recv()?;
    // The gate too: closing it tells the shim that the program runs.
    sys::close_on_exec_from(3)
}

/// What execve(2) needs, allocated before the gate.
struct Program {
    /// Where to look, in this order.
    paths: Vec<CString>,
    argv: Vec<CString>,
    envp: Vec<CString>,
    workdir: CString,
}

impl Program {
    fn new(step: &Step) -> io::Result<Self> {
        let c_string = |text: String| {
            CString::new(text).map_err(io::Error::from).context(|| "a NUL in the command".into())
        };
        let name = step.command.first().map_or("", String::as_str);
        let path = step.env.iter().find(|(key, _)| key == "PATH");
        let path = path.map_or(DEFAULT_PATH, |(_, value)| value.as_str());
        let paths = if name.contains('/') {
            vec![name.to_owned()]
        } else {
            path.split(':')
                .filter(|dir| dir.starts_with('/'))
                .map(|d| format!("{d}/{name}"))
                .collect()
        };
        Ok(Self {
            paths: paths.into_iter().map(c_string).collect::<io::Result<_>>()?,
            argv: step.command.iter().cloned().map(c_string).collect::<io::Result<_>>()?,
            envp: step
                .env
                .iter()
                .map(|(key, value)| c_string(format!("{key}={value}")))
                .collect::<io::Result<_>>()?,
            workdir: c_string(step.workdir.clone())?,
        })
    }

    /// Waits at the gate and becomes the program; returns only if that failed, and why.
    fn run(&self, gate: &mut Channel) -> GateReport {
        if let Err(error) = chdir(self.workdir.as_c_str()) {
            return GateReport::NoWorkdir(error.raw_os_error());
        }
        match wait_at(gate) {
            Ok(()) => GateReport::NotExecuted(self.exec()),
            Err(error) => GateReport::NotExecuted(number(&error)),
        }
    }

    /// As execvp(3) does it: the next place is tried where there is no such file, and a file that
    /// may not be executed is reported only if no other is found. Answers with the error number.
    fn exec(&self) -> i32 {
        let mut refused = libc::ENOENT;
        for path in &self.paths {
            match number(&sys::exec(path, &self.argv, &self.envp)) {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => refused = libc::EACCES,
                error => return error,
            }
        }
        refused
    }
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The descriptors in the order that [`Stdio`] expects them.
pub(crate) fn descriptors<'a>(stdio: &'a [OwnedFd; 3], gate: &'a OwnedFd) -> [BorrowedFd<'a>; 4] {
    let [stdin, stdout, stderr] = stdio;
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), gate.as_fd()]
}
