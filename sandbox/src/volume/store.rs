//! The volumes of a data directory. Any number of processes may use one store at a time.
//!
//! A volume is made under another name and renamed when it is whole, and renamed before it is
//! removed: whatever is killed at whatever point, each that has its name is whole.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::{Error, Result, Volume, VolumeName, mounted, quota};
use crate::error::Context as _;
use crate::spec::{Access, VolumeMount};
use crate::tree;

/// The one tenant there is.
const TENANT: &str = "default";
/// What containers are shown of a volume.
const FILES: &str = "files";
/// What is known of a volume.
const ABOUT: &str = "volume.json";
/// Open the names of what is being made and removed. No volume's name begins so.
const NEW: &str = ".new-";
const OLD: &str = ".old-";

/// The volumes below one directory.
#[derive(Debug)]
pub struct VolumeStore {
    /// The tenant's.
    directory: PathBuf,
}

/// Keeps a volume from being removed, by any process, until it is dropped.
#[derive(Debug)]
pub struct VolumeHold {
    _lock: OwnedFd,
}

impl VolumeStore {
    /// Opens the store at `directory`, making it where it is missing.
    ///
    /// # Errors
    /// If the directory cannot be made or written.
    pub fn open(directory: &Path) -> Result<Self> {
        let doing = || format!("could not make `{}`", directory.display());
        let tenant = directory.join(TENANT);
        DirBuilder::new().recursive(true).mode(0o700).create(&tenant).context(doing)?;
        for closed in [directory, &tenant] {
            fs::set_permissions(closed, Permissions::from_mode(0o700)).context(doing)?;
        }
        // By the name in which no part is a link, since none is followed when it is mounted.
        Ok(Self { directory: tenant.canonicalize().context(doing)? })
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        for name in self.names()? {
            // One that was removed meanwhile is none.
            if let Ok(name) = name.parse()
                && let Some(volume) = self.read(name)?
            {
                volumes.push(volume);
            }
        }
        volumes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(volumes)
    }

    /// The volume of this name, if there is one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<Volume>> {
        match name.parse() {
            Ok(name) => self.read(name),
            Err(_no_name) => Ok(None),
        }
    }

    /// Makes an empty volume, whose files may take `size_bytes` together; any amount if there is
    /// no bound.
    ///
    /// # Errors
    /// [`Error::BadName`]; [`Error::Exists`]; [`Error::NoBound`] if the file system does not hold
    /// a bound. Then there is no volume.
    pub fn create(&self, name: &str, size_bytes: Option<u64>, now: Timestamp) -> Result<Volume> {
        let name: VolumeName = name.parse()?;
        let volume = Volume { name, size_bytes, created_at: now };
        let _lock = self.lock()?;
        // What cannot be removed now is left for the next.
        drop(self.clean());
        let new = format!("{NEW}{}-{}", volume.name, std::process::id());
        let made = self.fill(&self.directory.join(&new), &volume);
        match made.and_then(|()| self.publish(&new, &volume)) {
            Ok(()) => Ok(volume),
            Err(error) => {
                // Why there is none is what has to be mended; what stays is found later.
                drop(self.remove_tree(&new));
                Err(error)
            }
        }
    }

    /// Removes a volume and all that is in it.
    ///
    /// # Errors
    /// [`Error::BadName`]; [`Error::NotFound`]; [`Error::InUse`] while someone holds it.
    pub fn remove(&self, name: &str) -> Result<()> {
        let name: VolumeName = name.parse()?;
        let lock = self.lock()?;
        self.clean()?;
        let path = self.path(&name);
        if !path.exists() {
            return Err(Error::NotFound(name.into()));
        }
        let doing = || format!("could not remove `{}`", path.display());
        let Some(_free) = tree::lock_if_free(&path).context(doing)? else {
            return Err(Error::InUse(name));
        };
        // Renamed under the lock: whoever waits to hold it sees that it has gone.
        let number = fs::symlink_metadata(&path).context(doing)?.ino();
        let old = format!("{OLD}{name}-{number}");
        fs::rename(&path, self.directory.join(&old)).context(doing)?;
        tree::sync_directory(&self.directory).context(doing)?;
        // It may be large, and whoever cleans meanwhile leaves what is locked.
        drop(lock);
        Ok(self.remove_tree(&old).context(doing)?)
    }

    /// Keeps the volume until the answer is dropped.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn hold(&self, name: &VolumeName) -> Result<VolumeHold> {
        match mounted::hold(&self.path(name))? {
            Some(lock) => Ok(VolumeHold { _lock: lock }),
            None => Err(Error::NotFound(name.to_string())),
        }
    }

    /// The volume as a container is to be shown it at `target`.
    #[must_use]
    pub fn mount(&self, name: &VolumeName, target: String, access: Access) -> VolumeMount {
        let path = self.path(name);
        VolumeMount { source: path.join(FILES), held: Some(path), target, access }
    }

    fn path(&self, name: &VolumeName) -> PathBuf {
        self.directory.join(name.as_str())
    }

    /// Waits until no other process adds or removes.
    fn lock(&self) -> Result<File> {
        let doing = || format!("could not lock `{}`", self.directory.display());
        let file = File::open(&self.directory).context(doing)?;
        flock(&file, FlockOperation::LockExclusive).context(doing)?;
        Ok(file)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let doing = || format!("could not read `{}`", self.directory.display());
        let entries = fs::read_dir(&self.directory).context(doing)?;
        let name = |entry: io::Result<fs::DirEntry>| {
            Ok(entry.context(doing)?.file_name().to_string_lossy().into_owned())
        };
        entries.map(name).collect()
    }

    fn read(&self, name: VolumeName) -> Result<Option<Volume>> {
        let path = self.path(&name).join(ABOUT);
        let doing = || format!("could not read `{}`", path.display());
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error).context(doing)?,
        };
        let volume: Volume = serde_json::from_slice(&text).context(doing)?;
        Ok(Some(Volume { name, ..volume }))
    }

    /// Makes what a volume consists of.
    fn fill(&self, directory: &Path, volume: &Volume) -> Result<()> {
        let doing = || format!("could not make the volume `{}`", volume.name);
        DirBuilder::new().mode(0o700).create(directory).context(doing)?;
        let files = directory.join(FILES);
        fs::create_dir(&files).context(doing)?;
        // Whoever a job's user is, and whatever the umask of whoever started us.
        fs::set_permissions(&files, Permissions::from_mode(0o777)).context(doing)?;
        if let Some(bytes) = volume.size_bytes {
            let others = self.list()?.into_iter().map(|other| self.path(&other.name).join(FILES));
            quota::bound(&files, &others.collect::<Vec<_>>(), bytes)?;
        }
        let text = serde_json::to_vec_pretty(volume).context(doing)?;
        let about = directory.join(ABOUT);
        fs::write(&about, text).context(doing)?;
        for path in [&about, directory] {
            tree::sync_directory(path).context(doing)?;
        }
        Ok(())
    }

    /// Gives a new volume its name, unless another has it.
    fn publish(&self, new: &str, volume: &Volume) -> Result<()> {
        let (from, to) = (self.directory.join(new), self.path(&volume.name));
        match renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(tree::sync_directory(&self.directory)?),
            Err(rustix::io::Errno::EXIST) => Err(Error::Exists(volume.name.clone())),
            Err(error) => Err(error).context(|| format!("could not make `{}`", to.display()))?,
        }
    }

    /// Removes what killed processes left half made or half removed. The store's lock is held.
    fn clean(&self) -> Result<()> {
        let names = self.names()?;
        let left = names.iter().filter(|name| name.starts_with(NEW) || name.starts_with(OLD));
        for name in left {
            let doing = || format!("could not remove `{name}`");
            if tree::lock_if_free(&self.directory.join(name)).context(doing)?.is_some() {
                self.remove_tree(name).context(doing)?;
            }
        }
        Ok(())
    }

    /// Removes an entry and all below it. Nobody else may use it: see [`tree::remove_tree`].
    fn remove_tree(&self, name: &str) -> io::Result<()> {
        let parent = tree::open_directory(&self.directory)?;
        tree::remove_tree(parent.as_fd(), &CString::new(Path::new(name).as_os_str().as_bytes())?)
    }
}
