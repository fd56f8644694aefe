//! What a predecessor left: queued jobs wait again; running ones end as their shim says they did.
//! Where no shim says so they start once more if that was their first attempt, and are a fault of
//! ours otherwise. Uses the transitions of every other day.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use lazaret_sandbox::outcome::{Outcome, Verdict};

use super::Inner;
use crate::clock;
use crate::holds::Held;
use crate::job::{JobEnd, JobId, JobSpec, MAX_ATTEMPTS, State};
use crate::logs::harvest::{self, Harvest};
use crate::store::{Effect, FinishedAttempt, KeptLog, StoreError, Unfinished};

/// Why a predecessor's jobs could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The images could not be read.
    #[error(transparent)]
    Images(#[from] lazaret_sandbox::image::Error),
    /// The volumes could not be read.
    #[error(transparent)]
    Volumes(#[from] lazaret_sandbox::volume::Error),
    /// The spools could not be listed.
    #[error("could not list the spools: {0}")]
    Spools(#[from] io::Error),
}

/// What the log says of a job that ended because the server did.
const DETAIL: &str = "the server ended while the job ran";

impl Inner {
    pub(super) async fn recover(
        self: &Arc<Self>,
        mut outcomes: HashMap<(JobId, u32), Outcome>,
    ) -> Result<(), RecoverError> {
        let unfinished = self.store.unfinished().await?;
        let known: HashSet<_> = unfinished.iter().map(|job| job.id).collect();
        for job in unfinished {
            let is_queued = match job.state {
                State::Queued => true,
                State::Running => {
                    let outcome = outcomes.remove(&(job.id, job.attempt));
                    self.take_up_running(&job, outcome).await?
                }
                State::Finished => false,
            };
            if is_queued {
                let held = self.hold_what_is_left(&job.spec)?;
                self.live.enter(job.id, (State::Queued, job.attempt), held);
                let (priority, demand) = (job.spec.priority, job.spec.demand());
                self.scheduler().requeue(job.id, priority, demand);
            }
        }
        for (id, attempt) in self.runner.files.spools()? {
            if known.contains(&id) || self.is_only_copy(id, attempt).await? {
                continue;
            }
            self.runner.files.remove_spool(id, attempt)?;
        }
        Ok(())
    }

    /// Holds what a job needs. What has gone is told by the attempt.
    fn hold_what_is_left(&self, spec: &JobSpec) -> Result<Held, RecoverError> {
        let image = self.holds.take(&self.runner.images, &spec.image)?;
        let mut held = Held { image, volumes: Vec::new() };
        for name in spec.volume_names() {
            held.volumes.extend(self.holds.take_volume(&self.runner.volumes.store, name)?);
        }
        Ok(held)
    }

    /// Ends the attempt that was left alone, by its outcome if there is one. True if the job waits
    /// for another.
    async fn take_up_running(
        &self,
        job: &Unfinished,
        outcome: Option<Outcome>,
    ) -> Result<bool, RecoverError> {
        let (id, attempt) = (job.id, job.attempt);
        let mut harvest = match harvest::harvest(&self.runner.files, id, attempt) {
            Ok(harvest) => harvest,
            Err(error) => {
                tracing::error!(job.id = %id, %error, "could not keep the log");
                Harvest::lost()
            }
        };
        let log = harvest.log.clone();
        // What an image was to be made of went with the container.
        let is_without_image =
            |outcome: &Outcome| job.spec.commit.is_some() && outcome.verdict == Verdict::Success;
        let outcome = outcome.filter(|outcome| outcome.verdict != Verdict::Fault);
        let outcome = outcome.filter(|outcome| !is_without_image(outcome));
        let is_retried = outcome.is_none()
            && attempt < MAX_ATTEMPTS
            && self.store.retry(id, attempt, log.clone()).await? == Effect::Done;
        if !is_retried {
            let end = match outcome {
                Some(outcome) => harvest.end(outcome, attempt),
                None => interrupted(&mut harvest, attempt),
            };
            let now = clock::now();
            self.store.finish(FinishedAttempt { id, attempt, end, log: log.clone(), now }).await?;
        }
        if !matches!(log, KeptLog::Spool) {
            self.runner.files.remove_spool(id, attempt)?;
        }
        tracing::info!(job.id = %id, attempt, is_retried, "took up an interrupted job");
        Ok(is_retried)
    }

    /// Whether a spool is all there is of the log of a finished job.
    async fn is_only_copy(&self, id: JobId, attempt: u32) -> Result<bool, StoreError> {
        if self.store.job(id).await?.is_none() || self.store.log(id, attempt).await?.is_some() {
            return Ok(false);
        }
        Ok(!self.runner.files.is_kept(id, attempt))
    }
}

/// The end of an attempt that nobody tells of and nobody starts again.
fn interrupted(harvest: &mut Harvest, attempt: u32) -> JobEnd {
    // Not retried although it was the first attempt: then its end was asked for.
    let (verdict, detail) = if attempt < MAX_ATTEMPTS {
        (Verdict::Cancelled, None)
    } else {
        (Verdict::Fault, Some(DETAIL.to_owned()))
    };
    let last_seq = harvest.last_seq(attempt);
    JobEnd { verdict, steps: harvest.ended_steps(), detail, last_seq }
}
