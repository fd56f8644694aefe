//! Images from Dockerfiles: each `RUN` is a container, each `COPY` a layer, and what was done
//! before is not done again.
//!
//! ```text
//! Dockerfile ─▶ plan: stages, steps ─▶ stage: image so far ─▶ RUN, COPY: a layer more ─▶ image
//!                                       └─ key of a step: what it does, on what ─▶ known layer
//! ```

mod context;
mod copy;
mod plan;
mod stage;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::Timestamp;
use lazaret_sandbox::image::{self, HOST_IMAGE, Image, ImageName, ImageStore, NewImage, Upper};
use lazaret_sandbox::outcome::Outcome;
use lazaret_sandbox::spec::{ContainerSpec, Limits};

use plan::{Plan, What, at};
use stage::Stage;

/// What an empty image is called.
const SCRATCH: &str = "scratch";

/// What is built.
#[derive(Debug)]
pub struct BuildRequest {
    /// The Dockerfile's text.
    pub dockerfile: String,
    /// The directory that `COPY` and `ADD` take files from.
    pub context: PathBuf,
    /// What the image is called.
    pub name: ImageName,
    /// Values for `ARG`s.
    pub arguments: BTreeMap<String, String>,
    /// The stage that becomes the image; the last one, if none is named.
    pub target: Option<String>,
    /// Whether steps that were done before are done again.
    pub is_fresh: bool,
    /// What each `RUN` may use.
    pub limits: Limits,
    /// How much each `RUN` may write.
    pub disk_bytes: std::num::NonZeroU64,
}

/// What a build needs of the program that it is part of.
pub trait Engine {
    /// An image that is not in the store, from wherever it can be had.
    ///
    /// # Errors
    /// If it cannot be had.
    fn get_image(&self, name: &str) -> Result<Image, BuildError>;

    /// Runs a container to its end, its output shown.
    ///
    /// # Errors
    /// If there is no end, or somebody asked for it.
    fn run(&self, spec: ContainerSpec) -> Result<(Outcome, Option<Upper>), BuildError>;

    /// Tells what happens.
    fn say(&self, line: &str);
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Whoever wrote the Dockerfile can mend it: the message says how.
    #[error("{0}")]
    Refused(String),
    /// A step did not succeed.
    #[error("Dockerfile, line {line}: {why}")]
    Step {
        /// Where it is.
        line: usize,
        /// How it ended.
        why: String,
    },
    /// This host failed.
    #[error("{0}")]
    Failed(String),
}

impl BuildError {
    fn refused(why: impl Into<String>) -> Self {
        Self::Refused(why.into())
    }

    /// The same, of a step.
    fn on_line(self, line: usize) -> Self {
        match self {
            Self::Refused(why) => at(line, &why),
            Self::Step { .. } | Self::Failed(_) => self,
        }
    }
}

impl From<image::Error> for BuildError {
    fn from(error: image::Error) -> Self {
        let text = error.to_string();
        if error.is_failure() { Self::Failed(text) } else { Self::Refused(text) }
    }
}

/// What the stages of a build share.
struct Build<'a> {
    images: &'a ImageStore,
    request: &'a BuildRequest,
    engine: &'a dyn Engine,
    plan: &'a Plan,
    /// `ARG`s in front of the first stage.
    arguments: BTreeMap<String, String>,
    /// The stages that are done, by their place.
    done: BTreeMap<usize, Stage>,
}

/// Builds an image.
///
/// # Errors
/// Why there is none. Layers of steps that were done stay for the next build, until pruned.
pub fn build(
    images: &ImageStore,
    request: &BuildRequest,
    engine: &dyn Engine,
) -> Result<Image, BuildError> {
    if request.name.as_str() == HOST_IMAGE {
        let why = format!("`{HOST_IMAGE}` is the built-in image's name: choose another");
        return Err(BuildError::refused(why));
    }
    let mut plan = Plan::parse(&request.dockerfile)?;
    let arguments = stage::global_arguments(&plan, request)?;
    plan.expand_bases(&|name| arguments.get(name).cloned())?;
    let last = plan.stages.len().saturating_sub(1);
    let target = match &request.target {
        Some(name) => plan
            .stage(name, plan.stages.len())
            .ok_or_else(|| BuildError::refused(format!("the Dockerfile has no stage `{name}`")))?,
        None => last,
    };
    warn_of_unknown_arguments(&plan, request, engine);
    let mut build =
        Build { images, request, engine, plan: &plan, arguments, done: BTreeMap::new() };
    let needed = needed(&plan, target);
    for (number, place) in needed.iter().enumerate() {
        build.stage(*place, (number + 1, needed.len()))?;
    }
    let Some(stage) = build.done.remove(&target) else {
        return Err(BuildError::refused("the Dockerfile has no stage"));
    };
    let new = NewImage {
        name: request.name.clone(),
        digest: None,
        aliases: Vec::new(),
        layers: stage.layers.clone(),
        platform: Some(stage.platform.clone()),
        config: stage.config.clone(),
    };
    Ok(images.add(new, Timestamp::now())?)
}

/// The stages that the one at `target` stands on or copies from, itself among them.
fn needed(plan: &Plan, target: usize) -> BTreeSet<usize> {
    let mut needed = BTreeSet::new();
    let mut open = vec![target];
    while let Some(place) = open.pop() {
        let Some(stage) = plan.stages.get(place).filter(|_| needed.insert(place)) else { continue };
        open.extend(plan.stage(&stage.base, place));
        open.extend(stage.steps.iter().filter_map(|step| {
            let What::Copy(files) = &step.what else { return None };
            plan.stage(files.from.as_deref()?, place)
        }));
    }
    needed
}

fn warn_of_unknown_arguments(plan: &Plan, request: &BuildRequest, engine: &dyn Engine) {
    let steps = plan.stages.iter().flat_map(|stage| &stage.steps);
    let of_steps = steps.filter_map(|step| {
        let What::Arg(text) = &step.what else { return None };
        Some(text)
    });
    let texts = of_steps.chain(&plan.arguments);
    let known: BTreeSet<String> =
        texts.flat_map(|text| stage::declared(text, plan.escape)).collect();
    for name in request.arguments.keys().filter(|name| !known.contains(*name)) {
        engine.say(&format!("no `ARG` asks for `{name}`"));
    }
}
