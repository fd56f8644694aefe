//! Copies a directory of the host into a layer, in an order and a form that depend on nothing
//! but what is in it, so that its digest says what it is.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, Timespec, fgetxattr, flistxattr, openat, readlinkat,
    statat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::layer::{Attributes, EntryPath, LayerWriter, Node, bad};
use super::{Digest, Error, Result, tree};
use crate::spec::MAX_ID;

/// The longest list of names, and the longest value, of a file's extended attributes (xattr(7)).
const MAX_XATTR_BYTES: usize = 64 << 10;

/// Copies what is below `source` into `layer`. Answers with the digest of the walk.
pub(super) fn copy(source: BorrowedFd<'_>, layer: &mut LayerWriter) -> Result<Digest> {
    let mut walk = Walk { source, layer, hasher: Sha256::new(), seen: HashMap::new() };
    // The next path is the last; a directory's names are put there in reverse.
    let mut pending = vec![EntryPath::parse(b"")?];
    while let Some(path) = pending.pop() {
        let children = walk.visit(&path).map_err(|failure| failure.of(&path))?;
        for name in children.into_iter().rev() {
            let child = [path.as_bytes(), name.as_bytes()].join(&b'/');
            pending.push(EntryPath::parse(&child)?);
        }
    }
    Ok(Digest::finish(walk.hasher))
}

struct Walk<'a> {
    source: BorrowedFd<'a>,
    layer: &'a mut LayerWriter,
    hasher: Sha256,
    /// Files with more than one name, by device and number, and the first name met.
    seen: HashMap<(u64, u64), EntryPath>,
}

/// What kept an entry from being copied.
enum Failure {
    /// The source could not be read.
    Read(io::Error),
    /// The layer could not be written, or the entry cannot be in one.
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

impl Walk<'_> {
    /// Copies one entry. Answers with the names in it if it is a directory, sorted.
    fn visit(&mut self, path: &EntryPath) -> Result<Vec<CString>, Failure> {
        let (parent, name) = path.split();
        let parent = tree::open_beneath(self.source, parent)?;
        let name = if name.is_empty() { b"." } else { name };
        let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if let Some(first) = self.first_name(path, &stat) {
            self.note(b'h', path, &[first.as_bytes()]);
            self.layer.hard_link(path, &first)?;
            return Ok(Vec::new());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.visit_directory(path, &stat),
            FileType::RegularFile => self.visit_file(path, &stat, open(&parent, name)?)?,
            FileType::Symlink => {
                let target = readlinkat(&parent, name, Vec::new())?;
                let attributes = self.note_attributes(b'l', path, &stat, Vec::new())?;
                self.note(b't', path, &[target.as_bytes()]);
                self.layer.symlink(path, &attributes, target.as_bytes())?;
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
        let xattrs = extended_attributes(&directory)?;
        let attributes = self.note_attributes(b'd', path, stat, xattrs)?;
        self.layer.directory(path, &attributes)?;
        let mut names = tree::names(directory.as_fd())?;
        names.sort_unstable();
        Ok(names)
    }

    fn visit_file(&mut self, path: &EntryPath, stat: &Stat, file: OwnedFd) -> Result<(), Failure> {
        let xattrs = extended_attributes(&file)?;
        let attributes = self.note_attributes(b'f', path, stat, xattrs)?;
        let mut content = Hashing { source: File::from(file), hasher: Sha256::new() };
        self.layer.file(path, &attributes, &mut content)?;
        self.note(b'c', path, &[&content.hasher.finalize()]);
        Ok(())
    }

    fn visit_node(&mut self, path: &EntryPath, stat: &Stat, node: Node) -> Result<(), Failure> {
        let kind = match node {
            Node::Fifo => b'p',
            Node::Whiteout => b'w',
        };
        let attributes = self.note_attributes(kind, path, stat, Vec::new())?;
        Ok(self.layer.node(path, &attributes, node)?)
    }

    /// The name under which this file was met before.
    fn first_name(&mut self, path: &EntryPath, stat: &Stat) -> Option<EntryPath> {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_directory || stat.st_nlink < 2 {
            return None;
        }
        let first = self.seen.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone());
        (first != path).then(|| first.clone())
    }

    fn note_attributes(
        &mut self,
        kind: u8,
        path: &EntryPath,
        stat: &Stat,
        xattrs: Vec<(String, Vec<u8>)>,
    ) -> Result<Attributes> {
        if stat.st_uid.max(stat.st_gid) > MAX_ID {
            let what = format!("has an owner or group above {MAX_ID}");
            return Err(bad(path.as_bytes(), &what));
        }
        let attributes = Attributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid.into(),
            gid: stat.st_gid.into(),
            modified_at: Timespec { tv_sec: stat.st_mtime, tv_nsec: 0 },
            xattrs,
        };
        let numbers = format!(
            "{:o} {} {} {}",
            attributes.mode, attributes.uid, attributes.gid, attributes.modified_at.tv_sec
        );
        self.note(kind, path, &[numbers.as_bytes()]);
        for (name, value) in &attributes.xattrs {
            self.note(b'x', path, &[name.as_bytes(), value]);
        }
        Ok(attributes)
    }

    /// Adds a record to the digest. Each field has its length before it, so that no two walks
    /// give the same bytes.
    fn note(&mut self, kind: u8, path: &EntryPath, fields: &[&[u8]]) {
        self.hasher.update([kind]);
        for field in std::iter::once(&path.as_bytes()).chain(fields) {
            self.hasher.update((field.len() as u64).to_le_bytes());
            self.hasher.update(field);
        }
    }
}

struct Hashing {
    source: File,
    hasher: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.source.read(buffer)?;
        self.hasher.update(&buffer[..bytes]);
        Ok(bytes)
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
