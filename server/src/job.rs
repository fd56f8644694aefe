//! Jobs: what they are, what they ask for, how they end. Pure: nothing here waits or stores.
//!
//! ```text
//!           claim: attempt + 1              finish: verdict
//! queued ───────────────────────▶ running ───────────────────▶ finished
//!   │  ▲                             │                            ▲
//!   │  └── retry: our fault, once ───┘                            │
//!   └───────────────────── cancel ────────────────────────────────┘
//! ```

pub mod spec;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use lazaret_sandbox::outcome::{StepOutcome, Verdict};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use spec::{Inputs, JobImage, JobSpec, JobStep, JobVolume, VolumeSource};

/// How often a job is started at most. A second time only if the first ended in a fault of ours.
pub const MAX_ATTEMPTS: u32 = 2;

/// Names a job. Ids made later sort later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

impl JobId {
    /// An id that was never used before.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id in the 16 bytes it is stored as.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id that was stored as `bytes`, if they are 16.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// Names an attempt of a job: its spool, and its container for whoever finds that after a crash.
#[must_use]
pub fn attempt_name(id: JobId, attempt: u32) -> String {
    format!("{id}.{attempt}")
}

/// The attempt of this name, if it is one.
#[must_use]
pub fn parse_attempt_name(name: &str) -> Option<(JobId, u32)> {
    let (id, attempt) = name.split_once('.')?;
    Some((id.parse().ok()?, attempt.parse().ok()?))
}

/// Where a job is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Stored, and waiting for room.
    Queued,
    /// Claimed by an attempt that has not ended.
    Running,
    /// Ended, with a verdict that never changes.
    Finished,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Queued, Self::Running, Self::Finished];

    /// The word used in JSON and in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finished => "finished",
        }
    }
}

impl FromStr for State {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == word)
            .ok_or_else(|| UnknownWord(word.to_owned()))
    }
}

/// A word that is not among those that were expected.
#[derive(Debug, thiserror::Error)]
#[error("unknown word `{0}`")]
pub struct UnknownWord(pub String);

/// The verdict of this name.
///
/// # Errors
/// If there is none of this name.
pub fn parse_verdict(word: &str) -> Result<Verdict, UnknownWord> {
    const ALL: [Verdict; 11] = [
        Verdict::Success,
        Verdict::Failure,
        Verdict::Signaled,
        Verdict::CpuLimit,
        Verdict::WallLimit,
        Verdict::MemoryLimit,
        Verdict::OutputLimit,
        Verdict::DiskLimit,
        Verdict::Cancelled,
        Verdict::Skipped,
        Verdict::Fault,
    ];
    ALL.into_iter()
        .find(|verdict| verdict.as_str() == word)
        .ok_or_else(|| UnknownWord(word.to_owned()))
}

/// A job as it is stored, without its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Where it is on its way.
    pub state: State,
    /// How many times it was started.
    pub attempt: u32,
    /// Rises with every change of the job; the entity tag.
    pub version: u32,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the attempt that counts was started.
    pub started_at: Option<Timestamp>,
    /// When its verdict was stored.
    pub finished_at: Option<Timestamp>,
    /// What was asked for.
    pub spec: JobSpec,
    /// How it ended; there once it is finished.
    pub end: Option<JobEnd>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// The verdict.
    pub verdict: Verdict,
    /// One entry for each step, in order. Empty if no container ever told.
    pub steps: Vec<StepEnd>,
    /// What went wrong, in words.
    pub detail: Option<String>,
    /// The number of the log's last event, the one that tells the end.
    pub last_seq: u64,
}

impl JobEnd {
    /// The end of a job that no container ran.
    #[must_use]
    pub const fn without_steps(verdict: Verdict, detail: Option<String>, last_seq: u64) -> Self {
        Self { verdict, steps: Vec::new(), detail, last_seq }
    }
}

/// How a step ended, with the start of what it wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepEnd {
    /// What the shim told.
    pub outcome: StepOutcome,
    /// The start of its stdout.
    pub stdout: OutputHead,
    /// The start of its stderr.
    pub stderr: OutputHead,
}

/// The start of one stream of one step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputHead {
    /// The bytes as UTF-8, with U+FFFD for what is not.
    pub text: String,
    /// Whether the stream was longer.
    pub is_truncated: bool,
}

/// Where in a job's log an event stands: rises strictly over all attempts.
#[must_use]
pub const fn seq(attempt: u32, number: u32) -> u64 {
    (attempt as u64) << 32 | number as u64
}

/// What a job takes from the host while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// CPU, in thousandths of one.
    pub cpu_millis: u32,
    /// Memory, our own processes included.
    pub memory_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_later_sort_later() {
        let ids: Vec<JobId> = (0..1000).map(|_| JobId::generate()).collect();
        assert!(ids.is_sorted());
    }

    #[test]
    fn a_second_attempt_is_numbered_after_every_event_of_the_first() {
        assert!(seq(2, 0) > seq(1, u32::MAX));
    }

    #[test]
    fn a_name_leads_back_to_its_attempt() {
        let id = JobId::generate();
        assert_eq!(parse_attempt_name(&attempt_name(id, 2)), Some((id, 2)));
        assert_eq!(parse_attempt_name(&id.to_string()), None);
    }

    #[test]
    fn words_lead_back_to_what_they_stand_for() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse::<State>().expect("known"), state);
        }
        assert_eq!(parse_verdict("disk_limit").expect("known"), Verdict::DiskLimit);
        assert!(parse_verdict("nonsense").is_err());
    }
}
