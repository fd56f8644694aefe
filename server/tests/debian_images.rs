//! Images with a whole Debian in them, out of a registry: as people have them.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "tools of others make what is pulled")]

mod registry;

use std::path::{Path, PathBuf};
use std::process::Command;

use registry::client::Client;
use registry::debian::Debian;
use registry::images::{self, Blob, Made, OCI_LAYER, architecture, digest};

/// The layer that stands for all layers of the built-in image.
const HOST_LAYERS: usize = 1;
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The compression that costs the least.
const FAST: i32 = 1;

/// The archive of a Debian with nothing but what every Debian has. It takes a minute to make, and
/// is kept for the next time.
fn debian() -> PathBuf {
    let release = std::fs::read_to_string("/etc/os-release").expect("a Debian");
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.expect("a release with a name");
    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("debian-{name}.tar"));
    if !archive.exists() {
        let made = archive.with_extension(format!("{}.tar", std::process::id()));
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--variant=essential", "--skip=output/dev", name]).arg(&made);
        let made_it = command.status().expect("`packaging/setup` installs mmdebstrap");
        assert!(made_it.success(), "mmdebstrap could not make a Debian");
        std::fs::rename(made, &archive).expect("named");
    }
    archive
}

/// What its kind says of a layer, compressed, and the digest of what is in it.
struct Layers {
    gzip: Blob,
    zstd: Blob,
    diff_id: String,
}

fn debian_layers() -> Layers {
    let archive = debian();
    let tar = std::fs::read(&archive).expect("read");
    let gzip = Command::new("gzip").args(["-n", "-1", "-c"]).arg(&archive).output().expect("gzip");
    assert!(gzip.status.success());
    let zstd = zstd::encode_all(tar.as_slice(), FAST).expect("compressed");
    Layers {
        gzip: Blob::new(OCI_LAYER, gzip.stdout),
        zstd: Blob::new(ZSTD_LAYER, zstd),
        diff_id: digest(&tar),
    }
}

/// An image of this layer of Debian, below one with only a name in it.
fn named(name: &str, debian: &Blob, diff_id: &str) -> Made {
    let top = images::archive(&[("name", name.as_bytes())]);
    let diff_ids = [diff_id.to_owned(), digest(&top)];
    let top = Blob::new(OCI_LAYER, images::gzip(&top));
    images::image_of_blobs(("linux", architecture()), vec![debian.clone(), top], &diff_ids)
}

/// Which image this is, and which Debian, by a job in it.
fn told_in(client: &Client, image: &str) -> String {
    let mut command = client.command(&["run", "--image", image]);
    let script = "cat /name; perl -e 'print \" \", -x \"/usr/bin/dpkg\"'; stat -c ' %a' /tmp";
    let told = command.args(["--", "/bin/bash", "-c", script]).output().expect("started");
    assert!(told.status.success(), "{told:?}");
    String::from_utf8(told.stdout).expect("text")
}

#[test]
fn images_of_a_debian_are_pulled_listed_run_and_removed() {
    let (registry, client, layers) = (Debian::start(), Client::new(), debian_layers());
    let one = named("one", &layers.gzip, &layers.diff_id);
    // The same files, compressed in another way, are the same layer.
    let two = named("two", &layers.zstd, &layers.diff_id);
    let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
    let alien = images::image_of("linux", other, &[(OCI_LAYER, images::archive(&[("x", b"x")]))]);
    let three = named("three", &layers.gzip, &layers.diff_id);
    let index = images::index(&[("linux", other, &alien), ("linux", architecture(), &three)]);
    registry.push("debian/one:1", &one, &[]);
    registry.push("debian/two:1", &two, &[]);
    registry.push("debian/three:1", &index, &[&alien, &three]);
    let references =
        ["one", "two", "three"].map(|name| registry.reference(&format!("debian/{name}:1")));
    for ((name, made), reference) in
        [("one", &one), ("two", &two), ("three", &three)].into_iter().zip(&references)
    {
        let told = client.pull(reference, &[]);
        assert_eq!(told.code, 0, "{told:?}");
        let expected = format!("{name} 1 1777\n");
        assert_eq!(told_in(&client, reference), expected);
        let by_digest = format!("{}@{}", reference.trim_end_matches(":1"), made.manifest.digest);
        assert_eq!(told_in(&client, &by_digest), expected);
    }
    let names: Vec<_> = client.images().iter().map(|image| image["name"].clone()).collect();
    assert_eq!(names, [&*references[0], &*references[2], &*references[1]]);
    assert_eq!(client.layers(), (HOST_LAYERS + 1 + 3, 0), "one Debian, and three names");
    for (removed, left) in [(&references[0], HOST_LAYERS + 1 + 2), (&references[1], 3)] {
        assert_eq!(client.run(&["image", "rm", removed]).code, 0);
        assert_eq!(client.layers(), (left, 0));
    }
    assert_eq!(told_in(&client, &references[2]), "three 1 1777\n");
    assert_eq!(client.run(&["image", "rm", &references[2]]).code, 0);
    assert_eq!(client.run(&["image", "prune"]).code, 0);
    assert_eq!(client.layers(), (HOST_LAYERS, 0));
}
