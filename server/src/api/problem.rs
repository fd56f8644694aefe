//! Every answer that is not a success: RFC 9457 `application/problem+json`. The only place with
//! status codes.

mod causes;

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::Components;
use utoipa::{PartialSchema as _, ToSchema};

use crate::request::FieldError;

/// Where the meaning of each code is written down; the code is put after it.
const TYPE_BASE: &str = "https://lazaret.dev/problems/";
/// What a client that was turned away for want of room should wait, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// What went wrong, as a word that never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request is not HTTP, its body is not JSON, or a parameter cannot be read.
    Malformed,
    /// There is nothing at this path.
    NotFound,
    /// The path is there, the method is not.
    MethodNotAllowed,
    /// There is nothing here in a form that the client takes.
    NotAcceptable,
    /// The request did not arrive in time.
    RequestTimeout,
    /// The job or image is not in a state in which this can be done.
    Conflict,
    /// The body is larger than it may be.
    BodyTooLarge,
    /// The path and query are longer than they may be.
    UriTooLong,
    /// The headers are larger, or more, than they may be.
    HeadersTooLarge,
    /// The body is not JSON by its own word.
    UnsupportedMediaType,
    /// The request was understood, and is not acceptable.
    Invalid,
    /// The idempotency key was used for another request.
    IdempotencyKeyReused,
    /// What should be an image is none, or one that cannot be used here.
    BadImage,
    /// We failed.
    Internal,
    /// As many jobs wait as may.
    QueueFull,
    /// The server is stopping.
    Draining,
    /// The server cannot do its work now.
    Unavailable,
    /// A registry has no such image.
    ImageNotFound,
    /// A registry does not give the image to this server.
    ImageDenied,
    /// A registry wants to be asked less.
    RegistryBusy,
    /// A registry does not answer.
    RegistryUnreachable,
}

impl Code {
    const fn slug(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::NotAcceptable => "not-acceptable",
            Self::RequestTimeout => "request-timeout",
            Self::Conflict => "conflict",
            Self::BodyTooLarge => "body-too-large",
            Self::UriTooLong => "uri-too-long",
            Self::HeadersTooLarge => "headers-too-large",
            Self::UnsupportedMediaType => "unsupported-media-type",
            Self::Invalid => "invalid",
            Self::IdempotencyKeyReused => "idempotency-key-reused",
            Self::BadImage => "bad-image",
            Self::Internal => "internal",
            Self::QueueFull => "queue-full",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
            Self::ImageNotFound => "image-not-found",
            Self::ImageDenied => "image-denied",
            Self::RegistryBusy => "registry-busy",
            Self::RegistryUnreachable => "registry-unreachable",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Malformed => "The request cannot be read",
            Self::NotFound => "There is no such thing",
            Self::MethodNotAllowed => "This cannot be done here",
            Self::NotAcceptable => "There is no such form of this",
            Self::RequestTimeout => "The request took too long to arrive",
            Self::Conflict => "This cannot be done in the state that it is in",
            Self::BodyTooLarge => "The body is too large",
            Self::UriTooLong => "The path is too long",
            Self::HeadersTooLarge => "The headers are too large",
            Self::UnsupportedMediaType => "The body has the wrong media type",
            Self::Invalid => "The request is not acceptable",
            Self::IdempotencyKeyReused => "The idempotency key was used for another request",
            Self::BadImage => "This is no image that can be used",
            Self::Internal => "The server failed",
            Self::QueueFull => "The queue is full",
            Self::Draining => "The server is stopping",
            Self::Unavailable => "The server cannot do this now",
            Self::ImageNotFound => "The registry has no such image",
            Self::ImageDenied => "The registry does not give the image",
            Self::RegistryBusy => "The registry is asked too often",
            Self::RegistryUnreachable => "The registry cannot be reached",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid
            | Self::IdempotencyKeyReused
            | Self::BadImage
            | Self::ImageNotFound
            | Self::ImageDenied => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::RegistryUnreachable => StatusCode::BAD_GATEWAY,
            Self::QueueFull | Self::Draining | Self::Unavailable | Self::RegistryBusy => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

/// An answer that is not a success.
#[derive(Debug, Clone)]
pub struct Problem {
    code: Code,
    detail: String,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A problem as it is sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// A stable URI that names the kind of problem.
    #[serde(rename = "type")]
    type_uri: String,
    /// The kind in words.
    title: String,
    /// The status code once more.
    status: u16,
    /// What was wrong this time.
    detail: String,
    /// The kind as a word for programs.
    code: String,
    /// The request, as the server's log names it.
    request_id: String,
    /// What is wrong with the body, each thing by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<FieldError>,
}

impl Problem {
    /// A problem of this kind.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), headers: Vec::new() }
    }

    /// A body that was understood and is not acceptable, with all that is wrong with it.
    #[must_use]
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.pointer.is_empty() => one.detail.clone(),
            [one] => format!("`{}`: {}", one.pointer, one.detail),
            several => format!("{} things are wrong with the body: see `errors`", several.len()),
        };
        Self { errors, ..Self::new(Code::Invalid, detail) }
    }

    /// There is no job of this name.
    #[must_use]
    pub fn no_job(id: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no job `{id}`"))
    }

    /// We failed; the log knows why.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(Code::Internal, "the server failed; its log has the reason")
    }

    /// The same problem, which will be none after a while.
    pub(super) fn with_retry_after(self) -> Self {
        self.retry_after(RETRY_AFTER_S)
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.headers.push((RETRY_AFTER, seconds.into()));
        self
    }

    /// The problem as it is sent to who made this request.
    pub(super) fn body(self, request_id: &str) -> ProblemBody {
        ProblemBody {
            type_uri: format!("{TYPE_BASE}{}", self.code.slug()),
            title: self.code.title().into(),
            status: self.code.status().as_u16(),
            detail: self.detail,
            code: self.code.slug().into(),
            request_id: request_id.into(),
            errors: self.errors,
        }
    }

    /// The problem as a response, once the request's name is known.
    #[must_use]
    pub fn into_named_response(mut self, request_id: &str) -> Response {
        let (status, headers) = (self.code.status(), std::mem::take(&mut self.headers));
        let body = serde_json::to_vec(&self.body(request_id)).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response.headers_mut().extend(headers);
        response
    }

    /// What a response stands for that was not made by us: a rejection of axum's, its 404 or 405,
    /// a time-out. `None` for a success.
    #[must_use]
    pub fn of_foreign(response: &Response) -> Option<Self> {
        let code = match response.status() {
            status if !status.is_client_error() && !status.is_server_error() => return None,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Code::RequestTimeout,
            StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::UnsupportedMediaType,
            StatusCode::UNPROCESSABLE_ENTITY => Code::Invalid,
            status if status.is_client_error() => Code::Malformed,
            _ => Code::Internal,
        };
        let detail = if code == Code::NotFound {
            "nothing is served at this path".to_owned()
        } else {
            code.title().to_lowercase()
        };
        let mut problem = Self::new(code, detail);
        if let Some(methods) = response.headers().get(ALLOW) {
            let list = methods.to_str().unwrap_or_default().to_owned();
            problem.detail = format!("this path takes {list}");
            problem.headers.push((ALLOW, methods.clone()));
        }
        Some(problem)
    }

    /// The same problem with the reason that its maker gave, if it is the client's to know.
    #[must_use]
    pub fn explained(mut self, reason: &str) -> Self {
        if self.code.status().is_client_error() && !reason.trim().is_empty() {
            reason.trim().clone_into(&mut self.detail);
        }
        self
    }
}

impl IntoResponse for Problem {
    /// The problem without a body: the layer that names requests writes it.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The status of a job that was taken in, or is being cancelled, and has not finished.
pub const ACCEPTED: StatusCode = StatusCode::ACCEPTED;
/// The status of what was not there before.
pub const CREATED: StatusCode = StatusCode::CREATED;
/// The status of what is the same as the client has it.
pub const NOT_MODIFIED: StatusCode = StatusCode::NOT_MODIFIED;
/// The status of an answer that has nothing to show.
pub const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;

/// Adds the schema of problems to the document: no handler names it, every operation refers to it.
pub(super) fn add_schema(components: &mut Components) {
    let mut schemas = vec![(ProblemBody::name().into_owned(), ProblemBody::schema())];
    ProblemBody::schemas(&mut schemas);
    components.schemas.extend(schemas);
}
