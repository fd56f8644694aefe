//! The images of a data directory. Any number of processes may use one store at a time.
//!
//! A layer is unpacked into a directory of a temporary name, written to disk, and renamed; then
//! the index is replaced. Whatever is killed at whatever point, the index names whole layers only.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::host::{self, HOST_IMAGE, Skeleton};
use super::layer::{Bounds, LayerWriter};
use super::layers::{self, Unfinished, lock_free, sync_directory};
use super::unpack;
use super::{
    Digest, Doing as _, Error, Image, ImageConfig, ImageName, Layer, Result, archive, tree, users,
    walk,
};
use crate::spec::{Rootfs, User};

const INDEX: &str = "index.json";
const NEW_INDEX: &str = "index.json.new";
const LOCK: &str = "lock";
const LAYERS: &str = "layers";
/// The version of the index's form.
const INDEX_VERSION: u32 = 1;

/// The images below one directory.
#[derive(Debug)]
pub struct ImageStore {
    directory: PathBuf,
    host: Image,
    skeleton: Skeleton,
    /// Another version of this program has another skeleton, and would clean ours away.
    _host_layer: Hold,
}

/// Keeps the layers of an image from being removed, by any process, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    /// Each locked with a shared lock.
    _layers: Vec<OwnedFd>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    images: Vec<Image>,
}

impl ImageStore {
    /// Opens the store at `directory`, making it and the built-in image where they are missing.
    ///
    /// # Errors
    /// If the directory cannot be made or written, or its index cannot be read.
    pub fn open(directory: &Path) -> Result<Self> {
        let layers = directory.join(LAYERS);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&layers)
            .and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o700)))
            .doing(|| format!("could not make `{}`", layers.display()))?;
        let skeleton = Skeleton::of_host(Path::new("/"))?;
        let name: ImageName = HOST_IMAGE.parse()?;
        let layer = Layer { digest: skeleton.digest()?, size_bytes: 0 };
        let host = image_of(name, layer, host::config(), None)?;
        let (directory, _host_layer) = (directory.to_owned(), Hold { _layers: Vec::new() });
        let mut store = Self { directory, host, skeleton, _host_layer };
        store.read_index()?;
        store.make_host_layer()?;
        store._host_layer = store.hold(&store.host)?;
        Ok(store)
    }

    /// All images, by name.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images = self.read_index()?.images;
        images.push(self.host.clone());
        images.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(images)
    }

    /// The image called `name`, if there is one.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<Image>> {
        if name == HOST_IMAGE {
            return Ok(Some(self.host.clone()));
        }
        let images = self.read_index()?.images;
        Ok(images.into_iter().find(|image| image.name.as_str() == name))
    }

    /// Makes an image of one layer from `source`: a directory, or a tar archive that may be
    /// compressed with gzip or zstd. An image that had the name before loses it.
    ///
    /// # Errors
    /// [`Error::BadName`] for the built-in image's name; [`Error::BadArchive`] and
    /// [`Error::TooLarge`] for what is in `source`.
    pub fn import(&self, source: &Path, name: &str, now: Timestamp) -> Result<Image> {
        self.import_within(source, name, now, Bounds::default())
    }

    /// As [`ImageStore::import`], with bounds of one's own.
    ///
    /// # Errors
    /// As [`ImageStore::import`].
    pub fn import_within(
        &self,
        source: &Path,
        name: &str,
        now: Timestamp,
        bounds: Bounds,
    ) -> Result<Image> {
        let name = own_name(name)?;
        let file = File::open(source).doing(|| format!("could not open `{}`", source.display()))?;
        let metadata =
            file.metadata().doing(|| format!("could not read `{}`", source.display()))?;
        let unfinished = self.new_layer()?;
        let mut layer = LayerWriter::new(unfinished.open()?, bounds);
        let digest = if metadata.is_dir() {
            walk::copy(file.as_fd(), &mut layer)?
        } else {
            let stream =
                archive::open(file).doing(|| format!("could not read `{}`", source.display()))?;
            unpack::unpack(stream, &mut layer, bounds)?
        };
        let layer = Layer { digest, size_bytes: layer.finish()? };
        let image = image_of(name, layer, ImageConfig::default(), Some(now))?;
        let _lock = self.lock()?;
        unfinished.publish(&digest)?;
        let mut index = self.read_index()?;
        index.images.retain(|other| other.name != image.name);
        index.images.push(image.clone());
        self.write_index(&index)?;
        self.collect(&index)?;
        Ok(image)
    }

    /// Removes the image called `name`, and the layers that no image needs any more.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InUse`] while someone holds a layer that would go;
    /// [`Error::BadName`] for the built-in image.
    pub fn remove(&self, name: &str) -> Result<()> {
        let name = own_name(name)?;
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let Some(at) = index.images.iter().position(|image| image.name == name) else {
            return Err(Error::NotFound { name: name.to_string() });
        };
        let removed = index.images.remove(at);
        for layer in removed.layers.iter().filter(|layer| !self.needs(&index, &layer.digest)) {
            let path = self.layers().join(layer.digest.directory());
            if path.exists() && lock_free(&path)?.is_none() {
                return Err(Error::InUse { name: name.to_string() });
            }
        }
        self.write_index(&index)?;
        self.collect(&index)
    }

    /// Keeps the layers of `image` until the answer is dropped.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the image has been removed meanwhile.
    pub fn hold(&self, image: &Image) -> Result<Hold> {
        let mut held = Vec::new();
        for path in self.rootfs(image).layers {
            let missing = || Error::NotFound { name: image.name.to_string() };
            let layer = tree::open_directory(&path).map_err(|_gone| missing())?;
            flock(&layer, FlockOperation::LockShared)
                .doing(|| format!("could not hold `{}`", path.display()))?;
            // Who removes a layer renames it while no one holds it: it may be gone by now.
            if !path.exists() {
                return Err(missing());
            }
            held.push(layer);
        }
        Ok(Hold { _layers: held })
    }

    /// The directories that `image` is made of.
    #[must_use]
    pub fn rootfs(&self, image: &Image) -> Rootfs {
        let layers = image.layers.iter().map(|layer| layer.digest.directory());
        let is_host = image.name.as_str() == HOST_IMAGE;
        Rootfs {
            layers: layers.map(|directory| self.layers().join(directory)).collect(),
            is_id_mapped: !is_host,
            binds: if is_host { self.skeleton.binds.clone() } else { Vec::new() },
        }
    }

    /// The user that `text`, of the form `name|id[:group]`, means to `image`.
    ///
    /// # Errors
    /// [`Error::BadUser`] if the image knows no such name, or the id is too high.
    pub fn resolve_user(&self, image: &Image, text: &str) -> Result<User> {
        users::resolve(&self.rootfs(image).layers, text)
    }

    fn layers(&self) -> PathBuf {
        self.directory.join(LAYERS)
    }

    /// Waits until no other process writes the index.
    fn lock(&self) -> Result<File> {
        let path = self.directory.join(LOCK);
        let doing = || format!("could not lock `{}`", path.display());
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).doing(doing)?;
        flock(&file, FlockOperation::LockExclusive).doing(doing)?;
        Ok(file)
    }

    fn new_layer(&self) -> Result<Unfinished> {
        let _lock = self.lock()?;
        Unfinished::make(&self.layers())
    }

    fn make_host_layer(&self) -> Result<()> {
        let digest = self.skeleton.digest()?;
        if self.layers().join(digest.directory()).is_dir() {
            return Ok(());
        }
        let unfinished = self.new_layer()?;
        let mut layer = LayerWriter::new(unfinished.open()?, Bounds::default());
        self.skeleton.write(&mut layer)?;
        layer.finish()?;
        let _lock = self.lock()?;
        unfinished.publish(&digest)
    }

    fn read_index(&self) -> Result<Index> {
        let path = self.directory.join(INDEX);
        let doing = || format!("could not read `{}`", path.display());
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Index { version: INDEX_VERSION, images: Vec::new() });
            }
            Err(error) => return Err(error).doing(doing),
        };
        let index: Index = serde_json::from_slice(&text).doing(doing)?;
        if index.version != INDEX_VERSION {
            let what = format!("it has version {}, this is {INDEX_VERSION}", index.version);
            return Err(io::Error::new(ErrorKind::InvalidData, what)).doing(doing);
        }
        Ok(index)
    }

    /// Replaces the index. The lock is held, so the temporary name is ours.
    fn write_index(&self, index: &Index) -> Result<()> {
        let (path, new) = (self.directory.join(INDEX), self.directory.join(NEW_INDEX));
        let doing = || format!("could not write `{}`", path.display());
        let text = serde_json::to_vec_pretty(index).doing(doing)?;
        let mut file = File::create(&new).doing(doing)?;
        file.write_all(&text).doing(doing)?;
        file.sync_all().doing(doing)?;
        fs::rename(&new, &path).doing(doing)?;
        sync_directory(&self.directory).doing(doing)
    }

    fn needs(&self, index: &Index, layer: &Digest) -> bool {
        let all = index.images.iter().chain([&self.host]);
        all.flat_map(|image| &image.layers).any(|needed| needed.digest == *layer)
    }

    /// Removes every directory that no image needs and nobody holds. The lock is held.
    fn collect(&self, index: &Index) -> Result<()> {
        let layers = self.layers();
        let doing = || format!("could not clean `{}`", layers.display());
        let needed: Vec<String> = index
            .images
            .iter()
            .chain([&self.host])
            .flat_map(|image| image.layers.iter().map(|layer| layer.digest.directory()))
            .collect();
        for entry in fs::read_dir(&layers).doing(doing)? {
            let name = entry.doing(doing)?.file_name();
            if !needed.iter().any(|needed| OsStr::new(needed) == name) {
                layers::remove_if_free(&layers, &name)?;
            }
        }
        Ok(())
    }
}

fn image_of(
    name: ImageName,
    layer: Layer,
    config: ImageConfig,
    created_at: Option<Timestamp>,
) -> Result<Image> {
    let platform = format!("{}/{}", std::env::consts::OS, architecture());
    let layers = vec![layer];
    let identity = serde_json::to_vec(&(&platform, &config, &layers))
        .doing(|| "could not describe an image".into())?;
    let size_bytes = layers.iter().map(|layer| layer.size_bytes).sum();
    let digest = Digest::of(&identity);
    Ok(Image { name, digest, size_bytes, layers, platform, config, created_at })
}

/// This machine's architecture, as OCI calls it.
const fn architecture() -> &'static str {
    match std::env::consts::ARCH.as_bytes() {
        b"x86_64" => "amd64",
        b"aarch64" => "arm64",
        _ => std::env::consts::ARCH,
    }
}

/// A name that an image may be given or lose.
fn own_name(name: &str) -> Result<ImageName> {
    if name == HOST_IMAGE {
        let reason = "it is the built-in image's";
        return Err(Error::BadName { name: name.into(), reason });
    }
    name.parse()
}
