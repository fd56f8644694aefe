//! Volumes and directories of the host, as clients and operators have them.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "the tests are users of the command line")]

mod served;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use served::{Answer, Server, wait_until};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn serve(&self) -> Server {
        Server::start(&self.data())
    }

    /// A server with room for one job at a time.
    fn serve_one(&self) -> Server {
        let config = "[capacity]\ncpus = 1\n[limits.wall_ms]\ndefault = 60000\n";
        Server::start_with(&self.data(), config)
    }

    /// `lazaret …` on the same data directory.
    fn lazaret(&self, arguments: &[&str], rest: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
        command.args(arguments).arg("--data").arg(self.data()).args(rest).output().expect("ran")
    }
}

fn create(server: &Server, name: &str) {
    let answer = server.post("/v1/volumes", &json!({ "name": name }));
    assert_eq!(answer.status, 201, "{}", answer.body);
}

/// A job that has the volume `cache` at `/cache`.
fn with_cache(script: &str) -> Value {
    json!({"script": script, "volumes": [{"name": "cache", "path": "/cache"}]})
}

fn with(volumes: &Value) -> Value {
    json!({"command": ["true"], "volumes": volumes})
}

fn delete(server: &Server, name: &str) -> u16 {
    server.call("DELETE", &format!("/v1/volumes/{name}"), &[], "").status
}

/// The only thing that is wrong with a body, which is at `pointer`.
fn refusal(answer: &Answer, pointer: &str) -> String {
    assert_eq!(answer.status, 422, "{}", answer.body);
    let errors = answer.json()["errors"].clone();
    assert_eq!(errors.as_array().map(Vec::len), Some(1), "{errors}");
    assert_eq!(errors[0]["pointer"], pointer, "{errors}");
    errors[0]["detail"].as_str().expect("a reason").to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_one_job_writes_the_next_reads_and_a_read_only_one_cannot_change() {
    let place = Place::new();
    let server = place.serve();
    create(&server, "cache");
    let job = server.run(&with_cache("echo kept > /cache/f"));
    assert_eq!(job["verdict"], "success", "{job}");
    let shown = json!([{"name": "cache", "host_path": null, "path": "/cache", "read_only": false}]);
    assert_eq!((&job["volumes"], &job["io_bytes_per_s"]), (&shown, &json!(64 << 20)));
    let job = server.run(&with_cache("cat /cache/f"));
    assert_eq!(job["steps"][0]["stdout"], "kept\n", "{job}");
    let job = server.run(&json!({
        "script": "cat /var/f\necho no > /var/f",
        "volumes": [{"name": "cache", "path": "/var/", "read_only": true}],
        "limits": {"io_bytes_per_s": 1 << 20}
    }));
    assert_eq!(
        (&job["verdict"], &job["steps"][0]["stdout"]),
        (&json!("failure"), &json!("kept\n"))
    );
    let stderr = job["steps"][0]["stderr"].as_str().expect("text").to_owned();
    assert!(stderr.contains("Read-only file system"), "{stderr}");
    let shown = json!([{"name": "cache", "host_path": null, "path": "/var", "read_only": true}]);
    assert_eq!((&job["volumes"], &job["io_bytes_per_s"]), (&shown, &json!(1 << 20)));
    let job = server.run(&json!({"script": "ls /cache"}));
    assert_eq!((&job["verdict"], &job["volumes"]), (&json!("failure"), &json!([])));
}

#[test]
fn the_command_line_names_volumes_of_a_server() {
    let place = Place::new();
    let server = place.serve();
    create(&server, "cache");
    let submit = |volume: &str, script: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
        command.args(["job", "submit", "--wait", "--volume", volume, "--script", script]);
        let url = format!("http://{}", server.address());
        text(&command.args(["--server", &url]).output().expect("ran").stdout)
    };
    assert!(submit("cache:/c", "echo kept > /c/f").contains("success"));
    let told = submit("cache:/c:ro", "cat /c/f\necho no > /c/f");
    assert!(told.contains("kept") && told.contains("Read-only file system"), "{told}");
}

#[test]
fn a_volume_that_an_unfinished_job_needs_is_not_removed() {
    let place = Place::new();
    let server = place.serve_one();
    create(&server, "cache");
    let sleeper = server.submit(&with_cache("exec sleep 1000"));
    server.wait_for(&sleeper, "running");
    let queued = server.submit(&with_cache("true"));
    for unfinished in [&sleeper, &queued] {
        assert_eq!(delete(&server, "cache"), 409);
        let refused = place.lazaret(&["volume", "rm", "cache"], &[]);
        assert_eq!(refused.status.code(), Some(2));
        let told = text(&refused.stderr);
        assert!(told.contains("volume `cache` is in use"), "{told}");
        server.call("POST", &format!("/v1/jobs/{unfinished}/cancel"), &[], "");
        server.wait_for(unfinished, "finished");
    }
    wait_until("the volume is free", || delete(&server, "cache") == 204);
    assert_eq!(delete(&server, "cache"), 404);
    let told = refusal(&server.post("/v1/jobs", &with_cache("true")), "/volumes/0/name");
    assert_eq!(told, "there is no volume `cache`: there is none");
    create(&server, "other");
    let told = refusal(&server.post("/v1/jobs", &with_cache("true")), "/volumes/0/name");
    assert_eq!(told, "there is no volume `cache`: there is `other`");
}

#[test]
fn a_job_that_waits_through_a_restart_keeps_its_volume() {
    let place = Place::new();
    let server = place.serve_one();
    create(&server, "cache");
    create(&server, "lost");
    let sleeper = server.submit(&json!({"command": ["sleep", "1000"]}));
    server.wait_for(&sleeper, "running");
    let kept = server.submit(&with_cache("true"));
    let lost = server.submit(&json!({"script": "true",
        "volumes": [{"name": "lost", "path": "/x"}]}));
    server.signal("KILL");
    assert!(!server.ended().success());
    assert!(place.lazaret(&["volume", "rm", "lost"], &[]).status.success());
    let server = place.serve_one();
    assert_eq!(delete(&server, "cache"), 409);
    server.call("POST", &format!("/v1/jobs/{sleeper}/cancel"), &[], "");
    assert_eq!(server.wait_for(&kept, "finished")["verdict"], "success");
    let lost = server.wait_for(&lost, "finished");
    let detail = "the volume `lost` was removed before the job started";
    assert_eq!((&lost["verdict"], &lost["detail"]), (&json!("fault"), &json!(detail)), "{lost}");
}

#[test]
fn volumes_are_refused_by_their_place_in_the_body() {
    let place = Place::new();
    let server = place.serve();
    create(&server, "cache");
    let refused = |volumes: Value, pointer| {
        refusal(&server.post("/v1/jobs", &with(&volumes)), pointer);
    };
    for path in ["", "a", "/", "/proc", "/proc/self", "/dev", "/dev/shm/x", "/sys", "/a/../b"] {
        refused(json!([{"name": "cache", "path": path}]), "/volumes/0/path");
    }
    for path in ["/a", "/a/", "/a/b", "/"] {
        let other = json!({"name": "cache", "path": path});
        refused(json!([{"name": "cache", "path": "/a"}, other]), "/volumes/1/path");
    }
    for name in ["", "..", "a/b", "none", "/etc"] {
        refused(json!([{"name": name, "path": "/a"}]), "/volumes/0/name");
    }
    refused(json!([{"path": "/a"}]), "/volumes/0");
    refused(json!([{"name": "cache", "host_path": "/srv", "path": "/a"}]), "/volumes/0");
    refused(json!([{"name": "cache"}]), "/volumes/0");
    refused(json!([{"name": "cache", "path": "/a", "mode": 1}]), "/volumes/0/mode");
    refused(json!(["cache:/a"]), "/volumes/0");
    let many = |count: u32| {
        let volumes = (0..count).map(|n| json!({"name": "cache", "path": format!("/v/{n}")}));
        Value::Array(volumes.collect())
    };
    refused(many(17), "/volumes");
    let job = server.run(&with(&many(16)));
    assert_eq!(job["verdict"], "success", "{job}");
}

#[test]
fn the_throttle_has_bounds_that_are_shown() {
    let place = Place::new();
    let config = "[limits.io_bytes_per_s]\ndefault = 2097152\nmax = 4194304\n";
    let server = Server::start_with(&place.data(), config);
    let shown = server.get("/v1/limits").json()["limits"]["io_bytes_per_s"].clone();
    assert_eq!(shown, json!({"min": 1 << 20, "default": 2 << 20, "max": 4 << 20}));
    let job = |rate: u64| json!({"command": ["true"], "limits": {"io_bytes_per_s": rate}});
    for rate in [1 << 20, 4 << 20] {
        assert_eq!(server.run(&job(rate))["io_bytes_per_s"], rate);
    }
    for rate in [0, (1 << 20) - 1, (4 << 20) + 1] {
        refusal(&server.post("/v1/jobs", &job(rate)), "/limits/io_bytes_per_s");
    }
    let step = json!({"command": ["true"], "limits": {"io_bytes_per_s": 1 << 20}});
    let answer = server.post("/v1/jobs", &json!({ "steps": [step] }));
    refusal(&answer, "/steps/0/limits/io_bytes_per_s");
}

#[test]
fn directories_of_the_host_are_shown_if_the_configuration_allows() {
    let place = Place::new();
    let root = place.directory.path().canonicalize().expect("there");
    for made in ["allowed/set/deep", "allowed/rw", "outside/there"] {
        std::fs::create_dir_all(root.join(made)).expect("made");
    }
    std::fs::write(root.join("allowed/set/f"), "shown\n").expect("written");
    symlink(root.join("outside"), root.join("allowed/link")).expect("linked");
    let (allowed, writable) = (root.join("allowed"), root.join("allowed/rw"));
    std::os::unix::fs::chown(&writable, Some(1000), Some(1000)).expect("owned");
    let config =
        format!("allowed_binds = [{allowed:?}, {{ path = {writable:?}, writable = true }}]\n");
    let server = Server::start_with(&place.data(), &config);
    let at = |path: &Path| json!({"host_path": path, "path": "/host"});
    let run =
        |mount: Value, script: &str| server.run(&json!({"script": script, "volumes": [mount]}));
    let job = run(at(&root.join("allowed/set")), "cat /host/f\necho no > /host/f");
    assert_eq!(
        (&job["verdict"], &job["steps"][0]["stdout"]),
        (&json!("failure"), &json!("shown\n"))
    );
    assert_eq!(job["volumes"][0]["read_only"], true);
    let unusual = format!("{}/.//set/deep/", allowed.display());
    let job = run(at(Path::new(&unusual)), "pwd; ls /host");
    assert_eq!(job["verdict"], "success", "{job}");
    // Read-only unless both the configuration and the job say otherwise.
    let job = run(at(&writable), "echo no > /host/f");
    assert_eq!(job["verdict"], "failure", "{job}");
    let own = json!({"host_path": writable, "path": "/host", "read_only": false});
    assert_eq!(run(own, "echo written > /host/f")["verdict"], "success");
    assert_eq!(std::fs::read_to_string(writable.join("f")).expect("written"), "written\n");

    let post = |mount: Value| server.post("/v1/jobs", &with(&json!([mount])));
    let own = json!({"host_path": allowed, "path": "/host", "read_only": false});
    refusal(&post(own), "/volumes/0/read_only");
    for path in ["allowed/link", "allowed/link/there", "allowed/set/f", "allowed/none"] {
        refusal(&post(at(&root.join(path))), "/volumes/0/host_path");
    }
    // Whether there is something is not told of what is not allowed.
    let outside = ["outside", "outside/there", "outside/none", "allowedby", ""];
    for path in outside.map(|path| root.join(path)).iter().chain([&PathBuf::from("/etc")]) {
        let told = refusal(&post(at(path)), "/volumes/0/host_path");
        let shown = path.components().collect::<PathBuf>();
        let expected = format!("this server does not let jobs have `{}`", shown.display());
        assert_eq!(told, expected);
    }
    refusal(&post(at(&allowed.join("../outside"))), "/volumes/0/host_path");
}

#[test]
fn a_host_directory_that_is_not_allowed_any_more_is_not_shown_after_a_restart() {
    let place = Place::new();
    let root = place.directory.path().canonicalize().expect("there");
    std::fs::create_dir(root.join("allowed")).expect("made");
    let one = "[capacity]\ncpus = 1\n[limits.wall_ms]\ndefault = 60000\n";
    let config = format!("allowed_binds = [{:?}]\n{one}", root.join("allowed"));
    let server = Server::start_with(&place.data(), &config);
    let sleeper = server.submit(&json!({"command": ["sleep", "1000"]}));
    server.wait_for(&sleeper, "running");
    let mount = json!([{"host_path": root.join("allowed"), "path": "/host"}]);
    let queued = server.submit(&with(&mount));
    server.signal("KILL");
    assert!(!server.ended().success());
    let server = Server::start_with(&place.data(), one);
    server.call("POST", &format!("/v1/jobs/{sleeper}/cancel"), &[], "");
    let job = server.wait_for(&queued, "finished");
    assert_eq!(job["verdict"], "fault", "{job}");
    assert!(job["detail"].as_str().expect("a reason").contains("any more"), "{job}");
}

#[test]
fn volumes_are_made_listed_and_removed_over_http() {
    let place = Place::new();
    let server = place.serve();
    assert_eq!(server.get("/v1/volumes").json(), json!({"items": []}));
    create(&server, "b");
    let answer = server.post("/v1/volumes", &json!({"name": "a.b-c_0"}));
    assert_eq!((answer.status, &answer.json()["size_bytes"]), (201, &Value::Null));
    assert_eq!(server.post("/v1/volumes", &json!({"name": "b"})).status, 409);
    for name in ["", ".a", "A", "a/b", "../b", &"a".repeat(65)] {
        refusal(&server.post("/v1/volumes", &json!({ "name": name })), "/name");
    }
    for size in [json!(0), json!(-1), json!((1 << 20) - 1)] {
        let answer = server.post("/v1/volumes", &json!({"name": "c", "size_bytes": size}));
        refusal(&answer, "/size_bytes");
    }
    refusal(&server.post("/v1/volumes", &json!({"name": "c", "size": 1})), "/size");
    let listed = server.get("/v1/volumes").json();
    let names = listed["items"].as_array().expect("items").iter().map(|item| &item["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["a.b-c_0", "b"]);
    assert_eq!((delete(&server, "b"), delete(&server, "b"), delete(&server, "B")), (204, 404, 422));
}

/// Where the file system holds no bound, that is said, with what would mend it.
#[test]
fn volumes_are_made_used_and_removed_without_a_server() {
    let place = Place::new();
    let made = place.lazaret(&["volume", "create", "cache"], &[]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let again = place.lazaret(&["volume", "create", "cache"], &[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("there is a volume `cache` already"));
    let bounded = place.lazaret(&["volume", "create", "small", "--size", "1M"], &[]);
    let is_bounded = bounded.status.success();
    if !is_bounded {
        let told = text(&bounded.stderr);
        assert!(told.contains("cannot be bounded") && told.contains("`prjquota`"), "{told}");
    }
    let run = |volume: &str, script: &str| {
        place.lazaret(&["run", "--volume", volume], &["--", "sh", "-c", script])
    };
    assert!(run("cache:/c", "echo kept > /c/f").status.success());
    let read = run("cache:/c:ro", "cat /c/f; echo no > /c/f");
    assert_eq!((text(&read.stdout).as_str(), read.status.success()), ("kept\n", false));
    for bad in ["cache", "cache:", "cache:c", "cache:/", "none:/c", "CACHE:/c", "cache:/proc:ro"] {
        assert!(!run(bad, "true").status.success(), "{bad}");
    }
    let listed = place.lazaret(&["--json", "volume", "ls"], &[]);
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(listed[0]["name"], "cache");
    assert_eq!(listed.as_array().map(Vec::len), Some(1 + usize::from(is_bounded)));
    let table = text(&place.lazaret(&["volume", "ls"], &[]).stdout);
    assert!(table.starts_with("NAME") && table.contains("no bound"), "{table}");
    assert!(place.lazaret(&["volume", "rm", "cache"], &[]).status.success());
    let gone = place.lazaret(&["volume", "rm", "cache"], &[]);
    assert!(text(&gone.stderr).contains("there is no volume `cache`"));
}
