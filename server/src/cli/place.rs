//! The images of a data directory: where they are, and how they are shown.

use std::io::{self, Write as _};
use std::path::PathBuf;

use lazaret_sandbox::image::{Image, ImageStore};

use super::{CliError, Form};
use crate::config;

/// Where the images are.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The data directory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Place {
    /// Opens the store of images.
    pub(super) fn open(&self) -> Result<ImageStore, CliError> {
        Ok(ImageStore::open(&self.directory()?.join("images"))?)
    }

    /// The data directory.
    pub(super) fn directory(&self) -> Result<PathBuf, CliError> {
        match &self.data {
            Some(directory) => Ok(directory.clone()),
            None => Ok(config::default_data_dir()?),
        }
    }
}

/// Prints images.
pub(super) fn print(images: &[Image], form: Form) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if form == Form::Json {
        return writeln!(out, "{}", serde_json::to_string_pretty(images)?);
    }
    let width = images.iter().map(|image| image.name.as_str().len()).max().unwrap_or(0).max(4);
    writeln!(out, "{:width$}  {:19}  {:>10}  CREATED", "NAME", "DIGEST", "SIZE")?;
    for image in images {
        let digest: String = image.digest.to_string().chars().take(19).collect();
        let created = image.created_at.map_or_else(|| "built in".into(), |at| at.to_string());
        let mib = image.size_bytes.div_ceil(1 << 20);
        writeln!(out, "{:width$}  {digest}  {mib:>6} MiB  {created:.19}", image.name.as_str())?;
    }
    Ok(())
}
