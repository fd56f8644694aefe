//! How a step ended, decided from what was observed. Nobody else decides it, and nobody guesses
//! it from a signal.

use std::time::Duration;

use crate::clock::{micros, millis};
use crate::orders::Exit;
use crate::outcome::{LimitHit, LimitName, Verdict};
use crate::spec::{Limits, OutputOverflow};

/// What was observed of a step, once nothing of it was left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// What the kernel said; nothing if init was killed before it could say it.
    pub(super) exit: Option<Exit>,
    pub(super) cpu_us: u64,
    pub(super) wall: Duration,
    pub(super) memory_peak_bytes: u64,
    pub(super) oom_kills: u64,
    /// What memory and buffers of sockets took together, if the step was ended for that.
    pub(super) memory_with_sockets: Option<u64>,
    pub(super) output_bytes: u64,
    pub(super) is_cancelled: bool,
    /// How long the job had run when its own bound ended this step, and the bound, in
    /// milliseconds.
    pub(super) job_wall_ms: Option<(u64, u64)>,
    /// What the storage had no more of, if that was so.
    pub(super) full_storage: Option<LimitHit>,
}

/// The verdict, and the limit that was met even where the verdict is another.
pub(super) fn decide(
    facts: &Facts,
    limits: &Limits,
    overflow: OutputOverflow,
) -> (Verdict, Option<LimitHit>) {
    if facts.is_cancelled {
        return (Verdict::Cancelled, None);
    }
    // In the order of api.md: where several apply, the first counts.
    let output = output_limit(facts, limits);
    if let Some(hit) = memory_limit(facts, limits) {
        return (Verdict::MemoryLimit, Some(hit));
    }
    if let (Some(hit), OutputOverflow::Kill) = (output, overflow) {
        return (Verdict::OutputLimit, Some(hit));
    }
    if let Some(hit) = cpu_limit(facts, limits) {
        return (Verdict::CpuLimit, Some(hit));
    }
    if let Some(hit) = wall_limit(facts, limits) {
        return (Verdict::WallLimit, Some(hit));
    }
    match facts.exit {
        Some(Exit::Code(0)) => (Verdict::Success, output),
        Some(Exit::Code(_)) => failed(facts, Verdict::Failure, output),
        Some(Exit::Signal(_)) | None => failed(facts, Verdict::Signaled, output),
    }
}

/// A step that failed on full storage failed for want of it.
fn failed(
    facts: &Facts,
    verdict: Verdict,
    output: Option<LimitHit>,
) -> (Verdict, Option<LimitHit>) {
    match facts.full_storage {
        Some(hit) => (Verdict::DiskLimit, Some(hit)),
        None => (verdict, output),
    }
}

/// Only a kill counts: page cache may touch the limit without harm.
fn memory_limit(facts: &Facts, limits: &Limits) -> Option<LimitHit> {
    let by_kernel = (facts.oom_kills > 0).then_some(facts.memory_peak_bytes);
    let observed = facts.memory_with_sockets.or(by_kernel)?;
    let allowed = limits.memory_bytes.get();
    Some(LimitHit { limit: LimitName::MemoryBytes, allowed, observed })
}

fn output_limit(facts: &Facts, limits: &Limits) -> Option<LimitHit> {
    let allowed = limits.output_bytes.get();
    (facts.output_bytes > allowed).then_some(LimitHit {
        limit: LimitName::OutputBytes,
        allowed,
        observed: facts.output_bytes,
    })
}

fn cpu_limit(facts: &Facts, limits: &Limits) -> Option<LimitHit> {
    let allowed = limits.cpu_ms.get();
    (facts.cpu_us >= allowed.saturating_mul(1000)).then_some(LimitHit {
        limit: LimitName::CpuMs,
        allowed,
        observed: facts.cpu_us / 1000,
    })
}

fn wall_limit(facts: &Facts, limits: &Limits) -> Option<LimitHit> {
    let allowed = limits.wall_ms.get();
    if micros(facts.wall) >= allowed.saturating_mul(1000) {
        let observed = millis(facts.wall);
        return Some(LimitHit { limit: LimitName::WallMs, allowed, observed });
    }
    let (observed, allowed) = facts.job_wall_ms?;
    Some(LimitHit { limit: LimitName::JobWallMs, allowed, observed })
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;
    use crate::spec::Cpus;

    const fn bound(value: u64) -> NonZeroU64 {
        NonZeroU64::new(value).unwrap()
    }

    const LIMITS: Limits = Limits {
        cpu_ms: bound(300),
        wall_ms: bound(500),
        memory_bytes: bound(64 << 20),
        pids: NonZeroU32::new(8).unwrap(),
        cpus: Cpus::ONE,
        output_bytes: bound(100),
        open_files: NonZeroU32::new(64).unwrap(),
    };

    const FINE: Facts = Facts {
        exit: Some(Exit::Code(0)),
        cpu_us: 299_999,
        wall: Duration::from_micros(499_999),
        memory_peak_bytes: 64 << 20,
        oom_kills: 0,
        memory_with_sockets: None,
        output_bytes: 100,
        is_cancelled: false,
        job_wall_ms: None,
        full_storage: None,
    };

    const FULL: LimitHit = LimitHit { limit: LimitName::DiskFiles, allowed: 1, observed: 1 };

    fn verdict(facts: &Facts) -> Verdict {
        decide(facts, &LIMITS, OutputOverflow::Kill).0
    }

    #[test]
    fn just_under_every_limit_is_a_success() {
        assert_eq!(decide(&FINE, &LIMITS, OutputOverflow::Kill), (Verdict::Success, None));
    }

    #[test]
    fn just_over_a_limit_is_caught_even_with_exit_code_0() {
        let cpu = Facts { cpu_us: 300_000, ..FINE };
        let wall = Facts { wall: Duration::from_millis(500), ..FINE };
        let memory = Facts { oom_kills: 1, ..FINE };
        let output = Facts { output_bytes: 101, ..FINE };
        assert_eq!(verdict(&cpu), Verdict::CpuLimit);
        assert_eq!(verdict(&wall), Verdict::WallLimit);
        assert_eq!(verdict(&memory), Verdict::MemoryLimit);
        let sockets = Facts { memory_with_sockets: Some(65 << 20), ..FINE };
        assert_eq!(verdict(&sockets), Verdict::MemoryLimit);
        assert_eq!(verdict(&output), Verdict::OutputLimit);
    }

    #[test]
    fn truncated_output_is_a_hit_but_no_verdict() {
        let facts = Facts { output_bytes: 101, ..FINE };
        let (verdict, hit) = decide(&facts, &LIMITS, OutputOverflow::Truncate);
        assert_eq!(verdict, Verdict::Success);
        let hit = hit.expect("a hit");
        assert_eq!((hit.limit, hit.allowed, hit.observed), (LimitName::OutputBytes, 100, 101));
    }

    #[test]
    fn where_several_apply_the_graver_counts() {
        let mut facts = Facts {
            exit: Some(Exit::Signal(9)),
            cpu_us: 300_000,
            wall: Duration::from_millis(500),
            oom_kills: 1,
            output_bytes: 101,
            is_cancelled: true,
            full_storage: Some(FULL),
            ..FINE
        };
        assert_eq!(verdict(&facts), Verdict::Cancelled);
        facts.is_cancelled = false;
        assert_eq!(verdict(&facts), Verdict::MemoryLimit);
        facts.oom_kills = 0;
        assert_eq!(verdict(&facts), Verdict::OutputLimit);
        facts.output_bytes = 0;
        assert_eq!(verdict(&facts), Verdict::CpuLimit);
        facts.cpu_us = 0;
        assert_eq!(verdict(&facts), Verdict::WallLimit);
        facts.wall = Duration::ZERO;
        assert_eq!(verdict(&facts), Verdict::DiskLimit);
        facts.full_storage = None;
        assert_eq!(verdict(&facts), Verdict::Signaled);
        facts.exit = Some(Exit::Code(3));
        assert_eq!(verdict(&facts), Verdict::Failure);
    }

    #[test]
    fn full_storage_is_no_fault_of_a_step_that_succeeded() {
        assert_eq!(verdict(&Facts { full_storage: Some(FULL), ..FINE }), Verdict::Success);
    }

    #[test]
    fn the_bound_of_the_job_is_told_apart_from_that_of_the_step() {
        let facts = Facts { job_wall_ms: Some((1001, 1000)), ..FINE };
        let (verdict, hit) = decide(&facts, &LIMITS, OutputOverflow::Kill);
        assert_eq!(verdict, Verdict::WallLimit);
        assert_eq!(hit.expect("a hit").limit, LimitName::JobWallMs);
    }
}
