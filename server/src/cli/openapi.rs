//! `lazaret openapi`: prints the document.

use std::io::{self, Write as _};
use std::process::ExitCode;

use super::CliError;

/// Nothing to choose.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Prints the OpenAPI document to stdout.
pub(super) fn run(_args: &Args) -> Result<ExitCode, CliError> {
    let text = crate::api::openapi::text().map_err(CliError::failed)?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
