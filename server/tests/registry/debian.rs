//! Debian's `docker-registry`, filled by `skopeo`: what is pulled from was not made by us.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::images::{self, LAYOUT_TAG, Made};

/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A registry that ends with the test.
pub(crate) struct Debian {
    child: Child,
    address: String,
    directory: tempfile::TempDir,
}

impl Debian {
    #[expect(clippy::disallowed_methods, reason = "it is what images are pulled from")]
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address").to_string();
        drop(free);
        let storage = directory.path().join("storage");
        let config = json!({
            "version": "0.1",
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": storage } },
            "http": { "addr": address },
        });
        let path = directory.path().join("registry.yml");
        std::fs::write(&path, config.to_string()).expect("written");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("`packaging/setup` installs docker-registry");
        let registry = Self { child, address, directory };
        let start = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            assert!(start.elapsed() < PATIENCE, "docker-registry does not listen");
            std::thread::yield_now();
        }
        registry
    }

    /// A reference to what it has.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Has `made`, with all others if it is an index of these, under `reference`.
    pub(crate) fn push(&self, reference: &str, made: &Made, others: &[&Made]) {
        let layout = self.directory.path().join(made.manifest.digest.trim_start_matches("sha256:"));
        images::write_layout(&layout, made, others);
        let source = format!("oci:{}:{LAYOUT_TAG}", layout.display());
        self.copy(&source, reference);
    }

    #[expect(clippy::disallowed_methods, reason = "a tool of others makes what is pulled")]
    fn copy(&self, source: &str, reference: &str) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--all", "--dest-tls-verify=false", source]);
        command.arg(format!("docker://{}", self.reference(reference)));
        // Its cache would remember other tests' registries.
        command.env("XDG_DATA_HOME", self.directory.path()).env("HOME", self.directory.path());
        assert!(command.status().expect("`packaging/setup` installs skopeo").success());
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
