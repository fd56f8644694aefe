//! How a server starts, stops, and is started again after it was killed.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![expect(clippy::disallowed_methods, reason = "a test starts the server as an operator does")]

mod served;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use serde_json::{Value, json};
use served::{FREE_PORT, Server, send_signal, serve_command, wait_until};

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
fn a_host_without_cgroups_is_refused_with_what_to_mount() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, run_dir) = (dir.path().join("lazaret.toml"), dir.path().join("run"));
    std::fs::write(&file, format!("run_dir = {run_dir:?}\n")).expect("written");
    let hide = "umount -R /sys/fs/cgroup && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", hide, env!("CARGO_BIN_EXE_lazaret"), "serve"]);
    command.args(["--listen", FREE_PORT, "--data"]).arg(dir.path().join("data"));
    command.arg("--config").arg(&file);
    let said = refused(command);
    assert!(said.contains("cgroups") && said.contains("mount"), "{said}");
    assert!(!run_dir.exists(), "what it made is gone");
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
    wait_until("drains", || server.get("/readyz").status == 503);
    let refused = server.post("/v1/jobs", &json!({"command": ["true"]}));
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("draining")));
    assert!(server.ended().success());
    let server = Server::start_with(&data, config);
    let job = server.get(&format!("/v1/jobs/{running}")).json();
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(1)), "{job}");
    assert_eq!(job["steps"][0]["stdout"], "whole\n");
    assert_eq!(server.wait_for(&queued, "finished")["verdict"], "success");
}

#[test]
fn a_server_that_was_stopped_leaves_no_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"));
    assert_eq!(server.run(&json!({"command": ["true"]}))["verdict"], "success");
    let (run_dir, cgroups) = (server.run_dir().to_owned(), server.cgroups());
    let is_there = |path: &PathBuf| path.exists();
    assert!(run_dir.exists() && cgroups.iter().any(is_there), "while it runs");
    server.signal("TERM");
    assert!(server.ended().success());
    assert!(!run_dir.exists(), "{run_dir:?}");
    assert!(!cgroups.iter().any(is_there), "{cgroups:?}");
}

#[test]
fn a_directory_that_the_server_did_not_make_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let run_dir = data.with_extension("run");
    std::fs::create_dir(&run_dir).expect("made");
    let server = Server::start(&data);
    assert_eq!(server.run_dir(), run_dir);
    server.signal("TERM");
    assert!(server.ended().success());
    assert!(run_dir.exists());
}

#[test]
fn servers_that_come_and_go_on_one_directory_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    for _ in 0..5 {
        let server = Server::start(&data);
        let mut refused = serve_command(&data, FREE_PORT);
        refused.arg("--config").arg(data.with_extension("toml")).stderr(Stdio::null());
        let mut refused = refused.spawn().expect("started");
        assert_eq!(server.run(&json!({"command": ["true"]}))["verdict"], "success");
        server.signal("TERM");
        assert!(server.ended().success());
        // Refused, unless it came late enough to be the successor.
        drop(refused.kill());
        refused.wait().expect("ended");
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data);
    let id = server.submit(&json!({"command": ["sleep", "3"]}));
    server.wait_for(&id, "running");
    server.signal("TERM");
    wait_until("drains", || server.get("/readyz").status == 503);
    server.signal("TERM");
    assert!(server.ended().success());
    let server = Server::start(&data);
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(2)), "{job}");
}

const JOBS: usize = 200;
const CLIENTS: usize = 4;
/// How many are accepted before the server is killed: in the middle.
const JOBS_BEFORE_KILL: usize = JOBS / 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no client has failed")
}

/// Sends a job, under a key of its own, until a server accepts it. So a job that was stored while
/// its answer was lost is not made twice.
fn accepted(address: &Mutex<String>, n: usize) -> String {
    let (key, body) = (n.to_string(), json!({"script": format!("echo {n}")}).to_string());
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key.as_str())];
    let id = Mutex::new(None);
    wait_until("accepted", || {
        let to = lock(address).clone();
        let answer = served::call(&to, ("POST", "/v1/jobs"), &headers, &body);
        let answer = answer.ok().filter(|answer| matches!(answer.status, 200 | 202));
        *lock(&id) = answer.map(|answer| answer.json()["id"].as_str().expect("an id").to_owned());
        lock(&id).is_some()
    });
    id.into_inner().expect("whole").expect("an id")
}

/// Every job that the server has, page by page.
fn listed(server: &Server) -> Vec<Value> {
    let (mut jobs, mut query) = (Vec::new(), "limit=200".to_owned());
    for _ in 0..=JOBS {
        let page = server.get(&format!("/v1/jobs?{query}")).json();
        jobs.extend(page["items"].as_array().cloned().expect("items"));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=200&cursor={cursor}");
    }
    jobs
}

#[test]
fn every_accepted_job_has_one_verdict_after_a_kill_amid_submissions() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let first = Server::start(&data);
    let address = Mutex::new(first.address().to_owned());
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let client = || {
        while let Some(n) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < JOBS) {
            let id = accepted(&address, n);
            lock(&done).push((n, id));
        }
    };
    let server = std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
        wait_until("half are accepted", || lock(&done).len() >= JOBS_BEFORE_KILL);
        first.signal("KILL");
        assert!(!first.ended().success());
        assert!(lock(&done).len() < JOBS, "the kill came in the middle");
        let second = Server::start(&data);
        second.address().clone_into(&mut lock(&address));
        second
    });
    let done = done.into_inner().expect("no client has failed");
    let ids: BTreeSet<&String> = done.iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), JOBS);
    for (n, id) in &done {
        assert_eq!(server.wait_for(id, "finished")["verdict"], "success", "{n}: {id}");
        let path = format!("/v1/jobs/{id}/logs");
        let log = server.get(&path).body;
        assert!(log.ends_with(&format!("{n}\n")), "{log:?}");
        let events = server.call("GET", &path, &[("Accept", "application/jsonl")], "").body;
        assert_eq!(events.matches("\"event\":\"end\"").count(), 1, "{events}");
    }
    let jobs = listed(&server);
    assert_eq!(jobs.len(), JOBS, "no job that was not accepted");
    assert!(jobs.iter().all(|job| job["verdict"] == "success"), "{jobs:?}");
}

#[test]
fn a_job_that_ended_without_its_server_has_its_own_verdict() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start_with(&data, "warm_containers = 0");
    let id = server.submit(&json!({"script": "sleep 1; echo whole; exit 3"}));
    server.wait_for(&id, "running");
    let run_dir = server.run_dir().to_owned();
    wait_until("its shim is there", || server.shims().len() == 1);
    server.signal("KILL");
    assert!(!server.ended().success());
    wait_until("the outcome is kept", || {
        let entries = std::fs::read_dir(&run_dir).expect("a directory").flatten();
        entries.into_iter().any(|entry| entry.path().join("outcome").exists())
    });
    let server = Server::start(&data);
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("failure"), &json!(1)), "{job}");
    let step = &job["steps"][0];
    assert_eq!((&step["stdout"], &step["exit_code"]), (&json!("whole\n"), &json!(3)), "{job}");
    assert_eq!(server.get(&format!("/v1/jobs/{id}/logs")).body, "whole\n");
}

#[test]
fn a_server_whose_zygote_is_gone_ends_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data);
    let id = server.submit(&json!({"script": "echo begun; sleep 1; echo done"}));
    // Before that it may have no container yet, and then gets none without a zygote.
    let log = format!("/v1/jobs/{id}/logs?follow=false");
    wait_until("its program runs", || server.get(&log).body == "begun\n");
    send_signal("KILL", server.zygotes()[0]);
    assert!(!server.ended().success());
    let server = Server::start(&data);
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(1)), "{job}");
    assert_eq!(server.run(&json!({"command": ["true"]}))["verdict"], "success");
}

#[test]
fn a_job_that_falls_with_its_server_twice_is_a_fault() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let mut server = Server::start(&data);
    let id = server.submit(&json!({"script": "echo begun; sleep 60"}));
    for attempt in [1, 2] {
        wait_until("started", || server.wait_for(&id, "running")["attempt"] == attempt);
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
    wait_until("two wait", || server.shims().len() >= 2);
    let killed = server.shims();
    for shim in &killed {
        send_signal("KILL", *shim);
    }
    wait_until("gone", || server.shims().iter().all(|shim| !killed.contains(shim)));
    for _ in 0..3 {
        let job = server.run(&json!({"command": ["true"]}));
        assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(1)), "{job}");
    }
}
