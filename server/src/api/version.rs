//! `/v1/version`: what is running here.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use super::query::NoParameters;

/// What is running here.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Version)]
pub(super) struct VersionView {
    /// Version of the server.
    version: &'static str,
    /// What this server can do beyond running commands.
    features: Vec<&'static str>,
    /// What keeps jobs apart.
    isolation: Vec<&'static str>,
}

/// Shows what is running here.
#[utoipa::path(
    get,
    path = "/v1/version",
    operation_id = "get_version",
    tag = "server",
    responses((status = 200, description = "Version, features, isolation", body = VersionView))
)]
pub(super) async fn get(_: NoParameters) -> Json<VersionView> {
    Json(VersionView {
        version: env!("CARGO_PKG_VERSION"),
        features: vec!["steps", "idempotency-keys"],
        isolation: vec!["namespaces", "cgroups", "seccomp", "overlay"],
    })
}
