//! What a container is asked to be and to run: plain data, checked where it is made, sent to a
//! shim as one frame.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The smallest `memory_bytes` that can hold init, the loader and a small program.
pub const MIN_MEMORY_BYTES: u64 = 6 << 20;
/// The smallest `disk_bytes`: a tmpfs of a few pages cannot even hold the overlay's directories.
pub const MIN_DISK_BYTES: u64 = 1 << 20;
/// The smallest `io_bytes_per_s`: with less, a program on the same disk would not get loaded.
pub const MIN_IO_BYTES_PER_S: u64 = 1 << 20;
/// The most volumes of one container.
pub const MAX_VOLUMES: usize = 16;
/// The most bytes that arguments and environment of one step may have together. The kernel allows
/// 2 MiB (a quarter of the 8 MiB stack) and 128 KiB for a single string (execve(2)).
pub const MAX_ARGUMENT_BYTES: usize = 1 << 20;
/// The longest single argument or environment entry, without its NUL (`MAX_ARG_STRLEN`, execve(2)).
pub const MAX_ARGUMENT_LENGTH: usize = (128 << 10) - 1;
/// The highest user or group id that exists inside a container; 65535 is init's own.
pub const MAX_ID: u32 = 65_534;

/// One container: its files, its user, and the steps it runs in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// What the state file in `$run` says this container runs: a job id, for people and take-over.
    pub label: String,
    /// The image's directories.
    pub rootfs: Rootfs,
    /// Who the steps run as.
    pub user: User,
    /// Where steps start and files land: absolute, made if it is missing, owned by `user`.
    pub workdir: String,
    /// Files put below `workdir` before the first step.
    pub files: Vec<InputFile>,
    /// Directories of the host that it is shown, at most [`MAX_VOLUMES`]. None of their targets is
    /// another's, or below it.
    pub volumes: Vec<VolumeMount>,
    /// What is run, in order, on one file system.
    pub steps: Vec<StepSpec>,
    /// Bound of everything the container stores: upper layer, `/tmp` and `/dev/shm` together.
    pub disk_bytes: NonZeroU64,
    /// What it may read from, and write to, each block device that a volume is on, in bytes per
    /// second. Without volumes it has no meaning.
    pub io_bytes_per_s: NonZeroU64,
    /// Bound of the whole container from its first `exec`, in milliseconds.
    pub job_wall_ms: NonZeroU64,
    /// What becomes of it if whoever has started it goes away before it has ended.
    pub when_alone: WhenAlone,
    /// What its root is for.
    pub root_use: RootUse,
}

/// What the root of a container is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootUse {
    /// A job: `/tmp` is its own, and the working directory its user's.
    Job,
    /// A step of a build: all of it becomes an image, `/tmp`, too, and every directory belongs to
    /// whom it did. The container's `workdir` has no meaning, and there are no files.
    Build,
}

/// What becomes of a container whose caller has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenAlone {
    /// It runs to its end, which is kept in `$run` for the caller's successor.
    GoesOn,
    /// It is cancelled, for nobody will ever ask.
    Ends,
}

/// The directories that an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// The directory on the host that has all layers.
    pub directory: PathBuf,
    /// What they are called there, the topmost first.
    pub layers: Vec<String>,
    /// Whether the layers hold ids 0 to 65535 as an image has them, to be shifted into the
    /// container's range by id-mapped mounts. False for the built-in `host` image.
    pub is_id_mapped: bool,
    /// Host directories shown read-only over the merged tree (only the `host` image has any).
    pub binds: Vec<Bind>,
}

impl Rootfs {
    /// Where the layers are on the host, the topmost first.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| self.directory.join(layer)).collect()
    }
}

/// A host directory or file shown read-only inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Path inside the container, relative to its root; it exists in a layer that we made.
    pub target: PathBuf,
}

/// A host directory shown inside the container, which may write to it. Ids 0 to 65535 on its file
/// system are the same ids inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Absolute path on the host, without a symbolic link.
    pub source: PathBuf,
    /// What the shim keeps a shared lock on while the container lives (flock(2)): the directory by
    /// which whoever would remove the volume finds that it is in use.
    pub held: Option<PathBuf>,
    /// Absolute path inside the container, made if it is missing: not `/`, no `..`.
    pub target: String,
    /// What may be done with it.
    pub access: Access,
}

/// What a container may do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// The ids that steps run as, inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id, 0 to [`MAX_ID`].
    pub uid: u32,
    /// Group id, 0 to [`MAX_ID`].
    pub gid: u32,
    /// Supplementary groups, each 0 to [`MAX_ID`].
    pub groups: Vec<u32>,
}

/// A file put into the container before it runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Path below the working directory: relative, no `..`, no empty component, no NUL.
    pub path: String,
    /// Permission bits, at most `0o777`.
    pub mode: u32,
    /// The file's bytes.
    #[serde(with = "serde_bytes")]
    pub content: Vec<u8>,
}

impl std::fmt::Debug for InputFile {
    /// Without the content: it may be large, and it is the client's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InputFile")
            .field("path", &self.path)
            .field("mode", &self.mode)
            .field("content_bytes", &self.content.len())
            .finish()
    }
}

/// One command and what it may use.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSpec {
    /// Shown in outcomes and log events.
    pub name: String,
    /// Program and arguments, exec'd as they are. A program without `/` is looked up in the
    /// step's `PATH`, inside the container.
    pub command: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Where this step starts, if not in the container's `workdir`.
    pub workdir: Option<String>,
    /// What the program reads; after it comes end of file.
    #[serde(with = "serde_bytes")]
    pub stdin: Vec<u8>,
    /// What the step may use.
    pub limits: Limits,
    /// What output beyond `output_bytes` means.
    pub output_overflow: OutputOverflow,
    /// Whether the step runs, depending on the steps before it.
    pub when: When,
    /// Whether the job goes on as if this step had succeeded when it did not.
    pub allow_failure: bool,
}

impl StepSpec {
    /// Whether output beyond the limit ends the step.
    pub(crate) fn kills_on_overflow(&self) -> bool {
        self.output_overflow == OutputOverflow::Kill
    }
}

impl std::fmt::Debug for StepSpec {
    /// Without stdin and environment: they are the client's and may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepSpec")
            .field("name", &self.name)
            .field("command", &self.command)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// What one step may use. Zero cannot be said: the kernel reads it as "unlimited" in places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time of all processes of the step together, in milliseconds.
    pub cpu_ms: NonZeroU64,
    /// Time from `exec` on the monotonic clock, in milliseconds.
    pub wall_ms: NonZeroU64,
    /// Memory of all processes, page cache and kernel objects included; at least
    /// [`MIN_MEMORY_BYTES`].
    pub memory_bytes: NonZeroU64,
    /// Processes and threads at one time, the step's own main process counted.
    pub pids: NonZeroU32,
    /// How many CPUs the step may keep busy.
    pub cpus: Cpus,
    /// Bytes of stdout and stderr together.
    pub output_bytes: NonZeroU64,
    /// Descriptors a process may have open (`RLIMIT_NOFILE`).
    pub open_files: NonZeroU32,
}

/// An amount of CPU, in thousandths of one CPU: `Cpus::from_millis(500)` is half a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cpus(NonZeroU32);

impl Cpus {
    /// One whole CPU.
    pub const ONE: Self = Self(NonZeroU32::new(1000).unwrap());
    /// The least that the kernel can enforce: 1 ms in a period of 100 ms.
    pub const MIN: Self = Self(NonZeroU32::new(10).unwrap());

    /// `millis` thousandths of a CPU, or `None` below [`Cpus::MIN`].
    #[must_use]
    pub fn from_millis(millis: u32) -> Option<Self> {
        NonZeroU32::new(millis).map(Self).filter(|cpus| *cpus >= Self::MIN)
    }

    /// Thousandths of a CPU.
    #[must_use]
    pub const fn millis(self) -> u32 {
        self.0.get()
    }
}

/// What output beyond `output_bytes` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputOverflow {
    /// The step is killed, with the verdict `output_limit`.
    Kill,
    /// What is beyond the limit is counted and thrown away; the step goes on.
    Truncate,
}

/// Whether a step runs, depending on the steps before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Only while every earlier step succeeded or was allowed to fail.
    Success,
    /// Only after an earlier step has failed.
    Failure,
    /// In any case, as long as the container lives.
    Always,
}
