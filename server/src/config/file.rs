//! The configuration file: every key optional, every unknown key refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// Address and port of HTTP.
    pub listen: Option<SocketAddr>,
    /// Where everything durable is.
    pub data_dir: Option<PathBuf>,
    /// Where live containers keep their small state.
    pub run_dir: Option<PathBuf>,
    /// Where slots of host ids are locked.
    pub ids_dir: Option<PathBuf>,
    /// The cgroup below which containers get theirs.
    pub cgroup_parent: Option<String>,
    /// The image of a job that names none.
    pub default_image: Option<String>,
    /// Whether jobs may run as root inside their container.
    pub allow_root_user: Option<bool>,
    /// Jobs that may wait at one time.
    pub queue_max: Option<usize>,
    /// The largest request body.
    pub max_body_bytes: Option<usize>,
    /// How long a drain waits for running jobs.
    pub drain_timeout_ms: Option<u64>,
    /// How much longer than its own limit a container may take before its shim is given up.
    pub grace_ms: Option<u64>,
    /// Connections served at one time.
    pub max_connections: Option<usize>,
    /// Containers that are made ahead of time and wait.
    pub warm_containers: Option<usize>,
    /// The CPUs that all containers run on, as the kernel lists them: `0-3,6`.
    pub cpuset: Option<String>,
    /// Directories of the host that jobs may be shown, they and all below them.
    pub allowed_binds: Vec<BindFile>,
    /// Defaults and maxima of every limit.
    pub limits: LimitsFile,
    /// What all running jobs together may take.
    pub capacity: CapacityFile,
}

/// The table `[limits]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    /// CPU time of a step.
    pub cpu_ms: BoundFile,
    /// Wall time of a step.
    pub wall_ms: BoundFile,
    /// Wall time of a job.
    pub job_wall_ms: BoundFile,
    /// Memory of a step.
    pub memory_bytes: BoundFile,
    /// Processes of a step.
    pub pids: BoundFile,
    /// CPUs a step may keep busy.
    pub cpus: CpusFile,
    /// Output of a step.
    pub output_bytes: BoundFile,
    /// Storage of a job.
    pub disk_bytes: BoundFile,
    /// Descriptors of a process.
    pub open_files: BoundFile,
    /// What a job reads from, and writes to, the disk of a volume in a second.
    pub io_bytes_per_s: BoundFile,
}

/// One limit that is a whole number.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoundFile {
    /// What a job gets that names none.
    pub default: Option<u64>,
    /// The most a job may ask for.
    pub max: Option<u64>,
}

/// The limit that is a number of CPUs.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpusFile {
    /// What a job gets that names none.
    pub default: Option<f64>,
    /// The most a job may ask for.
    pub max: Option<f64>,
}

/// A directory of the host that jobs may be shown.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a path, or a table with `path` and `writable`")]
pub enum BindFile {
    /// To read.
    Path(PathBuf),
    /// As it says.
    Table(BindTable),
}

/// A directory of the host, and what jobs may do with it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindTable {
    /// Where it is.
    pub path: PathBuf,
    /// Whether jobs may write to it.
    #[serde(default)]
    pub writable: bool,
}

/// The table `[capacity]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityFile {
    /// CPUs for all running jobs together.
    pub cpus: Option<f64>,
    /// Memory for all running jobs together.
    pub memory_bytes: Option<u64>,
}

impl ConfigFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// If it cannot be read or does not say what it should; the message has the line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError(format!("could not read configuration `{}`: {error}", path.display()))
        })?;
        toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text[..start].matches('\n').count() + 1;
            ConfigError(format!(
                "configuration `{}`, line {line}: {}",
                path.display(),
                error.message()
            ))
        })
    }
}
