//! The desk: takes jobs in, starts them when there is room, ends them when that is asked.
//!
//! ```text
//! submit ─▶ scheduler: room now? ─ yes ─▶ store (running) and, beside it, attempt
//!                                 └ no ─▶ store (queued) ─▶ waits ─▶ pump ─▶ claim ─▶ attempt
//! attempt ended ─▶ store ─▶ wake who waits ─▶ shim may forget ─▶ room is free ─▶ pump
//! ```
//!
//! Everything that must not be torn by a client that leaves runs on the tracker, not in the
//! client's request.

mod attempt;
mod commit;
mod recover;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lazaret_sandbox::outcome::{Outcome, Verdict};
use lazaret_sandbox::volume::{self, VolumeName};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::attempt::Acceptance;
use crate::clock;
use crate::holds::{Held, Holds};
use crate::job::{Inputs, JobEnd, JobId, JobSpec, State, seq};
use crate::live::{Live, LiveJob};
use crate::runner::{Claimed, Runner};
use crate::scheduler::{Admission, Scheduler};
use crate::store::{Effect, Entry, IdempotencyKey, NewJob, Store, StoreError};

/// The desk. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Dispatch(Arc<Inner>);

/// What the desk works with.
#[derive(Debug)]
struct Inner {
    store: Store,
    runner: Arc<Runner>,
    live: Arc<Live>,
    holds: Holds,
    scheduler: Mutex<Scheduler>,
    /// Attempts, and requests that must not be torn.
    tracker: TaskTracker,
    /// Cancelled: take no job, start no job, let the running ones end.
    drain: CancellationToken,
}

/// A checked job that asks to be taken in.
#[derive(Debug)]
pub struct Submission {
    /// What it asks for.
    pub spec: JobSpec,
    /// What it brings along.
    pub inputs: Inputs,
    /// The client's key against sending it twice.
    pub idempotency: Option<IdempotencyKey>,
}

/// What became of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// It is a new job, and durable.
    New(JobId),
    /// It was sent before, and is this job.
    Replayed(JobId),
}

/// Why a job was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// As many wait as may.
    #[error("the queue is full")]
    Full,
    /// The server is stopping.
    #[error("the server is draining")]
    Draining,
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// The image was removed since the job was checked.
    #[error("there is no image `{0}` any more")]
    ImageGone(String),
    /// The images could not be read.
    #[error(transparent)]
    Images(#[from] lazaret_sandbox::image::Error),
    /// A volume was removed since the job was checked.
    #[error("there is no volume `{0}` any more")]
    VolumeGone(VolumeName),
    /// The volumes could not be read.
    #[error(transparent)]
    Volumes(#[from] volume::Error),
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a job was not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// What it wrote could not be removed, and would never be found again without the job.
    #[error("could not remove the log of a job: {0}")]
    Files(#[source] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What asking for the end of a job did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It ends, or has ended just now.
    Asked,
    /// Nothing: it had finished before.
    AlreadyFinished,
    /// Nothing: there is no such job.
    NotFound,
}

/// What asking to forget a job did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is forgotten.
    Done,
    /// Nothing: it is not finished.
    Unfinished,
    /// Nothing: there is no such job.
    NotFound,
}

impl Dispatch {
    /// A desk with an empty queue. Its tasks run on `tracker`.
    #[must_use]
    pub fn new(
        store: Store,
        runner: Arc<Runner>,
        scheduler: Scheduler,
        tracker: TaskTracker,
        drain: CancellationToken,
    ) -> Self {
        let live = Arc::new(Live::default());
        let scheduler = Mutex::new(scheduler);
        let holds = Holds::default();
        Self(Arc::new(Inner { store, runner, live, holds, scheduler, tracker, drain }))
    }

    /// The jobs that are not finished.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.0.live
    }

    /// Takes a job in. When this answers, the job is durable.
    ///
    /// # Errors
    /// As [`SubmitError`]; then there is no job.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, SubmitError> {
        // First: what was taken in before needs no room, and is told by a draining server, too.
        if let Some(key) = &submission.idempotency {
            match self.0.store.job_of_key(key).await? {
                Some(Effect::Replayed(first)) => return Ok(Submitted::Replayed(first)),
                Some(Effect::KeyReused) => return Err(SubmitError::KeyReused),
                Some(Effect::Done | Effect::Finished(_) | Effect::WrongState) | None => {}
            }
        }
        if self.0.drain.is_cancelled() {
            return Err(SubmitError::Draining);
        }
        let inner = Arc::clone(&self.0);
        let task = self.0.tracker.spawn(async move { inner.submit(submission).await });
        task.await.map_err(|_panicked| StoreError::Closed)?
    }

    /// Asks for the end of a job.
    ///
    /// # Errors
    /// If the store fails; then the job goes on.
    pub async fn cancel(&self, id: JobId) -> Result<Cancelled, StoreError> {
        let inner = Arc::clone(&self.0);
        let task = self.0.tracker.spawn(async move { inner.cancel(id).await });
        task.await.map_err(|_panicked| StoreError::Closed)?
    }

    /// Forgets a finished job and all it wrote.
    ///
    /// # Errors
    /// As [`DeleteError`]; then the job is still there.
    pub async fn delete(&self, id: JobId) -> Result<Deleted, DeleteError> {
        let inner = Arc::clone(&self.0);
        let task = self.0.tracker.spawn(async move { inner.delete(id).await });
        task.await.map_err(|_panicked| StoreError::Closed)?
    }

    /// Takes up what a predecessor left unfinished, with the outcomes of attempts that ended after
    /// it did. Called once, before anything is served.
    ///
    /// # Errors
    /// If the store or the spools cannot be read.
    pub async fn recover(
        &self,
        outcomes: HashMap<(JobId, u32), Outcome>,
    ) -> Result<(), recover::RecoverError> {
        self.0.recover(outcomes).await?;
        self.0.pump();
        self.0.fill_pool();
        Ok(())
    }
}

impl Inner {
    async fn submit(self: &Arc<Self>, submission: Submission) -> Result<Submitted, SubmitError> {
        let (id, demand) = (JobId::generate(), submission.spec.demand());
        let held = self.hold(&submission.spec)?;
        let entry = match self.scheduler().admit(id, demand) {
            Admission::Now => Entry::Claimed,
            Admission::Later => Entry::Queued,
            Admission::Full => return Err(SubmitError::Full),
        };
        let Submission { spec, inputs, idempotency } = submission;
        let (priority, spec, inputs) = (spec.priority, Arc::new(spec), Arc::new(inputs));
        let new = NewJob {
            id,
            spec: Arc::clone(&spec),
            inputs: Arc::clone(&inputs),
            created_at: clock::now(),
            entry,
            idempotency,
        };
        match entry {
            Entry::Claimed => {
                let claimed = Claimed { id, attempt: 1, spec, inputs };
                self.start_with_insert(new, claimed, held).await
            }
            Entry::Queued => {
                // What waits is not held, and read when it starts.
                drop((spec, inputs));
                self.live.enter(id, (State::Queued, 0), held);
                let submitted = as_submitted(id, self.store.insert(new).await);
                if !matches!(submitted, Ok(Submitted::New(_))) {
                    self.live.discard(id);
                    self.scheduler().abandon();
                    return submitted;
                }
                self.scheduler().wait(id, priority, demand);
                self.pump();
                submitted
            }
        }
    }

    /// Holds what a job needs.
    fn hold(&self, spec: &JobSpec) -> Result<Held, SubmitError> {
        let image = self.holds.take(&self.runner.images, &spec.image)?;
        let image = image.ok_or_else(|| SubmitError::ImageGone(spec.image.name.clone()))?;
        let volumes = spec.volume_names().map(|name| {
            let volume = self.holds.take_volume(&self.runner.volumes.store, name)?;
            volume.ok_or_else(|| SubmitError::VolumeGone(name.clone()))
        });
        Ok(Held { image: Some(image), volumes: volumes.collect::<Result<_, _>>()? })
    }

    /// Starts a job while its insert is on the way to the disk: the longest wait of a small job is
    /// for that. If the insert fails, nothing of the job is left and nobody was told of it; after a
    /// crash in between, its container is an orphan like others, and its end is no job's.
    async fn start_with_insert(
        self: &Arc<Self>,
        new: NewJob,
        claimed: Claimed,
        held: Held,
    ) -> Result<Submitted, SubmitError> {
        let id = new.id;
        // Before the store can have it: who finds it there must not miss what follows.
        let job = self.live.enter(id, (State::Running, 1), held);
        let begun = match self.store.begin_insert(new).await {
            Ok(begun) => begun,
            Err(error) => {
                self.live.discard(id);
                self.scheduler().release(id);
                return Err(error.into());
            }
        };
        let (stored, acceptance) = oneshot::channel();
        self.start(claimed, job.clone(), Acceptance::Pending(acceptance));
        let submitted = as_submitted(id, begun.done().await);
        match submitted {
            // The attempt has the receiver until it has heard of this.
            Ok(Submitted::New(_)) => drop(stored.send(())),
            Ok(Submitted::Replayed(_)) | Err(_) => {
                self.live.discard(id);
                job.cancel.cancel();
            }
        }
        submitted
    }

    async fn cancel(self: &Arc<Self>, id: JobId) -> Result<Cancelled, StoreError> {
        // A job may move on between two questions, but only forward, or back once: a retry.
        const MAX_TURNS: usize = 4;
        for _ in 0..MAX_TURNS {
            let Some(job) = self.store.job(id).await? else { return Ok(Cancelled::NotFound) };
            let effect = match job.state {
                State::Finished => return Ok(Cancelled::AlreadyFinished),
                State::Queued => self.cancel_queued(id, job.attempt).await?,
                State::Running => self.cancel_running(id).await?,
            };
            if effect == Effect::Done {
                return Ok(Cancelled::Asked);
            }
        }
        Ok(Cancelled::AlreadyFinished)
    }

    async fn cancel_queued(
        self: &Arc<Self>,
        id: JobId,
        attempt: u32,
    ) -> Result<Effect, StoreError> {
        let end = JobEnd::without_steps(Verdict::Cancelled, None, seq(attempt + 1, 1));
        let effect = self.store.finish_queued(id, end, clock::now()).await?;
        if effect == Effect::Done {
            self.scheduler().withdraw(id);
            self.live.leave(id, attempt);
            self.pump();
        }
        Ok(effect)
    }

    async fn cancel_running(&self, id: JobId) -> Result<Effect, StoreError> {
        // The store first: after a crash in between the job must not be run once more.
        let effect = self.store.request_cancel(id).await?;
        if effect == Effect::Done
            && let Some(job) = self.live.get(id)
        {
            job.changed();
            job.cancel.cancel();
        }
        Ok(effect)
    }

    async fn delete(&self, id: JobId) -> Result<Deleted, DeleteError> {
        match self.store.job(id).await? {
            None => return Ok(Deleted::NotFound),
            Some(job) if job.state != State::Finished => return Ok(Deleted::Unfinished),
            Some(_) => {}
        }
        // The files first: after a crash in between the job can be deleted once more, while files
        // without a job would never be found.
        self.runner.files.remove(id).map_err(DeleteError::Files)?;
        Ok(match self.store.delete(id).await? {
            Effect::Done => Deleted::Done,
            Effect::Finished(_) | Effect::WrongState | Effect::Replayed(_) | Effect::KeyReused => {
                Deleted::NotFound
            }
        })
    }

    /// Starts every waiting job that there is room for.
    fn pump(self: &Arc<Self>) {
        while !self.drain.is_cancelled() {
            let Some(id) = self.scheduler().start_next() else { return };
            let inner = Arc::clone(self);
            self.tracker.spawn(async move { inner.claim(id).await });
        }
    }

    /// Runs an attempt of a job that the store has, or is about to have, as running.
    fn start(self: &Arc<Self>, claimed: Claimed, job: LiveJob, acceptance: Acceptance) {
        let inner = Arc::clone(self);
        self.tracker.spawn(async move { inner.attempt(claimed, job, acceptance).await });
    }

    fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the store's answer to an insert means for whoever sent the job.
fn as_submitted(id: JobId, stored: Result<Effect, StoreError>) -> Result<Submitted, SubmitError> {
    match stored? {
        Effect::Done => Ok(Submitted::New(id)),
        Effect::Replayed(first) => Ok(Submitted::Replayed(first)),
        Effect::KeyReused | Effect::WrongState | Effect::Finished(_) => Err(SubmitError::KeyReused),
    }
}
