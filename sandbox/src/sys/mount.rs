//! mount_setattr(2), which rustix does not wrap.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Attributes to set on a mount.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountAttributes<'a> {
    /// `MOUNT_ATTR_*` bits to set.
    pub(crate) set: u64,
    /// How it is to be propagated, as a `MS_*` bit; 0 leaves that as it is.
    pub(crate) propagation: u64,
    /// Ids of this user namespace stand for those on the file system.
    pub(crate) id_map: Option<BorrowedFd<'a>>,
}

/// Changes the attributes of the mount that `mount` is the root of (Linux 5.12).
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes<'_>,
) -> io::Result<()> {
    let MountAttributes { set, propagation, id_map } = attributes;
    let mut attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    if let Some(user_namespace) = id_map {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = u64::from(user_namespace.as_raw_fd().cast_unsigned());
    }
    // SAFETY: the path is an empty string that ends with NUL, `attr` is a valid `mount_attr` of
    // the given size, and both live until the call returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            ptr::from_mut(&mut attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
