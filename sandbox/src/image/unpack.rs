//! Unpacks a layer's tar archive, taking nothing that it says on trust.

use std::io::{ErrorKind, Read};

use rustix::fs::Timespec;
use tar::{Archive, Entry, EntryType};

use super::archive::{self, Allowance, Metered};
use super::entry::{Attributes, Entries, EntryPath, Node, bad, unreadable};
use super::layer::{Bounds, LayerWriter};
use super::{Digest, Error, Result};
use crate::spec::MAX_ID;

/// Names, attributes and sparse maps in front of one entry: far more than real ones need.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Archive bytes beyond the content of files, for each entry: its header and padding.
const HEADER_BYTES: u64 = 1024;
/// The longest target of a symbolic link (`PATH_MAX`).
const MAX_TARGET_LENGTH: usize = 4095;
/// Opens the name of a file that lower layers have and this one has not.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// Says that lower layers show nothing in this directory.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks the uncompressed tar stream `source` into `layer`. Answers with the stream's digest.
pub(super) fn unpack(source: impl Read, layer: &mut LayerWriter, bounds: Bounds) -> Result<Digest> {
    let mut place = b"the archive".to_vec();
    let source = archive::recognized(source).map_err(|error| unreadable(&place, &error))?;
    let source = source.ok_or(Error::NoArchive)?;
    let headers = bounds.entries.saturating_mul(HEADER_BYTES);
    let allowance = Allowance::new(bounds.unpacked_bytes.saturating_add(headers));
    let mut archive = Archive::new(Metered::new(source, allowance.clone()));
    let mut entries = archive.entries().map_err(|error| unreadable(&place, &error))?;
    loop {
        allowance.narrow(MAX_HEADER_BYTES);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|error| after(&place, &error))?;
        place = entry.path_bytes().into_owned();
        allowance.widen();
        unpack_entry(&mut entry, layer)?;
        // What is left of it now would be read under the small allowance later.
        std::io::copy(&mut entry, &mut std::io::sink())
            .map_err(|error| unreadable(&place, &error))?;
    }
    allowance.widen();
    archive.into_inner().finish().map_err(|error| unreadable(&place, &error))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "new kinds of entries are refused too")]
fn unpack_entry<R: Read>(entry: &mut Entry<'_, R>, layer: &mut LayerWriter) -> Result<()> {
    let kind = entry.header().entry_type();
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let path = EntryPath::parse(&entry.path_bytes())?;
    let attributes = attributes(entry, &path)?;
    if let Some(hidden) = hidden_by(&path)? {
        return match hidden {
            Hidden::Directory(directory) => layer.opaque(&directory),
            Hidden::File(file) => layer.node(&file, &attributes, Node::Whiteout),
            Hidden::Nothing => Ok(()),
        };
    }
    match kind {
        // Archives from before 1988 know no directories, only names that end in a slash.
        EntryType::Regular if entry.path_bytes().ends_with(b"/") => {
            layer.directory(&path, &attributes)
        }
        EntryType::Directory => layer.directory(&path, &attributes),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            layer.file(&path, &attributes, (entry.size(), entry))
        }
        EntryType::Symlink => layer.symlink(&path, &attributes, &link_target(entry, &path)?),
        EntryType::Link => {
            let target = EntryPath::parse(&link_target(entry, &path)?)?;
            layer.hard_link(&path, &attributes, &target)
        }
        EntryType::Fifo => layer.node(&path, &attributes, Node::Fifo),
        EntryType::Char if is_zero_device(entry) => layer.node(&path, &attributes, Node::Whiteout),
        EntryType::Char | EntryType::Block => Err(bad(
            path.as_bytes(),
            "is a device, which no image can have: leave `/dev` out of the archive",
        )),
        _ => Err(bad(path.as_bytes(), "is of a kind that no image can have")),
    }
}

/// What a name of the kind `.wh.…` hides.
enum Hidden {
    /// All that lower layers have in this directory.
    Directory(EntryPath),
    /// The file of this name.
    File(EntryPath),
    /// Bookkeeping of other engines.
    Nothing,
}

fn hidden_by(path: &EntryPath) -> Result<Option<Hidden>> {
    let (parent, name) = path.split();
    let Some(hidden) = name.strip_prefix(WHITEOUT) else {
        return Ok(None);
    };
    Ok(Some(if name == OPAQUE {
        Hidden::Directory(EntryPath::parse(parent)?)
    } else if hidden.starts_with(WHITEOUT) {
        Hidden::Nothing
    } else if matches!(hidden, b"" | b"." | b"..") {
        return Err(bad(path.as_bytes(), "hides no file"));
    } else {
        Hidden::File(EntryPath::parse(&[parent, hidden].join(&b'/'))?)
    }))
}

fn attributes<R: Read>(entry: &mut Entry<'_, R>, path: &EntryPath) -> Result<Attributes> {
    let bad_header = |error| unreadable(path.as_bytes(), &error);
    let header = entry.header();
    let mode = header.mode().map_err(bad_header)?;
    let (uid, gid) = (header.uid().map_err(bad_header)?, header.gid().map_err(bad_header)?);
    let seconds = header.mtime().map_err(bad_header)?;
    if uid.max(gid) > u64::from(MAX_ID) {
        return Err(bad(path.as_bytes(), &format!("has an owner or group above {MAX_ID}")));
    }
    let seconds = i64::try_from(seconds).unwrap_or(0);
    let Records { xattrs, modified_at } = records(entry, path)?;
    let modified_at = Timespec { tv_sec: modified_at.unwrap_or(seconds), tv_nsec: 0 };
    Ok(Attributes { mode, uid, gid, modified_at, xattrs })
}

/// What is taken from the pax records in front of an entry.
#[derive(Default)]
struct Records {
    xattrs: Vec<(String, Vec<u8>)>,
    /// Seconds, where the header has no room for them.
    modified_at: Option<i64>,
}

/// Extended attributes and the time from the entry's pax records. Other records that matter, the
/// tar crate has applied already; those of pax sparse files it would unpack as content, so they are
/// refused.
fn records<R: Read>(entry: &mut Entry<'_, R>, path: &EntryPath) -> Result<Records> {
    let bad_record = |error| unreadable(path.as_bytes(), &error);
    let mut found = Records::default();
    let Some(records) = entry.pax_extensions().map_err(bad_record)? else {
        return Ok(found);
    };
    for record in records {
        let record = record.map_err(bad_record)?;
        let Ok(key) = record.key() else { continue };
        if key.starts_with("GNU.sparse.") {
            return Err(bad(path.as_bytes(), "is sparse in a way that cannot be read"));
        }
        if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
            found.xattrs.push((name.to_owned(), record.value_bytes().to_vec()));
        }
        if key == "mtime" {
            // With a fraction, perhaps, of which nothing is kept.
            let seconds = record.value().ok().and_then(|text| text.split('.').next());
            found.modified_at = seconds.and_then(|seconds| seconds.parse().ok());
        }
    }
    Ok(found)
}

fn link_target<R: Read>(entry: &Entry<'_, R>, path: &EntryPath) -> Result<Vec<u8>> {
    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
    if target.is_empty() || target.len() > MAX_TARGET_LENGTH || target.contains(&0) {
        return Err(bad(path.as_bytes(), "is a link with a target that cannot be"));
    }
    Ok(target)
}

fn is_zero_device<R: Read>(entry: &Entry<'_, R>) -> bool {
    let number = |part: std::io::Result<Option<u32>>| part.ok().flatten();
    number(entry.header().device_major()) == Some(0)
        && number(entry.header().device_minor()) == Some(0)
}

/// An error between two entries.
fn after(place: &[u8], error: &std::io::Error) -> Error {
    if error.kind() == ErrorKind::QuotaExceeded {
        return bad(place, "is followed by a header that is too large");
    }
    // What the tar crate says of a number that is none ends with what stands in its place.
    let text = error.to_string();
    let reason = text.split(": ").next().unwrap_or_default();
    bad(place, &format!("is followed by what cannot be read: {reason}"))
}
