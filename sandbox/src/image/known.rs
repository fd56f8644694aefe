//! The layers of a store, without the images that are made of them: held, and what is remembered of
//! them: what archives they are, and which steps of builds have made them.

use rustix::fs::{FlockOperation, flock};

use super::outgoing::PackedLayer;
use super::uses::{HeldLayer, Hold};
use super::{Digest, Doing as _, Error, ImageStore, Layer, Result, tree};

impl ImageStore {
    /// The layer with this digest, if it was unpacked before, kept from being removed.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn held_layer(&self, digest: &Digest) -> Result<Option<HeldLayer>> {
        let Some(layer) = self.layer(digest)? else { return Ok(None) };
        let gone = || Error::NotFound { name: digest.to_string() };
        match self.hold_layers(&[layer], gone) {
            Ok(hold) => Ok(Some(HeldLayer { layer, hold })),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The layer that a step of a build has made before, if it is still there.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn built(&self, step: &Digest) -> Result<Option<HeldLayer>> {
        let index = self.read_index()?;
        let made = index.built.iter().rev().find(|(key, _)| key == step);
        made.map_or(Ok(None), |(_, layer)| self.held_layer(layer))
    }

    /// Remembers the layer that a step of a build has made, for as long as it is there.
    ///
    /// # Errors
    /// If the index cannot be read or written.
    pub fn remember_built(&self, step: Digest, layer: &Layer) -> Result<()> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        index.built.retain(|(key, _)| *key != step);
        index.built.push((step, layer.digest));
        self.write_index(&index)
    }

    /// The archives that a layer is known to be, if it was unpacked from one or packed before.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn packed(&self, layer: &Digest) -> Result<Vec<PackedLayer>> {
        let packed = self.read_index()?.packed.into_iter();
        Ok(packed.filter(|(of, _)| of == layer).map(|(_, packed)| packed).collect())
    }

    /// Remembers an archive that a layer is.
    ///
    /// # Errors
    /// If the index cannot be read or written.
    pub fn remember_packed(&self, layer: &Digest, packed: PackedLayer) -> Result<()> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let known = (*layer, packed);
        if index.layer(layer).is_some() && !index.packed.contains(&known) {
            index.packed.push(known);
            self.write_index(&index)?;
        }
        Ok(())
    }

    /// Keeps layers until the answer is dropped. `missing` says that one has been removed.
    ///
    /// # Errors
    /// What `missing` answers; or if the layers cannot be locked.
    pub fn hold_layers(&self, layers: &[Layer], missing: impl Fn() -> Error) -> Result<Hold> {
        let mut held = Vec::new();
        for layer in layers {
            let path = self.layers().join(layer.digest.directory());
            let opened = tree::open_directory(&path).map_err(|_gone| missing())?;
            flock(&opened, FlockOperation::LockShared)
                .doing(|| format!("could not hold `{}`", path.display()))?;
            // Who removes a layer renames it while no one holds it: it may be gone by now.
            if !path.exists() {
                return Err(missing());
            }
            held.push(opened);
        }
        Ok(Hold::new(None, held))
    }
}
