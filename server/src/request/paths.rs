//! Paths that a client names inside its container.

/// The longest path, and the longest component of one, that Linux takes (`PATH_MAX`, `NAME_MAX`).
const MAX_PATH_BYTES: usize = 4095;
const MAX_COMPONENT_BYTES: usize = 255;
/// What the container's own file systems are mounted on.
const MOUNTED: [&str; 3] = ["proc", "dev", "sys"];

/// The path of a file below the working directory, without its `.` components.
///
/// # Errors
/// What is wrong with it.
pub(super) fn file_path(path: &str) -> Result<String, String> {
    if path.is_empty() {
        return Err("a path must not be empty".into());
    }
    if path.starts_with('/') {
        return Err("a path must be relative: it is below `workdir`".into());
    }
    let components = components(path)?;
    if components.is_empty() {
        return Err("a path must name a file, not `workdir` itself".into());
    }
    if path.split('/').any(str::is_empty) {
        return Err("a path must not have an empty component".into());
    }
    Ok(components.join("/"))
}

/// A directory that files may be put into.
///
/// # Errors
/// What is wrong with it.
pub(super) fn workdir(path: &str) -> Result<String, String> {
    own_place("`workdir`", path)
}

/// A directory, called `what`, that is not the root and not the container's own.
///
/// # Errors
/// What is wrong with it.
pub(super) fn own_place(what: &str, path: &str) -> Result<String, String> {
    let path = absolute(path)?;
    let first = path.split('/').nth(1).unwrap_or_default();
    if first.is_empty() {
        return Err(format!("{what} must not be `/`"));
    }
    if MOUNTED.contains(&first) {
        return Err(format!("{what} must not be under `/{first}`"));
    }
    Ok(path)
}

/// An absolute path, without its `.` and empty components.
///
/// # Errors
/// What is wrong with it.
pub(super) fn absolute(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err("a directory must be absolute".into());
    }
    Ok(format!("/{}", components(path)?.join("/")))
}

fn components(path: &str) -> Result<Vec<&str>, String> {
    if path.len() > MAX_PATH_BYTES {
        let length = path.len();
        return Err(format!("a path has at most {MAX_PATH_BYTES} bytes, this one {length}"));
    }
    if path.contains('\0') {
        return Err("a path must not contain NUL".into());
    }
    let components: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if components.contains(&"..") {
        return Err("a path must not contain `..`".into());
    }
    if components.iter().any(|component| component.len() > MAX_COMPONENT_BYTES) {
        return Err(format!("a component of a path has at most {MAX_COMPONENT_BYTES} bytes"));
    }
    Ok(components)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_path_stays_below_the_working_directory() {
        assert_eq!(file_path("a/./b.txt").expect("fit"), "a/b.txt");
        assert_eq!(file_path("...").expect("fit"), "...");
        for path in ["", "/a", "..", "a/../b", "a//b", "a/", ".", "a\0b"] {
            assert!(file_path(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_path_may_be_as_long_as_linux_takes_and_no_longer() {
        assert!(file_path(&"a".repeat(255)).is_ok());
        assert!(file_path(&"a".repeat(256)).is_err());
        let long = ["a"; 2048].join("/");
        assert_eq!(long.len(), 4095);
        assert!(file_path(&long).is_ok());
        assert!(file_path(&format!("{long}b")).is_err());
    }

    #[test]
    fn a_working_directory_is_not_where_the_container_has_its_own() {
        assert_eq!(workdir("/a//b/").expect("fit"), "/a/b");
        for path in ["", "a", "/", "//", "/.", "/a/..", "/proc", "/proc/1", "/dev/shm", "/sys"] {
            assert!(workdir(path).is_err(), "{path:?}");
        }
        assert!(workdir("/process").is_ok());
    }
}
