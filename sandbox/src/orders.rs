//! What shim and init tell each other: plain data, drawn at the top of `init.rs`.

use std::io::{self, ErrorKind};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use rustix::process::WaitStatus;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Stage};
use crate::spec::{RootUse, Rootfs, User, VolumeMount};

/// What the shim asks of init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Become the container; the mounts of its volumes travel along. As many files follow as it
    /// says; all together are answered with `Built`.
    Become(Container),
    /// Write a file below the working directory; `bytes` raw bytes follow.
    File { path: String, mode: u32, bytes: u64 },
    /// Run a step; the descriptors of [`Stdio`] travel along. Answered with `Ended`.
    Run(Step),
    /// Kill the step that runs.
    Kill,
}

/// What the container is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Container {
    pub(crate) rootfs: Rootfs,
    pub(crate) volumes: Vec<VolumeMount>,
    pub(crate) user: User,
    pub(crate) workdir: String,
    pub(crate) disk_bytes: NonZeroU64,
    pub(crate) root_use: RootUse,
    /// How many orders to write a file follow.
    pub(crate) files: usize,
}

/// One command to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Absolute, inside the container.
    pub(crate) workdir: String,
    pub(crate) open_files: NonZeroU32,
}

/// What init tells the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Ready to become a container; the storage travels along.
    Prepared,
    /// The container is the job's, with its files in place.
    Built,
    /// The step's main process has ended, and nothing but init is left.
    Ended(Ended),
    /// The order could not be carried out.
    Failed(Failure),
}

/// How a step's main process ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    /// When it was reaped, on the monotonic clock.
    pub(crate) at: Duration,
}

/// What the kernel said of the main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    /// It exited by itself.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Exit {
    /// What a status says; nothing if the process has only stopped.
    pub(crate) fn of(status: WaitStatus) -> Option<Self> {
        let code = status.exit_status().map(Self::Code);
        code.or_else(|| status.terminating_signal().map(Self::Signal))
    }
}

/// A failure of ours that crosses a process boundary.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    pub(crate) message: String,
    pub(crate) cause: Cause,
}

/// What a failure means for the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    /// The container's storage is full.
    StorageFull,
    /// The image does not allow it, for instance a file where there is a directory.
    Refused,
    /// Something of ours.
    Ours,
}

impl From<&io::Error> for Cause {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum")]
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull => Self::StorageFull,
            ErrorKind::AlreadyExists
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem => Self::Refused,
            _ => Self::Ours,
        }
    }
}

impl From<Cause> for ErrorKind {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::StorageFull => Self::StorageFull,
            Cause::Refused => Self::PermissionDenied,
            Cause::Ours => Self::Other,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            stage: error.stage,
            cause: Cause::from(&error.source),
            message: error.source.to_string(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let source = io::Error::new(failure.cause.into(), failure.message);
        Self { stage: failure.stage, source }
    }
}
