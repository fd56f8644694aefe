//! The sandbox as its callers see it: real containers, on the cgroup version of the machine that
//! this runs on. `main` is ours, so that the zygote is forked, and the network namespace entered,
//! before the test threads exist.
#![expect(clippy::expect_used, clippy::panic, reason = "a test ends where it is not as expected")]

mod fixture;
mod image;
mod leftovers;
mod lifecycle;
mod limits;
mod netns;
mod output;
mod refusals;
mod steps;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

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

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    netns::enter();
    let sandbox = Arc::new(Sandbox::start());
    let before = Census::take(sandbox.settings());
    let modules = [
        ("image", image::TESTS),
        ("lifecycle", lifecycle::TESTS),
        ("limits", limits::TESTS),
        ("output", output::TESTS),
        ("refusals", refusals::TESTS),
        ("steps", steps::TESTS),
        ("world", world::TESTS),
    ];
    let trials = modules.into_iter().flat_map(|(module, tests)| {
        tests.iter().map(move |(name, test)| (format!("{module}::{name}"), *test))
    });
    let trials = trials.map(|(name, test)| {
        let sandbox = Arc::clone(&sandbox);
        Trial::test(name, move || {
            test(&sandbox);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let settings = sandbox.settings().clone();
    // The zygote ends with it, so that the census after is not of this test's own processes.
    drop(sandbox);
    before.compare(&settings);
    conclusion.exit_code()
}
