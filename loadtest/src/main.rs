//! `lazaret-loadtest`: how many jobs a second, and how long each takes; over HTTP, or with the
//! sandbox alone.

mod http;
mod report;
mod sandbox;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;

/// Measures lazaret.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    subject: Subject,
    /// Print one JSON object instead of a line for people.
    #[arg(long, global = true)]
    json: bool,
}

/// What is measured.
#[derive(Debug, Subcommand)]
enum Subject {
    /// A server: each client sends a job, waits for its end, and sends the next.
    Http(http::Load),
    /// The sandbox alone, one container after another, from `spawn` until the container is gone.
    Sandbox {
        /// Containers to run.
        #[arg(long, default_value_t = 1000)]
        count: u64,
        /// A static program that becomes the only file of an image, and is run.
        #[arg(long)]
        program: PathBuf,
        /// Where the image is unpacked and containers keep their state.
        #[arg(long)]
        scratch: Option<PathBuf>,
    },
}

/// What ends a measurement early.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] lazaret_sandbox::error::Error),
    /// The image could not be made.
    #[error(transparent)]
    Image(#[from] lazaret_sandbox::image::Error),
    /// The server could not be reached.
    #[error("could not reach the server: {0}")]
    Http(#[from] reqwest::Error),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A job did not end as it should.
    #[error("{0}")]
    Unexpected(String),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // In one build with the server, reqwest has TLS and leaves the choice of what does it to us.
    drop(rustls::crypto::ring::default_provider().install_default());
    let measured = match &arguments.subject {
        Subject::Http(load) => http::measure(load),
        Subject::Sandbox { count, program, scratch } => {
            sandbox::measure(*count, program, scratch.as_deref())
        }
    };
    let printed = measured.and_then(|report| Ok(print(&arguments, &report)?));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere is left to say that stderr cannot be written.
            drop(writeln!(io::stderr(), "lazaret-loadtest: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn print(arguments: &Arguments, report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if arguments.json { writeln!(out, "{}", report.json()) } else { writeln!(out, "{report}") }
}
