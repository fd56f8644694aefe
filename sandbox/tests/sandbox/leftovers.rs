//! What a container must not leave behind: processes, mounts, cgroups, namespaces, files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lazaret_sandbox::Settings;
use rustix::process::Pid;

use crate::fixture::await_that;
use crate::netns::{self, NetworkId};

/// What a container is known by on the host, noted while it lives.
#[derive(Debug)]
pub(crate) struct Footprint {
    id: String,
    /// PID 1 of the container.
    pub(crate) init: Pid,
    /// Held: the kernel gives the number of a namespace that is gone to the next one, and then
    /// processes of another container would be taken for this one's.
    pid_namespace: File,
    /// Not held, or the namespace itself would be left over.
    pub(crate) network: NetworkId,
}

impl Footprint {
    /// Notes it as soon as the container has its first process. Only then is it not too early for
    /// the namespaces, and while nothing was started in it not too late either.
    pub(crate) fn take(settings: &Settings, id: &str) -> Self {
        await_that("the container has no init", || init_of(settings, id).is_some());
        let init = init_of(settings, id).expect("init waits");
        Self {
            id: id.to_owned(),
            init,
            pid_namespace: File::open(namespace_of(init, "pid")).expect("a namespace"),
            network: NetworkId::give(init),
        }
    }

    /// Fails if anything of the container is still there a little after it was acknowledged.
    pub(crate) fn assert_gone(&self, settings: &Settings) {
        let directory = settings.run_dir.join(&self.id);
        await_that(&format!("`{}` is still there", directory.display()), || !directory.exists());
        let cgroups = cgroups_of(settings, &self.id);
        assert!(cgroups.is_empty(), "{cgroups:?} are still there");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let path = directory.display().to_string();
        assert!(!mounts.contains(&path), "a mount of `{path}` is still there:\n{mounts}");
        await_that(&format!("a process of `{path}` is still there"), || self.members() == 0);
        let network = format!("the network namespace of `{path}` is still there");
        await_that(&network, || !self.network.is_known());
    }

    /// How many processes are in the container's pid namespace; also zombies.
    pub(crate) fn members(&self) -> usize {
        let own = self.pid_namespace.metadata().expect("a number").ino();
        // Of a process that has ended meanwhile nothing can be read.
        let is_member = |pid: &Pid| {
            fs::metadata(namespace_of(*pid, "pid")).is_ok_and(|namespace| namespace.ino() == own)
        };
        processes().filter(is_member).count()
    }
}

/// The file that stands for a namespace of a process.
pub(crate) fn namespace_of(process: Pid, kind: &str) -> PathBuf {
    format!("/proc/{}/ns/{kind}", process.as_raw_nonzero()).into()
}

/// The process in the cgroup of a container that is PID 1 inside.
fn init_of(settings: &Settings, id: &str) -> Option<Pid> {
    let members = cgroups_of(settings, id).into_iter().flat_map(|leaf| members_of(&leaf));
    members.into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
        let status = status.unwrap_or_default();
        // The pid in each namespace that the process is in, the innermost last.
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        pids.and_then(|pids| pids.split_whitespace().last()) == Some("1")
    })
}

fn members_of(cgroup: &Path) -> Vec<Pid> {
    let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    members.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
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
pub(crate) struct Census {
    /// Where containers were made.
    settings: Vec<Settings>,
    mounts: usize,
}

impl Census {
    pub(crate) fn take(settings: Vec<Settings>) -> Self {
        for settings in &settings {
            assert_eq!(fs::read_dir(&settings.run_dir).expect("$run").count(), 0);
        }
        Self { settings, mounts: mounts() }
    }

    /// Fails if there is more than before, once the zygotes have ended too.
    pub(crate) fn compare(self) {
        await_that("a process is still there", || descendants() == 0);
        await_that("a network namespace is still there", || netns::known().is_empty());
        assert_eq!(mounts(), self.mounts, "mounts");
        for Settings { run_dir, cgroup_parent, .. } in &self.settings {
            assert!(!run_dir.exists(), "`{}` is still there", run_dir.display());
            let cgroups = cgroups(cgroup_parent);
            assert!(cgroups.is_empty(), "{cgroups:?} are still there");
        }
    }
}

/// Processes of this very program but for the tests themselves: zygote, shims and inits. A zombie
/// is none: it waits for whoever has to reap it.
fn descendants() -> usize {
    let own = std::env::current_exe().expect("a path");
    let is_ours = |pid: &Pid| {
        let program = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
        *pid != rustix::process::getpid() && program.is_ok_and(|program| program == own)
    };
    processes().filter(is_ours).count()
}

/// Every process there is.
fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    entries.filter_map(move |entry| Pid::from_raw(name(entry)?.parse().ok()?))
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").expect("readable").lines().count()
}
