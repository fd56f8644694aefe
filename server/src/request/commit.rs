//! The name under which what a job wrote becomes an image.

use lazaret_sandbox::image::{HOST_IMAGE, Image, ImageName, ImageStore};

/// The name that a client asked for.
///
/// # Errors
/// What is wrong with it, or with the image that the job runs in.
pub(crate) fn check(name: &str, image: &Image, images: &ImageStore) -> Result<ImageName, String> {
    let name: ImageName = name.parse().map_err(|error| format!("{error}"))?;
    if name.as_str() == HOST_IMAGE {
        return Err(format!("`{HOST_IMAGE}` is the built-in image's name: choose another"));
    }
    images.can_build_on(image).map_err(|error| error.to_string())?;
    Ok(name)
}
