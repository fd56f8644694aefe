//! Whether the cgroups here can bound a container: a child cgroup is made in each controller that
//! is needed, and given a limit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Finding, Status};

/// Controllers that are needed, and a limit of each to try: file and value on v1, then on v2.
const NEEDED: [(&str, [&str; 2], [&str; 2]); 3] = [
    ("cpu", ["cpu.cfs_quota_us", "100000"], ["cpu.max", "100000 100000"]),
    ("memory", ["memory.limit_in_bytes", "67108864"], ["memory.max", "67108864"]),
    ("pids", ["pids.max", "16"], ["pids.max", "16"]),
];
/// Counts the processor time used on v1; on v2 that is part of `cpu`.
const V1_COUNTER: &str = "cpuacct";
const CGROUP2: &str = "/sys/fs/cgroup";

/// A finding for each controller.
pub(super) fn look() -> Vec<Finding> {
    match version() {
        Version::V2 => NEEDED.iter().map(|(name, _, limit)| try_v2(name, Some(*limit))).collect(),
        Version::V1 => {
            let mut findings: Vec<_> =
                NEEDED.iter().map(|(name, limit, _)| try_v1(name, Some(*limit))).collect();
            findings.push(try_v1(V1_COUNTER, None));
            findings
        }
    }
}

/// Whether containers can be kept to CPUs that the operator chooses. They are as safe without.
pub(super) fn cpuset() -> Finding {
    let finding = match version() {
        Version::V1 => try_v1("cpuset", None),
        Version::V2 => try_v2("cpuset", Some(["cpuset.cpus", "0"])),
    };
    unless_found(finding, "`cpuset` in the configuration is refused")
}

/// Whether what jobs do to the disks of volumes can be throttled. Those without volumes do nothing
/// to any.
pub(super) fn io() -> Finding {
    let finding = match version() {
        Version::V1 => try_v1("blkio", None),
        Version::V2 => try_v2("io", None),
    };
    unless_found(finding, "`io_bytes_per_s` holds nobody back")
}

/// What is missing is worth knowing only, and means this.
fn unless_found(finding: Finding, meaning: &str) -> Finding {
    match finding.status {
        Status::Ok | Status::Note => finding,
        Status::Missing => {
            let found = format!("{}: {meaning}", finding.found);
            Finding { status: Status::Note, found, ..finding }
        }
    }
}

/// Whether what a container has in swap is counted, or there is no swap.
pub(super) fn swap() -> Finding {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() < 2 {
        return Finding::ok("swap", "the host has none");
    }
    let is_counted = match version() {
        Version::V1 => mount_of("memory")
            .is_some_and(|mount| mount.join("memory.memsw.limit_in_bytes").exists()),
        // The root has no such file: any cgroup that the system made has.
        Version::V2 => fs::read_dir(CGROUP2).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.path().join("memory.swap.max").exists())
        }),
    };
    if is_counted {
        return Finding::ok("swap", "counted and limited");
    }
    Finding::missing("swap", "not counted: memory limits would not hold", "swapoff -a")
}

enum Version {
    V1,
    V2,
}

fn version() -> Version {
    // On a hybrid host the version 2 hierarchy is elsewhere and has no controllers.
    if Path::new(CGROUP2).join("cgroup.controllers").exists() { Version::V2 } else { Version::V1 }
}

/// Where the hierarchy with this controller is mounted.
fn mount_of(controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind, options) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let has_it = kind == "cgroup" && options.split(',').any(|option| option == controller);
        has_it.then(|| PathBuf::from(path))
    })
}

fn try_v1(controller: &str, limit: Option<[&str; 2]>) -> Finding {
    let name = format!("cgroup v1 {controller}");
    let Some(mount) = mount_of(controller) else {
        let mend = format!("mount -t cgroup -o {controller} {controller} {CGROUP2}/{controller}");
        return Finding::missing(name, "not mounted", &mend);
    };
    finding(name, try_child(&mount, limit))
}

fn try_v2(controller: &str, limit: Option<[&str; 2]>) -> Finding {
    let name = format!("cgroup v2 {controller}");
    let root = Path::new(CGROUP2);
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|one| one == controller) {
        return Finding::missing(name, "the kernel does not offer it", "boot with it enabled");
    }
    let enabled = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    finding(name, enabled.and_then(|()| try_child(root, limit)))
}

fn finding(name: String, tried: io::Result<()>) -> Finding {
    match tried {
        Ok(()) => Finding::ok(name, "a limit was set"),
        Err(error) => {
            let mend = "let this process write below the cgroup's mount, e.g. as root of the host";
            Finding::missing(name, error.to_string(), mend)
        }
    }
}

/// Makes a cgroup of our own below `mount`, sets the limit, and removes it.
fn try_child(mount: &Path, limit: Option<[&str; 2]>) -> io::Result<()> {
    let child = mount.join(format!("lazaret-doctor-{}", std::process::id()));
    fs::create_dir(&child)?;
    let tried = match limit {
        Some([file, value]) => fs::write(child.join(file), value),
        None => Ok(()),
    };
    tried.and(fs::remove_dir(&child))
}
