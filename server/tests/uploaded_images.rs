//! Images that clients send, as `curl` does.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "the tests are users of the command line")]

mod registry;
mod served;

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;

use registry::images::{archive, busybox, gzip, named, noise};
use serde_json::{Value, json};
use served::{Server, wait_until};
use tempfile::TempDir;

fn served() -> (Server, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    (Server::start(&directory.path().join("data")), directory)
}

/// A root file system that says who it is.
fn root(name: &str) -> Vec<u8> {
    let busybox = busybox();
    archive(&[("bin/sh", &busybox), ("bin/cat", &busybox), ("name", name.as_bytes())])
}

/// Sends an archive, and has the status and what came back.
fn put(server: &Server, path: &str, archive: &[u8]) -> (u16, Value) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, archive).expect("written");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-w", "\n%{http_code}", "-T"]).arg(file.path());
    let output = curl.arg(format!("http://{}{path}", server.address())).output().expect("curl");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), serde_json::from_str(body).expect("JSON"))
}

fn name_in(server: &Server, image: &str) -> Value {
    let job = server.run(&json!({"image": image, "command": ["cat", "/name"]}));
    assert_eq!(job["verdict"], "success", "{job}");
    job["steps"][0]["stdout"].clone()
}

/// The layers on disk, that of the built-in image among them.
fn kept(data: &Path) -> Vec<String> {
    let layers = std::fs::read_dir(data.join("images/layers")).into_iter().flatten().flatten();
    layers.map(|layer| layer.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_root_file_system_that_is_sent_is_an_image() {
    let (server, _directory) = served();
    let (status, image) = put(&server, "/v1/images/own:1", &root("one"));
    assert_eq!((status, &image["name"]), (201, &json!("own:1")), "{image}");
    assert_eq!(server.get("/v1/images/own:1").json(), image);
    assert_eq!(name_in(&server, "own:1"), "one");
    let (status, other) = put(&server, "/v1/images/own:1", &gzip(&root("two")));
    assert_eq!(status, 200, "{other}");
    assert_ne!(image["digest"], other["digest"]);
    assert_eq!(name_in(&server, "own:1"), "two");
}

#[test]
fn an_oci_layout_that_is_sent_keeps_its_digest() {
    let (server, _directory) = served();
    let made = named("laid out");
    let index = json!({"schemaVersion": 2, "manifests": [made.manifest.descriptor()]});
    let index = index.to_string();
    let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let blobs: Vec<(String, &[u8])> = std::iter::once(&made.manifest)
        .chain(made.blobs())
        .map(|blob| (path(&blob.digest), blob.sent.as_slice()))
        .collect();
    let layout: &[u8] = br#"{"imageLayoutVersion": "1.0.0"}"#;
    let mut files = vec![("oci-layout", layout), ("index.json", index.as_bytes())];
    files.extend(blobs.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
    let (status, image) = put(&server, "/v1/images/laid%2Fout", &archive(&files));
    assert_eq!((status, &image["name"]), (201, &json!("laid/out")), "{image}");
    assert_eq!(image["digest"], json!(made.manifest.digest));
    assert_eq!(name_in(&server, "laid/out"), "laid out");
    let path = "/v1/images/none?platform=plan9/mips";
    let (status, problem) = put(&server, path, &archive(&files));
    assert_eq!((status, &problem["code"]), (422, &json!("bad-image")), "{problem}");
}

#[test]
fn what_is_no_image_is_refused() {
    let (server, directory) = served();
    let before = kept(&directory.path().join("data"));
    let outside = archive(&[("../outside", b"x")]);
    for (path, body, code) in [
        ("/v1/images/host", &root("x"), "invalid"),
        ("/v1/images/A", &root("x"), "invalid"),
        ("/v1/images/a?platform=x", &root("x"), "invalid"),
        ("/v1/images/a", &b"no archive".to_vec(), "bad-image"),
        ("/v1/images/a", &Vec::new(), "bad-image"),
        ("/v1/images/a", &outside, "bad-image"),
        ("/v1/images/a", &gzip(&root("x"))[..1000].to_vec(), "bad-image"),
    ] {
        let (status, problem) = put(&server, path, body);
        assert_eq!((status, &problem["code"]), (422, &json!(code)), "{path}: {problem}");
    }
    assert_eq!(put(&server, "/v1/images/a?tag=x", &root("x")).0, 422);
    assert_eq!(server.get("/v1/images/a").status, 404);
    assert_eq!(kept(&directory.path().join("data")), before);
}

#[test]
fn what_does_not_come_whole_leaves_nothing() {
    let (server, directory) = served();
    let before = kept(&directory.path().join("data"));
    let root = root("half");
    let mut stream = TcpStream::connect(server.address()).expect("connected");
    let length = root.len();
    let head = format!("PUT /v1/images/a HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(&root[..length / 2]).expect("sent");
    stream.shutdown(Shutdown::Both).expect("closed");
    // All of the room is there again: this many at once may be sent.
    for _ in 0..8 {
        wait_until("there is room", || put(&server, "/v1/images/b", &root).0 < 300);
    }
    assert_eq!(server.get("/v1/images/a").status, 404);
    let kept = kept(&directory.path().join("data"));
    assert_eq!(kept.len(), before.len() + 1, "{kept:?}");
}

#[test]
fn an_image_that_the_disk_has_no_room_for_leaves_all_of_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start_on_small_disk(&directory.path().join("data"), 16);
    let large = archive(&[("large", &noise(24 << 20))]);
    let (status, problem) = put(&server, "/v1/images/a", &large);
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")), "{problem}");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains("the disk is full"), "{detail}");
    assert_eq!(put(&server, "/v1/images/a", &root("small")).0, 201);
    assert_eq!(name_in(&server, "a"), "small");
}
