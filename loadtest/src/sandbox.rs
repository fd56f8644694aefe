//! The sandbox alone, without server, HTTP or store: what a container costs.

use std::fs::{self, File};
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lazaret_sandbox::image::ImageStore;
use lazaret_sandbox::outcome::Verdict;
use lazaret_sandbox::spec::{
    ContainerSpec, Cpus, Limits, OutputOverflow, RootUse, Rootfs, StepSpec, User, When, WhenAlone,
};
use lazaret_sandbox::{Event, Settings, Zygote};

use crate::Error;
use crate::report::Report;

/// Longer than any container here takes.
const TIMEOUT_MS: u32 = 30_000;
const PROGRAM: &str = "program";

/// Runs `count` containers one after another. `program` is the only file of their image.
pub(crate) fn measure(count: u64, program: &Path, scratch: Option<&Path>) -> Result<Report, Error> {
    let directory = match scratch {
        Some(scratch) => tempfile::tempdir_in(scratch)?,
        None => tempfile::tempdir()?,
    };
    let zygote = Zygote::start(&Settings {
        run_dir: directory.path().join("run"),
        ids_dir: directory.path().join("ids"),
        cgroup_parent: "lazaret/loadtest".into(),
        memory_bytes: None,
        cpuset: None,
    })?;
    let rootfs = import(directory.path(), program)?;
    let mut times = Vec::new();
    let started = Instant::now();
    for number in 0..count {
        let spool = tempfile::tempfile_in(directory.path())?;
        let id = format!("{}-{number}", std::process::id());
        times.push(run(&zygote, &id, spec(&rootfs)?, &spool)?);
    }
    Report::new(&times, started.elapsed())
}

/// Makes an image with nothing in it but the program and the places that containers need.
fn import(directory: &Path, program: &Path) -> Result<Rootfs, Error> {
    let tree = directory.join("tree");
    for name in ["dev", "etc", "proc", "tmp"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy(program, tree.join(PROGRAM))?;
    let store = ImageStore::open(&directory.join("images"))?;
    let image = store.import(&tree, "loadtest", Timestamp::UNIX_EPOCH)?;
    Ok(store.rootfs(&image))
}

fn run(zygote: &Zygote, id: &str, spec: ContainerSpec, spool: &File) -> Result<Duration, Error> {
    let started = Instant::now();
    let mut container = zygote.spawn(id)?;
    container.start(spec, spool.as_fd())?;
    let outcome = loop {
        if let Event::Finished(outcome) = container.wait_event(TIMEOUT_MS)? {
            break outcome;
        }
    };
    let time = started.elapsed();
    container.acknowledge()?;
    if outcome.verdict != Verdict::Success {
        return Err(Error::Unexpected(format!("a container ended with {outcome:?}")));
    }
    Ok(time)
}

fn spec(rootfs: &Rootfs) -> Result<ContainerSpec, Error> {
    let number = |value| NonZeroU64::new(value).ok_or_else(zero);
    let limits = Limits {
        cpu_ms: number(10_000)?,
        wall_ms: number(20_000)?,
        memory_bytes: number(256 << 20)?,
        pids: NonZeroU32::new(64).ok_or_else(zero)?,
        cpus: Cpus::ONE,
        output_bytes: number(1 << 20)?,
        open_files: NonZeroU32::new(256).ok_or_else(zero)?,
    };
    let step = StepSpec {
        name: "run".into(),
        command: vec![format!("/{PROGRAM}")],
        env: Vec::new(),
        workdir: None,
        stdin: Vec::new(),
        limits,
        output_overflow: OutputOverflow::Kill,
        when: When::Success,
        allow_failure: false,
    };
    Ok(ContainerSpec {
        label: "loadtest".into(),
        rootfs: rootfs.clone(),
        user: User { uid: 1000, gid: 1000, groups: Vec::new() },
        workdir: "/workspace".into(),
        files: Vec::new(),
        volumes: Vec::new(),
        steps: vec![step],
        disk_bytes: number(128 << 20)?,
        io_bytes_per_s: number(64 << 20)?,
        job_wall_ms: number(60_000)?,
        when_alone: WhenAlone::Ends,
        root_use: RootUse::Job,
    })
}

fn zero() -> Error {
    Error::Unexpected("a limit is zero".into())
}
