//! The files of a request: where they land, what they hold.

use std::collections::BTreeSet;

use lazaret_sandbox::spec::InputFile;

use super::content::{FileContent, FileObject, decode};
use super::errors::Errors;
use super::escaped;
use super::members::Members;
use super::paths;

/// Files of one job.
const MAX_FILES: usize = 10_000;
/// Permission bits of a file that says nothing.
const DEFAULT_MODE: u32 = 0o644;

/// The files, each checked by itself and against the others.
pub(super) fn check(files: Members<FileContent>, errors: &mut Errors) -> Vec<InputFile> {
    if files.0.len() > MAX_FILES {
        errors.add("/files", format!("a job has at most {MAX_FILES} files"));
        return Vec::new();
    }
    let mut taken = BTreeSet::new();
    let mut checked = Vec::with_capacity(files.0.len());
    for (path, content) in files.0 {
        let pointer = format!("/files/{}", escaped(&path));
        let path = match paths::file_path(&path) {
            Ok(path) => path,
            Err(detail) => {
                errors.add(pointer, detail);
                continue;
            }
        };
        if !taken.insert(path.clone()) {
            errors.add(pointer, format!("there are two files `{path}`"));
            continue;
        }
        match read(content) {
            Ok((content, mode)) => checked.push((pointer, InputFile { path, mode, content })),
            Err((field, detail)) => errors.add(format!("{pointer}{field}"), detail),
        }
    }
    let mut fit = Vec::with_capacity(checked.len());
    for (pointer, file) in checked {
        let above = directories(&file.path).find(|directory| taken.contains(*directory));
        if let Some(above) = above {
            errors.add(pointer, format!("`{above}` is a file, so nothing is below it"));
        } else {
            fit.push(file);
        }
    }
    fit
}

/// The directories that a file is in.
fn directories(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

/// Bytes and mode, or which field is wrong and why.
fn read(content: FileContent) -> Result<(Vec<u8>, u32), (&'static str, String)> {
    let FileObject { base64, text, mode } = match content {
        FileContent::Text(text) => return Ok((text.into_bytes(), DEFAULT_MODE)),
        FileContent::Object(object) => object,
    };
    let mode = mode.map_or(Ok(DEFAULT_MODE), |mode| parse_mode(&mode));
    let mode = mode.map_err(|detail| ("/mode", detail))?;
    let content = match (base64, text) {
        (Some(base64), _) => decode(&base64).map_err(|detail| ("/base64", detail))?,
        (None, text) => text.unwrap_or_default().into_bytes(),
    };
    Ok((content, mode))
}

fn parse_mode(mode: &str) -> Result<u32, String> {
    let digits = mode.strip_prefix('0').filter(|rest| rest.len() == 3).unwrap_or(mode);
    let is_octal = digits.len() == 3 && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let parsed = is_octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
    parsed.ok_or_else(|| format!("`{mode}` is not a mode: write three octal digits like `0755`"))
}
