//! `lazaret volume`: the volumes of a data directory.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Subcommand;
use jiff::Timestamp;
use lazaret_sandbox::spec::Access;
use lazaret_sandbox::volume::{Volume, VolumeStore};

use super::place::Place;
use super::quantity::parse_bytes;
use super::{CliError, Form};
use crate::request::volume_target;

/// What is done with volumes.
#[derive(Debug, Subcommand)]
pub(super) enum Args {
    /// Make an empty volume.
    Create {
        /// What jobs call it.
        name: String,
        /// The most that its files may take together; refused where the file system cannot hold it
        /// [default: no bound]
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        size: Option<u64>,
        /// Where it will be.
        #[command(flatten)]
        place: Place,
    },
    /// List the volumes.
    Ls {
        /// Where they are.
        #[command(flatten)]
        place: Place,
    },
    /// Remove volumes and all that is in them. One that a job needs stays.
    Rm {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
        /// Where they are.
        #[command(flatten)]
        place: Place,
    },
}

/// A volume for one job, as it is written on the command line.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    /// Its name.
    pub(super) name: String,
    /// Where it is shown.
    pub(super) path: String,
    /// What the program may do with it.
    pub(super) access: Access,
}

/// Opens the volumes of a data directory.
pub(super) fn open(place: &Place) -> Result<VolumeStore, CliError> {
    Ok(VolumeStore::open(&place.directory()?.join("volumes"))?)
}

/// Does it.
pub(super) fn run(args: &Args, form: Form) -> Result<ExitCode, CliError> {
    match args {
        Args::Create { name, size, place } => {
            let volume = open(place)?.create(name, *size, Timestamp::now())?;
            print(&[volume], form)?;
        }
        Args::Ls { place } => print(&open(place)?.list()?, form)?,
        Args::Rm { names, place } => {
            let store = open(place)?;
            names.iter().try_for_each(|name| store.remove(name))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A volume of the form `NAME:PATH[:ro]`.
pub(super) fn parse_mount(text: &str) -> Result<Mount, String> {
    let (name, rest) = text
        .split_once(':')
        .ok_or_else(|| format!("`{text}` is not of the form `NAME:PATH` or `NAME:PATH:ro`"))?;
    let (path, access) = match rest.strip_suffix(":ro") {
        Some(path) => (path, Access::ReadOnly),
        None => (rest, Access::ReadWrite),
    };
    Ok(Mount { name: name.to_owned(), path: volume_target(path)?, access })
}

fn print(volumes: &[Volume], form: Form) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if form == Form::Json {
        return writeln!(out, "{}", serde_json::to_string_pretty(volumes)?);
    }
    let width = volumes.iter().map(|volume| volume.name.as_str().len()).max().unwrap_or(0).max(4);
    writeln!(out, "{:width$}  {:>12}  CREATED", "NAME", "SIZE")?;
    for Volume { name, size_bytes, created_at } in volumes {
        let size = size_bytes
            .map_or_else(|| "no bound".into(), |bytes| format!("{} MiB", bytes.div_ceil(1 << 20)));
        let created = created_at.to_string();
        writeln!(out, "{:width$}  {size:>12}  {created:.19}", name.as_str())?;
    }
    Ok(())
}
