//! Our own failures: an error names the stage it happened at and keeps its source.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of ours, never of the program in the container.
#[derive(Debug, thiserror::Error)]
#[error("{stage}: {source}")]
pub struct Error {
    /// What was being done.
    pub stage: Stage,
    /// What went wrong.
    #[source]
    pub source: io::Error,
}

/// The stages of a container's life at which something of ours can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Forking the zygote or talking to it.
    Zygote,
    /// Forking a shim or talking to it.
    Shim,
    /// Making the container's directory in `$run`, or finding what a dead shim left there.
    RunDirectory,
    /// Choosing the host ids of the container.
    Ids,
    /// Making, limiting or reading the cgroup.
    Cgroup,
    /// Keeping all containers to the CPUs that were chosen.
    Cpuset,
    /// Making the namespaces.
    Namespaces,
    /// Starting init or talking to it.
    Init,
    /// Mounting the container's root file system.
    Rootfs,
    /// Holding, opening or throttling a volume.
    Volumes,
    /// Making `/dev`.
    Devices,
    /// Mounting and masking `/proc`.
    Proc,
    /// Joining the user namespace and giving up privileges.
    Privileges,
    /// Setting resource limits.
    Rlimits,
    /// Building or installing the seccomp filters.
    Seccomp,
    /// Writing the job's files.
    Files,
    /// Making a step's process and its pipes.
    Step,
    /// Writing or reading the spool.
    Spool,
    /// Reading, writing or unpacking an image.
    Image,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zygote => "zygote",
            Self::Shim => "shim",
            Self::RunDirectory => "run directory",
            Self::Ids => "ids",
            Self::Cgroup => "cgroup",
            Self::Cpuset => "cpuset",
            Self::Namespaces => "namespaces",
            Self::Init => "init",
            Self::Rootfs => "root file system",
            Self::Volumes => "volumes",
            Self::Devices => "devices",
            Self::Proc => "proc",
            Self::Privileges => "privileges",
            Self::Rlimits => "rlimits",
            Self::Seccomp => "seccomp",
            Self::Files => "files",
            Self::Step => "step",
            Self::Spool => "spool",
            Self::Image => "image",
        })
    }
}

/// Adds the stage to a failure.
pub trait At<T> {
    /// The same result, its error naming `stage`.
    fn at(self, stage: Stage) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, stage: Stage) -> Result<T> {
        self.map_err(|source| Error { stage, source: source.into() })
    }
}

/// Says what an operating system error was about, keeping its kind.
pub(crate) trait Context<T> {
    /// The same result, its message opened with `what`, e.g. "could not mount `/proc`".
    fn context(self, what: impl FnOnce() -> String) -> io::Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> io::Result<T> {
        self.map_err(|source| {
            let source: io::Error = source.into();
            io::Error::new(source.kind(), format!("{}: {source}", what()))
        })
    }
}
