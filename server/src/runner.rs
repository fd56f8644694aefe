//! One attempt of a job, from claim to outcome: the only caller of the sandbox.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lazaret_sandbox::image::{ImageName, ImageStore};
use lazaret_sandbox::outcome::{Outcome, Verdict};
use lazaret_sandbox::{Container, Event};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::commit::{self, Written};
use crate::holds;
use crate::job::{self, Inputs, JobEnd, JobId, JobSpec};
use crate::live::LiveJob;
use crate::logs::LogFiles;
use crate::logs::harvest::{self, Harvest};
use crate::pool::Pool;
use crate::store::KeptLog;
use crate::volumes::{NotShown, Volumes};

/// How long a container that was given up may take to end before its room is given away although
/// it may still take it: only a shim that hangs needs longer, and no wait mends that. Never longer
/// than [`Runner::grace`].
const KILL_GRACE: Duration = Duration::from_secs(10);

/// Bytes that are copied without moving other work off the thread first: that takes longer.
const MAX_INLINE_BYTES: u64 = 64 << 10;

/// What attempts are run with.
#[derive(Debug)]
pub struct Runner {
    /// Has containers.
    pub pool: Pool,
    /// What containers are made of.
    pub images: Arc<ImageStore>,
    /// What else they are shown.
    pub volumes: Arc<Volumes>,
    /// Where they write.
    pub files: LogFiles,
    /// How much longer than its own limit a container may take before its shim is given up.
    pub grace: Duration,
}

/// A job that was claimed for an attempt.
#[derive(Debug)]
pub struct Claimed {
    /// Its name.
    pub id: JobId,
    /// The number of this attempt.
    pub attempt: u32,
    /// What is run.
    pub spec: Arc<JobSpec>,
    /// What it brings along. Shared with the store until that has it.
    pub inputs: Arc<Inputs>,
}

/// An attempt that has ended, and is not stored yet.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub end: JobEnd,
    /// What it wrote.
    pub log: KeptLog,
    /// What waits to hear that this is stored; none if it never lived or died early.
    pub container: Option<Running>,
}

/// A container that runs. Its job holds the layers it stands on.
#[derive(Debug)]
pub struct Running {
    container: Container,
    /// A second descriptor of the container's socket, by which tokio tells when to look: what is
    /// read is read by the container.
    wake: UnixStream,
}

impl Running {
    fn new(mut container: Container) -> io::Result<Self> {
        match wake(&container) {
            Ok(wake) => Ok(Self { container, wake }),
            Err(error) => {
                kill(&mut container, KILL_GRACE);
                Err(error)
            }
        }
    }

    /// Says that the outcome is stored.
    ///
    /// # Errors
    /// If the shim is gone.
    pub fn acknowledge(self) -> lazaret_sandbox::error::Result<()> {
        self.container.acknowledge()
    }

    /// What the container tells next. Nothing is lost if this is dropped halfway.
    async fn next_event(&mut self) -> Result<Event, Fault> {
        loop {
            self.wake.readable().await?;
            let told = self.wake.try_io(Interest::READABLE, || match self.container.try_event() {
                Ok(Some(event)) => Ok(Ok(event)),
                Ok(None) => Err(ErrorKind::WouldBlock.into()),
                Err(error) => Ok(Err(error)),
            });
            match told {
                Ok(told) => return Ok(told?),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn wake(container: &Container) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(container.as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// Ends a container that nobody watches any more, so that its room is free when it is given away.
/// Takes at most `grace`. False if its shim is gone, whose container the zygote ends, or does not
/// answer.
fn kill(container: &mut Container, grace: Duration) -> bool {
    tokio::task::block_in_place(|| kill_blocking(container, grace))
}

fn kill_blocking(container: &mut Container, grace: Duration) -> bool {
    let deadline = Instant::now() + grace;
    let mut next = container.cancel().map(|()| None);
    loop {
        match next {
            Ok(Some(Event::Finished(_))) => return true,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(container = container.id(), %error, "could not see it end");
                return false;
            }
        }
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        next = container.wait_event(u32::try_from(left).unwrap_or(u32::MAX)).map(Some);
    }
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Sandbox(#[from] lazaret_sandbox::error::Error),
    #[error(transparent)]
    Image(#[from] lazaret_sandbox::image::Error),
    #[error("the image `{0}` was removed before the job started")]
    ImageGone(String),
    #[error(transparent)]
    Volume(#[from] NotShown),
    #[error("could not make the spool: {0}")]
    Spool(#[source] io::Error),
    #[error("could not wait for the container: {0}")]
    Wait(#[from] io::Error),
    #[error("the container did not end in time")]
    Late,
}

/// Runs one attempt to its end. Whatever goes wrong is an end, too: a fault. Calls `has_started`
/// when its first program runs.
pub async fn run(
    runner: &Runner,
    claimed: Claimed,
    job: &LiveJob,
    has_started: &(dyn Fn() + Sync),
) -> Ended {
    let (id, attempt, spec) = (claimed.id, claimed.attempt, Arc::clone(&claimed.spec));
    let bound = Duration::from_millis(claimed.spec.job_wall_ms.get()) + runner.grace;
    let (outcome, container) = match start(runner, claimed) {
        Ok(mut running) => {
            let watched = tokio::time::timeout(bound, watch(&mut running, job, has_started)).await;
            match watched.unwrap_or(Err(Fault::Late)) {
                Ok(mut outcome) => {
                    let name = job.take_commit().or_else(|| spec.commit.clone());
                    if let Some(name) = name {
                        commit(runner, &mut running, (&spec, &name), &mut outcome);
                    }
                    (Ok(outcome), Some(running))
                }
                Err(fault) => {
                    let grace = runner.grace.min(KILL_GRACE);
                    let has_ended = kill(&mut running.container, grace);
                    (Err(fault), has_ended.then_some(running))
                }
            }
        }
        Err(fault) => (Err(fault), None),
    };
    let mut harvest = reap_spool(runner, id, attempt);
    let end = match outcome {
        Ok(outcome) => harvest.end(outcome, attempt),
        Err(fault) => {
            tracing::error!(job.id = %id, attempt, error = %fault, "an attempt failed");
            JobEnd {
                verdict: Verdict::Fault,
                steps: harvest.ended_steps(),
                detail: Some(fault.to_string()),
                last_seq: harvest.last_seq(attempt),
            }
        }
    };
    Ended { end, log: harvest.log, container }
}

/// Starts the container. In place, not on a thread of its own: a container that waits for this is
/// started in less time than it takes to wake a thread. Only where one has to be made, or large
/// files are handed over, the runtime moves what else this thread had to do.
fn start(runner: &Runner, claimed: Claimed) -> Result<Running, Fault> {
    let is_quick = claimed.inputs.total_bytes() <= MAX_INLINE_BYTES && !runner.pool.is_empty();
    let container = if is_quick {
        start_blocking(runner, claimed)?
    } else {
        tokio::task::block_in_place(|| start_blocking(runner, claimed))?
    };
    Ok(Running::new(container)?)
}

fn start_blocking(runner: &Runner, claimed: Claimed) -> Result<Container, Fault> {
    let Claimed { id, attempt, spec, inputs } = claimed;
    let spool: File = runner.files.create_spool(id, attempt).map_err(Fault::Spool)?;
    let image = holds::find(&runner.images, &spec.image)?;
    let image = image.ok_or_else(|| Fault::ImageGone(spec.image.name.clone()))?;
    let volumes = runner.volumes.mounts(&spec.volumes)?;
    let mut container = runner.pool.take()?;
    let inputs = Arc::unwrap_or_clone(inputs);
    let mounts = (runner.images.rootfs(&image), volumes);
    let asked = spec.container(job::attempt_name(id, attempt), mounts, inputs);
    container.start(asked, spool.as_fd())?;
    Ok(container)
}

/// Makes an image of what the container wrote.
fn commit(
    runner: &Runner,
    running: &mut Running,
    (spec, name): (&JobSpec, &ImageName),
    outcome: &mut Outcome,
) {
    tokio::task::block_in_place(|| {
        let base = holds::find(&runner.images, &spec.image).unwrap_or_else(|error| {
            tracing::error!(%error, "could not find the image of a job");
            None
        });
        let (upper, disk_bytes) = (running.container.take_upper(), spec.disk_bytes);
        commit::commit(&runner.images, Written { upper, base, disk_bytes }, name, outcome);
    });
}

/// Passes on what the container tells until it tells its outcome, and the wish for its end.
async fn watch(
    running: &mut Running,
    job: &LiveJob,
    has_started: &(dyn Fn() + Sync),
) -> Result<Outcome, Fault> {
    let mut is_cancelled = false;
    loop {
        tokio::select! {
            event = running.next_event() => match event? {
                Event::Finished(outcome) => return Ok(outcome),
                event @ (Event::Output { .. }
                | Event::StepStarted { .. }
                | Event::StepEnded { .. }) => {
                    job.grew();
                    if matches!(event, Event::StepStarted { step: 0 }) {
                        has_started();
                    }
                }
            },
            () = job.cancel.cancelled(), if !is_cancelled => {
                running.container.cancel()?;
                is_cancelled = true;
            }
        }
    }
}

/// Reads what the attempt wrote. If that fails the verdict still counts, and the spool stays
/// where it is and is read as it is.
fn reap_spool(runner: &Runner, id: JobId, attempt: u32) -> Harvest {
    let harvest = || harvest::harvest(&runner.files, id, attempt);
    let is_quick =
        runner.files.spool_bytes(id, attempt).is_ok_and(|bytes| bytes <= MAX_INLINE_BYTES);
    let harvest = if is_quick { harvest() } else { tokio::task::block_in_place(harvest) };
    harvest.unwrap_or_else(|error| {
        tracing::error!(job.id = %id, attempt, %error, "could not keep the log");
        Harvest::lost()
    })
}
