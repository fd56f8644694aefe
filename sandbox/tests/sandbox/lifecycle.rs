//! Containers that end otherwise than by their program: thrown away, cancelled, killed, orphaned.

use std::fs;

use lazaret_sandbox::outcome::Verdict;
use lazaret_sandbox::spec::WhenAlone;
use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Live, Sandbox, await_that};
use crate::leftovers::{cgroups_of, namespace_of};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_container_that_is_not_used_leaves_nothing,
    a_network_namespace_that_stays_is_found,
    a_cancelled_container_says_so,
    a_killed_shim_takes_its_container_with_it,
    a_killed_init_is_a_fault,
    a_container_outlives_the_interest_of_its_caller,
    a_container_for_its_caller_alone_ends_with_it,
    a_spec_that_cannot_be_is_a_fault_that_says_why,
    many_containers_at_once_leave_nothing,
    container_names_are_checked,
];

fn a_container_that_is_not_used_leaves_nothing(sandbox: &Sandbox) {
    let (container, footprint) = sandbox.spawn();
    drop(container);
    footprint.assert_gone(sandbox.settings());
}

/// What all other tests rely on: the traces of a container are seen while they are there.
fn a_network_namespace_that_stays_is_found(sandbox: &Sandbox) {
    let mut live = sandbox.start_container(sandbox.command(&["sleep", "60"]));
    live.await_start(0);
    assert!(live.footprint.members() > 1 && live.footprint.network.is_known());
    let held = fs::File::open(namespace_of(live.footprint.init, "net")).expect("a namespace");
    live.container.cancel().expect("cancelled");
    let (_, footprint) = live.end();
    await_that("a process is still there", || footprint.members() == 0);
    // The kernel destroys namespaces in turn: when that of a later container is gone, this one's
    // would be.
    sandbox.run(sandbox.command(&["true"]));
    assert!(footprint.network.is_known());
    drop(held);
    footprint.assert_gone(sandbox.settings());
}

fn a_cancelled_container_says_so(sandbox: &Sandbox) {
    let mut live = sandbox.start_container(sandbox.script("trap '' TERM INT; sleep 60"));
    live.await_start(0);
    live.container.cancel().expect("cancelled");
    let ran = live.finish(sandbox);
    assert_eq!(ran.outcome.verdict, Verdict::Cancelled);
    assert_eq!(ran.step(0).signal, Some(9));
}

/// The pid of a container's shim.
pub(crate) fn shim(sandbox: &Sandbox, id: &str) -> Pid {
    let text = fs::read_to_string(sandbox.settings().run_dir.join(id).join("shim"));
    let pid = text.expect("readable").split(' ').next().and_then(|pid| pid.parse().ok());
    Pid::from_raw(pid.expect("a pid")).expect("not 0")
}

fn a_killed_shim_takes_its_container_with_it(sandbox: &Sandbox) {
    let mut live = sandbox.start_container(sandbox.script("setsid sleep 60 & sleep 60"));
    live.await_start(0);
    kill_process(shim(sandbox, live.container.id()), Signal::KILL).expect("killed");
    await_that("init has outlived its shim", || live.footprint.members() == 0);
    while live.container.wait_event(30_000).is_ok() {}
    live.footprint.assert_gone(sandbox.settings());
}

fn a_killed_init_is_a_fault(sandbox: &Sandbox) {
    let mut live = sandbox.start_container(sandbox.command(&["sleep", "60"]));
    live.await_start(0);
    kill_process(live.footprint.init, Signal::KILL).expect("killed");
    let ran = live.finish(sandbox);
    assert_eq!(ran.outcome.verdict, Verdict::Fault);
    assert_eq!(ran.outcome.detail.as_deref(), Some("init: init ended by itself"));
}

/// What a crashed server leaves: a shim that finishes and keeps the outcome for the next one.
fn a_container_outlives_the_interest_of_its_caller(sandbox: &Sandbox) {
    let mut live = sandbox.start_container(sandbox.script("sleep 0.2; echo done"));
    live.await_start(0);
    let Live { container, footprint, .. } = live;
    let id = container.id().to_owned();
    drop(container);
    let directory = sandbox.settings().run_dir.join(&id);
    await_that("no outcome was kept", || directory.join("outcome").exists());
    assert_eq!(fs::read_to_string(directory.join("label")).expect("readable"), "test");
    // The cgroup is removed by the shim itself, before it keeps the outcome.
    assert!(cgroups_of(sandbox.settings(), &id).is_empty());
    for file in ["outcome", "label", "shim"] {
        fs::remove_file(directory.join(file)).expect("removed");
    }
    fs::remove_dir(directory).expect("removed");
    footprint.assert_gone(sandbox.settings());
}

/// What a command that was killed leaves: nothing.
fn a_container_for_its_caller_alone_ends_with_it(sandbox: &Sandbox) {
    let mut spec = sandbox.script("while :; do :; done");
    spec.when_alone = WhenAlone::Ends;
    let mut live = sandbox.start_container(spec);
    live.await_start(0);
    let Live { container, footprint, .. } = live;
    let directory = sandbox.settings().run_dir.join(container.id());
    drop(container);
    await_that("it goes on", || !directory.exists());
    footprint.assert_gone(sandbox.settings());
}

fn a_spec_that_cannot_be_is_a_fault_that_says_why(sandbox: &Sandbox) {
    let mut spec = sandbox.command(&["/bin/true"]);
    spec.rootfs.directory = "/nowhere".into();
    let ran = sandbox.run(spec);
    assert_eq!(ran.outcome.verdict, Verdict::Fault);
    let detail = ran.outcome.detail.expect("a detail");
    assert!(detail.starts_with("root file system: ") && detail.contains("`/nowhere`"), "{detail}");
}

fn many_containers_at_once_leave_nothing(sandbox: &Sandbox) {
    let mut lives: Vec<_> =
        (0..20).map(|_| sandbox.start_container(sandbox.script("sleep 0.1; echo $$"))).collect();
    for live in &mut lives {
        live.await_start(0);
    }
    for live in lives {
        assert_eq!(live.finish(sandbox).outcome.verdict, Verdict::Success);
    }
}

fn container_names_are_checked(sandbox: &Sandbox) {
    // Names that would leave `$run` never get to be names.
    for id in ["", "..", "a/b", "A", "a.b", &"a".repeat(65)] {
        let error = sandbox.try_spawn(id).expect_err("refused").to_string();
        assert!(error.contains("is no container id"), "{error}");
    }
}
