//! What becomes of jobs while the store fails, or a shim that does not answer any more.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "a test starts the server as an operator does")]

mod served;

use std::path::Path;

use serde_json::{Value, json};
use served::{FREE_PORT, Server, execute, send_signal, serve_command, wait_until};

/// Has the store fail each claim and each verdict, as a full disk does.
const FAIL: &str = "create trigger fail before update of state on jobs \
     begin select raise(abort, 'by a test'); end";
/// Mends it.
const MEND: &str = "drop trigger fail";
/// What the server says when the store fails it.
const FAILED: &str = "the store failed a job";

fn started(config: &str) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_logged(&dir.path().join("data"), config);
    (dir, server)
}

/// Checks that a job has succeeded at its first attempt, and that its log says so once.
fn has_succeeded(server: &Server, id: &str) {
    let job = server.wait_for(id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(1)), "{job}");
    let path = format!("/v1/jobs/{id}/logs");
    let log = server.call("GET", &path, &[("Accept", "application/jsonl")], "").body;
    assert_eq!(log.matches("\"event\":\"end\"").count(), 1, "{log}");
}

#[test]
fn a_verdict_waits_until_the_store_takes_it() {
    let (dir, server) = started("");
    let data = dir.path().join("data");
    execute(&data, FAIL);
    let id = server.submit(&json!({"script": "echo whole"}));
    wait_until("the store fails", || server.has_said(FAILED));
    let job = server.get(&format!("/v1/jobs/{id}")).json();
    assert_eq!((&job["state"], &job["verdict"]), (&json!("running"), &Value::Null), "{job}");
    execute(&data, MEND);
    has_succeeded(&server, &id);
    assert_eq!(server.get(&format!("/v1/jobs/{id}/logs")).body, "whole\n");
}

/// A job that takes all there is, and one that waits for its end and is then not claimed.
fn unclaimed(data: &Path, server: &Server) -> String {
    let busy = server.submit(&json!({"command": ["sleep", "60"]}));
    let waiting = server.submit(&json!({"command": ["true"]}));
    server.wait_for(&busy, "running");
    execute(
        data,
        "create trigger fail before update of state on jobs when new.state = 'running' \
         begin select raise(abort, 'by a test'); end",
    );
    server.call("POST", &format!("/v1/jobs/{busy}/cancel"), &[], "");
    wait_until("the store fails", || server.has_said(FAILED));
    assert_eq!(server.get(&format!("/v1/jobs/{waiting}")).json()["state"], "queued");
    waiting
}

#[test]
fn a_job_that_fills_the_disk_ends_and_gives_the_room_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_on_small_disk(&dir.path().join("data"), 16);
    let job = |script| json!({"script": script, "limits": {"output_bytes": 64 << 20}});
    let full = server.run(&job("base64 /dev/zero | head -c 32M"));
    assert_eq!(full["verdict"], "fault", "{full}");
    let detail = full["detail"].as_str().expect("a detail");
    assert!(detail.contains("No space left on device"), "{detail}");
    let next = server.run(&job("base64 /dev/zero | head -c 8M; echo whole >&2"));
    assert_eq!(next["verdict"], "success", "{next}");
    assert_eq!(next["steps"][0]["stderr"], "whole\n");
    server.signal("TERM");
    assert!(server.ended().success());
}

#[test]
fn a_claim_waits_until_the_store_takes_it() {
    let (dir, server) = started("capacity.cpus = 1.0");
    let data = dir.path().join("data");
    let waiting = unclaimed(&data, &server);
    execute(&data, MEND);
    has_succeeded(&server, &waiting);
}

#[test]
fn a_claim_that_the_store_does_not_take_does_not_hold_up_a_drain() {
    let config = "capacity.cpus = 1.0";
    let (dir, server) = started(config);
    let data = dir.path().join("data");
    let waiting = unclaimed(&data, &server);
    server.signal("TERM");
    assert!(server.ended().success());
    execute(&data, MEND);
    has_succeeded(&Server::start_with(&data, config), &waiting);
}

#[test]
fn a_verdict_that_no_store_took_is_there_for_the_next_server() {
    let (dir, server) = started("");
    let data = dir.path().join("data");
    execute(&data, FAIL);
    let id = server.submit(&json!({"script": "echo whole"}));
    wait_until("the store fails", || server.has_said(FAILED));
    server.signal("TERM");
    wait_until("drains", || server.get("/readyz").status == 503);
    server.signal("TERM");
    assert!(server.ended().success());
    execute(&data, MEND);
    let server = Server::start(&data);
    has_succeeded(&server, &id);
    assert_eq!(server.get(&format!("/v1/jobs/{id}/logs")).body, "whole\n");
}

#[test]
fn an_end_that_was_kept_is_not_lost_by_a_server_that_cannot_store_it() {
    let (dir, server) = started("");
    let data = dir.path().join("data");
    let id = server.submit(&json!({"script": "sleep 1; exit 7"}));
    server.wait_for(&id, "running");
    let run_dir = server.run_dir().to_owned();
    server.signal("KILL");
    assert!(!server.ended().success());
    wait_until("the outcome is kept", || {
        let entries = std::fs::read_dir(&run_dir).expect("a directory").flatten();
        entries.into_iter().any(|entry| entry.path().join("outcome").exists())
    });
    execute(&data, FAIL);
    assert!(!serve_again(&data).status().expect("started").success());
    execute(&data, MEND);
    let server = Server::start(&data);
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("failure"), &json!(1)), "{job}");
    assert_eq!(job["steps"][0]["exit_code"], 7, "{job}");
    let kept = || std::fs::read_dir(&run_dir).expect("a directory").flatten();
    assert!(!kept().any(|entry| entry.path().join("outcome").exists()));
}

/// The command that starts a server on this data once more, as it was started before.
fn serve_again(data: &Path) -> std::process::Command {
    let mut command = serve_command(data, FREE_PORT);
    command.arg("--config").arg(data.with_extension("toml"));
    command
}

#[test]
fn a_client_that_waits_for_a_queued_job_is_answered_when_the_server_drains() {
    let (_dir, server) = started("capacity.cpus = 1.0");
    let busy = server.submit(&json!({"script": "sleep 2"}));
    server.wait_for(&busy, "running");
    let body = json!({"command": ["true"]});
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.post("/v1/jobs?wait=60", &body));
        wait_until("it waits", || {
            server.get("/v1/jobs?state=queued").json()["items"].as_array().map(Vec::len) == Some(1)
        });
        server.signal("TERM");
        waiting.join().expect("an answer")
    });
    assert_eq!((waiting.status, &waiting.json()["state"]), (202, &json!("queued")));
    assert!(server.ended().success());
}

#[test]
fn a_shim_that_does_not_end_in_time_is_given_up_for_another() {
    let (_dir, server) = started("warm_containers = 1\ngrace_ms = 200");
    wait_until("one waits", || server.shims().len() == 1);
    let stopped = server.shims()[0];
    send_signal("STOP", stopped);
    let job = server.run(&json!({"script": "echo whole", "job_wall_ms": 2000}));
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(2)), "{job}");
    assert_eq!(job["steps"][0]["stdout"], "whole\n");
    assert!(server.has_said("did not end in time"));
    send_signal("KILL", stopped);
    wait_until("it is gone", || !server.shims().contains(&stopped));
}

#[test]
fn a_second_attempt_waits_until_the_store_takes_it() {
    let (dir, server) = started("warm_containers = 1");
    let data = dir.path().join("data");
    let id = server.submit(&json!({"command": ["sleep", "60"]}));
    server.wait_for(&id, "running");
    execute(
        &data,
        "create trigger fail before update of state on jobs when new.state = 'queued' \
         begin select raise(abort, 'by a test'); end",
    );
    for shim in server.shims() {
        send_signal("KILL", shim);
    }
    wait_until("the store fails", || server.has_said(FAILED));
    let path = format!("/v1/jobs/{id}");
    let job = server.get(&path).json();
    assert_eq!((&job["state"], &job["verdict"]), (&json!("running"), &Value::Null), "{job}");
    execute(&data, MEND);
    wait_until("it starts once more", || server.get(&path).json()["attempt"] == 2);
    server.call("POST", &format!("{path}/cancel"), &[], "");
    assert_eq!(server.wait_for(&id, "finished")["verdict"], "cancelled");
}

#[test]
fn the_end_of_one_attempt_is_not_taken_for_that_of_another() {
    let (dir, server) = started("warm_containers = 1\ngrace_ms = 200");
    wait_until("one waits", || server.shims().len() == 1);
    let stopped = server.shims()[0];
    send_signal("STOP", stopped);
    let id = server.submit(&json!({"command": ["sleep", "60"], "job_wall_ms": 4000}));
    wait_until("it starts once more", || server.wait_for(&id, "running")["attempt"] == 2);
    // The first attempt goes on, finds that it was given up, and keeps how it ended.
    send_signal("CONT", stopped);
    let is_kept = || {
        let containers = std::fs::read_dir(server.run_dir()).expect("readable").flatten();
        containers.into_iter().any(|container| container.path().join("outcome").exists())
    };
    wait_until("it keeps its end", is_kept);
    server.signal("KILL");
    assert!(!server.ended().success());
    let job = Server::start(&dir.path().join("data")).wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("fault"), &json!(2)), "{job}");
}

#[test]
fn a_job_whose_shims_do_not_end_in_time_is_a_fault() {
    let (_dir, server) = started("warm_containers = 2\ngrace_ms = 200");
    wait_until("two wait", || server.shims().len() == 2);
    let stopped = server.shims();
    for shim in &stopped {
        send_signal("STOP", *shim);
    }
    let job = server.run(&json!({"command": ["true"], "job_wall_ms": 1}));
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("fault"), &json!(2)), "{job}");
    assert_eq!(job["detail"], "the container did not end in time");
    for shim in &stopped {
        send_signal("KILL", *shim);
    }
    wait_until("they are gone", || server.shims().iter().all(|shim| !stopped.contains(shim)));
    assert_eq!(server.run(&json!({"command": ["true"]}))["verdict"], "success");
}
