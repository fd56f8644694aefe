//! `PUT /v1/images/{name}`: an image that the client has. It goes into the store as it comes; what
//! does not come whole leaves nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use lazaret_sandbox::image::oci::Platform;
use lazaret_sandbox::image::{self, ImageName, ImportOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Api;
use super::images::ImageView;
use super::problem::{CREATED, Code, Problem};
use super::query::Parameters;
use crate::feed::{self, Feeder};

/// How long a client may send nothing.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Images that come at one time: each may take twice as much of the disk as an image may.
const UPLOADS_AT_ONCE: usize = 4;

/// Room for images that clients send. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct UploadRoom(Arc<Semaphore>);

impl Default for UploadRoom {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(UPLOADS_AT_ONCE)))
    }
}

impl UploadRoom {
    fn take(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_full| {
            let detail = "as many images are sent as may: send it again later";
            Problem::new(Code::QueueFull, detail).with_retry_after()
        })
    }
}

/// Makes an image of an archive: an OCI layout, what `docker save` writes, or a root file system.
/// An image that has the name loses it.
#[utoipa::path(
    put,
    path = "/v1/images/{name}",
    operation_id = "put_image",
    tag = "images",
    params(
        ("name" = String, Path, description = "Name of the image, `/` written as `%2F`"),
        ("platform" = Option<String>, Query,
            description = "Which image to take where there are several, as `linux/amd64`. \
                Default: the server's platform"),
    ),
    request_body(content_type = "application/octet-stream",
        description = "A tar archive, which may be compressed with gzip or zstd"),
    responses(
        (status = 200, description = "The image, in place of another", body = ImageView),
        (status = 201, description = "The image", body = ImageView),
    )
)]
pub(super) async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    parameters: Parameters,
    body: Body,
) -> Result<Response, Problem> {
    let [platform] = parameters.named(["platform"])?;
    // Before the first byte is asked for: clients with much to send wait for that.
    let name: ImageName = name.parse()?;
    let platform = platform.map_or_else(|| Ok(Platform::of_host()), |text| text.parse());
    let platform = platform.map_err(|error: image::Error| {
        Problem::new(Code::Invalid, format!("`platform`: {error}"))
    })?;
    if api.drain.is_cancelled() {
        return Err(stopping());
    }
    let room = api.uploads.take()?;
    let (feeder, feed) = feed::channel();
    let (images, options) =
        (Arc::clone(&api.runner.images), ImportOptions { platform, ..ImportOptions::default() });
    let importing = api.tracker.spawn_blocking(move || {
        let _room = room;
        let is_new = images.get(name.as_str())?.is_none();
        let image = images.import_stream(feed, name.as_str(), (Timestamp::now(), &options))?;
        Ok::<_, image::Error>((is_new, image))
    });
    let sent = send(&api, body, feeder).await;
    let imported = importing.await.map_err(|_panicked| Problem::internal())?;
    // An archive that was cut off is no good, but that is not what the client has to mend.
    sent?;
    let (is_new, image) = imported?;
    tracing::info!(name = %image.name, digest = %image.digest, "imported");
    let mut response = Json(ImageView::from(image)).into_response();
    if is_new {
        *response.status_mut() = CREATED;
    }
    Ok(response)
}

/// Hands over what the client sends, to its end, or until the importer wants no more.
async fn send(api: &Api, mut body: Body, feeder: Feeder) -> Result<(), Problem> {
    loop {
        let frame = tokio::select! {
            frame = timeout(SILENCE_TIMEOUT, body.frame()) => frame.map_err(|_elapsed| silent())?,
            () = api.stop.cancelled() => return Err(stopping()),
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| {
            Problem::new(Code::Malformed, format!("the body did not arrive whole: {error}"))
        })?;
        // Trailers are no part of an archive.
        let Ok(bytes) = frame.into_data() else { continue };
        if feeder.feed(bytes).await.is_err() {
            return Ok(());
        }
    }
    // Whether or not somebody still reads: what it has made of it is known soon.
    drop(feeder.end().await);
    Ok(())
}

fn silent() -> Problem {
    let detail = format!("nothing arrived for {} s", SILENCE_TIMEOUT.as_secs());
    Problem::new(Code::RequestTimeout, detail)
}

fn stopping() -> Problem {
    Problem::new(Code::Draining, "the server is stopping").with_retry_after()
}
