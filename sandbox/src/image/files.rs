//! Trees of files that images are built from: a directory of the host, or the layers of an image,
//! seen as one.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::entry::{EntryPath, bad};
use super::layer::{Bounds, LayerWriter};
use super::layers::Unfinished;
use super::unpack::unpack;
use super::{Doing as _, ImageStore, Layer, Result, archive, tree};

/// Symbolic links on the way to one file, as the kernel has it (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Files that can be copied. They are read by descriptor, and no link leads out of the tree.
#[derive(Debug)]
pub struct FileTree {
    root: OwnedFd,
    /// Its directory, if that is to go with it.
    _scratch: Option<Unfinished>,
}

/// Where a path leads in a tree, all symbolic links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The name that it was asked for by; empty for the root.
    pub(super) name: Vec<u8>,
    /// The path without links.
    pub(super) path: EntryPath,
    /// What is there.
    pub kind: Option<Kind>,
}

/// What a file is, as far as copying needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Whatever else.
    File,
}

impl Place {
    /// The path below the root.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
}

impl FileTree {
    /// The files below a directory of the host.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn of_directory(path: &Path) -> Result<Self> {
        let opened = tree::open_directory(path);
        opened.doing(|| format!("could not open `{}`", path.display())).map(Self::new)
    }

    const fn new(root: OwnedFd) -> Self {
        Self { root, _scratch: None }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self, place: &Place) -> Result<File> {
        let doing = || format!("could not open `{}`", String::from_utf8_lossy(place.path()));
        let (parent, name) = place.path.split();
        let parent = tree::open_beneath(self.root(), parent).doing(doing)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(openat(&parent, name, flags, Mode::empty()).doing(doing)?))
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// If there is none.
    pub fn names(&self, directory: &Place) -> Result<Vec<Vec<u8>>> {
        let shown = || format!("could not read `{}`", String::from_utf8_lossy(directory.path()));
        let opened = tree::open_beneath(self.root(), directory.path()).doing(shown)?;
        let names = tree::names(opened.as_fd()).doing(shown)?;
        let mut names: Vec<Vec<u8>> = names.into_iter().map(CString::into_bytes).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Where `path` leads. What is not there has the path that it would get.
    ///
    /// # Errors
    /// [`super::Error::BadArchive`] for a path that cannot be, leads out of the tree, through a
    /// file, or in a circle.
    pub fn place(&self, path: &[u8]) -> Result<Place> {
        // What is left of the path, the next part last.
        let mut left = parts(path);
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let mut kind = Some(Kind::Directory);
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    done.pop();
                    kind = Some(Kind::Directory);
                    continue;
                }
                _ => {}
            }
            match kind {
                Some(Kind::Directory) => {}
                Some(Kind::File) => return Err(bad(path, "leads through what is no directory")),
                None => {
                    done.push(part);
                    continue;
                }
            }
            let parent = done.join(&b'/');
            let Some(stat) = self.look(&parent, &part)? else {
                done.push(part);
                kind = None;
                continue;
            };
            let found = FileType::from_raw_mode(stat.st_mode);
            if found != FileType::Symlink {
                done.push(part);
                let is_directory = found == FileType::Directory;
                kind = Some(if is_directory { Kind::Directory } else { Kind::File });
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(bad(path, "leads through too many symbolic links"));
            }
            let target = self.read_link(&parent, &part)?;
            if target.starts_with(b"/") {
                done.clear();
            }
            left.extend(parts(&target));
        }
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        Ok(Place { name, path: EntryPath::parse(&done.join(&b'/'))?, kind })
    }

    /// What is at a path without links, itself perhaps one.
    pub(super) fn stat(&self, path: &EntryPath) -> Result<Option<Stat>> {
        let (parent, name) = path.split();
        self.look(parent, if name.is_empty() { b"." } else { name })
    }

    fn look(&self, parent: &[u8], name: &[u8]) -> Result<Option<Stat>> {
        let doing = || format!("could not look at `{}`", String::from_utf8_lossy(name));
        let parent = match tree::open_beneath(self.root(), parent) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).doing(doing),
        };
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).doing(doing),
        }
    }

    fn read_link(&self, parent: &[u8], name: &[u8]) -> Result<Vec<u8>> {
        let doing = || format!("could not read the link `{}`", String::from_utf8_lossy(name));
        let parent = tree::open_beneath(self.root(), parent).doing(doing)?;
        Ok(readlinkat(&parent, name, Vec::new()).doing(doing)?.into_bytes())
    }
}

/// The parts of a path, the first last.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect()
}

impl ImageStore {
    /// The files of these layers, the topmost first, as a container would see them.
    ///
    /// # Errors
    /// If the layers cannot be mounted.
    pub fn files(&self, layers: &[Layer]) -> Result<FileTree> {
        let directory = self.layers();
        match layers {
            [] => {
                let _lock = self.lock()?;
                // Its name goes at once; what is left is an empty directory.
                Unfinished::make(&directory)?.open().map(FileTree::new)
            }
            [only] => FileTree::of_directory(&directory.join(only.digest.directory())),
            several => {
                let names: Vec<String> =
                    several.iter().map(|layer| layer.digest.directory()).collect();
                let seen = std::thread::scope(|scope| {
                    scope.spawn(|| overlay(&directory, &names.join(":"))).join()
                });
                let seen = seen.unwrap_or_else(|_panicked| Err(io::Error::other("it panicked")));
                seen.doing(|| "could not mount layers over each other".into()).map(FileTree::new)
            }
        }
    }

    /// The files of an archive, unpacked for as long as they are needed. None if `file` is no
    /// archive that could be unpacked.
    ///
    /// # Errors
    /// As [`ImageStore::unpack`].
    pub fn unpack_files(&self, mut file: File, bounds: Bounds) -> Result<Option<FileTree>> {
        let doing = || "could not read the archive".to_owned();
        let opened = archive::open(file.try_clone().doing(doing)?).doing(doing)?;
        // Whatever goes wrong where an archive would start, it is none.
        if !matches!(archive::first_name(opened), Ok(Some(_))) {
            return Ok(None);
        }
        file.rewind().doing(doing)?;
        let scratch = {
            let _lock = self.lock()?;
            Unfinished::make(&self.layers())?
        };
        let mut writer = LayerWriter::new(scratch.open()?, bounds);
        unpack(archive::open(file).doing(doing)?, &mut writer, bounds)?;
        writer.finish()?;
        Ok(Some(FileTree { root: scratch.open()?, _scratch: Some(scratch) }))
    }
}

/// An overlay of layers below `directory`, read-only. It is mounted by a thread in a mount
/// namespace of its own, and lives on in its descriptor alone. Relative names keep the options
/// within the page that mount(2) takes.
fn overlay(directory: &Path, lower: &str) -> io::Result<OwnedFd> {
    let directory = fs::canonicalize(directory)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Of this thread alone: it shares no working directory any more.
    rustix::process::chdir(&directory)?;
    let options = CString::new(format!("lowerdir={lower},xino=off,redirect_dir=nofollow"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount("overlay", ".", "overlay", flags, options.as_c_str())?;
    tree::open_directory(&directory)
}
