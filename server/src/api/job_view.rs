//! Jobs as clients see them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lazaret_sandbox::outcome::{LimitHit, LimitName, Usage, Verdict};
use lazaret_sandbox::spec::Limits;
use serde::Serialize;
use utoipa::ToSchema;

use super::volumes::JobVolumeView;
use crate::job::{Job, JobImage, JobSpec, State, StepEnd};
use crate::request::in_cpus;
use crate::store::Summary;

/// A job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub(super) struct JobView {
    /// Its name. Jobs made later sort later.
    id: String,
    /// Where it is on its way.
    state: State,
    /// How it ended; null until it has.
    #[schema(value_type = Option<VerdictName>, required)]
    verdict: Option<&'static str>,
    /// How often it was started. More than once only if the server failed.
    attempt: u32,
    /// What it runs in.
    image: ImageRef,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When its attempt was started.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    started_at: Option<Timestamp>,
    /// When its verdict was known.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Timestamp>,
    /// How long it waited, in milliseconds; null while it does.
    #[schema(required)]
    queue_ms: Option<f64>,
    /// What went wrong, in words. Always there for a fault.
    #[schema(required)]
    detail: Option<String>,
    /// Its steps, in order.
    steps: Vec<StepView>,
    /// Bound of the whole job, in milliseconds.
    job_wall_ms: u64,
    /// What it is shown beside its image.
    volumes: Vec<JobVolumeView>,
    /// Bound of all its storage but its volumes.
    disk_bytes: u64,
    /// What it may read from, and write to, the disk of a volume in a second.
    io_bytes_per_s: u64,
    /// The client's notes.
    labels: BTreeMap<String, String>,
    /// Jobs of a higher one start earlier.
    priority: i16,
    /// What an image is called that is made of what it wrote, once it has succeeded.
    #[schema(required)]
    commit: Option<String>,
}

/// A job as a list shows it: without its steps.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobSummary)]
pub(super) struct SummaryView {
    /// Its name. Jobs made later sort later.
    id: String,
    /// Where it is on its way.
    state: State,
    /// How it ended; null until it has.
    #[schema(value_type = Option<VerdictName>, required)]
    verdict: Option<&'static str>,
    /// How often it was started.
    attempt: u32,
    /// What it runs in.
    image: ImageRef,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When its attempt was started.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    started_at: Option<Timestamp>,
    /// When its verdict was known.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Timestamp>,
    /// How long it waited, in milliseconds; null while it does.
    #[schema(required)]
    queue_ms: Option<f64>,
    /// The client's notes.
    labels: BTreeMap<String, String>,
    /// Jobs of a higher one start earlier.
    priority: i16,
}

/// An image as it was when the job was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImageRef {
    /// Its name.
    name: String,
    /// What the name stood for.
    digest: String,
}

/// How a job or step ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Verdict)]
#[expect(dead_code, reason = "only its schema is used: the sandbox's own type has no schema")]
pub(super) enum VerdictName {
    /// Exit code 0 within all limits.
    Success,
    /// An exit code other than 0.
    Failure,
    /// Ended by a signal that was not ours.
    Signaled,
    /// `cpu_ms` was used up.
    CpuLimit,
    /// `wall_ms` or `job_wall_ms` passed.
    WallLimit,
    /// Out of memory.
    MemoryLimit,
    /// More output than `output_bytes`.
    OutputLimit,
    /// Out of storage.
    DiskLimit,
    /// The client asked for the end.
    Cancelled,
    /// Never started, because of how an earlier step ended.
    Skipped,
    /// The server's own failure; never the program's.
    Fault,
}

/// A step of a job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Step)]
pub struct StepView {
    /// Its name.
    name: String,
    /// How it ended; null until the job has.
    #[schema(value_type = Option<VerdictName>, required)]
    verdict: Option<&'static str>,
    /// What the program exited with, if it exited by itself.
    #[schema(required)]
    exit_code: Option<i32>,
    /// The name of the signal that ended it.
    #[schema(required, example = "SIGSEGV")]
    signal: Option<String>,
    /// The limit that was met, also when the exit code was 0.
    #[schema(required)]
    limit_hit: Option<LimitHitView>,
    /// What it used.
    #[schema(required)]
    usage: Option<UsageView>,
    /// The first 64 KiB of stdout, as UTF-8 with U+FFFD for what is not.
    stdout: String,
    /// The first 64 KiB of stderr.
    stderr: String,
    /// Whether stdout was longer.
    stdout_truncated: bool,
    /// Whether stderr was longer.
    stderr_truncated: bool,
    /// Why a fault is one, or what kept the program from starting.
    #[schema(required)]
    detail: Option<String>,
    /// What it was allowed.
    limits: LimitsView,
}

/// What a step was allowed, defaults included.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Limits)]
pub(super) struct LimitsView {
    cpu_ms: u64,
    wall_ms: u64,
    memory_bytes: u64,
    pids: u32,
    cpus: f64,
    output_bytes: u64,
    open_files: u32,
}

/// A limit that was met.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LimitHit)]
pub(super) struct LimitHitView {
    /// Which one, named as in a request; `disk_files` are the files, directories and links that a
    /// storage of `disk_bytes` has room for.
    limit: &'static str,
    /// What was allowed.
    allowed: u64,
    /// What was observed.
    observed: u64,
}

/// What a step used.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Usage)]
pub(super) struct UsageView {
    /// CPU time of all processes.
    cpu_ms: f64,
    /// The part of it spent in the program.
    cpu_user_ms: f64,
    /// The part of it spent in the kernel.
    cpu_system_ms: f64,
    /// From start to end.
    wall_ms: f64,
    /// How long processes stood still because of `cpus`.
    throttled_ms: f64,
    /// The highest memory.
    memory_peak_bytes: u64,
    /// The most processes and threads at one time, where the kernel counts it.
    #[schema(required)]
    pids_peak: Option<u64>,
    /// Bytes written to stdout and stderr, those that were not kept included.
    output_bytes: u64,
    /// Processes that ended for want of memory.
    oom_kills: u64,
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        let (verdict, detail, ended) = match job.end {
            Some(end) => (Some(end.verdict.as_str()), end.detail, end.steps),
            None => (None, None, Vec::new()),
        };
        let JobSpec { image, steps, volumes, job_wall_ms, labels, priority, commit, .. } = job.spec;
        let (disk_bytes, io_bytes_per_s) = (job.spec.disk_bytes, job.spec.io_bytes_per_s);
        let mut ended = ended.into_iter();
        Self {
            id: job.id.to_string(),
            state: job.state,
            verdict,
            attempt: job.attempt,
            image: image.into(),
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            queue_ms: queue_ms(job.created_at, job.started_at),
            detail,
            steps: steps
                .into_iter()
                .map(|step| StepView::new(step.name, &step.limits, ended.next()))
                .collect(),
            job_wall_ms: job_wall_ms.get(),
            volumes: volumes.into_iter().map(Into::into).collect(),
            disk_bytes: disk_bytes.get(),
            io_bytes_per_s: io_bytes_per_s.get(),
            labels,
            priority,
            commit: commit.map(String::from),
        }
    }
}

impl From<Summary> for SummaryView {
    fn from(job: Summary) -> Self {
        Self {
            id: job.id.to_string(),
            state: job.state,
            verdict: job.verdict.map(Verdict::as_str),
            attempt: job.attempt,
            image: job.spec.image.into(),
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            queue_ms: queue_ms(job.created_at, job.started_at),
            labels: job.spec.labels,
            priority: job.spec.priority,
        }
    }
}

impl From<JobImage> for ImageRef {
    fn from(image: JobImage) -> Self {
        Self { name: image.name, digest: image.digest.to_string() }
    }
}

impl StepView {
    /// The step of this name; what it wrote is shown as it is in `end`.
    #[must_use]
    pub fn new(name: String, limits: &Limits, end: Option<StepEnd>) -> Self {
        let limits = LimitsView {
            cpu_ms: limits.cpu_ms.get(),
            wall_ms: limits.wall_ms.get(),
            memory_bytes: limits.memory_bytes.get(),
            pids: limits.pids.get(),
            cpus: in_cpus(limits.cpus.millis().into()),
            output_bytes: limits.output_bytes.get(),
            open_files: limits.open_files.get(),
        };
        let mut view = Self {
            name,
            verdict: None,
            exit_code: None,
            signal: None,
            limit_hit: None,
            usage: None,
            stdout: String::new(),
            stderr: String::new(),
            stdout_truncated: false,
            stderr_truncated: false,
            detail: None,
            limits,
        };
        if let Some(StepEnd { outcome, stdout, stderr }) = end {
            view.verdict = Some(outcome.verdict.as_str());
            view.exit_code = outcome.exit_code;
            view.signal = outcome.signal.map(signal_name);
            view.limit_hit = outcome.limit_hit.map(Into::into);
            view.usage = Some(outcome.usage.into());
            (view.stdout, view.stdout_truncated) = (stdout.text, stdout.is_truncated);
            (view.stderr, view.stderr_truncated) = (stderr.text, stderr.is_truncated);
            view.detail = outcome.detail;
        }
        view
    }
}

impl From<LimitHit> for LimitHitView {
    fn from(hit: LimitHit) -> Self {
        let limit = match hit.limit {
            LimitName::CpuMs => "cpu_ms",
            LimitName::WallMs => "wall_ms",
            LimitName::JobWallMs => "job_wall_ms",
            LimitName::MemoryBytes => "memory_bytes",
            LimitName::OutputBytes => "output_bytes",
            LimitName::DiskBytes => "disk_bytes",
            LimitName::DiskFiles => "disk_files",
        };
        Self { limit, allowed: hit.allowed, observed: hit.observed }
    }
}

impl From<Usage> for UsageView {
    fn from(usage: Usage) -> Self {
        Self {
            cpu_ms: in_ms(usage.cpu_us),
            cpu_user_ms: in_ms(usage.cpu_user_us),
            cpu_system_ms: in_ms(usage.cpu_system_us),
            wall_ms: in_ms(usage.wall_us),
            throttled_ms: in_ms(usage.throttled_us),
            memory_peak_bytes: usage.memory_peak_bytes,
            pids_peak: usage.pids_peak,
            output_bytes: usage.output_bytes,
            oom_kills: usage.oom_kills,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a job's time in microseconds is far below 2^53")]
fn in_ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

fn queue_ms(created_at: Timestamp, started_at: Option<Timestamp>) -> Option<f64> {
    let waited = started_at?.as_microsecond() - created_at.as_microsecond();
    Some(in_ms(u64::try_from(waited).unwrap_or(0)))
}

/// A signal by its name; those of real-time have none but a number.
fn signal_name(number: i32) -> String {
    /// Signals 1 to 31 of Linux, as on every architecture we run on (signal(7)).
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    match index.and_then(|index| NAMES.get(index)) {
        Some(name) => format!("SIG{name}"),
        None => format!("SIG{number}"),
    }
}
