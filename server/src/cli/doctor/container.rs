//! Whether containers can be made: two are, by the very code that runs jobs.

use std::fs::{self, File};
use std::io::{self, Seek as _};
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::AsFd as _;
use std::path::Path;

use jiff::Timestamp;
use lazaret_sandbox::error::Result as SandboxResult;
use lazaret_sandbox::image::{HOST_IMAGE, Image, ImageStore};
use lazaret_sandbox::outcome::{Outcome, Verdict};
use lazaret_sandbox::spec::{
    ContainerSpec, Cpus, Limits, OutputOverflow, RootUse, StepSpec, User, When, WhenAlone,
};
use lazaret_sandbox::spool::{Entry, SpoolReader};
use lazaret_sandbox::{Event, Zygote};

use super::Finding;

/// Longer than any of the containers here lives.
const TIMEOUT_MS: u32 = 10_000;
/// Filters that a step runs under: the one that it inherits, and its own.
const FILTERS: u32 = 2;
/// What `/proc/self/status` of a step has to say.
const CONFINED: [(&str, &str); 4] = [
    ("NoNewPrivs", "1"),
    ("Seccomp", "2"),
    ("CapEff", NO_CAPABILITIES),
    ("CapBnd", NO_CAPABILITIES),
];
const NO_CAPABILITIES: &str = "0000000000000000";

/// Tries a container of the built-in image, and one whose image is on the data directory's file
/// system.
pub(super) fn look(zygote: SandboxResult<Zygote>, scratch: &Path) -> Vec<Finding> {
    let zygote = match zygote {
        Ok(zygote) => zygote,
        Err(error) => {
            let mend = "mend what is missing above";
            return vec![Finding::missing("container", error.to_string(), mend)];
        }
    };
    let look = Look { zygote, scratch };
    let mut findings = look.at_confinement();
    findings.push(look.at_idmapped_layers());
    findings
}

struct Look<'a> {
    zygote: Zygote,
    scratch: &'a Path,
}

impl Look<'_> {
    /// Namespaces, overlay and cgroup in one: a program runs, and reads how it is confined.
    fn at_confinement(&self) -> Vec<Finding> {
        let command = ["/bin/cat", "/proc/self/status"];
        let ran = self.host_image().and_then(|(store, image)| self.run(&store, &image, &command));
        let (outcome, output) = match ran {
            Ok(ran) => ran,
            Err(error) => return vec![refused("container", &error)],
        };
        if outcome.verdict != Verdict::Success {
            return vec![refused("container", &io::Error::other(reason(&outcome)))];
        }
        vec![Finding::ok("container", "a program ran in one"), seccomp(&output)]
    }

    /// An image of an empty directory, in which nothing can run: that the program is not found
    /// says that the root was mounted.
    fn at_idmapped_layers(&self) -> Finding {
        let name = "id-mapped layers";
        let made = || {
            let (tree, store) = (self.scratch.join("tree"), self.store()?);
            fs::create_dir_all(&tree)?;
            let image = store.import(&tree, "doctor", Timestamp::UNIX_EPOCH);
            let image = image.map_err(io::Error::other)?;
            self.run(&store, &image, &["/nothing"])
        };
        let mend = "put the data directory on ext4, xfs or btrfs with `--data DIR`: until then \
                    only the image `host` works";
        match made() {
            Ok((outcome, _)) if outcome.verdict != Verdict::Fault => {
                Finding::ok(name, "the data directory's file system can")
            }
            Ok((outcome, _)) => Finding::note(name, reason(&outcome), mend),
            Err(error) => Finding::note(name, error.to_string(), mend),
        }
    }

    fn store(&self) -> io::Result<ImageStore> {
        ImageStore::open(&self.scratch.join("images")).map_err(io::Error::other)
    }

    fn host_image(&self) -> io::Result<(ImageStore, Image)> {
        let store = self.store()?;
        let image = store.get(HOST_IMAGE).map_err(io::Error::other)?;
        Ok((store, image.ok_or(io::ErrorKind::NotFound)?))
    }

    /// Runs `command` to its end. Answers with what it wrote.
    fn run(
        &self,
        store: &ImageStore,
        image: &Image,
        command: &[&str],
    ) -> io::Result<(Outcome, String)> {
        let path = self.scratch.join("spool");
        let mut spool =
            File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let id = format!("doctor-{}-{}", std::process::id(), command.len());
        let mut container = self.zygote.spawn(&id).map_err(io::Error::other)?;
        let spec = spec(store, image, command)?;
        container.start(spec, spool.as_fd()).map_err(io::Error::other)?;
        let outcome = loop {
            let event = container.wait_event(TIMEOUT_MS).map_err(io::Error::other)?;
            if let Event::Finished(outcome) = event {
                break outcome;
            }
        };
        container.acknowledge().map_err(io::Error::other)?;
        spool.rewind()?;
        let (mut records, mut output) = (SpoolReader::new(spool), Vec::new());
        while let Some(record) = records.next_record()? {
            if let Entry::Output(_, bytes) = record.entry {
                output.extend(bytes);
            }
        }
        Ok((outcome, String::from_utf8_lossy(&output).into_owned()))
    }
}

fn refused(name: &str, error: &io::Error) -> Finding {
    Finding::missing(name, error.to_string(), "mend what is missing above, or what this names")
}

fn reason(outcome: &Outcome) -> String {
    let of_step = outcome.steps.first().and_then(|step| step.detail.clone());
    outcome.detail.clone().or(of_step).unwrap_or_else(|| outcome.verdict.as_str().into())
}

/// Whether the program ran under the filters and without privileges.
fn seccomp(status: &str) -> Finding {
    let value = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let wrong = CONFINED.iter().find(|(name, expected)| value(name) != Some(expected));
    let filters = value("Seccomp_filters").and_then(|count| count.parse::<u32>().ok());
    // Kernels before 5.9 do not say how many there are.
    let has_all = filters.is_none_or(|count| count >= FILTERS);
    match wrong {
        None if has_all => Finding::ok("seccomp", "filters installed, no capabilities"),
        _ => {
            let found = wrong.map_or("Seccomp_filters", |(name, _)| name);
            let mend = "boot a kernel with CONFIG_SECCOMP_FILTER";
            Finding::missing("seccomp", format!("`{found}` is not as it should be"), mend)
        }
    }
}

fn spec(store: &ImageStore, image: &Image, command: &[&str]) -> io::Result<ContainerSpec> {
    let number = |value| NonZeroU64::new(value).ok_or(io::ErrorKind::InvalidInput);
    let small = |value| NonZeroU32::new(value).ok_or(io::ErrorKind::InvalidInput);
    let step = StepSpec {
        name: "doctor".into(),
        command: command.iter().map(|&argument| argument.to_owned()).collect(),
        env: Vec::new(),
        workdir: None,
        stdin: Vec::new(),
        limits: Limits {
            cpu_ms: number(5_000)?,
            wall_ms: number(5_000)?,
            memory_bytes: number(64 << 20)?,
            pids: small(16)?,
            cpus: Cpus::ONE,
            output_bytes: number(64 << 10)?,
            open_files: small(64)?,
        },
        output_overflow: OutputOverflow::Truncate,
        when: When::Success,
        allow_failure: false,
    };
    Ok(ContainerSpec {
        label: "lazaret doctor".into(),
        rootfs: store.rootfs(image),
        user: User { uid: 1000, gid: 1000, groups: Vec::new() },
        workdir: "/workspace".into(),
        files: Vec::new(),
        volumes: Vec::new(),
        steps: vec![step],
        disk_bytes: number(16 << 20)?,
        io_bytes_per_s: number(64 << 20)?,
        job_wall_ms: number(10_000)?,
        when_alone: WhenAlone::Ends,
        root_use: RootUse::Job,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Status;

    #[test]
    fn a_program_without_filters_or_with_capabilities_is_found_out() {
        let good = "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n\
                    CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n";
        assert_eq!(seccomp(good).status, Status::Ok);
        for (from, to) in [
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("Seccomp_filters:\t2", "Seccomp_filters:\t1"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("CapBnd:\t0000000000000000", "CapBnd:\t000001ffffffffff"),
        ] {
            assert_eq!(seccomp(&good.replace(from, to)).status, Status::Missing, "{to}");
        }
    }
}
