//! `lazaret doctor`: what this host offers, found out by trying it, and what would mend the rest.

mod cgroups;
mod container;
mod host;
mod volumes;

use std::io::{self, Write as _};
use std::process::ExitCode;

use lazaret_sandbox::{Settings, Zygote};
use serde::Serialize;

use super::place::Place;
use super::{CliError, Form};

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the data directory is or will be.
    #[command(flatten)]
    place: Place,
}

/// What one check found.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    name: String,
    /// What it means for untrusted work.
    status: Status,
    /// What was found.
    found: String,
    /// The one line that would mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

/// What a finding means for untrusted work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// It is as it should be.
    Ok,
    /// Worth knowing; containers are safe without.
    Note,
    /// Untrusted work is refused without.
    Missing,
}

impl Finding {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, found: found.into(), mend: None }
    }

    fn note(name: impl Into<String>, found: impl Into<String>, mend: &str) -> Self {
        Self { status: Status::Note, mend: Some(mend.into()), ..Self::ok(name, found) }
    }

    fn missing(name: impl Into<String>, found: impl Into<String>, mend: &str) -> Self {
        Self { status: Status::Missing, mend: Some(mend.into()), ..Self::ok(name, found) }
    }
}

/// Looks, and prints a table. The exit code is 1 if untrusted work would be refused.
pub(super) fn run(args: &Args, form: Form) -> Result<ExitCode, CliError> {
    let scratch = Scratch::make(&args.place)?;
    // First of all, while there is one thread.
    let zygote = Zygote::start(&Settings {
        run_dir: scratch.path.join("run"),
        ids_dir: "/run/lazaret/ids".into(),
        cgroup_parent: "lazaret/doctor".into(),
        memory_bytes: None,
        cpuset: None,
    });
    let mut findings = vec![host::privileges(), host::kernel()];
    findings.extend(cgroups::look());
    findings.push(cgroups::cpuset());
    findings.push(cgroups::io());
    findings.push(cgroups::swap());
    findings.push(host::user_namespaces());
    findings.extend(container::look(zygote, &scratch.path));
    findings.push(host::core_pattern());
    findings.push(host::disk(&scratch.path));
    findings.extend(volumes::look(&scratch.path));
    print(&findings, form)?;
    let is_fit = findings.iter().all(|finding| finding.status != Status::Missing);
    Ok(ExitCode::from(u8::from(!is_fit)))
}

/// A directory on the file system of the data directory that goes when the look is over.
struct Scratch {
    path: std::path::PathBuf,
}

impl Scratch {
    fn make(place: &Place) -> Result<Self, CliError> {
        let path = place.directory()?.join(format!("doctor-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| {
            CliError::refused(format!("could not make `{}`: {error}", path.display()))
        })?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // All that is in it was made by us, and is a few directories deep.
        drop(std::fs::remove_dir_all(&self.path));
    }
}

fn print(findings: &[Finding], form: Form) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if form == Form::Json {
        return writeln!(out, "{}", serde_json::to_string_pretty(findings)?);
    }
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    for finding in findings {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Missing => "missing",
        };
        writeln!(out, "{status:8} {:width$}  {}", finding.name, finding.found)?;
        if let Some(mend) = &finding.mend {
            writeln!(out, "{:9}{:width$}  → {mend}", "", "")?;
        }
    }
    Ok(())
}
