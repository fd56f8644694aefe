//! What the C library keeps of memory that was freed.

/// Allocations of so many bytes are mappings of their own, which go back to the kernel at once.
const OWN_MAPPING_BYTES: libc::c_int = 256 << 10;
/// Heaps that threads share. By default there are eight for each CPU, and each keeps what it was.
const HEAPS: libc::c_int = 2;

/// Has large allocations go back to the kernel when they are freed (mallopt(3)). By default the
/// threshold rises to the largest that was ever freed, up to 32 MiB, and what lies below it is
/// kept: after a few large requests that is hundreds of MiB for good.
#[cfg(target_env = "gnu")]
pub(crate) fn bound_heap() {
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES), (libc::M_ARENA_MAX, HEAPS)]
    {
        // SAFETY: the call takes two integers; that it may refuse them costs memory only.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other C libraries keep little.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn bound_heap() {}
