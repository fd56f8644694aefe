//! Fresh containers for untrusted programs: made for one job, bounded by cgroups, closed in by
//! namespaces and seccomp, gone without a trace.

pub mod error;
pub mod handle;
pub mod image;
pub mod outcome;
pub mod spec;
pub mod spool;
mod wire;
pub mod zygote;

pub use handle::{Container, Event};
pub use zygote::{Settings, Zygote};
