//! What a container must not leave behind: processes, mounts, cgroups, namespaces, files.

use std::fs;
use std::path::{Path, PathBuf};

use lazaret_sandbox::Settings;

use crate::fixture::await_that;

/// Fails if anything of the container `id` is still there a little after it was acknowledged.
pub(crate) fn assert_none(settings: &Settings, id: &str) {
    let directory = settings.run_dir.join(id);
    await_that(&format!("`{}` is still there", directory.display()), || !directory.exists());
    let cgroups = cgroups_of(settings, id);
    assert!(cgroups.is_empty(), "{cgroups:?} are still there");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let path = directory.display().to_string();
    assert!(!mounts.contains(&path), "a mount of `{id}` is still there:\n{mounts}");
}

/// The cgroup of a container, in every hierarchy that has it. It can only be removed when its last
/// process is gone.
pub(crate) fn cgroups_of(settings: &Settings, id: &str) -> Vec<PathBuf> {
    let parents = cgroups(&settings.cgroup_parent).into_iter();
    parents.map(|parent| parent.join(id)).filter(|leaf| leaf.exists()).collect()
}

/// The directories of a cgroup, in every hierarchy that has it.
fn cgroups(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root).expect("cgroups").filter_map(|entry| Some(entry.ok()?.path()));
    below.chain([root.to_path_buf()]).map(|dir| dir.join(path)).filter(|dir| dir.is_dir()).collect()
}

/// Everything on the host that a container might have left, counted before and after all tests.
/// A namespace lives only as long as a process or a mount is in it.
pub(crate) struct Census {
    mounts: usize,
}

impl Census {
    pub(crate) fn take(settings: &Settings) -> Self {
        assert_eq!(fs::read_dir(&settings.run_dir).expect("$run").count(), 0);
        Self { mounts: mounts() }
    }

    /// Fails if there is more than before, once the zygote has ended too.
    pub(crate) fn compare(self, settings: &Settings) {
        await_that("a process is still there", || descendants() == 0);
        assert_eq!(mounts(), self.mounts, "mounts");
        assert!(!settings.run_dir.exists(), "`{}` is still there", settings.run_dir.display());
        let cgroups = cgroups(&settings.cgroup_parent);
        assert!(cgroups.is_empty(), "{cgroups:?} are still there");
    }
}

/// Processes of this very program but for the tests themselves: zygote, shims and inits. A zombie
/// is none: it waits for whoever has to reap it.
fn descendants() -> usize {
    let own = std::env::current_exe().expect("a path");
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let path = entry.ok()?.path();
        let pid: u32 = path.file_name()?.to_str()?.parse().ok()?;
        let is_ours = fs::read_link(path.join("exe")).is_ok_and(|program| program == own);
        (is_ours && pid != std::process::id()).then_some(())
    });
    processes.count()
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").expect("readable").lines().count()
}
