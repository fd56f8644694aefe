//! `GET /v1/jobs`: jobs in pages, the newest first.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::job_view::SummaryView;
use super::problem::{Code, Problem};
use super::query::{Parameters, refused};
use crate::job::{self, JobId};
use crate::store::Filter;

/// Jobs in one page.
const DEFAULT_PAGE: u32 = 50;
const MAX_PAGE: u32 = 200;
/// Labels that a list may be narrowed by.
const MAX_LABEL_FILTERS: usize = 16;

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobPage {
    /// The jobs, the newest first.
    items: Vec<SummaryView>,
    /// What to give as `cursor` for the next page; null if this is the last.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// Lists jobs, the newest first.
#[utoipa::path(
    get,
    path = "/v1/jobs",
    operation_id = "list_jobs",
    tag = "jobs",
    params(
        ("state" = Option<job::State>, Query, description = "Only jobs in this state"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200,
            description = "Jobs in one page. Default: 50"),
        ("cursor" = Option<String>, Query, pattern = "^[A-Za-z0-9_-]{22}$",
            description = "Where the page before ended: its `next_cursor`"),
        ("label.KEY" = Option<String>, Query,
            description = "Only jobs whose label KEY has this value; may be given several times"),
    ),
    responses((status = 200, description = "A page of jobs", body = JobPage))
)]
pub(super) async fn list(
    State(api): State<Api>,
    parameters: Parameters,
) -> Result<Json<JobPage>, Problem> {
    let filter = filter(parameters)?;
    let page = filter.limit;
    // One more than asked for says whether there is another page.
    let mut found = api.store.list(&Filter { limit: page + 1, ..filter }).await?;
    let has_more = found.len() > page as usize;
    found.truncate(page as usize);
    let last = found.last().filter(|_| has_more);
    let next_cursor = last.map(|job| BASE64_URL_SAFE_NO_PAD.encode(job.id.as_bytes()));
    let items = found.into_iter().map(SummaryView::from).collect();
    Ok(Json(JobPage { items, next_cursor }))
}

fn filter(mut parameters: Parameters) -> Result<Filter, Problem> {
    let labels = parameters.take_prefixed("label.", "label.KEY");
    let [state, limit, cursor] = parameters.named(["state", "limit", "cursor"])?;
    if labels.len() > MAX_LABEL_FILTERS {
        let detail = format!("at most {MAX_LABEL_FILTERS} labels are looked for");
        return Err(Problem::new(Code::Invalid, detail));
    }
    let mut filter = Filter { limit: DEFAULT_PAGE, labels, ..Filter::default() };
    if let Some(value) = state {
        let right = "choose `queued`, `running` or `finished`";
        let state = value.parse().map_err(|_unknown| refused("state", &value, right));
        filter.state = Some(state?);
    }
    if let Some(value) = limit {
        let right = format!("choose 1 to {MAX_PAGE}");
        let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
        filter.limit = limit.ok_or_else(|| refused("limit", &value, &right))?;
    }
    if let Some(value) = cursor {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&value).unwrap_or_default();
        let before = JobId::from_bytes(&bytes);
        let right = "take one from `next_cursor`";
        filter.before = Some(before.ok_or_else(|| refused("cursor", &value, right))?);
    }
    Ok(filter)
}
