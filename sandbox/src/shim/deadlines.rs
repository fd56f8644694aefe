//! When the shim has to act although nothing happens: one timer, set to the nearest deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::cgroup::CPU_PERIOD_US;
use crate::spec::Limits;

/// The shortest time between two looks at the CPU counter.
const SHORTEST_LOOK: Duration = Duration::from_micros(500);

/// A timer on the monotonic clock.
#[derive(Debug)]
pub(super) struct Timer {
    timer: OwnedFd,
    /// What it is set to, so that it is not set again.
    at: Option<Duration>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self { timer: timerfd_create(TimerfdClockId::Monotonic, flags)?, at: None })
    }

    /// Makes the timer readable at `at`.
    pub(super) fn set(&mut self, at: Duration) -> io::Result<()> {
        if self.at == Some(at) {
            return Ok(());
        }
        let it_value = Timespec::try_from(at).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        self.at = Some(at);
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// The soonest that a step can have used up its CPU time, from now on: it uses `cores` at most at
/// any time, and its quota in every period, of which a stretch of time may cut two.
pub(super) fn soonest_cpu_limit(limits: &Limits, used_us: u64, cores: u64) -> Duration {
    let left_us = limits.cpu_ms.get().saturating_mul(1000).saturating_sub(used_us);
    let all_cores = left_us / cores.max(1);
    let by_quota = left_us.saturating_mul(1000) / u64::from(limits.cpus.millis());
    let by_quota = by_quota.saturating_sub(2 * CPU_PERIOD_US);
    Duration::from_micros(all_cores.max(by_quota)).max(SHORTEST_LOOK)
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;
    use crate::spec::Cpus;

    fn limits(cpu_ms: u64, cpus: u32) -> Limits {
        let bound = |value| NonZeroU64::new(value).expect("not 0");
        Limits {
            cpu_ms: bound(cpu_ms),
            wall_ms: bound(1000),
            memory_bytes: bound(64 << 20),
            pids: NonZeroU32::MIN,
            cpus: Cpus::from_millis(cpus).expect("enough"),
            output_bytes: bound(1),
            open_files: NonZeroU32::MIN,
        }
    }

    #[test]
    fn the_counter_is_looked_at_no_sooner_than_the_limit_can_be_met() {
        assert_eq!(soonest_cpu_limit(&limits(300, 2000), 0, 2), Duration::from_millis(150));
        assert_eq!(soonest_cpu_limit(&limits(300, 2000), 200_000, 2), Duration::from_millis(50));
        // Half a CPU needs 20 s for 10 s of CPU time, less two periods.
        assert_eq!(soonest_cpu_limit(&limits(10_000, 500), 0, 2), Duration::from_millis(19_800));
    }

    #[test]
    fn the_looks_have_a_shortest_distance() {
        assert_eq!(soonest_cpu_limit(&limits(300, 1000), 299_999, 2), SHORTEST_LOOK);
        assert_eq!(soonest_cpu_limit(&limits(300, 1000), 400_000, 2), SHORTEST_LOOK);
    }
}
