//! The command line: one subcommand a file.

mod build;
mod client;
mod containers;
mod doctor;
mod image;
mod input;
mod job;
mod openapi;
mod output;
mod place;
mod pull;
mod quantity;
mod run;
mod serve;
mod transfer;
mod volume;

use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;

/// Exit code of what the operator can mend.
const REFUSED: u8 = 2;
/// Exit code of our own failures.
const FAILED: u8 = 1;
/// Exit code when the reader of the output has gone: 128 and SIGPIPE, as shells have it.
const UNREAD: u8 = 141;

/// Runs untrusted programs in fresh, limited containers.
#[derive(Debug, Parser)]
#[command(name = "lazaret", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

/// What to do. Each is a file of this directory with an `Args` and a `run`.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the HTTP API
    Serve(serve::Args),
    /// Run one job here, without a server; its exit code is the program's
    Run(run::Args),
    /// The jobs of a server
    #[command(subcommand)]
    Job(job::Args),
    /// The images that jobs run in
    #[command(subcommand)]
    Image(image::Args),
    /// What jobs share, and what outlives them
    #[command(subcommand)]
    Volume(volume::Args),
    /// Find out what this host offers, and what would mend the rest
    Doctor(doctor::Args),
    /// Print the OpenAPI document
    Openapi(openapi::Args),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Lines and tables for people.
    Text,
    /// JSON for programs.
    Json,
}

impl Form {
    /// Prints one result.
    fn print(self, json: &serde_json::Value, text: &str) -> io::Result<()> {
        match self {
            Self::Text => writeln!(io::stdout(), "{text}"),
            Self::Json => writeln!(io::stdout(), "{json}"),
        }
    }
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
    /// The reader of the output has gone, so there is nothing left to do or say. Exit code 141.
    #[error("nobody reads the output")]
    Unread,
}

impl CliError {
    fn refused(reason: impl fmt::Display) -> Self {
        Self::Refused(reason.to_string())
    }

    fn failed(reason: impl fmt::Display) -> Self {
        Self::Failed(reason.to_string())
    }

    /// Tells the user, and answers what to exit with.
    fn end(&self) -> ExitCode {
        let code = match self {
            Self::Unread => return ExitCode::from(UNREAD),
            Self::Refused(_) => REFUSED,
            Self::Failed(_) => FAILED,
        };
        say(self);
        ExitCode::from(code)
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::refused(error)
    }
}

impl From<lazaret_sandbox::image::Error> for CliError {
    fn from(error: lazaret_sandbox::image::Error) -> Self {
        Self::refused(error)
    }
}

impl From<lazaret_sandbox::volume::Error> for CliError {
    fn from(error: lazaret_sandbox::volume::Error) -> Self {
        Self::refused(error)
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        // Of all that is written to, only what a shell has connected can be closed by others.
        if error.kind() == ErrorKind::BrokenPipe { Self::Unread } else { Self::failed(error) }
    }
}

/// Does what the command line says. Called first thing in `main`: no thread has been made yet, so
/// a command may still fork.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    crate::registry::provide_tls();
    let form = if cli.json { Form::Json } else { Form::Text };
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Run(args) => run::run(&args, form),
        Command::Job(args) => job::run(&args, form),
        Command::Image(args) => image::run(&args, form),
        Command::Volume(args) => volume::run(&args, form),
        Command::Doctor(args) => doctor::run(&args, form),
        Command::Openapi(args) => openapi::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => error.end(),
    }
}

/// Tells the user.
fn say(what: impl fmt::Display) {
    // Without stderr there is nobody to tell.
    drop(writeln!(io::stderr(), "lazaret: {what}"));
}
