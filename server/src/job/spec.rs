//! What a job asks for, after it was checked: every default is filled in, every value is allowed.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use lazaret_sandbox::image::{Digest, ImageName};
use lazaret_sandbox::spec::{
    Access, ContainerSpec, Cpus, InputFile, Limits, OutputOverflow, RootUse, Rootfs, StepSpec,
    User, VolumeMount, When, WhenAlone,
};
use lazaret_sandbox::volume::VolumeName;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::Demand;

/// What a container costs beside its program: the shim, init, page tables, pipes.
pub const OVERHEAD_BYTES: u64 = 4 << 20;

/// A checked job. Kept as JSON in the store, so fields may be added but not change their meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What it runs in.
    pub image: JobImage,
    /// Who the steps run as.
    pub user: User,
    /// Where steps start and files land.
    pub workdir: String,
    /// What is run, in order; never empty.
    pub steps: Vec<JobStep>,
    /// What it is shown beside its image.
    #[serde(default)]
    pub volumes: Vec<JobVolume>,
    /// Bound of all storage but the volumes.
    pub disk_bytes: NonZeroU64,
    /// What it may read from, and write to, the disk of a volume in a second.
    #[serde(default = "any_rate")]
    pub io_bytes_per_s: NonZeroU64,
    /// Bound of the whole job's time.
    pub job_wall_ms: NonZeroU64,
    /// What output beyond a step's `output_bytes` means.
    pub output_overflow: OutputOverflow,
    /// The client's own notes, by which jobs can be listed.
    pub labels: BTreeMap<String, String>,
    /// Jobs of a higher one start earlier.
    pub priority: i16,
    /// What an image is called that is made of what the job wrote.
    #[serde(default)]
    pub commit: Option<ImageName>,
}

/// The image a job runs in, as it was when the job was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobImage {
    /// The name it was asked for by.
    pub name: String,
    /// What the name stood for: a later image of that name is not for this job.
    pub digest: Digest,
}

/// A directory that a job is shown beside its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobVolume {
    /// What it is shown.
    pub source: VolumeSource,
    /// Where: absolute, and not below that of another.
    pub path: String,
    /// What the job may do with it.
    pub access: Access,
}

/// What a job is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// The volume of this name.
    Name(VolumeName),
    /// A directory of the host that the configuration allowed.
    HostPath(PathBuf),
}

/// The rate of jobs that were stored before there was one: they have no volumes.
const fn any_rate() -> NonZeroU64 {
    NonZeroU64::MAX
}

/// One command of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStep {
    /// Shown in outcomes and log events.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment: the image's, the job's, the step's, the later ones winning.
    pub env: BTreeMap<String, String>,
    /// Where it starts, if not in the job's `workdir`.
    pub workdir: Option<String>,
    /// What it may use.
    pub limits: Limits,
    /// Whether it runs, depending on the steps before it.
    pub when: When,
    /// Whether the job goes on as if it had succeeded when it did not.
    pub allow_failure: bool,
}

/// The bytes a job brings along. Kept apart from the spec, and only until the job is finished.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Files put into the working directory.
    pub files: Vec<InputFile>,
    /// What each step reads, in the order of the steps.
    pub stdin: Vec<ByteBuf>,
}

impl std::fmt::Debug for Inputs {
    /// Without the bytes: they are the client's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Inputs {
    /// Whether there is nothing that would have to be stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.stdin.iter().all(|bytes| bytes.is_empty())
    }

    /// Bytes of all files and all that is read.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let files = self.files.iter().map(|file| file.content.len());
        files.chain(self.stdin.iter().map(|bytes| bytes.len())).map(|bytes| bytes as u64).sum()
    }
}

impl JobSpec {
    /// What the job takes from the host: its steps run one after another, so the largest counts.
    #[must_use]
    pub fn demand(&self) -> Demand {
        let steps = self.steps.iter().map(|step| &step.limits);
        let memory_bytes = steps.clone().map(|limits| limits.memory_bytes.get()).max();
        Demand {
            cpu_millis: steps.map(|limits| limits.cpus.millis()).max().unwrap_or(0),
            memory_bytes: memory_bytes.unwrap_or(0).saturating_add(OVERHEAD_BYTES),
        }
    }

    /// The names of its volumes.
    pub fn volume_names(&self) -> impl Iterator<Item = &VolumeName> {
        self.volumes.iter().filter_map(|volume| match &volume.source {
            VolumeSource::Name(name) => Some(name),
            VolumeSource::HostPath(_) => None,
        })
    }

    /// The container that runs this job in `rootfs`, with `volumes`.
    #[must_use]
    pub fn container(
        &self,
        label: String,
        (rootfs, volumes): (Rootfs, Vec<VolumeMount>),
        inputs: Inputs,
    ) -> ContainerSpec {
        let mut stdin = inputs.stdin.into_iter();
        let steps = self.steps.iter().map(|step| StepSpec {
            name: step.name.clone(),
            command: step.command.clone(),
            env: step.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            workdir: step.workdir.clone(),
            stdin: stdin.next().unwrap_or_default().into_vec(),
            limits: step.limits,
            output_overflow: self.output_overflow,
            when: step.when,
            allow_failure: step.allow_failure,
        });
        ContainerSpec {
            label,
            rootfs,
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            steps: steps.collect(),
            files: inputs.files,
            volumes,
            disk_bytes: self.disk_bytes,
            io_bytes_per_s: self.io_bytes_per_s,
            job_wall_ms: self.job_wall_ms,
            when_alone: WhenAlone::GoesOn,
            root_use: RootUse::Job,
        }
    }
}

/// A number of CPUs as clients and operators write it, in steps of a thousandth.
#[must_use]
pub fn cpus_from_number(cpus: f64) -> Option<Cpus> {
    const MAX_CPUS: f64 = 1000.0;
    if !(0.0..=MAX_CPUS).contains(&cpus) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and a million, as just checked"
    )]
    let millis = (cpus * 1000.0).round() as u32;
    Cpus::from_millis(millis)
}

/// A small valid spec, for the tests of other modules.
#[cfg(test)]
pub(crate) fn sample() -> JobSpec {
    use std::num::NonZeroU32;
    let number = |value| NonZeroU64::new(value).expect("not zero");
    let small = |value| NonZeroU32::new(value).expect("not zero");
    JobSpec {
        image: JobImage { name: "host".into(), digest: Digest::of(b"") },
        user: User { uid: 1000, gid: 1000, groups: Vec::new() },
        workdir: "/workspace".into(),
        steps: vec![JobStep {
            name: "run".into(),
            command: vec!["true".into()],
            env: BTreeMap::new(),
            workdir: None,
            limits: Limits {
                cpu_ms: number(1000),
                wall_ms: number(1000),
                memory_bytes: number(64 << 20),
                pids: small(8),
                cpus: Cpus::ONE,
                output_bytes: number(1000),
                open_files: small(64),
            },
            when: When::Success,
            allow_failure: false,
        }],
        volumes: Vec::new(),
        disk_bytes: number(1 << 20),
        io_bytes_per_s: number(1 << 20),
        job_wall_ms: number(1000),
        output_overflow: OutputOverflow::Kill,
        labels: BTreeMap::new(),
        priority: 0,
        commit: None,
    }
}
