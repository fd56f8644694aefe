//! `/v1/limits`: defaults and maxima of everything a request may bound.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::query::NoParameters;
use crate::config::Bound;
use crate::request::in_cpus;

/// Defaults and maxima.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LimitBounds)]
pub(super) struct LimitsPage {
    /// Per limit, named as in a request.
    limits: LimitTable,
    /// What all running jobs together may take.
    capacity: CapacityView,
    /// The largest request body.
    max_body_bytes: usize,
    /// Jobs that may wait at one time.
    queue_max: usize,
}

/// Per limit, named as in a request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitTable {
    cpu_ms: BoundView,
    wall_ms: BoundView,
    job_wall_ms: BoundView,
    memory_bytes: BoundView,
    pids: BoundView,
    cpus: CpuBoundView,
    output_bytes: BoundView,
    disk_bytes: BoundView,
    open_files: BoundView,
    io_bytes_per_s: BoundView,
}

/// What one limit may be.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Bound)]
pub(super) struct BoundView {
    /// The least that is accepted.
    min: u64,
    /// What a job gets that does not say.
    default: u64,
    /// The most that is accepted.
    max: u64,
}

/// What a number of CPUs may be.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CpuBound)]
pub(super) struct CpuBoundView {
    /// The least that is accepted.
    min: f64,
    /// What a job gets that does not say.
    default: f64,
    /// The most that is accepted.
    max: f64,
}

/// What all running jobs together may take.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Capacity)]
pub(super) struct CapacityView {
    /// CPUs.
    cpus: f64,
    /// Memory.
    memory_bytes: u64,
}

impl From<Bound> for BoundView {
    fn from(Bound { min, default, max }: Bound) -> Self {
        Self { min, default, max }
    }
}

/// Shows what limits there are.
#[utoipa::path(
    get,
    path = "/v1/limits",
    operation_id = "get_limits",
    tag = "server",
    responses((status = 200, description = "Defaults and maxima", body = LimitsPage))
)]
pub(super) async fn get(State(api): State<Api>, _: NoParameters) -> Json<LimitsPage> {
    let config = &api.config;
    let policy = &config.limits;
    let [min, default, max] =
        [policy.cpu_millis.min, policy.cpu_millis.default, policy.cpu_millis.max].map(in_cpus);
    Json(LimitsPage {
        limits: LimitTable {
            cpu_ms: policy.cpu_ms.into(),
            wall_ms: policy.wall_ms.into(),
            job_wall_ms: policy.job_wall_ms.into(),
            memory_bytes: policy.memory_bytes.into(),
            pids: policy.pids.into(),
            cpus: CpuBoundView { min, default, max },
            output_bytes: policy.output_bytes.into(),
            disk_bytes: policy.disk_bytes.into(),
            open_files: policy.open_files.into(),
            io_bytes_per_s: policy.io_bytes_per_s.into(),
        },
        capacity: CapacityView {
            cpus: in_cpus(config.capacity.cpu_millis.into()),
            memory_bytes: config.capacity.memory_bytes,
        },
        max_body_bytes: config.max_body_bytes,
        queue_max: config.queue_max,
    })
}
