//! An image of what a container wrote, and what it means for the outcome if there can be none.

use std::num::NonZeroU64;

use jiff::Timestamp;
use lazaret_sandbox::image::{Bounds, Error, Image, ImageName, ImageStore, Upper};
use lazaret_sandbox::outcome::{Outcome, Verdict};

/// What shall become an image.
#[derive(Debug)]
pub struct Written {
    /// What the container wrote, if it is there still.
    pub upper: Option<Upper>,
    /// The image that the container ran in, if it is there still.
    pub base: Option<Image>,
    /// What the container was allowed to store. Holes in files take no room there, but time to
    /// copy: here they count.
    pub disk_bytes: NonZeroU64,
}

/// Makes the image `name` of what a container has written, if it has succeeded. If there can be no
/// such image that is how the container has ended: in a failure of its own where it wrote what no
/// image can have, in a fault otherwise.
pub fn commit(images: &ImageStore, written: Written, name: &ImageName, outcome: &mut Outcome) {
    if outcome.verdict != Verdict::Success {
        return;
    }
    let Written { upper, base, disk_bytes } = written;
    let bounds = Bounds { unpacked_bytes: disk_bytes.get(), ..Bounds::default() };
    let gone = || Error::NotFound { name: name.to_string() };
    let committed = base.zip(upper).ok_or_else(gone).and_then(|(base, upper)| {
        images.commit(&base, &upper, name.clone(), (Timestamp::now(), bounds))
    });
    let Err(error) = committed else { return };
    let is_ours = error.is_failure() || matches!(error, Error::NotFound { .. });
    outcome.verdict = if is_ours { Verdict::Fault } else { Verdict::Failure };
    outcome.detail = Some(format!("could not commit to the image `{name}`: {error}"));
}
