//! Resource limits of a step's processes: the second line behind the cgroup.

use std::io;
use std::num::NonZeroU32;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Main threads may use as much stack as on an ordinary host.
const STACK_BYTES: u64 = 8 << 20;
/// What programs may lock in memory: enough for a few keys, too little to matter.
const LOCKED_BYTES: u64 = 64 << 10;
/// Signals queued for the step's user.
const PENDING_SIGNALS: u64 = 512;
/// POSIX message queues of the step's user (mq_overview(7)).
const MESSAGE_QUEUE_BYTES: u64 = 819_200;

/// Sets the limits that are the same for every step, on the zygote, from which all inherit them:
/// what they bound, the sandbox does not need. Never `RLIMIT_AS`: JVM, Go and Node reserve far more
/// address space than they use.
pub(crate) fn set_inherited_limits() -> io::Result<()> {
    let limits = [
        // 0 would still start a piped core handler; 1 does not (core(5)).
        (Resource::Core, 1),
        (Resource::Memlock, LOCKED_BYTES),
        (Resource::Sigpending, PENDING_SIGNALS),
        (Resource::Msgqueue, MESSAGE_QUEUE_BYTES),
        (Resource::Nice, 0),
        (Resource::Rtprio, 0),
        (Resource::Stack, STACK_BYTES),
    ];
    limits.into_iter().try_for_each(|(resource, value)| set(resource, value))
}

/// Sets the limit that is the step's own.
pub(crate) fn set_open_files(open_files: NonZeroU32) -> io::Result<()> {
    set(Resource::Nofile, u64::from(open_files.get()))
}

/// Sets a limit, soft and hard alike. One that our own parent has lowered cannot rise again, and
/// needs not.
fn set(resource: Resource, value: u64) -> io::Result<()> {
    let value = getrlimit(resource).maximum.map_or(value, |maximum| value.min(maximum));
    Ok(setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })?)
}
