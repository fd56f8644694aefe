//! Files that are copied onto layers.

use std::fs;

use lazaret_sandbox::image::{Bounds, Choice, Copying, Digest, Error, FileTree};

use crate::Place;

/// Six bytes below `/copied`.
fn copied<T>(
    directory: &tempfile::TempDir,
    work: impl FnOnce(&Copying<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let from = FileTree::of_directory(directory.path()).expect("opened");
    let sources = vec![from.place(b"").expect("the root")];
    work(&Copying {
        from: &from,
        sources,
        chooser: &|_path| Choice::Whole,
        destination: b"/copied".to_vec(),
        into_directory: true,
        owner: Some((0, 0)),
        mode: None,
    })
}

fn digest(directory: &tempfile::TempDir, bounds: Bounds) -> Result<Digest, Error> {
    copied(directory, |copying| copying.digest(bounds))
}

#[test]
fn what_was_copied_has_the_digest_of_what_was_to_be_unless_it_was_changed() {
    let (place, directory) = (Place::new(), tempfile::tempdir().expect("a directory"));
    fs::write(directory.path().join("file"), "before").expect("written");
    let copy = || {
        let copy = |copying: &Copying<'_>| place.store.copy(&[], copying, Bounds::default());
        copied(&directory, copy).expect("copied").1
    };
    let before = digest(&directory, Bounds::default()).expect("read");
    assert_eq!(copy(), before);
    fs::write(directory.path().join("file"), "behind").expect("written");
    assert_ne!(copy(), before);
}

#[test]
fn files_are_read_up_to_their_bound() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("file"), "before").expect("written");
    let within = |unpacked_bytes| Bounds { unpacked_bytes, ..Bounds::default() };
    digest(&directory, within(6)).expect("within");
    let refused = digest(&directory, within(5));
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
}
