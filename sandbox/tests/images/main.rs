//! Images go into a store and come out as directories; nothing else on the host is touched.

#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

mod bundles;
mod copying;
mod documents;
mod hostile;
mod keeping;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lazaret_sandbox::image::{Bounds, Error, Image, ImageStore, ImportOptions};
use tar::{EntryType, Header};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// A store, a place for archives beside it, and a file that nothing may change.
struct Place {
    directory: tempfile::TempDir,
    store: ImageStore,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("canary"), "alive").expect("written");
        let store = ImageStore::open(&directory.path().join("images")).expect("opened");
        Self { directory, store }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).expect("written");
        path
    }

    fn import(&self, archive: &[u8]) -> Result<Image, Error> {
        let bounds = Bounds { unpacked_bytes: 1 << 20, entries: 100 };
        let small = ImportOptions { bounds, ..ImportOptions::default() };
        self.store.import_with(&self.write("layer.tar", archive), "it", (NOW, &small))
    }

    fn root_of(&self, image: &Image) -> PathBuf {
        self.store.rootfs(image).paths()[0].clone()
    }

    fn layer_directories(&self) -> usize {
        fs::read_dir(self.directory.path().join("images/layers")).expect("read").count()
    }

    /// Imports what must be refused. Answers with the reason.
    fn refuse(&self, archive: &[u8]) -> String {
        let error = self.import(archive).expect_err("refused");
        let canary = fs::read_to_string(self.directory.path().join("canary"));
        assert_eq!(canary.expect("the canary"), "alive", "{error}");
        assert_eq!(self.store.list().expect("listed").len(), 1, "{error}");
        assert_eq!(self.layer_directories(), 1, "{error}");
        error.to_string()
    }
}

/// One entry of an archive; the name is written as it is, whatever the tar crate thinks of it.
fn entry(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    header.set_device_major(1).expect("set");
    header.set_device_minor(3).expect("set");
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, name, "", content)
}

fn directory(name: &str) -> Vec<u8> {
    entry(EntryType::Directory, name, "", b"")
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, name, target, b"")
}

/// A tree with every kind of entry that an image may have.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).expect("made");
    fs::write(root.join("usr/bin/su"), "program").expect("written");
    std::os::unix::fs::chown(root.join("usr/bin/su"), Some(0), Some(50)).expect("owned");
    fs::set_permissions(root.join("usr/bin/su"), fs::Permissions::from_mode(0o4755)).expect("set");
    fs::hard_link(root.join("usr/bin/su"), root.join("sudo")).expect("linked");
    symlink("usr/bin", root.join("bin")).expect("linked");
    symlink("/etc/shadow", root.join("dangling")).expect("linked");
    fs::write(root.join("x".repeat(200)), "").expect("written");
    let deep = root.join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&deep).expect("made");
    fs::write(deep.join("file"), "deep").expect("written");
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    rustix::fs::setxattr(root, "user.note", b"kept", rustix::fs::XattrFlags::empty()).expect("set");
    let sparse = fs::File::create(root.join("sparse")).expect("made");
    sparse.set_len(600 << 10).expect("grown");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (600 << 10) - 3).expect("written");
}

/// Path, kind and mode, owner, links, size and target of everything below `root`, sorted.
fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).expect("looked at");
        let target = fs::read_link(&path).unwrap_or_default();
        let content = if stat.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
        let size = if stat.is_dir() { 0 } else { stat.size() };
        let links = if stat.is_dir() { 0 } else { stat.nlink() };
        lines.push(format!(
            "{} {:o} {}:{} {links} {size} {} {target:?} {}",
            path.strip_prefix(root).expect("below").display(),
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            content.iter().filter(|byte| **byte != 0).count(),
        ));
        if stat.is_dir() {
            pending.extend(fs::read_dir(&path).expect("read").map(|e| e.expect("read").path()));
        }
    }
    lines.sort();
    lines
}

fn tar_of(tree: &Path, options: &[&str]) -> Vec<u8> {
    #[expect(clippy::disallowed_methods, reason = "another maker of archives, to be read by ours")]
    let output = std::process::Command::new("tar")
        .args(["-c", "--sparse"])
        .args(options)
        .arg("-C")
        .arg(tree)
        .arg(".")
        .output()
        .expect("tar runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_directory_is_imported_as_it_is() {
    let place = Place::new();
    let tree = tempfile::tempdir().expect("a directory");
    make_tree(tree.path());
    let image = place.store.import(tree.path(), "it", NOW).expect("imported");
    let root = place.root_of(&image);
    assert_eq!(describe(&root), describe(tree.path()));
    let mut note = [0; 8];
    assert_eq!(rustix::fs::getxattr(&root, "user.note", &mut note).ok(), Some(4));
    let again = place.store.import(tree.path(), "again", NOW).expect("imported");
    assert_eq!((again.digest, again.layers), (image.digest, image.layers));
    assert_eq!(place.layer_directories(), 2, "the layer is kept once, beside that of `host`");
}

#[test]
fn an_archive_of_either_form_is_imported_as_it_is() {
    let place = Place::new();
    let tree = tempfile::tempdir().expect("a directory");
    make_tree(tree.path());
    let gnu = tar_of(tree.path(), &["--format=gnu"]);
    let image = place.import(&gnu).expect("imported");
    assert_eq!(describe(&place.root_of(&image)), describe(tree.path()));
    let pax = tar_of(tree.path(), &["--format=pax", "--xattrs"]);
    assert!(place.import(&pax).expect_err("refused").to_string().contains("sparse"));
    fs::remove_file(tree.path().join("sparse")).expect("removed");
    let image =
        place.import(&tar_of(tree.path(), &["--format=pax", "--xattrs"])).expect("imported");
    assert_eq!(describe(&place.root_of(&image)), describe(tree.path()));
    let mut note = [0; 8];
    let root = place.root_of(&image);
    assert_eq!(rustix::fs::getxattr(root, "user.note", &mut note).ok(), Some(4));
}

#[test]
fn an_archive_is_the_same_layer_however_it_is_compressed() {
    let place = Place::new();
    let plain = archive(&[directory("etc/"), file("etc/x", b"x")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("compressed");
    let zstd = zstd::encode_all(&plain[..], 1).expect("compressed");
    let image = place.import(&plain).expect("imported");
    assert_eq!(place.import(&gzip.finish().expect("compressed")).expect("imported"), image);
    assert_eq!(place.import(&zstd).expect("imported"), image);
}

#[test]
fn whiteouts_are_translated() {
    let place = Place::new();
    let image = place.import(&archive(&[
        file("etc/.wh.passwd", b""),
        file("var/.wh..wh..opq", b""),
        file(".wh..wh.plnk", b""),
    ]));
    let root = place.root_of(&image.expect("imported"));
    let hidden = fs::symlink_metadata(root.join("etc/passwd")).expect("there");
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    let mut opaque = [0; 1];
    let length = rustix::fs::getxattr(root.join("var"), "trusted.overlay.opaque", &mut opaque);
    assert_eq!((length.ok(), &opaque), (Some(1), b"y"));
    assert_eq!(fs::read_dir(&root).expect("read").count(), 2);
}

#[test]
fn directories_that_an_archive_leaves_out_can_be_entered() {
    let place = Place::new();
    let image = place.import(&archive(&[file("a/b/c", b"c")])).expect("imported");
    let root = place.root_of(&image);
    for path in ["", "a", "a/b"] {
        assert_eq!(fs::metadata(root.join(path)).expect("there").mode() & 0o7777, 0o755, "{path}");
    }
}

#[test]
fn two_stores_import_the_same_at_once() {
    let place = Place::new();
    let path = place.write("layer.tar", &archive(&[file("x", &[1; 5000])]));
    let images = place.directory.path().join("images");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (path, images) = (&path, &images);
            scope.spawn(move || {
                let store = ImageStore::open(images).expect("opened");
                let name = format!("it:{number}");
                store.import(path, &name, NOW).expect("imported");
                assert!(store.get(&name).expect("read").is_some());
                if number % 2 == 1 {
                    store.remove(&name).expect("removed");
                }
            });
        }
    });
    assert_eq!(place.store.list().expect("listed").len(), 5);
    assert_eq!(place.layer_directories(), 2);
}

#[test]
fn what_a_killed_process_left_is_cleaned_and_not_seen() {
    let place = Place::new();
    let images = place.directory.path().join("images");
    fs::create_dir_all(images.join("layers/new-1-0/etc")).expect("made");
    fs::create_dir_all(images.join("layers/0123456789/etc")).expect("made");
    fs::write(images.join("layers/new-1-1"), "").expect("written");
    fs::write(images.join("index.json.new"), "{").expect("written");
    assert_eq!(ImageStore::open(&images).expect("opened").list().expect("listed").len(), 1);
    place.import(&archive(&[file("x", b"")])).expect("imported");
    assert_eq!(place.layer_directories(), 2);
}

#[test]
fn an_image_is_removed_unless_someone_holds_it() {
    let place = Place::new();
    let image = place.import(&archive(&[file("x", b"")])).expect("imported");
    let hold = place.store.hold(&image).expect("held");
    assert!(matches!(place.store.remove("it"), Err(Error::InUse { .. })));
    drop(hold);
    place.store.remove("it").expect("removed");
    assert_eq!(place.layer_directories(), 1);
    assert!(matches!(place.store.remove("it"), Err(Error::NotFound { .. })));
    assert!(matches!(place.store.hold(&image), Err(Error::NotFound { .. })));
    assert!(matches!(place.store.remove("host"), Err(Error::BadName { .. })));
    assert!(matches!(place.store.remove("../x"), Err(Error::BadName { .. })));
}

#[test]
fn a_held_layer_outlives_its_name() {
    let place = Place::new();
    let old = place.import(&archive(&[file("old", b"")])).expect("imported");
    let hold = place.store.hold(&old).expect("held");
    let new = place.import(&archive(&[file("new", b"")])).expect("imported");
    assert!(place.root_of(&old).join("old").exists());
    assert_eq!(place.store.get("it").expect("read"), Some(new));
    drop(hold);
    place.import(&archive(&[file("newest", b"")])).expect("imported");
    assert!(!place.root_of(&old).exists());
}

#[test]
fn the_built_in_image_is_always_there() {
    let place = Place::new();
    let image = place.store.get("host").expect("read").expect("there");
    let rootfs = place.store.rootfs(&image);
    assert!(!rootfs.is_id_mapped);
    for bind in &rootfs.binds {
        let target = fs::symlink_metadata(rootfs.paths()[0].join(&bind.target)).expect("there");
        assert_eq!(target.is_dir(), bind.source.is_dir(), "{bind:?}");
    }
    for absent in ["etc/shadow", "etc/ssh", "etc/ssl/private", "srv", "home/user"] {
        assert!(!rootfs.paths()[0].join(absent).exists(), "{absent}");
    }
    let user = place.store.resolve_user(&image, "lazaret").expect("found");
    assert_eq!((user.uid, user.gid), (1000, 1000));
    let mode = fs::metadata(place.directory.path().join("images")).expect("there").mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn the_built_in_images_layer_is_held_while_its_store_is_open() {
    use rustix::fs::{FlockOperation, flock};
    let place = Place::new();
    let image = place.store.get("host").expect("read").expect("there");
    let layer = fs::File::open(place.root_of(&image)).expect("opened");
    assert!(flock(&layer, FlockOperation::NonBlockingLockExclusive).is_err());
    drop(place.store);
    flock(&layer, FlockOperation::NonBlockingLockExclusive).expect("free");
}
