//! How jobs end, seen over HTTP: each verdict with the limit that was met and what was used. What
//! is observed is at least what was allowed and at most ten times that; how close it comes is
//! measured by `make bench`.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

mod served;

use serde_json::{Value, json};
use served::Server;

fn server() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"));
    (dir, server)
}

/// Runs a job of one step; the verdict of both has to be this one.
fn ends(verdict: &str, job: &Value) -> Value {
    let (_dir, server) = server();
    let job = server.run(job);
    assert_eq!(job["verdict"], verdict, "{job}");
    let step = job["steps"][0].clone();
    assert_eq!(step["verdict"], verdict, "{job}");
    step
}

fn hit(step: &Value, limit: &str, allowed: u64) {
    let hit = &step["limit_hit"];
    assert_eq!((&hit["limit"], &hit["allowed"]), (&json!(limit), &json!(allowed)), "{step}");
    let observed = hit["observed"].as_u64().expect("a number");
    assert!((allowed..=allowed * 10).contains(&observed), "{step}");
}

fn number(step: &Value, usage: &str) -> f64 {
    step["usage"][usage].as_f64().expect("a number")
}

#[test]
fn success() {
    let step = ends("success", &json!({"command": ["echo", "hello"]}));
    assert_eq!((&step["exit_code"], &step["signal"]), (&json!(0), &Value::Null));
    assert_eq!((&step["limit_hit"], &step["stdout"]), (&Value::Null, &json!("hello\n")));
    assert!(number(&step, "cpu_ms") > 0.0 && number(&step, "memory_peak_bytes") > 0.0, "{step}");
    assert!((number(&step, "output_bytes") - 6.0).abs() < f64::EPSILON, "{step}");
}

#[test]
fn failure_with_the_exit_code() {
    let step = ends("failure", &json!({"script": "exit 3"}));
    assert_eq!((&step["exit_code"], &step["signal"]), (&json!(3), &Value::Null));
}

#[test]
fn signaled_with_the_name_of_the_signal() {
    let crash = "int main(void) { *(volatile int *)0 = 1; return 0; }";
    let (_dir, server) = server();
    let job = server.run(&json!({
        "files": {"crash.c": crash},
        "steps": [{"name": "build", "command": ["gcc", "-o", "crash", "crash.c"]},
                  {"name": "run", "command": ["./crash"]}],
    }));
    assert_eq!(job["verdict"], "signaled", "{job}");
    let step = &job["steps"][1];
    assert_eq!((&step["exit_code"], &step["signal"]), (&Value::Null, &json!("SIGSEGV")));
}

#[test]
fn cpu_limit() {
    let step =
        ends("cpu_limit", &json!({"script": "while :; do :; done", "limits": {"cpu_ms": 300}}));
    hit(&step, "cpu_ms", 300);
    assert!(number(&step, "cpu_ms") >= 300.0, "{step}");
}

#[test]
fn wall_limit() {
    let step = ends("wall_limit", &json!({"command": ["sleep", "60"], "limits": {"wall_ms": 500}}));
    hit(&step, "wall_ms", 500);
    assert!(number(&step, "wall_ms") >= 500.0 && number(&step, "cpu_ms") < 300.0, "{step}");
}

#[test]
fn memory_limit() {
    let touch = "x = bytearray(100 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1";
    let step = ends(
        "memory_limit",
        &json!({"command": ["/usr/bin/python3", "-c", touch],
                "limits": {"memory_bytes": 64 << 20}}),
    );
    assert_eq!(step["limit_hit"]["limit"], "memory_bytes");
    assert_eq!(step["limit_hit"]["allowed"], 64 << 20);
    assert!(number(&step, "oom_kills") >= 1.0, "{step}");
}

#[test]
fn a_fork_bomb_ends_at_its_wall_limit_and_the_server_goes_on() {
    let bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass";
    let (_dir, server) = server();
    let job = server.run(&json!({
        "command": ["/usr/bin/python3", "-c", bomb],
        "limits": {"pids": 32, "wall_ms": 1000},
    }));
    assert_eq!(job["verdict"], "wall_limit", "{job}");
    assert!(number(&job["steps"][0], "pids_peak") <= 32.0, "{job}");
    assert_eq!(server.run(&json!({"command": ["true"]}))["verdict"], "success");
}

#[test]
fn output_limit_and_its_other_meaning() {
    let limits = json!({"output_bytes": 1 << 20});
    let step = ends("output_limit", &json!({"command": ["yes"], "limits": limits}));
    hit(&step, "output_bytes", 1 << 20);
    assert_eq!(step["stdout_truncated"], true);

    let job = json!({"script": "yes | head -c 3000000", "limits": limits,
                     "output_overflow": "truncate"});
    let step = ends("success", &job);
    assert_eq!(step["exit_code"], 0);
    hit(&step, "output_bytes", 1 << 20);
    assert!((number(&step, "output_bytes") - 3_000_000.0).abs() < 1.0, "{step}");

    let endless = json!({"command": ["yes"], "output_overflow": "truncate",
                         "limits": {"output_bytes": 1 << 20, "wall_ms": 500}});
    let step = ends("wall_limit", &endless);
    hit(&step, "wall_ms", 500);
}

#[test]
fn a_stream_that_was_cut_says_so_and_the_other_does_not() {
    let cut = |script: &str| {
        let job = json!({"script": script, "limits": {"output_bytes": 100},
                         "output_overflow": "truncate"});
        let step = ends("success", &job);
        let length = |stream| step[stream].as_str().map(str::len);
        assert_eq!(length("stdout"), Some(100), "{step}");
        (step["stdout_truncated"] == true, step["stderr_truncated"] == true)
    };
    assert_eq!(cut("yes | head -c 100"), (false, false));
    assert_eq!(cut("yes | head -c 1000"), (true, false));
    assert_eq!(cut("yes | head -c 100; echo lost >&2"), (false, true));
}

#[test]
fn disk_limit() {
    let step = ends(
        "disk_limit",
        &json!({"script": "head -c 20M /dev/zero > big", "limits": {"disk_bytes": 16 << 20}}),
    );
    hit(&step, "disk_bytes", 16 << 20);
}

#[test]
fn disk_limit_by_the_number_of_files() {
    let many = "for i in range(1000000): open(str(i), 'w').close()";
    let step = ends(
        "disk_limit",
        &json!({"command": ["/usr/bin/python3", "-c", many], "limits": {"disk_bytes": 16 << 20}}),
    );
    hit(&step, "disk_files", 4096);
}

#[test]
fn busy_threads_are_held_to_half_a_cpu() {
    // While the machine has much else to do, a container may not even get its share.
    const ATTEMPTS: u32 = 5;
    assert!((0..ATTEMPTS).any(|_| is_held_to_half_a_cpu()), "never held");
}

/// Whether the quota held four busy processes, which have no more than their share in any case.
fn is_held_to_half_a_cpu() -> bool {
    let spin = "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 2";
    let step = ends("success", &json!({"script": spin, "limits": {"cpus": 0.5}}));
    // Two periods of 100 ms may be cut by the start and the end.
    let bound = 0.5 * (number(&step, "wall_ms") + 200.0);
    assert!(number(&step, "cpu_ms") <= bound, "{step}");
    number(&step, "throttled_ms") > 0.0
}

#[test]
fn a_program_that_is_not_there_says_so_like_a_shell() {
    let step = ends("failure", &json!({"command": ["no-such-program"]}));
    assert_eq!(step["exit_code"], 127);
    assert_eq!(step["stderr"], "lazaret: `no-such-program`: not found in the image\n");

    let job = json!({"command": ["./plain"], "files": {"plain": "text"}});
    let step = ends("failure", &job);
    assert_eq!(step["exit_code"], 126);
    assert_eq!(step["stderr"], "lazaret: `./plain`: not executable\n");
}

#[test]
fn the_port_of_the_server_itself_cannot_be_reached() {
    let (_dir, server) = server();
    let port = server.port();
    let connect = format!(
        "import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 5)\nexcept \
         ConnectionRefusedError: print('refused')"
    );
    let job = server.run(&json!({"command": ["/usr/bin/python3", "-c", connect]}));
    assert_eq!(job["steps"][0]["stdout"], "refused\n", "{job}");
}
