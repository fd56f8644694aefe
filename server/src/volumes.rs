//! What jobs can be shown beside their image: the volumes of the data directory, and directories of
//! the host that the configuration allows.

use std::io;
use std::path::Path;

use lazaret_sandbox::spec::{Access, VolumeMount};
use lazaret_sandbox::volume::{self, VolumeName, VolumeStore, open_directory};

use crate::config::AllowedBind;
use crate::job::{JobVolume, VolumeSource};

/// What jobs can be shown.
#[derive(Debug)]
pub struct Volumes {
    /// The volumes.
    pub store: VolumeStore,
    /// Directories of the host.
    pub binds: Vec<AllowedBind>,
}

/// Why a job cannot be shown what it was accepted with.
#[derive(Debug, thiserror::Error)]
pub enum NotShown {
    /// It was removed while no server held it.
    #[error("the volume `{0}` was removed before the job started")]
    Gone(VolumeName),
    /// The configuration has changed since.
    #[error("the server does not let jobs have `{0}` any more")]
    NotAllowed(String),
    /// It is no directory, or not there.
    #[error("the host directory `{0}` cannot be opened: {1}")]
    NoDirectory(String, #[source] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] volume::Error),
}

impl Volumes {
    /// What jobs may do with a path of the host, if they may have it at all. Where several
    /// directories of the configuration hold it, the innermost says.
    #[must_use]
    pub fn allowed(&self, path: &Path) -> Option<Access> {
        let holding = self.binds.iter().filter(|bind| path.starts_with(&bind.path));
        holding.max_by_key(|bind| bind.path.components().count()).map(|bind| bind.access)
    }

    /// What a container is to be shown. It is looked up once more: time has passed since the job
    /// was accepted, and the server may be another.
    ///
    /// # Errors
    /// As [`NotShown`].
    pub fn mounts(&self, volumes: &[JobVolume]) -> Result<Vec<VolumeMount>, NotShown> {
        volumes.iter().map(|volume| self.mount(volume)).collect()
    }

    fn mount(&self, volume: &JobVolume) -> Result<VolumeMount, NotShown> {
        let (target, access) = (volume.path.clone(), volume.access);
        match &volume.source {
            VolumeSource::Name(name) => match self.store.get(name.as_str())? {
                Some(_) => Ok(self.store.mount(name, target, access)),
                None => Err(NotShown::Gone(name.clone())),
            },
            VolumeSource::HostPath(path) => {
                let shown = || path.display().to_string();
                let allowed = self.allowed(path).ok_or_else(|| NotShown::NotAllowed(shown()))?;
                if access == Access::ReadWrite && allowed == Access::ReadOnly {
                    return Err(NotShown::NotAllowed(shown()));
                }
                open_directory(path).map_err(|error| NotShown::NoDirectory(shown(), error))?;
                Ok(VolumeMount { source: path.clone(), held: None, target, access })
            }
        }
    }
}
