//! Files of a tree become a layer on others, as `COPY` of a Dockerfile has it.

use std::collections::HashSet;
use std::io::{self, Read};

use rustix::fs::{FileType, Timespec};
use sha2::{Digest as _, Sha256};

use super::entry::{Attributes, Entries, EntryPath, Node, bad, unreadable};
use super::files::{FileTree, Kind, Place};
use super::layer::{Bounds, LayerWriter};
use super::walk::{Chooser, Owners, walk_chosen};
use super::{Digest, Error, HeldLayer, ImageStore, Layer, Result};

/// The permissions of directories on the way that nobody has made.
const NEW_DIRECTORY_MODE: u32 = 0o755;

/// Files, and where they go.
pub struct Copying<'a> {
    /// What they are copied from.
    pub from: &'a FileTree,
    /// Which of these: a file as it is, of a directory what is in it.
    pub sources: Vec<Place>,
    /// What of these.
    pub chooser: &'a Chooser<'a>,
    /// Where they go, absolute.
    pub destination: Vec<u8>,
    /// Whether that is a directory, even if there is none yet.
    pub into_directory: bool,
    /// Who they belong to; as before, if nobody is named.
    pub owner: Option<(u32, u32)>,
    /// Their permission bits; as before, if none are given.
    pub mode: Option<u32>,
}

impl Copying<'_> {
    /// Says what is copied: names, kinds, permissions and content, and whose it is if that is kept,
    /// but not when it was written.
    ///
    /// # Errors
    /// If the files cannot be read; [`Error::TooLarge`].
    pub fn digest(&self, bounds: Bounds) -> Result<Digest> {
        let mut described = Described::new(self, bounds);
        for source in &self.sources {
            described.source(source);
            self.walk(source, &mut described)?;
        }
        Ok(described.finish())
    }

    fn walk(&self, source: &Place, entries: &mut impl Entries) -> Result<()> {
        walk_chosen((self.from.root(), &source.path), Owners::Image, self.chooser, entries)
    }
}

impl ImageStore {
    /// Makes a layer of files that are copied onto `base`, the topmost first. Answers with the
    /// digest of what was copied, too: it may have been changed since [`Copying::digest`].
    ///
    /// # Errors
    /// [`Error::BadArchive`] where a file and a directory meet, or a file cannot be in an
    /// image; [`Error::TooLarge`].
    pub fn copy(
        &self,
        base: &[Layer],
        copy: &Copying<'_>,
        bounds: Bounds,
    ) -> Result<(HeldLayer, Digest)> {
        let below = self.files(base)?;
        let mut described = Described::new(copy, bounds);
        let made = self.make_layer(bounds, |layer| {
            let destination = below.place(&copy.destination)?;
            let is_directory = copy.into_directory || destination.kind == Some(Kind::Directory);
            let mut target = Target::new(&below, layer, copy.owner);
            for source in &copy.sources {
                let to = match source.kind {
                    Some(Kind::File) if is_directory => {
                        below.place(&[destination.path(), &source.name].join(&b'/'))?.path
                    }
                    Some(_) | None => destination.path.clone(),
                };
                described.source(source);
                let (from, target, described) = (&source.path, &mut target, &mut described);
                copy.walk(source, &mut Placed { target, described, from, to, copied: copy })?;
            }
            Ok(None)
        });
        Ok((made?, described.finish()))
    }

    /// Makes a layer on `base` with nothing but a directory of this owner, if there is none.
    ///
    /// # Errors
    /// [`Error::BadArchive`] if a file is there.
    pub fn with_directory(
        &self,
        base: &[Layer],
        path: &[u8],
        owner: (u32, u32),
    ) -> Result<Option<HeldLayer>> {
        let below = self.files(base)?;
        let place = below.place(path)?;
        match place.kind {
            Some(Kind::Directory) => Ok(None),
            Some(Kind::File) => Err(bad(path, "is there, and is no directory")),
            None => {
                let layer = self.make_layer(Bounds::default(), |layer| {
                    let mut target = Target::new(&below, layer, Some(owner));
                    target.directory(&place.path)?;
                    Ok(None)
                });
                layer.map(Some)
            }
        }
    }
}

/// A layer on others.
struct Target<'a> {
    below: &'a FileTree,
    layer: &'a mut LayerWriter,
    /// Who new directories belong to.
    owner: (u32, u32),
    /// Directories that this layer has.
    made: HashSet<Vec<u8>>,
    /// Whatever else it has.
    files: HashSet<Vec<u8>>,
}

impl<'a> Target<'a> {
    fn new(below: &'a FileTree, layer: &'a mut LayerWriter, owner: Option<(u32, u32)>) -> Self {
        let (made, files) = (HashSet::new(), HashSet::new());
        Self { below, layer, owner: owner.unwrap_or_default(), made, files }
    }

    /// Has a directory in this layer, and those above it: as they are below, where they are.
    fn directory(&mut self, path: &EntryPath) -> Result<()> {
        if self.made.contains(path.as_bytes()) {
            return Ok(());
        }
        if *path != EntryPath::ROOT {
            self.directory(&path.parent())?;
        }
        let attributes = match self.below.stat(path)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                Attributes {
                    mode: stat.st_mode & 0o7777,
                    uid: stat.st_uid.into(),
                    gid: stat.st_gid.into(),
                    modified_at: Timespec { tv_sec: stat.st_mtime, tv_nsec: 0 },
                    xattrs: Vec::new(),
                }
            }
            Some(_) => return Err(bad(path.as_bytes(), "is there, and is no directory")),
            None => {
                let (uid, gid) = (self.owner.0.into(), self.owner.1.into());
                Attributes { mode: NEW_DIRECTORY_MODE, uid, gid, ..Attributes::NONE }
            }
        };
        self.layer.directory(path, &attributes)?;
        self.made.insert(path.as_bytes().to_vec());
        Ok(())
    }

    fn is_directory(&self, path: &EntryPath) -> Result<bool> {
        let stat = self.below.stat(path)?;
        Ok(stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory))
    }
}

/// Entries on their way to where they are copied to.
struct Placed<'a, 'b> {
    target: &'a mut Target<'b>,
    described: &'a mut Described,
    /// What is copied, and what that becomes.
    from: &'a EntryPath,
    to: EntryPath,
    copied: &'a Copying<'a>,
}

impl Placed<'_, '_> {
    /// Where an entry goes, with the directories above it made. Links to directories that are below
    /// are followed, for the files belong where these lead.
    fn place(&mut self, path: &EntryPath) -> Result<EntryPath> {
        let rest = path.as_bytes().strip_prefix(self.from.as_bytes()).unwrap_or_default();
        let whole = EntryPath::parse(&[self.to.as_bytes(), rest].join(&b'/'))?;
        if whole == EntryPath::ROOT {
            return Ok(whole);
        }
        let parent = self.target.below.place(whole.parent().as_bytes())?.path;
        self.target.directory(&parent)?;
        let (_, name) = whole.split();
        EntryPath::parse(&[parent.as_bytes(), name].join(&b'/'))
    }

    /// As [`Placed::place`], for what must not take the place of a directory.
    fn place_file(&mut self, path: &EntryPath) -> Result<EntryPath> {
        let place = self.place(path)?;
        if self.target.is_directory(&place)? {
            return Err(bad(place.as_bytes(), "is a directory, and would become a file"));
        }
        // Of several sources with one name, the last is there.
        if !self.target.files.insert(place.as_bytes().to_vec()) {
            self.target.layer.remove(&place)?;
        }
        Ok(place)
    }

    fn attributes(&self, attributes: &Attributes) -> Attributes {
        let mut attributes = attributes.clone();
        if let Some((uid, gid)) = self.copied.owner {
            (attributes.uid, attributes.gid) = (uid.into(), gid.into());
        }
        attributes.mode = self.copied.mode.unwrap_or(attributes.mode);
        attributes
    }
}

impl Entries for Placed<'_, '_> {
    fn directory(&mut self, path: &EntryPath, attributes: &Attributes) -> Result<()> {
        self.described.directory(path, attributes)?;
        let place = self.place(path)?;
        let place = self.target.below.place(place.as_bytes())?;
        if place.kind.is_some() || path == self.from {
            return self.target.directory(&place.path);
        }
        self.target.made.insert(place.path().to_vec());
        self.target.layer.directory(&place.path, &self.attributes(attributes))
    }

    fn file(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        (bytes, content): (u64, &mut dyn Read),
    ) -> Result<()> {
        let place = self.place_file(path)?;
        self.described.open_file(path, attributes, bytes)?;
        let own = self.attributes(attributes);
        let mut content = Hashing { content, hasher: &mut self.described.hasher };
        self.target.layer.file(&place, &own, (bytes, &mut content))
    }

    fn symlink(&mut self, path: &EntryPath, attributes: &Attributes, target: &[u8]) -> Result<()> {
        self.described.symlink(path, attributes, target)?;
        let place = self.place_file(path)?;
        self.target.layer.symlink(&place, &self.attributes(attributes), target)
    }

    fn hard_link(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        target: &EntryPath,
    ) -> Result<()> {
        self.described.hard_link(path, attributes, target)?;
        let (place, target) = (self.place_file(path)?, self.place(target)?);
        self.target.layer.hard_link(&place, &self.attributes(attributes), &target)
    }

    fn node(&mut self, path: &EntryPath, attributes: &Attributes, node: Node) -> Result<()> {
        self.described.node(path, attributes, node)?;
        let place = self.place_file(path)?;
        self.target.layer.node(&place, &self.attributes(attributes), node)
    }

    fn opaque(&mut self, path: &EntryPath) -> Result<()> {
        // It says something of what lies below its own layer.
        self.described.opaque(path)
    }
}

/// Entries as a digest. Each field has its length before it, so that no two trees give the same
/// bytes.
struct Described {
    hasher: Sha256,
    keeps_owners: bool,
    bounds: Bounds,
    bytes: u64,
}

impl Described {
    fn new(copy: &Copying<'_>, bounds: Bounds) -> Self {
        let keeps_owners = copy.owner.is_none();
        Self { hasher: Sha256::new(), keeps_owners, bounds, bytes: 0 }
    }

    fn source(&mut self, source: &Place) {
        self.note(b's', source.path(), &[&source.name]);
    }

    fn finish(self) -> Digest {
        Digest::finish(self.hasher)
    }

    /// A file, whose bytes follow.
    fn open_file(&mut self, path: &EntryPath, attributes: &Attributes, bytes: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bounds.unpacked_bytes {
            let limit = format!("{} bytes", self.bounds.unpacked_bytes);
            return Err(Error::TooLarge { limit });
        }
        self.note_entry(b'f', path, attributes, &bytes.to_le_bytes())
    }

    fn note(&mut self, kind: u8, path: &[u8], fields: &[&[u8]]) {
        self.hasher.update([kind]);
        for field in std::iter::once(&path).chain(fields) {
            self.hasher.update((field.len() as u64).to_le_bytes());
            self.hasher.update(field);
        }
    }

    fn note_entry(
        &mut self,
        kind: u8,
        path: &EntryPath,
        attributes: &Attributes,
        content: &[u8],
    ) -> Result<()> {
        let mode = attributes.mode.to_le_bytes();
        let owner = self.keeps_owners.then_some((attributes.uid, attributes.gid));
        let (uid, gid) = owner.unwrap_or_default();
        let fields: [&[u8]; 4] = [&mode, &uid.to_le_bytes(), &gid.to_le_bytes(), content];
        self.note(kind, path.as_bytes(), &fields);
        for (name, value) in &attributes.xattrs {
            self.note(b'x', path.as_bytes(), &[name.as_bytes(), value]);
        }
        Ok(())
    }
}

impl Entries for Described {
    fn directory(&mut self, path: &EntryPath, attributes: &Attributes) -> Result<()> {
        self.note_entry(b'd', path, attributes, b"")
    }

    fn file(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        (bytes, content): (u64, &mut dyn Read),
    ) -> Result<()> {
        self.open_file(path, attributes, bytes)?;
        let mut content = Hashing { content, hasher: &mut self.hasher };
        let read = io::copy(&mut content, &mut io::sink());
        match read.map_err(|error| unreadable(path.as_bytes(), &error))? {
            read if read == bytes => Ok(()),
            _ => Err(bad(path.as_bytes(), "is cut short")),
        }
    }

    fn symlink(&mut self, path: &EntryPath, attributes: &Attributes, target: &[u8]) -> Result<()> {
        self.note_entry(b'l', path, attributes, target)
    }

    fn hard_link(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes,
        target: &EntryPath,
    ) -> Result<()> {
        self.note_entry(b'h', path, attributes, target.as_bytes())
    }

    fn node(&mut self, path: &EntryPath, attributes: &Attributes, node: Node) -> Result<()> {
        let kind = match node {
            Node::Fifo => b'p',
            Node::Whiteout => b'w',
        };
        self.note_entry(kind, path, attributes, b"")
    }

    fn opaque(&mut self, path: &EntryPath) -> Result<()> {
        self.note(b'o', path.as_bytes(), &[]);
        Ok(())
    }
}

/// A file's content, hashed as it is read.
struct Hashing<'a> {
    content: &'a mut dyn Read,
    hasher: &'a mut Sha256,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.content.read(buffer)?;
        self.hasher.update(&buffer[..bytes]);
        Ok(bytes)
    }
}
