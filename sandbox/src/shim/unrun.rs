//! The outcomes of steps whose program never ran: left out, over a limit before the start, or not
//! to be executed.

use std::io::{self, ErrorKind};

use super::job::Job;
use crate::error::{At as _, Error, Result, Stage};
use crate::outcome::{LimitHit, LimitName, StepOutcome, Usage, Verdict};
use crate::spec::StepSpec;
use crate::spool::Stream;

/// What a shell answers for a program that it cannot find, or may not execute.
const EXIT_NOT_FOUND: i32 = 127;
const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Characters of a program's name that are repeated to its author.
const MAX_SHOWN_CHARACTERS: usize = 200;

/// The outcome of a step whose program never ran.
pub(super) fn not_run(step: &StepSpec, verdict: Verdict) -> StepOutcome {
    StepOutcome {
        name: step.name.clone(),
        verdict,
        exit_code: None,
        signal: None,
        limit_hit: None,
        usage: Usage::default(),
        detail: None,
    }
}

/// The outcome of a step that our own set-up could not get to run because of a limit of the job's,
/// or because its files and the image do not go together.
pub(super) fn met_limit(
    job: &mut Job<'_>,
    step: &StepSpec,
    error: &Error,
) -> Result<Option<StepOutcome>> {
    let counters = job.container.leaf.counters().at(Stage::Cgroup)?;
    let (verdict, limit_hit) = if counters.oom_kills > 0 {
        let limit = LimitName::MemoryBytes;
        let allowed = step.limits.memory_bytes.get();
        let hit = LimitHit { limit, allowed, observed: counters.memory_peak_bytes };
        (Verdict::MemoryLimit, Some(hit))
    } else if error.source.kind() == ErrorKind::StorageFull {
        (Verdict::DiskLimit, Some(too_much_stored(job)?))
    } else if error.stage == Stage::Files && error.source.kind() == ErrorKind::PermissionDenied {
        (Verdict::Failure, None)
    } else {
        return Ok(None);
    };
    job.is_over = true;
    let detail = format!("before the program was executed: {error}");
    let message = format!("lazaret: {error}\n");
    job.spool.output(0, 0, Stream::Stderr, message.as_bytes()).at(Stage::Spool)?;
    Ok(Some(StepOutcome { limit_hit, detail: Some(detail), ..not_run(step, verdict) }))
}

/// Which limit the job's own files met.
fn too_much_stored(job: &Job<'_>) -> Result<LimitHit> {
    let full = job.container.full_storage()?;
    if let Some(hit) = full.filter(|hit| hit.limit == LimitName::DiskFiles) {
        return Ok(hit);
    }
    // A file that does not fit may leave room: what was asked for says more.
    let allowed = job.spec.disk_bytes.get();
    let observed = job.spec.files.iter().map(|file| file.content.len() as u64).sum();
    Ok(LimitHit { limit: LimitName::DiskBytes, allowed, observed })
}

/// A step whose memory limit is less than what the job has stored already (v1 says so beforehand;
/// on v2 the OOM killer acts).
pub(super) fn does_not_fit(job: &mut Job<'_>, step: &StepSpec) -> StepOutcome {
    job.is_over = true;
    let allowed = step.limits.memory_bytes.get();
    let limit = LimitName::MemoryBytes;
    StepOutcome {
        limit_hit: Some(LimitHit { limit, allowed, observed: allowed }),
        detail: Some("what the job has stored already takes more memory than that".into()),
        ..not_run(step, Verdict::MemoryLimit)
    }
}

/// The outcome of a step whose working directory could not be entered.
pub(super) fn no_workdir(
    job: &mut Job<'_>,
    index: u16,
    step: &StepSpec,
    error: i32,
) -> Result<StepOutcome> {
    let error = io::Error::from_raw_os_error(error);
    let workdir = step.workdir.as_ref().unwrap_or(&job.spec.workdir);
    let workdir: String = workdir.chars().take(MAX_SHOWN_CHARACTERS).collect();
    let why = format!("could not enter the working directory `{workdir}`: {error}");
    end_like_a_shell(job, (index, step), EXIT_NOT_EXECUTABLE, &why)
}

/// The outcome of a step whose program could not be executed.
pub(super) fn not_executed(
    job: &mut Job<'_>,
    index: u16,
    step: &StepSpec,
    error: i32,
) -> Result<StepOutcome> {
    let (exit_code, why) = match error {
        libc::ENOENT => (EXIT_NOT_FOUND, "not found in the image".into()),
        libc::EACCES => (EXIT_NOT_EXECUTABLE, "not executable".into()),
        error => {
            let error = io::Error::from_raw_os_error(error);
            (EXIT_NOT_EXECUTABLE, format!("could not be executed: {error}"))
        }
    };
    end_like_a_shell(job, (index, step), exit_code, &why)
}

/// Ends a step with the exit code that a shell would answer with, and the reason on its stderr.
fn end_like_a_shell(
    job: &mut Job<'_>,
    (index, step): (u16, &StepSpec),
    exit_code: i32,
    why: &str,
) -> Result<StepOutcome> {
    let program = step.command.first().map_or("", String::as_str);
    // A name may be longer than a record.
    let program: String = program.chars().take(MAX_SHOWN_CHARACTERS).collect();
    let message = format!("lazaret: `{program}`: {why}\n");
    let t_ms = job.t_ms();
    job.spool.output(index, t_ms, Stream::Stderr, message.as_bytes()).at(Stage::Spool)?;
    Ok(StepOutcome {
        exit_code: Some(exit_code),
        detail: Some(message.trim_end().to_owned()),
        ..not_run(step, Verdict::Failure)
    })
}
