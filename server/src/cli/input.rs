//! Files of the command line that go into a job.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use lazaret_sandbox::spec::InputFile;

use super::CliError;

/// The file at `path`, to be put into the working directory under its own name.
pub(super) fn read(path: &Path) -> Result<InputFile, CliError> {
    let doing = |error: io::Error| CliError::refused(format!("`{}`: {error}", path.display()));
    let content = fs::read(path).map_err(doing)?;
    let mode = fs::metadata(path).map_err(doing)?.permissions().mode() & 0o777;
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(InputFile { path: name.to_owned(), mode, content }),
        None => Err(CliError::refused(format!("`{}` has no name to give it", path.display()))),
    }
}
