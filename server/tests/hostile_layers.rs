//! Images made to do harm, pulled and imported: each is refused with a line that names image and
//! layer, leaves nothing in the store, and changes nothing beside it.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

mod registry;

use std::path::{Path, PathBuf};

use registry::Registry;
use registry::client::{Client, Told};
use registry::images::{self, Blob, Made, OCI_LAYER, architecture, noise};
use registry::layers::{self, Entry, device, directory, file, hard_link, symlink};
use registry::trees::described;
use tar::EntryType;

/// The layer that stands for all layers of the built-in image.
const HOST_LAYERS: usize = 1;
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Zeros of a bomb, and what it may unpack to.
const BOMB_BYTES: usize = 16 << 20;
const MAX_UNPACKED: &str = "1M";

/// What an attack would change: a tree beside the store, and a file that every host has.
struct Canaries {
    tree: tempfile::TempDir,
    before: Vec<String>,
}

impl Canaries {
    fn new() -> Self {
        let tree = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(tree.path().join("d")).expect("made");
        for name in ["canary", "d/canary", "passwd"] {
            std::fs::write(tree.path().join(name), "alive").expect("written");
        }
        let before = Self::seen(tree.path());
        Self { tree, before }
    }

    fn seen(tree: &Path) -> Vec<String> {
        [described(tree), described(Path::new("/etc/passwd"))].concat()
    }

    fn path(&self, name: &str) -> String {
        self.tree.path().join(name).to_str().expect("text").to_owned()
    }

    fn check(&self, what: &str) {
        assert_eq!(Self::seen(self.tree.path()), self.before, "{what}");
    }
}

fn one_layer(kind: &str, archive: Vec<u8>) -> Made {
    images::image_of("linux", architecture(), &[(kind, archive)])
}

/// Has the image refused however it comes. Nothing may be left of it.
fn refused(made: &Made, more: &[&str], words: &str) {
    let (registry, client) = (Registry::start(), Client::new());
    registry.put("latest", made);
    let pulled = client.pull(&registry.reference("test/image"), more);
    is_refusal(&client, &pulled, words);
    assert!(pulled.err.contains(&registry.reference("test/image:latest")), "{pulled:?}");
    assert!(pulled.err.contains(&made.layers[0].digest), "{pulled:?}");
    let layout = client.data().join("layout");
    images::write_layout(&layout, made, &[]);
    let source = layout.to_string_lossy();
    let imported = client.run(&[&["image", "import", &source, "it"], more].concat());
    is_refusal(&client, &imported, words);
    let layer = format!("`{source}`: layer `sha256:");
    assert!(imported.err.contains(&layer), "{imported:?}");
}

fn is_refusal(client: &Client, told: &Told, words: &str) {
    assert_eq!(told.code, 2, "{told:?}");
    assert_eq!(told.err.lines().count(), 1, "{told:?}");
    assert!(told.err.contains(words), "{words}: {told:?}");
    assert!(client.images().is_empty(), "{told:?}");
    assert_eq!((client.layers(), client.known_layers()), ((HOST_LAYERS, 0), 0), "{told:?}");
}

/// Attacks, and words that say of each why it is refused.
fn attacks(canaries: &Canaries) -> Vec<(Vec<Entry>, &'static str)> {
    let (tree, canary) = (canaries.path(""), canaries.path("canary"));
    let dead = |name: &str| file(name, b"dead");
    vec![
        (vec![dead("../../etc/passwd")], "leaves the image by `..`"),
        (vec![dead("/etc/../../../../../../etc/passwd")], "leaves the image by `..`"),
        (vec![dead("d/../../../../canary")], "leaves the image by `..`"),
        (vec![symlink("x", "/etc"), dead("x/passwd")], "has a symbolic link for a parent"),
        (vec![symlink("x", &tree), dead("x/canary")], "has a symbolic link for a parent"),
        (vec![symlink("x", "../.."), dead("x/y/canary")], "has a symbolic link for a parent"),
        (vec![symlink("x", &tree), directory("x/")], "has a"),
        (vec![symlink("x", &tree), directory("x/new/")], "has a symbolic link for a parent"),
        (vec![symlink("x", &canary), dead("x")], "is there twice"),
        (vec![symlink("x", "/etc"), file("x/.wh.passwd", b"")], "has a symbolic link"),
        (vec![symlink("x", &tree), file("x/.wh..wh..opq", b"")], "has a symbolic link"),
        (vec![hard_link("x", &canary), dead("x")], "that is not in the layer"),
        (vec![hard_link("x", "/etc/passwd")], "that is not in the layer"),
        (vec![hard_link("x", "../../../../../../etc/passwd")], "leaves the image by `..`"),
        (vec![symlink("d", &tree), hard_link("x", "d/canary")], "that is not in the layer"),
        (vec![symlink("d", "/etc"), hard_link("x", "d/passwd")], "that is not in the layer"),
        (vec![device("null", EntryType::Char)], "is a device"),
        (vec![device("disk", EntryType::Block)], "is a device"),
        (vec![file("x", b"one"), dead("x")], "is there twice"),
        (vec![file("x", b"one"), dead("x/y")], "has a parent that is no directory"),
    ]
}

#[test]
fn no_entry_reaches_beyond_its_layer() {
    let canaries = Canaries::new();
    for (entries, words) in attacks(&canaries) {
        refused(&one_layer(OCI_LAYER, layers::archive(&entries)), &[], words);
        canaries.check(&format!("{entries:?}"));
    }
}

#[test]
fn what_is_refused_among_other_layers_keeps_their_image_away() {
    let canaries = Canaries::new();
    let hostile = [symlink("x", "/etc"), file("x/passwd", b"dead")];
    let layers = [(OCI_LAYER, images::archive(&[("good", b"good")]))];
    let layers = [&layers[..], &[(OCI_LAYER, layers::archive(&hostile))]].concat();
    let made = images::image_of("linux", architecture(), &layers);
    let (registry, client) = (Registry::start(), Client::new());
    registry.put("latest", &made);
    let told = client.pull(&registry.reference("test/image"), &[]);
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.err.contains(&made.layers[1].digest), "{told:?}");
    assert!(client.images().is_empty());
    assert_eq!(client.run(&["image", "prune"]).code, 0);
    assert_eq!(client.layers(), (HOST_LAYERS, 0));
    canaries.check("two layers");
}

#[test]
fn a_bomb_stops_at_what_may_be_unpacked() {
    let bomb = images::archive(&[("zeros", &vec![0; BOMB_BYTES])]);
    for kind in [OCI_LAYER, ZSTD_LAYER] {
        let made = one_layer(kind, bomb.clone());
        let sent = made.layers[0].size;
        assert!(sent < 1 << 20, "{kind}: it has {sent} bytes");
        refused(&made, &["--max-unpacked", MAX_UNPACKED], "too large: more than 1048576 bytes");
    }
}

#[test]
fn a_layer_that_ends_too_early_is_refused() {
    let whole = images::archive(&[("whole", b"whole"), ("cut", &noise(10_000))]);
    for kind in [OCI_LAYER, ZSTD_LAYER] {
        refused(&one_layer(kind, whole[..6000].to_vec()), &[], "entry `cut`");
    }
    // What is compressed ends too early, and its digest is right.
    let sent = images::gzip(&whole);
    let cut = Blob::new(OCI_LAYER, sent[..sent.len() - 6].to_vec());
    let for_us = ("linux", architecture());
    let made = images::image_of_blobs(for_us, vec![cut], &[images::digest(&whole)]);
    refused(&made, &[], "could");
}

/// More than a small disk has room for, above a layer that it has room for. Zeros would take none.
fn large() -> Made {
    let archives = [("small", 1 << 20), ("large", 24 << 20), ("other", 1 << 20)]
        .map(|(name, bytes)| (OCI_LAYER, images::archive(&[(name, &vec![b'x'; bytes])])));
    images::image_of("linux", architecture(), &archives)
}

/// What was refused for want of room leaves it to an image that fits.
fn has_room_again(client: &Client, told: &Told) {
    assert_eq!(told.code, 1, "{told:?}");
    assert!(
        told.err.contains("the disk is full") || told.err.contains("No space left"),
        "{told:?}"
    );
    assert!(told.err.contains("sha256:"), "{told:?}");
    assert!(client.images().is_empty());
    assert_eq!(client.run(&["image", "prune"]).code, 0);
    assert_eq!((client.layers(), client.known_layers()), ((HOST_LAYERS, 0), 0), "{told:?}");
    let registry = Registry::start();
    registry.put("latest", &images::named("small"));
    let told = client.pull(&registry.reference("test/image"), &[]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(client.name_in(&registry.reference("test/image:latest")), "small");
}

#[test]
fn a_pull_that_the_disk_has_no_room_for_leaves_all_of_it() {
    let (registry, client) = (Registry::start(), Client::on_small_disk(16));
    registry.put("latest", &large());
    let told = client.pull(&registry.reference("test/image"), &[]);
    assert!(told.err.contains(&registry.reference("test/image:latest")), "{told:?}");
    has_room_again(&client, &told);
}

#[test]
fn an_import_that_the_disk_has_no_room_for_leaves_all_of_it() {
    let (elsewhere, client) =
        (tempfile::tempdir().expect("a directory"), Client::on_small_disk(16));
    let layout: PathBuf = elsewhere.path().join("layout");
    images::write_layout(&layout, &large(), &[]);
    let told = client.run(&["image", "import", &layout.to_string_lossy(), "it"]);
    assert!(told.err.contains(&*layout.to_string_lossy()), "{told:?}");
    has_room_again(&client, &told);
}
