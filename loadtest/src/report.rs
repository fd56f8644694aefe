//! What a measurement says: a rate and percentiles.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Digits of a percentile that are right.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Latencies of one measurement, in microseconds.
#[derive(Debug)]
pub(crate) struct Report {
    histogram: Histogram<u64>,
    /// From the first job's start to the last one's end.
    elapsed: Duration,
}

impl Report {
    /// The report of jobs that took these times, `elapsed` all together.
    pub(crate) fn new(times: &[Duration], elapsed: Duration) -> Result<Self, crate::Error> {
        let refused = |error: &dyn fmt::Display| crate::Error::Unexpected(error.to_string());
        let mut histogram = Histogram::new(SIGNIFICANT_DIGITS).map_err(|error| refused(&error))?;
        for time in times {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            histogram.record(micros).map_err(|error| refused(&error))?;
        }
        Ok(Self { histogram, elapsed })
    }

    /// The report as one JSON object.
    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.histogram.len(),
            "jobs_per_s": self.jobs_per_s(),
            "median_us": self.percentile_us(50.0),
            "p95_us": self.percentile_us(95.0),
            "p99_us": self.percentile_us(99.0),
        })
    }

    fn percentile_us(&self, percentile: f64) -> u64 {
        self.histogram.value_at_percentile(percentile)
    }

    #[expect(clippy::cast_precision_loss, reason = "no one sends 2^52 jobs")]
    fn jobs_per_s(&self) -> f64 {
        let per_s = self.histogram.len() as f64 / self.elapsed.as_secs_f64();
        (per_s * 10.0).round() / 10.0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |percentile| Duration::from_micros(self.percentile_us(percentile));
        write!(
            f,
            "{} jobs, {:.1} jobs/s, p50 {:.2?}, p95 {:.2?}, p99 {:.2?}",
            self.histogram.len(),
            self.jobs_per_s(),
            ms(50.0),
            ms(95.0),
            ms(99.0)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_rate_are_those_of_the_times() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        let report = Report::new(&times, Duration::from_secs(2)).expect("a report");
        let json = report.json();
        assert_eq!((json["count"].as_u64(), json["jobs_per_s"].as_f64()), (Some(100), Some(50.0)));
        let p95 = json["p95_us"].as_u64().expect("a number");
        assert!(p95.abs_diff(95_000) < 100, "{p95}");
    }
}
