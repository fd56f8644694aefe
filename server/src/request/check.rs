//! Makes a job of a request: every default filled in, every value checked, and all that is wrong
//! found at once.

use std::collections::BTreeMap;

use lazaret_sandbox::image::{Image, ImageStore};
use lazaret_sandbox::spec::{MAX_ID, OutputOverflow, User, When};
use serde_bytes::ByteBuf;

use super::content::Content;
use super::errors::Errors;
use super::{
    Amount, FieldError, JobRequest, LimitsRequest, OverflowName, StepRequest, WhenName, commit,
    environment, files, limits, paths, volumes,
};
use crate::config::{Capacity, LimitPolicy, RootUser};
use crate::job::{Inputs, JobImage, JobSpec, JobStep};
use crate::volumes::Volumes;

/// Steps of one job.
const MAX_STEPS: usize = 64;
/// Bytes of a step's name.
const MAX_NAME_BYTES: usize = 100;
/// Labels of one job, and bytes of their keys and values.
const MAX_LABELS: usize = 64;
const MAX_LABEL_KEY_BYTES: usize = 63;
const MAX_LABEL_VALUE_BYTES: usize = 256;
/// Priorities go from the negative of this to this.
const MAX_PRIORITY: i16 = 100;
/// Where files land and steps start if neither the job nor its image says.
const DEFAULT_WORKDIR: &str = "/workspace";
/// Who steps run as if neither the job nor its image says.
const DEFAULT_USER: &str = "1000";
/// Images that are listed to a client that named none of them.
const MAX_IMAGES_LISTED: usize = 20;

/// What a request is held to.
#[derive(Debug)]
pub struct Rules<'a> {
    /// Defaults and maxima of every limit.
    pub limits: &'a LimitPolicy,
    /// What the host has to give.
    pub capacity: Capacity,
    /// Whether a job may run as root.
    pub root_user: RootUser,
    /// The image of a job that names none.
    pub default_image: &'a str,
    /// The images there are.
    pub images: &'a ImageStore,
    /// The volumes there are, and what else a job can be shown.
    pub volumes: &'a Volumes,
}

/// Why a request is no job.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The client's mistakes.
    #[error("{} things are wrong with the request", .0.len())]
    Refused(Vec<FieldError>),
    /// The image store could not be read.
    #[error(transparent)]
    Images(#[from] lazaret_sandbox::image::Error),
    /// The volumes could not be read.
    #[error(transparent)]
    Volumes(#[from] lazaret_sandbox::volume::Error),
}

/// Makes a job of `request`. `errors` are what reading it has found already.
///
/// # Errors
/// As [`CheckError`].
pub fn check(
    mut request: JobRequest,
    errors: Vec<FieldError>,
    rules: &Rules<'_>,
) -> Result<(JobSpec, Inputs), CheckError> {
    let mut errors = Errors(errors);
    let image = find_image(request.image.take(), rules, &mut errors)?;
    let asked = request.limits.take().unwrap_or_default();
    let policy = rules.limits;
    let disk =
        limits::amount("/limits/disk_bytes", asked.disk_bytes, policy.disk_bytes, &mut errors);
    let wall = limits::amount("/job_wall_ms", request.job_wall_ms, policy.job_wall_ms, &mut errors);
    let rate = policy.io_bytes_per_s;
    let rate = limits::amount("/limits/io_bytes_per_s", asked.io_bytes_per_s, rate, &mut errors);
    let volumes =
        volumes::check(request.volumes.take().unwrap_or_default(), rules.volumes, &mut errors)?;
    let workdir = workdir(request.workdir.take(), image.as_ref(), &mut errors);
    let user = user(request.user.take(), image.as_ref(), rules, &mut errors)?;
    let files = files::check(request.files.take().unwrap_or_default(), &mut errors);
    let labels = request.labels.take().unwrap_or_default().into_map("/labels", &mut errors);
    check_labels(&labels, &mut errors);
    let priority = priority(request.priority, &mut errors);
    let commit = request.commit.take().zip(image.as_ref()).and_then(|(name, image)| {
        let checked = commit::check(&name, image, rules.images).map(Some);
        errors.or_default("/commit", checked)
    });
    let output_overflow = match request.output_overflow {
        Some(OverflowName::Truncate) => OutputOverflow::Truncate,
        Some(OverflowName::Kill) | None => OutputOverflow::Kill,
    };
    let (steps, stdin) = steps(request, &asked, image.as_ref(), rules, &mut errors);
    let Some(image) = image.filter(|_| errors.0.is_empty()) else {
        return Err(CheckError::Refused(errors.0));
    };
    let spec = JobSpec {
        image: JobImage { name: image.name.to_string(), digest: image.digest },
        user,
        workdir,
        steps,
        volumes,
        disk_bytes: nonzero(disk),
        io_bytes_per_s: nonzero(rate),
        job_wall_ms: nonzero(wall),
        output_overflow,
        labels,
        priority,
        commit,
    };
    check_capacity(&spec, rules.capacity, &mut errors);
    if !errors.0.is_empty() {
        return Err(CheckError::Refused(errors.0));
    }
    Ok((spec, Inputs { files, stdin }))
}

fn nonzero(value: u64) -> std::num::NonZeroU64 {
    std::num::NonZeroU64::new(value).unwrap_or(std::num::NonZeroU64::MIN)
}

fn find_image(
    asked: Option<String>,
    rules: &Rules<'_>,
    errors: &mut Errors,
) -> Result<Option<Image>, CheckError> {
    let name = asked.unwrap_or_else(|| rules.default_image.to_owned());
    let found = rules.images.get(&name)?;
    if found.is_none() {
        let all = rules.images.list()?;
        let names: Vec<String> =
            all.iter().take(MAX_IMAGES_LISTED).map(|image| format!("`{}`", image.name)).collect();
        let more = if all.len() > names.len() { " and more" } else { "" };
        let names = names.join(", ");
        errors.add("/image", format!("there is no image `{name}`: there is {names}{more}"));
    }
    Ok(found)
}

fn workdir(asked: Option<String>, image: Option<&Image>, errors: &mut Errors) -> String {
    match asked {
        Some(path) => errors.or_default("/workdir", paths::workdir(&path)),
        None => image
            .and_then(|image| image.config.workdir.as_deref())
            .and_then(|path| paths::workdir(path).ok())
            .unwrap_or_else(|| DEFAULT_WORKDIR.into()),
    }
}

fn user(
    asked: Option<String>,
    image: Option<&Image>,
    rules: &Rules<'_>,
    errors: &mut Errors,
) -> Result<User, CheckError> {
    let nobody = User { uid: MAX_ID, gid: MAX_ID, groups: Vec::new() };
    let Some(image) = image else { return Ok(nobody) };
    let is_asked = asked.is_some();
    let text = asked.or_else(|| image.config.user.clone()).unwrap_or_else(|| DEFAULT_USER.into());
    let user = match rules.images.resolve_user(image, &text) {
        Ok(user) => user,
        Err(error @ lazaret_sandbox::image::Error::BadUser { .. }) => {
            errors.add("/user", error.to_string());
            return Ok(nobody);
        }
        Err(error) => return Err(error.into()),
    };
    if user.uid == 0 && rules.root_user == RootUser::Refused {
        errors.add(
            "/user",
            if is_asked {
                "this server does not let jobs run as root: name another user".to_owned()
            } else {
                format!("image `{}` runs as root, which is refused: name a user", image.name)
            },
        );
    }
    Ok(user)
}

fn check_labels(labels: &BTreeMap<String, String>, errors: &mut Errors) {
    if labels.len() > MAX_LABELS {
        errors.add("/labels", format!("a job has at most {MAX_LABELS} labels"));
    }
    for (key, value) in labels {
        let pointer = format!("/labels/{}", super::escaped(key));
        if key.is_empty() || key.len() > MAX_LABEL_KEY_BYTES || key.contains('\0') {
            let bound = format!("a key has 1 to {MAX_LABEL_KEY_BYTES} bytes, none of them NUL");
            errors.add(pointer, bound);
        } else if value.len() > MAX_LABEL_VALUE_BYTES || value.contains('\0') {
            let bound = format!("a value has at most {MAX_LABEL_VALUE_BYTES} bytes, none NUL");
            errors.add(pointer, bound);
        }
    }
}

fn priority(asked: Option<Amount>, errors: &mut Errors) -> i16 {
    let Some(Amount(asked)) = asked else { return 0 };
    match i16::try_from(asked) {
        Ok(value) if value.abs() <= MAX_PRIORITY => value,
        Ok(_) | Err(_) => {
            errors.add(
                "/priority",
                format!("`{asked}` is not allowed: choose -{MAX_PRIORITY} to {MAX_PRIORITY}"),
            );
            0
        }
    }
}

/// The steps, and what each reads: `command` and `script` are one step named `run`.
fn steps(
    request: JobRequest,
    asked: &LimitsRequest,
    image: Option<&Image>,
    rules: &Rules<'_>,
    errors: &mut Errors,
) -> (Vec<JobStep>, Vec<ByteBuf>) {
    let JobRequest { mut command, script, steps, stdin, env, .. } = request;
    let given = [command.is_some(), script.is_some(), steps.is_some()];
    match given.into_iter().filter(|is_given| *is_given).count() {
        0 => command = own_command(image, errors),
        1 => {}
        _ => {
            let all = "`command`, `script`, `steps`";
            errors.add("", format!("give exactly one of {all}: there is more than one"));
        }
    }
    let env = env.unwrap_or_default().into_map("/env", errors);
    environment::check_env("/env", &env, errors);
    let mut base =
        image.map_or_else(BTreeMap::new, |image| image.config.env.iter().cloned().collect());
    base.extend(env);
    let job = JobPart { env: base, limits: asked, policy: rules.limits };
    let Some(steps) = steps else {
        let run = StepRequest {
            name: Some("run".into()),
            command,
            script,
            stdin,
            ..StepRequest::default()
        };
        let (step, stdin) = job.step("", 0, run, errors);
        return (vec![step], vec![stdin]);
    };
    if stdin.is_some() {
        errors.add("/stdin", "with `steps`, each step has a `stdin` of its own");
    }
    if !(1..=MAX_STEPS).contains(&steps.len()) {
        errors.add("/steps", format!("a job has 1 to {MAX_STEPS} steps"));
        return (Vec::new(), Vec::new());
    }
    let steps = steps.into_iter().enumerate().map(|(index, step)| {
        let pointer = format!("/steps/{index}");
        if step.command.is_some() == step.script.is_some() {
            errors.add(pointer.as_str(), "give exactly one of `command` and `script`");
        }
        job.step(&pointer, index, step, errors)
    });
    steps.unzip()
}

/// What a job runs that does not say: what its image's maker meant to be run.
fn own_command(image: Option<&Image>, errors: &mut Errors) -> Option<Vec<String>> {
    // That there is no such image was said already.
    let image = image?;
    let command = image.config.own_command();
    if command.is_empty() {
        let all = "`command`, `script`, `steps`";
        let why = format!("there is none, and image `{}` has no command of its own", image.name);
        errors.add("", format!("give exactly one of {all}: {why}"));
        return None;
    }
    Some(command)
}

/// What the steps of a job share.
struct JobPart<'a> {
    env: BTreeMap<String, String>,
    limits: &'a LimitsRequest,
    policy: &'a LimitPolicy,
}

impl JobPart<'_> {
    fn step(
        &self,
        pointer: &str,
        index: usize,
        step: StepRequest,
        errors: &mut Errors,
    ) -> (JobStep, ByteBuf) {
        let StepRequest { name, command, script, stdin, env, workdir, limits, when, .. } = step;
        let name = name.unwrap_or_else(|| format!("step {}", index + 1));
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            let bound = format!("a name has 1 to {MAX_NAME_BYTES} bytes and no control character");
            errors.add(format!("{pointer}/name"), bound);
        }
        let (field, command) = match (command, script) {
            (Some(command), _) => ("command", command),
            (None, Some(script)) => ("script", shell(script)),
            // Said already: exactly one of them is needed.
            (None, None) => ("command", vec!["true".into()]),
        };
        let at = format!("{pointer}/{field}");
        environment::check_command(&at, &command, errors);
        let at_env = format!("{pointer}/env");
        let own = env.unwrap_or_default().into_map(&at_env, errors);
        environment::check_env(&at_env, &own, errors);
        let mut env = self.env.clone();
        env.extend(own);
        environment::check_size(&at, &command, &env, errors);
        let at = format!("{pointer}/workdir");
        let workdir = workdir.map(|path| errors.or_default(&at, paths::absolute(&path)));
        if let Some(own) = limits.as_ref().filter(|_| !pointer.is_empty()) {
            refuse_limits_of_jobs(pointer, own, errors);
        }
        let limits = limits::merged(limits, self.limits);
        let limits =
            limits::step_limits(&format!("{pointer}/limits"), &limits, self.policy, errors);
        let stdin = stdin.map_or_else(|| Ok(Vec::new()), Content::into_bytes);
        let stdin = errors.or_default(&format!("{pointer}/stdin/base64"), stdin);
        let when = match when {
            Some(WhenName::Success) | None => When::Success,
            Some(WhenName::Failure) => When::Failure,
            Some(WhenName::Always) => When::Always,
        };
        let allow_failure = step.allow_failure.unwrap_or(false);
        let step = JobStep { name, command, env, workdir, limits, when, allow_failure };
        (step, ByteBuf::from(stdin))
    }
}

/// Refuses what one of several steps cannot have for itself.
fn refuse_limits_of_jobs(pointer: &str, own: &LimitsRequest, errors: &mut Errors) {
    for (name, given, what) in [
        ("disk_bytes", own.disk_bytes, "storage is"),
        ("io_bytes_per_s", own.io_bytes_per_s, "the disk of a volume is"),
    ] {
        if given.is_some() {
            let detail = format!("{what} the whole job's: say it in the job's `limits`");
            errors.add(format!("{pointer}/limits/{name}"), detail);
        }
    }
}

/// The command that runs a script. `sh` takes the text as an argument, so no file of ours is in
/// the way of the job's own.
fn shell(script: String) -> Vec<String> {
    vec!["/bin/sh".into(), "-e".into(), "-c".into(), script]
}

/// A job that could never start must not wait for ever.
fn check_capacity(spec: &JobSpec, capacity: Capacity, errors: &mut Errors) {
    let demand = spec.demand();
    if demand.cpu_millis > capacity.cpu_millis {
        let [asked, most] =
            [demand.cpu_millis, capacity.cpu_millis].map(|millis| limits::in_cpus(millis.into()));
        errors.add("/limits/cpus", format!("`{asked}` is more than this server has: {most}"));
    }
    if demand.memory_bytes > capacity.memory_bytes {
        let overhead = crate::job::spec::OVERHEAD_BYTES;
        let [asked, most] = [demand.memory_bytes, capacity.memory_bytes]
            .map(|bytes| bytes.saturating_sub(overhead));
        errors.add(
            "/limits/memory_bytes",
            format!("`{asked}` is more than this server has to give: {most}"),
        );
    }
}
