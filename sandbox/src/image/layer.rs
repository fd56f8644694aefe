//! Writes a layer's entries below one directory, every step by descriptor: nothing that an entry
//! says can reach a file outside, and nothing that is there already is followed or overwritten.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::entry::{Attributes, Entries, EntryPath, Node, bad, unreadable};
use super::marks::{self, OPAQUE};
use super::{Doing as _, Error, Result, tree};
use crate::spec::MAX_ID;

/// Permissions of a directory that an archive left out.
const IMPLIED_MODE: u32 = 0o755;
const COPY_BYTES: usize = 128 << 10;

/// How large a layer may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all files.
    pub unpacked_bytes: u64,
    /// Files, directories, links and whiteouts.
    pub entries: u64,
}

impl Default for Bounds {
    /// Room for the largest images that people use.
    fn default() -> Self {
        Self { unpacked_bytes: 16 << 30, entries: 1_000_000 }
    }
}

/// A layer being written.
#[derive(Debug)]
pub(super) struct LayerWriter {
    root: OwnedFd,
    bounds: Bounds,
    entries: u64,
    bytes: u64,
    /// Set when all is written, for writing into a directory changes them.
    directory_times: Vec<(EntryPath, Timespec)>,
    /// Directories that were made for what lies in them, and of which nothing else is known.
    implied: BTreeSet<EntryPath>,
}

impl LayerWriter {
    /// Writes below `root`, an empty directory of ours.
    pub(super) fn new(root: OwnedFd, bounds: Bounds) -> Self {
        let (directory_times, implied) = (Vec::new(), BTreeSet::new());
        Self { root, bounds, entries: 0, bytes: 0, directory_times, implied }
    }

    /// All is written and on disk. Answers with the bytes of all files.
    pub(super) fn finish(self) -> Result<u64> {
        marks::mark_implied(self.root.as_fd(), &self.implied)?;
        for (path, modified_at) in &self.directory_times {
            // Opened anew: holding one descriptor for each directory would run out of them.
            let directory = tree::open_beneath(self.root.as_fd(), path.as_bytes())
                .map_err(|error| at(path, error))?;
            futimens(&directory, &times(*modified_at)).map_err(|error| at(path, error))?;
        }
        rustix::fs::syncfs(&self.root).doing(|| "could not write a layer to disk".into())?;
        Ok(self.bytes)
    }

    /// Takes back a file, link or node that was written, for another one of its name.
    pub(super) fn remove(&self, path: &EntryPath) -> Result<()> {
        let (parent, name) = path.split();
        let parent = tree::open_beneath(self.root.as_fd(), parent).map_err(|e| at(path, e))?;
        unlinkat(&parent, name, AtFlags::empty()).map_err(|error| at(path, error))
    }

    fn count_entry(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.bounds.entries {
            return Err(Error::TooLarge { limit: format!("{} entries", self.bounds.entries) });
        }
        Ok(())
    }

    fn copy(&mut self, path: &EntryPath, content: &mut dyn Read, file: &File) -> Result<u64> {
        let mut buffer = vec![0; COPY_BYTES];
        let mut length = 0_u64;
        loop {
            let bytes = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(path.as_bytes(), &error)),
            };
            self.bytes += bytes as u64;
            if self.bytes > self.bounds.unpacked_bytes {
                let limit = format!("{} bytes", self.bounds.unpacked_bytes);
                return Err(Error::TooLarge { limit });
            }
            // Zeros are left out, so that a sparse file stays one.
            if buffer[..bytes].iter().any(|byte| *byte != 0) {
                file.write_all_at(&buffer[..bytes], length).map_err(|error| at(path, error))?;
            }
            length += bytes as u64;
        }
        file.set_len(length).map_err(|error| at(path, error))?;
        Ok(length)
    }

    fn parent_of<'a>(&mut self, path: &'a EntryPath) -> Result<(OwnedFd, &'a [u8])> {
        let (parent, name) = path.split();
        if name.is_empty() {
            return Err(bad(b"/", "is not a directory"));
        }
        let parent = self.open_or_make_parts(path, parent)?;
        Ok((parent, name))
    }

    fn open_or_make(&mut self, path: &EntryPath) -> Result<OwnedFd> {
        self.open_or_make_parts(path, path.as_bytes())
    }

    /// Opens the directory `parts` of `path`, making it and those above it where an archive left
    /// them out.
    fn open_or_make_parts(&mut self, path: &EntryPath, parts: &[u8]) -> Result<OwnedFd> {
        match tree::open_beneath(self.root.as_fd(), parts) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(|error| at(path, error)),
        }
        let open = |directory: BorrowedFd<'_>, part: &[u8]| {
            tree::open_beneath(directory, part).map_err(|error| at(path, error))
        };
        let mut at_hand = open(self.root.as_fd(), b"")?;
        let mut length = 0;
        for part in parts.split(|byte| *byte == b'/') {
            length += part.len();
            match mkdirat(&at_hand, part, Mode::RWXU) {
                Ok(()) => {
                    self.count_entry()?;
                    self.implied.insert(EntryPath::parse(&parts[..length])?);
                    at_hand = open(at_hand.as_fd(), part)?;
                    // Not left to `mkdir`, which the umask of whoever started us bends.
                    let mode = Mode::from_raw_mode(IMPLIED_MODE);
                    fchmod(&at_hand, mode).map_err(|error| at(path, error))?;
                }
                Err(Errno::EXIST) => at_hand = open(at_hand.as_fd(), part)?,
                Err(error) => return Err(at(path, error)),
            }
            length += 1;
        }
        Ok(at_hand)
    }
}

impl Entries for LayerWriter {
    fn directory(&mut self, path: &EntryPath, attributes: &Attributes) -> Result<()> {
        check_owner(path, attributes)?;
        let entries = self.entries;
        let directory = self.open_or_make(path)?;
        if self.entries == entries {
            self.count_entry()?;
        }
        set_attributes(&directory, attributes).map_err(|error| at(path, error))?;
        self.directory_times.push((path.clone(), attributes.modified_at));
        self.implied.remove(path);
        Ok(())
    }

    fn file(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        (announced, content): (u64, &mut dyn Read),
    ) -> Result<()> {
        check_owner(path, attributes)?;
        self.count_entry()?;
        let (parent, name) = self.parent_of(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = openat(&parent, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
            .map_err(|error| at(path, error))?;
        let file = File::from(file);
        if self.copy(path, content, &file)? != announced {
            return Err(bad(path.as_bytes(), "is cut short"));
        }
        set_attributes(&file, attributes).map_err(|error| at(path, error))?;
        futimens(&file, &times(attributes.modified_at)).map_err(|error| at(path, error))
    }

    fn symlink(&mut self, path: &EntryPath, attributes: &Attributes, target: &[u8]) -> Result<()> {
        check_owner(path, attributes)?;
        self.count_entry()?;
        let (parent, name) = self.parent_of(path)?;
        symlinkat(target, &parent, name).map_err(|error| at(path, error))?;
        own_node(&parent, name, attributes).map_err(|error| at(path, error))
    }

    fn hard_link(
        &mut self,
        path: &EntryPath,
        _of_the_file: &Attributes,
        target: &EntryPath,
    ) -> Result<()> {
        self.count_entry()?;
        let (parent, name) = self.parent_of(path)?;
        let (target_parent, target_name) = target.split();
        let missing = |_| bad(path.as_bytes(), "is a hard link to a file that is not in the layer");
        let target_parent =
            tree::open_beneath(self.root.as_fd(), target_parent).map_err(missing)?;
        match linkat(&target_parent, target_name, &parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(missing(Errno::NOENT)),
            Err(Errno::PERM) => Err(bad(path.as_bytes(), "is a hard link to a directory")),
            linked => linked.map_err(|error| at(path, error)),
        }
    }

    fn node(&mut self, path: &EntryPath, attributes: &Attributes, node: Node) -> Result<()> {
        check_owner(path, attributes)?;
        self.count_entry()?;
        let (parent, name) = self.parent_of(path)?;
        let kind = match node {
            Node::Fifo => FileType::Fifo,
            Node::Whiteout => FileType::CharacterDevice,
        };
        let mode = Mode::from_raw_mode(attributes.mode & 0o777);
        mknodat(&parent, name, kind, mode, 0).map_err(|error| at(path, error))?;
        // The node was made just now, so it is no link that this could follow.
        chmodat(&parent, name, mode, AtFlags::empty()).map_err(|error| at(path, error))?;
        own_node(&parent, name, attributes).map_err(|error| at(path, error))
    }

    fn opaque(&mut self, path: &EntryPath) -> Result<()> {
        self.count_entry()?;
        let directory = self.open_or_make(path)?;
        fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty()).map_err(|error| at(path, error))
    }
}

/// Owner first: a change of owner takes setuid bits away.
fn set_attributes(file: &impl AsFd, attributes: &Attributes) -> Result<(), Errno> {
    let (uid, gid) = owner(attributes);
    fchown(file, Some(uid), Some(gid))?;
    fchmod(file, Mode::from_raw_mode(attributes.mode & 0o7777))?;
    for (name, value) in attributes.xattrs.iter().filter(|(name, _)| is_kept(name)) {
        fsetxattr(file, name.as_str(), value, XattrFlags::empty())?;
    }
    Ok(())
}

fn own_node(parent: &OwnedFd, name: &[u8], attributes: &Attributes) -> Result<(), Errno> {
    let (uid, gid) = owner(attributes);
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(parent, name, &times(attributes.modified_at), AtFlags::SYMLINK_NOFOLLOW)
}

fn owner(attributes: &Attributes) -> (Uid, Gid) {
    // Both were checked to be at most `MAX_ID` before the entry was written.
    let id = |id: u64| u32::try_from(id).unwrap_or(MAX_ID);
    (Uid::from_raw(id(attributes.uid)), Gid::from_raw(id(attributes.gid)))
}

fn check_owner(path: &EntryPath, attributes: &Attributes) -> Result<()> {
    if attributes.uid.max(attributes.gid) <= u64::from(MAX_ID) {
        return Ok(());
    }
    Err(bad(path.as_bytes(), &format!("has an owner or group above {MAX_ID}")))
}

/// Whether an attribute is the image's to set. `user.overlay.*` would speak to a rootless overlay.
fn is_kept(name: &str) -> bool {
    name.starts_with("user.") && !name.starts_with("user.overlay.")
}

const fn times(modified_at: Timespec) -> Timestamps {
    Timestamps { last_access: modified_at, last_modification: modified_at }
}

/// What an answer of the kernel says about the entry: some are the archive's fault.
fn at(path: &EntryPath, error: impl Into<io::Error>) -> Error {
    let error: io::Error = error.into();
    let what = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::EXIST) => "is there twice",
        Some(Errno::LOOP) => "has a symbolic link for a parent",
        Some(Errno::NOTDIR) => "has a parent that is no directory",
        Some(Errno::NAMETOOLONG) => "has a name that is too long",
        _ => {
            let entry = String::from_utf8_lossy(path.as_bytes()).escape_debug().to_string();
            return Error::Io { doing: format!("could not write `{entry}`"), source: error };
        }
    };
    bad(path.as_bytes(), what)
}
