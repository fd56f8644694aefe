//! `/healthz`: the process answers. `/readyz`: it takes jobs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::problem::{Code, Problem};
use super::query::NoParameters;

/// That all is well.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// Answers as long as the process does.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "get_health",
    tag = "server",
    responses((status = 200, description = "The process answers", body = Health))
)]
pub(super) async fn live(_: NoParameters) -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Answers 200 while the server takes jobs, 503 when it drains or its store or sandbox fails.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "get_readiness",
    tag = "server",
    responses((status = 200, description = "The server takes jobs", body = Health))
)]
pub(super) async fn ready(
    State(api): State<Api>,
    _: NoParameters,
) -> Result<Json<Health>, Problem> {
    if api.drain.is_cancelled() {
        return Err(Problem::new(Code::Draining, "the server is draining"));
    }
    api.store.probe().await.map_err(|error| {
        tracing::error!(%error, "the store does not answer");
        Problem::new(Code::Unavailable, "the store does not answer")
    })?;
    if api.runner.pool.is_failing() {
        // Once more: without jobs nobody else would find out that it works again.
        let runner = Arc::clone(&api.runner);
        let probe = tokio::task::spawn_blocking(move || runner.pool.probe());
        probe.await.map_err(|_panicked| Problem::internal())?.map_err(|error| {
            tracing::error!(%error, "no container can be made");
            Problem::new(Code::Unavailable, "no container can be made")
        })?;
    }
    Ok(Json(Health { status: "ok" }))
}
