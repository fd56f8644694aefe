//! The sandbox as its callers see it: real containers, on the cgroup version of the machine that
//! this runs on. `main` is ours, so that the zygote is forked, and the network namespace entered,
//! before the test threads exist.
#![expect(clippy::expect_used, clippy::panic, reason = "a test ends where it is not as expected")]

mod commit;
mod cpuset;
mod fixture;
mod image;
mod leftovers;
mod lifecycle;
mod limits;
mod netns;
mod output;
mod refusals;
mod sockets;
mod steps;
mod volumes;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

use lazaret_sandbox::Settings;
use lazaret_sandbox::error::Error;
use libtest_mimic::{Arguments, Trial};

use crate::fixture::Sandbox;
use crate::leftovers::Census;

/// A test: its name and what it does.
type Test = (&'static str, fn(&Sandbox));

/// Functions with their names.
macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}
use tests;

/// Containers for tests, or why there are none: that fails every test that needs them.
type Started = Arc<Result<Sandbox, Error>>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    netns::enter();
    // Also by an earlier server with the same cgroup, whose choice is not the next one's.
    drop(Sandbox::start("all", Some(cpuset::first())));
    let sandbox = Arc::new(Sandbox::start("all", None));
    let kept_to_one = Arc::new(Sandbox::start("one", Some(cpuset::first())));
    let before = Census::take([&sandbox, &kept_to_one].into_iter().filter_map(settings).collect());
    let modules = [
        ("commit", &sandbox, commit::TESTS),
        ("cpuset", &kept_to_one, cpuset::TESTS),
        ("image", &sandbox, image::TESTS),
        ("lifecycle", &sandbox, lifecycle::TESTS),
        ("limits", &sandbox, limits::TESTS),
        ("sockets", &sandbox, sockets::TESTS),
        ("output", &sandbox, output::TESTS),
        ("refusals", &sandbox, refusals::TESTS),
        ("steps", &sandbox, steps::TESTS),
        ("volumes", &sandbox, volumes::TESTS),
        ("world", &sandbox, world::TESTS),
    ];
    let trials = modules.into_iter().flat_map(|(module, sandbox, tests)| {
        tests.iter().map(move |test| trial(module, test, Arc::clone(sandbox)))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // The zygotes end with them, so that the census after is not of this test's own processes.
    drop((sandbox, kept_to_one));
    before.compare();
    conclusion.exit_code()
}

fn settings(sandbox: &Started) -> Option<Settings> {
    sandbox.as_ref().as_ref().ok().map(|sandbox| sandbox.settings().clone())
}

fn trial(module: &str, (name, test): &'static Test, sandbox: Started) -> Trial {
    Trial::test(format!("{module}::{name}"), move || match sandbox.as_ref() {
        Ok(sandbox) => {
            test(sandbox);
            Ok(())
        }
        Err(error) => Err(error.into()),
    })
}
