//! Fresh containers for untrusted programs: made for one job, bounded by cgroups, closed in by
//! namespaces and seccomp, gone without a trace.
//!
//! # Theory of operation
//!
//! ```text
//! caller ═ Container ═▶ shim ── Order ──▶ init ── fork ──▶ step ── exec ──▶ the program
//!    │                   ▲ ▲ ◀─ Report ──   │               │ ▲               │
//!    │ Fork              │ └──────────────── gate ──────────┘ │               │
//!    ▼                   │                                    └── stdio ──────┘
//!  zygote ───── fork ────┘                                          ▼
//!                       shim ─────────── reads the pipes ─────▶ spool file
//! ```
//!
//! * The **zygote** is forked from `main` before any thread exists ([`Zygote::start`]). It forks a
//!   shim for each container ([`Zygote::spawn`]), so that nothing large and nothing with threads
//!   is ever forked. It cleans up after shims that were killed.
//! * The **shim** is outside the container and answers for it. It makes the cgroup, chooses the
//!   host ids, forks init, and waits. All this needs no job, so it can happen ahead of time. With
//!   a [`spec::ContainerSpec`] ([`Container::start`]) it has init become the job's container, runs
//!   its steps one by one, enforces every limit, writes output to the [`spool`], and decides the
//!   [`outcome`]. It outlives the caller.
//! * **Init** is PID 1 of the container. It mounts the image, changes the root, joins the user
//!   namespace, writes the job's files, forks the steps, and reaps what they leave behind. If it
//!   ends, the kernel ends every other process of the container. If the shim ends, init does.
//! * The **step** gives up every privilege, confines itself, and stops at the gate. There the shim
//!   reads the counters and starts the clock; then the step becomes the program.
//!
//! What is trusted with what: the caller's data is checked before it becomes a spec, and again
//! where it becomes a name or a path. Nothing that a program in the container wrote is parsed by
//! anyone: its output is bytes, its end is what the kernel says, and the counters are the cgroup's.
//!
//! A failure of ours is an [`error::Error`] that names its stage; inside a container it becomes an
//! outcome with the verdict `fault`. A container is never run with less than all of its locks.

mod cgroup;
mod clock;
mod container;
mod cpuset;
pub mod error;
pub mod handle;
pub mod image;
mod inherited;
mod init;
mod orders;
pub mod outcome;
mod premises;
mod run_dir;
mod settings;
mod shim;
pub mod spec;
pub mod spool;
mod step;
mod sys;
mod tree;
pub mod volume;
mod wire;
pub mod zygote;

pub use cpuset::{Cpuset, NotCpuset};
pub use handle::{Container, Event};
pub use run_dir::{Orphan, reap_dead, reap_orphans};
pub use settings::Settings;
pub use zygote::Zygote;

/// Has this process give memory that it has freed back to the kernel, as far as the C library can
/// be told: for a server, which is to be as small after a large request as before. Called before
/// there is a second thread.
pub fn bound_heap() {
    sys::bound_heap();
}
