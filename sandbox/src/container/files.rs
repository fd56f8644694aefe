//! The job's files, written inside the container by its init, before any program runs there.
//! Every byte is charged to the job's cgroup and belongs to the job's user.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, mkdirat, openat2};
use rustix::io::Errno;

use crate::error::Context;
use crate::wire::Channel;

/// Bytes of a file in flight between shim and init.
const CHUNK_BYTES: usize = 64 << 10;

/// Opens the working directory, making what is missing of it, and gives it to the job's user, whose
/// ids on the host are `owner`. Links in the image are followed inside the container's root, which
/// is all there is.
pub(crate) fn make_workdir(path: &str, owner: (u32, u32)) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = rustix::fs::open("/", flags, Mode::empty())?;
    let mut directory = root.try_clone()?;
    let mut walked = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        walked.push('/');
        walked.push_str(name);
        match mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(|| format!("could not make `{walked}`")),
        }
        directory = openat2(&root, walked.as_str(), flags, Mode::empty(), resolve)
            .context(|| format!("could not open `{walked}`"))?;
    }
    refuse_proc(directory.as_fd()).context(|| format!("`{path}` is no place to work in"))?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    match fchown(&directory, Some(uid), Some(gid)) {
        // A directory of the host image: a place to be, if not to write.
        Ok(()) | Err(Errno::ROFS) => Ok(directory),
        Err(error) => Err(error).context(|| format!("could not give `{path}` to the job's user")),
    }
}

/// Refuses what a link in the image may lead to: a directory of `/proc` that is given an owner has
/// it in every `/proc` of the host from then on.
fn refuse_proc(directory: BorrowedFd<'_>) -> io::Result<()> {
    let kind = rustix::fs::fstatfs(directory)?.f_type;
    if kind == rustix::fs::PROC_SUPER_MAGIC {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "it is in `/proc`"));
    }
    Ok(())
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

fn open_file(workdir: BorrowedFd<'_>, path: &str, mode: u32) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for (end, _) in path.match_indices('/') {
        let parent = &path[..end];
        make_directory(workdir, parent, resolve)
            .context(|| format!("could not make the directory `{parent}`"))?;
    }
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::TRUNC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode & 0o777);
    let file = openat2(workdir, path, flags, mode, resolve)
        .context(|| format!("could not make `{path}`"))?;
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
