//! The built-in image `host`: this machine's own programs, read-only, under an `/etc` of our own.
//!
//! A small skeleton is the lower layer. Over it the sandbox binds `/usr` and what else is listed
//! here. Nothing else of the host is in it: no home, no `/var`, no account, no key.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Timespec;
use serde::Serialize;

use super::entry::{Attributes, Entries as _, EntryPath};
use super::layer::LayerWriter;
use super::{Digest, Doing as _, ImageConfig, Result};
use crate::spec::Bind;

/// The built-in image's name.
pub const HOST_IMAGE: &str = "host";

/// What lies at the root of a host: a link into `/usr` or, on older ones, a directory.
const PROGRAM_DIRECTORIES: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Empty directories that programs expect, and their modes.
const EMPTY_DIRECTORIES: [(&str, u32); 12] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/ssl", 0o755),
    ("home", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// Files that every container of this image has, whatever the host's own say.
const GENERATED_FILES: [(&str, &str); 9] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         lazaret:x:1000:1000::/workspace:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nlazaret:x:1000:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost lazaret\n::1 localhost lazaret\n"),
    ("etc/hostname", "lazaret\n"),
    ("etc/resolv.conf", ""),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nservices: files\n"),
    ("etc/profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"),
    ("etc/shells", "/bin/sh\n"),
    ("etc/host.conf", "multi on\n"),
];

/// What is shown of the host's `/etc`: configuration of loaders and languages, which every
/// account of the host may read. `*` stands for any end of a name.
const SHOWN_OF_ETC: [&str; 24] = [
    "alternatives",
    "debian_version",
    "fonts",
    "java-*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "lua*",
    "magic",
    "magic.mime",
    "mime.types",
    "mono",
    "os-release",
    "perl",
    "php",
    "protocols",
    "python*",
    "R",
    "rpc",
    "services",
    "terminfo",
    "timezone",
    "xml",
];

/// The same of the host's `/etc/ssl`, where private keys lie next door.
const SHOWN_OF_ETC_SSL: [&str; 2] = ["certs", "openssl.cnf"];

/// The most names a listed directory may have: a bound for the skeleton.
const MAX_NAMES: usize = 4096;

/// What the skeleton holds and what is bound over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Skeleton {
    /// By path, so that parents come before what is in them.
    entries: BTreeMap<String, Kind>,
    /// What the sandbox shows of the host, read-only.
    pub(super) binds: Vec<Bind>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
enum Kind {
    Directory { mode: u32 },
    File { content: String },
    Link { target: Vec<u8> },
}

impl Skeleton {
    /// The skeleton for the host whose root directory is `root`.
    pub(super) fn of_host(root: &Path) -> Result<Self> {
        let mut skeleton = Self { entries: BTreeMap::new(), binds: Vec::new() };
        for (path, mode) in EMPTY_DIRECTORIES {
            skeleton.entries.insert(path.into(), Kind::Directory { mode });
        }
        for (path, content) in GENERATED_FILES {
            skeleton.entries.insert(path.into(), Kind::File { content: content.into() });
        }
        for path in PROGRAM_DIRECTORIES {
            skeleton.show(root, path)?;
        }
        skeleton.show_listed(root, "etc", &SHOWN_OF_ETC)?;
        skeleton.show_listed(root, "etc/ssl", &SHOWN_OF_ETC_SSL)?;
        skeleton.entries.insert("etc/mtab".into(), Kind::Link { target: b"/proc/mounts".into() });
        Ok(skeleton)
    }

    /// Says what the skeleton is; the same on hosts that are laid out alike.
    pub(super) fn digest(&self) -> Result<Digest> {
        let text = serde_json::to_vec(self).doing(|| "could not describe the host".into())?;
        Ok(Digest::of(&text))
    }

    /// Writes it as a layer.
    pub(super) fn write(&self, layer: &mut LayerWriter) -> Result<()> {
        for (path, kind) in &self.entries {
            let path = EntryPath::parse(path.as_bytes())?;
            match kind {
                Kind::Directory { mode } => layer.directory(&path, &attributes(*mode))?,
                Kind::Link { target } => layer.symlink(&path, &attributes(0o777), target)?,
                Kind::File { content } => {
                    let bytes = content.len() as u64;
                    layer.file(&path, &attributes(0o644), (bytes, &mut content.as_bytes()))?;
                }
            }
        }
        Ok(())
    }

    fn show_listed(&mut self, root: &Path, directory: &str, listed: &[&str]) -> Result<()> {
        for name in sorted_names(&root.join(directory))? {
            if listed.iter().any(|pattern| matches_name(pattern, &name)) {
                self.show(root, &format!("{directory}/{name}"))?;
            }
        }
        Ok(())
    }

    /// Links are copied, for they mean the same inside. Directories and files become mount points.
    fn show(&mut self, root: &Path, path: &str) -> Result<()> {
        let source = root.join(path);
        let doing = || format!("could not read `{}`", source.display());
        let metadata = match fs::symlink_metadata(&source) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).doing(doing),
        };
        let kind = if metadata.is_symlink() {
            let target = fs::read_link(&source).doing(doing)?;
            Kind::Link { target: target.as_os_str().as_bytes().to_vec() }
        } else if metadata.is_dir() {
            Kind::Directory { mode: 0o755 }
        } else if metadata.is_file() {
            Kind::File { content: String::new() }
        } else {
            return Ok(());
        };
        if !matches!(kind, Kind::Link { .. }) {
            self.binds.push(Bind { source, target: PathBuf::from(path) });
        }
        self.entries.insert(path.into(), kind);
        Ok(())
    }
}

/// What jobs on the host's own programs start with.
pub(super) fn config() -> ImageConfig {
    let mut config = ImageConfig::default();
    config.env.push(("LANG".into(), "C.UTF-8".into()));
    config.workdir = Some("/workspace".into());
    config.user = Some("lazaret".into());
    config
}

/// No time is kept: the skeleton is the same whenever it is made.
const fn attributes(mode: u32) -> Attributes {
    let modified_at = Timespec { tv_sec: 0, tv_nsec: 0 };
    Attributes { mode, uid: 0, gid: 0, modified_at, xattrs: Vec::new() }
}

fn sorted_names(directory: &Path) -> Result<Vec<String>> {
    let doing = || format!("could not read `{}`", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing(doing),
    };
    let mut names = Vec::new();
    for entry in entries.take(MAX_NAMES) {
        // A name that is not UTF-8 is on no list.
        names.extend(entry.doing(doing)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host with merged `/usr` if `is_merged`, else one of before.
    fn host(layout: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for path in layout {
            let (path, content) = (root.path().join(path), "secret");
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            match path.to_str().expect("text").strip_suffix('/') {
                Some(directory) => fs::create_dir_all(directory).expect("made"),
                None => fs::write(path, content).expect("written"),
            }
        }
        root
    }

    #[test]
    fn links_are_copied_and_directories_become_mount_points() {
        let root = host(&["usr/", "lib/", "etc/ld.so.cache", "etc/java-17-openjdk/"]);
        symlink("usr/bin", root.path().join("bin")).expect("linked");
        let skeleton = Skeleton::of_host(root.path()).expect("described");
        assert_eq!(skeleton.entries["bin"], Kind::Link { target: b"usr/bin".into() });
        assert_eq!(skeleton.entries["lib"], Kind::Directory { mode: 0o755 });
        let targets: Vec<_> =
            skeleton.binds.iter().filter_map(|bind| bind.target.to_str()).collect();
        assert_eq!(targets, ["usr", "lib", "etc/java-17-openjdk", "etc/ld.so.cache"]);
    }

    #[test]
    fn accounts_keys_and_homes_are_not_shown() {
        let root = host(&[
            "usr/",
            "etc/shadow",
            "etc/passwd",
            "etc/ssl/private/key.pem",
            "etc/ssl/certs/",
            "etc/ssh/key",
            "root/x",
            "home/a/x",
            "var/x",
        ]);
        let skeleton = Skeleton::of_host(root.path()).expect("described");
        let targets: Vec<_> =
            skeleton.binds.iter().filter_map(|bind| bind.target.to_str()).collect();
        assert_eq!(targets, ["usr", "etc/ssl/certs"]);
        let text = serde_json::to_string(&skeleton).expect("text");
        for absent in ["secret", "shadow", "private", "ssh"] {
            assert!(!text.contains(absent), "{absent}");
        }
    }

    #[test]
    fn every_bind_has_a_mount_point_of_its_kind() {
        let skeleton = Skeleton::of_host(Path::new("/")).expect("described");
        for bind in &skeleton.binds {
            let kind = &skeleton.entries[bind.target.to_str().expect("text")];
            assert_eq!(bind.source.is_dir(), matches!(kind, Kind::Directory { .. }), "{bind:?}");
        }
        assert_eq!(
            skeleton.digest().ok(),
            Skeleton::of_host(Path::new("/")).unwrap().digest().ok()
        );
    }
}
