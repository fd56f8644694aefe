//! HTTP: one resource a file. Starts no process, knows no SQL; what is not a success is a
//! [`problem`].

mod accept;
pub mod body;
mod commits;
mod health;
mod images;
mod job_list;
mod job_view;
mod jobs;
mod limits;
mod logs;
pub mod openapi;
mod prefer;
pub mod problem;
mod pulls;
mod query;
mod request_id;
mod streamed;
#[cfg(test)]
mod tests;
mod uploads;
mod version;
mod volumes;

use std::any::Any;
use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Router, middleware};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::Config;
use crate::dispatch::Dispatch;
use crate::logs::follow::Source;
use crate::registry::Pulls;
use crate::runner::Runner;
use crate::store::Store;
use body::BodyRoom;
pub use job_view::StepView;
use problem::Problem;
use query::NoParameters;
pub use request_id::nameless;
pub use uploads::UploadRoom;

/// What the handlers work with. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Api {
    /// What the operator decided.
    pub config: Arc<Config>,
    /// Room for request bodies.
    pub bodies: BodyRoom,
    /// The jobs.
    pub store: Store,
    /// Takes jobs in and ends them.
    pub dispatch: Dispatch,
    /// Has the images and the logs.
    pub runner: Arc<Runner>,
    /// The pulls of images.
    pub pulls: Pulls,
    /// Room for images that clients send.
    pub uploads: UploadRoom,
    /// Followers of logs and pulls.
    pub tracker: TaskTracker,
    /// Cancelled when the server takes no more jobs.
    pub drain: CancellationToken,
    /// Cancelled when the server ends.
    pub stop: CancellationToken,
}

impl Api {
    fn log_source(&self) -> Source {
        Source {
            store: self.store.clone(),
            files: self.runner.files.clone(),
            live: Arc::clone(self.dispatch.live()),
            stop: self.stop.clone(),
        }
    }
}

/// All paths, every failure a problem, every request named.
pub fn router(api: Api) -> Router {
    let (routes, document) = paths().with_state(api).split_for_parts();
    let document = openapi::complete(document).to_pretty_json().unwrap_or_default();
    let document: Arc<str> = document.into();
    let serve = move |_: NoParameters| {
        let document = Arc::clone(&document);
        async move { ([(CONTENT_TYPE, "application/json")], document.to_string()) }
    };
    closed(routes.route("/openapi.json", get(serve)))
}

/// The routes with every failure a problem. A router around the router: what axum itself answers,
/// a 405 with its `Allow`, is complete only outside of it.
fn closed(routes: Router) -> Router {
    Router::new()
        .fallback_service(routes)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(request_id::name_request))
}

/// The OpenAPI document of all paths.
#[must_use]
pub fn document() -> OpenApi {
    openapi::complete(paths().into_openapi())
}

fn paths() -> OpenApiRouter<Api> {
    let mut base = openapi::base();
    let components = base.components.get_or_insert_default();
    problem::add_schema(components);
    OpenApiRouter::with_openapi(base)
        .routes(routes!(jobs::create, job_list::list))
        .routes(routes!(jobs::get, jobs::delete))
        .routes(routes!(jobs::cancel))
        .routes(routes!(commits::create))
        .routes(routes!(logs::get))
        .routes(routes!(images::list, pulls::create))
        .routes(routes!(pulls::get))
        .routes(routes!(images::get, uploads::put, images::delete))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::delete))
        .routes(routes!(limits::get))
        .routes(routes!(version::get))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
}

#[expect(clippy::needless_pass_by_value, reason = "the layer hands the panic over by value")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    tracing::error!(panic = text.as_deref(), "a handler panicked");
    Problem::internal().into_response()
}
