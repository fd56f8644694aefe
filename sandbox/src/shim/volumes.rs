//! The volumes of a container as its shim has them: held while it lives, whatever becomes of the
//! server, and throttled.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::fstat;

use crate::cgroup::{self, Disk, Leaf, Throttle};
use crate::container::volumes::clone_for;
use crate::error::Context as _;
use crate::spec::{ContainerSpec, VolumeMount};
use crate::volume;

/// What there is of volumes until their container has gone.
#[derive(Debug)]
pub(super) struct Volumes {
    /// The locks by which nobody removes them.
    _held: Vec<OwnedFd>,
    /// Their mounts, until init has them.
    trees: Vec<OwnedFd>,
    throttle: Option<Throttle>,
}

impl Volumes {
    /// Those of a spec; none if it has none.
    pub(super) fn take(
        (id, spec): (&str, &ContainerSpec),
        (parent, leaf): (&cgroup::Parent, &Leaf),
    ) -> io::Result<Option<Self>> {
        if spec.volumes.is_empty() {
            return Ok(None);
        }
        let held = spec.volumes.iter().filter_map(hold).collect::<io::Result<_>>()?;
        let (mut trees, mut disks) = (Vec::new(), Vec::new());
        for volume in &spec.volumes {
            let source = volume::open_directory(&volume.source)
                .context(|| format!("could not open `{}`", volume.source.display()))?;
            trees.push(clone_for(source.as_fd(), volume.access)?);
            if let Some(disk) = Disk::below(fstat(&source)?.st_dev)?
                && !disks.contains(&disk)
            {
                disks.push(disk);
            }
        }
        let throttle = parent.throttle((id, leaf), disks, spec.io_bytes_per_s)?;
        Ok(Some(Self { _held: held, trees, throttle }))
    }

    /// Their mounts, in the order of the spec.
    pub(super) fn take_trees(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.trees)
    }

    /// Lifts what would hold up the end of a process.
    pub(super) fn lift(&self) -> io::Result<()> {
        self.throttle.as_ref().map_or(Ok(()), Throttle::lift)
    }

    /// Lets go of them. The last process of the container is gone.
    pub(super) fn let_go(self) -> io::Result<()> {
        self.throttle.as_ref().map_or(Ok(()), Throttle::remove)
    }
}

/// The lock of a volume that has one.
fn hold(volume: &VolumeMount) -> Option<io::Result<OwnedFd>> {
    let directory = volume.held.as_ref()?;
    let gone = || {
        let text = format!("the volume `{}` has been removed", directory.display());
        io::Error::new(ErrorKind::NotFound, text)
    };
    Some(volume::hold(directory).and_then(|held| held.ok_or_else(gone)))
}
