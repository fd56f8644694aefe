//! Directories of the host that jobs may be shown.

use std::path::{Component, Path, PathBuf};

use lazaret_sandbox::spec::Access;

use super::ConfigError;
use super::file::{BindFile, BindTable};

/// A directory of the host that jobs may be shown, it and all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedBind {
    /// Where it is: absolute, without `..`.
    pub path: PathBuf,
    /// What jobs may do with it at the most.
    pub access: Access,
}

/// What the file says.
///
/// # Errors
/// If a path is not one of a directory below `/`, or what is there is the server's own.
pub(super) fn from_file(
    file: Vec<BindFile>,
    data_dir: &Path,
) -> Result<Vec<AllowedBind>, ConfigError> {
    let entries = file.into_iter().map(|entry| of_entry(entry, data_dir));
    let entries: Vec<AllowedBind> = entries.collect::<Result<_, _>>()?;
    let is_writable = |outer: &AllowedBind| outer.access == Access::ReadWrite;
    for inner in entries.iter().filter(|entry| !is_writable(entry)) {
        let around =
            |outer: &&AllowedBind| is_writable(outer) && inner.path.starts_with(&outer.path);
        if let Some(outer) = entries.iter().find(around) {
            let (inner, outer) = (inner.path.display(), outer.path.display());
            let why = format!("`{inner}` lies in `{outer}`, which jobs may write to, all of it");
            return Err(ConfigError(format!("`allowed_binds`: {why}")));
        }
    }
    Ok(entries)
}

fn of_entry(entry: BindFile, data_dir: &Path) -> Result<AllowedBind, ConfigError> {
    let BindTable { path, writable } = match entry {
        BindFile::Path(path) => BindTable { path, writable: false },
        BindFile::Table(table) => table,
    };
    let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
    let refused =
        |mend| Err(ConfigError(format!("`allowed_binds` has `{}`: {mend}", path.display())));
    if !is_below_root(&path) {
        return refused("name a directory by its path below `/`, without `..`");
    }
    if path.starts_with(data_dir) || data_dir.starts_with(&path) {
        return refused("jobs would see the data directory, and what is others' in it");
    }
    // By its components: what a job names is compared with that.
    Ok(AllowedBind { path: path.components().collect(), access })
}

fn is_below_root(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
}
