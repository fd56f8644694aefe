//! The API over a real server with real containers.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

mod served;

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};
use served::{Server, wait_until};

fn server() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"));
    (dir, server)
}

#[test]
fn a_job_runs_and_tells_how_it_ended() {
    let (_dir, server) = server();
    let job = server.run(&json!({"script": "cat; echo oh >&2; exit 3", "stdin": "in\n"}));
    assert_eq!((&job["state"], &job["verdict"]), (&json!("finished"), &json!("failure")));
    let step = &job["steps"][0];
    assert_eq!((&step["exit_code"], &step["name"]), (&json!(3), &json!("run")));
    assert_eq!((&step["stdout"], &step["stderr"]), (&json!("in\n"), &json!("oh\n")));
    assert!(step["usage"]["wall_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{job}");
    assert_eq!(job["attempt"], 1);
}

#[test]
fn files_land_in_the_working_directory_and_are_the_users() {
    let (_dir, server) = server();
    let job = server.run(&json!({
        "files": {
            "a/b.txt": "text",
            "run": {"base64": "IyEvYmluL3NoCmVjaG8gcmFuCg==", "mode": "0755"},
        },
        "script": "cat a/b.txt; ./run; echo new > a/c; pwd; id -u",
        "user": "1234",
        "workdir": "/somewhere/else",
    }));
    assert_eq!(job["steps"][0]["stdout"], "textran\n/somewhere/else\n1234\n", "{job}");
}

#[test]
fn steps_share_files_and_depend_on_each_other() {
    let (_dir, server) = server();
    let job = server.run(&json!({"steps": [
        {"name": "write", "script": "echo made > f"},
        {"name": "fail", "script": "cat f; exit 7", "allow_failure": true},
        {"name": "fall", "command": ["false"]},
        {"name": "skip", "command": ["true"]},
        {"name": "mend", "script": "echo $A", "when": "failure", "env": {"A": "b"}},
    ]}));
    let verdicts: Vec<&Value> =
        job["steps"].as_array().expect("steps").iter().map(|step| &step["verdict"]).collect();
    assert_eq!(verdicts, ["success", "failure", "failure", "skipped", "success"], "{job}");
    assert_eq!(job["verdict"], "failure");
    assert_eq!(job["steps"][1]["stdout"], "made\n");
    assert_eq!(job["steps"][4]["stdout"], "b\n");
}

#[test]
fn a_job_is_accepted_looked_at_listed_and_forgotten() {
    let (_dir, server) = server();
    let made = server.post("/v1/jobs", &json!({"command": ["true"], "labels": {"kind": "x"}}));
    assert_eq!(made.status, 202);
    let path = made.header("location").expect("a location").to_owned();
    let id = made.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(path, format!("/v1/jobs/{id}"));
    server.wait_for(&id, "finished");
    let list = server.get("/v1/jobs?label.kind=x&state=finished").json();
    assert_eq!(list["items"][0]["id"], json!(id));
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(server.get("/v1/jobs?label.kind=y").json()["items"], json!([]));
    assert_eq!(server.call("POST", &format!("{path}/cancel"), &[], "").status, 200);
    assert_eq!(server.call("DELETE", &path, &[], "").status, 204);
    assert_eq!(server.get(&path).status, 404);
    assert_eq!(server.get(&format!("{path}/logs")).status, 404);
    assert_eq!(server.call("DELETE", &path, &[], "").status, 404);
}

#[test]
fn a_list_goes_on_where_its_page_ended() {
    let (_dir, server) = server();
    let ids: Vec<String> = (0..5).map(|_| server.submit(&json!({"command": ["true"]}))).collect();
    let (mut listed, mut query) = (Vec::new(), "limit=2".to_owned());
    loop {
        let page = server.get(&format!("/v1/jobs?{query}")).json();
        let items = page["items"].as_array().expect("items");
        listed.extend(items.iter().map(|job| job["id"].as_str().expect("an id").to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=2&cursor={cursor}");
    }
    assert!(listed.iter().eq(ids.iter().rev()), "{listed:?} and {ids:?}");
    for query in ["limit=0", "limit=201", "cursor=x", "state=done", "nonsense=1"] {
        assert_eq!(server.get(&format!("/v1/jobs?{query}")).status, 422, "{query}");
    }
}

#[test]
fn a_running_job_is_cancelled_and_cannot_be_forgotten_before() {
    let (_dir, server) = server();
    let id = server.submit(&json!({"command": ["sleep", "60"]}));
    server.wait_for(&id, "running");
    assert_eq!(server.call("DELETE", &format!("/v1/jobs/{id}"), &[], "").status, 409);
    assert_eq!(server.call("POST", &format!("/v1/jobs/{id}/cancel"), &[], "").status, 202);
    assert_eq!(server.wait_for(&id, "finished")["verdict"], "cancelled");
}

#[test]
fn a_queued_job_is_cancelled_without_a_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(&dir.path().join("data"), "capacity.cpus = 1.0");
    let busy = server.submit(&json!({"command": ["sleep", "60"]}));
    let waiting = server.submit(&json!({"command": ["true"]}));
    assert_eq!(server.get(&format!("/v1/jobs/{waiting}")).json()["state"], "queued");
    let cancelled = server.call("POST", &format!("/v1/jobs/{waiting}/cancel"), &[], "");
    assert_eq!(cancelled.status, 202);
    let job = server.wait_for(&waiting, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("cancelled"), &json!(0)));
    assert_eq!(job["started_at"], Value::Null);
    let log = server.call(
        "GET",
        &format!("/v1/jobs/{waiting}/logs"),
        &[("Accept", "application/jsonl")],
        "",
    );
    assert!(log.body.contains("\"end\"") && log.body.contains("cancelled"), "{}", log.body);
    server.call("POST", &format!("/v1/jobs/{busy}/cancel"), &[], "");
    server.wait_for(&busy, "finished");
}

#[test]
fn a_full_queue_refuses_until_there_is_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = "queue_max = 1\ncapacity.cpus = 1.0";
    let server = Server::start_with(&dir.path().join("data"), config);
    let send_with_key = || {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "k")];
        let body = json!({"command": ["true"]}).to_string();
        server.call("POST", "/v1/jobs?wait=30", &headers, &body)
    };
    let known = send_with_key().json()["id"].clone();
    let busy = server.submit(&json!({"command": ["sleep", "60"]}));
    let waiting = server.submit(&json!({"command": ["true"]}));
    let refused = server.post("/v1/jobs", &json!({"command": ["true"]}));
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    let replayed = send_with_key();
    assert_eq!((replayed.status, &replayed.json()["id"]), (200, &known), "needs no room");
    server.call("POST", &format!("/v1/jobs/{busy}/cancel"), &[], "");
    server.wait_for(&waiting, "finished");
    server.submit(&json!({"command": ["true"]}));
}

#[test]
fn a_client_may_wait_for_the_end_or_for_a_change() {
    let (_dir, server) = server();
    let sleeping = json!({"command": ["sleep", "60"]});
    let preferred = server.call(
        "POST",
        "/v1/jobs",
        &[("Content-Type", "application/json"), ("Prefer", "wait=0")],
        &sleeping.to_string(),
    );
    assert_eq!((preferred.status, preferred.header("preference-applied")), (202, Some("wait=0")));
    let id = preferred.json()["id"].as_str().expect("an id").to_owned();
    let path = format!("/v1/jobs/{id}");
    let tag = server.get(&path).header("etag").expect("a tag").to_owned();
    let known = ("If-None-Match", tag.as_str());
    assert_eq!(server.call("GET", &path, &[known], "").status, 304);
    let waiting = server.open("GET", &path, &[known, ("Prefer", "wait=30")], "");
    server.call("POST", &format!("{path}/cancel"), &[], "");
    let mut status = String::new();
    BufReader::new(waiting).read_line(&mut status).expect("read");
    assert!(status.contains("200"), "{status}");
    assert_eq!(server.post("/v1/jobs?wait=61", &sleeping).status, 422);
    server.wait_for(&id, "finished");
}

#[test]
fn a_repeated_request_makes_no_second_job() {
    let (_dir, server) = server();
    let send = |key: &str, body: &Value| {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
        server.call("POST", "/v1/jobs?wait=30", &headers, &body.to_string())
    };
    let body = json!({"command": ["true"]});
    let first = send("\"k1\"", &body);
    let again = send("k1", &body);
    assert_eq!(first.json()["id"], again.json()["id"]);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(send("k1", &json!({"command": ["false"]})).status, 422);
    assert_ne!(send("k2", &body).json()["id"], first.json()["id"]);
}

#[test]
fn requests_that_race_with_one_key_make_one_job() {
    let (dir, server) = server();
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "raced")];
    let body = json!({"script": "echo once"}).to_string();
    let send = || server.call("POST", "/v1/jobs?wait=30", &headers, &body).json();
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let sent: Vec<_> = (0..8).map(|_| scope.spawn(send)).collect();
        sent.into_iter().map(|sent| sent.join().expect("an answer")).collect()
    });
    for answer in &answers {
        assert_eq!(answer["verdict"], "success", "{answer}");
        assert_eq!(answer["id"], answers[0]["id"]);
    }
    assert_eq!(server.get("/v1/jobs").json()["items"].as_array().map(Vec::len), Some(1));
    // Of those that started before they were found to be the same job, nothing is left.
    let spools = || std::fs::read_dir(dir.path().join("data/spool")).expect("spools").count();
    wait_until("no spool is left", || spools() == 0);
}

/// The next event of a stream that has a place in the log; empty at its end. Which states were told
/// depends on when one asks.
fn next_event(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Vec<String> {
    let mut event: Vec<String> = Vec::new();
    for line in lines.map(|line| line.expect("read")) {
        if !line.is_empty() {
            event.push(line);
        } else if event.iter().any(|line| line.starts_with("id: ")) {
            return event;
        } else {
            event.clear();
        }
    }
    Vec::new()
}

/// The events of a stream from here to its end.
fn events(mut lines: impl Iterator<Item = std::io::Result<String>>) -> Vec<Vec<String>> {
    std::iter::from_fn(|| Some(next_event(&mut lines)).filter(|event| !event.is_empty())).collect()
}

/// Past the head of an answer.
fn body_lines(stream: std::net::TcpStream) -> std::io::Lines<BufReader<std::net::TcpStream>> {
    let mut lines = BufReader::new(stream).lines();
    assert!(lines.by_ref().any(|line| line.expect("read").is_empty()), "a head");
    lines
}

#[test]
fn a_line_arrives_while_its_job_goes_on() {
    let (_dir, server) = server();
    let id = server.submit(&json!({"script": "echo one; sleep 60"}));
    let path = format!("/v1/jobs/{id}");
    let mut lines = BufReader::new(server.open("GET", &format!("{path}/logs"), &[], "")).lines();
    assert!(lines.by_ref().any(|line| line.expect("read") == "one"));
    assert_eq!(server.get(&path).json()["state"], "running");
    server.call("POST", &format!("{path}/cancel"), &[], "");
    assert_eq!(lines.count(), 0, "the stream ends with the job");
    assert_eq!(server.get(&path).json()["verdict"], "cancelled");
}

#[test]
fn output_streams_in_order_and_a_cut_connection_goes_on() {
    let (_dir, server) = server();
    let id = server.submit(&json!({"script": "for i in 1 2 3; do echo $i; sleep 1; done"}));
    let path = format!("/v1/jobs/{id}/logs");
    let accept = ("Accept", "text/event-stream");
    let mut lines = body_lines(server.open("GET", &path, &[accept], ""));
    let mut seen = Vec::new();
    for n in [1, 2] {
        let text = format!("\"text\":\"{n}\\n\"");
        let mut is_there = false;
        while !is_there {
            let event = next_event(&mut lines);
            assert!(!event.is_empty(), "the stream ended before line {n}: {seen:?}");
            is_there = event.iter().any(|line| line.contains(&text));
            seen.push(event);
        }
        let state = server.get(&format!("/v1/jobs/{id}")).json()["state"].clone();
        assert_eq!(state, "running", "line {n} was there before the end");
    }
    drop(lines);
    let id_of = |event: &Vec<String>| -> String {
        let id = event.iter().find_map(|line| line.strip_prefix("id: "));
        id.expect("an id").to_owned()
    };
    let last = id_of(seen.last().expect("an event"));
    let again = server.open("GET", &path, &[accept, ("Last-Event-ID", &last)], "");
    seen.extend(events(body_lines(again)));
    let whole = events(body_lines(server.open("GET", &path, &[accept], "")));
    assert_eq!(seen, whole, "each event exactly once");
    assert_eq!(server.get(&path).body, "1\n2\n3\n");
    let end = id_of(whole.last().expect("an end"));
    assert_eq!(server.call("GET", &path, &[("Last-Event-ID", &end)], "").status, 204);
}

#[test]
fn a_parameter_that_is_unknown_or_there_twice_is_refused_by_name() {
    let (_dir, server) = server();
    let body = json!({"command": ["true"]});
    let id = server.run(&body)["id"].as_str().expect("an id").to_owned();
    let job = format!("/v1/jobs/{id}");
    let paths = [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", &job),
        ("GET", &format!("{job}/logs")),
        ("POST", &format!("{job}/cancel")),
        ("DELETE", &job),
        ("GET", "/v1/images"),
        ("GET", "/v1/images/host"),
        ("GET", "/v1/limits"),
        ("GET", "/v1/version"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/openapi.json"),
    ];
    let json = [("Content-Type", "application/json")];
    let refused = |method: &str, path: &str, name: &str| {
        let answer = server.call(method, path, &json, &body.to_string());
        assert_eq!(answer.status, 422, "{method} {path}: {}", answer.body);
        let problem = answer.json();
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains(&format!("`{name}`")), "{method} {path}: {detail}");
    };
    for (method, path) in paths {
        refused(method, &format!("{path}?nonsense=1"), "nonsense");
    }
    for (method, path, name) in [
        ("POST", "/v1/jobs?wait=1&wait=2", "wait"),
        ("GET", "/v1/jobs?limit=1&limit=2", "limit"),
        ("GET", &format!("{job}/logs?after=1&after=2"), "after"),
    ] {
        refused(method, path, name);
    }
    assert_eq!(server.get("/v1/jobs").json()["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn what_the_server_is_and_allows_can_be_asked() {
    let (_dir, server) = server();
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.get("/v1/version").json()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(server.get("/v1/limits").json()["limits"]["cpu_ms"]["default"], 10_000);
    assert_eq!(server.get("/v1/images").json()["items"][0]["name"], "host");
    assert_eq!(server.get("/v1/images/host").json()["name"], "host");
    assert_eq!(server.get("/v1/images/none").status, 404);
    assert_eq!(server.get("/openapi.json").json()["openapi"], "3.1.0");
}
