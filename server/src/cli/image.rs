//! `lazaret image`: the images of a data directory.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use jiff::Timestamp;
use lazaret_sandbox::image::oci::Platform;
use lazaret_sandbox::image::{Error, ImageStore, ImportOptions, Pruned};
use serde_json::json;

use super::client::Server;
use super::place::{Place, print};
use super::quantity::parse_bytes;
use super::{CliError, Form, build, pull};

/// What is done with images.
#[derive(Debug, Subcommand)]
pub(super) enum Args {
    /// Make an image of a root file system, an OCI layout, or what `docker save` writes.
    Import {
        /// A directory, or a tar archive that may be compressed with gzip or zstd.
        source: PathBuf,
        /// What jobs call it.
        name: String,
        /// Refuse more than this, unpacked.
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        max_unpacked: Option<u64>,
        /// Which image to take where there are several [default: this machine's]
        #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
        platform: Option<Platform>,
        /// Where they are.
        #[command(flatten)]
        place: Place,
    },
    /// Make an image as a Dockerfile says.
    Build(Box<build::Args>),
    /// Make an image of what a server's job writes, once it has succeeded.
    Commit {
        /// Id of a job that waits or runs.
        job: String,
        /// What the image is called.
        name: String,
        /// The server.
        #[command(flatten)]
        server: Server,
    },
    /// Write an image as an OCI layout, which other tools read.
    Export {
        /// Its name, or `NAME@DIGEST`.
        name: String,
        /// The directory to make.
        directory: PathBuf,
        /// Where it is.
        #[command(flatten)]
        place: Place,
    },
    /// List the images.
    Ls {
        /// Where they are.
        #[command(flatten)]
        place: Place,
    },
    /// Show an image: its layers, and what a job in it starts with.
    Inspect {
        /// Its name, or `NAME@DIGEST`.
        name: String,
        /// Where it is.
        #[command(flatten)]
        place: Place,
    },
    /// Remove what nobody needs: images that lost their name, layers that no image is made of.
    Prune {
        /// Where they are.
        #[command(flatten)]
        place: Place,
    },
    /// Get an image from a registry.
    Pull(pull::PullArgs),
    /// Give an image to a registry, which gets what it lacks.
    Push(pull::PushArgs),
    /// Remove images. One that a job needs stays.
    Rm {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
        /// Where they are.
        #[command(flatten)]
        place: Place,
    },
}

/// Does it.
pub(super) fn run(args: &Args, form: Form) -> Result<ExitCode, CliError> {
    match args {
        Args::Import { source, name, max_unpacked, platform, place } => {
            let mut options = ImportOptions::default();
            options.bounds.unpacked_bytes = max_unpacked.unwrap_or(options.bounds.unpacked_bytes);
            options.platform = platform.clone().unwrap_or(options.platform);
            let image = place.open()?.import_with(source, name, (Timestamp::now(), &options));
            print(&[image.map_err(|error| unusable(source, &error))?], form)?;
        }
        Args::Build(args) => return build::run(args, form),
        Args::Commit { job, name, server } => {
            let path = format!("/v1/jobs/{job}/commit");
            let job = server.post(&path, &json!({ "name": name }))?;
            let id = job["id"].as_str().unwrap_or_default();
            form.print(&job, &format!("job {id} becomes `{name}` if it succeeds"))?;
        }
        Args::Ls { place } => print(&place.open()?.list()?, form)?,
        Args::Inspect { name, place } => inspect(&place.open()?, name)?,
        Args::Prune { place } => tell_pruned(place.open()?.prune()?, form)?,
        Args::Pull(args) => return pull::pull(args, form),
        Args::Push(args) => return pull::push(args, form),
        Args::Export { name, directory, place } => export(&place.open()?, name, directory, form)?,
        Args::Rm { names, place } => {
            let store = place.open()?;
            names.iter().try_for_each(|name| store.remove(name))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn unusable(source: &Path, error: &Error) -> CliError {
    let told = format!("`{}`: {error}", source.display());
    if error.is_full_disk() { CliError::failed(told) } else { CliError::refused(told) }
}

/// As JSON, whether or not that is asked for: there is no shorter form that says it all.
fn inspect(store: &ImageStore, name: &str) -> Result<(), CliError> {
    let image = store.get(name)?.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&image).map_err(io::Error::from)?)?;
    Ok(())
}

fn export(store: &ImageStore, name: &str, directory: &Path, form: Form) -> Result<(), CliError> {
    let image = store.get(name)?.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
    let digest = store.export(&image, directory)?;
    let told = json!({ "directory": directory, "digest": digest });
    Ok(form.print(&told, &format!("{}: {digest}", directory.display()))?)
}

fn tell_pruned(pruned: Pruned, form: Form) -> io::Result<()> {
    let Pruned { images, layers, bytes } = pruned;
    let told = json!({ "images": images, "layers": layers, "bytes": bytes });
    let mib = bytes.div_ceil(1 << 20);
    form.print(&told, &format!("removed {images} images and {layers} layers, {mib} MiB"))
}
