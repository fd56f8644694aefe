//! Images of unusual kinds, imported and run: setuid programs, and as many layers as may be.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

mod registry;

use std::os::unix::fs::MetadataExt as _;

use registry::client::{Client, Told};
use registry::images::{self, Made, OCI_LAYER, architecture};
use registry::layers::{self, directory, file};

/// The layer that stands for all layers of the built-in image.
const HOST_LAYERS: usize = 1;
/// The most layers of an image.
const MAX_LAYERS: usize = 128;

fn import(client: &Client, made: &Made) -> Told {
    let layout = tempfile::tempdir().expect("a directory");
    images::write_layout(layout.path(), made, &[]);
    client.run(&["image", "import", &layout.path().to_string_lossy(), "it"])
}

#[test]
fn a_setuid_program_keeps_its_bits_and_gives_nobody_its_owners_rights() {
    let client = Client::new();
    let busybox = images::busybox();
    let layer = layers::archive(&[
        directory("tmp/").mode(0o1777),
        file("bin/busybox", &busybox),
        file("bin/id", &busybox).mode(0o6755),
        file("bin/stat", &busybox).mode(0o4755).owner(1000, 0),
        file("etc/secret", b"secret").mode(0o400),
        file("bin/cat", &busybox).mode(0o4755),
    ]);
    let told = import(&client, &images::image_of("linux", architecture(), &[(OCI_LAYER, layer)]));
    assert_eq!(told.code, 0, "{told:?}");
    let modes = ["busybox", "id", "stat"].map(|name| {
        let stat = std::fs::metadata(client.layers_of("it")[0].join("bin").join(name));
        let stat = stat.expect("there");
        (stat.mode() & 0o7777, stat.uid())
    });
    assert_eq!(modes, [(0o755, 0), (0o6755, 0), (0o4755, 1000)]);
    let seen = client.said_in("it", &["/bin/stat", "-c", "%a %u", "/bin/id"]);
    assert_eq!(seen, "6755 0\n");
    for user in ["0", "1000", "1000:50"] {
        let mut run = client.command(&["run", "--image", "it", "--user", user]);
        let told = run.args(["--", "/bin/id"]).output().expect("started");
        let said = Told::from(told).out;
        let uid = user.split(':').next().expect("a number");
        assert!(said.starts_with(&format!("uid={uid} ")), "{said}");
        assert!(!said.contains("euid=") && !said.contains("egid="), "{said}");
    }
    let mut run = client.command(&["run", "--image", "it", "--user", "1000"]);
    let told = Told::from(run.args(["--", "/bin/cat", "/etc/secret"]).output().expect("started"));
    assert!(told.code == 1 && told.err.contains("Permission denied"), "{told:?}");
}

/// An image of a busybox and above it layers with a file each, so many in all.
fn image_with(layers: usize) -> Made {
    let busybox = images::busybox();
    let base = images::archive(&[("bin/sh", &busybox), ("bin/ls", &busybox)]);
    let numbered = |number: usize| images::archive(&[(&format!("numbers/{number}"), b"")]);
    let archives = std::iter::once(base).chain((1..layers).map(numbered));
    let archives: Vec<_> = archives.map(|archive| (OCI_LAYER, archive)).collect();
    images::image_of("linux", architecture(), &archives)
}

#[test]
fn an_image_of_as_many_layers_as_may_be_is_imported_and_run() {
    let client = Client::on_small_disk(64);
    let told = import(&client, &image_with(MAX_LAYERS));
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(client.layers(), (HOST_LAYERS + MAX_LAYERS, 0));
    let seen = client.said_in("it", &["/bin/ls", "/numbers"]);
    assert_eq!(seen.lines().count(), MAX_LAYERS - 1, "{seen}");
    assert_eq!(client.run(&["image", "rm", "it"]).code, 0);
    assert_eq!(client.layers(), (HOST_LAYERS, 0));
}

#[test]
fn an_image_of_more_layers_is_refused() {
    let client = Client::new();
    let made = image_with(MAX_LAYERS + 1);
    let told = import(&client, &made);
    assert!(told.code == 2 && told.err.contains("it has 129 layers: 128 at most"), "{told:?}");
    let registry = registry::Registry::start();
    registry.put("latest", &made);
    let told = client.pull(&registry.reference("test/image"), &[]);
    assert!(told.code == 2 && told.err.contains("it has 129 layers: 128 at most"), "{told:?}");
    assert!(told.err.contains(&registry.reference("test/image:latest")), "{told:?}");
    assert_eq!(client.layers(), (HOST_LAYERS, 0));
}
