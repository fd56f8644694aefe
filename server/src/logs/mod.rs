//! What jobs wrote: where it is kept while they run and after, and how it is told.
//!
//! ```text
//! live      $data/spool/<id>.<attempt>        the shim appends, followers read
//! finished  a row of the store                up to 64 KiB: most jobs, and no file for each
//!           $data/logs/<id>.<attempt>.zst     more than that, compressed
//! ```
//!
//! The place is left only after the next one is durable, and readers look in this order, so a log
//! is never nowhere.

pub mod follow;
pub mod frame;
pub mod harvest;
#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use lazaret_sandbox::spool::SpoolReader;

use crate::job::{JobId, MAX_ATTEMPTS, attempt_name, parse_attempt_name};
use crate::store::{Store, StoreError};

/// The records of one attempt, wherever they are kept.
pub type AttemptReader = SpoolReader<Box<dyn Read + Send>>;

/// The directories of logs.
#[derive(Debug, Clone)]
pub struct LogFiles {
    spool: PathBuf,
    kept: PathBuf,
}

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file could not be read.
    #[error("could not read a log: {0}")]
    File(#[from] io::Error),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LogFiles {
    /// The directories below `data_dir`, made if they are missing.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let files = Self { spool: data_dir.join("spool"), kept: data_dir.join("logs") };
        for directory in [&files.spool, &files.kept] {
            // What a job wrote is nobody else's.
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Ok(files)
    }

    /// An empty spool for an attempt that is about to start.
    ///
    /// # Errors
    /// If it cannot be made, or was made before.
    pub fn create_spool(&self, id: JobId, attempt: u32) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).open(self.spool_path(id, attempt))
    }

    /// The records of an attempt, or `None` if it never wrote any.
    ///
    /// # Errors
    /// If what is there cannot be read.
    pub async fn attempt(
        &self,
        store: &Store,
        id: JobId,
        attempt: u32,
    ) -> Result<Option<AttemptReader>, LogError> {
        if let Some(spool) = open_if_there(&self.spool_path(id, attempt))? {
            return Ok(Some(SpoolReader::new(Box::new(spool))));
        }
        if let Some(row) = store.log(id, attempt).await? {
            return Ok(Some(SpoolReader::new(Box::new(io::Cursor::new(row)))));
        }
        match open_if_there(&self.kept_path(id, attempt))? {
            Some(kept) => Ok(Some(SpoolReader::new(Box::new(zstd::Decoder::new(kept)?)))),
            None => Ok(None),
        }
    }

    /// Length of a spool.
    ///
    /// # Errors
    /// If it is not there.
    pub fn spool_bytes(&self, id: JobId, attempt: u32) -> io::Result<u64> {
        Ok(std::fs::metadata(self.spool_path(id, attempt))?.len())
    }

    /// Removes a spool that is kept elsewhere by now.
    ///
    /// # Errors
    /// If it is there and stays.
    pub fn remove_spool(&self, id: JobId, attempt: u32) -> io::Result<()> {
        remove_if_there(&self.spool_path(id, attempt))
    }

    /// Removes all files of a job.
    ///
    /// # Errors
    /// If one is there and stays.
    pub fn remove(&self, id: JobId) -> io::Result<()> {
        for attempt in 1..=MAX_ATTEMPTS {
            remove_if_there(&self.spool_path(id, attempt))?;
            remove_if_there(&self.kept_path(id, attempt))?;
        }
        Ok(())
    }

    /// The attempts whose spools are there: at the start of the server, what its predecessor left.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn spools(&self) -> io::Result<Vec<(JobId, u32)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.spool)? {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(parse_attempt_name));
        }
        Ok(found)
    }

    /// Whether the log of an attempt has a file of its own.
    #[must_use]
    pub fn is_kept(&self, id: JobId, attempt: u32) -> bool {
        self.kept_path(id, attempt).exists()
    }

    fn spool_path(&self, id: JobId, attempt: u32) -> PathBuf {
        self.spool.join(attempt_name(id, attempt))
    }

    fn kept_path(&self, id: JobId, attempt: u32) -> PathBuf {
        self.kept.join(attempt_name(id, attempt) + ".zst")
    }
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
