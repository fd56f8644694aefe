//! `lazaret image build`: an image from a Dockerfile.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use lazaret_sandbox::image::{Bounds, Image, ImageName, ImageStore, Upper};
use lazaret_sandbox::outcome::{Outcome, Verdict};
use lazaret_sandbox::spec::{ContainerSpec, Cpus, Limits};
use tokio_util::task::TaskTracker;

use super::containers::{Containers, Ran};
use super::output::Shown;
use super::place::{Place, print};
use super::quantity::{parse_bytes, parse_ms, parse_variable};
use super::transfer::{self, Access};
use super::{CliError, Form, say};
use crate::build::{self, BuildError, BuildRequest, Engine};
use crate::registry::{self, LocalStore, PullRequest};

const DOCKERFILE: &str = "Dockerfile";
/// What a `RUN` may use that no flag speaks of.
const PIDS: NonZeroU32 = NonZeroU32::new(4096).unwrap();
const OPEN_FILES: NonZeroU32 = NonZeroU32::new(1024).unwrap();
const OUTPUT_BYTES: NonZeroU64 = NonZeroU64::new(64 << 20).unwrap();
/// CPU time that no `RUN` uses up before its wall time.
const CPU_MS: NonZeroU64 = NonZeroU64::new(u32::MAX as u64).unwrap();

/// What is built, and how.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each RUN is a container of its own, without a network, as root of the image \
    unless USER says otherwise. What it writes is kept in memory until it has ended. Steps that \
    were done before are not done again; `lazaret image prune` forgets those of no image.\n\n\
    HEALTHCHECK, STOPSIGNAL and VOLUME are left out. ONBUILD, flags of RUN, here-documents in \
    COPY, and ADD of what is not on this host are refused."
)]
pub(super) struct Args {
    /// The Dockerfile, or the directory that it is in.
    #[arg(default_value = ".")]
    dockerfile: PathBuf,
    /// What the image is called.
    #[arg(short = 't', long = "tag", value_name = "NAME")]
    name: ImageName,
    /// Where `COPY` and `ADD` find files; the directory of the Dockerfile, if this is left out.
    #[arg(long, value_name = "DIR")]
    context: Option<PathBuf>,
    /// A value for an `ARG`; may be given often.
    #[arg(long = "build-arg", value_name = "NAME=VALUE", value_parser = parse_variable)]
    arguments: Vec<(String, String)>,
    /// The stage that becomes the image; the last one, if this is left out.
    #[arg(long)]
    target: Option<String>,
    /// Do steps again that were done before.
    #[arg(long)]
    no_cache: bool,
    /// Memory of a `RUN`, what it writes included.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "4G")]
    memory: u64,
    /// How much a `RUN` may write.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "2G")]
    disk: u64,
    /// How long a `RUN` may take.
    #[arg(long, value_name = "TIME", value_parser = parse_ms, default_value = "1h")]
    wall_time: u64,
    /// How a registry is asked for an image that is not here.
    #[command(flatten)]
    access: Access,
    /// Where the images are.
    #[command(flatten)]
    place: Place,
}

impl From<BuildError> for CliError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Refused(_) | BuildError::Step { .. } => Self::refused(error),
            BuildError::Failed(_) => Self::failed(error),
        }
    }
}

/// Does it.
pub(super) fn run(args: &Args, form: Form) -> Result<ExitCode, CliError> {
    let containers = Containers::start()?;
    let images = Arc::new(args.place.open()?);
    let (dockerfile, directory) = args.dockerfile()?;
    let limit = |flag: &str, value: u64| {
        let zero = || CliError::refused(format!("`--{flag}`: a limit of 0 is no limit"));
        NonZeroU64::new(value).ok_or_else(zero)
    };
    let cpus = std::thread::available_parallelism().ok();
    let cpus = cpus.and_then(|cpus| u32::try_from(cpus.get()).ok());
    let request = BuildRequest {
        dockerfile,
        context: args.context.clone().unwrap_or(directory),
        name: args.name.clone(),
        arguments: args.arguments.iter().cloned().collect::<BTreeMap<_, _>>(),
        target: args.target.clone(),
        is_fresh: args.no_cache,
        limits: Limits {
            cpu_ms: CPU_MS,
            wall_ms: limit("wall-time", args.wall_time)?,
            memory_bytes: limit("memory", args.memory)?,
            pids: PIDS,
            cpus: cpus.and_then(|cpus| Cpus::from_millis(cpus * 1000)).unwrap_or(Cpus::ONE),
            output_bytes: OUTPUT_BYTES,
            open_files: OPEN_FILES,
        },
        disk_bytes: limit("disk", args.disk)?,
    };
    let data = args.place.directory()?;
    let engine = Here { containers, images: Arc::clone(&images), access: &args.access, data };
    let image = build::build(&images, &request, &engine)?;
    print(&[image], form)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The Dockerfile's text, and the directory that it is in.
    fn dockerfile(&self) -> Result<(String, PathBuf), CliError> {
        let path = if self.dockerfile.is_dir() {
            self.dockerfile.join(DOCKERFILE)
        } else {
            self.dockerfile.clone()
        };
        let refused =
            |error: io::Error| CliError::refused(format!("`{}`: {error}", path.display()));
        let text = fs::read_to_string(&path).map_err(refused)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok((text, directory.unwrap_or_else(|| Path::new(".")).to_owned()))
    }
}

/// What this program does for a build.
struct Here<'a> {
    containers: Containers,
    images: Arc<ImageStore>,
    access: &'a Access,
    data: PathBuf,
}

impl Engine for Here<'_> {
    fn get_image(&self, name: &str) -> Result<Image, BuildError> {
        say(format!("`{name}` is not here: it is pulled"));
        self.pull(name).map_err(|error| BuildError::Refused(error.to_string()))
    }

    fn run(&self, spec: ContainerSpec) -> Result<(Outcome, Option<Upper>), BuildError> {
        let ran = self.containers.run(spec, &self.data, Shown::OnStderr);
        let Ran { outcome, upper, .. } =
            ran.map_err(|error| BuildError::Failed(error.to_string()))?;
        if outcome.verdict == Verdict::Cancelled {
            return Err(BuildError::Failed("interrupted".into()));
        }
        Ok((outcome, upper))
    }

    fn say(&self, line: &str) {
        say(line);
    }
}

impl Here<'_> {
    fn pull(&self, name: &str) -> Result<Image, CliError> {
        let request = PullRequest::parse(name, self.access.transport(), None, None)?;
        let credentials = self.access.credentials(&request.source)?;
        let local = LocalStore {
            images: Arc::clone(&self.images),
            bounds: Bounds::default(),
            unpacking: TaskTracker::new(),
        };
        transfer::run(async |teller| registry::pull(&local, &request, credentials, teller).await)
    }
}
