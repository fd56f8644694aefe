//! A job runs in the image that it was accepted for, whatever becomes of its name.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "the tests are users of the command line")]

mod served;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use served::{Server, wait_until};

/// Prints the version of its image, and with an argument sleeps first.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <unistd.h>
int main(int count, char **arguments) {
    char text[64] = "";
    FILE *file = fopen("/version", "r");
    if (count > 1) sleep(3600);
    if (file && fgets(text, sizeof text, file)) puts(text);
    return 0;
}
"#;

/// A root file system with the program as `/show`, and this version.
fn make_tree(at: &Path, version: &str) {
    for name in ["dev", "etc", "proc", "tmp"] {
        std::fs::create_dir_all(at.join(name)).expect("made");
    }
    std::fs::write(at.join("version"), version).expect("written");
    let source = at.with_extension("c");
    std::fs::write(&source, PROGRAM).expect("written");
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-o"]).arg(at.join("show")).arg(&source);
    assert!(compiler.status().expect("a compiler").success());
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        make_tree(&directory.path().join("one"), "one");
        make_tree(&directory.path().join("two"), "two");
        let place = Self { directory };
        assert!(place.import("one").status.success());
        place
    }

    /// A server with room for one job at a time.
    fn serve(&self) -> Server {
        let config = "[capacity]\ncpus = 1\n[limits.wall_ms]\ndefault = 60000\n";
        Server::start_with(&self.directory.path().join("data"), config)
    }

    /// `lazaret image …` on the same data directory.
    fn image(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
        command.arg("image").args(arguments);
        command.arg("--data").arg(self.directory.path().join("data")).output().expect("ran")
    }

    /// Gives the name `it` to one of the trees.
    fn import(&self, tree: &str) -> Output {
        let tree = self.directory.path().join(tree);
        self.image(&["import", tree.to_str().expect("UTF-8"), "it"])
    }

    fn layers(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("data/images/layers")).expect("read").count()
    }
}

fn show() -> Value {
    json!({"image": "it", "command": ["/show"]})
}

fn sleep() -> Value {
    json!({"image": "it", "command": ["/show", "sleep"]})
}

#[test]
fn a_queued_job_runs_in_the_image_that_lost_its_name() {
    let place = Place::new();
    let server = place.serve();
    let sleeper = server.submit(&sleep());
    server.wait_for(&sleeper, "running");
    let queued = server.submit(&show());
    let before = server.get(&format!("/v1/jobs/{queued}")).json()["image"]["digest"].clone();
    assert!(place.import("two").status.success());
    assert_ne!(server.get("/v1/images/it").json()["digest"], before);
    // Neither goes while a job needs it.
    assert!(place.image(&["prune"]).status.success());
    server.call("POST", &format!("/v1/jobs/{sleeper}/cancel"), &[], "");
    let job = server.wait_for(&queued, "finished");
    assert_eq!(job["steps"][0]["stdout"], "one\n", "{job}");
    assert_eq!(server.run(&show())["steps"][0]["stdout"], "two\n");
    // The old one is held until its last job has been let go of.
    wait_until("the old image is pruned", || {
        place.image(&["prune"]).status.success() && place.layers() == 2
    });
}

#[test]
fn an_image_that_a_queued_job_needs_is_not_removed() {
    let place = Place::new();
    let server = place.serve();
    let sleeper = server.submit(&json!({"command": ["sleep", "3600"]}));
    server.wait_for(&sleeper, "running");
    let queued = server.submit(&show());
    assert_eq!(server.call("DELETE", "/v1/images/it", &[], "").status, 409);
    let refused = place.image(&["rm", "it"]);
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("image `it` is in use"), "{text}");
    server.call("POST", &format!("/v1/jobs/{queued}/cancel"), &[], "");
    wait_until("the image is free", || {
        server.call("DELETE", "/v1/images/it", &[], "").status == 204
    });
    assert_eq!(server.call("DELETE", "/v1/images/it", &[], "").status, 404);
    assert_eq!(server.post("/v1/jobs", &show()).status, 422);
    assert_eq!(server.call("DELETE", "/v1/images/host", &[], "").status, 422);
}

#[test]
fn a_job_that_waits_through_a_restart_keeps_its_image() {
    let place = Place::new();
    let server = place.serve();
    let sleeper = server.submit(&sleep());
    server.wait_for(&sleeper, "running");
    let queued = server.submit(&show());
    server.signal("KILL");
    assert!(!server.ended().success());
    let server = place.serve();
    assert!(place.import("two").status.success());
    server.call("POST", &format!("/v1/jobs/{sleeper}/cancel"), &[], "");
    let job = server.wait_for(&queued, "finished");
    assert_eq!(job["steps"][0]["stdout"], "one\n", "{job}");
}

#[test]
fn what_an_image_was_made_to_run_is_run_when_a_job_does_not_say() {
    let place = Place::new();
    let server = place.serve();
    let refused = server.post("/v1/jobs", &json!({"image": "it"}));
    assert_eq!(refused.status, 422);
    assert!(refused.body.contains("has no command of its own"), "{}", refused.body);
    // An import of a root file system says nothing of it, so the index is told.
    let index = place.directory.path().join("data/images/index.json");
    let text = std::fs::read_to_string(&index).expect("an index");
    let text = text.replace(r#""command": []"#, r#""command": ["/show"]"#);
    std::fs::write(&index, text).expect("written");
    assert_eq!(server.run(&json!({"image": "it"}))["steps"][0]["stdout"], "one\n");
}
