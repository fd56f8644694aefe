//! The last words to a client whose request hyper could not read: a problem, as everywhere else.

use std::io;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::HeaderValue;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, DATE};
use axum::response::Response;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::socket::Socket;
use super::{HEADER_TIMEOUT, MAX_HEADER_BYTES, MAX_HEADERS};
use crate::api::problem::{Code, Problem};
use crate::{api, clock};

/// How long a client may take to read its answer and stop sending.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that a client may still send after its answer.
const MAX_REST_BYTES: u64 = 4 << 20;
/// More than any problem has.
const MAX_PROBLEM_BYTES: usize = 64 << 10;

/// What to tell the client of a connection that ended with `error` and left `unread` in hyper's
/// buffer. `None` if it has asked for nothing, or has its answer.
pub(super) fn problem(error: &hyper::Error, socket: &Socket, unread: &[u8]) -> Option<Problem> {
    let is_answered_by_hyper = error.is_parse() && !error.is_parse_version_h2();
    let is_told = if is_answered_by_hyper {
        // Or else it went out, behind an answer that had not quite left.
        !socket.has_withheld()
    } else {
        unread.is_empty()
    };
    if is_told || !socket.is_between_requests() {
        return None;
    }
    let problem = if error.is_parse_too_large() && !unread.contains(&b'\n') {
        let detail = format!("the request line has more than {MAX_HEADER_BYTES} bytes");
        Problem::new(Code::UriTooLong, detail)
    } else if error.is_parse_too_large() {
        let bound = format!("{MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them");
        Problem::new(Code::HeadersTooLarge, format!("there are more than {bound}"))
    } else if error.is_parse() {
        Problem::new(Code::Malformed, format!("this is no request of HTTP/1.1: {error}"))
    } else if socket.is_late() {
        let detail = format!("the headers did not arrive within {} s", HEADER_TIMEOUT.as_secs());
        Problem::new(Code::RequestTimeout, detail)
    } else if error.is_incomplete_message() {
        Problem::new(Code::Malformed, "the request ended before its headers did")
    } else {
        return None;
    };
    Some(problem)
}

/// Sends the problem and ends the connection.
pub(super) async fn tell(problem: Problem, mut stream: TcpStream) -> io::Result<()> {
    let answer = encoded(api::nameless(problem)).await;
    let tell = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // A socket that is closed with bytes unread takes the answer back (TCP RST).
        tokio::io::copy(&mut stream.take(MAX_REST_BYTES), &mut tokio::io::sink()).await
    };
    tokio::time::timeout(LAST_WORDS_TIMEOUT, tell).await??;
    Ok(())
}

/// A response as bytes of HTTP/1.1.
async fn encoded(response: Response) -> Vec<u8> {
    let (mut head, body) = response.into_parts();
    let body = to_bytes(body, MAX_PROBLEM_BYTES).await.unwrap_or_default();
    head.headers.insert(CONTENT_LENGTH, body.len().into());
    head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&clock::now());
    if let Some(date) = date.ok().and_then(|date| HeaderValue::from_str(&date).ok()) {
        head.headers.insert(DATE, date);
    }
    let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}
