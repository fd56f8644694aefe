//! Rows and what they stand for.

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::StoreError;
use crate::job::{Inputs, Job, JobEnd, JobId, JobSpec, State};

/// The columns that [`job`] reads.
macro_rules! job_columns {
    () => {
        "id, state, attempt, version, created_at, started_at, finished_at, spec, outcome"
    };
}
pub(super) use job_columns;

pub(super) fn job(row: &SqliteRow) -> Result<Job, StoreError> {
    Ok(Job {
        id: job_id(row, "id")?,
        state: state(row)?,
        attempt: row.try_get("attempt")?,
        version: row.try_get("version")?,
        created_at: timestamp(row.try_get("created_at")?)?,
        started_at: optional_timestamp(row, "started_at")?,
        finished_at: optional_timestamp(row, "finished_at")?,
        spec: spec(row)?,
        end: row.try_get::<Option<&str>, _>("outcome")?.map(from_json::<JobEnd>).transpose()?,
    })
}

pub(super) fn job_id(row: &SqliteRow, column: &'static str) -> Result<JobId, StoreError> {
    let bytes: &[u8] = row.try_get(column)?;
    JobId::from_bytes(bytes).ok_or_else(|| nonsense(format!("an id of {} bytes", bytes.len())))
}

pub(super) fn state(row: &SqliteRow) -> Result<State, StoreError> {
    row.try_get::<&str, _>("state")?.parse().map_err(nonsense)
}

pub(super) fn spec(row: &SqliteRow) -> Result<JobSpec, StoreError> {
    from_json(row.try_get("spec")?)
}

pub(super) fn optional_timestamp(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<Timestamp>, StoreError> {
    row.try_get::<Option<i64>, _>(column)?.map(timestamp).transpose()
}

pub(super) fn timestamp(microseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(microseconds).map_err(nonsense)
}

pub(super) fn spec_text(spec: &JobSpec) -> Result<String, StoreError> {
    to_json(spec)
}

pub(super) fn labels_text(spec: &JobSpec) -> Result<String, StoreError> {
    to_json(&spec.labels)
}

pub(super) fn end_text(end: &JobEnd) -> Result<String, StoreError> {
    to_json(end)
}

/// Inputs as postcard: they are bytes for the most part, and gone when the job is finished.
pub(super) fn inputs_bytes(inputs: &Inputs) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(inputs).map_err(nonsense)
}

pub(super) fn inputs(bytes: &[u8]) -> Result<Inputs, StoreError> {
    postcard::from_bytes(bytes).map_err(nonsense)
}

pub(super) fn nonsense(what: impl std::fmt::Display) -> StoreError {
    StoreError::Nonsense(what.to_string())
}

fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(nonsense)
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(nonsense)
}
