//! What a container must not leave behind: processes, mounts, cgroups, namespaces, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lazaret_sandbox::Settings;

use crate::fixture::await_that;

/// Fails if anything of the container `id` is still there a little after it was acknowledged.
pub(crate) fn assert_none(settings: &Settings, id: &str) {
    let directory = settings.run_dir.join(id);
    await_that(&format!("`{}` is still there", directory.display()), || !directory.exists());
    for parent in cgroups(&settings.cgroup_parent) {
        // A cgroup can only be removed when its last process is gone.
        assert!(!parent.join(id).exists(), "the cgroup `{id}` is still there");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    assert!(!mounts.contains(&format!("/{id}/")), "a mount of `{id}` is still there:\n{mounts}");
}

/// The directories of a cgroup, in every hierarchy that has it.
fn cgroups(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root).expect("cgroups").filter_map(|entry| Some(entry.ok()?.path()));
    below.chain([root.to_path_buf()]).map(|dir| dir.join(path)).filter(|dir| dir.is_dir()).collect()
}

/// Everything on the host that a container might have left, counted before and after all tests.
pub(crate) struct Census {
    processes: BTreeSet<String>,
    mounts: usize,
    namespaces: BTreeSet<PathBuf>,
}

impl Census {
    pub(crate) fn take(settings: &Settings) -> Self {
        assert_eq!(fs::read_dir(&settings.run_dir).expect("$run").count(), 0);
        Self { processes: processes(), mounts: mounts(), namespaces: namespaces() }
    }

    /// Fails if there is more than before, and removes what belongs to the tests themselves.
    pub(crate) fn compare(self, settings: &Settings) {
        assert_eq!(fs::read_dir(&settings.run_dir).expect("$run").count(), 0, "files in $run");
        let processes = || processes().difference(&self.processes).cloned().collect::<Vec<_>>();
        await_that("there are more processes than before", || processes().is_empty());
        await_that("there are more namespaces than before", || {
            namespaces().difference(&self.namespaces).next().is_none()
        });
        assert_eq!(mounts(), self.mounts, "mounts");
        fs::remove_dir(&settings.run_dir).expect("an empty directory");
        for cgroup in cgroups(&settings.cgroup_parent) {
            fs::remove_dir(&cgroup).unwrap_or_else(|error| panic!("{}: {error}", cgroup.display()));
        }
    }
}

/// Shims and inits: the processes that belong to containers. A zombie is none: it waits for the
/// host's own init.
fn processes() -> BTreeSet<String> {
    let stats = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    let ours = |stat: &String| {
        (stat.contains("(lazaret-shim)") || stat.contains("(lazaret-init)"))
            && !stat.contains(") Z ")
    };
    stats.filter(ours).filter_map(|stat| stat.split(' ').next().map(str::to_owned)).collect()
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").expect("readable").lines().count()
}

/// The network namespaces of all processes.
fn namespaces() -> BTreeSet<PathBuf> {
    let processes = fs::read_dir("/proc").expect("/proc");
    processes.filter_map(|entry| fs::read_link(entry.ok()?.path().join("ns/net")).ok()).collect()
}
