//! What a layer is made of: entries, each with a path, a kind and attributes.

use std::io::{self, ErrorKind, Read};

use rustix::fs::Timespec;

use super::{Error, Result};

/// The longest path of an entry, as for a path that a program can use at once (`PATH_MAX`).
const MAX_PATH_LENGTH: usize = 4095;
/// The longest name in a directory (`NAME_MAX`).
const MAX_COMPONENT_LENGTH: usize = 255;
/// How many directories may lie one in another.
const MAX_DEPTH: usize = 256;

/// Where an entry goes: relative, without `.`, `..` and empty parts. Empty for the layer's root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryPath(Vec<u8>);

impl EntryPath {
    /// The layer's root.
    pub(super) const ROOT: Self = Self(Vec::new());

    /// `raw` as an archive has it. A leading `/` means the layer's root.
    pub(super) fn parse(raw: &[u8]) -> Result<Self> {
        let refused = |what: &str| bad(raw, what);
        let parts = raw.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let parts: Vec<&[u8]> = parts.collect();
        if raw.contains(&0) {
            return Err(refused("has a zero byte in its name"));
        }
        if parts.contains(&&b".."[..]) {
            return Err(refused("leaves the image by `..`"));
        }
        if parts.len() > MAX_DEPTH || raw.len() > MAX_PATH_LENGTH {
            return Err(refused("has a path that is too long"));
        }
        if parts.iter().any(|part| part.len() > MAX_COMPONENT_LENGTH) {
            return Err(refused("has a name that is too long"));
        }
        Ok(Self(parts.join(&b'/')))
    }

    /// The path below the layer's root.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory that it is in.
    pub(super) fn parent(&self) -> Self {
        Self(self.split().0.to_vec())
    }

    /// Parent directory and name. The root has no name.
    pub(super) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0),
        }
    }
}

/// What is kept of an entry beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Permission bits, setuid, setgid and sticky included.
    pub(super) mode: u32,
    /// Owner, as the image has it.
    pub(super) uid: u64,
    /// Group, as the image has it.
    pub(super) gid: u64,
    /// When the content was last changed.
    pub(super) modified_at: Timespec,
    /// Extended attributes; all but `user.*` are dropped.
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    /// Those of an entry that nobody sees.
    pub(super) const NONE: Self = Self {
        mode: 0,
        uid: 0,
        gid: 0,
        modified_at: Timespec { tv_sec: 0, tv_nsec: 0 },
        xattrs: Vec::new(),
    };
}

/// A node that is neither file, directory nor link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// A named pipe.
    Fifo,
    /// A character device 0:0: the overlay hides the file of this name in lower layers.
    Whiteout,
}

/// Whoever is told of all entries of a layer, parents before what is in them.
pub(super) trait Entries {
    /// A directory; one that was told of already gets these attributes.
    fn directory(&mut self, path: &EntryPath, attributes: &Attributes) -> Result<()>;

    /// A regular file of so many bytes, which `content` gives.
    fn file(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        content: (u64, &mut dyn Read),
    ) -> Result<()>;

    /// A symbolic link; where it leads matters only inside a container.
    fn symlink(&mut self, path: &EntryPath, attributes: &Attributes, target: &[u8]) -> Result<()>;

    /// Another name for a file that was told of, whose attributes these are.
    fn hard_link(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        target: &EntryPath,
    ) -> Result<()>;

    /// A named pipe or a whiteout.
    fn node(&mut self, path: &EntryPath, attributes: &Attributes, node: Node) -> Result<()>;

    /// The directory `path`, which was told of, hides what lower layers have below it.
    fn opaque(&mut self, path: &EntryPath) -> Result<()>;
}

/// What is wrong with the archive at this entry.
pub(super) fn bad(entry: &[u8], what: &str) -> Error {
    let entry = String::from_utf8_lossy(&entry[..entry.len().min(MAX_COMPONENT_LENGTH)]);
    Error::BadArchive { entry: entry.escape_debug().to_string(), what: what.into() }
}

/// What is wrong with an archive that could not be read at this entry.
pub(super) fn unreadable(entry: &[u8], error: &io::Error) -> Error {
    if error.kind() == ErrorKind::QuotaExceeded {
        return Error::TooLarge { limit: error.to_string() };
    }
    bad(entry, &format!("could not be read: {error}"))
}
