//! One attempt at the desk: claimed in the store, run, and its end stored exactly once.

use std::sync::Arc;
use std::time::Duration;

use lazaret_sandbox::outcome::Verdict;

use super::Inner;
use crate::clock;
use crate::job::{JobId, MAX_ATTEMPTS, State};
use crate::live::LiveJob;
use crate::runner::{self, Claimed, Ended};
use crate::store::{Effect, FinishedAttempt, KeptLog, StoreError};

/// How long a verdict waits before the store is asked once more, at first and at most: a full
/// disk is mended by people.
const FIRST_STORE_RETRY: Duration = Duration::from_millis(100);
const LAST_STORE_RETRY: Duration = Duration::from_secs(60);

impl Inner {
    /// Claims a job that the scheduler has made room for, and runs it.
    pub(super) async fn claim(self: Arc<Self>, id: JobId) {
        match self.read_claimed(id).await {
            Ok(Some((claimed, job))) => self.attempt(claimed, job).await,
            Ok(None) => self.free(id),
            Err(error) => {
                // The store has it unfinished, so the next start of the server takes it up.
                tracing::error!(job.id = %id, %error, "could not claim a job");
                self.free(id);
            }
        }
    }

    /// The job, running; `None` if it was cancelled in the meantime.
    async fn read_claimed(&self, id: JobId) -> Result<Option<(Claimed, LiveJob)>, StoreError> {
        if self.store.claim(id, clock::now()).await? != Effect::Done {
            return Ok(None);
        }
        let (Some(stored), Some(job)) = (self.store.job(id).await?, self.live.get(id)) else {
            return Ok(None);
        };
        let inputs = self.store.inputs(id).await?;
        job.moved(State::Running, stored.attempt);
        let (attempt, spec) = (stored.attempt, Arc::new(stored.spec));
        Ok(Some((Claimed { id, attempt, spec, inputs }, job)))
    }

    /// Runs an attempt, stores its end, and makes room.
    pub(super) async fn attempt(self: Arc<Self>, claimed: Claimed, job: LiveJob) {
        let (id, attempt, demand) = (claimed.id, claimed.attempt, claimed.spec.demand());
        let priority = claimed.spec.priority;
        let Ended { end, log, container } = runner::run(&self.runner, claimed, &job).await;
        let is_ours = end.verdict == Verdict::Fault && attempt < MAX_ATTEMPTS;
        let stays_in_spool = matches!(log, KeptLog::Spool);
        let is_retried = is_ours && self.retry(id, attempt, &log).await;
        if is_retried {
            job.moved(State::Queued, attempt);
        } else {
            let finished = FinishedAttempt { id, attempt, end, log, now: clock::now() };
            self.finish(finished).await;
            self.live.leave(id, attempt);
        }
        if let Some(container) = container
            && let Err(error) = container.acknowledge()
        {
            tracing::warn!(job.id = %id, %error, "a shim was gone before it was told to forget");
        }
        if !stays_in_spool && let Err(error) = self.runner.files.remove_spool(id, attempt) {
            tracing::error!(job.id = %id, %error, "could not remove a spool");
        }
        if is_retried {
            let mut scheduler = self.scheduler();
            scheduler.release(id);
            scheduler.requeue(id, priority, demand);
            drop(scheduler);
            self.pump();
        } else {
            self.free(id);
        }
    }

    /// Whether the job waits again. It does not if its end was asked for.
    async fn retry(&self, id: JobId, attempt: u32, log: &KeptLog) -> bool {
        match self.store.retry(id, attempt, log.clone()).await {
            Ok(effect) => effect == Effect::Done,
            Err(error) => {
                tracing::error!(job.id = %id, %error, "could not queue a job once more");
                false
            }
        }
    }

    /// Stores the end, however long that takes: the verdict exists only here until then.
    async fn finish(&self, finished: FinishedAttempt) {
        let mut retry = FIRST_STORE_RETRY;
        loop {
            match self.store.finish(finished.clone()).await {
                Ok(Effect::Done) => return,
                Ok(Effect::WrongState | Effect::Replayed(_) | Effect::KeyReused) => {
                    tracing::error!(job.id = %finished.id, "a verdict for a job that does not run");
                    return;
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!(job.id = %finished.id, %error, "could not store a verdict");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_STORE_RETRY);
                }
            }
        }
    }

    /// Gives back what a job took, and starts who waited for it.
    fn free(self: &Arc<Self>, id: JobId) {
        self.scheduler().release(id);
        self.pump();
        self.fill_pool();
    }

    /// Has the container of a later job made, now that none waits for the CPU that this takes.
    pub(super) fn fill_pool(&self) {
        if self.drain.is_cancelled() {
            return;
        }
        let runner = Arc::clone(&self.runner);
        self.tracker.spawn_blocking(move || {
            if let Err(error) = runner.pool.fill() {
                tracing::error!(%error, "could not make a container ahead of time");
            }
        });
    }
}
