//! What memory knows of the jobs that are not finished: who waits for them, and how to stop them.
//! Never the truth: the store and the spool are. This only wakes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lazaret_sandbox::image::ImageName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::holds::Held;
use crate::job::{Job, JobId, State};

/// Where an unfinished job is, as far as waking needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Its state, never ahead of the store.
    pub state: State,
    /// Its attempt, never ahead of the store.
    pub attempt: u32,
    /// Rises with every change that the store has.
    pub changes: u32,
    /// What the store said when it finished the job, for those who wait for that: they need not ask
    /// once more.
    pub finished: Option<Arc<Job>>,
}

/// A job that is not finished.
#[derive(Debug, Clone)]
pub struct LiveJob {
    progress: Arc<watch::Sender<Progress>>,
    /// What it needs, which stays until the job has ended.
    _held: Held,
    /// Cancelled when the client wants the job to end.
    pub cancel: CancellationToken,
    /// What an image is called that is made of what it writes, if that was asked for after the job
    /// was made.
    commit: Arc<Mutex<Wish>>,
}

/// A wish that can come until it is carried out.
#[derive(Debug, Default)]
struct Wish {
    name: Option<ImageName>,
    is_too_late: bool,
}

impl LiveJob {
    /// Tells that the store now has the job in this state.
    pub fn moved(&self, state: State, attempt: u32) {
        if state == State::Queued {
            // The next attempt is in time for everything; what was asked for, the store has.
            *self.commit.lock().unwrap_or_else(PoisonError::into_inner) = Wish::default();
        }
        self.progress.send_modify(|progress| {
            let changes = progress.changes.wrapping_add(1);
            *progress = Progress { state, attempt, changes, finished: None };
        });
    }

    fn finished(&self, job: Job) {
        self.progress.send_modify(|progress| {
            let changes = progress.changes.wrapping_add(1);
            let (state, attempt) = (job.state, job.attempt);
            *progress = Progress { state, attempt, changes, finished: Some(Arc::new(job)) };
        });
    }

    /// Asks for an image to be made of what the job writes. False if that is too late.
    #[must_use]
    pub fn wish_commit(&self, name: ImageName) -> bool {
        let mut wish = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        if !wish.is_too_late {
            wish.name = Some(name);
        }
        !wish.is_too_late
    }

    /// What was asked for last; from here on it is too late, for this attempt.
    pub fn take_commit(&self) -> Option<ImageName> {
        let mut wish = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        wish.is_too_late = true;
        wish.name.take()
    }

    /// Tells that the store has a newer version of the job, in the same state.
    pub fn changed(&self) {
        self.progress.send_modify(|progress| progress.changes = progress.changes.wrapping_add(1));
    }

    /// Tells that the spool has grown.
    pub fn grew(&self) {
        self.progress.send_modify(|_same| {});
    }

    /// Wakes whenever one of these is told.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}

/// All unfinished jobs.
#[derive(Debug, Default)]
pub struct Live {
    jobs: Mutex<HashMap<JobId, LiveJob>>,
}

impl Live {
    /// Makes a job known, before the store has it: so nobody who finds it there can miss a wake.
    pub fn enter(&self, id: JobId, (state, attempt): (State, u32), held: Held) -> LiveJob {
        let progress = Progress { state, attempt, changes: 0, finished: None };
        let job = LiveJob {
            progress: Arc::new(watch::Sender::new(progress)),
            _held: held,
            cancel: CancellationToken::new(),
            commit: Arc::default(),
        };
        self.lock().insert(id, job.clone());
        job
    }

    /// The job, unless it is finished.
    #[must_use]
    pub fn get(&self, id: JobId) -> Option<LiveJob> {
        self.lock().get(&id).cloned()
    }

    /// Forgets a job that an attempt has ended, after the store has it finished. Whoever waits is
    /// woken.
    pub fn finish(&self, finished: Job) {
        let left = self.lock().remove(&finished.id);
        if let Some(job) = left {
            job.finished(finished);
        }
    }

    /// Forgets a job that has ended in another way, after the store has it finished. Whoever waits
    /// is woken.
    pub fn leave(&self, id: JobId, attempt: u32) {
        let left = self.lock().remove(&id);
        if let Some(job) = left {
            job.moved(State::Finished, attempt);
        }
    }

    /// Forgets a job that was never stored.
    pub fn discard(&self, id: JobId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, LiveJob>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
