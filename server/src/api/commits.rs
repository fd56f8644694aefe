//! `POST /v1/jobs/{id}/commit`: what an unfinished job writes shall become an image.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::job_view::JobView;
use super::problem::{Code, Problem};
use super::query::NoParameters;
use super::{Api, body, jobs};
use crate::holds;
use crate::request::{self, CheckError, FieldError};

/// What an image is to be called that is made of a job.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct CommitRequest {
    /// Its name. An image that had it before loses it.
    #[schema(required, example = "python-with-numpy:1")]
    name: String,
}

/// Has an image made of a job's image and all that the job writes, once it has ended with the
/// verdict `success`: as if it had been made with `commit`.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/commit",
    operation_id = "commit_job",
    tag = "jobs",
    params(("id" = String, Path, description = "Name of the job")),
    request_body = CommitRequest,
    responses((status = 202, description = "There will be an image", body = JobView))
)]
pub(super) async fn create(
    State(api): State<Api>,
    Path(id): Path<String>,
    _: NoParameters,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = jobs::parse_id(&id)?;
    let held = api.bodies.read_json(&headers, body).await?;
    let (asked, unknown) = body::parse_object::<CommitRequest>(&held.text)?;
    if !unknown.is_empty() {
        return Err(CheckError::Refused(unknown).into());
    }
    let job = jobs::find(&api, id).await?;
    let images = &api.runner.images;
    let over = || {
        let detail = format!(
            "job `{id}` is over, and what it wrote is gone: say `commit` when it is made, or \
             while it runs"
        );
        Problem::new(Code::Conflict, detail)
    };
    let image = holds::find(images, &job.spec.image)?.ok_or_else(over)?;
    let name = request::commit::check(&asked.name, &image, images).map_err(|detail| {
        CheckError::Refused(vec![FieldError { pointer: "/name".into(), detail }])
    })?;
    if !api.dispatch.commit(id, name).await? {
        return Err(over());
    }
    Ok(jobs::accepted(jobs::find(&api, id).await?))
}
