//! The monotonic clock, which all processes of a container share.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time now, on `CLOCK_MONOTONIC`.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    // The monotonic clock is never negative.
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanoseconds)
}

/// Whole milliseconds, as far as they fit.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole microseconds, as far as they fit.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
