//! `lazaret image pull` from a registry that fails in every way: one line that names image and
//! layer, nothing visible, and what came is not asked for again.

mod registry;

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use registry::client::{Client, Told};
use registry::images::{self, Blob, Made, OCI_LAYER, OCI_MANIFEST};
use registry::{Door, Fault, Registry, TOKEN, blob_path, manifest_path};

/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The layer that stands for all layers of the built-in image.
const HOST_LAYERS: usize = 1;
/// `ann:sesame`, in base64.
const PASSWORD: &str = "YW5uOnNlc2FtZQ==";

fn two_layers() -> Made {
    images::image(&[&[("base", &images::noise(300_000))], &[("top", b"top")]])
}

/// Pulls the image `latest`, which must fail. Nothing may be left.
fn refused(registry: &Registry, more: &[&str]) -> Told {
    let client = Client::new();
    let told = client.pull(&registry.reference("test/image"), more);
    assert!(told.code == 1 || told.code == 2, "{told:?}");
    assert_eq!(told.err.lines().filter(|line| !line.contains("layer sha")).count(), 1, "{told:?}");
    assert!(client.images().is_empty());
    assert_eq!(client.layers().1, 0, "a layer is half there: {told:?}");
    told
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn an_image_has_the_digest_that_the_registry_knows_it_by() {
    let (registry, client, made) = (Registry::start(), Client::new(), two_layers());
    registry.put("latest", &made);
    let told = client.pull(&registry.reference("test/image"), &[]);
    assert_eq!(told.code, 0, "{told:?}");
    let image = &serde_json::from_str::<serde_json::Value>(&told.out).expect("JSON")[0];
    assert_eq!(image["name"], registry.reference("test/image:latest"));
    assert_eq!(image["digest"], made.manifest.digest);
    assert_eq!(client.layers(), (HOST_LAYERS + 2, 0));
    assert_eq!(told.err.lines().filter(|line| line.ends_with("bytes")).count(), 2, "{told:?}");
}

#[test]
fn what_a_registry_refuses_is_told_in_one_line() {
    for (status, code, words) in [
        (401, 2, "does not give"),
        (403, 2, "--username"),
        (404, 2, "has no"),
        (429, 1, "again in 3600 s"),
    ] {
        let registry = Registry::start();
        let fault = Fault::Answer(status, "retry-after: 3600\r\n");
        registry.fail(&manifest_path("latest"), &[fault.clone(), fault]);
        let told = refused(&registry, &[]);
        assert_eq!(told.code, code, "{told:?}");
        assert!(told.err.contains(words), "{told:?}");
        assert!(told.err.contains(&registry.reference("")[..12]), "{told:?}");
    }
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let client = Client::new();
    let told = client.pull("127.0.0.1:1/test/image", &[]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.err.contains("127.0.0.1:1") && told.err.contains("refused"), "{told:?}");
    let told = client.run(&["image", "pull", "example.org/test/image", "--plain-http"]);
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.err.contains("not on this host"), "{told:?}");
}

#[test]
fn a_registry_that_has_enough_is_asked_again_when_it_says() {
    let (registry, client, made) = (Registry::start(), Client::new(), two_layers());
    registry.put("latest", &made);
    let (manifest, layer) = (manifest_path("latest"), blob_path(&made.layers[0]));
    for path in [&manifest, &layer] {
        registry.fail(path, &[Fault::Answer(429, "retry-after: 0\r\n"), Fault::Answer(503, "")]);
    }
    let told = client.pull(&registry.reference("test/image"), &[]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.err.contains("again: "), "{told:?}");
    assert_eq!((registry.asked(&manifest).len(), registry.asked(&layer).len()), (3, 3));
}

#[test]
fn a_registry_that_names_a_time_is_not_asked_before_it() {
    let (registry, client, made) = (Registry::start(), Client::new(), two_layers());
    registry.put("latest", &made);
    let (manifest, layer) = (manifest_path("latest"), blob_path(&made.layers[0]));
    for path in [&manifest, &layer] {
        // Longer than it would wait by itself.
        registry.fail(path, &[Fault::Answer(429, "retry-after: 2\r\n")]);
    }
    let told = client.pull(&registry.reference("test/image"), &[]);
    assert_eq!(told.code, 0, "{told:?}");
    for path in [&manifest, &layer] {
        let asked = registry.asked(path);
        let waited = asked[1].at - asked[0].at;
        assert!(asked.len() == 2 && waited >= Duration::from_secs(2), "{path}: {waited:?}");
    }
}

#[test]
fn a_layer_that_was_cut_off_goes_on_where_it_was() {
    for (second, bytes_again) in [(Fault::CutAt(100_000), 1), (Fault::Whole, 0)] {
        let (registry, client, made) = (Registry::start(), Client::new(), two_layers());
        registry.put("latest", &made);
        let layer = blob_path(&made.layers[0]);
        registry.fail(&layer, &[Fault::CutAt(50_000), second]);
        let told = client.pull(&registry.reference("test/image"), &[]);
        assert_eq!(told.code, 0, "{told:?}");
        assert!(told.err.contains("cut off after 50000 of"), "{told:?}");
        let asked = registry.asked(&layer);
        assert_eq!(asked[1].range.as_deref(), Some("bytes=50000-"));
        assert_eq!(asked.len(), 2 + bytes_again, "{asked:?}");
        let last = asked.last().and_then(|asked| asked.range.as_deref());
        assert_eq!(last, Some(["bytes=50000-", "bytes=150000-"][bytes_again]));
    }
}

#[test]
fn a_layer_that_is_not_what_its_digest_says_is_refused() {
    // The time in the header of gzip, which no content depends on; content; an end of its own.
    for (place, words) in
        [(Some(5), "its digest is"), (Some(200), ""), (None, "too large: more than the")]
    {
        let (registry, mut made) = (Registry::start(), two_layers());
        let sent = &mut made.layers[0].sent;
        match place {
            Some(place) => sent[place] ^= 1,
            None => sent.extend([0; 512]),
        }
        registry.put("latest", &made);
        let told = refused(&registry, &[]);
        assert!(told.err.contains(&made.layers[0].digest), "{told:?}");
        assert!(told.err.contains(words), "{told:?}");
    }
}

#[test]
fn documents_that_are_not_what_was_asked_for_are_refused() {
    let other = if images::architecture() == "amd64" { "arm64" } else { "amd64" };
    let archive = || images::archive(&[("a", b"a")]);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let alien = images::image_of("linux", other, &[(OCI_LAYER, archive())]);
    let schema_1 = br#"{"schemaVersion": 1, "name": "test/image", "fsLayers": []}"#.to_vec();
    let schema_1 = Blob::new("application/vnd.docker.distribution.manifest.v1+json", schema_1);
    let text = Blob::new(OCI_MANIFEST, b"<html>".to_vec());
    let only = |manifest| Made { manifest, config: None, layers: Vec::new() };
    let mut wrong_config = two_layers();
    wrong_config.config.iter_mut().for_each(|config| config.sent.push(b' '));
    for (made, words) in [
        (images::index(&[("linux", other, &alien)]), format!("there is `linux/{other}`")),
        (alien, format!("but for `linux/{other}`")),
        (only(schema_1), "schema 1".into()),
        (only(text), "cannot be read".into()),
        (wrong_config, "its digest is".into()),
        (images::image_of("linux", images::architecture(), &[(foreign, archive())]), "kind".into()),
    ] {
        let registry = Registry::start();
        registry.put("latest", &made);
        let told = refused(&registry, &[]);
        assert_eq!(told.code, 2, "{told:?}");
        let image = registry.reference("test/image:latest");
        assert!(told.err.contains(&words) && told.err.contains(&image), "{words}: {told:?}");
    }
}

#[test]
fn a_manifest_that_its_digest_does_not_name_is_refused() {
    let (registry, client, mut made) = (Registry::start(), Client::new(), two_layers());
    made.manifest.sent.push(b' ');
    registry.put("latest", &made);
    let reference = registry.reference(&format!("test/image@{}", made.manifest.digest));
    let told = client.pull(&reference, &[]);
    assert!(told.code == 2 && told.err.contains("--as"), "{told:?}");
    let told = client.pull(&reference, &["--as", "pinned"]);
    assert!(told.code == 2 && told.err.contains("its digest is"), "{told:?}");
    assert!(client.images().is_empty());
}

#[test]
fn a_hostile_or_huge_layer_leaves_nothing() {
    let (registry, made) = (Registry::start(), images::image(&[&[("../../escaped", b"x")]]));
    registry.put("latest", &made);
    let told = refused(&registry, &[]);
    assert!(told.err.contains("../../escaped"), "{told:?}");
    assert!(told.err.contains(&made.layers[0].digest), "{told:?}");
    let (registry, made) = (Registry::start(), images::image(&[&[("zeros", &[0; 1 << 20])]]));
    registry.put("latest", &made);
    let told = refused(&registry, &["--max-unpacked", "64K"]);
    assert!(told.err.contains(&made.layers[0].digest), "{told:?}");
}

#[test]
fn who_has_the_password_gets_the_image_and_nobody_reads_it() {
    for door in [Door::Password(PASSWORD), Door::Token(PASSWORD)] {
        let (registry, client) = (Registry::start_behind(door), Client::new());
        registry.put("latest", &two_layers());
        let reference = registry.reference("test/image");
        let told = client.pull(&reference, &[]);
        assert!(told.code == 2 && told.err.contains("docker login"), "{told:?}");
        for (password, code) in [("wrong", 2), ("sesame", 0)] {
            let words = [
                "image",
                "pull",
                &reference,
                "--plain-http",
                "--username",
                "ann",
                "--password-stdin",
            ];
            let mut command = client.command(&words);
            command.env("LAZARET_LOG", "trace");
            let mut child = command.stdin(Stdio::piped()).spawn().expect("started");
            let mut stdin = child.stdin.take().expect("piped");
            writeln!(stdin, "{password}").expect("written");
            drop(stdin);
            let told = Told::from(child.wait_with_output().expect("ended"));
            assert_eq!(told.code, code, "{told:?}");
            let said = told.out + &told.err;
            assert!(![password, TOKEN, PASSWORD].iter().any(|secret| said.contains(secret)));
        }
    }
}

#[test]
fn docker_s_credentials_are_used_and_its_programs_are_not() {
    let (registry, client) = (Registry::start_behind(Door::Token(PASSWORD)), Client::new());
    registry.put("latest", &two_layers());
    let reference = registry.reference("test/image");
    let host = registry.reference("");
    let host = host.trim_end_matches('/');
    let docker = client.data().join("docker");
    std::fs::create_dir(&docker).expect("made");
    let elsewhere = format!(r#"{{"credHelpers": {{"{host}": "gcloud"}}}}"#);
    std::fs::write(docker.join("config.json"), elsewhere).expect("written");
    let told = client.pull(&reference, &[]);
    assert!(told.code == 2 && told.err.contains("`gcloud` is not supported"), "{told:?}");
    let known = format!(r#"{{"auths": {{"{host}": {{"auth": "{PASSWORD}"}}}}}}"#);
    std::fs::write(docker.join("config.json"), known).expect("written");
    let told = client.pull(&reference, &[]);
    assert_eq!(told.code, 0, "{told:?}");
}

#[test]
fn a_pull_that_is_killed_leaves_nothing_visible_and_the_next_goes_on() {
    let made = two_layers();
    let (base, top) = (blob_path(&made.layers[0]), blob_path(&made.layers[1]));
    let config = blob_path(made.config.as_ref().expect("made"));
    for (path, bytes, whole) in [
        (manifest_path("latest"), 10, 0),
        (config, 0, 0),
        (base.clone(), 0, 1),
        (base.clone(), 200_000, 1),
        (base.clone(), made.layers[0].size - 1, 1),
        (top.clone(), 10, 1),
    ] {
        let (registry, client) = (Registry::start(), Client::new());
        registry.put("latest", &made);
        registry.fail(&path, &[Fault::StallAt(bytes)]);
        let mut child = client.start_pull(&registry.reference("test/image"));
        let is_there = || registry.stalled() == 1 && client.known_layers() == whole;
        wait_until("it hangs", is_there);
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(client.images().is_empty());
        let told = client.pull(&registry.reference("test/image"), &[]);
        assert_eq!(told.code, 0, "{path} {bytes}: {told:?}");
        let asked = [&base, &top].map(|layer| registry.asked(layer).len());
        let expected = [&base, &top].map(|layer| if whole == 1 && *layer == path { 2 } else { 1 });
        assert_eq!(asked, expected, "{path} {bytes}");
        assert_eq!(client.run(&["image", "prune"]).code, 0);
        assert_eq!(client.layers(), (HOST_LAYERS + 2, 0));
        assert_eq!(client.images().len(), 1);
    }
}
