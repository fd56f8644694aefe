//! Tells of all that is below a directory, in an order that depends on nothing but the names.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, Timespec, fgetxattr, flistxattr, openat, readlinkat,
    statat,
};
use rustix::io::Errno;

use super::entry::{Attributes, Entries, EntryPath, Node, bad};
use super::{Error, Result, marks, tree};
use crate::container::idmap;

/// The longest list of names, and the longest value, of a file's extended attributes (xattr(7)).
const MAX_XATTR_BYTES: usize = 64 << 10;

/// Whose ids the files of a directory have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    /// Those that an image has.
    Image,
    /// Those of a container on the host, of whichever slot.
    Container,
}

impl Owners {
    /// The id as an image has it.
    fn id(self, id: u32) -> Option<u32> {
        match self {
            Self::Image => Some(id),
            Self::Container => idmap::inner_id(id),
        }
    }
}

/// What is told of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It, and what is in it.
    Whole,
    /// Nothing of it, but perhaps of what is in it.
    Inside,
    /// Nothing.
    Nothing,
}

/// Chooses by the path below the root.
pub type Chooser<'a> = dyn Fn(&[u8]) -> Choice + 'a;

/// Tells `entries` of all that is below `source`, itself first.
pub(super) fn walk(
    source: BorrowedFd<'_>,
    owners: Owners,
    entries: &mut impl Entries,
) -> Result<()> {
    walk_chosen((source, &EntryPath::ROOT), owners, &|_path| Choice::Whole, entries)
}

/// Tells `entries` of what is chosen of `start`, which is below `source`, and of what is in it.
pub(super) fn walk_chosen(
    (source, start): (BorrowedFd<'_>, &EntryPath),
    owners: Owners,
    chooser: &Chooser<'_>,
    entries: &mut impl Entries,
) -> Result<()> {
    let mut walk = Walk { source, owners, chooser, entries, seen: HashMap::new() };
    // The next path is the last; a directory's names are put there in reverse.
    let mut pending = vec![start.clone()];
    while let Some(path) = pending.pop() {
        let children = walk.visit(&path).map_err(|failure| failure.of(&path))?;
        for name in children.into_iter().rev() {
            let child = [path.as_bytes(), name.as_bytes()].join(&b'/');
            pending.push(EntryPath::parse(&child)?);
        }
    }
    Ok(())
}

struct Walk<'a, E> {
    source: BorrowedFd<'a>,
    owners: Owners,
    chooser: &'a Chooser<'a>,
    entries: &'a mut E,
    /// Files with more than one name, by device and number, and the first name met.
    seen: HashMap<(u64, u64), EntryPath>,
}

/// What kept an entry from being told of.
enum Failure {
    /// The source could not be read.
    Read(io::Error),
    /// Whoever was told refused it, or it cannot be in a layer.
    Refused(Error),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Read(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Failure {
    fn of(self, path: &EntryPath) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::Read(source) => {
                let path = String::from_utf8_lossy(path.as_bytes()).escape_debug().to_string();
                Error::Io { doing: format!("could not read `{path}`"), source }
            }
        }
    }
}

impl<E: Entries> Walk<'_, E> {
    /// Tells of one entry. Answers with the names in it if it is a directory, sorted.
    fn visit(&mut self, path: &EntryPath) -> Result<Vec<CString>, Failure> {
        let choice = (self.chooser)(path.as_bytes());
        if choice == Choice::Nothing {
            return Ok(Vec::new());
        }
        let (parent, name) = path.split();
        let parent = tree::open_beneath(self.source, parent)?;
        let name = if name.is_empty() { b"." } else { name };
        let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if choice == Choice::Inside {
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            return if is_directory { self.names(path) } else { Ok(Vec::new()) };
        }
        if let Some(first) = self.first_name(path, &stat) {
            let attributes = self.attributes(path, &stat, Vec::new())?;
            self.entries.hard_link(path, &attributes, &first)?;
            return Ok(Vec::new());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.visit_directory(path, &stat),
            FileType::RegularFile => {
                let file = open(&parent, name)?;
                let attributes = self.attributes(path, &stat, extended_attributes(&file)?)?;
                let bytes = u64::try_from(stat.st_size).unwrap_or(0);
                // One that grows meanwhile ends where it ended.
                let mut content = File::from(file).take(bytes);
                self.entries.file(path, &attributes, (bytes, &mut content))?;
            }
            FileType::Symlink => {
                let target = readlinkat(&parent, name, Vec::new())?;
                let attributes = self.attributes(path, &stat, Vec::new())?;
                self.entries.symlink(path, &attributes, target.as_bytes())?;
            }
            FileType::Fifo => self.visit_node(path, &stat, Node::Fifo)?,
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                self.visit_node(path, &stat, Node::Whiteout)?;
            }
            // A socket is nothing without the process that listens on it.
            FileType::Socket => {}
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
                let what = "is a device, which no image can have: leave `/dev` out";
                return Err(bad(path.as_bytes(), what).into());
            }
        }
        Ok(Vec::new())
    }

    fn visit_directory(&mut self, path: &EntryPath, stat: &Stat) -> Result<Vec<CString>, Failure> {
        let directory = tree::open_beneath(self.source, path.as_bytes())?;
        let attributes = self.attributes(path, stat, extended_attributes(&directory)?)?;
        // The root of a layer bears the mark for those that are in it.
        if *path == EntryPath::ROOT || !marks::is_implied(&directory) {
            self.entries.directory(path, &attributes)?;
        }
        if marks::is_opaque(&directory) {
            self.entries.opaque(path)?;
        }
        self.names(path)
    }

    fn names(&self, path: &EntryPath) -> Result<Vec<CString>, Failure> {
        let directory = tree::open_beneath(self.source, path.as_bytes())?;
        let mut names = tree::names(directory.as_fd())?;
        names.sort_unstable();
        Ok(names)
    }

    fn visit_node(&mut self, path: &EntryPath, stat: &Stat, node: Node) -> Result<(), Failure> {
        let attributes = match node {
            Node::Fifo => self.attributes(path, stat, Vec::new())?,
            // Nobody sees those of one, and its owner need not be one of the image's.
            Node::Whiteout => Attributes::NONE,
        };
        Ok(self.entries.node(path, &attributes, node)?)
    }

    /// The name under which this file was met before.
    fn first_name(&mut self, path: &EntryPath, stat: &Stat) -> Option<EntryPath> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        // The overlay gives all whiteouts of an upper layer one inode, which are no links.
        let has_links = !matches!(kind, FileType::Directory | FileType::CharacterDevice);
        if !has_links || stat.st_nlink < 2 {
            return None;
        }
        let first = self.seen.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone());
        (first != path).then(|| first.clone())
    }

    fn attributes(
        &self,
        path: &EntryPath,
        stat: &Stat,
        xattrs: Vec<(String, Vec<u8>)>,
    ) -> Result<Attributes> {
        let (uid, gid) = (self.owners.id(stat.st_uid), self.owners.id(stat.st_gid));
        let (Some(uid), Some(gid)) = (uid, gid) else {
            return Err(bad(path.as_bytes(), "belongs to nobody of the container"));
        };
        Ok(Attributes {
            mode: stat.st_mode & 0o7777,
            uid: uid.into(),
            gid: gid.into(),
            modified_at: Timespec { tv_sec: stat.st_mtime, tv_nsec: 0 },
            xattrs,
        })
    }
}

/// Opens a file that was regular a moment ago; should it be a pipe by now, nobody waits for it.
fn open(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// The attributes that an image may have, sorted by name.
pub(super) fn extended_attributes(file: &OwnedFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut buffer = vec![0; MAX_XATTR_BYTES];
    let length = match flistxattr(file, &mut buffer) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let list = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let mut names: Vec<&str> = list.split('\0').filter(|name| name.starts_with("user.")).collect();
    names.sort_unstable();
    let mut xattrs = Vec::new();
    for name in names {
        let length = fgetxattr(file, name, &mut buffer)?;
        xattrs.push((name.to_owned(), buffer[..length].to_vec()));
    }
    Ok(xattrs)
}
