//! What the file system of the data directory can do for volumes. Jobs without any are as safe on
//! every one.

use std::path::Path;

use jiff::Timestamp;
use lazaret_sandbox::volume::{Error, MIN_SIZE_BYTES, VolumeStore, is_on_disk};

use super::Finding;

/// Findings about volumes below `directory`.
pub(super) fn look(directory: &Path) -> [Finding; 2] {
    [bound(directory), disk(directory)]
}

/// Whether a volume can have a size: one with a size is made.
fn bound(directory: &Path) -> Finding {
    let name = "volume sizes";
    let made = VolumeStore::open(&directory.join("volumes"))
        .and_then(|store| store.create("doctor", Some(MIN_SIZE_BYTES), Timestamp::now()));
    match made {
        Ok(_) => Finding::ok(name, "held by project quotas"),
        Err(Error::NoBound { why, mend }) => Finding::note(name, why, &mend),
        Err(error) => Finding::note(name, error.to_string(), "mend what the error names"),
    }
}

/// Whether what jobs do to volumes can be throttled.
fn disk(directory: &Path) -> Finding {
    let name = "volume disk";
    let mend = "put the data directory on a file system that is on one disk, as ext4 and XFS are";
    match is_on_disk(directory) {
        Ok(true) => Finding::ok(name, "the data directory is on one that can be throttled"),
        Ok(false) => Finding::note(name, "none that `io_bytes_per_s` could hold back", mend),
        Err(error) => Finding::note(name, error.to_string(), mend),
    }
}
