//! `$run/<id>/`: what is known of a live container besides its shim's memory, so that whoever
//! comes after a crash finds it.
//!
//! ```text
//! $run/<id>/shim      the shim's pid and start time (a pid alone may be another's by now)
//! $run/<id>/label     what it runs, once that is known
//! $run/<id>/outcome   how it ended, if there was no server left to store it
//! ```
//!
//! The directory is also where init attaches the storage, in its own mount namespace.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup;
use crate::error::{At as _, Context as _, Result, Stage};
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::wire;

/// The directory of one container.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
}

/// A container that a crashed server left, killed and cleaned up by now. If it told its end, that
/// stays in `$run` until [`Orphan::forget`]: it must not be lost if this server crashes, too.
#[derive(Debug)]
pub struct Orphan {
    /// The container's id.
    pub id: String,
    /// What it ran, if it ran anything.
    pub label: Option<String>,
    /// How it ended, if it had ended before it was found.
    pub outcome: Option<Outcome>,
    path: PathBuf,
}

impl Orphan {
    /// Forgets it, now that its end is stored, or nobody's.
    ///
    /// # Errors
    /// At [`Stage::RunDirectory`] if what is left of it stays.
    pub fn forget(&self) -> Result<()> {
        remove(&self.path).at(Stage::RunDirectory)
    }
}

impl RunDirectory {
    /// Makes the directory of a container whose shim this process is.
    pub(crate) fn create(run_dir: &Path, id: &str) -> io::Result<Self> {
        let path = run_dir.join(id);
        fs::create_dir(&path).context(|| format!("could not make `{}`", path.display()))?;
        let pid = rustix::process::getpid();
        let started = start_time(pid)?;
        fs::write(path.join("shim"), format!("{} {started}\n", pid.as_raw_nonzero()))?;
        Ok(Self { path })
    }

    /// Where init attaches the storage.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes what the container runs.
    pub(crate) fn set_label(&self, label: &str) -> io::Result<()> {
        fs::write(self.path.join("label"), label)
    }

    /// Keeps the outcome for the next server. Whole or not at all.
    pub(crate) fn keep(&self, outcome: &Outcome) -> io::Result<()> {
        let unfinished = self.path.join("outcome.new");
        fs::write(&unfinished, wire::encode(outcome)?)?;
        fs::rename(unfinished, self.path.join("outcome"))
    }

    /// Forgets the container.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }
}

/// Removes a run directory: a few files of ours, and never anything of a job's.
fn remove(path: &Path) -> io::Result<()> {
    for file in ["label", "outcome", "outcome.new"] {
        ignore_missing(fs::remove_file(path.join(file)))?;
    }
    // Last but one: without it the directory could not be told from one that is being made.
    ignore_missing(fs::remove_file(path.join("shim")))?;
    ignore_missing(fs::remove_dir(path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// When a process started, in clock ticks since boot: field 22 of stat(5).
fn start_time(pid: Pid) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    let field = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19));
    field
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a stat file without a start time"))
}

/// Kills and cleans up every container that an earlier server of these settings left behind.
/// Called before the first container is made.
///
/// # Errors
/// At [`Stage::RunDirectory`] if `$run` cannot be read, at [`Stage::Cgroup`] if a cgroup does not
/// go away.
pub fn reap_orphans(settings: &Settings) -> Result<Vec<Orphan>> {
    let entries = match fs::read_dir(&settings.run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).at(Stage::RunDirectory),
    };
    let parent = cgroup::Parent::make(&settings.cgroup_parent, settings.memory_bytes);
    let parent = parent.at(Stage::Cgroup)?;
    let mut orphans = Vec::new();
    for entry in entries {
        let entry = entry.at(Stage::RunDirectory)?;
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        if entry.file_type().at(Stage::RunDirectory)?.is_dir() {
            let orphan = reap(&settings.run_dir, &parent, id)?;
            if orphan.outcome.is_none() {
                orphan.forget()?;
            }
            orphans.push(orphan);
        }
    }
    Ok(orphans)
}

/// Cleans up after containers whose shim is gone, and leaves those that live: for callers that
/// share a `$run`, and of whom none will ever ask how another's container ended.
///
/// # Errors
/// As [`reap_orphans`].
pub fn reap_dead(settings: &Settings) -> Result<()> {
    let entries = match fs::read_dir(&settings.run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).at(Stage::RunDirectory),
    };
    let mut dead = Vec::new();
    for entry in entries {
        let path = entry.at(Stage::RunDirectory)?.path();
        // Without that file it is being made, or removed, by one that lives.
        let has_shim = path.join("shim").exists();
        if has_shim && find_shim(&path).at(Stage::RunDirectory)?.is_none() {
            dead.extend(path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    let parent = cgroup::Parent::make(&settings.cgroup_parent, settings.memory_bytes);
    let parent = parent.at(Stage::Cgroup)?;
    dead.into_iter().try_for_each(|id| reap(&settings.run_dir, &parent, id)?.forget())
}

/// Kills one container and cleans up all of it but its directory.
pub(crate) fn reap(run_dir: &Path, parent: &cgroup::Parent, id: String) -> Result<Orphan> {
    let path = run_dir.join(&id);
    if let Some(shim) = find_shim(&path).at(Stage::RunDirectory)? {
        kill_and_wait(&shim).at(Stage::Shim)?;
    }
    // Its init ends by the death of the shim; the sweep waits for that, or sees to it.
    parent.sweep(&id).at(Stage::Cgroup)?;
    let outcome = fs::read(path.join("outcome")).ok();
    Ok(Orphan {
        label: fs::read_to_string(path.join("label")).ok(),
        outcome: outcome.and_then(|bytes| wire::decode(&bytes).ok()),
        id,
        path,
    })
}

/// The shim that a run directory belongs to, if it still lives.
fn find_shim(path: &Path) -> io::Result<Option<OwnedFd>> {
    let text = match fs::read_to_string(path.join("shim")) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut fields = text.split_whitespace();
    let pid = fields.next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    let started: Option<u64> = fields.next().and_then(|ticks| ticks.parse().ok());
    let (Some(pid), Some(started)) = (pid, started) else {
        return Ok(None);
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(None);
    };
    // The descriptor is open, so a match now is a match for good.
    Ok(start_time(pid).is_ok_and(|now| now == started).then_some(process))
}

/// How long a killed shim may take to end.
const KILL_BOUND: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

fn kill_and_wait(process: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&KILL_BOUND)))? {
        0 => Err(io::Error::new(ErrorKind::TimedOut, "a killed shim did not end")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Verdict;

    #[test]
    fn a_removed_run_directory_leaves_nothing() {
        let run = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::create(run.path(), "c1").expect("made");
        directory.set_label("job").expect("written");
        let outcome = Outcome { verdict: Verdict::Fault, steps: Vec::new(), detail: None };
        directory.keep(&outcome).expect("written");
        directory.remove().expect("removed");
        assert_eq!(fs::read_dir(run.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_shim_is_known_by_its_start_time_not_by_its_pid_alone() {
        let run = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::create(run.path(), "c1").expect("made");
        assert!(find_shim(&directory.path).expect("readable").is_some());
        let pid = std::process::id();
        fs::write(directory.path.join("shim"), format!("{pid} 1\n")).expect("written");
        assert!(find_shim(&directory.path).expect("readable").is_none());
    }
}
