//! The directory that a build copies from, less what its `.dockerignore` names.

use std::io::Read as _;
use std::path::Path;

use globset::{Glob, GlobBuilder, GlobMatcher};
use lazaret_sandbox::image::{Choice, FileTree, Kind, Place};

use super::BuildError;

const IGNORE_FILE: &str = ".dockerignore";
/// How much of it is read.
const MAX_IGNORE_BYTES: u64 = 1 << 20;
/// What some editors put in front of a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Files to copy from.
pub(super) struct Files {
    pub(super) tree: FileTree,
    ignored: Vec<Rule>,
}

/// A line of `.dockerignore`.
struct Rule {
    pattern: GlobMatcher,
    /// Whether it takes back what a line before it said.
    is_exception: bool,
}

impl Files {
    /// Those of a directory of this host.
    pub(super) fn of_directory(path: &Path) -> Result<Self, BuildError> {
        let tree = FileTree::of_directory(path)?;
        let place = tree.place(IGNORE_FILE.as_bytes())?;
        let mut text = String::new();
        if place.kind.is_some() {
            let refused = |why: &str| BuildError::refused(format!("`{IGNORE_FILE}`: {why}"));
            let file = tree.open(&place)?;
            let metadata = file.metadata().map_err(|error| refused(&error.to_string()))?;
            if !metadata.is_file() {
                return Err(refused("it is not a file"));
            }
            let read = file.take(MAX_IGNORE_BYTES).read_to_string(&mut text);
            read.map_err(|error| refused(&error.to_string()))?;
        }
        Ok(Self { tree, ignored: rules(&text)? })
    }

    /// Those of an image or an archive.
    pub(super) fn of_tree(tree: FileTree) -> Self {
        Self { tree, ignored: Vec::new() }
    }

    /// What is copied of a path.
    pub(super) fn choose(&self, path: &[u8]) -> Choice {
        let path = String::from_utf8_lossy(path);
        let mut is_ignored = false;
        for rule in &self.ignored {
            if rule.matches(&path) {
                is_ignored = !rule.is_exception;
            }
        }
        match is_ignored {
            false => Choice::Whole,
            true if self.ignored.iter().any(|rule| rule.is_exception) => Choice::Inside,
            true => Choice::Nothing,
        }
    }

    /// The files that a source of `COPY` means: one, or all that match its wildcards.
    pub(super) fn find(&self, source: &str) -> Result<Vec<Place>, BuildError> {
        let missing = || BuildError::refused(format!("`{source}` is not in what is copied from"));
        let mut found = vec![self.tree.place(b"")?];
        for part in source.split('/').filter(|part| !matches!(*part, "" | ".")) {
            let has_wildcard = part.contains(['*', '?', '[']);
            let pattern = has_wildcard.then(|| glob(part)).transpose()?;
            let mut next = Vec::new();
            for place in found {
                if place.kind != Some(Kind::Directory) {
                    continue;
                }
                let names = match &pattern {
                    Some(pattern) => {
                        let mut names = self.tree.names(&place)?;
                        names.retain(|name| pattern.is_match(&*String::from_utf8_lossy(name)));
                        names
                    }
                    None => vec![part.as_bytes().to_vec()],
                };
                for name in names {
                    next.push(self.tree.place(&[place.path(), &name].join(&b'/'))?);
                }
            }
            found = next;
        }
        found.retain(|place| match (place.kind, self.choose(place.path())) {
            (None, _) => false,
            (Some(Kind::File), choice) => choice == Choice::Whole,
            (Some(Kind::Directory), choice) => choice != Choice::Nothing || place.path().is_empty(),
        });
        if found.is_empty() { Err(missing()) } else { Ok(found) }
    }
}

impl Rule {
    /// Whether it names the path, or a directory that it is in.
    fn matches(&self, path: &str) -> bool {
        let slashes = path.match_indices('/').map(|(at, _)| at);
        slashes.chain([path.len()]).any(|end| self.pattern.is_match(&path[..end]))
    }
}

fn rules(text: &str) -> Result<Vec<Rule>, BuildError> {
    let mut rules = Vec::new();
    let lines = text.trim_start_matches(BYTE_ORDER_MARK).lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (is_exception, pattern) = match line.strip_prefix('!') {
            Some(pattern) => (true, pattern.trim()),
            None => (false, line),
        };
        let mut parts = Vec::new();
        for part in pattern.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        // The context itself is there in any case.
        if !parts.is_empty() {
            rules.push(Rule { pattern: glob(&parts.join("/"))?, is_exception });
        }
    }
    Ok(rules)
}

/// A pattern whose `*` stops at a slash.
fn glob(pattern: &str) -> Result<GlobMatcher, BuildError> {
    // Braces mean nothing in Go's patterns.
    let pattern = pattern.replace('{', "[{]").replace('}', "[}]");
    let built: Result<Glob, _> =
        GlobBuilder::new(&pattern).literal_separator(true).backslash_escape(true).build();
    let built = built.map_err(|error| BuildError::refused(format!("pattern {error}")))?;
    Ok(built.compile_matcher())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn files(ignored: &str, names: &[&str]) -> (tempfile::TempDir, Files) {
        let directory = tempfile::tempdir().expect("a directory");
        for name in names {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, name).expect("written");
        }
        fs::write(directory.path().join(IGNORE_FILE), ignored).expect("written");
        let files = Files::of_directory(directory.path()).expect("read");
        (directory, files)
    }

    #[test]
    fn the_last_line_that_names_a_file_or_its_directory_counts() {
        let ignored = "\u{feff}# a comment\n*.log\n/\n.\n!\nx/../cleaned\n{a,b}\n\
            /secret\ndocs/**/*.tmp\nbuild/\n!build/kept\n./x/../y\n";
        let (_directory, files) = files(ignored, &["a"]);
        for (path, choice) in [
            ("a", Choice::Whole),
            ("", Choice::Whole),
            ("cleaned", Choice::Inside),
            ("{a,b}", Choice::Inside),
            ("a.log", Choice::Inside),
            ("sub/a.log", Choice::Whole),
            ("secret/deep/file", Choice::Inside),
            ("sub/secret", Choice::Whole),
            ("docs/a.tmp", Choice::Inside),
            ("docs/b/c/a.tmp", Choice::Inside),
            ("build", Choice::Inside),
            ("build/other", Choice::Inside),
            ("build/kept", Choice::Whole),
            ("build/kept/deep", Choice::Whole),
        ] {
            assert_eq!(files.choose(path.as_bytes()), choice, "{path}");
        }
    }

    #[test]
    fn a_source_is_a_file_or_all_that_match() {
        let names = ["a.py", "b.py", "c.txt", "d/e.py", "f/e.py", "hidden"];
        let (_directory, files) = files("hidden\n", &names);
        let found = |source: &str| -> Vec<String> {
            let found = files.find(source).unwrap_or_default();
            found.iter().map(|place| String::from_utf8_lossy(place.path()).into_owned()).collect()
        };
        assert_eq!(found("*.py"), ["a.py", "b.py"]);
        assert_eq!(found("./?/e.py"), ["d/e.py", "f/e.py"]);
        assert_eq!(found("/d"), ["d"]);
        assert_eq!(found("."), [""]);
        assert_eq!(found("../../c.txt"), ["c.txt"], "nothing leads out of it");
        for missing in ["none", "*.none", "a.py/x", "hidden", "hid*"] {
            assert!(found(missing).is_empty(), "{missing}");
        }
    }
}
