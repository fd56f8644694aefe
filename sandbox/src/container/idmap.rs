//! Host ids for a container: a slot of 65,536 that no other living container has, and the maps of
//! the user namespace in which they have other numbers.
//!
//! A slot is held by a lock on one byte of a file that all servers of a host share. The lock
//! belongs to an open file description that the shim and its init share (`F_OFD_SETLK`, fcntl(2)),
//! so the kernel frees it when the last of them is gone, however they end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{Mode, OFlags};

use crate::error::Context;

/// Ids in one slot: inner ids 0 to 65535.
pub(crate) const IDS_PER_SLOT: u32 = 65_536;
/// The first host id of slot 0. Ids from here to 0x7FFD_FFFF are given to no one by systemd
/// (its document "Users, Groups, UIDs and GIDs"), Debian's policy or subuid defaults.
const FIRST_ID: u32 = 0x7000_0000;
/// Containers that can live at one time on a host.
const SLOTS: u32 = 4_000;
/// The inner id of init, which no step has.
pub(crate) const INIT_ID: u32 = 65_535;

/// The id inside its container that a host id of any slot stands for.
pub(crate) const fn inner_id(host_id: u32) -> Option<u32> {
    match host_id.checked_sub(FIRST_ID) {
        Some(id) if id / IDS_PER_SLOT < SLOTS => Some(id % IDS_PER_SLOT),
        Some(_) | None => None,
    }
}

/// A held slot.
#[derive(Debug)]
pub(crate) struct Slot {
    number: u32,
    /// Keeps the lock.
    _lock: File,
}

impl Slot {
    /// Takes a free slot, looking first at the one that `hint` falls on.
    pub(crate) fn take(ids_dir: &Path, hint: u32) -> io::Result<Self> {
        std::fs::create_dir_all(ids_dir)
            .context(|| format!("could not make `{}`", ids_dir.display()))?;
        let path = ids_dir.join("slots");
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .context(|| format!("could not open `{}`", path.display()))?;
        for offset in 0..SLOTS {
            let number = (hint % SLOTS + offset) % SLOTS;
            if try_lock(&lock, number)? {
                return Ok(Self { number, _lock: lock });
            }
        }
        Err(io::Error::other(format!("all {SLOTS} slots of host ids are in use")))
    }

    /// The host id that an inner id stands for.
    pub(crate) const fn host_id(&self, inner: u32) -> u32 {
        FIRST_ID + self.number * IDS_PER_SLOT + inner
    }

    /// Maps inner ids 0 to 65535 to this slot's in the user namespace that `process` was born into,
    /// and answers with that namespace. `process` is its directory in a `/proc`.
    pub(crate) fn map(&self, process: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let map = format!("0 {} {IDS_PER_SLOT}\n", self.host_id(0));
        let open = |name: &str, flags| {
            rustix::fs::openat(process, name, flags | OFlags::CLOEXEC, Mode::empty())
                .context(|| format!("could not open `{name}` of a process"))
        };
        for name in ["uid_map", "gid_map"] {
            rustix::io::write(open(name, OFlags::WRONLY)?, map.as_bytes())
                .context(|| format!("could not write `{name}` of a process"))?;
        }
        open("ns/user", OFlags::RDONLY)
    }
}

fn try_lock(file: &File, byte: u32) -> io::Result<bool> {
    #[expect(clippy::cast_possible_truncation, reason = "constants that fit, of the wrong type")]
    let range = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::from(byte),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(io::Error::from(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_holders_never_have_the_same_slot() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Slot::take(dir.path(), 7).expect("a slot");
        let second = Slot::take(dir.path(), 7).expect("a slot");
        assert_eq!(first.host_id(0), FIRST_ID + 7 * IDS_PER_SLOT);
        assert_eq!(second.host_id(0), FIRST_ID + 8 * IDS_PER_SLOT);
        drop(first);
        let third = Slot::take(dir.path(), 7).expect("a slot");
        assert_eq!(third.host_id(0), FIRST_ID + 7 * IDS_PER_SLOT);
    }

    #[test]
    fn the_last_slot_ends_below_the_ids_that_others_use() {
        const { assert!(FIRST_ID + SLOTS * IDS_PER_SLOT - 1 <= 0x7FFD_FFFF) }
    }
}
