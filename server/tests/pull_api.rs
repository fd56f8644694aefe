//! Pulls over HTTP: made, joined, followed, and the problems of those that fail.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

mod registry;
mod served;

use std::time::Instant;

use registry::images;
use registry::{Door, Fault, Registry, blob_path, manifest_path};
use serde_json::{Value, json};
use served::{Answer, Server};
use tempfile::TempDir;

/// A server with a data directory that goes with it.
fn served() -> (Server, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    (Server::start(&directory.path().join("data")), directory)
}

fn wanted(registry: &Registry) -> Value {
    json!({ "pull": registry.reference("test/image"), "as": "pulled:1", "plain_http": true })
}

/// What an answer of 202 says of the pull, and where it is.
fn accepted(answer: &Answer) -> (Value, String) {
    assert_eq!(answer.status, 202, "{}", answer.body);
    let location = answer.header("location").expect("a place").to_owned();
    (answer.json(), location)
}

fn wait_until_stalled(registry: &Registry) {
    let start = Instant::now();
    while registry.stalled() == 0 {
        assert!(start.elapsed().as_secs() < 30, "nothing is asked for");
        std::thread::yield_now();
    }
}

#[test]
fn a_pulled_image_is_what_jobs_run_in() {
    let (registry, (server, _directory), made) =
        (Registry::start(), served(), images::named("pulled"));
    registry.put("latest", &made);
    let answer = server.post("/v1/images?wait=30", &wanted(&registry));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let pull = answer.json();
    assert_eq!((&pull["state"], &pull["image"]["name"]), (&json!("finished"), &json!("pulled:1")));
    assert_eq!(pull["image"]["digest"], made.manifest.digest);
    let job = server.run(&json!({ "image": "pulled:1", "command": ["/bin/cat", "/name"] }));
    assert_eq!(job["steps"][0]["stdout"], "pulled");
    let again = server.post("/v1/images?wait=30", &wanted(&registry)).json();
    assert!(again["layers"].as_array().expect("layers").iter().all(|one| one["state"] == "exists"));
    assert_ne!(again["id"], pull["id"]);
}

#[test]
fn a_pull_that_runs_is_joined_and_ends_with_the_server() {
    let (registry, (server, directory), made) =
        (Registry::start(), served(), images::named("pulled"));
    registry.put("latest", &made);
    registry.fail(&blob_path(&made.layers[0]), &[Fault::StallAt(100_000)]);
    let (first, location) = accepted(&server.post("/v1/images", &wanted(&registry)));
    wait_until_stalled(&registry);
    let (second, _) = accepted(&server.post("/v1/images", &wanted(&registry)));
    assert_eq!(first["id"], second["id"]);
    let pull = server.get(&location).json();
    assert_eq!((&pull["state"], &pull["image"]), (&json!("running"), &Value::Null));
    assert_eq!(pull["layers"][0]["state"], "downloading");
    assert_eq!(registry.asked(&manifest_path("latest")).len(), 1);
    server.signal("TERM");
    assert!(server.ended().success());
    let layers = std::fs::read_dir(directory.path().join("data/images/layers")).expect("layers");
    let mut names = layers.map(|entry| entry.expect("an entry").file_name());
    assert!(!names.any(|name| name.to_string_lossy().starts_with("new-")));
}

#[test]
fn who_follows_a_pull_hears_of_it_to_its_end() {
    let (registry, (server, _directory), made) =
        (Registry::start(), served(), images::named("pulled"));
    registry.put("latest", &made);
    registry.fail(&blob_path(&made.layers[0]), &[Fault::CutAt(1000)]);
    let (_, location) = accepted(&server.post("/v1/images", &wanted(&registry)));
    let told = server.call("GET", &location, &[("Accept", "text/event-stream")], "");
    assert_eq!(told.header("content-type"), Some("text/event-stream"));
    let events: Vec<&str> = told.body.trim_end().split("\n\n").collect();
    let (last, others) = events.split_last().expect("an end");
    assert!(!others.is_empty());
    assert!(others.iter().all(|event| event.starts_with("event: progress")), "{}", told.body);
    let text = last.strip_prefix("event: end\ndata: ").expect("an end");
    let pull: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(pull["state"], "finished");
    assert!(pull["retry"].as_str().expect("a reason").contains("cut off after 1000 of"));
}

#[test]
fn what_a_registry_refuses_is_a_problem_of_its_own() {
    let (server, _directory) = served();
    let pulled = |body: &Value| server.post("/v1/images?wait=30", body);
    for (status, expected, code) in
        [(404, 422, "image-not-found"), (403, 422, "image-denied"), (429, 503, "registry-busy")]
    {
        let registry = Registry::start();
        let fault = Fault::Answer(status, "retry-after: 120\r\n");
        registry.fail(&manifest_path("latest"), &[fault]);
        let answer = pulled(&wanted(&registry));
        let problem = answer.json();
        assert_eq!((answer.status, &problem["code"]), (expected, &json!(code)), "{problem}");
        let image = registry.reference("test/image");
        assert!(status == 429 || problem["detail"].as_str().expect("text").contains(&image));
        assert_eq!(answer.header("retry-after"), (status == 429).then_some("120"));
    }
    let registry = Registry::start_behind(Door::Password("x"));
    assert_eq!(pulled(&wanted(&registry)).json()["code"], "image-denied");
    let answer = pulled(&json!({ "pull": "127.0.0.1:1/test/image", "plain_http": true }));
    assert_eq!((answer.status, &answer.json()["code"]), (502, &json!("registry-unreachable")));
    let (registry, made) = (Registry::start(), images::image(&[&[("../../escaped", b"x")]]));
    registry.put("latest", &made);
    let answer = pulled(&wanted(&registry));
    assert_eq!((answer.status, &answer.json()["code"]), (422, &json!("bad-image")));
}

#[test]
fn a_failed_pull_keeps_its_problem() {
    let (registry, (server, _directory)) = (Registry::start(), served());
    registry.fail(&manifest_path("latest"), &[Fault::StallAt(0)]);
    registry.put("latest", &images::named("pulled"));
    let (_, location) = accepted(&server.post("/v1/images", &wanted(&registry)));
    wait_until_stalled(&registry);
    assert_eq!(server.get(&location).json()["problem"], Value::Null);
    let registry = Registry::start();
    let (_, location) = accepted(&server.post("/v1/images", &wanted(&registry)));
    let pull = server.get(&format!("{location}?wait=30")).json();
    assert_eq!((&pull["state"], &pull["problem"]["status"]), (&json!("failed"), &json!(422)));
}

#[test]
fn what_cannot_be_pulled_is_refused_at_once() {
    let (server, _directory) = served();
    for (body, words) in [
        (json!({ "pull": "not a reference" }), "names no image"),
        (json!({ "pull": "example.org/a", "plain_http": true }), "not on this host"),
        (json!({ "pull": "a", "as": "host" }), "built-in"),
        (json!({ "pull": "a", "as": "../b" }), "cannot be the name"),
        (json!({ "pull": "a", "platform": "linux" }), "no platform"),
        (json!({ "pull": "a", "password": "b" }), "no field `password`"),
        (json!({ "as": "a" }), "missing field `pull`"),
    ] {
        let answer = server.post("/v1/images", &body);
        assert_eq!(answer.status, 422, "{}", answer.body);
        assert!(answer.body.contains(words), "{words}: {}", answer.body);
    }
    assert_eq!(server.get("/v1/images/pulls/none").status, 404);
}

#[test]
fn an_image_that_the_disk_has_no_room_for_leaves_all_of_it() {
    let (registry, directory) = (Registry::start(), tempfile::tempdir().expect("a directory"));
    let server = Server::start_on_small_disk(&directory.path().join("data"), 16);
    registry.put("latest", &images::image(&[&[("large", &images::noise(24 << 20))]]));
    let answer = server.post("/v1/images?wait=30", &wanted(&registry));
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("the disk is full"), "{}", answer.body);
    registry.put("latest", &images::named("pulled"));
    let answer = server.post("/v1/images?wait=30", &wanted(&registry));
    assert_eq!(answer.status, 200, "{}", answer.body);
}
