//! A layer as an archive, the way registries and other engines want it (OCI image-spec, layer):
//! the same bytes whenever the same layer is packed.

use std::io::{self, BufWriter, IntoInnerError, Read, Write};
use std::os::fd::BorrowedFd;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::entry::{Attributes, Entries, EntryPath, Node, bad};
use super::unpack::{OPAQUE, WHITEOUT};
use super::walk::{Owners, walk};
use super::{Digest, Doing as _, Result};

/// The longest name that fits a header (`name` and `linkname` of a ustar header, pax(1)).
const MAX_HEADER_NAME_LENGTH: usize = 100;
/// Bytes that are compressed at one time.
const WRITE_BYTES: usize = 64 << 10;
/// The largest number in a header without an extension: 11 octal digits.
const MAX_HEADER_TIME: i64 = (1 << 33) - 1;

/// Packs the layer in `directory`. Answers with the digest of the archive.
pub(super) fn pack(directory: BorrowedFd<'_>, out: impl Write) -> Result<Digest> {
    let mut packer = Packer { archive: Builder::new(Hashed::new(out)) };
    walk(directory, Owners::Image, &mut packer)?;
    let (digest, _) =
        packer.archive.into_inner().doing(|| "could not pack a layer".into())?.finish();
    Ok(digest)
}

struct Packer<W: Write> {
    archive: Builder<Hashed<W>>,
}

impl<W: Write> Packer<W> {
    /// Writes an entry without content.
    fn append_empty(
        &mut self,
        entry: (&[u8], EntryType),
        attributes: &Attributes,
        link: &[u8],
    ) -> Result<()> {
        self.append(entry, attributes, link, (0, &mut io::empty()))
    }

    /// Writes an entry. What does not fit its header goes into records in front of it (pax(1)).
    fn append(
        &mut self,
        (path, kind): (&[u8], EntryType),
        attributes: &Attributes,
        link: &[u8],
        content: (u64, &mut dyn Read),
    ) -> Result<()> {
        let packed = self.append_unnamed((path, kind), attributes, link, content);
        let name = || String::from_utf8_lossy(path).escape_debug().to_string();
        packed.doing(|| format!("could not pack `{}`", name()))
    }

    fn append_unnamed(
        &mut self,
        (path, kind): (&[u8], EntryType),
        attributes: &Attributes,
        link: &[u8],
        (bytes, content): (u64, &mut dyn Read),
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid);
        header.set_gid(attributes.gid);
        header.set_size(bytes);
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let seconds = attributes.modified_at.tv_sec;
        header.set_mtime(u64::try_from(seconds.clamp(0, MAX_HEADER_TIME)).unwrap_or(0));
        if !(0..=MAX_HEADER_TIME).contains(&seconds) {
            records.push(("mtime".into(), seconds.to_string().into_bytes()));
        }
        let old = header.as_old_mut();
        for (key, name, field) in
            [("path", path, &mut old.name), ("linkpath", link, &mut old.linkname)]
        {
            let length = name.len().min(MAX_HEADER_NAME_LENGTH);
            field[..length].copy_from_slice(&name[..length]);
            if length < name.len() {
                records.push((key.into(), name.to_vec()));
            }
        }
        for (name, value) in &attributes.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.archive.append_pax_extensions(records)?;
        }
        header.set_cksum();
        let mut content = content.take(bytes);
        self.archive.append(&header, &mut content)?;
        match content.limit() {
            0 => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }
}

impl<W: Write> Entries for Packer<W> {
    fn directory(&mut self, path: &EntryPath, attributes: &Attributes) -> Result<()> {
        let path = match named(path)? {
            b"" => b"./".to_vec(),
            path => [path, b"/"].concat(),
        };
        self.append_empty((&path, EntryType::Directory), attributes, b"")
    }

    fn file(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        content: (u64, &mut dyn Read),
    ) -> Result<()> {
        self.append((named(path)?, EntryType::Regular), attributes, b"", content)
    }

    fn symlink(&mut self, path: &EntryPath, attributes: &Attributes, target: &[u8]) -> Result<()> {
        self.append_empty((named(path)?, EntryType::Symlink), attributes, target)
    }

    fn hard_link(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        target: &EntryPath,
    ) -> Result<()> {
        // Other engines set them once more.
        self.append_empty((named(path)?, EntryType::Link), attributes, named(target)?)
    }

    fn node(&mut self, path: &EntryPath, attributes: &Attributes, node: Node) -> Result<()> {
        let whole = named(path)?;
        let (parent, name) = path.split();
        match node {
            Node::Fifo => self.append_empty((whole, EntryType::Fifo), attributes, b""),
            Node::Whiteout => {
                let hiding = EntryPath::parse(&[parent, b"/", WHITEOUT, name].concat())?;
                self.append_empty((hiding.as_bytes(), EntryType::Regular), attributes, b"")
            }
        }
    }

    fn opaque(&mut self, path: &EntryPath) -> Result<()> {
        let hiding = EntryPath::parse(&[path.as_bytes(), OPAQUE].join(&b'/'))?;
        self.append_empty((hiding.as_bytes(), EntryType::Regular), &Attributes::NONE, b"")
    }
}

/// The path, unless an archive of a layer cannot have it: a name like that means that another one
/// is hidden.
fn named(path: &EntryPath) -> Result<&[u8]> {
    let (_, name) = path.split();
    if name.starts_with(WHITEOUT) {
        return Err(bad(path.as_bytes(), "has a name that no image can have: it starts in `.wh.`"));
    }
    Ok(path.as_bytes())
}

/// A stream whose bytes are hashed.
pub(super) struct Hashed<W> {
    out: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Hashed<W> {
    /// The stream `out`.
    pub(super) fn new(out: W) -> Self {
        Self { out, hasher: Sha256::new(), bytes: 0 }
    }

    /// The digest of all that was written, and how much that was.
    pub(super) fn finish(self) -> (Digest, u64) {
        (Digest::finish(self.hasher), self.bytes)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let bytes = self.out.write(buffer)?;
        self.hasher.update(&buffer[..bytes]);
        self.bytes += bytes as u64;
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What a layer is in an archive that was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    /// Of the archive before it was compressed.
    pub(super) diff_id: Digest,
    /// Of the compressed one.
    pub(super) digest: Digest,
    /// Length of the compressed one.
    pub(super) size_bytes: u64,
}

/// Packs the layer in `directory`, compressed with gzip, as which every engine takes it.
pub(super) fn pack_compressed(directory: BorrowedFd<'_>, out: impl Write) -> Result<Packed> {
    let compressed = GzEncoder::new(Hashed::new(out), Compression::fast());
    let mut compressed = BufWriter::with_capacity(WRITE_BYTES, compressed);
    let diff_id = pack(directory, &mut compressed)?;
    let doing = || "could not pack a layer".to_owned();
    let compressed = compressed.into_inner().map_err(IntoInnerError::into_error).doing(doing)?;
    let (digest, size_bytes) = compressed.finish().doing(doing)?.finish();
    Ok(Packed { diff_id, digest, size_bytes })
}
