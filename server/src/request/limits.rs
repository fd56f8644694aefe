//! The limits of a request: a default for what is not said, a bound for what is.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use lazaret_sandbox::spec::{Cpus, Limits};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LimitsRequest;
use super::errors::Errors;
use crate::config::{Bound, LimitPolicy};
use crate::job::spec::cpus_from_number;

/// A whole number as a client wrote it, also one that no limit can be: to be refused with the
/// bounds named, not for its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub i128);

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i128(self.0)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E>(self, value: i64) -> Result<Amount, E> {
                Ok(Amount(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Amount, E> {
                Ok(Amount(value.into()))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

/// The number that was asked for, or the default. What is out of bounds is an error and counts as
/// the default, so that the check can go on and find what else is wrong.
pub(super) fn amount(
    pointer: &str,
    asked: Option<Amount>,
    bound: Bound,
    errors: &mut Errors,
) -> u64 {
    let Some(Amount(asked)) = asked else { return bound.default };
    match u64::try_from(asked) {
        Ok(value) if (bound.min..=bound.max).contains(&value) => value,
        Ok(_) | Err(_) => {
            let Bound { min, max, .. } = bound;
            errors.add(pointer, format!("`{asked}` is not allowed: choose {min} to {max}"));
            bound.default
        }
    }
}

/// The limits of a step: what it says, else what the job says, else the default. Errors point to
/// `pointer`, below which `asked` was written.
pub(super) fn step_limits(
    pointer: &str,
    asked: &LimitsRequest,
    policy: &LimitPolicy,
    errors: &mut Errors,
) -> Limits {
    let mut number = |name: &str, asked, bound| {
        let value = amount(&format!("{pointer}/{name}"), asked, bound, errors);
        NonZeroU64::new(value).unwrap_or(NonZeroU64::MIN)
    };
    let small = |value: NonZeroU64| NonZeroU32::try_from(value).unwrap_or(NonZeroU32::MAX);
    Limits {
        cpu_ms: number("cpu_ms", asked.cpu_ms, policy.cpu_ms),
        wall_ms: number("wall_ms", asked.wall_ms, policy.wall_ms),
        memory_bytes: number("memory_bytes", asked.memory_bytes, policy.memory_bytes),
        pids: small(number("pids", asked.pids, policy.pids)),
        output_bytes: number("output_bytes", asked.output_bytes, policy.output_bytes),
        open_files: small(number("open_files", asked.open_files, policy.open_files)),
        cpus: cpus(pointer, asked.cpus, policy.cpu_millis, errors),
    }
}

fn cpus(pointer: &str, asked: Option<f64>, bound: Bound, errors: &mut Errors) -> Cpus {
    let of_millis = |millis| u32::try_from(millis).ok().and_then(Cpus::from_millis);
    let default = of_millis(bound.default).unwrap_or(Cpus::ONE);
    let Some(asked) = asked else { return default };
    match cpus_from_number(asked) {
        Some(cpus) if (bound.min..=bound.max).contains(&u64::from(cpus.millis())) => cpus,
        Some(_) | None => {
            let [min, max] = [bound.min, bound.max].map(in_cpus);
            let detail = format!("`{asked}` is not allowed: choose {min} to {max}");
            errors.add(format!("{pointer}/cpus"), detail);
            default
        }
    }
}

/// Thousandths of a CPU as a number of CPUs.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a number of CPUs is far below 2^53")]
pub fn in_cpus(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

/// What a step says, put over what its job says.
pub(super) fn merged(step: Option<LimitsRequest>, job: &LimitsRequest) -> LimitsRequest {
    let step = step.unwrap_or_default();
    LimitsRequest {
        cpu_ms: step.cpu_ms.or(job.cpu_ms),
        wall_ms: step.wall_ms.or(job.wall_ms),
        memory_bytes: step.memory_bytes.or(job.memory_bytes),
        pids: step.pids.or(job.pids),
        cpus: step.cpus.or(job.cpus),
        output_bytes: step.output_bytes.or(job.output_bytes),
        disk_bytes: job.disk_bytes,
        open_files: step.open_files.or(job.open_files),
        io_bytes_per_s: job.io_bytes_per_s,
    }
}
