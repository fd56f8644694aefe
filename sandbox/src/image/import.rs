//! Images from files: a root file system, as a directory or an archive, becomes an image of one
//! layer; an OCI layout or an archive of docker's becomes the image that it describes.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use jiff::Timestamp;

use super::bundle::{self, Bundle, Described};
use super::layer::Bounds;
use super::oci::Platform;
use super::store::own_name;
use super::walk::{Owners, walk};
use super::{
    Doing as _, Error, HeldLayer, Image, ImageConfig, ImageName, ImageStore, NewImage, Result,
    archive,
};

/// What an import is held to.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// How large the image may be: all its layers together.
    pub bounds: Bounds,
    /// Which image is taken, where there are several.
    pub platform: Platform,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { bounds: Bounds::default(), platform: Platform::of_host() }
    }
}

impl ImageStore {
    /// Makes an image of `source`: a directory or an archive, which may be compressed with gzip or
    /// zstd, with a root file system, with an OCI layout, or with what `docker save` writes. An
    /// image that had the name before loses it.
    ///
    /// # Errors
    /// [`Error::BadName`] for the built-in image's name; [`Error::NoArchive`], [`Error::NoImage`],
    /// [`Error::BadArchive`] and [`Error::TooLarge`] for what is in `source`, the latter ones
    /// inside of [`Error::InLayer`] where it is one of several.
    pub fn import(&self, source: &Path, name: &str, now: Timestamp) -> Result<Image> {
        self.import_with(source, name, (now, &ImportOptions::default()))
    }

    /// As [`ImageStore::import`], with options of one's own.
    ///
    /// # Errors
    /// As [`ImageStore::import`].
    pub fn import_with(
        &self,
        source: &Path,
        name: &str,
        (now, options): (Timestamp, &ImportOptions),
    ) -> Result<Image> {
        let name = own_name(name)?;
        let file = File::open(source).doing(|| format!("could not open `{}`", source.display()))?;
        let metadata =
            file.metadata().doing(|| format!("could not read `{}`", source.display()))?;
        if !metadata.is_dir() {
            return self.import_file(file, name, (now, options));
        }
        let directory = file.as_fd().try_clone_to_owned();
        let directory = directory.doing(|| format!("could not open `{}`", source.display()))?;
        if let Some(bundle) = Bundle::of_directory(directory)? {
            return self.import_bundle(&bundle, name, (now, options));
        }
        let made = self.make_layer(options.bounds, |layer| {
            walk(file.as_fd(), Owners::Image, layer)?;
            Ok(None)
        });
        let HeldLayer { layer, hold: _hold } = made?;
        self.add(NewImage::of_layer(name, layer, ImageConfig::default()), now)
    }

    /// As [`ImageStore::import`], of an archive that arrives as a stream. It is kept in a file
    /// without a name while it is looked at.
    ///
    /// # Errors
    /// As [`ImageStore::import`].
    pub fn import_stream(
        &self,
        source: impl Read,
        name: &str,
        (now, options): (Timestamp, &ImportOptions),
    ) -> Result<Image> {
        let name = own_name(name)?;
        let file = self.keep(source, options.bounds.unpacked_bytes)?;
        self.import_file(file, name, (now, options))
    }

    fn import_file(
        &self,
        mut file: File,
        name: ImageName,
        (now, options): (Timestamp, &ImportOptions),
    ) -> Result<Image> {
        let doing = || "could not read the archive".to_owned();
        let opened = archive::open(file.try_clone().doing(doing)?).doing(doing)?;
        let first = archive::first_name(opened).doing(doing)?.ok_or(Error::NoArchive)?;
        file.rewind().doing(doing)?;
        if !bundle::is_bundle(&first) {
            let unpacked = self.unpack(file, None, options.bounds)?;
            let HeldLayer { layer, hold: _hold } = unpacked;
            return self.add(NewImage::of_layer(name, layer, ImageConfig::default()), now);
        }
        if archive::is_compressed(&file).doing(doing)? {
            // Files are looked up in it, which takes one that can be read at any place.
            file = self.keep(archive::open(file).doing(doing)?, options.bounds.unpacked_bytes)?;
        }
        self.import_bundle(&Bundle::of_archive(file)?, name, (now, options))
    }

    fn import_bundle(
        &self,
        bundle: &Bundle,
        name: ImageName,
        (now, options): (Timestamp, &ImportOptions),
    ) -> Result<Image> {
        let Described { digest, aliases, configuration, layers } =
            bundle.describe(&options.platform)?;
        let mut bounds = options.bounds;
        let mut unpacked = Vec::new();
        let mut holds = Vec::new();
        for (diff_id, path) in layers {
            let HeldLayer { layer, hold } = match self.held_layer(&diff_id)? {
                Some(known) => known,
                None => {
                    let of_layer =
                        |error| Error::InLayer { layer: diff_id, error: Box::new(error) };
                    let missing =
                        || Error::NoImage { what: format!("the file `{path}` is missing") };
                    let stream = bundle.open(&path)?.ok_or_else(missing)?;
                    self.unpack(stream, Some(diff_id), bounds).map_err(of_layer)?
                }
            };
            let left = bounds.unpacked_bytes.checked_sub(layer.size_bytes);
            bounds.unpacked_bytes = left.ok_or_else(|| too_large(options.bounds))?;
            unpacked = layer.on(&unpacked);
            holds.push(hold);
        }
        let platform = Some(configuration.platform);
        let (digest, config) = (Some(digest), configuration.config);
        self.add(NewImage { name, digest, aliases, layers: unpacked, platform, config }, now)
    }

    /// A file with all that `source` gives.
    fn keep(&self, mut source: impl Read, max_bytes: u64) -> Result<File> {
        let doing = || "could not keep the archive".to_owned();
        let mut file = self.unnamed_file()?;
        let kept = io::copy(&mut source.by_ref().take(max_bytes), &mut file).doing(doing)?;
        if kept == max_bytes && source.read(&mut [0]).doing(doing)? > 0 {
            return Err(Error::TooLarge { limit: format!("{max_bytes} bytes") });
        }
        file.rewind().doing(doing)?;
        Ok(file)
    }
}

fn too_large(bounds: Bounds) -> Error {
    Error::TooLarge { limit: format!("{} bytes", bounds.unpacked_bytes) }
}
