//! The request checks: every bad input, both sides of every bound.

use lazaret_sandbox::image::ImageStore;
use lazaret_sandbox::spec::{MAX_ARGUMENT_LENGTH, MIN_DISK_BYTES, MIN_MEMORY_BYTES};
use lazaret_sandbox::volume::VolumeStore;
use serde_json::{Value, json};

use super::*;
use crate::api::body;
use crate::config::{Capacity, LimitPolicy, RootUser};
use crate::job::{Inputs, JobSpec};
use crate::volumes::Volumes;

struct Desk {
    _dir: tempfile::TempDir,
    images: ImageStore,
    volumes: Volumes,
    limits: LimitPolicy,
    capacity: Capacity,
    root_user: RootUser,
}

impl Desk {
    fn open() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let images = ImageStore::open(dir.path()).expect("opened");
        let store = VolumeStore::open(&dir.path().join("volumes")).expect("opened");
        let volumes = Volumes { store, binds: Vec::new() };
        let capacity = Capacity { cpu_millis: 64_000, memory_bytes: 64 << 30 };
        let limits = LimitPolicy::default();
        Self { _dir: dir, images, volumes, limits, capacity, root_user: RootUser::Refused }
    }

    fn check(&self, body: &Value) -> Result<(JobSpec, Inputs), Vec<FieldError>> {
        self.check_text(&serde_json::to_vec(body).expect("written"))
    }

    fn check_text(&self, text: &[u8]) -> Result<(JobSpec, Inputs), Vec<FieldError>> {
        let (request, unknown) = body::parse::<JobRequest>(text).expect("has the shape");
        let rules = Rules {
            limits: &self.limits,
            capacity: self.capacity,
            root_user: self.root_user,
            default_image: "host",
            images: &self.images,
            volumes: &self.volumes,
        };
        check(request, unknown, &rules).map_err(|error| match error {
            CheckError::Refused(errors) => errors,
            CheckError::Images(error) => panic!("the image store failed: {error}"),
            CheckError::Volumes(error) => panic!("the volumes failed: {error}"),
        })
    }

    fn accepted(&self, body: &Value) -> JobSpec {
        let checked = self.check(body);
        checked.unwrap_or_else(|errors| panic!("{body} was refused: {errors:?}")).0
    }

    /// The one error of a body, which is at `pointer`.
    fn refused(&self, body: &Value, pointer: &str) -> String {
        let errors = self.check(body).expect_err("refused");
        let [error] = errors.as_slice() else { panic!("{body}: not one error: {errors:?}") };
        assert_eq!(error.pointer, pointer, "{body}: {}", error.detail);
        error.detail.clone()
    }
}

/// A valid job with one field more.
fn with(field: &str, value: &Value) -> Value {
    let mut body = json!({"command": ["true"]});
    body[field] = value.clone();
    body
}

#[test]
fn a_job_that_names_nothing_gets_every_default() {
    let spec = Desk::open().accepted(&json!({"command": ["true"]}));
    let policy = LimitPolicy::default();
    let [step] = spec.steps.as_slice() else { panic!("not one step") };
    assert_eq!((step.name.as_str(), step.command.as_slice()), ("run", &["true".to_owned()][..]));
    assert_eq!(step.limits.cpu_ms.get(), policy.cpu_ms.default);
    assert_eq!(step.limits.memory_bytes.get(), policy.memory_bytes.default);
    assert_eq!(spec.job_wall_ms.get(), policy.job_wall_ms.default);
    assert_eq!(spec.disk_bytes.get(), policy.disk_bytes.default);
    assert_eq!((spec.workdir.as_str(), spec.user.uid), ("/workspace", 1000));
    assert!(step.env.contains_key("PATH"), "the image's environment");
}

#[test]
fn exactly_one_of_command_script_and_steps_is_taken() {
    let desk = Desk::open();
    let steps = json!([{"command": ["true"]}]);
    desk.accepted(&json!({"script": "true"}));
    desk.accepted(&json!({"steps": steps}));
    for body in [
        json!({}),
        json!({"command": ["true"], "script": "true"}),
        json!({"command": ["true"], "steps": steps}),
        json!({"script": "true", "steps": steps}),
    ] {
        let detail = desk.refused(&body, "");
        assert!(detail.contains("exactly one of"), "{detail}");
    }
    desk.refused(&json!({"steps": [{}]}), "/steps/0");
    desk.refused(&json!({"steps": [{"command": ["a"], "script": "b"}]}), "/steps/0");
    desk.refused(&json!({"steps": []}), "/steps");
    desk.refused(&json!({"command": []}), "/command");
    desk.refused(&json!({"command": [""]}), "/command");
}

#[test]
fn a_script_is_run_by_the_shell_of_the_image() {
    let spec = Desk::open().accepted(&json!({"script": "echo a\necho b"}));
    assert_eq!(spec.steps[0].command, ["/bin/sh", "-e", "-c", "echo a\necho b"]);
}

#[test]
fn every_limit_is_taken_at_its_bounds_and_refused_beyond_them() {
    let desk = Desk::open();
    let policy = LimitPolicy::default();
    for (name, bound) in [
        ("cpu_ms", policy.cpu_ms),
        ("wall_ms", policy.wall_ms),
        ("memory_bytes", policy.memory_bytes),
        ("pids", policy.pids),
        ("output_bytes", policy.output_bytes),
        ("disk_bytes", policy.disk_bytes),
        ("open_files", policy.open_files),
    ] {
        for fit in [bound.min, bound.max] {
            desk.accepted(&with("limits", &json!({name: fit})));
        }
        for unfit in [0, -1, i128::from(bound.min) - 1, i128::from(bound.max) + 1] {
            let unfit = i64::try_from(unfit).expect("small");
            let detail =
                desk.refused(&with("limits", &json!({name: unfit})), &format!("/limits/{name}"));
            let (asked, max) = (format!("`{unfit}`"), bound.max.to_string());
            assert!(detail.contains(&asked) && detail.contains(&max), "{name}: {detail}");
        }
        desk.refused(&with("limits", &json!({name: u64::MAX})), &format!("/limits/{name}"));
    }
    assert_eq!(policy.memory_bytes.min, MIN_MEMORY_BYTES);
    assert_eq!(policy.disk_bytes.min, MIN_DISK_BYTES);
}

#[test]
fn cpus_are_taken_in_thousandths_between_their_bounds() {
    let desk = Desk::open();
    for (cpus, millis) in [(0.01, 10), (0.5, 500), (1.0, 1000), (64.0, 64_000)] {
        let spec = desk.accepted(&with("limits", &json!({"cpus": cpus})));
        assert_eq!(spec.steps[0].limits.cpus.millis(), millis);
    }
    for cpus in [0.0, -1.0, 0.009, 64.01, 1e300] {
        desk.refused(&with("limits", &json!({"cpus": cpus})), "/limits/cpus");
    }
}

#[test]
fn the_bound_of_the_whole_job_is_checked_like_any_other() {
    let desk = Desk::open();
    let max = LimitPolicy::default().job_wall_ms.max;
    desk.accepted(&with("job_wall_ms", &json!(max)));
    for unfit in [json!(0), json!(-1), json!(max + 1)] {
        desk.refused(&with("job_wall_ms", &unfit), "/job_wall_ms");
    }
}

#[test]
fn a_step_says_what_differs_from_the_job() {
    let spec = Desk::open().accepted(&json!({
        "limits": {"cpu_ms": 100, "pids": 5},
        "env": {"A": "job", "B": "job"},
        "steps": [
            {"script": "a", "limits": {"cpu_ms": 7}, "env": {"A": "step"}, "name": "build"},
            {"command": ["b"], "when": "always", "allow_failure": true, "workdir": "/"},
        ],
    }));
    let [first, second] = spec.steps.as_slice() else { panic!("not two steps") };
    assert_eq!((first.limits.cpu_ms.get(), first.limits.pids.get()), (7, 5));
    assert_eq!(second.limits.cpu_ms.get(), 100);
    assert_eq!((first.env["A"].as_str(), first.env["B"].as_str()), ("step", "job"));
    assert_eq!((first.name.as_str(), second.name.as_str()), ("build", "step 2"));
    assert!(second.allow_failure && second.workdir.as_deref() == Some("/"));
    assert_eq!(spec.demand().cpu_millis, 1000, "the largest step counts, not their sum");
}

#[test]
fn what_belongs_to_the_job_is_refused_in_a_step_and_the_other_way_round() {
    let desk = Desk::open();
    let step = json!({"command": ["true"], "limits": {"disk_bytes": MIN_DISK_BYTES}});
    desk.refused(&json!({"steps": [step]}), "/steps/0/limits/disk_bytes");
    desk.refused(&json!({"steps": [{"command": ["true"]}], "stdin": "x"}), "/stdin");
    let step = json!({"command": ["true"], "limits": {"cpu_ms": 0}});
    desk.refused(&json!({"steps": [{"command": ["true"]}, step]}), "/steps/1/limits/cpu_ms");
    desk.refused(&json!({"steps": [{"command": ["a"], "name": ""}]}), "/steps/0/name");
}

#[test]
fn files_are_refused_for_where_they_are_and_what_they_hold() {
    let desk = Desk::open();
    for path in ["/etc/passwd", "../a", "a/../../b", "", "a\u{0}b", "a//b", "."] {
        let pointer = format!("/files/{}", escaped(path));
        desk.refused(&with("files", &json!({path: "x"})), &pointer);
    }
    desk.refused(&with("files", &json!({"a": {"base64": "*"}})), "/files/a/base64");
    desk.refused(&with("files", &json!({"a": {"base64": "", "mode": "1777"}})), "/files/a/mode");
    desk.refused(&with("files", &json!({"a": {"base64": "", "mode": "rwx"}})), "/files/a/mode");
    desk.refused(&with("files", &json!({"a": "1", "./a": "2"})), "/files/a");
    desk.refused(&with("files", &json!({"a": "1", "a/b/c": "2"})), "/files/a~1b~1c");
}

/// What is said of a text that has not the shape of a request, with the pointer first.
fn misshapen(text: &str) -> String {
    let problem = body::parse_object::<JobRequest>(text.as_bytes()).expect_err(text);
    format!("{problem:?}")
}

#[test]
fn an_array_is_no_object() {
    for (text, pointer) in [
        (r#"[["true"]]"#, ""),
        (r#"{"command": ["true"], "limits": [100]}"#, "/limits"),
        (r#"{"steps": [["build", ["true"]]]}"#, "/steps/0"),
        (r#"{"steps": [{"command": ["a"]}, {"limits": []}]}"#, "/steps/1/limits"),
        (r#"{"command": ["true"], "files": ["a"]}"#, "/files"),
        (r#"{"command": ["true"], "files": {"a": ["Zg==", null, "0755"]}}"#, "/files/a"),
        (r#"{"command": ["cat"], "stdin": ["Zg=="]}"#, "/stdin"),
        (r#"{"command": ["true"], "env": ["A=B"]}"#, "/env"),
        (r#"{"command": ["true"], "labels": []}"#, "/labels"),
    ] {
        let said = misshapen(text);
        let is_there = said.contains(&format!("pointer: {pointer:?}")) && said.contains("object");
        assert!(said.contains("Invalid") && is_there, "{text}: {said}");
    }
}

#[test]
fn a_field_that_is_written_twice_is_a_mistake() {
    for (text, pointer) in [
        (r#"{"command": ["true"], "image": "host", "image": "host"}"#, "/image"),
        (r#"{"command": ["true"], "command": ["true"]}"#, "/command"),
        (r#"{"command": ["true"], "limits": {"pids": 1, "pids": 2}}"#, "/limits/pids"),
        (r#"{"steps": [{"script": "a", "script": "b"}]}"#, "/steps/0/script"),
        (r#"{"command": ["true"], "stdin": {"base64": "", "base64": ""}}"#, "/stdin/base64"),
        (
            r#"{"command": ["true"], "files": {"a/b": {"text": "", "text": ""}}}"#,
            "/files/a~1b/text",
        ),
    ] {
        let said = misshapen(text);
        let is_there = said.contains(&format!("pointer: {pointer:?}")) && said.contains("twice");
        assert!(said.contains("Invalid") && is_there, "{text}: {said}");
    }
}

#[test]
fn a_name_that_is_written_twice_is_a_mistake() {
    let desk = Desk::open();
    for (text, pointer) in [
        (r#"{"command": ["true"], "env": {"A": "1", "B": "", "A": "1"}}"#, "/env/A"),
        (r#"{"command": ["true"], "labels": {"a/b": "1", "a/b": "2"}}"#, "/labels/a~1b"),
        (r#"{"command": ["true"], "files": {"a": "1", "a": "2"}}"#, "/files/a"),
        (r#"{"steps": [{"script": "", "env": {"A": "1", "A": "2"}}]}"#, "/steps/0/env/A"),
    ] {
        let errors = desk.check_text(text.as_bytes()).expect_err("refused");
        let [error] = errors.as_slice() else { panic!("{text}: not one error: {errors:?}") };
        assert_eq!(error.pointer, pointer, "{text}");
        assert!(error.detail.contains("tw"), "{text}: {}", error.detail);
    }
}

#[test]
fn files_arrive_as_they_were_sent() {
    let files = json!({"a/./b": "text", "run": {"base64": "f0VM", "mode": "0755"}});
    let (_, inputs) = Desk::open().check(&with("files", &files)).expect("accepted");
    let files: Vec<_> = inputs.files.iter().map(|file| (file.path.as_str(), file.mode)).collect();
    assert_eq!(files, [("a/b", 0o644), ("run", 0o755)]);
    assert_eq!(inputs.files[1].content, b"\x7fEL");
}

#[test]
fn what_a_later_version_knows_is_an_unknown_field_of_this_one() {
    let desk = Desk::open();
    for field in ["artifacts", "tests", "secrets"] {
        let detail = desk.refused(&with(field, &json!([])), &format!("/{field}"));
        assert!(detail.contains(field), "{detail}");
    }
    let text = br#"{"command": ["true"], "stdin": {"blob": "sha256:00"}}"#;
    let problem = body::parse::<JobRequest>(text).expect_err("refused");
    assert!(format!("{problem:?}").contains("base64"), "{problem:?}");
}

#[test]
fn every_mistake_is_told_at_once() {
    let body = json!({
        "command": ["true"], "typo": 1, "image": "none", "workdir": "relative",
        "limits": {"cpu_ms": 0, "speed": 1}, "labels": {"": "x"}, "priority": 101,
    });
    let errors = Desk::open().check(&body).expect_err("refused");
    let pointers: Vec<_> = errors.iter().map(|error| error.pointer.as_str()).collect();
    let all =
        ["/typo", "/limits/speed", "/image", "/workdir", "/limits/cpu_ms", "/labels/", "/priority"];
    for pointer in all {
        assert!(pointers.contains(&pointer), "{pointer} is missing in {pointers:?}");
    }
    assert_eq!(pointers.len(), all.len());
}

#[test]
fn an_unknown_image_is_named_with_those_there_are() {
    let detail = Desk::open().refused(&with("image", &json!("python:9")), "/image");
    assert!(detail.contains("`python:9`") && detail.contains("`host`"), "{detail}");
}

#[test]
fn root_is_refused_unless_the_operator_allows_it() {
    let mut desk = Desk::open();
    for user in ["root", "0", "0:1000"] {
        desk.refused(&with("user", &json!(user)), "/user");
    }
    for user in ["nobody-here", "65535", "-1", "", "1000:nogroup-here"] {
        desk.refused(&with("user", &json!(user)), "/user");
    }
    desk.accepted(&with("user", &json!("1234:5678")));
    desk.root_user = RootUser::Allowed;
    assert_eq!(desk.accepted(&with("user", &json!("root"))).user.uid, 0);
}

#[test]
fn arguments_and_environment_fit_execve() {
    let desk = Desk::open();
    let longest = "x".repeat(MAX_ARGUMENT_LENGTH);
    desk.accepted(&json!({"command": ["true", longest]}));
    desk.refused(&json!({"command": ["true", format!("{longest}x")]}), "/command/1");
    desk.refused(&json!({"command": ["true", "a\u{0}b"]}), "/command/1");
    let two_mebibytes = vec!["x".repeat(100 << 10); 21];
    let detail = desk.refused(&json!({"command": two_mebibytes}), "/command");
    assert!(detail.contains("1048576"), "{detail}");
    for name in ["", "A=B", "A\u{0}"] {
        let pointer = format!("/env/{}", escaped(name));
        desk.refused(&with("env", &json!({name: "x"})), &pointer);
    }
    desk.refused(&with("env", &json!({"A": "a\u{0}b"})), "/env/A");
}

#[test]
fn labels_and_priority_have_bounds() {
    let desk = Desk::open();
    let many = |count: usize| -> Value {
        (0..count).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
    };
    desk.accepted(&with("labels", &many(64)));
    desk.refused(&with("labels", &many(65)), "/labels");
    let key = "k".repeat(63);
    desk.accepted(&with("labels", &json!({&key: "v".repeat(256)})));
    desk.refused(&with("labels", &json!({&key: "v".repeat(257)})), &format!("/labels/{key}"));
    desk.refused(&with("labels", &json!({format!("{key}k"): ""})), &format!("/labels/{key}k"));
    for priority in [-100, 100] {
        let spec = desk.accepted(&with("priority", &json!(priority)));
        assert_eq!(spec.priority, priority);
    }
    for priority in [-101, 101, 1_i64 << 40] {
        desk.refused(&with("priority", &json!(priority)), "/priority");
    }
}

#[test]
fn a_job_larger_than_the_server_is_refused_at_once() {
    let mut desk = Desk::open();
    desk.capacity = Capacity { cpu_millis: 1000, memory_bytes: 512 << 20 };
    desk.accepted(&with("limits", &json!({"cpus": 1.0, "memory_bytes": 500 << 20})));
    let detail = desk.refused(&with("limits", &json!({"cpus": 1.5})), "/limits/cpus");
    assert!(detail.contains("1.5") && detail.contains("has: 1"), "{detail}");
    desk.refused(&with("limits", &json!({"memory_bytes": 512 << 20})), "/limits/memory_bytes");
}
