//! Project quotas: quotactl_fd(2) and the two ioctls by which a directory gets its project
//! (ioctl_xfs_fsgetxattr(2)). The structures are the kernel's, from `linux/quota.h`,
//! `linux/dqblk_xfs.h` and `linux/fs.h`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// `PRJQUOTA`: the kind of quota that all commands here are about.
const PROJECT_QUOTA: u32 = 2;
const Q_SETQUOTA: u32 = 0x80_0008;
const Q_XGETQSTAT: u32 = 0x5805;
/// Which fields of `dqblk` are meant: both limits.
const QIF_LIMITS: u32 = 1 | 4;
/// `FS_QUOTA_PDQ_ENFD`: project quotas are enforced.
const PROJECTS_ENFORCED: u16 = 1 << 5;
/// `_IOR('X', 31, struct fsxattr)` and `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSGETXATTR: u32 = 0x801C_581F;
const FS_IOC_FSSETXATTR: u32 = 0x401C_5820;
/// What is made in the directory has its project, too.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// What the files of one project may take together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProjectLimits {
    /// Space, in blocks of 1 KiB.
    pub(crate) blocks: u64,
    /// Files, directories and links.
    pub(crate) inodes: u64,
}

/// `struct dqblk` as the kernel takes it (`if_dqblk`).
#[repr(C)]
#[derive(Default)]
struct Dqblk {
    block_hard_limit: u64,
    block_soft_limit: u64,
    space: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// `struct fs_qfilestat`.
#[repr(C)]
#[derive(Default)]
struct QuotaFile {
    inode: u64,
    blocks: u64,
    extents: u32,
}

/// `struct fs_quota_stat`.
#[repr(C)]
#[derive(Default)]
struct QuotaStat {
    version: i8,
    flags: u16,
    pad: i8,
    user: QuotaFile,
    group: QuotaFile,
    in_core: u32,
    limits: [i32; 3],
    warnings: [u16; 2],
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Fsxattr {
    xflags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

/// Whether the file system of `file` holds projects to their limits (Linux 5.14).
pub(crate) fn enforces_project_quotas(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut stat = QuotaStat::default();
    quotactl(file, Q_XGETQSTAT, 0, &mut stat)?;
    Ok(stat.flags & PROJECTS_ENFORCED != 0)
}

/// Limits what the files of `project` take of the file system that `file` is on.
pub(crate) fn limit_project(
    file: BorrowedFd<'_>,
    project: u32,
    limits: ProjectLimits,
) -> io::Result<()> {
    let mut quota = Dqblk {
        block_hard_limit: limits.blocks,
        inode_hard_limit: limits.inodes,
        valid: QIF_LIMITS,
        ..Dqblk::default()
    };
    quotactl(file, Q_SETQUOTA, project, &mut quota)
}

/// The project of a directory; 0 if it has none.
pub(crate) fn project_of(directory: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(attributes_of(directory)?.project)
}

fn attributes_of(directory: BorrowedFd<'_>) -> io::Result<Fsxattr> {
    let mut attributes = Fsxattr::default();
    // SAFETY: the request writes one `fsxattr`, which `attributes` is.
    let answer = unsafe {
        libc::ioctl(directory.as_raw_fd(), FS_IOC_FSGETXATTR as libc::Ioctl, &raw mut attributes)
    };
    if answer == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// Gives a directory, and what will be made in it, this project.
pub(crate) fn join_project(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = attributes_of(directory)?;
    attributes.project = project;
    attributes.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: the request reads one `fsxattr`, which `attributes` is.
    let answer = unsafe {
        libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR as libc::Ioctl, &raw const attributes)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// quotactl_fd(2). `T` is the structure that the command reads or writes.
fn quotactl<T>(file: BorrowedFd<'_>, command: u32, id: u32, argument: &mut T) -> io::Result<()> {
    let command = command << 8 | PROJECT_QUOTA;
    // SAFETY: the commands used here read or write one structure of the kernel's, whose fields and
    // size `T` has; it lives until the call returns.
    let answer = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, ptr::from_mut(argument))
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that the kernel's structures have on 64-bit machines.
    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<Dqblk>(), 72);
        assert_eq!(size_of::<QuotaFile>(), 24);
        assert_eq!(size_of::<QuotaStat>(), 80);
        assert_eq!(size_of::<Fsxattr>(), 28);
    }
}
