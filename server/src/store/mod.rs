//! The durable truth: every job, what it brought along, how it ended. All SQL is in here.
//!
//! ```text
//! callers ── Change ──▶ bounded queue ──▶ writer: begin immediate │ changes │ commit ──▶ answers
//! callers ── query ───▶ pool of read-only connections
//! checkpoint task ────▶ moves the WAL into the file each second
//! ```
//!
//! A change is answered after the commit that holds it. While one batch is being synced the next
//! one gathers, so an idle server pays one sync for a change and a busy one shares it.

mod change;
mod checkpoint;
mod open;
mod query;
mod retention;
mod row;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use jiff::Timestamp;
use lazaret_sandbox::image::ImageName;
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot};

use crate::job::{Inputs, Job, JobEnd, JobId, JobSpec};
pub use open::{OpenError, open};
pub use query::{Filter, Summary, Unfinished};
pub use retention::forget_old_keys;

/// Changes that may wait for the writer; more wait in their callers.
const CHANGE_QUEUE: usize = 1024;

/// Something the store could not do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database refused, or the disk did.
    #[error("database: {0}")]
    Database(Arc<sqlx::Error>),
    /// A row says what no version of this program wrote.
    #[error("the database holds a row that makes no sense: {0}")]
    Nonsense(String),
    /// The writer has ended: the server is stopping.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether there is no room for what was to be stored.
    #[must_use]
    pub fn is_full(&self) -> bool {
        /// `SQLITE_FULL` (SQLite's result codes).
        const FULL: &str = "13";
        let Self::Database(error) = self else { return false };
        let code = error.as_database_error().and_then(|error| error.code());
        code.is_some_and(|code| code == FULL)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

/// The store. Cloning it is cheap; all clones share one writer.
#[derive(Debug, Clone)]
pub struct Store {
    changes: mpsc::Sender<Pending>,
    readers: SqlitePool,
}

/// A change and who waits for it.
#[derive(Debug)]
struct Pending {
    change: Change,
    answer: oneshot::Sender<Result<Effect, StoreError>>,
}

/// One transition, or one row more or less.
#[derive(Debug)]
enum Change {
    Insert(Box<NewJob>),
    Claim {
        id: JobId,
        now: Timestamp,
    },
    Finish(Box<FinishedAttempt>),
    FinishQueued {
        id: JobId,
        end: Box<JobEnd>,
        now: Timestamp,
    },
    RequestCancel {
        id: JobId,
    },
    /// An unfinished job is to become an image.
    SetCommit {
        id: JobId,
        name: ImageName,
    },
    Retry {
        id: JobId,
        attempt: u32,
        log: KeptLog,
    },
    Delete {
        id: JobId,
    },
    ForgetKeys {
        before: Timestamp,
    },
}

/// A job that was accepted and is about to be promised.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its name.
    pub id: JobId,
    /// What it asks for. Shared with who starts it at once.
    pub spec: Arc<JobSpec>,
    /// What it brings along. May be large, so it is shared, too.
    pub inputs: Arc<Inputs>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Whether it waits or starts with the same commit.
    pub entry: Entry,
    /// The client's key against sending it twice.
    pub idempotency: Option<IdempotencyKey>,
}

/// How a new job enters the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// There is no room for it yet.
    Queued,
    /// There is room: it is claimed by the very commit that promises it, which saves one.
    Claimed,
}

/// What a client sends so that a repeated request makes no second job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The client's word.
    pub key: String,
    /// Hash of the request it first came with.
    pub fingerprint: [u8; 32],
}

/// An attempt that has ended, and the job with it.
#[derive(Debug, Clone)]
pub struct FinishedAttempt {
    /// Whose attempt.
    pub id: JobId,
    /// Which attempt: an older one changes nothing.
    pub attempt: u32,
    /// How the job ended.
    pub end: JobEnd,
    /// What the attempt wrote.
    pub log: KeptLog,
    /// When.
    pub now: Timestamp,
}

/// Where the spool of an ended attempt is kept.
#[derive(Debug, Clone)]
pub enum KeptLog {
    /// In the store. A small one becomes durable by the sync that the verdict needs anyway, and
    /// a million of them are not a million files.
    Row(Vec<u8>),
    /// In a file beside the store, written and synced before.
    File,
    /// In the spool, for want of room anywhere else.
    Spool,
    /// Nowhere: the attempt wrote nothing, or it was given up for the room that it took.
    Nothing,
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// What it says.
    Done,
    /// It ended an attempt, and with it the job, which is now as it is here.
    Finished(Box<Job>),
    /// Nothing: the job is not in the state that the change leaves, or is not there.
    WrongState,
    /// Nothing: the idempotency key already stands for this job, sent by the same request.
    Replayed(JobId),
    /// Nothing: the idempotency key already stands for another request.
    KeyReused,
}

impl Store {
    /// Promises a job. Answers [`Effect::Done`], or what its idempotency key stands for.
    ///
    /// # Errors
    /// As [`StoreError`]; then the job is not promised.
    pub async fn insert(&self, job: NewJob) -> Result<Effect, StoreError> {
        self.begin_insert(job).await?.done().await
    }

    /// As [`Store::insert`], but answers when the job is on its way to the disk. Every change that
    /// is asked for from then on comes after it.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn begin_insert(&self, job: NewJob) -> Result<Begun, StoreError> {
        self.begin(Change::Insert(Box::new(job))).await
    }

    /// queued → running, one attempt more.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn claim(&self, id: JobId, now: Timestamp) -> Result<Effect, StoreError> {
        self.change(Change::Claim { id, now }).await
    }

    /// running → finished, of the attempt that runs. Answers [`Effect::Finished`] if it does.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn finish(&self, attempt: FinishedAttempt) -> Result<Effect, StoreError> {
        self.change(Change::Finish(Box::new(attempt))).await
    }

    /// queued → finished, without a start.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn finish_queued(
        &self,
        id: JobId,
        end: JobEnd,
        now: Timestamp,
    ) -> Result<Effect, StoreError> {
        self.change(Change::FinishQueued { id, end: Box::new(end), now }).await
    }

    /// Notes that an unfinished job is to become an image of this name.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn set_commit(&self, id: JobId, name: ImageName) -> Result<Effect, StoreError> {
        self.change(Change::SetCommit { id, name }).await
    }

    /// Notes that a running job shall end, so that it is not retried.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn request_cancel(&self, id: JobId) -> Result<Effect, StoreError> {
        self.change(Change::RequestCancel { id }).await
    }

    /// running → queued, after a fault of ours in the attempt that runs. [`Effect::WrongState`]
    /// also if its end was asked for meanwhile.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn retry(&self, id: JobId, attempt: u32, log: KeptLog) -> Result<Effect, StoreError> {
        self.change(Change::Retry { id, attempt, log }).await
    }

    /// Forgets a finished job.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn delete(&self, id: JobId) -> Result<Effect, StoreError> {
        self.change(Change::Delete { id }).await
    }

    /// Forgets idempotency keys made before `before`.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn forget_keys(&self, before: Timestamp) -> Result<Effect, StoreError> {
        self.change(Change::ForgetKeys { before }).await
    }

    async fn change(&self, change: Change) -> Result<Effect, StoreError> {
        self.begin(change).await?.done().await
    }

    async fn begin(&self, change: Change) -> Result<Begun, StoreError> {
        let (answer, answered) = oneshot::channel();
        let pending = Pending { change, answer };
        self.changes.send(pending).await.map_err(|_closed| StoreError::Closed)?;
        Ok(Begun(answered))
    }
}

/// A change that the writer has, and has not answered.
#[derive(Debug)]
pub struct Begun(oneshot::Receiver<Result<Effect, StoreError>>);

impl Begun {
    /// Waits until it is durable.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn done(self) -> Result<Effect, StoreError> {
        self.0.await.map_err(|_closed| StoreError::Closed)?
    }
}
