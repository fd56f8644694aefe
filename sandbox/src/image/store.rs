//! The images of a data directory. Any number of processes may use one store at a time.
//!
//! A layer is unpacked into a directory of a temporary name, written to disk, and renamed; then
//! the index is replaced. Whatever is killed at whatever point, the index names whole layers only.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::host::{self, HOST_IMAGE, Skeleton};
use super::index::Index;
use super::layer::{Bounds, LayerWriter};
use super::layers::{self, Unfinished};
use super::new_image::NewImage;
use super::pack::pack;
use super::unpack;
use super::uses::{HeldLayer, Hold, Uses};
use super::{Digest, Doing as _, Error, Image, ImageName, Layer, Result, archive, users};
use crate::spec::{Rootfs, User};

const LOCK: &str = "lock";
const LAYERS: &str = "layers";

/// The images below one directory.
#[derive(Debug)]
pub struct ImageStore {
    directory: PathBuf,
    uses: Uses,
    host: Image,
    skeleton: Skeleton,
    /// Another version of this program has another skeleton, and would clean ours away.
    _host_layer: Hold,
}

/// What was removed because nobody needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images that had lost their name.
    pub images: usize,
    /// Layers that no image was made of.
    pub layers: usize,
    /// Bytes of the files of those layers.
    pub bytes: u64,
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
        let host = NewImage::of_layer(name, layer, host::config()).into_image(None)?;
        let uses = Uses::open(directory)?;
        let _host_layer = Hold::new(None, Vec::new());
        let mut store = Self { directory: directory.to_owned(), uses, host, skeleton, _host_layer };
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

    /// The image that `name` means, if there is one: one of this name, or of this name and the tag
    /// `latest`, or, where it ends in `@` and a digest, the one with that digest.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<Image>> {
        if name == HOST_IMAGE {
            return Ok(Some(self.host.clone()));
        }
        Ok(self.read_index()?.named(name).cloned())
    }

    /// The image with this digest, even if it has lost its name to another while it was needed.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn find(&self, digest: &Digest) -> Result<Option<Image>> {
        if *digest == self.host.digest {
            return Ok(Some(self.host.clone()));
        }
        Ok(self.read_index()?.image(digest).cloned())
    }

    /// The layer with this digest, if it was unpacked before.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn layer(&self, digest: &Digest) -> Result<Option<Layer>> {
        let layer = self.read_index()?.layer(digest).copied();
        Ok(layer.filter(|layer| self.layers().join(layer.digest.directory()).is_dir()))
    }

    /// Unpacks a layer from `stream`, an archive that may be compressed with gzip or zstd. Once
    /// nobody holds it, it is there until [`ImageStore::prune`], or longer if an image is made of
    /// it before.
    ///
    /// # Errors
    /// [`Error::NoArchive`], [`Error::BadArchive`] and [`Error::TooLarge`] for what is in the
    /// stream; [`Error::WrongDigest`] if its digest, uncompressed, is not the one expected.
    pub fn unpack(
        &self,
        stream: impl Read + 'static,
        expected: Option<Digest>,
        bounds: Bounds,
    ) -> Result<HeldLayer> {
        self.make_layer(bounds, |layer| {
            let archive = archive::open(stream).doing(|| "could not read the archive".into())?;
            let found = unpack::unpack(archive, layer, bounds)?;
            match expected {
                Some(expected) if expected != found => Err(Error::WrongDigest { expected, found }),
                Some(_) | None => Ok(Some(found)),
            }
        })
    }

    /// Takes in an image that is made of layers of this store. One that had its name before loses
    /// it, and goes as soon as nobody needs it.
    ///
    /// # Errors
    /// [`Error::BadName`] for the built-in image's name; [`Error::NotFound`] if a layer has been
    /// removed meanwhile.
    pub fn add(&self, new: NewImage, now: Timestamp) -> Result<Image> {
        if new.name.as_str() == HOST_IMAGE {
            return Err(reserved(HOST_IMAGE));
        }
        let (new, _holds) = self.complete(new)?;
        let image = new.into_image(Some(now))?;
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let replaced = index.insert(image.clone());
        index.replaced.extend(replaced);
        self.collect(&mut index, Scope::Replaced)?;
        Ok(image)
    }

    /// Removes the image called `name`, and the layers that no image needs any more.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InUse`] while someone holds it; [`Error::BadName`] for the
    /// built-in image.
    pub fn remove(&self, name: &str) -> Result<()> {
        let name = own_name(name)?;
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let Some(removed) = index.remove(&name) else {
            return Err(Error::NotFound { name: name.to_string() });
        };
        // Under another name it stays as it is.
        if index.image(&removed.digest).is_none() {
            if !self.uses.is_free(&removed.digest)? {
                return Err(Error::InUse { name: name.to_string() });
            }
            index.replaced.push(removed);
        }
        self.collect(&mut index, Scope::Replaced)
    }

    /// Removes every image that has lost its name and every layer that no image is made of, unless
    /// someone needs them.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn prune(&self) -> Result<Pruned> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let (images, before) = (index.replaced.len(), index.layers.clone());
        self.collect(&mut index, Scope::All)?;
        let gone = |layer: &&Layer| index.layer(&layer.digest).is_none();
        let removed: Vec<&Layer> = before.iter().filter(gone).collect();
        Ok(Pruned {
            images: images - index.replaced.len(),
            layers: removed.len(),
            bytes: removed.iter().map(|layer| layer.size_bytes).sum(),
        })
    }

    /// Keeps `image` and its layers until the answer is dropped.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the image has been removed meanwhile.
    pub fn hold(&self, image: &Image) -> Result<Hold> {
        let missing = || Error::NotFound { name: image.name.to_string() };
        let mut used = None;
        if image.digest != self.host.digest {
            used = Some(self.uses.hold(&image.digest)?);
            // It may have gone before it was held.
            self.find(&image.digest)?.ok_or_else(missing)?;
        }
        Ok(self.hold_layers(&image.layers, missing)?.with_image(used))
    }

    /// The directories that `image` is made of.
    #[must_use]
    pub fn rootfs(&self, image: &Image) -> Rootfs {
        let rootfs = self.rootfs_of(&image.layers);
        if image.name.as_str() != HOST_IMAGE {
            return rootfs;
        }
        Rootfs { is_id_mapped: false, binds: self.skeleton.binds.clone(), ..rootfs }
    }

    /// The directories that these layers, the topmost first, are.
    #[must_use]
    pub fn rootfs_of(&self, layers: &[Layer]) -> Rootfs {
        let names = layers.iter().map(|layer| layer.digest.directory());
        Rootfs {
            directory: self.layers(),
            layers: names.collect(),
            is_id_mapped: true,
            binds: Vec::new(),
        }
    }

    /// The user that `text`, of the form `name|id[:group]`, means to `image`.
    ///
    /// # Errors
    /// [`Error::BadUser`] if the image knows no such name, or the id is too high.
    pub fn resolve_user(&self, image: &Image, text: &str) -> Result<User> {
        self.resolve_user_of(&image.layers, text)
    }

    /// As [`ImageStore::resolve_user`], for layers that are no image yet, the topmost first.
    ///
    /// # Errors
    /// As [`ImageStore::resolve_user`].
    pub fn resolve_user_of(&self, layers: &[Layer], text: &str) -> Result<User> {
        users::resolve(&self.rootfs_of(layers).paths(), text)
    }

    /// The home that an image of these layers, the topmost first, has for the user with this id.
    ///
    /// # Errors
    /// If the layers cannot be read.
    pub fn home_of(&self, layers: &[Layer], uid: u32) -> Result<String> {
        users::home(&self.rootfs_of(layers).paths(), uid)
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.directory.join(LAYERS)
    }

    /// Waits until no other process writes the index.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.directory.join(LOCK);
        let doing = || format!("could not lock `{}`", path.display());
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).doing(doing)?;
        flock(&file, FlockOperation::LockExclusive).doing(doing)?;
        Ok(file)
    }

    /// Makes a layer that `write` fills. Its digest is what that answers with, or that of the
    /// archive it would be packed as.
    pub(super) fn make_layer(
        &self,
        bounds: Bounds,
        write: impl FnOnce(&mut LayerWriter) -> Result<Option<Digest>>,
    ) -> Result<HeldLayer> {
        let unfinished = self.new_layer()?;
        let mut layer = LayerWriter::new(unfinished.open()?, bounds);
        let digest = write(&mut layer)?;
        let size_bytes = layer.finish()?;
        let packed = || pack(unfinished.open()?.as_fd(), io::sink());
        let digest = digest.map_or_else(packed, Ok)?;
        let layer = Layer { digest, size_bytes };
        let _lock = self.lock()?;
        let hold = Hold::new(None, vec![unfinished.publish(&digest)?]);
        let mut index = self.read_index()?;
        if !index.layers.contains(&layer) {
            index.layers.push(layer);
            index.write(&self.directory)?;
        }
        Ok(HeldLayer { layer, hold })
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
        unfinished.publish(&digest).map(drop)
    }

    pub(super) fn read_index(&self) -> Result<Index> {
        Index::read(&self.directory)
    }

    /// The lock is held.
    pub(super) fn write_index(&self, index: &Index) -> Result<()> {
        index.write(&self.directory)
    }

    /// Forgets images that have lost their name and that nobody needs, and layers that no image is
    /// made of any more; writes the index; then removes what it does not name. The lock is held.
    fn collect(&self, index: &mut Index, scope: Scope) -> Result<()> {
        let mut forgotten = Vec::new();
        for image in std::mem::take(&mut index.replaced) {
            if self.uses.is_free(&image.digest)? {
                forgotten.push(image);
            } else {
                index.replaced.push(image);
            }
        }
        let goes = |layer: &Digest| match scope {
            Scope::All => true,
            Scope::Replaced => {
                forgotten.iter().flat_map(|image| &image.layers).any(|one| one.digest == *layer)
            }
        };
        for layer in std::mem::take(&mut index.layers) {
            let is_kept = index.needs(&layer.digest) || !goes(&layer.digest);
            if is_kept || layers::is_held(&self.layers().join(layer.digest.directory()))? {
                index.layers.push(layer);
            }
        }
        index.forget_layers();
        index.write(&self.directory)?;
        forgotten.iter().try_for_each(|image| self.uses.forget(&image.digest))?;
        layers::clean(&self.layers(), |name| {
            let host = self.host.layers.iter().map(|layer| layer.digest);
            let named = index.images.iter().chain(&index.replaced).flat_map(|image| &image.layers);
            let mut kept = named.chain(&index.layers).map(|layer| layer.digest).chain(host);
            kept.any(|digest| digest.directory().as_bytes() == name)
        })
    }
}

/// Which layers that no image is made of are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Those of images that are removed, too.
    Replaced,
    /// All: also what an interrupted pull has unpacked.
    All,
}

/// A name that an image may be given or lose.
pub(super) fn own_name(name: &str) -> Result<ImageName> {
    if name == HOST_IMAGE {
        return Err(reserved(name));
    }
    name.parse()
}

fn reserved(name: &str) -> Error {
    Error::BadName { name: name.into(), reason: "it is the built-in image's" }
}
