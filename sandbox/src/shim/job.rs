//! A job as its shim sees it while it runs.

use std::time::Duration;

use super::container::Container;
use super::server::Server;
use crate::clock;
use crate::outcome::{StepOutcome, Verdict};
use crate::spec::{ContainerSpec, StepSpec, When};
use crate::spool::SpoolWriter;

/// A job while it runs.
pub(super) struct Job<'a> {
    pub(super) container: Container,
    pub(super) spec: &'a ContainerSpec,
    pub(super) spool: SpoolWriter,
    pub(super) server: &'a mut Server,
    /// CPUs of the host.
    pub(super) cores: u64,
    /// When its first program was executed.
    pub(super) started: Option<Duration>,
    /// Init was told to become the job's container: before the first step that is not left out.
    pub(super) is_built: bool,
    /// The steps that have ended.
    pub(super) steps: Vec<StepOutcome>,
    /// Nothing more can run: the container was killed.
    pub(super) is_over: bool,
    /// A step that was due was left out for that.
    pub(super) is_cut_short: bool,
}

impl Job<'_> {
    /// Whether the step runs, after those before it.
    pub(super) fn is_due(&self, step: &StepSpec) -> bool {
        let has_failed = verdict_of(self.spec, &self.steps) != Verdict::Success;
        match step.when {
            When::Success => !has_failed,
            When::Failure => has_failed,
            When::Always => true,
        }
    }

    /// Whether a step after this one might still run if this one fails.
    pub(super) fn may_go_on(&self, index: u16) -> bool {
        let later = self.spec.steps.iter().skip(usize::from(index) + 1);
        let may_fail = self.spec.steps.get(usize::from(index)).is_some_and(|s| s.allow_failure);
        later.into_iter().any(|step| may_fail || step.when != When::Success)
    }

    /// When the whole job's time is up.
    pub(super) fn deadline(&self) -> Duration {
        let bound = Duration::from_millis(self.spec.job_wall_ms.get());
        self.started.map_or(Duration::MAX, |started| started + bound)
    }

    /// Milliseconds since the first program was executed.
    pub(super) fn t_ms(&self) -> u64 {
        self.started.map_or(0, |started| clock::millis(clock::now().saturating_sub(started)))
    }
}

/// The verdict of the first step that did not succeed and was not allowed to fail. A step that was
/// left out because its condition did not hold says nothing.
pub(super) fn verdict_of(spec: &ContainerSpec, steps: &[StepOutcome]) -> Verdict {
    let failed = spec.steps.iter().zip(steps).find(|(spec, step)| {
        !matches!(step.verdict, Verdict::Success | Verdict::Skipped) && !spec.allow_failure
    });
    failed.map_or(Verdict::Success, |(_, step)| step.verdict)
}
