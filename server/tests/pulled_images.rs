//! Images out of Debian's `docker-registry`, put there by `skopeo`: pulled, listed, run, removed.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

mod registry;

use registry::client::Client;
use registry::debian::Debian;
use registry::images::{self, OCI_LAYER, architecture};
use serde_json::Value;

/// The layer that stands for all layers of the built-in image.
const HOST_LAYERS: usize = 1;
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Pulls an image; answers with what is told of it.
fn pulled(client: &Client, reference: &str, more: &[&str]) -> Value {
    let told = client.pull(reference, more);
    assert_eq!(told.code, 0, "{told:?}");
    serde_json::from_str::<Value>(&told.out).expect("JSON")[0].take()
}

#[test]
fn images_that_share_a_layer_have_it_once_until_the_last_is_gone() {
    let (registry, client) = (Debian::start(), Client::new());
    let mut references = Vec::new();
    for name in ["one", "two", "three"] {
        let made = images::named(name);
        registry.push(&format!("shared/{name}:1"), &made, &[]);
        let reference = registry.reference(&format!("shared/{name}:1"));
        let image = pulled(&client, &reference, &[]);
        assert_eq!(image["digest"], made.manifest.digest);
        assert_eq!(client.name_in(&reference), name);
        let by_digest = registry.reference(&format!("shared/{name}@{}", made.manifest.digest));
        assert_eq!(client.name_in(&by_digest), name);
        references.push(reference);
    }
    let names: Vec<Value> = client.images().iter().map(|image| image["name"].clone()).collect();
    assert_eq!(names, [&*references[0], &*references[2], &*references[1]]);
    assert_eq!(client.layers(), (HOST_LAYERS + 4, 0));
    assert_eq!(client.run(&["image", "rm", &references[0]]).code, 0);
    assert_eq!(client.layers(), (HOST_LAYERS + 3, 0));
    assert_eq!(client.name_in(&references[1]), "two");
    assert_eq!(client.run(&["image", "rm", &references[1], &references[2]]).code, 0);
    assert_eq!(client.run(&["image", "prune"]).code, 0);
    assert_eq!(client.layers(), (HOST_LAYERS, 0));
}

#[test]
fn an_index_gives_the_image_for_this_machine_or_the_one_asked_for() {
    let (registry, client) = (Debian::start(), Client::new());
    let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
    let here = images::named("here");
    let there = images::image_of("linux", other, &[(OCI_LAYER, images::archive(&[("x", b"x")]))]);
    let index = images::index(&[("linux", other, &there), ("linux", architecture(), &here)]);
    registry.push("many:1", &index, &[&here, &there]);
    let reference = registry.reference("many:1");
    let image = pulled(&client, &reference, &["--as", "many:here"]);
    assert_eq!(image["digest"], here.manifest.digest);
    assert_eq!(image["platform"], format!("linux/{}", architecture()));
    assert_eq!(client.name_in("many:here"), "here");
    for digest in [&here.manifest.digest, &index.manifest.digest] {
        assert_eq!(client.name_in(&format!("many@{digest}")), "here");
    }
    let platform = format!("linux/{other}");
    let image = pulled(&client, &reference, &["--as", "many:there", "--platform", &platform]);
    assert_eq!(image["digest"], there.manifest.digest);
    assert_eq!(image["platform"], platform);
    let by_digest = registry.reference(&format!("many@{}", index.manifest.digest));
    let image = pulled(&client, &by_digest, &["--as", "many:pinned"]);
    assert_eq!(image["digest"], here.manifest.digest);
}

#[test]
fn layers_may_be_compressed_in_every_way_that_registries_have() {
    let (registry, client) = (Debian::start(), Client::new());
    let busybox = images::busybox();
    let base = images::archive(&[("bin/sh", &busybox), ("bin/cat", &busybox)]);
    let archives = [
        (ZSTD_LAYER, base),
        (OCI_LAYER, images::archive(&[("name", b"lower")])),
        (PLAIN_LAYER, images::archive(&[("name", b"upper")])),
    ];
    let made = images::image_of("linux", architecture(), &archives);
    registry.push("compressed:1", &made, &[]);
    let reference = registry.reference("compressed:1");
    let image = pulled(&client, &reference, &[]);
    assert_eq!(image["layers"].as_array().map(Vec::len), Some(3));
    assert_eq!(client.name_in(&reference), "upper");
}
