//! The CPUs that all containers of one server run on, if its operator has chosen any.
//!
//! It is the parent cgroup that is kept to them, once. On v2 the leaves below it are kept to them
//! by that; on v1 there are no leaves in this hierarchy: containers enter the parent's own cgroup.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cgroups_rs::fs::hierarchies::{V1, V2};
use cgroups_rs::fs::{Cgroup, Controllers, Hierarchy};
use rustix::fs::OFlags;

use super::{open, open_directory, read, write};
use crate::cpuset::Cpuset;

/// The controller, and its file that holds what was asked for.
const CONTROLLER: &str = "cpuset";
const CPUS: &str = "cpuset.cpus";

/// Makes the parent's cgroup in the hierarchy of this controller and keeps it to `cpuset`. Answers
/// with its path, too, if it was missing.
pub(super) fn make_v1(path: &str, cpuset: &Cpuset) -> io::Result<(OwnedFd, Option<PathBuf>)> {
    let hierarchy = V1::new();
    let mount_point = |controller| hierarchy.get_mount_point(controller).map(|(path, _)| path);
    let place = mount_point(Controllers::CpuSet).ok_or_else(missing)?;
    for other in [Controllers::Cpu, Controllers::CpuAcct, Controllers::Mem, Controllers::Pids] {
        // A container that enters the parent there would leave its leaf, and its limits with it.
        if mount_point(other.clone()).as_ref() == Some(&place) {
            return Err(io::Error::other(format!("`{CONTROLLER}` is mounted with `{other}`")));
        }
    }
    // A new cgroup has no CPUs and no memory nodes, and then no process can enter it: this gives
    // it, and those above it, what is above them.
    let directory = place.join(path);
    let was_there = directory.exists();
    make(Box::new(V1::new()), path)?;
    let parent = open_directory(rustix::fs::CWD, &directory)?;
    keep_to(parent.as_fd(), cpuset, "cpuset.effective_cpus")?;
    Ok((parent, (!was_there).then_some(directory)))
}

/// Keeps the parent to `cpuset`.
pub(super) fn set_v2(parent: BorrowedFd<'_>, path: &str, cpuset: &Cpuset) -> io::Result<()> {
    let hierarchy = V2::new();
    let offered = std::fs::read_to_string(hierarchy.root().join("cgroup.controllers"))?;
    if !offered.split_whitespace().any(|controller| controller == CONTROLLER) {
        return Err(missing());
    }
    // Hands the controller down from the root to the parent.
    make(Box::new(hierarchy), path)?;
    keep_to(parent, cpuset, "cpuset.cpus.effective")
}

/// Forgets what an earlier server has set on the parent.
pub(super) fn lift_v2(parent: BorrowedFd<'_>) -> io::Result<()> {
    match open(parent, CPUS, OFlags::RDONLY) {
        Ok(cpus) if read(&cpus)?.trim().is_empty() => Ok(()),
        Ok(_) => write(parent, CPUS, "\n"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn make(hierarchy: Box<dyn Hierarchy>, path: &str) -> io::Result<()> {
    Cgroup::new_with_specified_controllers(hierarchy, path, Some(vec![CONTROLLER.into()]))
        .map(drop)
        .map_err(io::Error::other)
}

/// The kernel gives other CPUs than those that were asked for where the cgroups above do not have
/// them, so what it gives is read from `effective`.
fn keep_to(parent: BorrowedFd<'_>, cpuset: &Cpuset, effective: &str) -> io::Result<()> {
    write(parent, CPUS, &cpuset.to_string())?;
    let given = read(&open(parent, effective, OFlags::RDONLY)?)?;
    let given = given.trim();
    if given.parse().ok().as_ref() == Some(cpuset) {
        return Ok(());
    }
    Err(io::Error::other(format!("of the CPUs `{cpuset}` the cgroup is given `{given}`")))
}

fn missing() -> io::Error {
    let text = format!("the cgroup controller `{CONTROLLER}` is not there");
    io::Error::new(ErrorKind::Unsupported, text)
}
