//! How a container ended and what it used: plain data, decided by the shim alone.

use serde::{Deserialize, Serialize};

/// How a step or a whole job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Exit code 0 within all limits.
    Success,
    /// An exit code other than 0.
    Failure,
    /// Ended by a signal that was not ours.
    Signaled,
    /// `cpu_ms` was used up.
    CpuLimit,
    /// `wall_ms` or the job's `job_wall_ms` passed.
    WallLimit,
    /// The kernel's OOM killer acted in the container's cgroup.
    MemoryLimit,
    /// More output than `output_bytes`.
    OutputLimit,
    /// The step failed, and the container's storage was full at its end.
    DiskLimit,
    /// The client asked for the end.
    Cancelled,
    /// Never started, because of how an earlier step ended.
    Skipped,
    /// Our own failure; never the program's.
    Fault,
}

impl Verdict {
    /// The word used in JSON, in the store and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Signaled => "signaled",
            Self::CpuLimit => "cpu_limit",
            Self::WallLimit => "wall_limit",
            Self::MemoryLimit => "memory_limit",
            Self::OutputLimit => "output_limit",
            Self::DiskLimit => "disk_limit",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::Fault => "fault",
        }
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The verdict of the first step that did not succeed and was not allowed to fail.
    pub verdict: Verdict,
    /// One entry for each step of the spec, in order, those that never started included.
    pub steps: Vec<StepOutcome>,
    /// What went wrong, in words; always there for a fault, otherwise only where it helps.
    pub detail: Option<String>,
}

/// How one step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepOutcome {
    /// The step's name, from the spec.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What the kernel said, if the main process exited by itself.
    pub exit_code: Option<i32>,
    /// The signal that ended the main process, as a number.
    pub signal: Option<i32>,
    /// Which limit was met, also when the exit code was 0.
    pub limit_hit: Option<LimitHit>,
    /// What the step used.
    pub usage: Usage,
    /// Why a fault is one, or what kept the program from starting.
    pub detail: Option<String>,
}

/// A limit that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHit {
    /// Which one.
    pub limit: LimitName,
    /// What was allowed, in the unit of the name.
    pub allowed: u64,
    /// What was observed, in the unit of the name.
    pub observed: u64,
}

/// The limits that can be met, named as in a request but for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitName {
    /// CPU time of a step.
    CpuMs,
    /// Wall time of a step.
    WallMs,
    /// Wall time of the whole job.
    JobWallMs,
    /// Memory of a step.
    MemoryBytes,
    /// Output of a step.
    OutputBytes,
    /// Storage of the container.
    DiskBytes,
    /// Files, directories and links in that storage: it has room for so many, in proportion to
    /// its bytes. Not a limit of its own in a request.
    DiskFiles,
}

/// What a step used, read when no process of it was left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of all processes, in microseconds, from just before `exec`.
    pub cpu_us: u64,
    /// The part of it spent in the program.
    pub cpu_user_us: u64,
    /// The part of it spent in the kernel.
    pub cpu_system_us: u64,
    /// From `exec` to the end of the main process, in microseconds on the monotonic clock.
    pub wall_us: u64,
    /// How long processes stood still because the `cpus` limit held them, in microseconds.
    pub throttled_us: u64,
    /// The highest memory charged to the cgroup.
    pub memory_peak_bytes: u64,
    /// The most processes and threads at one time, if the kernel counts it (`pids.peak`, 6.1).
    pub pids_peak: Option<u64>,
    /// Bytes written to stdout and stderr, those that were not kept included.
    pub output_bytes: u64,
    /// Processes that the kernel's OOM killer ended.
    pub oom_kills: u64,
}
