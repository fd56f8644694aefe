//! What a zygote makes for all its containers, `$run` and the parent cgroup, and takes away again.
//!
//! Another zygote of the same settings may start at any time: a successor's, or one of a second
//! server that will be refused. So each shares the lock of `$run` while it lives, and only who has
//! it alone takes anything away:
//!
//! ```text
//! enter   make $run ─▶ share its lock ─▶ is it still there? ─ yes ─▶ make the parent cgroup
//!            ▲                                 └ no: removed before it was locked ─┐
//!            └─────────────────────────────────────────────────────────────────────┘
//! leave   own the lock alone, nothing is in $run? ─ yes ─▶ remove the cgroup ─▶ remove $run
//! ```

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, stat};

use crate::cgroup;
use crate::error::{At as _, Context as _, Result, Stage};
use crate::settings::Settings;

/// How often `$run` may be removed by others while it is being entered.
const MAX_TURNS: usize = 100;

/// `$run`, shared by the zygotes that use it.
#[derive(Debug)]
pub(crate) struct Premises {
    lock: OwnedFd,
    /// Who found it does not take it away.
    is_made_here: bool,
}

/// Makes `$run` and the parent cgroup where they are missing.
pub(crate) fn enter(settings: &Settings) -> Result<(Premises, cgroup::Parent)> {
    let premises = Premises::enter(&settings.run_dir)
        .context(|| format!("could not make `{}`", settings.run_dir.display()))
        .at(Stage::RunDirectory)?;
    match cgroup::Parent::make(&settings.cgroup_parent, settings.memory_bytes) {
        Ok(cgroup) => Ok((premises, cgroup)),
        Err(error) => {
            // Why there is no cgroup is what has to be mended first.
            drop(premises.leave(&settings.run_dir, || Ok(())));
            Err(error).at(Stage::Cgroup)
        }
    }
}

impl Premises {
    fn enter(run_dir: &Path) -> io::Result<Self> {
        for _ in 0..MAX_TURNS {
            let is_made_here = make(run_dir)?;
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let lock = match rustix::fs::open(run_dir, flags, Mode::empty()) {
                Ok(lock) => lock,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockShared))?;
            if is_at(&lock, run_dir)? {
                return Ok(Self { lock, is_made_here });
            }
        }
        Err(io::Error::other("it is removed again and again"))
    }

    /// Takes away what was made here, the cgroup by `remove_cgroup`, unless another zygote or a
    /// container is still there. The caller's containers are gone.
    pub(crate) fn leave(
        self,
        run_dir: &Path,
        remove_cgroup: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        match flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let is_empty = match fs::read_dir(run_dir) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        if !is_empty {
            return Ok(());
        }
        remove_cgroup()?;
        // Last: until then who comes next waits for the lock.
        if self.is_made_here {
            remove(run_dir)?;
        }
        Ok(())
    }
}

/// Makes a directory; false if it was there.
fn make(path: &Path) -> io::Result<bool> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("could not remove `{}`", path.display())),
    }
}

/// Whether this directory is the one at `path`.
fn is_at(directory: &OwnedFd, path: &Path) -> io::Result<bool> {
    let ours = fstat(directory)?;
    match stat(path) {
        Ok(found) => Ok((found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(premises: Premises, run_dir: &Path) -> bool {
        premises.leave(run_dir, || Ok(())).expect("left");
        run_dir.exists()
    }

    #[test]
    fn what_was_made_is_gone_when_its_maker_leaves() {
        let dir = tempfile::tempdir().expect("a directory");
        let run_dir = dir.path().join("a/run");
        let premises = Premises::enter(&run_dir).expect("entered");
        assert!(!leaves(premises, &run_dir));
    }

    #[test]
    fn what_was_found_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let premises = Premises::enter(dir.path()).expect("entered");
        assert!(leaves(premises, dir.path()));
    }

    #[test]
    fn what_holds_a_container_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let run_dir = dir.path().join("run");
        let premises = Premises::enter(&run_dir).expect("entered");
        fs::create_dir(run_dir.join("c1")).expect("made");
        assert!(leaves(premises, &run_dir));
    }

    #[test]
    fn what_a_successor_has_entered_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let run_dir = dir.path().join("run");
        let first = Premises::enter(&run_dir).expect("entered");
        let second = Premises::enter(&run_dir).expect("entered");
        assert!(leaves(first, &run_dir));
        assert!(is_at(&second.lock, &run_dir).expect("there"));
    }

    #[test]
    fn who_enters_while_another_leaves_has_a_directory_that_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let run_dir = dir.path().join("run");
        let come_and_go = || {
            for _ in 0..500 {
                let premises = Premises::enter(&run_dir).expect("entered");
                assert!(is_at(&premises.lock, &run_dir).expect("there"));
                premises.leave(&run_dir, || Ok(())).expect("left");
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(come_and_go);
            }
        });
    }
}
