//! `lazaret image` as people call it, in a data directory of its own.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A data directory, and a home without docker.
pub(crate) struct Client {
    directory: tempfile::TempDir,
    /// Keeps the disk, and says where it can be seen.
    disk: Option<Child>,
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
        Self { directory: tempfile::tempdir().expect("a directory"), disk: None }
    }

    /// One whose data are on a disk of `mib` MiB of their own, which goes with it.
    #[expect(clippy::disallowed_methods, reason = "as an operator would make one")]
    pub(crate) fn on_small_disk(mib: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let script = format!("mount -t tmpfs -o size={mib}m tmpfs \"$0\" && echo && exec cat");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(directory.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut disk = command.spawn().expect("started");
        let ready = disk.stdout.as_mut().expect("piped").read_exact(&mut [0]);
        ready.expect("mounted");
        Self { directory, disk: Some(disk) }
    }

    pub(crate) fn data(&self) -> &Path {
        self.directory.path()
    }

    /// The same, where the test sees it.
    fn seen_data(&self) -> PathBuf {
        let Some(disk) = &self.disk else { return self.data().to_owned() };
        let root = PathBuf::from(format!("/proc/{}/root", disk.id()));
        root.join(self.data().strip_prefix("/").expect("absolute"))
    }

    /// A command of this binary that works here.
    #[expect(clippy::disallowed_methods, reason = "the binary is what is tested")]
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = match &self.disk {
            None => Command::new(env!("CARGO_BIN_EXE_lazaret")),
            Some(disk) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--mount=/proc/{}/ns/mnt", disk.id()));
                command.arg(env!("CARGO_BIN_EXE_lazaret"));
                command
            }
        };
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
        let text = std::fs::read(self.seen_data().join("images/index.json")).unwrap_or_default();
        let index: Value = serde_json::from_slice(&text).unwrap_or_default();
        index["layers"].as_array().map_or(0, Vec::len)
    }

    /// The directories of layers that are whole, and those that come or go. The built-in image's
    /// is one.
    pub(crate) fn layers(&self) -> (usize, usize) {
        let Ok(found) = std::fs::read_dir(self.seen_data().join("images/layers")) else {
            return (0, 0);
        };
        let names = found.map(|entry| entry.expect("an entry").file_name());
        let is_whole = |name: &OsString| {
            let name = name.to_string_lossy();
            !name.starts_with("new-") && !name.starts_with("old-")
        };
        let (whole, rest): (Vec<_>, Vec<_>) = names.partition(is_whole);
        (whole.len(), rest.len())
    }

    /// What a job in this image finds to be its name.
    pub(crate) fn name_in(&self, image: &str) -> String {
        self.said_in(image, &["/bin/cat", "/name"])
    }

    /// What a program in this image says.
    pub(crate) fn said_in(&self, image: &str, command: &[&str]) -> String {
        let mut run = self.command(&["run", "--image", image]);
        let told = Told::from(run.arg("--").args(command).output().expect("started"));
        assert_eq!(told.code, 0, "{told:?}");
        told.out
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        // It may have ended by itself.
        drop(disk.kill());
        drop(disk.wait());
    }
}

/// The name of a layer's directory: the first 120 bits of its digest.
fn directory_of(digest: &str) -> &str {
    &digest.trim_start_matches("sha256:")[..30]
}
