//! One step, from its pipes to its outcome: the loop in which the shim waits for whatever comes
//! first and acts on it.
//!
//! ```text
//! fork ── gate: Ready ──▶ read the counters ── Go ──▶ exec ── … ──▶ ended │ killed ──▶ outcome
//! ```

mod ending;
mod sockets;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use self::sockets::SocketWatch;
use super::deadlines::{Timer, soonest_cpu_limit};
use super::job::Job;
use super::launch::{Launch, Launched, launch};
use super::output::{Output, Sink};
use crate::cgroup::Counters;
use crate::clock::{self, millis};
use crate::error::{At as _, Result, Stage};
use crate::handle::Event;
use crate::orders::{Ended, Order, Report};
use crate::outcome::StepOutcome;
use crate::spec::StepSpec;
use crate::step::{GateReport, Go};
use crate::wire::Channel;

/// How long init may take to end a step before it is ended itself.
const KILL_BOUND: Duration = Duration::from_secs(2);
/// How often the OOM counter is looked at after a notice, each time after twice as long: the
/// notice comes before the kill that it tells of.
const OOM_LOOKS: u32 = 8;
const FIRST_OOM_LOOK: Duration = Duration::from_millis(1);

/// Runs one step.
pub(super) fn run(job: &mut Job<'_>, index: u16, step: &StepSpec) -> Result<StepOutcome> {
    let launched = match launch(job, index, step)? {
        Launch::AtGate(launched) => launched,
        Launch::Ended(outcome) => return Ok(outcome),
    };
    job.container.leaf.bound_cpu(&step.limits).at(Stage::Cgroup)?;
    job.container.leaf.reset_peak().at(Stage::Cgroup)?;
    let baseline = job.container.leaf.counters().at(Stage::Cgroup)?;
    launched.gate.send(&Go, &[]).at(Stage::Step)?;
    let at = clock::now();
    job.started.get_or_insert(at);
    job.spool.step_started(index, job.t_ms(), &step.name).at(Stage::Spool)?;
    job.server.tell(&Event::StepStarted { step: index }).at(Stage::Shim)?;
    Running::new(job, (index, step), launched, (at, baseline))?.run()
}

/// What poll(2) can tell about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Server,
    Init,
    InitEnded,
    Gate,
    Stdin,
    Output,
    OutOfMemory,
    Timer,
}

/// A step while its program runs.
struct Running<'j, 's> {
    job: &'j mut Job<'s>,
    index: u16,
    step: &'j StepSpec,
    /// Open until the program was executed.
    gate: Option<Channel>,
    /// Open until all of it was written, or nobody reads any more.
    stdin: Option<OwnedFd>,
    stdin_written: usize,
    output: Output,
    timer: Timer,
    started: Duration,
    baseline: Counters,
    next_cpu_look: Duration,
    /// When to look at the OOM counter, and how often still.
    next_oom_look: Option<(Duration, u32)>,
    /// Looks at the buffers of sockets, which memory does not include.
    sockets: SocketWatch,
    /// What they and memory were when they were too much together.
    memory_with_sockets: Option<u64>,
    /// Why the program could not be executed.
    exec_error: Option<i32>,
    /// How the main process ended, if it was init that told.
    ended: Option<Ended>,
    /// Init is gone, and with it every other process.
    is_init_dead: bool,
    /// What was killed.
    killed: Option<Kill>,
    job_wall_ms: Option<(u64, u64)>,
    cores: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kill {
    /// Init was asked at this time to end the step, so that others can follow.
    Step(Duration),
    /// The whole container was killed.
    Container,
}

impl<'j, 's> Running<'j, 's> {
    fn new(
        job: &'j mut Job<'s>,
        (index, step): (u16, &'j StepSpec),
        launched: Launched,
        (at, baseline): (Duration, Counters),
    ) -> Result<Self> {
        let cores = job.cores;
        let sockets = SocketWatch::new(&job.container, at, baseline.cpu_us).at(Stage::Step)?;
        let Launched { gate, stdin, stdout, stderr } = launched;
        Ok(Self {
            job,
            index,
            step,
            gate: Some(gate),
            stdin: Some(stdin),
            stdin_written: 0,
            output: Output::new(stdout, stderr, step.limits.output_bytes.get()),
            timer: Timer::new().at(Stage::Step)?,
            started: at,
            baseline,
            next_cpu_look: at + soonest_cpu_limit(&step.limits, 0, cores),
            next_oom_look: None,
            sockets,
            memory_with_sockets: None,
            exec_error: None,
            ended: None,
            is_init_dead: false,
            killed: None,
            job_wall_ms: None,
            cores,
        })
    }

    fn run(mut self) -> Result<StepOutcome> {
        self.write_stdin();
        while self.ended.is_none() && !self.is_init_dead {
            self.timer.set(self.nearest_deadline()).at(Stage::Step)?;
            for source in self.wait().at(Stage::Step)? {
                match source {
                    Source::Server => self.serve()?,
                    Source::Init => self.hear_init()?,
                    Source::InitEnded => self.is_init_dead = true,
                    Source::Gate => self.hear_gate(),
                    Source::Stdin => self.write_stdin(),
                    Source::Output => self.pump()?,
                    Source::OutOfMemory => self.notice_oom()?,
                    Source::Timer => {}
                }
            }
            self.meet_deadlines()?;
        }
        self.finish()
    }

    /// Waits until something can be done, and says what.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let watched = self.watched();
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|&(_, fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let ready = watched.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    fn watched(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let container = &self.job.container;
        let (notice, notice_flags) = container.leaf.oom_notice();
        let mut watched = vec![
            (Source::Init, container.init.as_fd(), PollFlags::IN),
            (Source::InitEnded, container.process.as_fd(), PollFlags::IN),
            (Source::OutOfMemory, notice, notice_flags),
            (Source::Timer, self.timer.as_fd(), PollFlags::IN),
        ];
        let output = [&self.output.stdout, &self.output.stderr];
        let pipes = output.into_iter().filter_map(|source| source.pipe());
        watched.extend(pipes.map(|pipe| (Source::Output, pipe, PollFlags::IN)));
        let server = self.job.server.interest();
        watched.extend(server.map(|(fd, flags)| (Source::Server, fd, flags)));
        let gate = self.gate.as_ref();
        watched.extend(gate.map(|gate| (Source::Gate, gate.as_fd(), PollFlags::IN)));
        let stdin = self.stdin.as_ref();
        watched.extend(stdin.map(|stdin| (Source::Stdin, stdin.as_fd(), PollFlags::OUT)));
        watched
    }

    fn serve(&mut self) -> Result<()> {
        self.job.server.send_waiting().at(Stage::Shim)?;
        self.job.server.receive();
        if self.job.server.is_cancelled {
            self.job.is_over = true;
            self.kill_container()?;
        }
        Ok(())
    }

    fn hear_init(&mut self) -> Result<()> {
        match self.job.container.init.try_recv() {
            Ok(Some((Report::Ended(ended), _))) => self.ended = Some(ended),
            Ok(Some((Report::Failed(failure), _))) => return Err(failure.into()),
            Ok(Some((report @ (Report::Prepared | Report::Built), _))) => {
                return Err(io::Error::other(format!("init answered `{report:?}`")))
                    .at(Stage::Init);
            }
            Ok(None) => {}
            // It has ended; its process tells so too.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error).at(Stage::Init),
        }
        Ok(())
    }

    /// The gate tells why there was no exec, or closes because there was.
    fn hear_gate(&mut self) {
        let Some(gate) = &mut self.gate else { return };
        if let Ok(Some((GateReport::NotExecuted(error), _))) = gate.try_recv() {
            self.exec_error = Some(error);
        }
        self.gate = None;
    }

    fn write_stdin(&mut self) {
        while let Some(stdin) = &self.stdin {
            let left = &self.step.stdin[self.stdin_written..];
            if left.is_empty() {
                self.stdin = None;
                return;
            }
            match rustix::io::write(stdin, left) {
                Ok(bytes) => self.stdin_written += bytes,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // Nobody reads it, and nobody has to.
                Err(_) => self.stdin = None,
            }
        }
    }

    fn pump(&mut self) -> Result<()> {
        self.with_output(|output, now, sink| output.pump(now, sink))?;
        if self.output.is_over() && self.step.kills_on_overflow() {
            self.kill()?;
        }
        Ok(())
    }

    /// Lets the output act on the spool, and tells the server if that has grown.
    fn with_output(
        &mut self,
        act: impl FnOnce(&mut Output, Duration, &mut Sink<'_>) -> io::Result<()>,
    ) -> Result<()> {
        let before = self.job.spool.length();
        let t_ms = self.job.t_ms();
        let mut sink = Sink { spool: &mut self.job.spool, step: self.index, t_ms };
        act(&mut self.output, clock::now(), &mut sink).at(Stage::Spool)?;
        match self.job.spool.length() {
            length if length > before => self.job.server.tell_growth(length).at(Stage::Shim),
            _ => Ok(()),
        }
    }

    fn notice_oom(&mut self) -> Result<()> {
        self.job.container.leaf.take_oom_notice().at(Stage::Cgroup)?;
        self.next_oom_look = Some((clock::now(), OOM_LOOKS));
        Ok(())
    }

    fn nearest_deadline(&self) -> Duration {
        let step = self.started + Duration::from_millis(self.step.limits.wall_ms.get());
        let job = self.job.deadline();
        let kill = match self.killed {
            // Nothing is left to be limited; init has a bound of its own.
            Some(Kill::Step(at)) => return at + KILL_BOUND,
            Some(Kill::Container) => Duration::MAX,
            None => self.sockets.next_look.min(self.next_cpu_look),
        };
        [self.output.stdout.flush_at, self.output.stderr.flush_at]
            .into_iter()
            .flatten()
            .chain(self.next_oom_look.map(|(at, _)| at))
            .chain([step, job, kill])
            .min()
            .unwrap_or(step)
    }

    fn meet_deadlines(&mut self) -> Result<()> {
        let now = clock::now();
        self.with_output(|output, now, sink| output.flush_due(now, sink))?;
        if let Some(Kill::Step(at)) = self.killed
            && now >= at + KILL_BOUND
        {
            return self.kill_container();
        }
        if let Some((at, looks)) = self.next_oom_look
            && now >= at
        {
            self.look_for_oom(now, looks)?;
        }
        if self.killed.is_some() {
            return Ok(());
        }
        if now >= self.next_cpu_look {
            self.look_at_cpu(now)?;
        }
        self.look_at_sockets(now)?;
        if now >= self.started + Duration::from_millis(self.step.limits.wall_ms.get()) {
            self.kill()?;
        }
        if now >= self.job.deadline() {
            let ran = self.job.started.map_or(Duration::ZERO, |started| now - started);
            self.job_wall_ms = Some((millis(ran), self.job.spec.job_wall_ms.get()));
            self.job.is_over = true;
            self.kill_container()?;
        }
        Ok(())
    }

    fn look_for_oom(&mut self, now: Duration, looks: u32) -> Result<()> {
        if self.job.container.leaf.oom_kills().at(Stage::Cgroup)? > self.baseline.oom_kills {
            self.next_oom_look = None;
            self.job.is_over = true;
            return self.kill_container();
        }
        self.next_oom_look = looks
            .checked_sub(1)
            .map(|left| (now + FIRST_OOM_LOOK * 2_u32.pow(OOM_LOOKS - looks), left));
        Ok(())
    }

    fn look_at_cpu(&mut self, now: Duration) -> Result<()> {
        let used = self.job.container.leaf.cpu_us().at(Stage::Cgroup)?;
        let used = used.saturating_sub(self.baseline.cpu_us);
        if used >= self.step.limits.cpu_ms.get().saturating_mul(1000) {
            return self.kill();
        }
        self.next_cpu_look = now + soonest_cpu_limit(&self.step.limits, used, self.cores);
        Ok(())
    }

    /// Ends the step; the container too, unless another step may need it.
    fn kill(&mut self) -> Result<()> {
        if self.killed.is_some() {
            return Ok(());
        }
        if !self.job.may_go_on(self.index) {
            return self.kill_container();
        }
        self.killed = Some(Kill::Step(clock::now()));
        self.job.container.leaf.lift_cpu().at(Stage::Cgroup)?;
        self.job.container.order(&Order::Kill, &[])
    }

    fn kill_container(&mut self) -> Result<()> {
        self.killed = Some(Kill::Container);
        self.job.is_over = true;
        self.job.container.kill()
    }
}
