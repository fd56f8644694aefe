//! Layers made to do harm: each is refused or contained, and leaves nothing behind.

use std::fs;
use std::io::Write as _;

use tar::{Builder, EntryType, Header};

use super::{Place, archive, directory, entry, file, link};

#[test]
fn names_that_would_leave_the_image_do_not() {
    let place = Place::new();
    for name in ["../canary", "a/../../canary", "a/..", "/../canary"] {
        assert!(place.refuse(&archive(&[file(name, b"dead")])).contains("`..`"), "{name}");
    }
    let absolute = place.directory.path().join("canary");
    let absolute = absolute.to_str().expect("text");
    let image = place.import(&archive(&[file(absolute, b"contained")])).expect("imported");
    let inside = place.root_of(&image).join(&absolute[1..]);
    assert_eq!(fs::read_to_string(inside).expect("read"), "contained");
    assert_eq!(fs::read_to_string(absolute).expect("read"), "alive");
}

#[test]
fn nothing_is_written_through_a_link() {
    let place = Place::new();
    let outside = place.directory.path().to_str().expect("text").to_owned();
    let canary = format!("{outside}/canary");
    for target in [outside.as_str(), "../../..", "."] {
        let reason = place.refuse(&archive(&[link("a", target), file("a/canary", b"dead")]));
        assert!(reason.contains("symbolic link"), "{reason}");
        place.refuse(&archive(&[link("a", target), directory("a")]));
        place.refuse(&archive(&[link("a", target), directory("a/b")]));
    }
    let reason = place.refuse(&archive(&[link("a", &canary), file("a", b"dead")]));
    assert!(reason.contains("twice"), "{reason}");
    place.refuse(&archive(&[link("a", &outside), file("a/.wh..wh..opq", b"")]));
    place.refuse(&archive(&[link("a", &outside), file("a/.wh.canary", b"")]));
}

#[test]
fn a_hard_link_reaches_nothing_outside() {
    let place = Place::new();
    let outside = place.directory.path().to_str().expect("text").to_owned();
    let hard = |target: &str| entry(EntryType::Link, "b", target, b"");
    place.refuse(&archive(&[hard("../../../canary")]));
    place.refuse(&archive(&[hard(&format!("{outside}/canary"))]));
    place.refuse(&archive(&[link("a", &outside), hard("a/canary")]));
    place.refuse(&archive(&[directory("a"), hard("a")]));
    // A link to a link is a second name of the link itself.
    let image = place.import(&archive(&[link("a", &format!("{outside}/canary")), hard("a")]));
    assert!(place.root_of(&image.expect("imported")).join("b").is_symlink());
}

#[test]
fn what_no_image_can_have_is_refused() {
    let place = Place::new();
    for kind in [EntryType::Char, EntryType::Block] {
        let reason = place.refuse(&archive(&[entry(kind, "dev/null", "", b"")]));
        assert!(reason.contains("`dev/null` is a device"), "{reason}");
    }
    place.refuse(&archive(&[entry(EntryType::new(b'V'), "volume", "", b"")]));
    place.refuse(&archive(&[file("a", b"1"), file("a", b"2")]));
    place.refuse(&archive(&[file("a", b"1"), file("a/b", b"2")]));
    place.refuse(&archive(&[file("a", b"1"), directory("a")]));
    place.refuse(&archive(&[link("a", "")]));
    place.refuse(&archive(&[file(".", b"1")]));
    place.refuse(&archive(&[file(".wh...", b"")]));
}

#[test]
fn a_layer_beyond_its_bounds_is_refused() {
    let place = Place::new();
    let bomb = archive(&[file("zeros", &vec![0; 8 << 20])]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&bomb).expect("compressed");
    let reason = place.refuse(&gzip.finish().expect("compressed"));
    assert!(reason.contains("more than 1048576 bytes"), "{reason}");
    let many: Vec<_> = (0..101).map(|number| file(&format!("f{number}"), b"")).collect();
    assert!(place.refuse(&archive(&many)).contains("more than 100 entries"));
    assert!(place.import(&archive(&many[..100])).is_ok());
    place.store.remove("it").expect("removed");
    // Directories that are not mentioned count, too.
    let deep = |name: &str| file(&format!("{name}/{}", ["d"; 40].join("/")), b"");
    let reason = place.refuse(&archive(&[deep("a"), deep("b"), deep("c")]));
    assert!(reason.contains("more than 100 entries"), "{reason}");
}

#[test]
fn what_lies_between_entries_is_bounded_too() {
    let place = Place::new();
    let name = entry(EntryType::GNULongName, "././@LongLink", "", &vec![b'x'; 2 << 20]);
    assert!(place.refuse(&archive(&[name, file("x", b"")])).contains("header"));
    let ballast = entry(EntryType::Directory, "a", "", &vec![0; 2 << 20]);
    assert!(place.refuse(&archive(&[ballast])).contains("too large"));
    let trailer = [archive(&[file("x", b"")]), vec![0; 2 << 20]].concat();
    assert!(place.refuse(&trailer).contains("too large"));
    let deep = ["d"; 40].join("/");
    let image = place.import(&archive(&[directory(&deep)])).expect("imported");
    assert!(place.root_of(&image).join(deep).is_dir());
}

#[test]
fn an_archive_cut_anywhere_is_refused() {
    let place = Place::new();
    let whole = archive(&[directory("etc"), file("etc/x", &[b'x'; 1500])]);
    for length in (1..2560).step_by(97) {
        if length != 512 {
            place.refuse(&whole[..length]);
        }
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).expect("compressed");
    let gzip = gzip.finish().expect("compressed");
    for length in [3, gzip.len() / 2, gzip.len() - 9, gzip.len() - 1] {
        place.refuse(&gzip[..length]);
    }
}

#[test]
fn an_archive_may_end_with_the_last_byte_of_its_last_file() {
    let place = Place::new();
    let whole = archive(&[file("etc/x", &[b'x'; 1500])]);
    let image = place.import(&whole[..512 + 1500]).expect("imported");
    let content = fs::read(place.root_of(&image).join("etc/x")).expect("read");
    assert_eq!(content, [b'x'; 1500]);
    place.store.remove("it").expect("removed");
    // One byte of it, or of a name that should follow, is missing.
    place.refuse(&whole[..512 + 1499]);
    let name = entry(EntryType::GNULongName, "././@LongLink", "", &[b'n'; 300]);
    let named = archive(&[name, file("x", b"x")]);
    place.refuse(&named[..512 + 300]);
    place.refuse(&named[..512 + 299]);
}

#[test]
fn attributes_that_speak_to_the_kernel_are_dropped() {
    let place = Place::new();
    let mut builder = Builder::new(Vec::new());
    let records = [
        ("SCHILY.xattr.user.kept", &b"1"[..]),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/"),
        ("SCHILY.xattr.security.capability", b"x"),
    ];
    builder.append_pax_extensions(records).expect("written");
    let mut header = Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, "f", &b""[..]).expect("written");
    let image = place.import(&builder.into_inner().expect("written")).expect("imported");
    let mut list = [0; 256];
    let path = place.root_of(&image).join("f");
    let length = rustix::fs::listxattr(path, &mut list).expect("listed");
    assert_eq!(&list[..length], b"user.kept\0");
}

#[test]
fn what_is_no_archive_is_refused_without_showing_what_it_is() {
    let place = Place::new();
    let secret = b"SECRET\xff\n".repeat(500);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&secret).expect("compressed");
    let gzip = gzip.finish().expect("compressed");
    for content in [b"".as_slice(), b"SECRET\n", &secret, &gzip] {
        let reason = place.refuse(content);
        assert!(reason.contains("neither a tar archive"), "{reason}");
        assert!(!reason.contains("SECRET"), "{reason}");
    }
    let whole = archive(&[file("etc/x", b"x")]);
    let spoilt = [&whole[..1024], secret.as_slice()].concat();
    let reason = place.refuse(&spoilt);
    assert!(reason.contains("`etc/x` is followed by") && !reason.contains("SECRET"), "{reason}");
}
