//! Trees of files, told as lines that can be compared.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{lgetxattr, llistxattr};

use super::images;

/// More than the attributes of a file of these tests have.
const MAX_XATTR_BYTES: usize = 4096;

/// Everything below `root`, and itself, a line for each: path, kind and mode, owner, extended
/// attributes, and of what is no directory the number of names, the time it was changed, the
/// size, the digest of what is in it, and where it leads. Directories have none of these in common
/// on all file systems.
pub(crate) fn described(root: &Path) -> Vec<String> {
    let (mut lines, mut digests) = (Vec::new(), HashMap::new());
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).expect("looked at");
        let name = path.strip_prefix(root).expect("below");
        let (mode, uid, gid) = (stat.mode(), stat.uid(), stat.gid());
        let mut line = format!("{name:?} {mode:o} {uid}:{gid} {:?}", xattrs(&path));
        if stat.is_dir() {
            pending.extend(fs::read_dir(&path).expect("read").map(|e| e.expect("read").path()));
        } else {
            let (links, size, changed_at) = (stat.nlink(), stat.size(), stat.mtime());
            line += &format!(" {links} {changed_at} {size}");
        }
        if stat.is_file() {
            // A file of many names is read once.
            let digest = || images::digest(&fs::read(&path).expect("read"));
            let digest = digests.entry((stat.dev(), stat.ino())).or_insert_with(digest);
            line += &format!(" {digest}");
        } else if stat.is_symlink() {
            line += &format!(" {:?}", fs::read_link(&path).expect("read"));
        } else if stat.file_type().is_char_device() {
            line += &format!(" {}", stat.rdev());
        }
        lines.push(line);
    }
    lines.sort();
    lines
}

fn xattrs(path: &Path) -> Vec<(String, String)> {
    let mut buffer = [0; MAX_XATTR_BYTES];
    let length = llistxattr(path, &mut buffer[..]).expect("listed");
    let names = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut xattrs = Vec::new();
    for name in names.split_terminator('\0') {
        let length = lgetxattr(path, name, &mut buffer[..]).expect("read");
        xattrs.push((name.to_owned(), buffer[..length].escape_ascii().to_string()));
    }
    xattrs.sort();
    xattrs
}

/// What a container sees of these layers, the topmost first. They are mounted for one thread only.
pub(crate) fn merged(layers: &[PathBuf]) -> Vec<String> {
    let seen = std::thread::scope(|scope| scope.spawn(|| merge(layers)).join());
    seen.expect("no panic")
}

fn merge(layers: &[PathBuf]) -> Vec<String> {
    let none: Option<&Path> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("root may");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
    // The kernel wants two lower layers where there is no upper one.
    let bottom = tempfile::tempdir().expect("a directory");
    let target = tempfile::tempdir().expect("a directory");
    let lower: Vec<&[u8]> = layers
        .iter()
        .map(|layer| layer.as_os_str().as_bytes())
        .chain([bottom.path().as_os_str().as_bytes()])
        .collect();
    let options = [b"lowerdir=", lower.join(&b':').as_slice()].concat();
    let flags = MsFlags::MS_RDONLY;
    mount(Some("overlay"), target.path(), Some("overlay"), flags, Some(options.as_slice()))
        .expect("mounted");
    let seen = described(target.path());
    nix::mount::umount(target.path()).expect("unmounted");
    seen
}
