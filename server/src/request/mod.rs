//! What a client sends to make a job, as it is written in JSON. [`check`] makes a job of it.

mod check;
pub(crate) mod commit;
mod content;
mod environment;
mod errors;
mod files;
mod limits;
mod members;
mod object;
mod paths;
#[cfg(test)]
mod tests;
mod volumes;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use check::{CheckError, Rules, check};
pub use content::{Content, FileContent};
pub use limits::{Amount, in_cpus};
pub use members::Members;
pub use volumes::{VolumeRequest, targets_apart, volume_target};

/// One thing that is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Where in the body, as a JSON pointer (RFC 6901).
    #[schema(example = "/limits/cpu_ms")]
    pub pointer: String,
    /// What is wrong there, and what would be right.
    pub detail: String,
}

/// A job to be made. At most one of `command`, `script` and `steps` says what is run; without any
/// it is what the image was made to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({"command": ["python3", "main.py"], "files": {"main.py": "print(1)"}}))]
pub struct JobRequest {
    /// Name of the image it runs in. Default: the server's default image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Program and arguments, run as they are, without a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Lines for the image's `/bin/sh -e`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Several commands, run one after another on one file system.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "object::maybe_list")]
    pub steps: Option<Vec<StepRequest>>,
    /// What `command` or `script` reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Content>,
    /// Files put into `workdir` before anything runs, by their relative path.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, FileContent>>)]
    pub files: Option<Members<FileContent>>,
    /// Environment variables, put over those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub env: Option<Members<String>>,
    /// Where files land and steps start. Absolute. Default: the image's, else `/workspace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Who steps run as: name or id, and `:group`. Default: the image's user, else 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Directories that it is shown beside its image: volumes of the server, and what of its host
    /// the configuration allows. At most 16.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "object::maybe_list")]
    pub volumes: Option<Vec<VolumeRequest>>,
    /// What each step may use.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "object::maybe")]
    pub limits: Option<LimitsRequest>,
    /// Bound of the whole job, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub job_wall_ms: Option<Amount>,
    /// What output beyond `output_bytes` means. Default: `kill`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_overflow: Option<OverflowName>,
    /// What the job reaches. Default, and for now the only one: `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// Name of an image that is made of this job's image and all that the job wrote to it, once it
    /// has ended with the verdict `success`. What is in `/tmp` is not part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "python-with-numpy:1")]
    pub commit: Option<String>,
    /// Notes by which jobs can be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub labels: Option<Members<String>>,
    /// Jobs of a higher one start earlier. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i16>, minimum = -100, maximum = 100)]
    pub priority: Option<Amount>,
}

/// One of several commands.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct StepRequest {
    /// Shown in outcomes and log events. Default: `step 1` and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Program and arguments, run as they are, without a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Lines for the image's `/bin/sh -e`, instead of `command`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// What it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Content>,
    /// Environment variables, put over those of the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub env: Option<Members<String>>,
    /// Where it starts. Absolute. Default: the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// What it may use, put over what the job says.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "object::maybe")]
    pub limits: Option<LimitsRequest>,
    /// Whether it runs, depending on the steps before it. Default: `success`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<WhenName>,
    /// Whether the job goes on as if it had succeeded when it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_failure: Option<bool>,
}

/// What a step may use. What is not said is the server's default: see `GET /v1/limits`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct LimitsRequest {
    /// CPU time of all processes together, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub cpu_ms: Option<Amount>,
    /// Time from start to end, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub wall_ms: Option<Amount>,
    /// Memory of all processes together, page cache included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub memory_bytes: Option<Amount>,
    /// Processes and threads at one time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub pids: Option<Amount>,
    /// CPUs that may be kept busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.01)]
    pub cpus: Option<f64>,
    /// Bytes of stdout and stderr together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub output_bytes: Option<Amount>,
    /// Storage of the whole job; not of one of several steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub disk_bytes: Option<Amount>,
    /// Descriptors a process may have open.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub open_files: Option<Amount>,
    /// Bytes read from, and written to, the disk of a volume in a second; not of one of several
    /// steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub io_bytes_per_s: Option<Amount>,
}

/// What output beyond `output_bytes` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OutputOverflow)]
pub enum OverflowName {
    /// The step is killed, with the verdict `output_limit`.
    Kill,
    /// What is beyond the limit is counted and thrown away.
    Truncate,
}

/// Whether a step runs, depending on the steps before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = When)]
pub enum WhenName {
    /// Only while every earlier step succeeded or was allowed to fail.
    Success,
    /// Only after an earlier step has failed.
    Failure,
    /// In any case.
    Always,
}

/// What a job reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Network)]
pub enum NetworkName {
    /// Nothing but itself.
    None,
}

/// A name as one segment of a JSON pointer (RFC 6901).
#[must_use]
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
