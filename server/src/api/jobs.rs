//! `/v1/jobs`: make, look at, cancel, forget. Lists are in [`super::job_list`].

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{ETAG, IF_NONE_MATCH, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::job_view::JobView;
use super::prefer::Wait;
use super::problem::{ACCEPTED, Code, NO_CONTENT, NOT_MODIFIED, Problem};
use super::query::{NoParameters, Parameters};
use super::{Api, body};
use crate::dispatch::{Cancelled, Deleted, Submission, Submitted};
use crate::job::{self, Job, JobId};
use crate::live::Progress;
use crate::request::{self, JobRequest};
use crate::store::IdempotencyKey;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Bytes of an idempotency key.
const MAX_KEY_BYTES: usize = 255;
/// Bodies larger than this are parsed off the async threads.
const MAX_INLINE_BODY_BYTES: usize = 64 << 10;

/// Makes a job. It is durable when this answers.
#[utoipa::path(
    post,
    path = "/v1/jobs",
    operation_id = "create_job",
    tag = "jobs",
    params(
        ("wait" = Option<u64>, Query, minimum = 0, maximum = 60,
            description = "Seconds to wait for the end of the job, 0 to 60."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: as `?wait=N`, lowered to 60"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
            description = "The same key with the same body makes no second job, for 24 h"),
    ),
    request_body = JobRequest,
    responses(
        (status = 200, description = "The job has finished", body = JobView),
        (status = 202, description = "The job is accepted", body = JobView,
            headers(("Location" = String, description = "Path of the job"))),
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
    let key = idempotency_key(&headers)?;
    let held = api.bodies.read_json(&headers, body).await?;
    let text = held.text.clone();
    let idempotency =
        key.map(|key| IdempotencyKey { key, fingerprint: Sha256::digest(&text).into() });
    let (spec, inputs) = if text.len() > MAX_INLINE_BODY_BYTES {
        let api = api.clone();
        let parse = tokio::task::spawn_blocking(move || parse(&api, &text));
        parse.await.map_err(|_panicked| Problem::internal())??
    } else {
        parse(&api, &text)?
    };
    let submitted = api.dispatch.submit(Submission { spec, inputs, idempotency }).await?;
    drop(held);
    let (id, is_replayed) = match submitted {
        Submitted::New(id) => (id, false),
        Submitted::Replayed(id) => (id, true),
    };
    let job = finished_within(&api, id, wait.duration).await?;
    let location = HeaderValue::from_str(&format!("/v1/jobs/{id}"));
    let mut response = show(job);
    wait.say(response.headers_mut());
    if let Ok(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    if is_replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn parse(api: &Api, text: &[u8]) -> Result<(job::JobSpec, job::Inputs), Problem> {
    let (request, unknown) = body::parse_object::<JobRequest>(text)?;
    let rules = request::Rules {
        limits: &api.config.limits,
        capacity: api.config.capacity,
        root_user: api.config.root_user,
        default_image: &api.config.default_image,
        images: &api.runner.images,
        volumes: &api.runner.volumes,
    };
    Ok(request::check(request, unknown, &rules)?)
}

/// The key, without the quotes that the draft standard wants and many clients leave out.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().unwrap_or_default().trim().trim_matches('"');
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        let detail = format!("`Idempotency-Key` has 1 to {MAX_KEY_BYTES} visible characters");
        return Err(Problem::new(Code::Malformed, detail));
    }
    Ok(Some(key.to_owned()))
}

/// The job as it is once it has finished, or when the time is over.
async fn finished_within(api: &Api, id: JobId, wait: Duration) -> Result<Job, Problem> {
    // Registered before the store is read: an end in between is not missed.
    let wake = api.dispatch.live().get(id).map(|job| job.subscribe());
    if let Some(mut wake) = wake.filter(|_| !wait.is_zero()) {
        let never_starts = waits_in_drain(api, wake.clone());
        let finished = wake.wait_for(|progress| progress.state == job::State::Finished);
        tokio::select! {
            waited = tokio::time::timeout(wait, finished) => {
                if let Ok(Ok(progress)) = waited
                    && let Some(job) = &progress.finished
                {
                    return Ok(Job::clone(job));
                }
            }
            () = never_starts => {}
        }
        // Over time, or ended without an attempt: both are seen in the store.
    }
    find(api, id).await
}

/// Waits until the job can only wait for the next server.
async fn waits_in_drain(api: &Api, mut wake: watch::Receiver<Progress>) {
    api.drain.cancelled().await;
    let waits = wake.wait_for(|progress| progress.state == job::State::Queued).await.is_ok();
    if !waits {
        // It has left: its end is told.
        std::future::pending::<()>().await;
    }
}

/// The job.
pub(super) async fn find(api: &Api, id: JobId) -> Result<Job, Problem> {
    api.store.job(id).await?.ok_or_else(|| Problem::no_job(&id.to_string()))
}

/// A name that is no id is no job's.
pub(super) fn parse_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_not_an_id| Problem::no_job(text))
}

/// The job, with 202 while it has not finished.
fn show(job: Job) -> Response {
    let tag = entity_tag(&job);
    let is_finished = job.state == job::State::Finished;
    let mut response = Json(JobView::from(job)).into_response();
    if !is_finished {
        *response.status_mut() = ACCEPTED;
    }
    response.headers_mut().extend(tag);
    response
}

/// The job, of which something was asked.
pub(super) fn accepted(job: Job) -> Response {
    let mut response = show(job);
    *response.status_mut() = ACCEPTED;
    response
}

fn entity_tag(job: &Job) -> Option<(HeaderName, HeaderValue)> {
    HeaderValue::from_str(&format!("\"v{}\"", job.version)).ok().map(|tag| (ETAG, tag))
}

/// Shows a job.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    operation_id = "get_job",
    tag = "jobs",
    params(
        ("id" = String, Path, description = "Name of the job"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` that is known"),
        ("Prefer" = Option<String>, Header,
            description = "`wait=N`: with `If-None-Match`, wait up to N seconds for a change"),
    ),
    responses(
        (status = 200, description = "The job", body = JobView),
        (status = 304, description = "The job is still as it is known"),
    )
)]
pub(super) async fn get(
    State(api): State<Api>,
    Path(id): Path<String>,
    _: NoParameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let wait = Wait::of(None, &headers)?;
    let known = headers.get(IF_NONE_MATCH);
    let wake = api.dispatch.live().get(id).map(|job| job.subscribe());
    let mut job = find(&api, id).await?;
    let is_known = |job: &Job| {
        known.is_some_and(|known| entity_tag(job).is_some_and(|(_, tag)| matches(known, &tag)))
    };
    if is_known(&job)
        && let Some(wake) = wake.filter(|_| !wait.duration.is_zero())
    {
        changed_within(wake, wait.duration).await;
        job = find(&api, id).await?;
    }
    let mut response = if is_known(&job) {
        let mut response = NOT_MODIFIED.into_response();
        response.headers_mut().extend(entity_tag(&job));
        response
    } else {
        let tag = entity_tag(&job);
        let mut response = Json(JobView::from(job)).into_response();
        response.headers_mut().extend(tag);
        response
    };
    wait.say(response.headers_mut());
    Ok(response)
}

/// Whether one of the tags of `If-None-Match` is `tag` (weak comparison, RFC 9110 13.1.2).
fn matches(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let (known, tag) = (known.to_str().unwrap_or_default(), tag.to_str().unwrap_or_default());
    known.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

async fn changed_within(mut wake: watch::Receiver<Progress>, wait: Duration) {
    let before = wake.borrow_and_update().changes;
    let changed = wake.wait_for(|progress| progress.changes != before);
    // Over time, or changed: both are seen in the store.
    drop(tokio::time::timeout(wait, changed).await);
}

/// Asks for the end of a job. A queued one ends at once, a running one is killed.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/cancel",
    operation_id = "cancel_job",
    tag = "jobs",
    params(("id" = String, Path, description = "Name of the job")),
    responses(
        (status = 200, description = "The job had finished before", body = JobView),
        (status = 202, description = "The job ends", body = JobView),
    )
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    Path(id): Path<String>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let cancelled = api.dispatch.cancel(id).await?;
    let job = find(&api, id).await?;
    match cancelled {
        Cancelled::Asked => Ok(accepted(job)),
        Cancelled::AlreadyFinished => Ok(show(job)),
        Cancelled::NotFound => Err(Problem::no_job(&id.to_string())),
    }
}

/// Forgets a finished job and all it wrote.
#[utoipa::path(
    delete,
    path = "/v1/jobs/{id}",
    operation_id = "delete_job",
    tag = "jobs",
    params(("id" = String, Path, description = "Name of the job")),
    responses((status = 204, description = "The job is forgotten"))
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(id): Path<String>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    match api.dispatch.delete(id).await? {
        Deleted::Done => Ok(NO_CONTENT.into_response()),
        Deleted::Unfinished => {
            let detail = format!("job `{id}` has not finished: cancel it first");
            Err(Problem::new(Code::Conflict, detail))
        }
        Deleted::NotFound => Err(Problem::no_job(&id.to_string())),
    }
}
