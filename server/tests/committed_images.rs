//! What a job writes becomes an image.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "the tests are users of the command line")]

mod served;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use served::Server;

/// A data directory with the image `base`: busybox, a directory that the job's user owns, and one
/// that it does not.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = directory.path().join("tree");
        for name in ["bin", "own/old", "etc"] {
            std::fs::create_dir_all(tree.join(name)).expect("made");
        }
        std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("copied");
        std::os::unix::fs::symlink("busybox", tree.join("bin/sh")).expect("linked");
        for name in ["own/gone", "own/old/gone", "own/kept", "etc/kept"] {
            std::fs::write(tree.join(name), "of the base").expect("written");
        }
        for name in ["own", "own/old", "own/gone", "own/old/gone"] {
            std::os::unix::fs::chown(tree.join(name), Some(1000), Some(1000)).expect("given");
        }
        let place = Self { directory };
        let tree = tree.to_str().expect("UTF-8");
        assert!(place.lazaret(&["image", "import", tree, "base"]).status.success());
        place
    }

    fn data(&self) -> std::path::PathBuf {
        self.directory.path().join("data")
    }

    fn lazaret(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
        let (before, after) =
            words.split_at(words.iter().position(|w| *w == "--").unwrap_or(words.len()));
        command.args(before).arg("--data").arg(self.data()).args(after);
        command.output().expect("ran")
    }

    fn has(&self, image: &str) -> bool {
        self.lazaret(&["image", "inspect", image]).status.success()
    }
}

fn script(image: &str, script: &str) -> Value {
    json!({"image": image, "command": ["/bin/sh", "-ec", script]})
}

fn committing(image: &str, text: &str, name: &str) -> Value {
    let mut job = script(image, text);
    job["commit"] = name.into();
    job
}

#[test]
fn what_a_job_changed_is_there_for_the_next_and_the_base_stays_as_it_was() {
    let place = Place::new();
    let server = Server::start(&place.data());
    let job = server.run(&committing(
        "base",
        "cd /own; busybox rm gone; busybox rm -r old; busybox mkdir old; echo new > old/new;
         echo more >> /workspace/made; busybox ln /workspace/made link; busybox mkfifo pipe;
         busybox ln -s nowhere dangling; busybox chmod 4711 old/new; echo secret > /tmp/secret",
        "made:1",
    ));
    assert_eq!((&job["verdict"], &job["commit"]), (&json!("success"), &json!("made:1")), "{job}");
    let image = server.get("/v1/images/made:1").json();
    assert_eq!(image["layers"].as_array().map(Vec::len), Some(2), "{image}");
    let look = "cd /own; busybox ls -a . old; busybox cat kept old/new link; \
                busybox stat -c '%n %a %u %h %F' old/new link pipe dangling; busybox ls /tmp";
    let job = server.run(&script("made:1", look));
    let expected = ".:\n.\n..\ndangling\nkept\nlink\nold\npipe\n\nold:\n.\n..\nnew\n\
                    of the basenew\nmore\n\
                    old/new 4711 1000 1 regular file\nlink 644 1000 2 regular file\n\
                    pipe 644 1000 1 fifo\ndangling 777 1000 1 symbolic link\n";
    assert_eq!(job["steps"][0]["stdout"], expected, "{job}");
    let job = server.run(&script("base", "busybox cat /own/gone /own/old/gone"));
    assert_eq!(job["steps"][0]["stdout"], "of the baseof the base", "{job}");
}

#[test]
fn a_job_that_does_not_succeed_makes_no_image() {
    let place = Place::new();
    let server = Server::start(&place.data());
    for (text, verdict) in [("exit 1", "failure"), ("kill -9 $$", "signaled")] {
        let job = server.run(&committing("base", text, "never"));
        assert_eq!(job["verdict"], verdict, "{job}");
    }
    // A name that means in an archive that another is hidden.
    let hidden = ("echo > /own/.wh.kept", "own/.wh.kept");
    // A hole takes no room in the container, but would take hours here.
    let hole = ("busybox truncate -s 200000000000 /own/hole", "too large");
    for (text, words) in [hidden, hole] {
        let job = server.run(&committing("base", text, "never"));
        assert_eq!(job["verdict"], "failure", "{job}");
        let detail = job["detail"].as_str().expect("a reason");
        assert!(detail.contains(words) && detail.contains("never"), "{detail}");
    }
    assert!(!place.has("never"));
}

#[test]
fn a_name_or_an_image_that_cannot_be_is_refused_before_anything_runs() {
    let place = Place::new();
    let server = Server::start(&place.data());
    let call = |job: &Value| server.post("/v1/jobs", job);
    for (job, words) in [
        (committing("base", "true", "host"), "built-in"),
        (committing("base", "true", "A B"), "cannot be the name"),
        (committing("host", "true", "fine"), "no copy is made"),
    ] {
        let answer = call(&job);
        assert_eq!(answer.status, 422, "{:?}", answer.json());
        let error = &answer.json()["errors"][0];
        assert_eq!(error["pointer"], "/commit");
        assert!(error["detail"].as_str().is_some_and(|detail| detail.contains(words)), "{error}");
    }
}

#[test]
fn a_job_that_runs_already_can_be_committed_until_it_is_over() {
    let place = Place::new();
    let server = Server::start(&place.data());
    let text = "echo late > /own/late; while ! [ -e /tmp/never ]; do busybox sleep 0.1; \
                i=${i}x; [ ${#i} -lt 20 ] || exit 0; done";
    let id = server.submit(&script("base", text));
    server.wait_for(&id, "running");
    let url = format!("http://{}", server.address());
    let committed = Command::new(env!("CARGO_BIN_EXE_lazaret"))
        .args(["image", "commit", &id, "late:1", "--server", &url])
        .output()
        .expect("ran");
    assert!(committed.status.success(), "{committed:?}");
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["commit"]), (&json!("success"), &json!("late:1")), "{job}");
    let job = server.run(&script("late:1", "busybox cat /own/late"));
    assert_eq!(job["steps"][0]["stdout"], "late\n", "{job}");
    let path = format!("/v1/jobs/{id}/commit");
    let answer = server.post(&path, &json!({"name": "later:1"}));
    assert_eq!(answer.status, 409, "{:?}", answer.json());
    for body in [json!({"name": "host"}), json!({}), json!([]), json!({"name": "a", "x": 1})] {
        let answer = server.post(&path, &body);
        assert_eq!(answer.status, 422, "{:?}", answer.json());
    }
    assert!(!place.has("later:1"));
}

#[test]
fn a_server_that_is_killed_before_the_image_is_made_has_it_made_by_the_next() {
    let place = Place::new();
    let server = Server::start(&place.data());
    let text = "echo whole > /own/made; busybox sleep 1";
    let id = server.submit(&committing("base", text, "again:1"));
    server.wait_for(&id, "running");
    server.signal("KILL");
    server.ended();
    // The container goes on, and nobody is there to take what it wrote.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(!place.has("again:1"));
    let server = Server::start(&place.data());
    let job = server.wait_for(&id, "finished");
    assert_eq!((&job["verdict"], &job["attempt"]), (&json!("success"), &json!(2)), "{job}");
    let job = server.run(&script("again:1", "busybox cat /own/made"));
    assert_eq!(job["steps"][0]["stdout"], "whole\n", "{job}");
}

#[test]
fn commits_and_prunes_do_not_disturb_each_other() {
    let place = Place::new();
    let server = Server::start(&place.data());
    std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            for _ in 0..20 {
                assert!(place.lazaret(&["image", "prune"]).status.success());
            }
        });
        for number in 0..10 {
            // The name is taken from the image before.
            let job =
                server.run(&committing("base", &format!("echo {number} > /own/n"), "pruned:1"));
            assert_eq!(job["verdict"], "success", "{job}");
        }
        pruning.join().expect("pruned");
    });
    let job = server.run(&script("pruned:1", "busybox cat /own/n"));
    assert_eq!(job["steps"][0]["stdout"], "9\n", "{job}");
}

#[test]
fn a_run_without_a_server_can_be_committed_and_others_take_what_is_exported() {
    let place = Place::new();
    let words = ["run", "--image", "base", "--user", "0", "--commit", "run:2", "--"];
    let text = "busybox rm /etc/kept; echo by root > /root.txt";
    let ran = place.lazaret(&[&words[..], &["/bin/sh", "-ec", text]].concat());
    assert!(ran.status.success(), "{ran:?}");
    let layout = place.directory.path().join("layout");
    let to = layout.to_str().expect("UTF-8");
    let exported = place.lazaret(&["image", "export", "run:2", to]);
    assert!(exported.status.success(), "{exported:?}");
    let digest = digest_by_skopeo(&layout, "2");
    assert!(String::from_utf8_lossy(&exported.stdout).contains(&digest));
    let again = place.lazaret(&["image", "export", "run:2", to]);
    assert_eq!(again.status.code(), Some(2), "it is there already: {again:?}");
    let host = place.directory.path().join("host");
    let host = place.lazaret(&["image", "export", "host", host.to_str().expect("UTF-8")]);
    assert_eq!(host.status.code(), Some(2), "{host:?}");
    // What comes back is what went out.
    assert!(place.lazaret(&["image", "import", to, "back"]).status.success());
    let ran = place.lazaret(&[
        "run",
        "--image",
        "back",
        "--",
        "/bin/sh",
        "-c",
        "busybox cat /root.txt; busybox ls /etc",
    ]);
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "by root\nhostname\nhosts\nresolv.conf\n");
    let index = std::fs::read(place.data().join("images/index.json")).expect("read");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index["layers"].as_array().map(Vec::len), Some(2), "they are the same layers");
}

/// The digest of an image in a layout, by a tool of others that reads all that describes it.
fn digest_by_skopeo(layout: &Path, tag: &str) -> String {
    let mut command = Command::new("skopeo");
    let inspected = command.arg("inspect").arg(format!("oci:{}:{tag}", layout.display())).output();
    let inspected = inspected.expect("`packaging/setup` installs skopeo");
    assert!(inspected.status.success(), "{inspected:?}");
    let inspected: Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    inspected["Digest"].as_str().expect("a digest").to_owned()
}
