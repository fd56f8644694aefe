//! An image of what a container wrote, and what it means for the outcome if there can be none.

use jiff::Timestamp;
use lazaret_sandbox::image::{Error, Image, ImageName, ImageStore, Upper};
use lazaret_sandbox::outcome::{Outcome, Verdict};

/// Makes the image `name` of `base` and what a container in it wrote, if it has succeeded. If there
/// can be no such image that is how the container has ended: in a failure of its own where it wrote
/// what no image can have, in a fault otherwise.
pub fn commit(
    images: &ImageStore,
    (base, upper): (Option<&Image>, Option<Upper>),
    name: &ImageName,
    outcome: &mut Outcome,
) {
    if outcome.verdict != Verdict::Success {
        return;
    }
    let gone = || Error::NotFound { name: name.to_string() };
    let committed = base
        .zip(upper)
        .ok_or_else(gone)
        .and_then(|(base, upper)| images.commit(base, &upper, name.clone(), Timestamp::now()));
    let Err(error) = committed else { return };
    let is_ours = error.is_failure() || matches!(error, Error::NotFound { .. });
    outcome.verdict = if is_ours { Verdict::Fault } else { Verdict::Failure };
    outcome.detail = Some(format!("could not commit to the image `{name}`: {error}"));
}
