//! How a server starts, stops, and is started again after it was killed.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![expect(clippy::disallowed_methods, reason = "a test starts the server as an operator does")]

mod served;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use served::{FREE_PORT, Server, send_signal, serve_command};

/// Starts a server that cannot start, and answers what it says.
fn refused(mut command: Command) -> String {
    let output = command.stderr(Stdio::piped()).output().expect("started");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("lazaret: ")).collect();
    assert_eq!(said.len(), 1, "one line: {text}");
    said[0].to_owned()
}

#[test]
fn a_data_directory_in_use_is_refused_by_the_name_of_who_uses_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data);
    let said = refused(serve_command(&data, FREE_PORT));
    assert!(said.contains(&server.pid().to_string()) && said.contains("--data"), "{said}");
    let job = server.run(&json!({"command": ["true"]}));
    assert_eq!(job["verdict"], "success", "the first server is not disturbed");
}

#[test]
fn a_port_in_use_is_refused_by_its_number() {
    let dir = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind(FREE_PORT).expect("bound");
    let address = taken.local_addr().expect("bound").to_string();
    let said = refused(serve_command(&dir.path().join("data"), &address));
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");
}

#[test]
fn a_bad_configuration_is_refused_by_the_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("lazaret.toml");
    std::fs::write(&file, "queue_max = 5\nnonsense = 1\n").expect("written");
    let mut command = serve_command(&dir.path().join("data"), FREE_PORT);
    command.arg("--config").arg(&file);
    let said = refused(command);
    assert!(said.contains("nonsense") && said.contains("line 2"), "{said}");
}

#[test]
fn a_data_directory_that_cannot_be_made_is_refused_by_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("written");
    let said = refused(serve_command(&file.join("data"), FREE_PORT));
    assert!(said.contains("file/data") && said.contains("--data"), "{said}");
}

#[test]
fn a_server_without_privileges_is_refused_with_the_way_to_get_them() {
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().expect("a directory");
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(dir.path(), mode(0o777)).expect("set");
    // A copy: what is built may lie where only its builder can read.
    let binary = dir.path().join("lazaret");
    std::fs::copy(env!("CARGO_BIN_EXE_lazaret"), &binary).expect("copied");
    let mut command = Command::new(&binary);
    command.args(["serve", "--listen", FREE_PORT, "--data"]).arg(dir.path().join("data"));
    command.uid(NOBODY).gid(NOBODY);
    let said = refused(command);
    assert!(said.contains("root") && said.contains("sudo"), "{said}");
}

#[test]
fn an_address_that_others_reach_is_refused_without_consent() {
    let dir = tempfile::tempdir().expect("a directory");
    let said = refused(serve_command(&dir.path().join("data"), "0.0.0.0:0"));
    assert!(said.contains("--insecure-no-auth"), "{said}");
}

#[test]
fn a_stop_lets_the_running_end_and_keeps_the_queued() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let config = "capacity.cpus = 1.0";
    let server = Server::start_with(&data, config);
    let running = server
        .submit(&json!({"script": "until test -e /tmp/x; do sleep 0.3; break; done; echo whole"}));
    let queued = server.submit(&json!({"command": ["true"]}));
    server.wait_for(&running, "running");
    server.signal("TERM");
    let refused = loop {
        let answer = server.post("/v1/jobs", &json!({"command": ["true"]}));
        if answer.status == 503 {
            break answer;
        }
    };
    assert_eq!(refused.json()["code"], "draining");
    assert_eq!(server.get("/readyz").status, 503);
    assert!(server.ended().success());
    let server = Server::start_with(&data, config);
    let job = server.get(&format!("/v1/jobs/{running}")).json();
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(1)), "{job}");
    assert_eq!(job["steps"][0]["stdout"], "whole\n");
    assert_eq!(server.wait_for(&queued, "finished")["verdict"], "success");
}

#[test]
fn a_second_signal_stops_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data);
    let id = server.submit(&json!({"command": ["sleep", "3"]}));
    server.wait_for(&id, "running");
    server.signal("TERM");
    while server.get("/readyz").status != 503 {}
    server.signal("TERM");
    assert!(server.ended().success());
    let server = Server::start(&data);
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(2)), "{job}");
}

#[test]
fn every_accepted_job_has_one_verdict_after_a_kill() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data);
    let ids: Vec<String> =
        (0..40).map(|n| server.submit(&json!({"script": format!("echo {n}")}))).collect();
    server.signal("KILL");
    assert!(!server.ended().success());
    let server = Server::start(&data);
    let mut verdicts: BTreeMap<String, usize> = BTreeMap::new();
    for (n, id) in ids.iter().enumerate() {
        let job = server.wait_for(id, "finished");
        let verdict = job["verdict"].as_str().expect("a verdict").to_owned();
        if verdict == "success" {
            let log = server.get(&format!("/v1/jobs/{id}/logs")).body;
            assert!(log.ends_with(&format!("{n}\n")), "{log:?}");
        }
        *verdicts.entry(verdict).or_default() += 1;
    }
    assert_eq!(verdicts.get("success"), Some(&40), "{verdicts:?}");
    let left: Vec<Value> =
        server.get("/v1/jobs?state=queued").json()["items"].as_array().cloned().expect("items");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_job_that_falls_with_its_server_twice_is_a_fault() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let mut server = Server::start(&data);
    let id = server.submit(&json!({"script": "echo begun; sleep 60"}));
    for attempt in [1, 2] {
        while server.wait_for(&id, "running")["attempt"] != attempt {}
        server.signal("KILL");
        assert!(!server.ended().success());
        server = Server::start(&data);
    }
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("fault"), &json!(2)), "{job}");
    assert!(job["detail"].as_str().is_some_and(|text| text.contains("server")), "{job}");
    let headers = [("Accept", "text/event-stream")];
    let log = server.call("GET", &format!("/v1/jobs/{id}/logs"), &headers, "").body;
    assert!(log.contains("event: attempt") && log.contains("\"verdict\":\"fault\""), "{log}");
}

#[test]
fn a_job_whose_shim_was_killed_starts_once_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(&dir.path().join("data"), "warm_containers = 0");
    let id = server.submit(&json!({"script": "echo begun; sleep 1"}));
    // Its output says that it runs, and so that there is a shim.
    let path = format!("/v1/jobs/{id}/logs");
    let log = BufReader::new(server.open("GET", &path, &[], ""));
    assert!(log.lines().any(|line| line.expect("read") == "begun"));
    let shims = server.shims();
    assert_eq!(shims.len(), 1, "{shims:?}");
    send_signal("KILL", shims[0]);
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(2)), "{job}");
    assert_eq!(server.get(&path).body, "begun\nbegun\n", "both attempts are in the log");
}

#[test]
fn a_waiting_container_that_was_killed_costs_no_job() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(&dir.path().join("data"), "warm_containers = 2");
    while server.shims().len() < 2 {
        std::thread::yield_now();
    }
    let killed = server.shims();
    for shim in &killed {
        send_signal("KILL", *shim);
    }
    while server.shims().iter().any(|shim| killed.contains(shim)) {
        std::thread::yield_now();
    }
    for _ in 0..3 {
        let job = server.run(&json!({"command": ["true"]}));
        assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(1)), "{job}");
    }
}
