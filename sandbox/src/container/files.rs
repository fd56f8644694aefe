//! The job's files, written inside the container by its init, before any program runs there.
//! Every byte is charged to the job's cgroup and belongs to the job's user.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    Dev, Gid, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, StatVfsMountFlags, Uid, fchmod, fchown,
    fstat, fstatfs, fstatvfs, mkdirat, openat2, stat,
};
use rustix::io::Errno;

use super::privileges::set_file_owner;
use crate::error::Context;
use crate::wire::Channel;

/// Bytes of a file in flight between shim and init.
const CHUNK_BYTES: usize = 64 << 10;

/// Opens the working directory, making what is missing of it, and gives it to the job's user, whose
/// ids on the host are `owner`. Links in the image are followed inside the container's root, which
/// is all there is. What lies in a volume, one of these by its device, keeps its owner: others may
/// use it, too.
pub(crate) fn make_workdir(path: &str, owner: (u32, u32), volumes: &[Dev]) -> io::Result<OwnedFd> {
    let directory = make_directories(path, owner, ResolveFlags::empty())?;
    let place = place_of(directory.as_fd(), volumes)
        .context(|| format!("`{path}` cannot be a working directory"))?;
    if place == Place::Own {
        give(directory.as_fd(), owner)
            .context(|| format!("could not give `{path}` to the job's user"))?;
    }
    Ok(directory)
}

/// Opens the root of the container.
pub(crate) fn open_root() -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/", flags, Mode::empty())?)
}

/// Opens a directory of the container, making what is missing of it as the job's, whose ids on the
/// host are `owner`. `resolve` says what it may not be, beside what leads out of the container.
pub(crate) fn make_directories(
    path: &str,
    owner: (u32, u32),
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = open_root()?;
    let mut directory = root.try_clone()?;
    let mut walked = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        walked.push('/');
        walked.push_str(name);
        make_child(directory.as_fd(), name, owner)
            .context(|| format!("could not make `{walked}`"))?;
        directory = match openat2(&root, walked.as_str(), flags, Mode::empty(), resolve) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::LOOP) => {
                let why = format!("`{walked}` is a link that leads nowhere, or where none may be");
                return Err(io::Error::new(ErrorKind::PermissionDenied, why));
            }
            Err(error) => return Err(error).context(|| format!("could not open `{walked}`")),
        };
    }
    Ok(directory)
}

/// Makes a directory unless there is something of its name.
fn make_child(parent: BorrowedFd<'_>, name: &str, owner: (u32, u32)) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    match mkdirat(parent, name, mode) {
        Ok(()) => {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            Ok(give(made.as_fd(), owner)?)
        }
        Err(Errno::EXIST) => Ok(()),
        // A volume, in which the host's root has no id: the job's user makes it.
        Err(Errno::OVERFLOW) => match as_user(owner, || mkdirat(parent, name, mode)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn give(directory: BorrowedFd<'_>, (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
    fchown(directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// Does something with files as another user, without the privileges of the host's root.
fn as_user<T>((uid, gid): (u32, u32), act: impl FnOnce() -> T) -> T {
    set_file_owner(uid, gid);
    let done = act();
    set_file_owner(0, 0);
    done
}

/// Where a working directory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In what is the container's alone.
    Own,
    /// In a volume, or in a directory of the host image: a place to be, if not to write.
    Shared,
}

/// Refuses what a link of the image leads to outside of it, of `/tmp` and of the volumes: a
/// directory of `/proc` would be given away for the whole host, one of `/dev` for the container.
fn place_of(directory: BorrowedFd<'_>, volumes: &[Dev]) -> io::Result<Place> {
    let device = fstat(directory)?.st_dev;
    // First: `/tmp` may be a volume.
    if volumes.contains(&device) {
        return Ok(Place::Shared);
    }
    if device == stat("/")?.st_dev || device == stat("/tmp")?.st_dev {
        return Ok(Place::Own);
    }
    let is_proc = fstatfs(directory)?.f_type == PROC_SUPER_MAGIC;
    let is_read_only = fstatvfs(directory)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    if is_read_only && !is_proc {
        return Ok(Place::Shared);
    }
    Err(io::Error::new(ErrorKind::PermissionDenied, "it is not the image's"))
}

/// Writes one file below `workdir`, its bytes read from `source`. Reads all of them, whether they
/// have a place or not: what follows them is the next order.
pub(crate) fn write_file(
    workdir: BorrowedFd<'_>,
    path: &str,
    mode: u32,
    (source, length): (&mut Channel, u64),
) -> io::Result<()> {
    let file = match open_file(workdir, path, mode) {
        Ok(file) => file,
        Err(error) => return discard((source, length)).and(Err(error)),
    };
    let mut written = Ok(());
    read_chunks((source, length), |chunk| {
        if written.is_ok() {
            written = write_all(&file, chunk);
        }
    })?;
    written.context(|| format!("could not write `{path}`"))
}

/// Reads the bytes of a file that has no place.
pub(crate) fn discard(source: (&mut Channel, u64)) -> io::Result<()> {
    read_chunks(source, |_| {})
}

fn read_chunks(
    (source, length): (&mut Channel, u64),
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut left = usize::try_from(length).map_err(io::Error::other)?;
    while left > 0 {
        let chunk = source.recv_raw(left.min(CHUNK_BYTES))?;
        left -= chunk.len();
        take(&chunk);
    }
    Ok(())
}

/// A file that would be written through a link, which somebody else has put there.
fn through_link(path: &str) -> io::Error {
    let why = format!("could not make `{path}`: there is a symbolic link");
    io::Error::new(ErrorKind::PermissionDenied, why)
}

fn open_file(workdir: BorrowedFd<'_>, path: &str, mode: u32) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for (end, _) in path.match_indices('/') {
        let parent = &path[..end];
        match make_directory(workdir, parent, resolve) {
            Err(Errno::LOOP) => return Err(through_link(parent)),
            made => made.context(|| format!("could not make the directory `{parent}`"))?,
        }
    }
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::TRUNC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode & 0o777);
    let file = match openat2(workdir, path, flags, mode, resolve) {
        Ok(file) => file,
        Err(Errno::LOOP) => return Err(through_link(path)),
        Err(error) => return Err(error).context(|| format!("could not make `{path}`")),
    };
    fchmod(&file, mode)?;
    Ok(file)
}

fn make_directory(
    workdir: BorrowedFd<'_>,
    path: &str,
    resolve: ResolveFlags,
) -> rustix::io::Result<()> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let parent = openat2(workdir, parent, flags, Mode::empty(), resolve)?;
    match mkdirat(parent.as_fd(), name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
