//! What is left to do when a step has ended: read the rest of its output and its counters, and
//! decide its outcome.

use std::io;
use std::time::Duration;

use super::super::unrun;
use super::super::verdict::{Facts, decide};
use super::Running;
use crate::cgroup::Counters;
use crate::clock::{self, micros};
use crate::error::{At as _, Result, Stage};
use crate::orders::Exit;
use crate::outcome::{StepOutcome, Usage};

impl Running<'_, '_> {
    /// How the step ended, now that nothing of it is left.
    pub(super) fn finish(mut self) -> Result<StepOutcome> {
        if self.is_init_dead {
            self.job.is_over = true;
            self.job.container.reap()?;
            // It may have told just before it was killed.
            if self.ended.is_none() {
                self.hear_init()?;
            }
        }
        let ended_at = self.ended.map_or_else(clock::now, |ended| ended.at);
        self.hear_gate();
        self.with_output(|output, _, sink| output.drain(sink))?;
        let counters = self.job.container.leaf.counters().at(Stage::Cgroup)?;
        let usage = self.usage(&counters, ended_at.saturating_sub(self.started));
        if usage.oom_kills > 0 {
            // Even if the main process was not among the killed: what is left is half a job.
            self.job.is_over = true;
        }
        if self.is_init_dead && self.killed.is_none() && usage.oom_kills == 0 {
            return Err(io::Error::other("init ended by itself")).at(Stage::Init);
        }
        if let Some(error) = self.exec_error {
            let Self { job, index, step, .. } = self;
            return unrun::not_executed(job, index, step, error);
        }
        self.outcome(usage)
    }

    fn usage(&self, now: &Counters, wall: Duration) -> Usage {
        let since = |now: u64, then: u64| now.saturating_sub(then);
        Usage {
            cpu_us: since(now.cpu_us, self.baseline.cpu_us),
            cpu_user_us: since(now.cpu_user_us, self.baseline.cpu_user_us),
            cpu_system_us: since(now.cpu_system_us, self.baseline.cpu_system_us),
            wall_us: micros(wall),
            throttled_us: since(now.throttled_us, self.baseline.throttled_us),
            memory_peak_bytes: now.memory_peak_bytes,
            pids_peak: now.pids_peak,
            output_bytes: self.output.bytes,
            oom_kills: since(now.oom_kills, self.baseline.oom_kills),
        }
    }

    fn outcome(&self, usage: Usage) -> Result<StepOutcome> {
        let exit = match (self.ended, self.killed) {
            (Some(ended), _) => Some(ended.exit),
            // With PID 1 the kernel kills the others, by this signal.
            (None, Some(_)) => Some(Exit::Signal(libc::SIGKILL)),
            (None, None) => None,
        };
        let facts = Facts {
            exit,
            cpu_us: usage.cpu_us,
            wall: Duration::from_micros(usage.wall_us),
            memory_peak_bytes: usage.memory_peak_bytes,
            oom_kills: usage.oom_kills,
            memory_with_sockets: self.memory_with_sockets,
            output_bytes: usage.output_bytes,
            is_cancelled: self.job.server.is_cancelled && self.killed.is_some(),
            job_wall_ms: self.job_wall_ms,
            full_storage: self.job.container.full_storage()?,
        };
        let (verdict, limit_hit) = decide(&facts, &self.step.limits, self.step.output_overflow);
        let (exit_code, signal) = match exit {
            Some(Exit::Code(code)) => (Some(code), None),
            Some(Exit::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        let name = self.step.name.clone();
        Ok(StepOutcome { name, verdict, exit_code, signal, limit_hit, usage, detail: None })
    }
}
