//! Archives of layers, entry by entry, hostile ones among them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use tar::{Builder, EntryType, Header};

/// The longest name that a header has room for.
const SHORT: usize = 100;

/// One entry of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    kind: EntryType,
    path: Vec<u8>,
    target: Vec<u8>,
    content: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    modified_at: u64,
    /// Pax records in front of it.
    records: Vec<(String, Vec<u8>)>,
}

pub(crate) fn file(path: impl AsRef<[u8]>, content: &[u8]) -> Entry {
    Entry { content: content.to_vec(), ..entry(EntryType::Regular, path.as_ref()) }
}

pub(crate) fn directory(path: impl AsRef<[u8]>) -> Entry {
    entry(EntryType::Directory, path.as_ref())
}

pub(crate) fn symlink(path: impl AsRef<[u8]>, target: &str) -> Entry {
    Entry { target: target.into(), ..entry(EntryType::Symlink, path.as_ref()) }
}

pub(crate) fn hard_link(path: impl AsRef<[u8]>, target: &str) -> Entry {
    Entry { target: target.into(), ..entry(EntryType::Link, path.as_ref()) }
}

pub(crate) fn fifo(path: &str) -> Entry {
    entry(EntryType::Fifo, path.as_bytes())
}

/// A device, of the numbers that `/dev/null` has.
pub(crate) fn device(path: &str, kind: EntryType) -> Entry {
    entry(kind, path.as_bytes())
}

fn entry(kind: EntryType, path: &[u8]) -> Entry {
    let (path, owner, mode) = (path.to_vec(), (0, 0), 0o755);
    let (target, content, records) = (Vec::new(), Vec::new(), Vec::new());
    Entry { kind, path, target, content, mode, owner, modified_at: 0, records }
}

impl Entry {
    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    pub(crate) fn modified_at(self, modified_at: u64) -> Self {
        Self { modified_at, ..self }
    }

    pub(crate) fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.records.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
        self
    }

    /// Has its name in a pax record, and in the header another one.
    pub(crate) fn named_by_pax(mut self) -> Self {
        self.records.push(("path".to_owned(), self.path));
        self.path = b"short".to_vec();
        self
    }

    fn append(&self, archive: &mut Builder<Vec<u8>>) -> std::io::Result<()> {
        if !self.records.is_empty() {
            let records = self.records.iter();
            let records = records.map(|(name, value)| (name.as_str(), value.as_slice()));
            archive.append_pax_extensions(records)?;
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(self.kind);
        header.set_size(self.content.len() as u64);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.modified_at);
        if matches!(self.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1)?;
            header.set_device_minor(3)?;
        }
        let path = OsStr::from_bytes(&self.path);
        if self.target.len() > SHORT {
            return archive.append_link(&mut header, path, OsStr::from_bytes(&self.target));
        }
        header.as_old_mut().linkname[..self.target.len()].copy_from_slice(&self.target);
        if self.path.len() > SHORT {
            return archive.append_data(&mut header, path, self.content.as_slice());
        }
        // Not `append_data`, which refuses what a hostile archive is made of.
        header.as_old_mut().name[..self.path.len()].copy_from_slice(&self.path);
        header.set_cksum();
        archive.append(&header, self.content.as_slice())
    }
}

/// The archive of these entries, in this order.
pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for entry in entries {
        entry.append(&mut archive).expect("written");
    }
    archive.into_inner().expect("written")
}
