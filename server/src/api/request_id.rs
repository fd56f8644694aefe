//! Names every request, and writes the name into every problem.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;
use uuid::Uuid;

use super::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest reason that is taken over from a response that was not made by us.
const MAX_REASON_BYTES: usize = 4096;
/// The longest name that a client may give.
const MAX_LENGTH: usize = 128;

/// The outermost layer: echoes the client's `X-Request-Id` or makes one, and turns everything that
/// is not a success into a problem, whoever made it.
pub(super) async fn name_request(request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(new_id);
    // What is logged on the way carries the same name as the problem that the client gets.
    let span = tracing::info_span!("request", request_id = %id);
    let mut response = next.run(request).instrument(span).await;
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => Some(problem),
        None => match Problem::of_foreign(&response) {
            Some(problem) => Some(problem.explained(&body_text(&mut response).await)),
            None => None,
        },
    };
    if let Some(problem) = problem {
        response = problem.into_named_response(&id);
    }
    echo(&id, response)
}

/// The problem of a request that could not be read, and so has no name of its own.
#[must_use]
pub fn nameless(problem: Problem) -> Response {
    let id = new_id();
    let response = problem.into_named_response(&id);
    echo(&id, response)
}

fn echo(id: &str, mut response: Response) -> Response {
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// What a response says that was not made by us: axum's rejections are a line of text.
async fn body_text(response: &mut Response) -> String {
    let body = std::mem::take(response.body_mut());
    let bytes = axum::body::to_bytes(body, MAX_REASON_BYTES).await.unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(&REQUEST_ID)?.to_str().ok()?;
    let is_fit =
        !id.is_empty() && id.len() <= MAX_LENGTH && id.bytes().all(|b| b.is_ascii_graphic());
    is_fit.then(|| id.to_owned())
}
