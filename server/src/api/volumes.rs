//! `/v1/volumes`: directories that jobs share, and that outlive them.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use lazaret_sandbox::spec::Access;
use lazaret_sandbox::volume::{self, Error, Volume, VolumeStore};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::{CREATED, NO_CONTENT, Problem};
use super::query::NoParameters;
use super::{Api, body};
use crate::clock;
use crate::job::{JobVolume, VolumeSource};
use crate::request::{Amount, FieldError};

/// A volume.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Volume)]
pub(super) struct VolumeView {
    /// What jobs call it.
    name: String,
    /// The most that its files may take together; null if that is not bounded.
    #[schema(required)]
    size_bytes: Option<u64>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// The volumes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VolumeList {
    /// All of them, by name.
    items: Vec<VolumeView>,
}

/// A volume to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "cache"}))]
pub(super) struct NewVolume {
    /// What jobs will call it: 1 to 64 lower case letters, digits, `_`, `.` and `-`, the first a
    /// letter or digit.
    name: String,
    /// The most that its files may take together. Default: no bound. Refused where the file system
    /// of the server's data holds none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1_048_576)]
    size_bytes: Option<Amount>,
}

/// A directory that a job is shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobVolume)]
pub(super) struct JobVolumeView {
    /// The volume of this name; null for a directory of the host.
    #[schema(required)]
    name: Option<String>,
    /// The directory of the host; null for a volume.
    #[schema(required)]
    host_path: Option<String>,
    /// Where it is shown.
    path: String,
    /// Whether the job can only read it.
    read_only: bool,
}

impl From<Volume> for VolumeView {
    fn from(Volume { name, size_bytes, created_at }: Volume) -> Self {
        Self { name: name.into(), size_bytes, created_at }
    }
}

impl From<JobVolume> for JobVolumeView {
    fn from(JobVolume { source, path, access }: JobVolume) -> Self {
        let (name, host_path) = match source {
            VolumeSource::Name(name) => (Some(name.into()), None),
            VolumeSource::HostPath(path) => (None, Some(path.display().to_string())),
        };
        Self { name, host_path, path, read_only: access == Access::ReadOnly }
    }
}

/// Lists the volumes that jobs can have.
#[utoipa::path(
    get,
    path = "/v1/volumes",
    operation_id = "list_volumes",
    tag = "volumes",
    responses((status = 200, description = "All volumes", body = VolumeList))
)]
pub(super) async fn list(
    State(api): State<Api>,
    _: NoParameters,
) -> Result<Json<VolumeList>, Problem> {
    let volumes = ask(&api, VolumeStore::list).await?;
    Ok(Json(VolumeList { items: volumes.into_iter().map(Into::into).collect() }))
}

/// Makes an empty volume.
#[utoipa::path(
    post,
    path = "/v1/volumes",
    operation_id = "create_volume",
    tag = "volumes",
    request_body = NewVolume,
    responses((status = 201, description = "The volume is there", body = VolumeView))
)]
pub(super) async fn create(
    State(api): State<Api>,
    _: NoParameters,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let held = api.bodies.read_json(&headers, body).await?;
    let (NewVolume { name, size_bytes }, unknown) = body::parse_object(&held.text)?;
    if !unknown.is_empty() {
        return Err(Problem::invalid(unknown));
    }
    // What is no size at all is beyond the bounds that the store has.
    let size_bytes = size_bytes.map(|Amount(bytes)| u64::try_from(bytes).unwrap_or(0));
    let made = ask(&api, move |volumes| match volumes.create(&name, size_bytes, clock::now()) {
        Err(error @ Error::BadName(_)) => Ok(Err(wrong("/name", &error))),
        Err(error @ Error::NoBound { .. }) => Ok(Err(wrong("/size_bytes", &error))),
        made => made.map(Ok),
    });
    let volume = made.await?.map_err(|error| Problem::invalid(vec![error]))?;
    Ok((CREATED, Json(VolumeView::from(volume))).into_response())
}

/// Removes a volume and all that is in it.
#[utoipa::path(
    delete,
    path = "/v1/volumes/{name}",
    operation_id = "delete_volume",
    tag = "volumes",
    params(("name" = String, Path, description = "Name of the volume")),
    responses((status = 204, description = "The volume is gone"))
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoParameters,
) -> Result<Response, Problem> {
    ask(&api, move |volumes| volumes.remove(&name)).await?;
    Ok(NO_CONTENT.into_response())
}

fn wrong(pointer: &str, error: &Error) -> FieldError {
    FieldError { pointer: pointer.into(), detail: error.to_string() }
}

/// Asks the store, which works on files.
async fn ask<T: Send + 'static>(
    api: &Api,
    ask: impl FnOnce(&VolumeStore) -> volume::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let runner = api.runner.clone();
    let asked = tokio::task::spawn_blocking(move || ask(&runner.volumes.store)).await;
    Ok(asked.map_err(|_panicked| Problem::internal())??)
}
