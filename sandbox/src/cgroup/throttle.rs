//! How fast a container may read from and write to block devices: for those with volumes, since
//! all else that a container stores is memory.
//!
//! It is a bound of the whole disk that a volume lies on, which is what the kernel can bound. There
//! is none for a file system without one disk of its own (tmpfs, overlay, btrfs), and none where
//! the kernel lacks the controller. On v1 a write counts as the container's only if it goes to the
//! disk at once (`O_DIRECT`, `O_SYNC`): what is written back later is the kernel's own.
//!
//! On v1 the leaf is in a hierarchy of its own, made and entered for this alone, late: see the top
//! of [`super`] for what that costs.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dev, Mode, OFlags, major, minor};
use rustix::io::Errno;

use super::{Leaf, Parent, open, open_directory, read, remove, v1, v2, write};
use crate::error::Context as _;

/// The controller on v2.
const CONTROLLER: &str = "io";
/// The files of a v1 cgroup that hold a limit for each device.
const V1_LIMITS: [&str; 2] = ["blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"];
/// That of a v2 cgroup.
const V2_LIMITS: &str = "io.max";

/// A disk, by its number: `8:0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk(String);

/// The limits of one container.
#[derive(Debug)]
pub(crate) struct Throttle {
    cgroup: Cgroup,
    disks: Vec<Disk>,
}

#[derive(Debug)]
enum Cgroup {
    /// A leaf of this only.
    V1 { parent: OwnedFd, leaf: OwnedFd, id: String },
    /// The container's.
    V2 { leaf: OwnedFd },
}

impl Disk {
    /// The disk that a file system with this device number is on, if it is on one.
    pub(crate) fn below(device: Dev) -> io::Result<Option<Self>> {
        let number = format!("{}:{}", major(device), minor(device));
        let place = Path::new("/sys/dev/block").join(&number);
        if !place.exists() {
            return Ok(None);
        }
        if !place.join("partition").exists() {
            return Ok(Some(Self(number)));
        }
        // The place is a link: above what it leads to is the disk.
        let disk = place.join("../dev");
        let text =
            fs::read_to_string(&disk).context(|| format!("could not read `{}`", disk.display()))?;
        Ok(Some(Self(text.trim().to_owned())))
    }
}

impl Parent {
    /// Bounds what a container may read from, and write to, each of these disks. None if there is
    /// none, or no such controller.
    pub(crate) fn throttle(
        &self,
        (id, leaf): (&str, &Leaf),
        disks: Vec<Disk>,
        bytes_per_s: NonZeroU64,
    ) -> io::Result<Option<Throttle>> {
        if disks.is_empty() {
            return Ok(None);
        }
        let cgroup = match (self, leaf) {
            (Self::V1(parent), Leaf::V1(leaf)) => enter_v1(parent, id, leaf)?,
            (Self::V2(parent), Leaf::V2(leaf)) => enable_v2(parent, leaf)?,
            (Self::V1(_), Leaf::V2(_)) | (Self::V2(_), Leaf::V1(_)) => None,
        };
        let Some(cgroup) = cgroup else { return Ok(None) };
        let throttle = Throttle { cgroup, disks };
        throttle.set(Some(bytes_per_s)).map(|()| Some(throttle))
    }
}

/// Makes a leaf for the container and has what runs in the container enter it. None if the
/// controller is not there.
fn enter_v1(parent: &v1::Parent, id: &str, container: &v1::Leaf) -> io::Result<Option<Cgroup>> {
    let Some(parent) = parent.blkio() else { return Ok(None) };
    if !has(parent, V1_LIMITS[0])? {
        return Ok(None);
    }
    match rustix::fs::mkdirat(parent, id, Mode::from_raw_mode(0o755)) {
        // The controller may share a hierarchy with another.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).context(|| format!("could not make `{id}`")),
    }
    let leaf = open_directory(parent, id.as_ref())?;
    for member in container.members()? {
        write(leaf.as_fd(), "cgroup.procs", &member)?;
    }
    let parent = parent.try_clone_to_owned()?;
    Ok(Some(Cgroup::V1 { parent, leaf, id: id.to_owned() }))
}

/// Has the container's own cgroup have the controller. None if that is not there.
fn enable_v2(parent: &v2::Parent, container: &v2::Leaf) -> io::Result<Option<Cgroup>> {
    let leaf = container.directory()?;
    let is_there = || has(leaf.as_fd(), V2_LIMITS);
    // Enabled by the first container that needs it: it would make all others slower to make.
    let is_enabled = is_there()? || parent.enable(CONTROLLER)? && is_there()?;
    Ok(is_enabled.then_some(Cgroup::V2 { leaf }))
}

/// Lifts what limits the leaf of a container whose shim is gone has below `parent`.
pub(super) fn lift_all(parent: BorrowedFd<'_>, id: &str) -> io::Result<()> {
    for name in V1_LIMITS.iter().chain([&V2_LIMITS]) {
        let path = format!("{id}/{name}");
        if !has(parent, &path)? {
            continue;
        }
        let limits = read(&open(parent, &path, OFlags::RDONLY)?)?;
        for disk in limits.lines().filter_map(|line| line.split(' ').next()) {
            limit(parent, &path, &limit_of(name, disk, None))?;
        }
    }
    Ok(())
}

/// What is written to one of the files for a limit of a disk, or for none.
fn limit_of(name: &str, disk: &str, bytes_per_s: Option<NonZeroU64>) -> String {
    if name == V2_LIMITS {
        let rate = bytes_per_s.map_or_else(|| "max".into(), |rate| rate.to_string());
        return format!("{disk} rbps={rate} wbps={rate}");
    }
    // 0 is the kernel's word for no limit.
    format!("{disk} {}", bytes_per_s.map_or(0, NonZeroU64::get))
}

/// Whether a cgroup has this file.
fn has(cgroup: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    match rustix::fs::statat(cgroup, name, AtFlags::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error).context(|| format!("could not look for `{name}`")),
    }
}

/// Sets a limit of a disk, if it is one that can be held back: some have no queue to do that in.
fn limit(cgroup: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let file = open(cgroup, name, OFlags::WRONLY)?;
    match rustix::io::write(&file, value.as_bytes()) {
        Ok(_) | Err(Errno::NODEV | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error).context(|| format!("could not write `{value}` to `{name}`")),
    }
}

impl Throttle {
    /// Lifts the limits, so that what is to end does not wait for the disk: a process that does
    /// cannot be killed.
    pub(crate) fn lift(&self) -> io::Result<()> {
        self.set(None)
    }

    /// Removes what was made for this. The container's last process is gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match &self.cgroup {
            Cgroup::V1 { parent, id, .. } => remove(parent.as_fd(), id.as_ref(), || Ok(())),
            Cgroup::V2 { .. } => Ok(()),
        }
    }

    fn set(&self, bytes_per_s: Option<NonZeroU64>) -> io::Result<()> {
        let (leaf, names) = match &self.cgroup {
            Cgroup::V1 { leaf, .. } => (leaf, V1_LIMITS.as_slice()),
            Cgroup::V2 { leaf } => (leaf, [V2_LIMITS].as_slice()),
        };
        for Disk(disk) in &self.disks {
            for name in names {
                limit(leaf.as_fd(), name, &limit_of(name, disk, bytes_per_s))?;
            }
        }
        Ok(())
    }
}
