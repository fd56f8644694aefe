//! Buffers of sockets, where the kernel does not count them as memory (cgroup v1). It lets them
//! grow beyond their bound with the number of sockets, and tells nobody: so they are looked at.

use std::time::Duration;

use super::Running;
use crate::cgroup::Leaf;
use crate::error::{At as _, Result, Stage};

/// How often. In this time a CPU can fill some MiB of buffers.
const LOOK: Duration = Duration::from_millis(20);

/// When to look first, if at all.
pub(super) fn first_look(leaf: &Leaf, started: Duration) -> Option<Duration> {
    leaf.counts_sockets_apart().then_some(started + LOOK)
}

impl Running<'_, '_> {
    /// Ends the container if memory and buffers of sockets are more than the limit of memory, as
    /// the OOM killer would where the one includes the other.
    pub(super) fn look_at_sockets(&mut self, now: Duration) -> Result<()> {
        self.next_socket_look = Some(now + LOOK);
        let held = self.job.container.leaf.memory_with_sockets().at(Stage::Cgroup)?;
        if held.is_some_and(|bytes| bytes > self.step.limits.memory_bytes.get()) {
            self.memory_with_sockets = held;
            self.kill_container()?;
        }
        Ok(())
    }
}
