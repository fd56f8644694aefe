//! The binary as people use it: exit codes, streams, and the client against a real server.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[expect(clippy::disallowed_methods, reason = "the binary is what is tested")]
fn lazaret(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs `lazaret run` with a data directory of its own. Answers with exit code, stdout, stderr.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let data = tempfile::tempdir().expect("a directory");
    let data = data.path().to_str().expect("text");
    let mut all = vec!["run", "--data", data];
    all.extend(arguments);
    told(&lazaret(&all).output().expect("started"))
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_job_without_a_server_has_the_streams_and_the_exit_code_of_its_program() {
    let (code, out, err) = run(&["--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((code, out.as_str(), err.as_str()), (3, "out\n", "err\n"));
    let (code, out, _) = run(&["--env", "A=b c", "--", "sh", "-c", "echo \"$A\"; pwd"]);
    assert_eq!((code, out.as_str()), (0, "b c\n/workspace\n"));
}

#[test]
fn how_a_program_was_stopped_is_an_exit_code_and_a_line() {
    for (arguments, code, verdict) in [
        (&["--wall-time", "300ms", "--", "sleep", "60"][..], 124, "wall_limit"),
        (&["--cpu-time", "200ms", "--", "sh", "-c", "while :; do :; done"], 124, "cpu_limit"),
        (
            &["--memory", "32M", "--", "sh", "-c", "head -c 100M /dev/zero | tail"],
            137,
            "memory_limit",
        ),
        (&["--", "sh", "-c", "kill -SEGV $$"], 139, "signaled"),
        (&["--", "nothing-of-this-name"], 127, "not found"),
        (&["--image", "none", "--", "true"], 125, "`host`"),
        (&["--memory", "1K", "--", "true"], 125, "--memory"),
        (&["--user", "nobody-known", "--", "true"], 125, "nobody-known"),
    ] {
        let (found, _, err) = run(arguments);
        assert_eq!(found, code, "{arguments:?}: {err}");
        assert!(err.contains(verdict), "{arguments:?}: {err}");
    }
}

#[test]
fn a_job_without_a_server_tells_all_of_its_end_in_one_json_object() {
    let told = |arguments: &[&str]| {
        let (code, out, err) = run(&[&["--json"], arguments].concat());
        assert_eq!(err, "", "{arguments:?}");
        (code, serde_json::from_str::<Value>(&out).expect("one JSON object"))
    };
    let (code, step) = told(&["--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((code, &step["exit_code"], &step["verdict"]), (3, &3.into(), &"failure".into()));
    assert_eq!((&step["stdout"], &step["stderr"]), (&"out\n".into(), &"err\n".into()));
    assert_eq!((&step["signal"], &step["limit_hit"]), (&Value::Null, &Value::Null));
    assert!(step["usage"]["wall_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{step}");
    let (code, step) = told(&["--wall-time", "300ms", "--", "sleep", "60"]);
    assert_eq!((code, &step["verdict"]), (124, &"wall_limit".into()));
    assert_eq!(
        (&step["limit_hit"]["limit"], &step["signal"]),
        (&"wall_ms".into(), &"SIGKILL".into())
    );
    let (_, step) = told(&["--", "sh", "-c", "head -c 1M /dev/zero | tr '\\0' x"]);
    assert_eq!(step["stdout"].as_str().map(str::len), Some(1 << 20), "all of it");
}

#[test]
fn files_and_standard_input_reach_the_program() {
    let data = tempfile::tempdir().expect("a directory");
    let script = data.path().join("count.sh");
    fs::write(&script, "wc -c\n").expect("written");
    let (data, script) = (data.path().to_str().expect("text"), script.to_str().expect("text"));
    let arguments = ["run", "--data", data, "-f", script, "--stdin", "--", "sh", "count.sh"];
    let mut command = lazaret(&arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    child.stdin.take().expect("a pipe").write_all(b"12345").expect("written");
    let output = child.wait_with_output().expect("ended");
    assert_eq!(told(&output).1.trim(), "5");
}

/// Containers of a program that names this file, by the host's processes.
fn processes_of(marker: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("readable").flatten();
    let is_one = |entry: &fs::DirEntry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(marker)
    };
    processes.filter(is_one).count()
}

#[test]
fn what_a_killed_run_has_started_ends_with_it() {
    let data = tempfile::tempdir().expect("a directory");
    let data = data.path().to_str().expect("text");
    let script = format!("echo ready; while :; do sleep 0.1; done; cat {data}");
    let mut killed = lazaret(&["run", "--data", data, "--", "/bin/sh", "-c", &script]);
    let mut killed = killed.stdout(Stdio::piped()).spawn().expect("started");
    let mut line = String::new();
    BufReader::new(killed.stdout.take().expect("piped")).read_line(&mut line).expect("read");
    assert!(processes_of(data) > 1);
    killed.kill().expect("killed");
    killed.wait().expect("waited");
    let started = Instant::now();
    while processes_of(data) > 0 {
        assert!(started.elapsed() < Duration::from_secs(15), "it goes on");
        std::thread::yield_now();
    }
}

#[test]
fn an_imported_image_is_listed_run_and_removed() {
    let data = tempfile::tempdir().expect("a directory");
    let tree = data.path().join("tree/bin");
    fs::create_dir_all(&tree).expect("made");
    fs::write(tree.join("file"), "content").expect("written");
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let (data, tree) = (path(data.path()), path(&data.path().join("tree")));
    let image = |arguments: &[&str]| {
        let all = [&["image", "--json"], arguments, &["--data", &data]].concat();
        told(&lazaret(&all).output().expect("started"))
    };
    assert_eq!(image(&["import", &tree, "mine:1"]).0, 0);
    let listed: Value = serde_json::from_str(&image(&["ls"]).1).expect("JSON");
    let names: Vec<_> = listed.as_array().expect("a list").iter().map(|i| &i["name"]).collect();
    assert_eq!(names, ["host", "mine:1"]);
    let ran = lazaret(&["run", "--data", &data, "--image", "mine:1", "--", "/bin/file"]).output();
    assert_eq!(told(&ran.expect("started")).0, 126);
    assert_eq!(image(&["rm", "mine:1"]).0, 0);
    let (code, _, err) = image(&["rm", "mine:1"]);
    assert_eq!((code, err.as_str()), (2, "lazaret: there is no image `mine:1`\n"));
    assert_eq!(image(&["import", "/nothing", "mine"]).0, 2);
    let (code, _, err) = image(&["import", "/etc/hostname", "mine"]);
    assert_eq!(code, 2);
    assert!(err.starts_with("lazaret: `/etc/hostname`: neither a tar archive"), "{err}");
}

#[test]
fn a_host_that_runs_these_tests_is_found_fit() {
    let data = tempfile::tempdir().expect("a directory");
    let place = data.path().to_str().expect("text");
    let output = lazaret(&["doctor", "--json", "--data", place]).output().expect("started");
    let (code, out, err) = told(&output);
    assert_eq!(code, 0, "{out}{err}");
    let findings: Value = serde_json::from_str(&out).expect("JSON");
    let names: Vec<_> = findings.as_array().expect("a list").iter().map(|f| &f["name"]).collect();
    for name in ["container", "seccomp", "id-mapped layers", "swap"] {
        assert!(names.iter().any(|found| *found == name), "{name}: {names:?}");
    }
    assert!(out.contains(" cpuset\""), "{names:?}");
    assert_eq!(fs::read_dir(place).expect("read").count(), 0, "something was left");
}

/// A server on a port of its own, stopped when the test is over.
struct Server {
    child: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let place = data.path().to_str().expect("text");
        let mut command = lazaret(&["serve", "--listen", "127.0.0.1:0", "--data", place]);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = piped.spawn().expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let url = line.trim().strip_prefix("listening on ").expect("its address").to_owned();
        Self { child, url, _data: data }
    }

    fn job(&self, arguments: &[&str]) -> (i32, String, String) {
        let (verb, rest) = arguments.split_first().expect("a verb");
        let all = [&["job", verb, "--server", &self.url], rest].concat();
        told(&lazaret(&all).output().expect("started"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        assert!(self.child.wait().expect("ended").success());
    }
}

#[test]
fn jobs_are_sent_followed_shown_and_cancelled() {
    let server = Server::start();
    let (code, id, err) = server.job(&["submit", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(code, 0, "{err}");
    let id = id.trim();
    let (code, out, err) = server.job(&["logs", "-f", id]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "out\n", "err\n"));
    let (_, shown, _) = server.job(&["get", "--json", id]);
    let job: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((&job["id"], &job["verdict"]), (&Value::from(id), &Value::from("success")));
    assert!(server.job(&["ls", "--state", "finished"]).1.contains(id));

    let (code, out, _) = server.job(&["submit", "--wait", "--", "sh", "-c", "exit 3"]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("failure, exit code 3"), "{out}");

    let id = server.job(&["submit", "--", "sleep", "60"]).1;
    assert_eq!(server.job(&["cancel", id.trim()]).0, 0);
    server.job(&["logs", "-f", id.trim()]);
    assert!(server.job(&["get", id.trim()]).1.contains("cancelled"));
}

#[test]
fn a_reader_that_has_gone_ends_every_command_in_silence() {
    let server = Server::start();
    let id = server.job(&["submit", "--wait", "--", "echo", "out"]).1;
    let id = id.split_whitespace().next().expect("an id");
    let data = tempfile::tempdir().expect("a directory");
    let data = data.path().to_str().expect("text");
    for arguments in [
        &["openapi"][..],
        &["job", "ls", "--server", &server.url],
        &["job", "ls", "--json", "--server", &server.url],
        &["job", "get", id, "--server", &server.url],
        &["job", "logs", id, "--server", &server.url],
        &["job", "submit", "--server", &server.url, "--", "true"],
        &["image", "ls", "--data", data],
        &["doctor", "--data", data],
        &["run", "--data", data, "--", "sh", "-c", "echo out; sleep 60"],
        &["run", "--json", "--data", data, "--", "true"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = lazaret(arguments).stdout(writer).stderr(Stdio::piped()).output();
        let (code, _, err) = told(&output.expect("started"));
        assert_eq!((code, err.as_str()), (141, ""), "{arguments:?}");
    }
}

#[test]
fn what_the_server_refuses_is_said_in_its_words() {
    let server = Server::start();
    let (code, _, err) = server.job(&["get", "00000000-0000-7000-8000-000000000000"]);
    assert_eq!(code, 2);
    assert!(err.contains("there is no job"), "{err}");
    let (code, _, err) = server.job(&["submit", "--memory", "1", "--", "true"]);
    assert_eq!(code, 2);
    assert!(err.contains("memory_bytes"), "{err}");
    let (code, _, err) =
        told(&lazaret(&["job", "ls", "--server", "http://127.0.0.1:1"]).output().expect("ran"));
    assert_eq!(code, 2);
    assert!(err.contains("could not reach `http://127.0.0.1:1`"), "{err}");
}
