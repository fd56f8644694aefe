//! Containers that are kept to one CPU by their server's `cpuset`.

use lazaret_sandbox::Cpuset;

use crate::fixture::{Sandbox, step};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] =
    tests![every_step_runs_on_the_chosen_cpu_alone, no_program_gets_away_from_the_chosen_cpu,];

/// The set of a CPU that every host has.
pub(crate) fn first() -> Cpuset {
    "0".parse().expect("a set")
}

/// The set has to be smaller than what there is, or these tests would show nothing.
fn assert_there_are_more() {
    let online = Cpuset::online().expect("listed").count();
    assert!(online > 1, "this host has {online} CPU, two are needed");
}

fn every_step_runs_on_the_chosen_cpu_alone(sandbox: &Sandbox) {
    assert_there_are_more();
    let script = "nproc; grep Cpus_allowed_list /proc/self/status";
    let mut spec = sandbox.script(script);
    spec.steps.push(step("again", &["/bin/sh", "-c", script]));
    let ran = sandbox.run(spec);
    for step in [0, 1] {
        assert_eq!(ran.stdout(step), "1\nCpus_allowed_list:\t0\n", "{:?}", ran.outcome);
    }
}

fn no_program_gets_away_from_the_chosen_cpu(sandbox: &Sandbox) {
    assert_there_are_more();
    let program = "import os\nfor cpus in ({1}, {0, 1}):\n try: os.sched_setaffinity(0, cpus)\n \
                   except OSError: pass\n print(os.sched_getaffinity(0))";
    assert_eq!(sandbox.stdout_of(sandbox.python(program)), "{0}\n{0}\n");
}
