//! Facts about the host that can be read.

use std::fs;
use std::path::Path;

use super::Finding;

/// The oldest kernel that has id-mapped mounts and overlay's `userxattr` sorted out.
const MIN_KERNEL: (u32, u32) = (5, 15);
/// Below this much free disk, images and output soon have no room.
const MIN_DISK_BYTES: u64 = 1 << 30;

/// Whether this process may make containers.
pub(super) fn privileges() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::ok("privileges", "root");
    }
    Finding::missing("privileges", "not root", "run it with `sudo`")
}

/// Whether the kernel is new enough. Its age is part of the sandbox: all containers share it.
pub(super) fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let version = parts.next().flatten().zip(parts.next().flatten());
    if version.is_some_and(|version| version >= MIN_KERNEL) {
        return Finding::ok("kernel", release);
    }
    Finding::missing("kernel", release, "install Linux 5.15 or later")
}

/// Whether user namespaces may be made.
pub(super) fn user_namespaces() -> Finding {
    let path = "/proc/sys/user/max_user_namespaces";
    match fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(0) => Finding::missing(
            "user namespaces",
            "none may be made",
            "sysctl -w user.max_user_namespaces=10000",
        ),
        Some(count) => Finding::ok("user namespaces", format!("up to {count}")),
        None => Finding::missing(
            "user namespaces",
            "the kernel has none",
            "boot a kernel with CONFIG_USER_NS",
        ),
    }
}

/// Whether crashed programs start another on the host. Containers are set up so that they do not.
pub(super) fn core_pattern() -> Finding {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let pattern = pattern.trim();
    if pattern.starts_with('|') {
        let found = format!("`{pattern}` is started for crashes; containers are exempt");
        return Finding::note("core dumps", found, "sysctl -w kernel.core_pattern=core");
    }
    Finding::ok("core dumps", "start no program")
}

/// Whether the data directory has room.
pub(super) fn disk(directory: &Path) -> Finding {
    let free = match rustix::fs::statvfs(directory) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => {
            let found = format!("`{}`: {error}", directory.display());
            return Finding::missing("disk", found, "name another with `--data DIR`");
        }
    };
    let found = format!("{} MiB free for the data directory", free >> 20);
    if free < MIN_DISK_BYTES {
        return Finding::note("disk", found, "free some, or name another with `--data DIR`");
    }
    Finding::ok("disk", found)
}
