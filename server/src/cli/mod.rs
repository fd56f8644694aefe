//! The command line: one subcommand a file.

pub mod image;
mod openapi;
pub mod quantity;
pub mod run;
mod serve;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code of what the operator can mend.
const REFUSED: u8 = 2;
/// Exit code of our own failures.
const FAILED: u8 = 1;

/// Runs untrusted programs in fresh, limited containers.
#[derive(Debug, Parser)]
#[command(name = "lazaret", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do. Each is a file of this directory with an `Args` and a `run`.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the HTTP API
    Serve(serve::Args),
    /// Print the OpenAPI document
    Openapi(openapi::Args),
}

/// Why a command ended without having done its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Something that the operator can mend: the message says how. Exit code 2.
    #[error("{0}")]
    Refused(String),
    /// We failed. Exit code 1.
    #[error("{0}")]
    Failed(String),
}

/// Does what the command line says. Called first thing in `main`: no thread has been made yet, so
/// a command may still fork.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Openapi(args) => openapi::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let code = match error {
                CliError::Refused(_) => REFUSED,
                CliError::Failed(_) => FAILED,
            };
            // Without stderr there is nobody to tell.
            drop(writeln!(io::stderr(), "lazaret: {error}"));
            ExitCode::from(code)
        }
    }
}
