//! Fresh containers for untrusted programs: made for one job, bounded by cgroups, closed in by
//! namespaces and seccomp, gone without a trace.

mod cgroup;
mod clock;
mod container;
pub mod error;
pub mod handle;
pub mod image;
mod init;
pub mod outcome;
mod run_dir;
mod shim;
pub mod spec;
pub mod spool;
mod step;
mod sys;
mod wire;
pub mod zygote;

pub use handle::{Container, Event};
pub use run_dir::{Orphan, reap_orphans};
pub use zygote::{Settings, Zygote};
