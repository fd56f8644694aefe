//! The one place that reads the clock of the wall; everything else has the time passed in.

use jiff::Timestamp;

/// Now, as exactly as the store keeps it.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}
