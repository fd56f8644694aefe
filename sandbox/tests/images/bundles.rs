//! Images that come as OCI layouts and as archives of docker's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lazaret_sandbox::image::oci::Platform;
use lazaret_sandbox::image::{Digest, Error, Image, ImportOptions};

use crate::{NOW, Place, archive, entry, file, link};
use tar::EntryType;

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// Files of a bundle, by their names.
#[derive(Clone, Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Puts a blob in; answers with its descriptor.
    fn blob(&mut self, media_type: &str, content: &[u8]) -> String {
        let digest = Digest::of(content).to_string();
        self.0.insert(format!("blobs/{}", digest.replace(':', "/")), content.to_vec());
        let length = content.len();
        format!(r#"{{"mediaType": "{media_type}", "digest": "{digest}", "size": {length}}}"#)
    }

    /// Puts an image in; answers with its manifest's descriptor.
    fn image(&mut self, architecture: &str, layers: &[Vec<u8>]) -> String {
        let config =
            self.blob("application/vnd.oci.image.config.v1+json", &config(architecture, layers));
        let layers: Vec<String> =
            layers.iter().map(|layer| self.blob(LAYER_TYPE, &zstd(layer))).collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = format!(
            r#"{{"schemaVersion": 2, "mediaType": "{kind}", "config": {config},
                 "layers": [{}]}}"#,
            layers.join(",")
        );
        self.blob(kind, manifest.as_bytes())
    }

    fn finish(mut self, manifests: &[String]) -> Self {
        self.0.insert("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec());
        self.0.insert("index.json".into(), index(manifests));
        self
    }

    fn archive(&self) -> Vec<u8> {
        let entries: Vec<_> = self.0.iter().map(|(name, content)| file(name, content)).collect();
        archive(&entries)
    }

    fn write(&self, place: &Place) -> PathBuf {
        let directory = place.directory.path().join("layout");
        for (name, content) in &self.0 {
            let path = directory.join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, content).expect("written");
        }
        directory
    }
}

fn index(manifests: &[String]) -> Vec<u8> {
    format!(r#"{{"schemaVersion": 2, "manifests": [{}]}}"#, manifests.join(",")).into_bytes()
}

fn for_platform(manifest: &str, architecture: &str) -> String {
    let platform = format!(r#""platform": {{"os": "linux", "architecture": "{architecture}"}}"#);
    format!("{}, {platform}}}", manifest.trim_end_matches('}'))
}

fn config(architecture: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> =
        layers.iter().map(|layer| format!("\"{}\"", Digest::of(layer))).collect();
    format!(
        r#"{{"os": "linux", "architecture": "{architecture}", "config": {{"WorkingDir": "/srv"}},
             "rootfs": {{"type": "layers", "diff_ids": [{}]}}}}"#,
        ids.join(",")
    )
    .into_bytes()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 0).expect("compressed")
}

fn layers() -> Vec<Vec<u8>> {
    vec![archive(&[file("base", b"base")]), archive(&[file("top", b"top")])]
}

fn host() -> String {
    Platform::of_host().architecture
}

fn layout() -> Files {
    let mut files = Files::default();
    let manifest = files.image(&host(), &layers());
    files.finish(&[manifest])
}

/// Sees that the image is of the two layers, the topmost first.
fn check(place: &Place, image: &Image) {
    let roots = place.store.rootfs(image).paths();
    let names = ["top", "base"];
    assert_eq!(roots.len(), names.len());
    for (root, name) in roots.iter().zip(names) {
        assert_eq!(std::fs::read_to_string(root.join(name)).expect("a file"), name);
    }
    assert_eq!(image.config.workdir.as_deref(), Some("/srv"));
    assert_eq!(place.store.get("it").expect("read").as_ref(), Some(image));
}

fn reason(answer: Result<Image, Error>) -> String {
    answer.expect_err("refused").to_string()
}

#[test]
fn a_layout_is_imported_as_a_directory_and_as_an_archive() {
    let place = Place::new();
    let image = place.store.import(&layout().write(&place), "it", NOW).expect("imported");
    check(&place, &image);
    let plain = place.import(&layout().archive()).expect("imported");
    let compressed = place.import(&zstd(&layout().archive())).expect("imported");
    assert_eq!((&plain, &compressed), (&image, &image));
    let options = ImportOptions::default();
    let streamed = zstd(&layout().archive());
    let streamed = place.store.import_stream(streamed.as_slice(), "it", (NOW, &options));
    assert_eq!(streamed.expect("imported"), image);
    assert_eq!(place.layer_directories(), 3, "each layer once, and the built-in image's");
}

#[test]
fn what_docker_saves_is_imported() {
    let place = Place::new();
    let [base, top] = layers().try_into().expect("two layers");
    let text = config(&host(), &layers());
    let id = Digest::of(&text).to_string().replace("sha256:", "");
    let manifest = format!(
        r#"[{{"Config": "{id}.json", "RepoTags": ["it:latest"],
              "Layers": ["one/layer.tar", "two/layer.tar"]}}]"#
    );
    let saved = archive(&[
        file(&format!("{id}.json"), &text),
        file("one.tar", &base),
        entry(EntryType::Directory, "one", "", b""),
        link("one/layer.tar", "../one.tar"),
        file("two/layer.tar", &top),
        file("manifest.json", manifest.as_bytes()),
    ]);
    let image = place.import(&saved).expect("imported");
    check(&place, &image);
    assert_eq!(image.digest, Digest::of(&text), "as docker calls it");
}

#[test]
fn the_image_for_the_platform_that_is_asked_for_is_taken() {
    let place = Place::new();
    let mut files = Files::default();
    let ours = for_platform(&files.image(&host(), &layers()), &host());
    let other = for_platform(&files.image("s390x", &layers()[..1]), "s390x");
    let nested = files.blob("application/vnd.oci.image.index.v1+json", &index(&[other, ours]));
    let path = files.finish(std::slice::from_ref(&nested)).write(&place);
    let image = place.store.import(&path, "it", NOW).expect("imported");
    check(&place, &image);
    let aliases: Vec<_> =
        image.aliases.iter().filter(|alias| nested.contains(&alias.to_string())).collect();
    assert_eq!(aliases.len(), 1, "the index is another name of it");
    let wanted = |text: &str| {
        let platform = text.parse().expect("a platform");
        let options = ImportOptions { platform, ..ImportOptions::default() };
        place.store.import_with(&path, "it", (NOW, &options))
    };
    assert_eq!(wanted("linux/s390x").expect("imported").platform, "linux/s390x");
    let reason = reason(wanted("linux/riscv64"));
    assert!(reason.contains("it is not for `linux/riscv64`: there is `linux/s390x`"), "{reason}");
}

#[test]
fn what_is_not_what_its_digest_says_is_refused() {
    let place = Place::new();
    for (victim, expected) in [("WorkingDir", "its digest is"), ("schemaVersion", "its digest is")]
    {
        let mut files = layout();
        for (name, content) in &mut files.0 {
            if name.starts_with("blobs/") && String::from_utf8_lossy(content).contains(victim) {
                content.extend_from_slice(b"\n");
            }
        }
        let reason = reason(place.import(&files.archive()));
        assert!(reason.contains(expected), "{victim}: {reason}");
    }
    let mut files = layout();
    let stranger = zstd(&archive(&[file("top", b"another")]));
    let layer = format!("blobs/{}", Digest::of(&zstd(&layers()[1])).to_string().replace(':', "/"));
    assert!(files.0.insert(layer, stranger).is_some());
    let reason = reason(place.import(&files.archive()));
    let of_layer = format!("layer `{}`: its digest is", Digest::of(&layers()[1]));
    assert!(reason.contains(&of_layer), "{reason}");
    assert_eq!(place.store.list().expect("read").len(), 1);
}

#[test]
fn what_is_left_out_or_cut_short_is_named() {
    let place = Place::new();
    let layer = format!("blobs/{}", Digest::of(&zstd(&layers()[1])).to_string().replace(':', "/"));
    let mut files = layout();
    let content = files.0.remove(&layer).expect("a layer");
    let why = reason(place.import(&files.archive()));
    assert!(why.contains(&format!("the file `{layer}` is missing")), "{why}");
    files.0.insert(layer, content[..content.len() / 2].to_vec());
    let why = reason(place.import(&files.archive()));
    assert!(why.contains(&format!("layer `{}`", Digest::of(&layers()[1]))), "{why}");
    let only = archive(&[file("blobs/sha256/x", b"")]);
    let why = reason(place.import(&only));
    assert!(why.contains("neither `index.json` nor `manifest.json`"), "{why}");
    let several = archive(&[file(
        "manifest.json",
        br#"[{"Config": "a", "Layers": []},
        {"Config": "b", "Layers": []}]"#,
    )]);
    let why = reason(place.import(&several));
    assert!(why.contains("several images"), "{why}");
}

#[test]
fn all_layers_together_have_one_bound() {
    let place = Place::new();
    let large = |name: &str| archive(&[file(name, &[b'x'; 600 << 10])]);
    let mut files = Files::default();
    let manifest = files.image(&host(), &[large("one"), large("two")]);
    // Each has 600 KiB, where 1 MiB is allowed.
    let why = reason(place.import(&files.finish(&[manifest]).archive()));
    assert!(why.contains("too large"), "{why}");
    assert_eq!(place.store.list().expect("read").len(), 1);
}

#[test]
fn a_name_in_a_bundle_leads_nowhere_else() {
    let place = Place::new();
    let canary = place.directory.path().join("canary");
    let mut files = layout();
    files.0.remove("index.json");
    let path = files.write(&place);
    std::os::unix::fs::symlink(&canary, path.join("index.json")).expect("linked");
    let why = reason(place.store.import(&path, "it", NOW));
    assert!(why.contains("could not open `index.json`"), "{why}");
    let manifest = format!(r#"[{{"Config": "{}", "Layers": []}}]"#, canary.display());
    let why = reason(place.import(&archive(&[file("manifest.json", manifest.as_bytes())])));
    assert!(why.contains("is missing"), "{why}");
}
