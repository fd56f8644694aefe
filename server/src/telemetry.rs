//! What the server says about itself: lines on stderr, for people on a terminal and as JSON
//! otherwise.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// Starts writing log lines that pass `filter`.
///
/// # Errors
/// What is wrong with the filter, or that log lines are being written already.
pub fn start(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("`LAZARET_LOG`: {error}"))?;
    // A line that cannot be written is lost, and not worth a panic: whoever reads stderr may have
    // gone, and the jobs have not.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .log_internal_errors(false);
    let started = if io::stderr().is_terminal() {
        lines.with_target(false).try_init()
    } else {
        lines.json().flatten_event(true).try_init()
    };
    started.map_err(|error| error.to_string())
}
