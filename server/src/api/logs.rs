//! `/v1/jobs/{id}/logs`: what a job wrote, while it runs and after.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse as _, Response};
use tokio::sync::mpsc;

use super::Api;
use super::accept;
use super::jobs::parse_id;
use super::problem::{Code, NO_CONTENT, Problem};
use super::query::{Parameters, refused};
use super::streamed::streamed;
use crate::logs::follow::{self, CHUNK_QUEUE, Extent, Wanted};
use crate::logs::frame::{Frame, StreamName};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Tells what a job wrote: history and live tail are one stream.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/logs",
    operation_id = "read_log",
    tag = "jobs",
    params(
        ("id" = String, Path, description = "Name of the job"),
        ("step" = Option<u16>, Query,
            description = "Only what the step of this index wrote."),
        ("stream" = Option<StreamName>, Query, description = "Only this stream."),
        ("after" = Option<u64>, Query,
            description = "Only what is after this `seq`. `Last-Event-ID` says the same."),
        ("follow" = Option<bool>, Query,
            description = "Whether to stay until the job has finished. Default: true."),
        ("Last-Event-ID" = Option<String>, Header, description = "As `after`"),
    ),
    responses(
        (status = 200, description = "The log, in the form that `Accept` asks for", content(
            (String = "text/plain"),
            (Frame = "application/jsonl"),
            (Frame = "text/event-stream"),
        )),
        (status = 204, description = "Everything up to the end is known already"),
    )
)]
pub(super) async fn get(
    State(api): State<Api>,
    Path(id): Path<String>,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let [step, stream, after, follow] = parameters.named(["step", "stream", "after", "follow"])?;
    let format = accept::log_format(&headers)?;
    let after = match (after, headers.get(LAST_EVENT_ID)) {
        (Some(after), _) => number("after", &after)?,
        (None, Some(after)) => number("Last-Event-ID", after.to_str().unwrap_or_default())?,
        (None, None) => 0,
    };
    let extent = match follow.as_deref() {
        None | Some("true") => Extent::ToTheEnd,
        Some("false") => Extent::SoFar,
        Some(other) => return Err(refused("follow", other, "choose `true` or `false`")),
    };
    let stream = match stream.as_deref() {
        None => None,
        Some("stdout") => Some(StreamName::Stdout),
        Some("stderr") => Some(StreamName::Stderr),
        Some(other) => return Err(refused("stream", other, "choose `stdout` or `stderr`")),
    };
    let step = step.map(|step| number("step", &step)).transpose()?;
    let step = step.map(u16::try_from).transpose();
    let step =
        step.map_err(|_large| Problem::new(Code::Invalid, "`step` is not a step's index"))?;
    let job = api.store.job(id).await?.ok_or_else(|| Problem::no_job(&id.to_string()))?;
    if job.end.is_some_and(|end| after >= end.last_seq) {
        return Ok(NO_CONTENT.into_response());
    }
    let (chunks, body) = mpsc::channel(CHUNK_QUEUE);
    let wanted = Wanted { id, after, step, stream, extent, format };
    api.tracker.spawn(follow::tell(api.log_source(), wanted, chunks));
    Ok(streamed(format.media_type(), body))
}

fn number(name: &str, text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_not_a_number| refused(name, text, "give a whole number"))
}
