//! What a process inside a container has from the shim that it descends from.

use std::path::Path;

use crate::container::idmap::Slot;
use crate::container::proc::Covers;
use crate::container::seccomp::Filters;
use crate::sys::OneThread;

/// What init, and each step after it, has by fork.
pub(crate) struct Inherited<'a> {
    pub(crate) filters: &'a Filters,
    pub(crate) one_thread: &'a OneThread,
    pub(crate) covers: &'a Covers,
    /// A directory of the container's own on the host, to attach the storage at.
    pub(crate) staging: &'a Path,
    pub(crate) slot: &'a Slot,
}
