//! A step from its pipes to the gate: forked by init, set up, and waiting for the word to go.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};

use super::container::SET_UP_BOUND;
use super::job::Job;
use super::unrun;
use crate::error::{At as _, Result, Stage};
use crate::orders::{self, Order};
use crate::outcome::StepOutcome;
use crate::spec::StepSpec;
use crate::step::{GateReport, descriptors};
use crate::wire::{self, Channel, MAX_FRAME_BYTES};

/// A step whose process waits at the gate, and the shim's ends of its pipes.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) gate: Channel,
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// What came of launching a step.
#[derive(Debug)]
pub(super) enum Launch {
    /// Its process waits at the gate.
    AtGate(Launched),
    /// It ended before its program could run.
    Ended(StepOutcome),
}

/// Bounds the step's memory and processes, has init fork it, and waits until it is set up.
pub(super) fn launch(job: &mut Job<'_>, index: u16, step: &StepSpec) -> Result<Launch> {
    match job.container.leaf.bound_memory_and_pids(&step.limits) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            return Ok(Launch::Ended(unrun::does_not_fit(job, step)));
        }
        Err(error) => return Err(error).at(Stage::Cgroup),
    }
    match fork_and_set_up(job, step) {
        Ok((launched, None)) => Ok(Launch::AtGate(launched)),
        Ok((_, Some(error))) => {
            job.container.await_ended()?;
            unrun::no_workdir(job, index, step, error).map(Launch::Ended)
        }
        Err(error) => unrun::met_limit(job, step, &error)?.ok_or(error).map(Launch::Ended),
    }
}

/// The step at the gate, or why it could not enter its working directory. The first one's container
/// is built on the way, within that step's limits: init has all its orders at once, and carries
/// them out while this process does its own part.
fn fork_and_set_up(job: &mut Job<'_>, step: &StepSpec) -> Result<(Launched, Option<i32>)> {
    let is_first = !std::mem::replace(&mut job.is_built, true);
    if is_first {
        job.container.order_build(job.spec)?;
    }
    let mut launched = order_run(job, step)?;
    if is_first {
        job.container.await_built()?;
    }
    let no_workdir = await_ready(&mut launched.gate)?;
    Ok((launched, no_workdir))
}

/// Orders init to run the step.
fn order_run(job: &mut Job<'_>, step: &StepSpec) -> Result<Launched> {
    let (stdin_read, stdin) = pipe(End::Write).at(Stage::Step)?;
    let (stdout, stdout_write) = pipe(End::Read).at(Stage::Step)?;
    let (stderr, stderr_write) = pipe(End::Read).at(Stage::Step)?;
    let (gate, gate_of_step) = wire::pair().at(Stage::Step)?;
    let stdio = [stdin_read, stdout_write, stderr_write];
    let (uid, gid) = job.container.host_ids(&job.spec.user);
    for fd in &stdio {
        // Else the program could not open `/dev/stdout`.
        rustix::fs::fchown(fd, Some(uid), Some(gid)).at(Stage::Step)?;
    }
    let order = Order::Run(orders::Step {
        command: step.command.clone(),
        env: step.env.clone(),
        workdir: step.workdir.clone().unwrap_or_else(|| job.spec.workdir.clone()),
        open_files: step.limits.open_files,
    });
    job.container.order(&order, &descriptors(&stdio, &gate_of_step))?;
    Ok(Launched { gate: Channel::new(gate, MAX_FRAME_BYTES), stdin, stdout, stderr })
}

fn await_ready(gate: &mut Channel) -> Result<Option<i32>> {
    match gate.recv_within(SET_UP_BOUND).at(Stage::Step)? {
        (GateReport::Ready, _) => Ok(None),
        (GateReport::NoWorkdir(error), _) => Ok(Some(error)),
        (GateReport::NotExecuted(error), _) => {
            Err(io::Error::from_raw_os_error(error)).at(Stage::Step)
        }
        (GateReport::Failed(failure), _) => Err(failure.into()),
    }
}

/// Which end of a pipe is the shim's own.
#[derive(Debug, Clone, Copy)]
enum End {
    Read,
    Write,
}

/// A pipe whose own end does not block.
fn pipe(own: End) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let end = match own {
        End::Read => &read,
        End::Write => &write,
    };
    rustix::io::ioctl_fionbio(end, true)?;
    Ok((read, write))
}
