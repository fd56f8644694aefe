//! What a store keeps, for how long, and under which names.

use std::io::Cursor;

use lazaret_sandbox::image::{Bounds, Digest, Error, ImageConfig, Layer, NewImage, Pruned};

use crate::{NOW, Place, archive, file};

/// A layer with one file.
fn unpack(place: &Place, name: &str) -> Layer {
    let archive = archive(&[file(name, b"content")]);
    let unpacked = place.store.unpack(Cursor::new(archive), None, Bounds::default());
    unpacked.expect("unpacked").layer
}

fn image(name: &str, layers: &[Layer]) -> NewImage {
    NewImage {
        name: name.parse().expect("a name"),
        digest: None,
        aliases: Vec::new(),
        layers: layers.to_vec(),
        platform: None,
        config: ImageConfig::default(),
    }
}

#[test]
fn layers_are_shared_and_stored_once() {
    let place = Place::new();
    let (base, one, two) = (unpack(&place, "base"), unpack(&place, "one"), unpack(&place, "two"));
    place.store.add(image("one", &[one, base]), NOW).expect("added");
    place.store.add(image("two", &[two, base]), NOW).expect("added");
    // And the built-in image's.
    assert_eq!(place.layer_directories(), 4);
    place.store.remove("one").expect("removed");
    assert_eq!(place.layer_directories(), 3);
    assert_eq!(place.store.layer(&base.digest).expect("read"), Some(base));
    assert_eq!(place.store.layer(&one.digest).expect("read"), None);
}

#[test]
fn a_layer_that_is_not_what_its_digest_says_is_not_kept() {
    let place = Place::new();
    let content = archive(&[file("a", b"content")]);
    let expected = Digest::of(b"something else");
    let refused = place.store.unpack(Cursor::new(content), Some(expected), Bounds::default());
    assert!(matches!(refused, Err(Error::WrongDigest { .. })), "{refused:?}");
    assert_eq!(place.layer_directories(), 1);
}

#[test]
fn what_an_interrupted_pull_has_unpacked_stays_until_it_is_pruned() {
    let place = Place::new();
    let layer = unpack(&place, "a");
    place.store.add(image("other", &[unpack(&place, "b")]), NOW).expect("added");
    place.store.remove("other").expect("removed");
    assert_eq!(place.store.layer(&layer.digest).expect("read"), Some(layer));
    let pruned = place.store.prune().expect("pruned");
    assert_eq!(pruned, Pruned { images: 0, layers: 1, bytes: layer.size_bytes });
    assert_eq!(place.store.layer(&layer.digest).expect("read"), None);
    assert_eq!(place.layer_directories(), 1);
    assert_eq!(place.store.prune().expect("pruned"), Pruned::default());
}

#[test]
fn an_image_that_lost_its_name_lives_as_long_as_it_is_held() {
    let place = Place::new();
    let first = place.store.add(image("it", &[unpack(&place, "a")]), NOW).expect("added");
    let held = place.store.hold(&first).expect("held");
    let second = place.store.add(image("it", &[unpack(&place, "b")]), NOW).expect("added");
    assert_eq!(place.store.get("it").expect("read").as_ref(), Some(&second));
    assert_eq!(place.store.list().expect("read").len(), 2);
    assert_eq!(place.store.find(&first.digest).expect("read").as_ref(), Some(&first));
    assert_eq!(place.store.prune().expect("pruned"), Pruned::default());
    drop(held);
    assert_eq!(place.store.prune().expect("pruned").images, 1);
    assert_eq!(place.store.find(&first.digest).expect("read"), None);
    assert!(matches!(place.store.hold(&first), Err(Error::NotFound { .. })));
    assert_eq!(place.layer_directories(), 2);
}

#[test]
fn an_image_with_another_config_is_another_image_even_of_the_same_layers() {
    let place = Place::new();
    let layers = [unpack(&place, "a")];
    let first = place.store.add(image("it", &layers), NOW).expect("added");
    let held = place.store.hold(&first).expect("held");
    let mut changed = image("it", &layers);
    changed.config.workdir = Some("/srv".into());
    let second = place.store.add(changed, NOW).expect("added");
    assert_ne!(first.digest, second.digest);
    assert_eq!(place.store.find(&first.digest).expect("read"), Some(first));
    drop(held);
    assert_eq!(place.store.prune().expect("pruned").images, 1);
    assert_eq!(place.store.get("it").expect("read"), Some(second));
}

#[test]
fn an_image_with_two_names_goes_with_the_last_of_them() {
    let place = Place::new();
    let layers = [unpack(&place, "a")];
    let first = place.store.add(image("one", &layers), NOW).expect("added");
    place.store.add(image("two", &layers), NOW).expect("added");
    let held = place.store.hold(&first).expect("held");
    place.store.remove("one").expect("removed: it has another name");
    assert!(matches!(place.store.remove("two"), Err(Error::InUse { .. })));
    drop(held);
    place.store.remove("two").expect("removed");
    assert_eq!(place.layer_directories(), 1);
}

#[test]
fn an_image_is_found_by_tag_and_by_digest() {
    let place = Place::new();
    let index = Digest::of(b"an index for many platforms");
    let mut new = image("registry.test/python:latest", &[unpack(&place, "a")]);
    new.digest = Some(Digest::of(b"a manifest"));
    new.aliases = vec![index];
    let added = place.store.add(new, NOW).expect("added");
    let found = |name: &str| place.store.get(name).expect("read");
    let path = "registry.test/python";
    for name in [
        format!("{path}:latest"),
        path.to_owned(),
        format!("{path}@{}", added.digest),
        format!("{path}@{index}"),
    ] {
        assert_eq!(found(&name).as_ref(), Some(&added), "{name}");
    }
    for name in [
        format!("{path}:3"),
        "python".to_owned(),
        format!("{path}@{}", Digest::of(b"another")),
        format!("python@{index}"),
        format!("{path}@sha256:x"),
    ] {
        assert_eq!(found(&name), None, "{name}");
    }
}

#[test]
fn an_image_of_a_layer_that_is_not_there_is_not_added() {
    let place = Place::new();
    let missing = Layer { digest: Digest::of(b"never unpacked"), size_bytes: 1 };
    let refused = place.store.add(image("it", &[missing]), NOW);
    assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
    assert_eq!(place.store.get("it").expect("read"), None);
}
