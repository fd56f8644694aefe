//! The process that becomes the untrusted program: from the fork to the exec.
//!
//! ```text
//! session → limits → ids → capabilities, no_new_privs → seccomp │ gate │ workdir → exec
//! ```
//!
//! The order is fixed: ids need a capability, capabilities have to go before `no_new_privs` can
//! vouch for it, the filters forbid what the stages before them do. At the gate the shim reads
//! the counters and starts the clock, so that nothing to the left of it is charged to the program.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::chdir;
use serde::{Deserialize, Serialize};

use crate::container::privileges::{drop_capabilities, set_ids};
use crate::container::rlimits::set_limits;
use crate::container::seccomp::Filters;
use crate::error::{At as _, Context as _, Result, Stage};
use crate::init::{Failure, Step};
use crate::spec::User;
use crate::sys;
use crate::wire::{Channel, MAX_FRAME_BYTES};

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

/// Becomes the program, or tells through the gate why not.
pub(crate) fn main(step: &Step, user: &User, stdio: Stdio, filters: &Filters) -> ! {
    let Stdio { stdin, stdout, stderr, gate } = stdio;
    let mut gate = Channel::new(gate, MAX_FRAME_BYTES);
    let report = match set_up([stdin, stdout, stderr], step, user, filters) {
        Ok(program) => program.run(&mut gate),
        Err(error) => GateReport::Failed(error.into()),
    };
    // If the shim is gone, so is the reason to tell.
    let told = gate.send(&report, &[]);
    sys::exit(if told.is_ok() { 126 } else { 125 })
}

fn set_up(stdio: [OwnedFd; 3], step: &Step, user: &User, filters: &Filters) -> Result<Program> {
    let program = Program::new(step).at(Stage::Step)?;
    sys::reset_signals();
    rustix::process::setsid().at(Stage::Step)?;
    let [stdin, stdout, stderr] = stdio;
    rustix::stdio::dup2_stdin(&stdin).at(Stage::Step)?;
    rustix::stdio::dup2_stdout(&stdout).at(Stage::Step)?;
    rustix::stdio::dup2_stderr(&stderr).at(Stage::Step)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    set_limits(step.open_files).at(Stage::Rlimits)?;
    set_ids(user).at(Stage::Privileges)?;
    drop_capabilities(user).at(Stage::Privileges)?;
    filters.install_on_step().at(Stage::Seccomp)?;
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
pub(crate) fn descriptors<'a>(
    stdio: &'a [OwnedFd; 3],
    gate: &'a OwnedFd,
) -> [std::os::fd::BorrowedFd<'a>; 4] {
    let [stdin, stdout, stderr] = stdio;
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), gate.as_fd()]
}
