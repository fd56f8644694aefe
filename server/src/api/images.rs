//! `/v1/images`: what jobs can run in.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use lazaret_sandbox::image::{Image, ImageStore};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::problem::{Code, NO_CONTENT, Problem};
use super::query::NoParameters;

/// An image.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Image)]
pub(super) struct ImageView {
    /// What jobs call it.
    name: String,
    /// Identifies layers and configuration together.
    digest: String,
    /// Bytes of all files of all layers.
    size_bytes: u64,
    /// Its layers, the topmost first.
    layers: Vec<LayerView>,
    /// What its programs are for.
    #[schema(example = "linux/amd64")]
    platform: String,
    /// Variables that jobs start with.
    env: BTreeMap<String, String>,
    /// Where steps start if a job does not say.
    #[schema(required)]
    workdir: Option<String>,
    /// Who steps run as if a job does not say.
    #[schema(required)]
    user: Option<String>,
    /// What its maker meant to be run.
    command: Vec<String>,
    /// What `command` is given to.
    entrypoint: Vec<String>,
    /// Notes of its maker.
    labels: BTreeMap<String, String>,
    /// Ports that its programs listen on. Only told: a job has no network.
    #[schema(example = json!(["80/tcp"]))]
    ports: Vec<String>,
    /// When it came to this server; null for the built-in one.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    created_at: Option<Timestamp>,
}

/// A layer of an image.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Layer)]
pub(super) struct LayerView {
    /// Of its content.
    digest: String,
    /// Bytes of its files.
    size_bytes: u64,
}

/// The images.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImageList {
    /// All of them, by name.
    items: Vec<ImageView>,
}

impl From<Image> for ImageView {
    fn from(image: Image) -> Self {
        let layers = image.layers.iter().map(|layer| LayerView {
            digest: layer.digest.to_string(),
            size_bytes: layer.size_bytes,
        });
        Self {
            name: image.name.to_string(),
            digest: image.digest.to_string(),
            size_bytes: image.size_bytes,
            layers: layers.collect(),
            platform: image.platform,
            env: image.config.env.into_iter().collect(),
            workdir: image.config.workdir,
            user: image.config.user,
            labels: image.config.labels,
            ports: image.config.ports.into_iter().collect(),
            command: image.config.command,
            entrypoint: image.config.entrypoint,
            created_at: image.created_at,
        }
    }
}

/// Lists the images that jobs can run in.
#[utoipa::path(
    get,
    path = "/v1/images",
    operation_id = "list_images",
    tag = "images",
    responses((status = 200, description = "All images", body = ImageList))
)]
pub(super) async fn list(
    State(api): State<Api>,
    _: NoParameters,
) -> Result<Json<ImageList>, Problem> {
    let images = read(&api, ImageStore::list).await?;
    Ok(Json(ImageList { items: images.into_iter().map(ImageView::from).collect() }))
}

/// Shows an image.
#[utoipa::path(
    get,
    path = "/v1/images/{name}",
    operation_id = "get_image",
    tag = "images",
    params(("name" = String, Path, description = "Name of the image, `/` written as `%2F`")),
    responses((status = 200, description = "The image", body = ImageView))
)]
pub(super) async fn get(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoParameters,
) -> Result<Json<ImageView>, Problem> {
    let asked = name.clone();
    let found = read(&api, move |images| images.get(&asked)).await?;
    let missing = || Problem::new(Code::NotFound, format!("there is no image `{name}`"));
    Ok(Json(found.ok_or_else(missing)?.into()))
}

/// Removes an image, and the layers that no other is made of.
#[utoipa::path(
    delete,
    path = "/v1/images/{name}",
    operation_id = "delete_image",
    tag = "images",
    params(("name" = String, Path, description = "Name of the image, `/` written as `%2F`")),
    responses((status = 204, description = "The image is gone"))
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let removed = read(&api, move |images| images.remove(&name)).await;
    removed.map(|()| NO_CONTENT.into_response())
}

/// Asks the image store, which reads files.
async fn read<T: Send + 'static>(
    api: &Api,
    ask: impl FnOnce(&ImageStore) -> lazaret_sandbox::image::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let runner = api.runner.clone();
    let asked = tokio::task::spawn_blocking(move || ask(&runner.images)).await;
    Ok(asked.map_err(|_panicked| Problem::internal())??)
}
