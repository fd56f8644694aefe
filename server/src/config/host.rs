//! What the host has to give: its CPUs, and the memory that is left when the server starts.

use std::fs;
use std::io;

/// The share of free memory that jobs may take; the rest is the host's.
const SHARE_PERCENT: u64 = 80;

/// CPUs this process may use, in thousandths of one.
pub(super) fn cpu_millis() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cpus.saturating_mul(1000)).unwrap_or(u32::MAX)
}

/// Memory that jobs may take: a share of what is available, or of this process's cgroup if that
/// has less.
///
/// # Errors
/// If the host does not say how much memory is available.
pub(super) fn spare_memory_bytes() -> io::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let available = available_bytes(&meminfo)
        .ok_or_else(|| io::Error::other("`/proc/meminfo` does not say what is available"))?;
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let least = cgroups.lines().filter_map(cgroup_limit_bytes).fold(available, u64::min);
    Ok(least / 100 * SHARE_PERCENT)
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The memory limit of the cgroup that a line of `/proc/self/cgroup` names, if it has one.
fn cgroup_limit_bytes(line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let file = if controllers.is_empty() {
        format!("/sys/fs/cgroup{path}/memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
    } else {
        return None;
    };
    // No limit is "max" in v2 and a number beyond all memory in v1: neither lowers a minimum.
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:  100 kB\nMemFree: 3 kB\nMemAvailable:    50 kB\n";
        assert_eq!(available_bytes(text), Some(51_200));
        assert_eq!(available_bytes("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn this_host_has_something_to_give() {
        assert!(cpu_millis() >= 1000);
        assert!(spare_memory_bytes().expect("readable") > 0);
    }
}
