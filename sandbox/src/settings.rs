//! What all containers of one server share.

use std::num::NonZeroU64;
use std::path::PathBuf;

use crate::cpuset::Cpuset;

/// What all containers of one server share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `$run`: a directory on tmpfs that is this server's alone; made if it is missing.
    pub run_dir: PathBuf,
    /// Where slots of host ids are locked; the same for every server of the host.
    pub ids_dir: PathBuf,
    /// The cgroup below which containers get theirs, in every hierarchy, e.g. `lazaret/main`.
    /// Relative to the hierarchy's root.
    pub cgroup_parent: String,
    /// What all containers together may hold in memory, so that the host keeps the rest; no bound
    /// of their own if there is none.
    pub memory_bytes: Option<NonZeroU64>,
    /// The CPUs that all containers run on; all that the host has if there is none.
    pub cpuset: Option<Cpuset>,
}
