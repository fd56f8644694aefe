//! Containers for tests: how they are specified, run and watched.

use std::fs::File;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lazaret_sandbox::error::Error;
use lazaret_sandbox::image::{ImageStore, Upper};
use lazaret_sandbox::outcome::{Outcome, StepOutcome, Verdict};
use lazaret_sandbox::spec::{
    ContainerSpec, Cpus, InputFile, Limits, OutputOverflow, RootUse, Rootfs, StepSpec, User, When,
    WhenAlone,
};
use lazaret_sandbox::spool::{Entry, Record, SpoolReader, Stream};
use lazaret_sandbox::{Container, Cpuset, Event, Settings, Zygote};
use tempfile::TempDir;

use crate::leftovers::Footprint;

/// The longest any container of these tests may take, on a busy machine and an emulated one.
const PATIENCE_MS: u32 = 120_000;

/// Everything that the tests share.
pub(crate) struct Sandbox {
    settings: Settings,
    zygote: Zygote,
    images: ImageStore,
    directory: TempDir,
    containers: AtomicU32,
}

/// A container that was started.
pub(crate) struct Live {
    pub(crate) container: Container,
    pub(crate) footprint: Footprint,
    spool: File,
}

/// A container that has ended.
pub(crate) struct Ran {
    pub(crate) outcome: Outcome,
    pub(crate) records: Vec<Record>,
}

impl Sandbox {
    /// Forks a zygote, whose containers are kept to `cpuset`; the process has one thread.
    pub(crate) fn start(name: &str, cpuset: Option<Cpuset>) -> Result<Self, Error> {
        let name = format!("test-{}-{name}", std::process::id());
        let settings = Settings {
            run_dir: format!("/run/lazaret/{name}").into(),
            ids_dir: "/run/lazaret/ids".into(),
            cgroup_parent: format!("lazaret/{name}"),
            memory_bytes: NonZeroU64::new(8 << 30),
            cpuset,
        };
        let zygote = Zygote::start(&settings)?;
        let directory = tempfile::tempdir().expect("a directory");
        let images = ImageStore::open(directory.path()).expect("an image store");
        Ok(Self { settings, zygote, images, directory, containers: AtomicU32::new(0) })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn images(&self) -> &ImageStore {
        &self.images
    }

    /// A directory of this test run's own.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// The root file system of an image.
    pub(crate) fn rootfs(&self, name: &str) -> Rootfs {
        let image = self.images.get(name).expect("a readable store").expect("an image");
        self.images.rootfs(&image)
    }

    /// A container of the `host` image that runs one shell script.
    pub(crate) fn script(&self, script: &str) -> ContainerSpec {
        self.command(&["/bin/sh", "-c", script])
    }

    /// A container of the `host` image that runs a Python program.
    pub(crate) fn python(&self, program: &str) -> ContainerSpec {
        self.command(&["/usr/bin/python3", "-I", "-c", program])
    }

    /// A container of the `host` image that runs one command.
    pub(crate) fn command(&self, command: &[&str]) -> ContainerSpec {
        ContainerSpec {
            label: "test".into(),
            rootfs: self.rootfs("host"),
            user: User { uid: 1000, gid: 1000, groups: Vec::new() },
            workdir: "/workspace".into(),
            files: Vec::new(),
            volumes: Vec::new(),
            steps: vec![step("run", command)],
            disk_bytes: bytes(64 << 20),
            io_bytes_per_s: bytes(1 << 30),
            job_wall_ms: bytes(100_000),
            when_alone: WhenAlone::GoesOn,
            root_use: RootUse::Job,
        }
    }

    /// An empty container, and what it will have to take with it.
    pub(crate) fn spawn(&self) -> (Container, Footprint) {
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        let container = self.zygote.spawn(&format!("c{number}")).expect("a container");
        let footprint = Footprint::take(&self.settings, container.id());
        (container, footprint)
    }

    /// An empty container of this name.
    pub(crate) fn try_spawn(&self, id: &str) -> Result<Container, Error> {
        self.zygote.spawn(id)
    }

    /// Starts a container and leaves it running.
    pub(crate) fn start_container(&self, spec: ContainerSpec) -> Live {
        self.start_in(self.spawn(), spec)
    }

    /// Starts a container that was made before, and leaves it running.
    pub(crate) fn start_in(
        &self,
        (mut container, footprint): (Container, Footprint),
        spec: ContainerSpec,
    ) -> Live {
        let spool = tempfile::tempfile().expect("a spool");
        container.start(spec, spool.as_fd()).expect("started");
        Live { container, footprint, spool }
    }

    /// Runs a container to its end and sees that nothing of it is left.
    pub(crate) fn run(&self, spec: ContainerSpec) -> Ran {
        self.start_container(spec).finish(self)
    }

    /// As [`Sandbox::run`], of a spec with one step: how that ended, and its stdout.
    pub(crate) fn run_one(&self, spec: ContainerSpec) -> (StepOutcome, String) {
        let ran = self.run(spec);
        (ran.step(0).clone(), ran.stdout(0))
    }

    /// The stdout of a program that has to succeed.
    pub(crate) fn stdout_of(&self, spec: ContainerSpec) -> String {
        let ran = self.run(spec);
        assert_eq!(
            ran.outcome.verdict,
            Verdict::Success,
            "{:?}\n{}{}",
            ran.outcome,
            ran.stdout(0),
            ran.stderr(0)
        );
        ran.stdout(0)
    }
}

impl Live {
    /// The next event.
    pub(crate) fn event(&mut self) -> Event {
        self.container.wait_event(PATIENCE_MS).expect("an event")
    }

    /// Waits until the program of a step was executed.
    pub(crate) fn await_start(&mut self, step: u16) {
        loop {
            match self.event() {
                Event::StepStarted { step: started } if started == step => return,
                Event::Finished(outcome) => panic!("never started: {outcome:?}"),
                Event::StepStarted { .. } | Event::Output { .. } | Event::StepEnded { .. } => {}
            }
        }
    }

    /// Waits until the step has written something.
    pub(crate) fn await_output(&mut self) {
        while !self.records().iter().any(|record| matches!(record.entry, Entry::Output(..))) {
            let event = self.event();
            assert!(!matches!(event, Event::Finished(_)), "no output came: {event:?}");
        }
    }

    /// What the spool holds now.
    pub(crate) fn records(&self) -> Vec<Record> {
        use std::os::unix::fs::FileExt;
        let length = self.spool.metadata().expect("a size").len();
        let mut bytes = vec![0; usize::try_from(length).expect("a small spool")];
        self.spool.read_exact_at(&mut bytes, 0).expect("read");
        let mut reader = SpoolReader::new(bytes.as_slice());
        std::iter::from_fn(|| reader.next_record().expect("a spool")).collect()
    }

    /// Waits for the end and sees that nothing is left.
    pub(crate) fn finish(self, sandbox: &Sandbox) -> Ran {
        let (ran, footprint) = self.end();
        footprint.assert_gone(sandbox.settings());
        ran
    }

    /// Waits for the end and acknowledges it. What may be left is the caller's to look for.
    pub(crate) fn end(mut self) -> (Ran, Footprint) {
        let outcome = self.outcome();
        let records = self.records();
        self.container.acknowledge().expect("acknowledged");
        (Ran { outcome, records }, self.footprint)
    }

    /// Waits for the end and takes what the container wrote, of which nothing else is left.
    pub(crate) fn take_upper(mut self, sandbox: &Sandbox) -> (Outcome, Option<Upper>) {
        let outcome = self.outcome();
        let upper = self.container.take_upper();
        self.container.acknowledge().expect("acknowledged");
        self.footprint.assert_gone(sandbox.settings());
        (outcome, upper)
    }

    fn outcome(&mut self) -> Outcome {
        loop {
            if let Event::Finished(outcome) = self.event() {
                return outcome;
            }
        }
    }
}

impl Ran {
    pub(crate) fn step(&self, index: usize) -> &StepOutcome {
        &self.outcome.steps[index]
    }

    pub(crate) fn stdout(&self, step: u16) -> String {
        self.output(step, Stream::Stdout)
    }

    pub(crate) fn stderr(&self, step: u16) -> String {
        self.output(step, Stream::Stderr)
    }

    fn output(&self, step: u16, stream: Stream) -> String {
        let bytes = self.records.iter().filter(|record| record.step == step).filter_map(|record| {
            match &record.entry {
                Entry::Output(from, bytes) if *from == stream => Some(bytes.as_slice()),
                Entry::Output(..) | Entry::StepStarted(_) | Entry::StepEnded(_) => None,
            }
        });
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>().concat()).into_owned()
    }
}

/// A step with limits that an ordinary small program keeps.
pub(crate) fn step(name: &str, command: &[&str]) -> StepSpec {
    StepSpec {
        name: name.into(),
        command: command.iter().map(ToString::to_string).collect(),
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        workdir: None,
        stdin: Vec::new(),
        limits: limits(),
        output_overflow: OutputOverflow::Kill,
        when: When::Success,
        allow_failure: false,
    }
}

/// Limits that an ordinary small program keeps, on a slow machine too.
pub(crate) fn limits() -> Limits {
    Limits {
        cpu_ms: bytes(60_000),
        wall_ms: bytes(90_000),
        memory_bytes: bytes(128 << 20),
        pids: NonZeroU32::new(64).expect("not 0"),
        cpus: Cpus::ONE,
        output_bytes: bytes(1 << 20),
        open_files: NonZeroU32::new(256).expect("not 0"),
    }
}

/// Whether the kernel counts CPU time by ticks: who runs at a tick is charged all of it, who ran
/// between two is charged nothing, so that figures of a few ticks may be anything. User Mode Linux
/// does; all others that this is tested on have a clock for each process.
pub(crate) fn counts_cpu_by_ticks() -> bool {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").expect("readable");
    cpus.contains("User Mode Linux")
}

/// A number that is not 0.
pub(crate) fn bytes(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).expect("not 0")
}

/// A file for a container.
pub(crate) fn file(path: &str, content: &str) -> InputFile {
    InputFile { path: path.into(), mode: 0o644, content: content.as_bytes().to_vec() }
}

/// Waits until `is_so`, and fails with `what` if it never is.
pub(crate) fn await_that(what: &str, is_so: impl Fn() -> bool) {
    const BOUND: Duration = Duration::from_secs(30);
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < BOUND, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
