//! `lazaret image` as people call it, in a data directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A data directory, and a home without docker.
pub(crate) struct Client {
    directory: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Told {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

impl Client {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn data(&self) -> &Path {
        self.directory.path()
    }

    /// A command of this binary that works here.
    #[expect(clippy::disallowed_methods, reason = "the binary is what is tested")]
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
        command.args(words).arg("--data").arg(self.data());
        command.env("DOCKER_CONFIG", self.data().join("docker"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Told {
        self.command(words).output().expect("started").into()
    }

    /// Pulls from a registry of this host.
    pub(crate) fn pull(&self, reference: &str, more: &[&str]) -> Told {
        self.run(&[&["image", "pull", reference, "--plain-http", "--json"], more].concat())
    }

    /// Starts to pull from a registry of this host.
    pub(crate) fn start_pull(&self, reference: &str) -> Child {
        let mut command = self.command(&["image", "pull", reference, "--plain-http", "--json"]);
        command.spawn().expect("started")
    }

    /// The images that came from elsewhere.
    pub(crate) fn images(&self) -> Vec<Value> {
        let told = self.run(&["image", "ls", "--json"]);
        assert_eq!(told.code, 0, "{told:?}");
        let images: Vec<Value> = serde_json::from_str(&told.out).expect("JSON");
        images.into_iter().filter(|image| image["name"] != "host").collect()
    }

    /// The directories of an image's layers, the topmost first.
    pub(crate) fn layers_of(&self, image: &str) -> Vec<PathBuf> {
        let told = self.run(&["image", "inspect", image]);
        assert_eq!(told.code, 0, "{told:?}");
        let image: Value = serde_json::from_str(&told.out).expect("JSON");
        let layers = image["layers"].as_array().expect("layers").iter();
        let digests = layers.map(|layer| layer["digest"].as_str().expect("a digest"));
        digests.map(|digest| self.data().join("images/layers").join(directory_of(digest))).collect()
    }

    /// The layers that the next pull finds.
    pub(crate) fn known_layers(&self) -> usize {
        let text = std::fs::read(self.data().join("images/index.json")).unwrap_or_default();
        let index: Value = serde_json::from_slice(&text).unwrap_or_default();
        index["layers"].as_array().map_or(0, Vec::len)
    }

    /// The directories of layers that are whole, and of those that are not. The built-in image's
    /// is one.
    pub(crate) fn layers(&self) -> (usize, usize) {
        let Ok(found) = std::fs::read_dir(self.data().join("images/layers")) else {
            return (0, 0);
        };
        let names = found.map(|entry| entry.expect("an entry").file_name());
        let is_whole = |name: &std::ffi::OsString| !name.to_string_lossy().starts_with("new-");
        let (whole, rest): (Vec<_>, Vec<_>) = names.partition(is_whole);
        (whole.len(), rest.len())
    }
}

/// The name of a layer's directory: the first 120 bits of its digest.
fn directory_of(digest: &str) -> &str {
    &digest.trim_start_matches("sha256:")[..30]
}
