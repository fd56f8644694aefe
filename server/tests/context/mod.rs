//! A directory to build images in, and a data directory for them.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::registry::client::{Client, Told};

/// A base with the programs of busybox, for Dockerfiles to start with.
pub(crate) const BASE: &str = "FROM scratch AS base\nCOPY busybox /bin/busybox\n\
     RUN [\"/bin/busybox\", \"--install\", \"/bin\"]\n";

pub(crate) struct Context {
    directory: tempfile::TempDir,
    pub(crate) client: Client,
}

impl Context {
    pub(crate) fn new(dockerfile: &str) -> Self {
        let context = Self { directory: tempfile::tempdir().expect("made"), client: Client::new() };
        fs::copy("/bin/busybox", context.path().join("busybox")).expect("copied");
        context.write("Dockerfile", dockerfile);
        context.write("app/words", "pear\napple\n");
        context
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    }

    pub(crate) fn build(&self, more: &[&str]) -> Told {
        let path = self.path().to_str().expect("UTF-8");
        self.client.run(&[&["image", "build", "-t", "built:1", path], more].concat())
    }

    /// Builds; answers with how many steps were as before, and what was printed.
    pub(crate) fn built(&self) -> (usize, String) {
        let told = self.build(&[]);
        assert_eq!(told.code, 0, "{told:?}");
        (told.err.lines().filter(|line| line.ends_with("as before")).count(), told.err)
    }

    /// What a line of shell prints in the image.
    pub(crate) fn shell(&self, line: &str) -> String {
        let mut command = self.client.command(&["run", "--image", "built:1"]);
        let told: Told = command.args(["--", "/bin/sh", "-ec", line]).output().expect("ran").into();
        assert_eq!(told.code, 0, "{told:?}");
        told.out
    }

    /// What a job in the image starts with.
    pub(crate) fn config(&self) -> Value {
        let told = self.client.run(&["image", "inspect", "built:1"]);
        let image: Value = serde_json::from_str(&told.out).expect("JSON");
        image["config"].clone()
    }
}
