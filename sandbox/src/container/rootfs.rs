//! The container's root: an overlay of the image's layers below an upper layer on a tmpfs of the
//! container's own, which holds all that the container ever stores.
//!
//! ```text
//! storage (tmpfs, bounded)
//! ├─ upper, work     the overlay's writable layer
//! ├─ tmp, shm        shown as /tmp and /dev/shm
//! ├─ proc, dev       where /proc and /dev are furnished, and wait for the root
//! ├─ init            topmost read-only layer: mount points, /etc/hosts and its like
//! ├─ empty           what /proc is masked with
//! ├─ lower           the directory with all layers, id-mapped: those of the image are in it
//! └─ merged          the overlay; becomes /
//! ```
//!
//! The storage is attached in the container's mount namespace only (an overlay refuses a detached
//! upper layer before Linux 6.15) and is out of sight once the root has been changed. The shim
//! keeps a descriptor of it; when that and the namespace are gone, so are all files, at once.

use std::ffi::CString;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsPickFlags, MountAttrFlags, MountFlags, MountPropagationFlags, UnmountFlags,
    fsconfig_reconfigure, fsconfig_set_string, fspick, mount, mount_change, unmount,
};

use super::devices::mount_devices;
use super::idmap::Slot;
use super::mounts::{
    PLAIN, attach, bind_read_only, clone_tree, clone_tree_at, make_directory, new_filesystem,
    open_directory, place, set_attributes,
};
use super::proc::{Covers, Proc};
use crate::error::Context;
use crate::spec::{RootUse, Rootfs};

/// Bound of the storage until the job and with it `disk_bytes` is known.
const EMPTY_STORAGE_BYTES: &str = "1m";
/// One inode is allowed for so many bytes of storage, as ext4 does it for small files.
const BYTES_PER_INODE: u64 = 4096;
/// Every container may have so many files at the least, and at the most.
const MIN_INODES: u64 = 2_048;
const MAX_INODES: u64 = 1 << 20;
/// The writable layer's directory in the storage.
pub(crate) const UPPER: &str = "upper";
/// Where all layers are seen as one.
const MERGED: &str = "merged";
/// The name of every container's host: the same, so that a prepared one fits any job.
pub(crate) const HOST_NAME: &str = "lazaret";

/// The container's own file system.
#[derive(Debug)]
pub(crate) struct Storage {
    /// Its root directory.
    root: OwnedFd,
    /// A read-only mount of `empty`; what is cloned from it is read-only, too.
    empty: OwnedFd,
}

/// What every container has besides its image, mounted before the image is known: each is a mount
/// that only has to be moved into the root.
#[derive(Debug)]
pub(crate) struct Furniture {
    proc: OwnedFd,
    dev: OwnedFd,
    tmp: OwnedFd,
}

impl Storage {
    /// Makes the mount namespace private and attaches an empty storage at `place`, a directory
    /// that nobody else uses.
    pub(crate) fn new(place: &Path, owner: u32) -> io::Result<Self> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).context(|| "could not make the mounts private".into())?;
        let options = [("size", EMPTY_STORAGE_BYTES), ("nr_inodes", "256"), ("mode", "0755")];
        let root = new_filesystem("tmpfs", &options, PLAIN)?;
        let target = rustix::fs::open(place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        attach(root.as_fd(), target.as_fd())
            .context(|| "could not attach the container's storage".into())?;
        lay_out(root.as_fd(), owner)?;
        let empty = open_directory(root.as_fd(), "empty")?;
        bind_read_only((root.as_fd(), Path::new("empty")), empty.as_fd())?;
        // Once more: the first descriptor is of what lies below the mount.
        let empty = open_directory(root.as_fd(), "empty")?;
        Ok(Self { root, empty })
    }

    /// A descriptor for the shim.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Bounds the storage, now that the job is known.
    pub(crate) fn resize(&self, disk_bytes: NonZeroU64) -> io::Result<()> {
        let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
        let fs = fspick(self.root.as_fd(), "", flags)?;
        let inodes = (disk_bytes.get() / BYTES_PER_INODE).clamp(MIN_INODES, MAX_INODES);
        fsconfig_set_string(fs.as_fd(), "size", disk_bytes.to_string())?;
        fsconfig_set_string(fs.as_fd(), "nr_inodes", inodes.to_string())?;
        fsconfig_reconfigure(fs.as_fd())
            .context(|| format!("could not resize the storage to `{disk_bytes}` bytes"))
    }

    /// Mounts what every container has besides its image. The trees stand in the storage until
    /// they are moved: before Linux 6.15 nothing can be mounted below a detached one.
    pub(crate) fn furnish(
        &self,
        slot: &Slot,
        (proc, covers): (Proc, &Covers),
    ) -> io::Result<Furniture> {
        let place = open_directory(self.root.as_fd(), "proc")?;
        let proc = proc.attach(place.as_fd(), self.empty.as_fd(), covers)?;
        let shm = clone_tree_at(self.root.as_fd(), Path::new("shm"))?;
        let place = open_directory(self.root.as_fd(), "dev")?;
        let dev = mount_devices(place.as_fd(), shm.as_fd(), |inner| slot.host_id(inner))?;
        let tmp = clone_tree_at(self.root.as_fd(), Path::new("tmp"))?;
        Ok(Furniture { proc, dev, tmp })
    }

    /// Makes the image the root of this mount namespace, furnished, and lets go of the host's.
    pub(crate) fn become_root(
        &self,
        (rootfs, root_use): (&Rootfs, RootUse),
        user_namespace: BorrowedFd<'_>,
        furniture: &Furniture,
    ) -> io::Result<()> {
        let id_map = rootfs.is_id_mapped.then_some(user_namespace);
        self.enter_layers(rootfs, id_map)?;
        let merged = self.mount_overlay(&rootfs.layers)?;
        for bind in &rootfs.binds {
            let target = place(merged.as_fd(), &bind.target)?;
            bind_read_only((rustix::fs::CWD, &bind.source), target.as_fd())
                .context(|| format!("could not show `{}`", bind.source.display()))?;
        }
        let Furniture { proc, dev, tmp } = furniture;
        let tmp = (root_use == RootUse::Job).then_some(("tmp", tmp));
        for (name, mount) in [("proc", proc), ("dev", dev)].into_iter().chain(tmp) {
            attach(mount.as_fd(), place(merged.as_fd(), Path::new(name))?.as_fd())
                .context(|| format!("could not mount `/{name}`"))?;
        }
        change_root(merged.as_fd())
    }

    /// Attaches the directory with the image's layers, one mount for all of them, and makes it the
    /// working directory: so the overlay's options name each layer shortly, and no path of the
    /// host.
    fn enter_layers(&self, rootfs: &Rootfs, id_map: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let lower = place(self.root.as_fd(), Path::new("lower"))?;
        let tree = clone_tree(&rootfs.directory)?;
        set_attributes(tree.as_fd(), PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY, id_map)
            .context(|| format!("could not id-map `{}`", rootfs.directory.display()))?;
        attach(tree.as_fd(), lower.as_fd())?;
        Ok(rustix::process::fchdir(tree)?)
    }

    /// Mounts by mount(2), which takes options of a page: those of fsconfig(2) have 255 bytes each,
    /// too few for eight layers, and one layer at a time (`lowerdir+`) is new in Linux 6.7.
    fn mount_overlay(&self, layers: &[String]) -> io::Result<OwnedFd> {
        if let Some(layer) = layers.iter().find(|layer| !is_name(layer)) {
            return Err(io::Error::other(format!("`{layer}` is not the name of a layer")));
        }
        let lower = std::iter::once("../init").chain(layers.iter().map(String::as_str));
        let lower = lower.collect::<Vec<_>>().join(":");
        let options = format!(
            "lowerdir={lower},upperdir=../{UPPER},workdir=../work,\
             xino=off,index=off,metacopy=off,redirect_dir=nofollow"
        );
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(
            "overlay",
            format!("../{MERGED}"),
            "overlay",
            flags,
            CString::new(options)?.as_c_str(),
        )
        .context(|| "could not mount the layers over each other".into())?;
        open_directory(self.root.as_fd(), MERGED)
    }
}

/// Whether overlay's list of layers can have it: nothing in it means anything else there.
fn is_name(layer: &str) -> bool {
    !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// pivot_root(2) with the old root stacked on the new one, so that no directory is needed for it.
fn change_root(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".").context(|| "could not change the root".into())?;
    unmount(".", UnmountFlags::DETACH).context(|| "could not detach the old root".into())?;
    Ok(rustix::process::chdir("/")?)
}

/// Makes the directories of the storage, and the files that every container has.
fn lay_out(root: BorrowedFd<'_>, owner: u32) -> io::Result<()> {
    for (name, mode) in [(UPPER, 0o755), ("tmp", 0o1777), ("shm", 0o1777)] {
        make_directory(root, name, mode, owner)?;
    }
    for name in ["work", "lower", MERGED, "proc", "dev"] {
        make_directory(root, name, 0o755, 0)?;
    }
    make_directory(root, "empty", 0o755, 0)?;
    let empty = open_directory(root, "empty")?;
    make_directory(empty.as_fd(), "directory", 0o555, 0)?;
    write_file(empty.as_fd(), "file", "", 0)?;
    make_directory(root, "init", 0o755, owner)?;
    let init = open_directory(root, "init")?;
    for (name, mode) in [("proc", 0o555), ("dev", 0o755), ("tmp", 0o1777)] {
        make_directory(init.as_fd(), name, mode, owner)?;
    }
    make_directory(init.as_fd(), "etc", 0o755, owner)?;
    let etc = open_directory(init.as_fd(), "etc")?;
    let hosts = format!("127.0.0.1 localhost {HOST_NAME}\n::1 localhost {HOST_NAME}\n");
    write_file(etc.as_fd(), "hosts", &hosts, owner)?;
    write_file(etc.as_fd(), "hostname", &format!("{HOST_NAME}\n"), owner)?;
    write_file(etc.as_fd(), "resolv.conf", "", owner)
}

fn write_file(directory: BorrowedFd<'_>, name: &str, content: &str, owner: u32) -> io::Result<()> {
    use rustix::fs::{Gid, Uid, fchown, openat};
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    rustix::io::write(&file, content.as_bytes())?;
    Ok(())
}
