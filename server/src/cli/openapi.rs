//! `lazaret openapi`: prints the document.

use std::io::{self, Write as _};
use std::process::ExitCode;

use super::CliError;

/// Nothing to choose.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Prints the OpenAPI document to stdout.
pub(super) fn run(_args: &Args) -> Result<ExitCode, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    let text = crate::api::openapi::text().map_err(|error| failed(&error))?;
    io::stdout().write_all(text.as_bytes()).map_err(|error| failed(&error))?;
    Ok(ExitCode::SUCCESS)
}
