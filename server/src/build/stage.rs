//! A stage while it is built: the image so far, and what each step makes of it.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use lazaret_sandbox::image::oci::{MAX_LAYERS, Platform};
use lazaret_sandbox::image::{self, Bounds, Digest, HeldLayer, Hold, Image, ImageConfig, Layer};
use lazaret_sandbox::outcome::{Outcome, Verdict};
use lazaret_sandbox::spec::{
    ContainerSpec, OutputOverflow, RootUse, StepSpec, User, When, WhenAlone,
};
use serde_json::{Value, json};

use super::plan::{Command, Plan, Step, What};
use super::words::{expand, split};
use super::{Build, BuildError, BuildRequest, SCRATCH};

/// Who `RUN` runs as if nobody says.
const ROOT: &str = "0";
/// Where, if nobody says.
const TOP: &str = "/";

/// An image so far.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    /// The topmost first.
    pub(super) layers: Vec<Layer>,
    pub(super) config: ImageConfig,
    pub(super) platform: Platform,
    shell: Vec<String>,
    arguments: BTreeMap<String, String>,
    /// Whether the command is this stage's own, and not its base's.
    has_own_command: bool,
    /// Keeps the layers.
    holds: Vec<Arc<Hold>>,
}

/// The names that an `ARG` declares.
pub(super) fn declared(text: &str, escape: char) -> Vec<String> {
    let words = split(text, escape).into_iter();
    words.map(|word| word.split('=').next().unwrap_or_default().to_owned()).collect()
}

/// What `ARG`s in front of the first stage stand for, and those that every build has.
pub(super) fn global_arguments(
    plan: &Plan,
    request: &BuildRequest,
) -> Result<BTreeMap<String, String>, BuildError> {
    let host = Platform::of_host();
    let mut arguments = BTreeMap::new();
    for side in ["TARGET", "BUILD"] {
        for (part, value) in [
            ("PLATFORM", host.to_string()),
            ("OS", host.os.clone()),
            ("ARCH", host.architecture.clone()),
            ("VARIANT", host.variant.clone().unwrap_or_default()),
        ] {
            arguments.insert(format!("{side}{part}"), value);
        }
    }
    for text in &plan.arguments {
        let known = arguments.clone();
        let lookup = |name: &str| known.get(name).cloned();
        for word in split(text, plan.escape) {
            let (name, value) = argument(word, plan.escape, &lookup, request)?;
            arguments.extend(value.map(|value| (name, value)));
        }
    }
    Ok(arguments)
}

/// Name and value of `NAME` or `NAME=value`, where the one who builds has the last word.
fn argument(
    word: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
    request: &BuildRequest,
) -> Result<(String, Option<String>), BuildError> {
    let (name, default) = match word.split_once('=') {
        Some((name, default)) => (name, Some(expand(default, escape, lookup)?)),
        None => (word, None),
    };
    Ok((name.to_owned(), request.arguments.get(name).cloned().or(default)))
}

impl Build<'_> {
    /// Builds a stage, the `number.0`th of `number.1`.
    pub(super) fn stage(&mut self, place: usize, number: (usize, usize)) -> Result<(), BuildError> {
        let planned = &self.plan.stages[place];
        let mut stage = self.base(place).map_err(|error| error.on_line(planned.line))?;
        for (index, step) in planned.steps.iter().enumerate() {
            let of_stage = match number {
                (_, 1) => String::new(),
                (number, all) => format!("stage {number}/{all}, "),
            };
            let shown = format!("{of_stage}step {}/{}", index + 1, planned.steps.len());
            self.engine.say(&format!("[{shown}] {}", step.text));
            self.step(&mut stage, step, place).map_err(|error| error.on_line(step.line))?;
        }
        self.done.insert(place, stage);
        Ok(())
    }

    /// What a stage starts with.
    fn base(&self, place: usize) -> Result<Stage, BuildError> {
        let planned = &self.plan.stages[place];
        let name = planned.base.as_str();
        if let Some(platform) = &planned.platform
            && platform.parse::<Platform>()? != Platform::of_host()
        {
            let why = format!("`{platform}` is not this machine, which runs the steps");
            return Err(BuildError::refused(why));
        }
        let shell = vec!["/bin/sh".into(), "-c".into()];
        if let Some(stage) = self.plan.stage(name, place).and_then(|place| self.done.get(&place)) {
            return Ok(Stage { has_own_command: false, ..stage.clone() });
        }
        let mut stage = Stage {
            layers: Vec::new(),
            config: ImageConfig::default(),
            platform: Platform::of_host(),
            shell,
            arguments: BTreeMap::new(),
            has_own_command: false,
            holds: Vec::new(),
        };
        if name != SCRATCH {
            let image = self.image(name)?;
            stage.platform = image.platform.parse()?;
            (stage.layers, stage.config) = (image.layers, image.config);
            let pruned = || image::Error::NotFound { name: name.to_owned() };
            stage.holds = vec![Arc::new(self.images.hold_layers(&stage.layers, pruned)?)];
        }
        Ok(stage)
    }

    /// The image of this name, pulled if it is not here.
    pub(super) fn image(&self, name: &str) -> Result<Image, BuildError> {
        let image = match self.images.get(name)? {
            Some(image) => image,
            None => self.engine.get_image(name)?,
        };
        self.images.can_leave(&image)?;
        Ok(image)
    }

    fn step(&self, stage: &mut Stage, step: &Step, place: usize) -> Result<(), BuildError> {
        match &step.what {
            What::Run(command) => return self.run(stage, command, step),
            What::Copy(files) => return self.copy(stage, files, place),
            What::Env(text) => {
                for (name, value) in self.pairs(stage, text)? {
                    stage.config.env.retain(|(known, _)| *known != name);
                    stage.config.env.push((name, value));
                }
            }
            What::Arg(text) => self.declare(stage, text)?,
            What::Label(text) => {
                let pairs = self.pairs(stage, text)?;
                stage.config.labels.extend(pairs);
            }
            What::Workdir(text) => {
                let path = normalized(&absolute(stage, &self.word(stage, text)?));
                let owner = self.user(stage)?;
                let owner = (owner.uid, owner.gid);
                let made = self.images.with_directory(&stage.layers, path.as_bytes(), owner)?;
                made.map_or(Ok(()), |made| put(stage, made))?;
                stage.config.workdir = Some(path);
            }
            What::User(text) => stage.config.user = Some(self.word(stage, text)?),
            What::Expose(ports) => {
                for port in ports {
                    let ports = self.words(stage, port)?.into_iter().map(|port| exposed(&port));
                    let ports: Vec<String> = ports.collect::<Result<_, _>>()?;
                    stage.config.ports.extend(ports);
                }
            }
            What::Cmd(command) => {
                stage.config.command = whole(stage, command);
                stage.has_own_command = true;
            }
            What::Entrypoint(command) => {
                stage.config.entrypoint = whole(stage, command);
                if !stage.has_own_command {
                    // It was for the entry point of the base.
                    stage.config.command = Vec::new();
                }
            }
            What::Shell(shell) => stage.shell.clone_from(shell),
            What::LeftOut => self.engine.say("it means nothing here, and is left out"),
        }
        Ok(())
    }

    fn declare(&self, stage: &mut Stage, text: &str) -> Result<(), BuildError> {
        for word in split(text, self.plan.escape) {
            let lookup = |name: &str| stage.value(name);
            let (name, value) = argument(word, self.plan.escape, &lookup, self.request)?;
            let value = value.or_else(|| self.arguments.get(&name).cloned());
            stage.arguments.extend(value.map(|value| (name, value)));
        }
        Ok(())
    }

    /// Runs a command in a container; what it wrote is the next layer.
    fn run(&self, stage: &mut Stage, command: &Command, step: &Step) -> Result<(), BuildError> {
        let user = self.user(stage)?;
        let home = self.images.home_of(&stage.layers, user.uid)?;
        let mut env = BTreeMap::from([("HOME".to_owned(), home)]);
        env.extend(stage.arguments.clone());
        env.extend(stage.config.env.iter().cloned());
        let command = match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(_) => whole(stage, command),
        };
        let workdir = stage.config.workdir.clone().unwrap_or_else(|| TOP.into());
        let key = stage.key_of(&json!(["RUN", command, env, workdir, [user.uid, user.gid]]));
        if self.put_known(stage, key)? {
            return Ok(());
        }
        check_room(stage)?;
        let limits = self.request.limits;
        let spec = ContainerSpec {
            label: "lazaret image build".into(),
            rootfs: self.images.rootfs_of(&stage.layers),
            user,
            workdir: TOP.into(),
            files: Vec::new(),
            volumes: Vec::new(),
            io_bytes_per_s: NonZeroU64::MAX,
            steps: vec![StepSpec {
                name: "run".into(),
                command,
                env: env.into_iter().collect(),
                workdir: Some(workdir),
                stdin: Vec::new(),
                limits,
                output_overflow: OutputOverflow::Truncate,
                when: When::Success,
                allow_failure: false,
            }],
            disk_bytes: self.request.disk_bytes,
            job_wall_ms: limits.wall_ms,
            when_alone: WhenAlone::Ends,
            root_use: RootUse::Build,
        };
        // Holes take no room in a container, but time to copy: they count like all else.
        let unpacked_bytes = self.request.disk_bytes.get();
        let bounds = Bounds { unpacked_bytes, ..Bounds::default() };
        let (outcome, upper) = self.engine.run(spec)?;
        let Some(upper) = upper.filter(|_| outcome.verdict == Verdict::Success) else {
            return Err(BuildError::Step { line: step.line, why: how_it_ended(&outcome) });
        };
        let made = self.images.commit_layer(&upper, bounds)?;
        self.put_new(stage, key, made)
    }

    /// Who steps run as.
    fn user(&self, stage: &Stage) -> Result<User, BuildError> {
        let user = stage.config.user.as_deref().unwrap_or(ROOT);
        Ok(self.images.resolve_user_of(&stage.layers, user)?)
    }

    /// Takes the layer that a step has made before.
    pub(super) fn put_known(&self, stage: &mut Stage, key: Digest) -> Result<bool, BuildError> {
        let known = if self.request.is_fresh { None } else { self.images.built(&key)? };
        let Some(known) = known else { return Ok(false) };
        self.engine.say("as before");
        put(stage, known)?;
        Ok(true)
    }

    pub(super) fn put_new(
        &self,
        stage: &mut Stage,
        key: Digest,
        made: HeldLayer,
    ) -> Result<(), BuildError> {
        self.images.remember_built(key, &made.layer)?;
        put(stage, made)
    }

    /// A text as one word, its variables replaced.
    pub(super) fn word(&self, stage: &Stage, text: &str) -> Result<String, BuildError> {
        expand(text, self.plan.escape, &|name| stage.value(name))
    }

    fn words(&self, stage: &Stage, text: &str) -> Result<Vec<String>, BuildError> {
        split(text, self.plan.escape).into_iter().map(|word| self.word(stage, word)).collect()
    }

    /// `NAME=value NAME=value`, or `NAME` and the rest of the line.
    fn pairs(&self, stage: &Stage, text: &str) -> Result<Vec<(String, String)>, BuildError> {
        let words = split(text, self.plan.escape);
        if let Some(first) = words.first().filter(|word| !word.contains('=')) {
            let rest = text.trim_start()[first.len()..].trim();
            return Ok(vec![(self.word(stage, first)?, self.word(stage, rest)?)]);
        }
        let pairs = words.into_iter().map(|word| {
            let no_pair = || BuildError::refused(format!("`{word}` is not `NAME=value`"));
            let (name, value) = word.split_once('=').ok_or_else(no_pair)?;
            Ok((self.word(stage, name)?, self.word(stage, value)?))
        });
        pairs.collect()
    }
}

impl Stage {
    /// What a variable stands for.
    fn value(&self, name: &str) -> Option<String> {
        let env = self.config.env.iter().find(|(known, _)| known == name);
        env.map(|(_, value)| value).or_else(|| self.arguments.get(name)).cloned()
    }

    /// The key of a step: what it does, and the layers that it does it on. All else that it depends
    /// on is in `what`.
    pub(super) fn key_of(&self, what: &Value) -> Digest {
        let layers: Vec<Digest> = self.layers.iter().map(|layer| layer.digest).collect();
        Digest::of(json!([layers, what]).to_string().as_bytes())
    }
}

/// Whether there may be one more layer.
fn check_room(stage: &Stage) -> Result<(), BuildError> {
    if stage.layers.len() < MAX_LAYERS {
        return Ok(());
    }
    let why = format!("there are {MAX_LAYERS} layers already, the most there may be");
    Err(BuildError::refused(why))
}

/// Puts one more layer on the others.
pub(super) fn put(stage: &mut Stage, made: HeldLayer) -> Result<(), BuildError> {
    check_room(stage)?;
    stage.holds.push(Arc::new(made.hold));
    stage.layers = made.layer.on(&stage.layers);
    Ok(())
}

/// A command as it is run: a line goes to the shell.
fn whole(stage: &Stage, command: &Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(line) => [stage.shell.as_slice(), std::slice::from_ref(line)].concat(),
    }
}

/// A path without `.`, `..` and empty parts.
fn normalized(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A path of the image, from its root.
pub(super) fn absolute(stage: &Stage, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    let workdir = stage.config.workdir.as_deref().unwrap_or(TOP);
    format!("{}/{path}", workdir.trim_end_matches('/'))
}

/// `80` as `80/tcp`.
fn exposed(port: &str) -> Result<String, BuildError> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let is_port = number.split('-').all(|number| number.parse::<u16>().is_ok());
    if is_port && matches!(protocol, "tcp" | "udp" | "sctp") {
        return Ok(format!("{number}/{protocol}"));
    }
    Err(BuildError::refused(format!("`{port}` is not a port, as `80` or `80/udp`")))
}

fn how_it_ended(outcome: &Outcome) -> String {
    let step = outcome.steps.first();
    let detail = outcome.detail.as_deref().or(step.and_then(|step| step.detail.as_deref()));
    let mut why = match step.and_then(|step| step.exit_code) {
        Some(code) if outcome.verdict == Verdict::Failure => format!("exit code {code}"),
        _ => format!("verdict `{}`", outcome.verdict.as_str()),
    };
    if let Some(hit) = step.and_then(|step| step.limit_hit) {
        why += &format!(": allowed {}, observed {}", hit.allowed, hit.observed);
    }
    if let Some(detail) = detail {
        why += &format!(": {detail}");
    }
    why
}
