//! `POST /v1/images` and `/v1/images/pulls`: images from registries, and how far they are.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use lazaret_sandbox::image::Image;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::Api;
use super::accept;
use super::body;
use super::images::ImageView;
use super::prefer::Wait;
use super::problem::{ACCEPTED, Code, Problem, ProblemBody};
use super::query::Parameters;
use super::streamed::streamed;
use crate::registry::{self, LayerProgress, Progress, Pull, Transport};

const EVENT_STREAM: &str = "text/event-stream";
/// The forms that a pull is told in.
const FORMS: [(Form, &[&str]); 2] =
    [(Form::Json, &["application/json"]), (Form::Events, &[EVENT_STREAM])];
/// The pause between two events: nobody reads faster.
const EVENT_PAUSE: Duration = Duration::from_millis(200);
/// How often a stream with no events says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that wait for a slow reader; it gets the newest after them.
const EVENT_QUEUE: usize = 2;

/// How a pull is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it is.
    Json,
    /// As it goes.
    Events,
}

/// An image to be pulled.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"pull": "python:3.13"}))]
pub(super) struct PullRequest {
    /// Where it is, as docker has it: `python:3.13`, `ghcr.io/owner/image:tag`, `image@sha256:…`.
    pull: String,
    /// What jobs call it. Default: the reference.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// What its programs shall be for. Default: the server's platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "linux/amd64")]
    platform: Option<String>,
    /// Whether to speak plain HTTP. Only to a registry of the server's own host.
    #[serde(skip_serializing_if = "Option::is_none")]
    plain_http: Option<bool>,
}

/// An image that is being pulled, or was. Kept until the server ends, or a hundred came after it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Pull)]
pub(super) struct PullView {
    /// Its name.
    id: String,
    /// Where it is.
    state: PullState,
    /// The reference in full.
    #[schema(example = "docker.io/library/python:3.13")]
    pull: String,
    /// What jobs will call the image.
    name: String,
    /// What its programs are for.
    platform: String,
    /// The image's digest, once it is known.
    #[schema(required)]
    digest: Option<String>,
    /// Its layers, the lowest first, once they are known.
    layers: Vec<PulledLayer>,
    /// Why something was tried again, the last time it was.
    #[schema(required)]
    retry: Option<String>,
    /// The image, once it is there.
    #[schema(required)]
    image: Option<ImageView>,
    /// Why there is none.
    #[schema(required)]
    problem: Option<ProblemBody>,
}

/// Where a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum PullState {
    /// Not at its end.
    Running,
    /// The image is there.
    Finished,
    /// The image could not be had.
    Failed,
}

/// A layer of an image that is pulled.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PulledLayer {
    /// As it is transferred.
    digest: String,
    /// As it is transferred.
    total_bytes: u64,
    /// Of these have come.
    done_bytes: u64,
    /// `waiting`, `downloading`, `unpacked`, or `exists` if the server had it.
    state: String,
}

impl PullView {
    fn new(pull: &Pull, progress: &Progress) -> Self {
        let (state, image, problem) = match &progress.end {
            None => (PullState::Running, None, None),
            Some(Ok(image)) => (PullState::Finished, Some(Image::clone(image).into()), None),
            Some(Err(error)) => {
                let problem = Problem::from(error.as_ref()).body(&pull.id.to_string());
                (PullState::Failed, None, Some(problem))
            }
        };
        Self {
            id: pull.id.to_string(),
            state,
            pull: pull.request.source.to_string(),
            name: pull.request.name.to_string(),
            platform: pull.request.platform.to_string(),
            digest: progress.digest.map(|digest| digest.to_string()),
            layers: progress.layers.iter().map(PulledLayer::from).collect(),
            retry: progress.retry.clone(),
            image,
            problem,
        }
    }
}

impl From<&LayerProgress> for PulledLayer {
    fn from(layer: &LayerProgress) -> Self {
        Self {
            digest: layer.digest.to_string(),
            total_bytes: layer.total_bytes,
            done_bytes: layer.done_bytes,
            state: layer.state.as_str().to_owned(),
        }
    }
}

/// Pulls an image from a registry. The same pull, if it runs already, is joined.
#[utoipa::path(
    post,
    path = "/v1/images",
    operation_id = "pull_image",
    tag = "images",
    params(
        ("wait" = Option<u64>, Query, minimum = 0, maximum = 60,
            description = "Seconds to wait for the image, 0 to 60."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: as `?wait=N`, lowered to 60"),
    ),
    request_body = PullRequest,
    responses(
        (status = 200, description = "The image is there", body = PullView),
        (status = 202, description = "The image is being pulled", body = PullView,
            headers(("Location" = String, description = "Path of the pull"))),
    )
)]
pub(super) async fn create(
    State(api): State<Api>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let [wait] = parameters.named(["wait"])?;
    let wait = Wait::of(wait.as_deref(), &headers)?;
    let held = api.bodies.read_json(&headers, body).await?;
    let (request, unknown) = body::parse_object::<PullRequest>(&held.text)?;
    if !unknown.is_empty() {
        return Err(Problem::invalid(unknown));
    }
    if api.drain.is_cancelled() {
        let problem = Problem::new(Code::Draining, "the server pulls no more images");
        return Err(problem.with_retry_after());
    }
    let pull = api.pulls.start(parse(&request)?)?;
    let progress = finished_within(&pull, wait.duration).await;
    if let Some(Err(error)) = &progress.end {
        return Err(error.as_ref().into());
    }
    let is_running = progress.end.is_none();
    let mut response = Json(PullView::new(&pull, &progress)).into_response();
    if is_running {
        *response.status_mut() = ACCEPTED;
    }
    wait.say(response.headers_mut());
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/images/pulls/{}", pull.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

fn parse(request: &PullRequest) -> Result<registry::PullRequest, Problem> {
    let transport = match request.plain_http {
        Some(true) => Transport::Plain,
        Some(false) | None => Transport::Tls,
    };
    let (name, platform) = (request.name.as_deref(), request.platform.as_deref());
    let parsed = registry::PullRequest::parse(&request.pull, transport, name, platform);
    parsed.map_err(|error| Problem::from(&error))
}

/// Shows how far a pull is, or tells it as it goes.
#[utoipa::path(
    get,
    path = "/v1/images/pulls/{id}",
    operation_id = "get_pull",
    tag = "images",
    params(
        ("id" = String, Path, description = "Name of the pull"),
        ("wait" = Option<u64>, Query, minimum = 0, maximum = 60,
            description = "Seconds to wait for its end, 0 to 60."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: as `?wait=N`, lowered to 60"),
    ),
    responses(
        (status = 200, description = "The pull; to `Accept: text/event-stream`, as events \
            `progress` while it changes, and `end`", content(
            (PullView = "application/json"),
            (PullView = "text/event-stream"),
        )),
    )
)]
pub(super) async fn get(
    State(api): State<Api>,
    Path(id): Path<String>,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let [wait] = parameters.named(["wait"])?;
    let wait = Wait::of(wait.as_deref(), &headers)?;
    let pull = id.parse().ok().and_then(|id| api.pulls.get(id));
    let missing = || Problem::new(Code::NotFound, format!("there is no pull `{id}`"));
    let pull = pull.ok_or_else(missing)?;
    if accept::chosen(&headers, &FORMS)? == Form::Events {
        let (chunks, body) = mpsc::channel(EVENT_QUEUE);
        api.tracker.spawn(tell(pull, chunks));
        return Ok(streamed(EVENT_STREAM, body));
    }
    let progress = finished_within(&pull, wait.duration).await;
    let mut response = Json(PullView::new(&pull, &progress)).into_response();
    wait.say(response.headers_mut());
    Ok(response)
}

/// How far the pull is at its end, or when the time is over.
async fn finished_within(pull: &Pull, wait: Duration) -> Progress {
    let mut progress = pull.progress();
    let finished = progress.wait_for(|progress| progress.end.is_some());
    // What is seen below is right in every case.
    drop(tokio::time::timeout(wait, finished).await);
    progress.borrow().clone()
}

/// Tells how far the pull is, until its end, or until nobody listens. When the server stops, the
/// pull ends, and this with it.
async fn tell(pull: Arc<Pull>, chunks: mpsc::Sender<io::Result<Bytes>>) {
    let mut watch = pull.progress();
    loop {
        let progress = watch.borrow_and_update().clone();
        let name = if progress.end.is_some() { "end" } else { "progress" };
        let text = serde_json::to_string(&PullView::new(&pull, &progress)).unwrap_or_default();
        let event = format!("event: {name}\ndata: {text}\n\n");
        let is_heard = chunks.send(Ok(event.into())).await.is_ok();
        if !is_heard || progress.end.is_some() {
            return;
        }
        tokio::time::sleep(EVENT_PAUSE).await;
        while let Err(_elapsed) = tokio::time::timeout(KEEP_ALIVE, watch.changed()).await {
            if chunks.send(Ok(Bytes::from_static(b": \n\n"))).await.is_err() {
                return;
            }
        }
        if watch.has_changed().is_err() && watch.borrow().end.is_none() {
            return;
        }
    }
}
