//! What a connection answers to what is no request, and how long it waits for one.

use axum::routing::get;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::*;

/// What hyper itself answers to what it cannot read: a program may write this, too.
const BARE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const WHOLE: &[u8] = b"GET /fine HTTP/1.1\r\nHost: test\r\n\r\n";

/// A connection to a listener that ends with the runtime of the test.
async fn connect() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let router = Router::new()
        .route("/fine", get(|| async { "fine" }))
        .route("/bare", get(|| async { BARE }));
    let tracker = TaskTracker::new();
    let connections = tracker.clone();
    tracker.spawn(async move {
        serve(listener, router, 4, &connections, &CancellationToken::new()).await;
    });
    TcpStream::connect(address).await.expect("connected")
}

/// All that is answered until the connection ends.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    String::from_utf8(answer).expect("text")
}

/// All that is answered to this until the connection ends.
async fn answer(sent: &[u8]) -> String {
    let mut stream = connect().await;
    stream.write_all(sent).await.expect("sent");
    rest(&mut stream).await
}

/// Reads an answer of the path `/fine`.
async fn read_fine(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"fine") {
        assert_ne!(stream.read_buf(&mut answer).await.expect("read"), 0, "ended early");
    }
}

/// Checks that an answer is a problem with all its fields, and nothing besides.
fn is_problem(answer: &str, status: u16, code: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no `{name}` in {answer}"))
    };
    assert_eq!(header("content-type"), "application/problem+json");
    assert_eq!(header("connection"), "close");
    assert_eq!(header("content-length"), body.len().to_string());
    assert!(header("date").ends_with(" GMT"), "{answer}");
    let problem: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(problem["request_id"], header("x-request-id"));
    assert_eq!((&problem["status"], &problem["code"]), (&status.into(), &code.into()));
    for field in ["type", "title", "detail"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    problem
}

#[tokio::test]
async fn what_is_no_request_is_a_problem() {
    for sent in [
        "\u{1}\u{2}\r\n\r\n",
        "GET /fine HTTP/9.9\r\n\r\n",
        "GET /fine HTTP/1.1\r\nno header\r\n\r\n",
        "GET /fi ne HTTP/1.1\r\n\r\n",
        "POST /fine HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        "POST /fine HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = answer(sent.as_bytes()).await;
        assert!(!answer.is_empty(), "{sent:?}");
        is_problem(&answer, 400, "malformed");
    }
}

#[tokio::test]
async fn a_request_that_ends_early_is_a_problem() {
    let mut stream = connect().await;
    stream.write_all(b"GET /fine HT").await.expect("sent");
    stream.shutdown().await.expect("closed");
    is_problem(&rest(&mut stream).await, 400, "malformed");
}

#[tokio::test]
async fn a_path_that_is_too_long_is_a_problem() {
    let sent = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    is_problem(&answer(sent.as_bytes()).await, 414, "uri-too-long");
}

#[tokio::test]
async fn headers_that_are_too_large_or_too_many_are_a_problem() {
    let large = format!("GET /fine HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /fine HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000));
    for sent in [large, many] {
        is_problem(&answer(sent.as_bytes()).await, 431, "headers-too-large");
    }
}

#[tokio::test]
async fn what_follows_a_request_is_told_apart_from_its_answer() {
    for pause in [false, true] {
        let mut stream = connect().await;
        stream.write_all(WHOLE).await.expect("sent");
        if pause {
            read_fine(&mut stream).await;
        }
        stream.write_all(b"nonsense\r\n\r\n").await.expect("sent");
        let answers = rest(&mut stream).await;
        let second = if pause { 0 } else { answers.find("fine").expect("the first") + 4 };
        is_problem(&answers[second..], 400, "malformed");
    }
}

#[tokio::test]
async fn an_answer_that_looks_like_one_of_hyper_stays_as_it_is() {
    let answers = answer(b"GET /bare HTTP/1.0\r\n\r\n").await;
    assert!(answers.starts_with("HTTP/1.0 200 OK") && answers.ends_with(BARE), "{answers}");
}

#[tokio::test(start_paused = true)]
async fn headers_that_do_not_arrive_in_time_are_a_problem() {
    for before in [b"".as_slice(), WHOLE] {
        let mut stream = connect().await;
        if !before.is_empty() {
            stream.write_all(before).await.expect("sent");
            read_fine(&mut stream).await;
        }
        stream.write_all(b"GET /fine HTTP/1.1\r\n").await.expect("sent");
        let start = Instant::now();
        is_problem(&rest(&mut stream).await, 408, "request-timeout");
        assert!(start.elapsed() <= HEADER_TIMEOUT + Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_told_nothing() {
    let mut stream = connect().await;
    let start = Instant::now();
    assert_eq!(rest(&mut stream).await, "");
    assert!(start.elapsed() <= HEADER_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn between_two_requests_a_connection_may_rest_for_longer() {
    let mut stream = connect().await;
    for _ in 0..3 {
        stream.write_all(WHOLE).await.expect("sent");
        read_fine(&mut stream).await;
        tokio::time::sleep(IDLE_TIMEOUT - Duration::from_secs(1)).await;
    }
    let start = Instant::now();
    assert_eq!(rest(&mut stream).await, "");
    assert!(start.elapsed() <= Duration::from_secs(2));
}
