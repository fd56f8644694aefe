//! Every way out of the router that is not a success is a problem, whoever made it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, Request, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::Value;
use tower::ServiceExt as _;

use super::problem::Problem;
use super::*;
use crate::dispatch::SubmitError;

/// A router with a way into each kind of failure.
fn failing() -> Router {
    async fn read(headers: HeaderMap, body: Body) -> Result<Json<Value>, Problem> {
        let held = BodyRoom::new(64).read_json(&headers, body).await?;
        let (value, _) = body::parse::<Value>(&held.text)?;
        Ok(Json(value))
    }
    closed(
        Router::new()
            .route("/number/{n}", get(|Path(n): Path<u32>| async move { n.to_string() }))
            .route("/query", get(|Query(_): Query<BTreeQuery>| async {}))
            .route("/body", post(read))
            .route("/foreign", post(|Json(_): Json<u32>| async {}))
            .route("/panic", get(|| async { panic_now() }))
            .route("/full", get(|| async { Problem::from(SubmitError::Full) }))
            .route("/draining", get(|| async { Problem::from(SubmitError::Draining) })),
    )
}

#[derive(serde::Deserialize)]
struct BTreeQuery {
    #[expect(dead_code, reason = "only its type is asked for")]
    n: u32,
}

fn panic_now() {
    panic!("by a test");
}

async fn send(request: Request<Body>) -> Response<Body> {
    failing().oneshot(request).await.expect("never fails")
}

async fn get_path(path: &str) -> Response<Body> {
    send(Request::get(path).body(Body::empty()).expect("a request")).await
}

fn post_body(path: &str, media: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header(CONTENT_TYPE, media).body(body.into()).expect("a request")
}

/// The problem that a response is, checked for what every problem has.
async fn problem(response: Response<Body>, status: u16) -> Value {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let named = response.headers()["x-request-id"].to_str().expect("text").to_owned();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("read");
    let body: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(body["status"], status);
    assert_eq!(body["request_id"], named);
    for field in ["type", "title", "detail", "code"] {
        assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {body}");
    }
    let (kind, code) = (body["type"].as_str(), body["code"].as_str());
    assert!(kind.zip(code).is_some_and(|(kind, code)| kind.ends_with(code)), "{body}");
    body
}

#[tokio::test]
async fn a_path_that_is_not_there_is_a_problem() {
    assert_eq!(problem(get_path("/nowhere").await, 404).await["code"], "not-found");
}

#[tokio::test]
async fn a_method_that_is_not_there_is_a_problem_that_names_those_that_are() {
    let response = send(Request::delete("/body").body(Body::empty()).expect("a request")).await;
    assert_eq!(response.headers()[ALLOW], "POST");
    let problem = problem(response, 405).await;
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("POST")), "{problem}");
}

#[tokio::test]
async fn what_axum_rejects_is_a_problem() {
    let rejected = problem(get_path("/number/many").await, 400).await;
    assert!(rejected["detail"].as_str().is_some_and(|text| text.contains("many")), "{rejected}");
    problem(get_path("/query?n=many").await, 400).await;
    problem(send(post_body("/foreign", "application/json", "nope")).await, 400).await;
    problem(send(post_body("/foreign", "application/json", "\"x\"")).await, 422).await;
    problem(send(post_body("/foreign", "text/plain", "1")).await, 415).await;
}

#[tokio::test]
async fn a_panic_is_a_problem() {
    let problem = problem(get_path("/panic").await, 500).await;
    assert!(!problem.to_string().contains("by a test"), "the reason is for the log: {problem}");
}

#[tokio::test]
async fn want_of_room_says_when_to_come_back() {
    for (path, code) in [("/full", "queue-full"), ("/draining", "draining")] {
        let response = get_path(path).await;
        assert!(response.headers().contains_key(RETRY_AFTER));
        assert_eq!(problem(response, 503).await["code"], code);
    }
}

#[tokio::test]
async fn a_body_of_another_type_is_refused_by_name() {
    let problem_body = problem(send(post_body("/body", "text/plain", "{}")).await, 415).await;
    assert!(problem_body["detail"].as_str().is_some_and(|text| text.contains("`text/plain`")));
    let without = Request::post("/body").body(Body::from("{}")).expect("a request");
    problem(send(without).await, 415).await;
    let accepted = send(post_body("/body", "application/json; charset=utf-8", "{}")).await;
    assert_eq!(accepted.status().as_u16(), 200);
}

#[tokio::test]
async fn a_body_may_be_as_long_as_it_may_and_no_longer() {
    let text = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
    let fit = send(post_body("/body", "application/json", text(64))).await;
    assert_eq!(fit.status().as_u16(), 200);
    let long = send(post_body("/body", "application/json", text(65))).await;
    assert_eq!(problem(long, 413).await["code"], "body-too-large");
    let announced = Request::post("/body")
        .header(CONTENT_TYPE, "application/json")
        .header(CONTENT_LENGTH, "1000000")
        .body(Body::empty())
        .expect("a request");
    problem(send(announced).await, 413).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_a_problem() {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let request =
        post_body("/body", "application/json", Body::from_stream(streamed::Chunks(receiver)));
    let response = tokio::time::timeout(Duration::from_secs(3600), send(request)).await;
    problem(response.expect("ends by itself"), 408).await;
    drop(sender);
}

#[tokio::test]
async fn what_is_not_json_is_told_with_line_and_column() {
    let problem = problem(send(post_body("/body", "application/json", "{\n x")).await, 400).await;
    let detail = problem["detail"].as_str().expect("text");
    assert!(detail.contains("line 2 column 2"), "{detail}");
}

#[tokio::test]
async fn a_request_keeps_the_name_its_client_gave_it() {
    let named = |name: &str| {
        Request::get("/nowhere")
            .header("x-request-id", name)
            .body(Body::empty())
            .expect("a request")
    };
    let response = send(named("abc-1")).await;
    assert_eq!(response.headers()["x-request-id"], "abc-1");
    for unfit in ["", "with space", &"x".repeat(129)] {
        let response = send(named(unfit)).await;
        assert_ne!(response.headers()["x-request-id"], unfit);
    }
}

#[test]
fn one_mistake_is_told_in_the_detail_and_many_in_the_list() {
    let mistake = |pointer: &str| crate::request::FieldError {
        pointer: pointer.into(),
        detail: "is wrong".into(),
    };
    let one = format!("{:?}", Problem::invalid(vec![mistake("/a")]));
    assert!(one.contains("`/a`: is wrong"), "{one}");
    let two = format!("{:?}", Problem::invalid(vec![mistake("/a"), mistake("/b")]));
    assert!(two.contains("2 things"), "{two}");
}
