//! The process outside a container that answers for it: makes it, enforces its limits, writes its
//! output down, decides its verdict, removes it. It is a session of its own and outlives the
//! server; if it dies itself, the container dies with it.
//!
//! ```text
//! made ── prepared, waits ── Start ──▶ runs its steps ──▶ torn down ── Acknowledge ──▶ forgotten
//!              └── server gone ──▶ torn down                  └── server gone ──▶ outcome is kept
//! ```

mod container;
mod deadlines;
mod job;
mod launch;
mod output;
mod running;
mod server;
mod unrun;
mod verdict;
mod volumes;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use self::container::Container;
use self::job::{Job, verdict_of};
use self::server::{Kept, Server};
use self::unrun::not_run;
use crate::cgroup::{self, Birth};
use crate::container::idmap::Slot;
use crate::container::proc::Covers;
use crate::container::seccomp::Filters;
use crate::error::{At as _, Error, Result, Stage};
use crate::handle::Event;
use crate::inherited::Inherited;
use crate::init;
use crate::outcome::{Outcome, StepOutcome, Verdict};
use crate::run_dir::RunDirectory;
use crate::settings::Settings;
use crate::spec::{ContainerSpec, StepSpec, WhenAlone};
use crate::spool::SpoolWriter;
use crate::sys::{self, Fork, Namespaces, OneThread};
use crate::wire::{Channel, MAX_SPEC_BYTES};

/// How long a container whose job has ended is left alone while the server stores how.
const STORE_BOUND: Duration = Duration::from_millis(20);

/// What a shim has from the zygote.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) cgroup: cgroup::Parent,
    pub(crate) filters: Filters,
    pub(crate) covers: Covers,
    /// CPUs that containers have: what one can use at most at one time.
    pub(crate) cores: u64,
    pub(crate) one_thread: OneThread,
}

/// Lives as the shim of the container `id`.
pub(crate) fn main(id: &str, socket: OwnedFd, shared: &Shared) -> ! {
    let code = match live(id, socket, shared) {
        Ok(()) => 0,
        Err(error) => {
            // Neither the server nor a log is within reach any more; what is left over is found
            // by the zygote, because of the exit code.
            let text = format!("lazaret: shim {id}: {error}\n");
            i32::from(rustix::io::write(rustix::stdio::stderr(), text.as_bytes()).is_ok()) + 1
        }
    };
    sys::exit(code)
}

fn live(id: &str, socket: OwnedFd, shared: &Shared) -> Result<()> {
    detach().at(Stage::Shim)?;
    let mut server = Server::new(Channel::new(socket, MAX_SPEC_BYTES));
    let directory = RunDirectory::create(&shared.settings.run_dir, id).at(Stage::RunDirectory)?;
    let container = match ground(id, &directory, shared) {
        Ok(ground) => match ground.fork_init(&shared.one_thread)? {
            Side::Shim(container) => await_prepared(container),
            Side::Init(ground, socket) => {
                drop(server);
                ground.become_init(socket, shared)
            }
        },
        Err(error) => Err(error),
    };
    let init = container.as_ref().ok().map(|container| container.process.as_fd());
    let Some((spec, spool)) = server.await_start(init).at(Stage::Shim)? else {
        if let Ok(container) = container {
            container.tear_down()?;
        }
        return directory.remove().at(Stage::RunDirectory);
    };
    directory.set_label(&spec.label).at(Stage::RunDirectory)?;
    let container = container.and_then(|container| take_volumes(container, (id, &spec), shared));
    let (outcome, container) = run(container, (&spec, spool), &mut server, shared.cores);
    // Nothing of the job runs any more, so what is left may wait a moment: removing it would only
    // take the CPU from the server while that stores the outcome, and the client waits for that.
    let upper = match &container {
        // Whoever wants it hears that it is not there; the outcome is known all the same.
        Some(container) if outcome.verdict == Verdict::Success => container.upper(),
        Some(_) | None => None,
    };
    server.tell_with(&Event::Finished(outcome.clone()), upper).at(Stage::Shim)?;
    let kept = server.await_acknowledgement(Some(STORE_BOUND)).at(Stage::Shim)?;
    // If this fails the zygote sees to it, because of the exit code.
    let removed = container.map_or(Ok(()), Container::tear_down);
    let kept = match kept {
        Kept::NotYet => server.await_acknowledgement(None).at(Stage::Shim)?,
        Kept::ByServer | Kept::ByNobody => kept,
    };
    if kept != Kept::ByServer && spec.when_alone == WhenAlone::GoesOn {
        directory.keep(&outcome).at(Stage::RunDirectory)?;
        return removed;
    }
    removed?;
    directory.remove().at(Stage::RunDirectory)
}

/// Leaves the server's session, and its terminal but for stderr.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    sys::name_process(c"lazaret-shim")?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

/// What a container stands on before it has a process.
struct Ground {
    leaf: cgroup::Leaf,
    birth: Birth,
    slot: Slot,
    staging: std::path::PathBuf,
}

/// Which side of the fork of init this is.
enum Side {
    Shim(Container),
    Init(Ground, OwnedFd),
}

fn ground(id: &str, directory: &RunDirectory, shared: &Shared) -> Result<Ground> {
    let hint = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
    let slot = Slot::take(Path::new(&shared.settings.ids_dir), hint).at(Stage::Ids)?;
    let staging = directory.path().to_owned();
    let leaf = shared.cgroup.make_leaf(id);
    match leaf.and_then(|leaf| Ok((leaf.birth()?, leaf))) {
        Ok((birth, leaf)) => Ok(Ground { leaf, birth, slot, staging }),
        Err(error) => {
            // It may be there in some of the hierarchies.
            shared.cgroup.sweep(id).at(Stage::Cgroup)?;
            Err(error).at(Stage::Cgroup)
        }
    }
}

impl Ground {
    fn fork_init(self, one_thread: &OneThread) -> Result<Side> {
        let (ours, theirs) = crate::wire::pair().at(Stage::Init)?;
        let cgroup = match &self.birth {
            Birth::Into(directory) => Some(directory.as_fd()),
            Birth::Enter(_) => None,
        };
        match sys::clone_process(one_thread, Namespaces::CONTAINER, cgroup).at(Stage::Namespaces)? {
            Fork::Child => Ok(Side::Init(self, theirs)),
            Fork::Parent(pid) => {
                Container::new(self.leaf, self.slot, (ours, pid)).at(Stage::Init).map(Side::Shim)
            }
        }
    }

    fn become_init(self, socket: OwnedFd, shared: &Shared) -> ! {
        let Self { leaf, birth, slot, staging } = self;
        // The shim's: PID 1 has no business with the files of its cgroup.
        drop(leaf);
        let inherited = Inherited {
            filters: &shared.filters,
            one_thread: &shared.one_thread,
            covers: &shared.covers,
            staging: &staging,
            slot: &slot,
        };
        init::main(Channel::new(socket, crate::wire::MAX_FRAME_BYTES), birth, &inherited)
    }
}

fn await_prepared(mut container: Container) -> Result<Container> {
    match container.await_prepared() {
        Ok(()) => Ok(container),
        Err(error) => {
            container.tear_down()?;
            Err(error)
        }
    }
}

/// The container with its volumes; without them there is none.
fn take_volumes(
    mut container: Container,
    (id, spec): (&str, &ContainerSpec),
    shared: &Shared,
) -> Result<Container> {
    match container.take_volumes((id, spec), &shared.cgroup).at(Stage::Volumes) {
        Ok(()) => Ok(container),
        Err(error) => {
            container.tear_down()?;
            // A throttle may have been made in part.
            shared.cgroup.sweep(id).at(Stage::Cgroup)?;
            Err(error)
        }
    }
}

/// Runs the job; what fails on the way is a fault. Answers with the container, of whose processes
/// none but init is left, if there was one.
fn run(
    container: Result<Container>,
    (spec, spool): (&ContainerSpec, OwnedFd),
    server: &mut Server,
    cores: u64,
) -> (Outcome, Option<Container>) {
    let container = match container {
        Ok(container) => container,
        Err(error) => return (fault(spec, Vec::new(), &error), None),
    };
    let mut job = Job {
        container,
        spec,
        spool: SpoolWriter::new(spool),
        server,
        cores,
        started: None,
        is_built: false,
        steps: Vec::new(),
        is_over: false,
        is_cut_short: false,
    };
    let ran = job.run();
    let Job { mut container, steps, is_cut_short, .. } = job;
    // After a fault a step may still run.
    let ran = ran.or_else(|error| container.end().and(Err(error)));
    let outcome = match ran {
        Ok(()) if is_cut_short => Outcome { verdict: last_failure(&steps), steps, detail: None },
        Ok(()) => Outcome { verdict: verdict_of(spec, &steps), steps, detail: None },
        Err(error) => fault(spec, steps, &error),
    };
    (outcome, Some(container))
}

/// The verdict of a job that could not go on: that of the step at which the container ended, even
/// if that one was allowed to fail.
fn last_failure(steps: &[StepOutcome]) -> Verdict {
    let mut ended = steps.iter().rev().map(|step| step.verdict);
    ended.find(|verdict| *verdict != Verdict::Skipped).unwrap_or(Verdict::Fault)
}

/// The outcome of a container that failed us: the step that was to end next is the fault.
fn fault(spec: &ContainerSpec, mut steps: Vec<StepOutcome>, error: &Error) -> Outcome {
    let detail = error.to_string();
    if let Some(next) = spec.steps.get(steps.len()) {
        let step = not_run(next, Verdict::Fault);
        steps.push(StepOutcome { detail: Some(detail.clone()), ..step });
    }
    let rest = spec.steps.iter().skip(steps.len());
    steps.extend(rest.map(|step| not_run(step, Verdict::Skipped)));
    Outcome { verdict: Verdict::Fault, steps, detail: Some(detail) }
}

impl Job<'_> {
    fn run(&mut self) -> Result<()> {
        let spec = self.spec;
        for (index, step) in spec.steps.iter().enumerate() {
            let index = u16::try_from(index).map_err(io::Error::other).at(Stage::Step)?;
            let outcome = self.run_or_leave_out(index, step)?;
            self.end_step(index, outcome)?;
        }
        Ok(())
    }

    fn run_or_leave_out(&mut self, index: u16, step: &StepSpec) -> Result<StepOutcome> {
        self.server.receive();
        if !self.is_due(step) {
            return Ok(not_run(step, Verdict::Skipped));
        }
        if self.is_over {
            self.is_cut_short = true;
            return Ok(not_run(step, Verdict::Skipped));
        }
        if self.server.is_cancelled {
            self.is_over = true;
            return Ok(not_run(step, Verdict::Cancelled));
        }
        running::run(self, index, step)
    }

    fn end_step(&mut self, index: u16, outcome: StepOutcome) -> Result<()> {
        let t_ms = self.t_ms();
        self.spool.step_ended(index, t_ms, &outcome).at(Stage::Spool)?;
        let event = Event::StepEnded { step: index, outcome: outcome.clone() };
        self.server.tell(&event).at(Stage::Shim)?;
        self.steps.push(outcome);
        Ok(())
    }
}
