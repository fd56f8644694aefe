//! `lazaret run`: one job, here and now, without a server.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::process::ExitCode;

use lazaret_sandbox::image::{Image, ImageStore};
use lazaret_sandbox::outcome::{Outcome, StepOutcome, Verdict};
use lazaret_sandbox::spec::{
    ContainerSpec, Cpus, Limits, OutputOverflow, RootUse, StepSpec, VolumeMount, When, WhenAlone,
};
use lazaret_sandbox::volume::VolumeHold;

use super::containers::{Containers, Ran};
use super::place::Place;
use super::quantity::{parse_bytes, parse_ms, parse_variable};
use super::volume::{self, Mount};
use super::{CliError, Form, input, say};
use crate::commit::{self, Written};
use crate::config::LimitPolicy;
use crate::request::{self, targets_apart};

/// The exit code for a fault of ours.
const FAULT: u8 = 125;
/// The exit code when the program ran out of time, as timeout(1) has it.
const OUT_OF_TIME: u8 = 124;
/// The exit code when the program was killed for what it used: 128 and SIGKILL.
const KILLED: u8 = 137;
/// The exit code when the user interrupted: 128 and SIGINT.
const INTERRUPTED: u8 = 130;
/// Where programs start if the image does not say.
const WORKDIR: &str = "/workspace";

/// One job, run here.
#[derive(Debug, clap::Args)]
#[command(after_help = "With --json, nothing is printed but one JSON object at the end: verdict, \
    exit code, usage and all output, in the fields of a step of the HTTP API.")]
pub(super) struct Args {
    /// The image to run in.
    #[arg(long, default_value = "host")]
    image: String,
    /// Memory of all processes together.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// CPU time of all processes together.
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    cpu_time: Option<u64>,
    /// Time until it has to have ended.
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    wall_time: Option<u64>,
    /// Processes and threads at one time.
    #[arg(long)]
    pids: Option<NonZeroU32>,
    /// A file to put into the working directory; may be given often.
    #[arg(short, long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// An environment variable for the program; may be given often.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// A volume to show the program at PATH, to read only with `:ro`; may be given often.
    #[arg(long = "volume", value_name = "NAME:PATH[:ro]", value_parser = volume::parse_mount)]
    volumes: Vec<Mount>,
    /// Who it runs as: `name|id[:group]`.
    #[arg(long)]
    user: Option<String>,
    /// Give the program what comes on standard input (without it: nothing).
    #[arg(long)]
    stdin: bool,
    /// Make an image of this name of all that it wrote, if it succeeds.
    #[arg(long, value_name = "NAME")]
    commit: Option<String>,
    #[command(flatten)]
    place: Place,
    /// The program and its arguments; the image's own if it is left out.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs it, streaming its output. The exit code is the program's.
pub(super) fn run(args: &Args, form: Form) -> Result<ExitCode, CliError> {
    execute(args, form).or_else(|error| match error {
        CliError::Unread => Err(error),
        CliError::Refused(_) | CliError::Failed(_) => {
            say(error);
            Ok(ExitCode::from(FAULT))
        }
    })
}

fn execute(args: &Args, form: Form) -> Result<ExitCode, CliError> {
    let containers = Containers::start()?;
    let store = args.place.open()?;
    let image = find(&store, &args.image)?;
    let _hold = store.hold(&image)?;
    let name = args.commit.as_deref().map(|name| request::commit::check(name, &image, &store));
    let name = name.transpose().map_err(|why| CliError::refused(format!("--commit: {why}")))?;
    let limits = args.limits(&LimitPolicy::default())?;
    let mut spec = args.spec(&store, &image, limits)?;
    let disk_bytes = spec.disk_bytes;
    let _held;
    (_held, spec.volumes) = args.take_volumes()?;
    let Ran { mut outcome, upper, output } =
        containers.run(spec, &args.place.directory()?, form.into())?;
    if output.is_unread() {
        return Err(CliError::Unread);
    }
    if let Some(name) = name {
        let written = Written { upper, base: Some(image), disk_bytes };
        commit::commit(&store, written, &name, &mut outcome);
    }
    match output.into_json(&outcome, &limits) {
        Some(step) => {
            let step = serde_json::to_string_pretty(&step).map_err(CliError::failed)?;
            writeln!(io::stdout(), "{step}")?;
        }
        None => tell(&outcome)?,
    }
    Ok(ExitCode::from(exit_code(&outcome)))
}

impl Args {
    fn spec(
        &self,
        store: &ImageStore,
        image: &Image,
        limits: Limits,
    ) -> Result<ContainerSpec, CliError> {
        let config = &image.config;
        let command = match self.command.as_slice() {
            [] => config.own_command(),
            given => given.to_vec(),
        };
        if command.is_empty() {
            return Err(CliError::refused(format!(
                "image `{}` has no command of its own: give one after `--`",
                image.name
            )));
        }
        let user = self.user.as_deref().or(config.user.as_deref()).unwrap_or("1000");
        let mut env: BTreeMap<String, String> = config.env.iter().cloned().collect();
        env.extend(self.env.iter().cloned());
        let policy = LimitPolicy::default();
        let step = StepSpec {
            name: "run".into(),
            command,
            env: env.into_iter().collect(),
            workdir: None,
            stdin: if self.stdin { read_stdin()? } else { Vec::new() },
            limits,
            output_overflow: OutputOverflow::Kill,
            when: When::Success,
            allow_failure: false,
        };
        Ok(ContainerSpec {
            label: "lazaret run".into(),
            rootfs: store.rootfs(image),
            user: store.resolve_user(image, user)?,
            workdir: config.workdir.clone().unwrap_or_else(|| WORKDIR.into()),
            volumes: Vec::new(),
            io_bytes_per_s: positive(policy.io_bytes_per_s.default)?,
            files: self.files.iter().map(|path| input::read(path)).collect::<Result<_, _>>()?,
            job_wall_ms: step.limits.wall_ms,
            when_alone: WhenAlone::Ends,
            root_use: RootUse::Job,
            steps: vec![step],
            disk_bytes: positive(policy.disk_bytes.default)?,
        })
    }

    /// The volumes that were asked for, held.
    fn take_volumes(&self) -> Result<(Vec<VolumeHold>, Vec<VolumeMount>), CliError> {
        if self.volumes.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let store = volume::open(&self.place)?;
        let (mut held, mut mounts) = (Vec::new(), Vec::<VolumeMount>::new());
        for Mount { name, path, access } in &self.volumes {
            let others = mounts.iter().map(|mount| mount.target.as_str());
            targets_apart(path, others).map_err(CliError::refused)?;
            let name = name.parse()?;
            held.push(store.hold(&name)?);
            mounts.push(store.mount(&name, path.clone(), *access));
        }
        Ok((held, mounts))
    }

    /// What the flags say, and for the rest what a job gets that names nothing. The user of this
    /// command has the whole host, so there are no maxima.
    fn limits(&self, policy: &LimitPolicy) -> Result<Limits, CliError> {
        let narrow = |value: u64| u32::try_from(value).map_err(CliError::refused);
        let pids = narrow(policy.pids.default)?;
        let open_files = narrow(policy.open_files.default)?;
        let memory_bytes = self.memory.unwrap_or(policy.memory_bytes.default);
        if memory_bytes < policy.memory_bytes.min {
            let min = policy.memory_bytes.min;
            return Err(CliError::refused(format!(
                "`--memory`: no program runs in less than {min} bytes"
            )));
        }
        Ok(Limits {
            cpu_ms: positive(self.cpu_time.unwrap_or(policy.cpu_ms.default))?,
            wall_ms: positive(self.wall_time.unwrap_or(policy.wall_ms.default))?,
            memory_bytes: positive(memory_bytes)?,
            pids: self.pids.or(NonZeroU32::new(pids)).ok_or_else(zero)?,
            cpus: Cpus::ONE,
            output_bytes: positive(policy.output_bytes.max)?,
            open_files: NonZeroU32::new(open_files).ok_or_else(zero)?,
        })
    }
}

fn positive(value: u64) -> Result<NonZeroU64, CliError> {
    NonZeroU64::new(value).ok_or_else(zero)
}

fn zero() -> CliError {
    CliError::refused("a limit of 0 is no limit")
}

fn find(store: &ImageStore, name: &str) -> Result<Image, CliError> {
    if let Some(image) = store.get(name)? {
        return Ok(image);
    }
    let names: Vec<String> =
        store.list()?.iter().map(|image| format!("`{}`", image.name)).collect();
    Err(CliError::refused(format!("there is no image `{name}`, only {}", names.join(", "))))
}

/// All of standard input, unless a person sits there.
fn read_stdin() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut stdin = io::stdin().lock();
    if !stdin.is_terminal() {
        stdin.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Says on stderr what an exit code alone would not.
fn tell(outcome: &Outcome) -> io::Result<()> {
    if matches!(outcome.verdict, Verdict::Success | Verdict::Failure) {
        return Ok(());
    }
    let step = outcome.steps.first();
    let mut line = format!("lazaret: {}", outcome.verdict.as_str());
    if let Some(hit) = step.and_then(|step| step.limit_hit) {
        line += &format!(": allowed {}, observed {}", hit.allowed, hit.observed);
    }
    if let Some(detail) = outcome.detail.as_ref().or(step.and_then(|step| step.detail.as_ref())) {
        line += &format!(": {detail}");
    }
    writeln!(io::stderr(), "{line}")
}

/// What this command exits with.
fn exit_code(outcome: &Outcome) -> u8 {
    match outcome.verdict {
        Verdict::Success => 0,
        Verdict::Failure | Verdict::Signaled | Verdict::DiskLimit => {
            outcome.steps.first().map_or(FAULT, exit_code_of_program)
        }
        Verdict::CpuLimit | Verdict::WallLimit => OUT_OF_TIME,
        Verdict::MemoryLimit | Verdict::OutputLimit => KILLED,
        Verdict::Cancelled => INTERRUPTED,
        Verdict::Skipped | Verdict::Fault => FAULT,
    }
}

/// The program's exit code, or 128 and the signal that ended it, as shells have it.
fn exit_code_of_program(step: &StepOutcome) -> u8 {
    let code = step.exit_code.or(step.signal.map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAULT)
}
