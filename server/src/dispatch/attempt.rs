//! One attempt at the desk: claimed in the store, run, and its end stored exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lazaret_sandbox::outcome::Verdict;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Inner;
use crate::clock;
use crate::job::{JobId, MAX_ATTEMPTS, State};
use crate::live::LiveJob;
use crate::runner::{self, Claimed, Ended, Running};
use crate::store::{Effect, FinishedAttempt, KeptLog, StoreError};

/// How long a claim or a verdict waits before the store is asked once more, at first and at most: a
/// full disk is mended by people.
const FIRST_STORE_RETRY: Duration = Duration::from_millis(100);
const LAST_STORE_RETRY: Duration = Duration::from_secs(60);

/// Bytes of inputs that are copied so that a job starts before the store has them.
const MAX_COPIED_BYTES: u64 = 64 << 10;

/// Whether the store has the job of an attempt. Its container may be made before that is known, but
/// its end is stored, and told, only after.
#[derive(Debug)]
pub(super) enum Acceptance {
    /// It has.
    Given,
    /// Its insert is on the way to the disk. Tells when it is there; dropped, it never will be.
    Pending(oneshot::Receiver<()>),
}

impl Acceptance {
    async fn is_given(&mut self) -> bool {
        if let Self::Pending(stored) = self {
            if stored.await.is_err() {
                return false;
            }
            *self = Self::Given;
        }
        true
    }
}

impl Inner {
    /// Claims a job that the scheduler has made room for, and runs it.
    pub(super) async fn claim(self: Arc<Self>, id: JobId) {
        // A drain ends the trying, but no claim halfway: the next start of the server takes up what
        // the store has unfinished.
        let claim = || self.store.claim(id, clock::now());
        let read = || self.read_claimed(id);
        let claimed = match self.insist(id, &self.drain, claim).await {
            Some(Effect::Done) => self.insist(id, &self.drain, read).await.flatten(),
            Some(
                Effect::Finished(_) | Effect::WrongState | Effect::Replayed(_) | Effect::KeyReused,
            )
            | None => None,
        };
        match claimed {
            Some((claimed, job)) => self.attempt(claimed, job, Acceptance::Given).await,
            None => self.free(id),
        }
    }

    /// The job, claimed; `None` if it was cancelled in the meantime.
    async fn read_claimed(&self, id: JobId) -> Result<Option<(Claimed, LiveJob)>, StoreError> {
        let (Some(stored), Some(job)) = (self.store.job(id).await?, self.live.get(id)) else {
            return Ok(None);
        };
        let inputs = self.store.inputs(id).await?;
        job.moved(State::Running, stored.attempt);
        let (attempt, spec, inputs) = (stored.attempt, Arc::new(stored.spec), Arc::new(inputs));
        Ok(Some((Claimed { id, attempt, spec, inputs }, job)))
    }

    /// Runs an attempt, stores its end, and makes room.
    pub(super) async fn attempt(
        self: Arc<Self>,
        claimed: Claimed,
        job: LiveJob,
        mut acceptance: Acceptance,
    ) {
        let (id, attempt, demand) = (claimed.id, claimed.attempt, claimed.spec.demand());
        let priority = claimed.spec.priority;
        // What the store still holds is copied: of much, once the store has let go of it.
        let is_large = claimed.inputs.total_bytes() > MAX_COPIED_BYTES;
        if is_large && !acceptance.is_given().await {
            return self.forget(id, None);
        }
        let Ended { end, log, container } =
            runner::run(&self.runner, claimed, &job, &|| self.fill_pool()).await;
        if !acceptance.is_given().await {
            return self.forget(id, container);
        }
        let is_ours = end.verdict == Verdict::Fault && attempt < MAX_ATTEMPTS;
        let stays_in_spool = matches!(log, KeptLog::Spool);
        let is_retried = is_ours && self.retry(id, attempt, &log).await;
        if is_retried {
            job.moved(State::Queued, attempt);
        } else {
            let finished = FinishedAttempt { id, attempt, end, log, now: clock::now() };
            if !self.finish(finished).await {
                // The shim keeps the outcome, and the spool its output, for the next start.
                return;
            }
            // Who waited for the verdict goes first: the rest of this only makes work.
            tokio::task::yield_now().await;
        }
        acknowledge(id, container);
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
            self.fill_pool();
        }
    }

    /// Leaves nothing of an attempt whose job was never accepted.
    fn forget(self: &Arc<Self>, id: JobId, container: Option<Running>) {
        acknowledge(id, container);
        if let Err(error) = self.runner.files.remove(id) {
            tracing::error!(job.id = %id, %error, "could not remove the log of no job");
        }
        self.free(id);
    }

    /// Whether the job waits again. It does not if its end was asked for. A store that fails is
    /// asked as long as for a verdict: ours would otherwise be the fault that a client sees.
    async fn retry(&self, id: JobId, attempt: u32, log: &KeptLog) -> bool {
        let retry = |log| self.store.retry(id, attempt, log);
        self.settle(id, log.clone(), retry).await == Some(Effect::Done)
    }

    /// Stores the end, makes room, and wakes who waits for the end. False if the store was closed
    /// before.
    async fn finish(self: &Arc<Self>, finished: FinishedAttempt) -> bool {
        let (id, log) = (finished.id, finished.log.clone());
        let finish = |log| self.store.finish(FinishedAttempt { log, ..finished.clone() });
        let Some(effect) = self.settle(id, log, finish).await else { return false };
        // First: whoever sends a job because this one has ended finds the room that it took.
        self.scheduler().release(id);
        self.pump();
        match effect {
            Effect::Finished(job) => self.live.finish(*job),
            Effect::Done | Effect::WrongState | Effect::Replayed(_) | Effect::KeyReused => {
                tracing::error!(job.id = %id, "a verdict for a job that does not run");
                self.live.leave(id, finished.attempt);
            }
        }
        true
    }

    /// Stores how an attempt has ended, however long that takes, since that is known only here
    /// until then. `None` if the store was closed before.
    async fn settle<F>(
        &self,
        id: JobId,
        log: KeptLog,
        store: impl Fn(KeptLog) -> F,
    ) -> Option<Effect>
    where
        F: Future<Output = Result<Effect, StoreError>>,
    {
        let is_log_lost = AtomicBool::new(false);
        let settle = || async {
            let is_lost = is_log_lost.load(Ordering::Relaxed);
            let stored = store(if is_lost { KeptLog::Nothing } else { log.clone() }).await;
            // What the job wrote may be what fills the disk, and then nobody else can mend it.
            if stored.as_ref().is_err_and(StoreError::is_full)
                && !is_log_lost.swap(true, Ordering::Relaxed)
            {
                self.lose_log(id);
            }
            stored
        };
        self.insist(id, &CancellationToken::new(), settle).await
    }

    /// Gives up what a job wrote for room in which its verdict can be stored.
    fn lose_log(&self, id: JobId) {
        match self.runner.files.remove(id) {
            Ok(()) => tracing::error!(job.id = %id, "the disk is full: gave up the log of a job"),
            Err(error) => tracing::error!(job.id = %id, %error, "could not remove a log"),
        }
    }

    /// Asks the store, and asks once more when it fails, until `give_up`. `None` if there is no
    /// answer to be had: it was given up, or the store is closed.
    async fn insist<T, F>(
        &self,
        id: JobId,
        give_up: &CancellationToken,
        ask: impl Fn() -> F,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut pause = FIRST_STORE_RETRY;
        loop {
            match ask().await {
                Ok(answer) => return Some(answer),
                Err(StoreError::Closed) => return None,
                Err(error) => tracing::error!(job.id = %id, %error, "the store failed a job"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LAST_STORE_RETRY),
                () = give_up.cancelled() => return None,
            }
        }
    }

    /// Gives back what a job took, and starts who waited for it.
    fn free(self: &Arc<Self>, id: JobId) {
        self.scheduler().release(id);
        self.pump();
        self.fill_pool();
    }

    /// Has the container of a later job made: when one has started, since what follows is mostly
    /// waiting, for its program and for the disk. Making a container takes more CPU than all else,
    /// and beside the start of another it would slow that down.
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

/// Tells the shim, if there is one, that it may forget.
fn acknowledge(id: JobId, container: Option<Running>) {
    if let Some(container) = container
        && let Err(error) = container.acknowledge()
    {
        tracing::warn!(job.id = %id, %error, "a shim was gone before it was told to forget");
    }
}
