//! Buffers of sockets, where the kernel does not count them as memory (cgroup v1). It lets them
//! grow beyond their bound with the number of sockets, and tells nobody: so they are looked at.
//!
//! Filling them takes CPU. A step that uses little is looked at less and less often, so that a
//! thousand sleeping ones cost next to nothing.

use std::time::Duration;

use super::Running;
use crate::cgroup::Leaf;
use crate::clock::micros;
use crate::error::{At as _, Result, Stage};

/// How often at the most: in this time a CPU can fill some MiB of buffers.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// How often at the least.
const LONGEST_PAUSE: Duration = Duration::from_millis(320);
/// A step that used less than one part in so many of the time of one CPU was idle.
const IDLE_PART: u64 = 20;

/// When to look, and what the last look saw.
#[derive(Debug)]
pub(super) struct SocketWatch {
    pub(super) next_look: Duration,
    pause: Duration,
    cpu_us: u64,
}

impl SocketWatch {
    /// The watch of a step, if there is anything to watch.
    pub(super) fn new(leaf: &Leaf, started: Duration, cpu_us: u64) -> Option<Self> {
        let pause = SHORTEST_PAUSE;
        let next_look = started + pause;
        leaf.counts_sockets_apart().then_some(Self { next_look, pause, cpu_us })
    }

    fn looked(&mut self, now: Duration, cpu_us: u64) {
        let used = cpu_us.saturating_sub(std::mem::replace(&mut self.cpu_us, cpu_us));
        let is_idle = used < micros(self.pause) / IDLE_PART;
        self.pause = if is_idle { (self.pause * 2).min(LONGEST_PAUSE) } else { SHORTEST_PAUSE };
        self.next_look = now + self.pause;
    }
}

impl Running<'_, '_> {
    /// Ends the container if memory and buffers of sockets are more than the limit of memory, as
    /// the OOM killer would where the one includes the other.
    pub(super) fn look_at_sockets(&mut self, now: Duration) -> Result<()> {
        let Some(watch) = self.sockets.as_mut().filter(|watch| now >= watch.next_look) else {
            return Ok(());
        };
        let leaf = &self.job.container.leaf;
        watch.looked(now, leaf.cpu_us().at(Stage::Cgroup)?);
        let held = leaf.memory_with_sockets().at(Stage::Cgroup)?;
        if held.is_some_and(|bytes| bytes > self.step.limits.memory_bytes.get()) {
            self.memory_with_sockets = held;
            self.kill_container()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_step_is_looked_at_less_often_until_it_is_busy() {
        let (mut now, pause, cpu_us) = (Duration::ZERO, SHORTEST_PAUSE, 1000);
        let mut watch = SocketWatch { next_look: now + pause, pause, cpu_us };
        for expected in [40, 80, 160, 320, 320] {
            now = watch.next_look;
            watch.looked(now, cpu_us + 1);
            assert_eq!(watch.next_look - now, Duration::from_millis(expected));
        }
        watch.looked(now, cpu_us + 100_000);
        assert_eq!(watch.next_look - now, SHORTEST_PAUSE);
    }
}
