//! `lazaret image pull`, and `push`: an image from a registry, or to one.

use std::process::ExitCode;
use std::sync::Arc;

use lazaret_sandbox::image::Bounds;
use serde_json::json;
use tokio_util::task::TaskTracker;

use super::place::{Place, print};
use super::quantity::parse_bytes;
use super::transfer::{self, Access};
use super::{CliError, Form};
use crate::registry::{self, LocalStore, PullRequest, PushRequest};

/// What is pulled, and how.
#[derive(Debug, clap::Args)]
pub(super) struct PullArgs {
    /// As docker has it: `python:3.13`, `ghcr.io/owner/image:tag`, `image@sha256:…`.
    reference: String,
    /// What jobs call it; the reference, if this is left out.
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// What its programs shall be for: `os/architecture[/variant]`; this machine, if left out.
    #[arg(long)]
    platform: Option<String>,
    /// Refuse a layer of more than this, unpacked.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_unpacked: Option<u64>,
    /// How the registry is asked.
    #[command(flatten)]
    access: Access,
    /// Where the images are.
    #[command(flatten)]
    place: Place,
}

/// What is pushed, and how.
#[derive(Debug, clap::Args)]
pub(super) struct PushArgs {
    /// The image's name.
    name: String,
    /// Where it goes: `ghcr.io/owner/image:tag`; its name, if this is left out.
    reference: Option<String>,
    /// How the registry is asked.
    #[command(flatten)]
    access: Access,
    /// Where the images are.
    #[command(flatten)]
    place: Place,
}

/// Pulls.
pub(super) fn pull(args: &PullArgs, form: Form) -> Result<ExitCode, CliError> {
    let (name, platform) = (args.name.as_deref(), args.platform.as_deref());
    let request = PullRequest::parse(&args.reference, args.access.transport(), name, platform)?;
    let credentials = args.access.credentials(&request.source)?;
    let local = local(&args.place, args.max_unpacked)?;
    let image =
        transfer::run(async |teller| registry::pull(&local, &request, credentials, teller).await)?;
    print(&[image], form)?;
    Ok(ExitCode::SUCCESS)
}

/// Pushes.
pub(super) fn push(args: &PushArgs, form: Form) -> Result<ExitCode, CliError> {
    let local = local(&args.place, None)?;
    let reference = args.reference.as_deref();
    let transport = args.access.transport();
    let request = PushRequest::parse(&local.images, &args.name, reference, transport)?;
    let credentials = args.access.credentials(&request.target)?;
    let digest =
        transfer::run(async |teller| registry::push(&local, &request, credentials, teller).await)?;
    let target = request.target.to_string();
    form.print(&json!({ "pushed": target, "digest": digest }), &format!("{target}@{digest}"))?;
    Ok(ExitCode::SUCCESS)
}

fn local(place: &Place, max_unpacked: Option<u64>) -> Result<LocalStore, CliError> {
    let defaults = Bounds::default();
    let unpacked_bytes = max_unpacked.unwrap_or(defaults.unpacked_bytes);
    Ok(LocalStore {
        images: Arc::new(place.open()?),
        bounds: Bounds { unpacked_bytes, ..defaults },
        unpacking: TaskTracker::new(),
    })
}
