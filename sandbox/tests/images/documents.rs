//! The documents that registries and archives describe images with, good and bad.

use lazaret_sandbox::image::oci::{Configuration, Document, Manifest, Platform, PlatformIndex};
use lazaret_sandbox::image::{Digest, Error};

const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

fn descriptor(media_type: &str, of: &str) -> String {
    let digest = Digest::of(of.as_bytes());
    format!(r#"{{"mediaType": "{media_type}", "size": 7, "digest": "{digest}"}}"#)
}

fn manifest_with(layers: usize) -> String {
    let layer = |n: usize| descriptor(LAYER_TYPE, &n.to_string());
    let layers: Vec<String> = (0..layers).map(layer).collect();
    format!(
        r#"{{"schemaVersion": 2,
             "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
             "config": {}, "layers": [{}]}}"#,
        descriptor(CONFIG_TYPE, "config"),
        layers.join(",")
    )
}

fn manifest(layers: usize) -> Manifest {
    match Document::parse(manifest_with(layers).as_bytes()).expect("a manifest") {
        Document::Manifest(manifest) => manifest,
        Document::Index(index) => unreachable!("{index:?}"),
    }
}

fn index(platforms: &[&str]) -> PlatformIndex {
    let entry = |platform: &&str| {
        let mut parts = platform.split('/');
        let mut next = || parts.next().unwrap_or_default();
        let (os, architecture, variant) = (next(), next(), next());
        let described = descriptor("application/vnd.oci.image.manifest.v1+json", platform);
        let variant = match variant {
            "" => String::new(),
            variant => format!(r#", "variant": "{variant}""#),
        };
        let platform = format!(r#"{{"os": "{os}", "architecture": "{architecture}"{variant}}}"#);
        format!(r#"{}, "platform": {platform}}}"#, described.trim_end_matches('}'))
    };
    let entries: Vec<String> = platforms.iter().map(entry).collect();
    let text = format!(r#"{{"schemaVersion": 2, "manifests": [{}]}}"#, entries.join(","));
    match Document::parse(text.as_bytes()).expect("an index") {
        Document::Index(index) => index,
        Document::Manifest(manifest) => unreachable!("{manifest:?}"),
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    let error = answer.expect_err("refused");
    assert!(matches!(error, Error::NoImage { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_manifest_names_its_config_and_its_layers() {
    let manifest = manifest(2);
    assert_eq!(manifest.config.digest, Digest::of(b"config"));
    assert_eq!(manifest.layers[1].digest, Digest::of(b"1"));
    assert_eq!((manifest.layers[0].size_bytes, manifest.layers.len()), (7, 2));
}

#[test]
fn an_image_has_128_layers_at_most() {
    assert_eq!(manifest(128).layers.len(), 128);
    let reason = refused(Document::parse(manifest_with(129).as_bytes()));
    assert!(reason.contains("129 layers: 128 at most"), "{reason}");
}

#[test]
fn a_manifest_for_the_platform_that_is_asked_for_is_chosen() {
    let index = index(&["linux/amd64", "linux/arm/v6", "linux/arm/v7", "unknown/unknown"]);
    let chosen = |platform: &str| {
        let platform: Platform = platform.parse().expect("a platform");
        index.choose(&platform).map(|descriptor| descriptor.digest)
    };
    assert_eq!(chosen("linux/amd64").expect("chosen"), Digest::of(b"linux/amd64"));
    assert_eq!(chosen("linux/arm/v7").expect("chosen"), Digest::of(b"linux/arm/v7"));
    assert_eq!(chosen("linux/arm").expect("chosen"), Digest::of(b"linux/arm/v6"));
    let reason = refused(chosen("linux/s390x"));
    let offered = "there is `linux/amd64`, `linux/arm/v6`, `linux/arm/v7`";
    assert!(reason.ends_with(offered), "{reason}");
}

#[test]
fn what_is_no_platform_is_refused() {
    for text in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/amd64/", "a b/c"] {
        let reason = refused(text.parse::<Platform>());
        assert!(reason.contains("e.g. `linux/amd64`"), "{text}: {reason}");
    }
}

#[test]
fn a_config_says_how_the_image_is_run() {
    let layer = Digest::of(b"unpacked");
    let text = format!(
        r#"{{"architecture": "arm64", "os": "linux", "variant": "v8", "history": [],
             "config": {{"Env": ["A=1=2", "PATH=/opt"], "WorkingDir": "/srv", "User": "web:www",
                         "Entrypoint": ["run"], "Cmd": ["--all"], "Labels": {{"k": "v"}},
                         "ExposedPorts": {{"80/tcp": {{}}}}, "Volumes": null}},
             "rootfs": {{"type": "layers", "diff_ids": ["{layer}"]}}}}"#
    );
    let read = Configuration::parse(text.as_bytes()).expect("a config");
    assert_eq!(read.platform.to_string(), "linux/arm64/v8");
    assert_eq!(read.diff_ids, [layer]);
    let config = read.config;
    assert_eq!(config.env, [("A".into(), "1=2".into()), ("PATH".into(), "/opt".into())]);
    assert_eq!(
        (config.workdir.as_deref(), config.user.as_deref()),
        (Some("/srv"), Some("web:www"))
    );
    assert_eq!((config.entrypoint, config.command), (vec!["run".into()], vec!["--all".into()]));
    assert_eq!(config.labels["k"], "v");
}

#[test]
fn a_config_that_says_nothing_is_that_of_a_plain_root_file_system() {
    let text = br#"{"architecture": "amd64", "os": "linux",
                    "config": {"Cmd": null, "Entrypoint": null, "User": "", "WorkingDir": ""},
                    "rootfs": {"type": "layers", "diff_ids": []}}"#;
    let read = Configuration::parse(text).expect("a config");
    assert_eq!(read.config, lazaret_sandbox::image::ImageConfig::default());
    let reason = refused(read.layers(&manifest(1)));
    assert!(reason.contains("its config has 0 layers, its manifest 1"), "{reason}");
}

#[test]
fn what_describes_no_image_says_why() {
    for (text, reason) in [
        ("", "its manifest cannot be read"),
        ("[]", "its manifest cannot be read"),
        (r#"{"schemaVersion": 1, "fsLayers": []}"#, "of schema 1"),
        (r#"{"schemaVersion": 2, "mediaType": "text/html"}"#, "of the kind `text/html`"),
        (r#"{"schemaVersion": 2, "layers": []}"#, "its manifest cannot be read"),
        (r#"{"schemaVersion": 2, "manifests": 3}"#, "its index cannot be read"),
    ] {
        let answer = refused(Document::parse(text.as_bytes()));
        assert!(answer.contains(reason), "{text}: {answer}");
    }
    let escaping = manifest_with(1).replace("sha256:", "sha256:../");
    assert!(Document::parse(escaping.as_bytes()).is_err());
}
