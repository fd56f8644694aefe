//! Root file systems that lazaret unpacks are those that `umoci` unpacks from the same image: it
//! applies one layer after another to one directory, where ours are put one on another by the
//! kernel.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(clippy::disallowed_methods, reason = "others' tools make what ours is compared with")]

mod registry;

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use registry::client::Client;
use registry::images::{self, LAYOUT_TAG, Made, OCI_LAYER, architecture, noise};
use registry::layers::{self, Entry, directory, fifo, file, hard_link};
use registry::trees::{described, merged};

/// When most files were changed.
const SOME_TIME: u64 = 1_234_567_890;

/// Checks that both unpack these layers alike, the lowest first. Answers with what they unpacked.
///
/// What the kernel merges has one thing of its own, which no test here has: a file that lost one of
/// its names to a layer above still counts it.
fn unpacked(layers: &[Vec<u8>]) -> Vec<String> {
    alike(&image_of(layers), &image_of(layers))
}

/// Checks that lazaret unpacks the one image as umoci does the other.
fn alike(made: &Made, their_made: &Made) -> Vec<String> {
    let client = Client::new();
    let [layout, their_layout, bundle] =
        ["layout", "their-layout", "bundle"].map(|name| client.data().join(name));
    images::write_layout(&layout, made, &[]);
    images::write_layout(&their_layout, their_made, &[]);
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image"]).arg(format!("{}:{LAYOUT_TAG}", their_layout.display()));
    let told = umoci.arg(&bundle).output().expect("`packaging/setup` installs umoci");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told = client.run(&["image", "import", &layout.to_string_lossy(), "it"]);
    assert_eq!(told.code, 0, "{told:?}");
    let theirs = described(&bundle.join("rootfs"));
    let ours = merged(&client.layers_of("it"));
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line)).cloned().collect()
    };
    let (missing, wrong) = (only(&theirs, &ours), only(&ours, &theirs));
    assert!(missing.is_empty() && wrong.is_empty(), "umoci: {missing:#?}\nlazaret: {wrong:#?}");
    assert_eq!(ours, theirs);
    ours
}

fn image_of(layers: &[Vec<u8>]) -> Made {
    let layers: Vec<_> = layers.iter().map(|layer| (OCI_LAYER, layer.clone())).collect();
    images::image_of("linux", architecture(), &layers)
}

/// A layer with every kind of entry that an image may have.
fn everything() -> Vec<Entry> {
    let symlink = layers::symlink;
    vec![
        directory("./"),
        directory("etc/").modified_at(SOME_TIME),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\n").mode(0o644).modified_at(SOME_TIME),
        file("etc/shadow", b"root:*:::::::\n").mode(0o640).owner(0, 42),
        directory("tmp/").mode(0o1777),
        directory("srv/shared/").mode(0o2775).owner(0, 1000),
        directory("home/"),
        directory("home/ann/").mode(0o700).owner(1000, 1000),
        file("home/ann/.profile", b"umask 077\n").mode(0o600).owner(1000, 1000),
        file("home/last", b"").owner(65_534, 65_534),
        directory("usr/bin/"),
        file("usr/bin/su", b"su").mode(0o4755).modified_at(SOME_TIME),
        hard_link("usr/bin/sudo", "usr/bin/su"),
        hard_link("bin/su", "usr/bin/su"),
        hard_link("a/lower-name", "./usr/bin/su"),
        file("usr/bin/wall", b"wall").mode(0o2755).owner(0, 5),
        symlink("lib", "usr/lib"),
        symlink("usr/lib/up", "../bin/su").owner(3, 4).modified_at(SOME_TIME),
        symlink("usr/lib/absolute", "/etc/passwd"),
        symlink("usr/lib/dangling", "/nowhere/at/all"),
        symlink("usr/lib/far", &"../usr/lib/".repeat(30)),
        hard_link("usr/lib/second", "usr/lib/dangling"),
        fifo("run/pipe").mode(0o622).owner(7, 8).modified_at(SOME_TIME),
        file("empty", b"").mode(0),
        file("large", &noise(3 << 20)).modified_at(SOME_TIME),
        file("x".repeat(150), b"long for a header"),
        file(format!("{}/{}", "d".repeat(200), "e".repeat(200)), b"long for two"),
        file(format!("{}/{}", "f".repeat(200), "g".repeat(200)), b"told by pax").named_by_pax(),
        directory(format!("{}/", "h".repeat(255))).named_by_pax(),
        file(b"not \xff UTF-8 \xc3", b"Latin"),
        file("with\nnewline", b""),
        file("noted", b"").xattr("user.note", b"kept").xattr("user.bytes", b"\x00\xff"),
        directory("noted.d/").mode(0o750).xattr("user.note", b"kept, too"),
        file("later", b"").modified_at(4_000_000_000),
    ]
}

#[test]
fn what_an_archive_can_hold_is_unpacked_alike() {
    let seen = unpacked(&[layers::archive(&everything())]);
    assert!(seen.len() > 40, "{seen:#?}");
    let noted = seen.iter().find(|line| line.starts_with("\"noted.d\"")).expect("there");
    assert!(noted.contains("40750 0:0 [(\"user.note\", \"kept, too\")]"), "{noted}");
}

#[test]
fn layers_that_hide_and_replace_are_unpacked_alike() {
    let below = [
        directory("./"),
        file("old/kept", b"kept"),
        file("old/gone", b"gone"),
        file("old/gone.d/x", b"x"),
        file("old/again", b"first").mode(0o4755),
        file("opaque/gone", b"gone"),
        file("opaque/gone.d/x", b"x"),
        file("opaque/replaced", b"first"),
        file("becomes.d", b"file"),
        file("becomes/x", b"directory"),
        file("becomes.link/x", b"directory"),
        layers::symlink("was.link", "old"),
        file("mode", b"same"),
        directory("mode.d/").mode(0o700),
    ];
    let above = [
        file("old/.wh.gone", b""),
        file("old/.wh.gone.d", b""),
        file("old/.wh.never", b""),
        file("old/again", b"second").mode(0o600).owner(1, 1),
        directory("opaque/").mode(0o711),
        file("opaque/.wh..wh..opq", b""),
        file("opaque/replaced", b"second"),
        directory("becomes.d/"),
        file("becomes.d/x", b"directory"),
        file("becomes", b"file"),
        layers::symlink("becomes.link", "old"),
        directory("was.link/"),
        file("was.link/x", b"x"),
        file("mode", b"same").mode(0o4711).xattr("user.note", b"new"),
        directory("mode.d/").mode(0o1755).owner(5, 6).xattr("user.note", b"new"),
    ];
    let top = [
        file("old/gone", b"there again"),
        directory("opaque/").mode(0o711),
        file("opaque/gone.d/y", b"y"),
        directory("old/gone.d/"),
        file("old/.wh.again", b""),
        file(".wh.becomes.d", b""),
    ];
    let seen = unpacked(&[&below[..], &above, &top].map(layers::archive));
    let has = |name: &str| seen.iter().any(|line| line.starts_with(&format!("\"{name}\"")));
    assert!(has("old/gone") && has("old/gone.d") && has("opaque/gone.d/y"), "{seen:#?}");
    let gone = ["old/gone.d/x", "opaque/gone", "opaque/gone.d/x", "old/again", "becomes.d"];
    assert!(!gone.iter().any(|name| has(name)), "{seen:#?}");
}

#[test]
fn directories_that_a_layer_leaves_out_are_as_lower_layers_have_them() {
    let above = [
        file("home/ann/notes", b"mine").owner(1000, 1000),
        file("tmp/left", b"").mode(0o600),
        file("srv/shared/file", b"shared"),
        file("noted.d/x", b"x"),
        file("usr/bin/.wh.wall", b""),
        file("new/deep/file", b"new"),
    ];
    let top = [file("home/ann/more", b"mine"), file("new/deep/more", b"new")];
    let layers = [&everything()[..], &above, &top].map(layers::archive);
    let seen = unpacked(&layers);
    assert!(seen.iter().any(|line| line.starts_with("\"tmp\" 41777")), "{seen:#?}");
}

/// An archive of a tree, by GNU's tar: pax with attributes, or its own form with sparse files.
fn tar_of(tree: &Path, options: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.args(options).arg("-C").arg(tree).args(["-c", "."]);
    let told = tar.output().expect("`packaging/setup` installs tar");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    told.stdout
}

/// A tree that a busybox lives in.
fn busybox_tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a directory");
    let root = tree.path();
    for name in ["bin", "etc", "root", "sbin", "tmp", "usr/bin", "usr/sbin", "var/lib"] {
        fs::create_dir_all(root.join(name)).expect("made");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("`packaging/setup` installs it");
    let mut install = Command::new("chroot");
    install.arg(root).args(["/bin/busybox", "--install"]);
    assert!(install.status().expect("started").success());
    symlink("/proc/mounts", root.join("etc/mtab")).expect("linked");
    chown(root.join("var/lib"), Some(10), Some(20)).expect("owned");
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("set");
    let flags = rustix::fs::XattrFlags::CREATE;
    rustix::fs::setxattr(root.join("var/lib"), "user.note", b"kept", flags).expect("set");
    tree
}

#[test]
fn what_tar_makes_of_a_busybox_is_unpacked_alike() {
    let tree = busybox_tree();
    let layer = tar_of(tree.path(), &["--format=pax", "--xattrs"]);
    let seen = unpacked(&[layer]);
    let busybox = seen.iter().find(|line| line.starts_with("\"bin/busybox\"")).expect("there");
    let links = busybox.split("[] ").nth(1).and_then(|rest| rest.split(' ').next());
    assert!(links.expect("a number").parse::<u32>().expect("a number") > 100, "{busybox}");
}

#[test]
fn a_sparse_file_is_what_it_would_be_if_it_were_not() {
    let tree = tempfile::tempdir().expect("a directory");
    let sparse = fs::File::create(tree.path().join("sparse")).expect("made");
    for place in 0..40_u64 {
        sparse.write_all_at(&place.to_le_bytes(), place << 18).expect("written");
    }
    sparse.set_len(11 << 20).expect("grown");
    let [short, whole] =
        [&["--format=gnu", "--sparse"][..], &["--format=pax"]].map(|how| tar_of(tree.path(), how));
    assert!(short.len() < 1 << 20 && whole.len() > 11 << 20, "{}", short.len());
    // This umoci knows no sparse files.
    alike(&image_of(&[short]), &image_of(&[whole]));
}
