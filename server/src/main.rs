//! `lazaret`: runs untrusted programs in fresh, limited containers, for clients of its HTTP API.

use std::process::ExitCode;

fn main() -> ExitCode {
    lazaret::cli::run()
}
