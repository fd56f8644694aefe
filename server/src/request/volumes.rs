//! What a request wants to be shown beside the image.

use std::path::{Path, PathBuf};

use lazaret_sandbox::spec::{Access, MAX_VOLUMES};
use lazaret_sandbox::volume::{self, open_directory};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::Errors;
use super::paths;
use crate::job::{JobVolume, VolumeSource};
use crate::volumes::Volumes;

/// Volumes that are listed to a client that named none of them.
const MAX_LISTED: usize = 20;

/// A directory that a job is shown. Exactly one of `name` and `host_path` says which.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = VolumeMount, example = json!({"name": "cache", "path": "/cache"}))]
pub struct VolumeRequest {
    /// The volume of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A directory of the server's host that its configuration allows, or one below such. Absolute;
    /// no part of it may be a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// Where it is shown. Absolute, made if it is missing; not `/`, not under `/proc`, `/dev` or
    /// `/sys`, and not the path of another, or below it.
    pub path: String,
    /// Whether the job can only read it. Default: false for a volume, true for a directory of the
    /// host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// The volumes of a job. Errors point to what was asked for.
///
/// # Errors
/// If the volumes cannot be read.
pub(super) fn check(
    asked: Vec<VolumeRequest>,
    volumes: &Volumes,
    errors: &mut Errors,
) -> volume::Result<Vec<JobVolume>> {
    if asked.len() > MAX_VOLUMES {
        errors.add("/volumes", format!("a job has at most {MAX_VOLUMES} volumes"));
        return Ok(Vec::new());
    }
    let mut checked: Vec<JobVolume> = Vec::new();
    for (index, asked) in asked.into_iter().enumerate() {
        let pointer = format!("/volumes/{index}");
        let at = format!("{pointer}/path");
        let path = match volume_target(&asked.path) {
            Ok(path) => path,
            Err(detail) => {
                errors.add(at, detail);
                continue;
            }
        };
        if let Err(detail) = targets_apart(&path, checked.iter().map(|one| one.path.as_str())) {
            errors.add(at, detail);
        }
        if let Some((source, access)) = source(&pointer, asked, volumes, errors)? {
            checked.push(JobVolume { source, path, access });
        }
    }
    Ok(checked)
}

/// Where a volume may be shown.
///
/// # Errors
/// What is wrong with it.
pub fn volume_target(path: &str) -> Result<String, String> {
    paths::own_place("`path`", path)
}

/// Whether a volume can be shown at `path` beside those at `others`.
///
/// # Errors
/// That it cannot.
pub fn targets_apart<'a>(
    path: &str,
    mut others: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    let meets =
        |other: &&str| Path::new(path).starts_with(other) || Path::new(other).starts_with(path);
    match others.find(meets) {
        Some(other) => Err(format!("`{path}` and `{other}`: one volume cannot be in another")),
        None => Ok(()),
    }
}

/// What is shown, and how; none if an error was noted.
fn source(
    pointer: &str,
    asked: VolumeRequest,
    volumes: &Volumes,
    errors: &mut Errors,
) -> volume::Result<Option<(VolumeSource, Access)>> {
    match (asked.name, asked.host_path) {
        (Some(name), None) => {
            let access = access(asked.read_only, Access::ReadWrite);
            let named = named(&format!("{pointer}/name"), &name, volumes, errors)?;
            Ok(named.map(|source| (source, access)))
        }
        (None, Some(path)) => {
            let access = access(asked.read_only, Access::ReadOnly);
            Ok(of_host(pointer, (&path, access), volumes, errors).map(|source| (source, access)))
        }
        (Some(_), Some(_)) | (None, None) => {
            errors.add(pointer, "give exactly one of `name` and `host_path`");
            Ok(None)
        }
    }
}

const fn access(is_read_only: Option<bool>, default: Access) -> Access {
    match is_read_only {
        Some(true) => Access::ReadOnly,
        Some(false) => Access::ReadWrite,
        None => default,
    }
}

fn named(
    at: &str,
    name: &str,
    volumes: &Volumes,
    errors: &mut Errors,
) -> volume::Result<Option<VolumeSource>> {
    if let Some(volume) = volumes.store.get(name)? {
        return Ok(Some(VolumeSource::Name(volume.name)));
    }
    let all = volumes.store.list()?;
    let names: Vec<_> =
        all.iter().take(MAX_LISTED).map(|volume| format!("`{}`", volume.name)).collect();
    let more = if all.len() > names.len() { " and more" } else { "" };
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    errors.add(at, format!("there is no volume `{name}`: there is {there}{more}"));
    Ok(None)
}

/// What is said of a path that is not allowed does not depend on what is there.
fn of_host(
    pointer: &str,
    (path, access): (&str, Access),
    volumes: &Volumes,
    errors: &mut Errors,
) -> Option<VolumeSource> {
    let at = format!("{pointer}/host_path");
    let path = match paths::absolute(path) {
        Ok(path) => PathBuf::from(path),
        Err(detail) => {
            errors.add(at, detail);
            return None;
        }
    };
    let Some(allowed) = volumes.allowed(&path) else {
        let shown = path.display();
        errors.add(at, format!("this server does not let jobs have `{shown}`"));
        return None;
    };
    if allowed == Access::ReadOnly && access == Access::ReadWrite {
        let at = format!("{pointer}/read_only");
        errors.add(at, "this server lets jobs only read it");
        return None;
    }
    if let Err(error) = open_directory(&path) {
        let why = format!("it cannot be opened as a directory with no link in its path: {error}");
        errors.add(at, why);
        return None;
    }
    Some(VolumeSource::HostPath(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_goes_below_the_root_and_not_where_the_container_has_its_own() {
        assert_eq!(volume_target("/a//b/./").expect("fit"), "/a/b");
        for path in ["/tmp/x", "/workspace", "/process", "/usr/share"] {
            assert_eq!(volume_target(path).as_deref(), Ok(path));
        }
        for path in ["", "a", "/", "//", "/.", "/a/../b", "/..", "/proc", "/dev/shm", "/sys/x"] {
            assert!(volume_target(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn no_volume_is_in_another() {
        let at = |path| targets_apart(path, ["/a/b", "/c"].into_iter());
        for path in ["/a/bb", "/a/c", "/d", "/cc"] {
            assert!(at(path).is_ok(), "{path}");
        }
        for path in ["/a/b", "/a", "/a/b/c", "/c", "/c/d/e"] {
            assert!(at(path).is_err(), "{path}");
        }
    }
}
