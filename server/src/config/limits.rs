//! Defaults and maxima of every limit.

use lazaret_sandbox::spec::{Cpus, MIN_DISK_BYTES, MIN_IO_BYTES_PER_S, MIN_MEMORY_BYTES};

use super::ConfigError;
use super::file::{BoundFile, CpusFile, LimitsFile};

/// What one limit may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The least that makes sense.
    pub min: u64,
    /// What a job gets that names none.
    pub default: u64,
    /// The most a job may ask for.
    pub max: u64,
}

/// What every limit may be. Counted in the unit of its name; CPUs in thousandths of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitPolicy {
    /// CPU time of a step.
    pub cpu_ms: Bound,
    /// Wall time of a step.
    pub wall_ms: Bound,
    /// Wall time of a job.
    pub job_wall_ms: Bound,
    /// Memory of a step.
    pub memory_bytes: Bound,
    /// Processes of a step.
    pub pids: Bound,
    /// CPUs a step may keep busy, in thousandths of one.
    pub cpu_millis: Bound,
    /// Output of a step.
    pub output_bytes: Bound,
    /// Storage of a job.
    pub disk_bytes: Bound,
    /// Descriptors of a process.
    pub open_files: Bound,
    /// What a job reads from, and writes to, the disk of a volume in a second.
    pub io_bytes_per_s: Bound,
}

const MINUTE_MS: u64 = 60_000;
const MIB: u64 = 1 << 20;

impl Default for LimitPolicy {
    fn default() -> Self {
        let bound = |min, default, max| Bound { min, default, max };
        Self {
            cpu_ms: bound(1, 10_000, 10 * MINUTE_MS),
            wall_ms: bound(1, 20_000, 60 * MINUTE_MS),
            job_wall_ms: bound(1, 10 * MINUTE_MS, 120 * MINUTE_MS),
            memory_bytes: bound(MIN_MEMORY_BYTES, 256 * MIB, 4096 * MIB),
            pids: bound(1, 64, 4096),
            cpu_millis: bound(u64::from(Cpus::MIN.millis()), 1000, 64_000),
            output_bytes: bound(1, MIB, 256 * MIB),
            disk_bytes: bound(MIN_DISK_BYTES, 128 * MIB, 4096 * MIB),
            // Below 16 the loader of a dynamic program already fails in ways nobody understands.
            open_files: bound(16, 256, 4096),
            io_bytes_per_s: bound(MIN_IO_BYTES_PER_S, 64 * MIB, 4096 * MIB),
        }
    }
}

impl LimitPolicy {
    /// The defaults with what the file says put over them.
    ///
    /// # Errors
    /// If a default is beyond its maximum, or either below what makes sense.
    pub(super) fn from_file(file: &LimitsFile) -> Result<Self, ConfigError> {
        let base = Self::default();
        Ok(Self {
            cpu_ms: overlay("cpu_ms", base.cpu_ms, &file.cpu_ms)?,
            wall_ms: overlay("wall_ms", base.wall_ms, &file.wall_ms)?,
            job_wall_ms: overlay("job_wall_ms", base.job_wall_ms, &file.job_wall_ms)?,
            memory_bytes: overlay("memory_bytes", base.memory_bytes, &file.memory_bytes)?,
            pids: narrow(overlay("pids", base.pids, &file.pids)?),
            cpu_millis: overlay("cpus", base.cpu_millis, &in_millis(&file.cpus)?)?,
            output_bytes: overlay("output_bytes", base.output_bytes, &file.output_bytes)?,
            disk_bytes: overlay("disk_bytes", base.disk_bytes, &file.disk_bytes)?,
            open_files: narrow(overlay("open_files", base.open_files, &file.open_files)?),
            io_bytes_per_s: overlay("io_bytes_per_s", base.io_bytes_per_s, &file.io_bytes_per_s)?,
        })
    }
}

/// A bound whose values fit the 32 bits that the kernel has for them.
fn narrow(bound: Bound) -> Bound {
    let highest = u64::from(u32::MAX);
    Bound { default: bound.default.min(highest), max: bound.max.min(highest), ..bound }
}

fn in_millis(file: &CpusFile) -> Result<BoundFile, ConfigError> {
    let millis = |cpus| cpu_millis("limits.cpus", cpus).map(u64::from);
    Ok(BoundFile {
        default: file.default.map(millis).transpose()?,
        max: file.max.map(millis).transpose()?,
    })
}

fn overlay(name: &str, base: Bound, file: &BoundFile) -> Result<Bound, ConfigError> {
    let max = file.max.unwrap_or(base.max);
    // Whoever lowers only the maximum means jobs that name nothing, too.
    let default = file.default.unwrap_or(base.default.min(max));
    if max < base.min || max > i64::MAX.unsigned_abs() {
        return Err(ConfigError(format!(
            "`limits.{name}`: `max` is `{max}`: choose at least {}",
            base.min
        )));
    }
    if !(base.min..=max).contains(&default) {
        return Err(ConfigError(format!(
            "`limits.{name}`: `default` is `{default}`: choose {} to {max}",
            base.min
        )));
    }
    Ok(Bound { min: base.min, default, max })
}

/// Thousandths of a CPU, from a number of CPUs in the file.
pub(super) fn cpu_millis(name: &str, cpus: f64) -> Result<u32, ConfigError> {
    crate::job::spec::cpus_from_number(cpus)
        .map(Cpus::millis)
        .ok_or_else(|| ConfigError(format!("`{name}` is `{cpus}`: choose 0.01 to 1000")))
}
