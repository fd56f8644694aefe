//! Holds the whole tree to the rules of `src/lib.rs`.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

use std::fs;
use std::path::{Path, PathBuf};

use lazaret_tests::{faults_of_manifest, faults_of_script, faults_of_source};

/// Not ours, or made by machines.
const SKIPPED: [&str; 5] = ["target", ".git", "node_modules", "tmp", "openapi"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every file of the tree, relative to it.
fn files() -> Vec<PathBuf> {
    let root = root();
    let (mut pending, mut files) = (vec![root.clone()], Vec::new());
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).expect("read") {
            let path = entry.expect("read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !SKIPPED.contains(&name) {
                pending.push(path);
            } else if path.is_file() {
                files.push(path.strip_prefix(&root).expect("below").to_owned());
            }
        }
    }
    files
}

fn faults_of(path: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(root().join(path)) else { return Vec::new() };
    let name = path.to_str().expect("a name that is text");
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("rs") => faults_of_source(name, &text),
        Some("bash" | "sh" | "c" | "js") => faults_of_script(name, &text),
        None if text.starts_with("#!") => faults_of_script(name, &text),
        _ => Vec::new(),
    }
}

#[test]
fn the_tree_is_tidy() {
    let files = files();
    assert!(files.len() > 20, "the tree was not found: {files:?}");
    let faults: Vec<String> = files.iter().flat_map(|path| faults_of(path)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("read");
    let faults = faults_of_manifest(&manifest);
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}
