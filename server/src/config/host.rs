//! What the host has to give: its CPUs, and the memory that is left when the server starts.

use std::fs;
use std::io;

use lazaret_sandbox::Cpuset;

use super::ConfigError;

/// The share of free memory that jobs may take; the rest is the host's.
const SHARE_PERCENT: u64 = 80;

/// CPUs that jobs may use, in thousandths of one: those that were chosen, or all.
pub(super) fn cpu_millis(cpuset: Option<&Cpuset>) -> u32 {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = cpuset.map_or_else(all, Cpuset::count);
    u32::try_from(cpus.saturating_mul(1000)).unwrap_or(u32::MAX)
}

/// The CPUs that `text` chooses among those of this host.
///
/// # Errors
/// If it is no set of CPUs, or has one that the host lacks.
pub(super) fn cpuset(text: &str) -> Result<Cpuset, ConfigError> {
    let online = Cpuset::online().map_err(|error| {
        ConfigError(format!("`cpuset` cannot be used: the host does not list its CPUs: {error}"))
    })?;
    choose(text, &online)
}

fn choose(text: &str, online: &Cpuset) -> Result<Cpuset, ConfigError> {
    let refused = |why: &dyn std::fmt::Display| {
        let text = text.trim();
        ConfigError(format!("`cpuset` is `{text}`: {why}: choose among the CPUs `{online}`"))
    };
    let cpuset: Cpuset = text.parse().map_err(|error| refused(&error))?;
    match cpuset.without(online) {
        Some(missing) => Err(refused(&format!("this host has no CPU `{missing}`"))),
        None => Ok(cpuset),
    }
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
        assert!(cpu_millis(None) >= 1000);
        assert!(spare_memory_bytes().expect("readable") > 0);
    }

    #[test]
    fn cpus_that_the_host_lacks_are_refused_by_name() {
        let online = "0-3".parse().expect("a set");
        let choice = |text| choose(text, &online).map_err(|error| error.to_string());
        assert_eq!(choice("0,2").map(|cpuset| cpu_millis(Some(&cpuset))), Ok(2000));
        let error = "`cpuset` is `2-9`: this host has no CPU `4-9`: choose among the CPUs `0-3`";
        assert_eq!(choice("2-9"), Err(error.to_owned()));
        let error = "`cpuset` is ``: no list of CPUs such as `0-3,6`: choose among the CPUs `0-3`";
        assert_eq!(choice(" "), Err(error.to_owned()));
    }
}
