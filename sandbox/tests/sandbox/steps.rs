//! Several steps in one container: one file system, each with its own limits, output and end.

use lazaret_sandbox::outcome::Verdict;
use lazaret_sandbox::spec::{ContainerSpec, StepSpec, When};

use crate::fixture::{Sandbox, bytes, counts_cpu_by_ticks, file, step};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    steps_share_their_file_system,
    a_failed_step_leaves_the_rest_out,
    a_step_may_be_allowed_to_fail,
    conditions_decide_what_runs_after_a_failure,
    a_step_over_its_limit_leaves_the_container_to_those_that_always_run,
    a_job_that_could_not_go_on_is_no_success,
    files_that_the_image_does_not_allow_are_a_failure,
    a_step_with_less_memory_than_is_stored_is_over_its_limit,
    a_step_out_of_memory_is_the_end_of_the_job,
    processes_left_behind_are_gone_before_the_next_step,
    each_step_is_charged_what_it_used,
    a_step_starts_where_it_says,
    a_program_that_is_not_there_is_127_and_one_that_may_not_run_126,
    arguments_and_environment_arrive_as_they_are,
    a_megabyte_of_arguments_arrives,
];

fn with_steps(sandbox: &Sandbox, scripts: &[&str]) -> ContainerSpec {
    let mut spec = sandbox.script("");
    spec.steps = scripts.iter().map(|script| shell(script)).collect();
    spec
}

fn shell(script: &str) -> StepSpec {
    step("step", &["/bin/sh", "-c", script])
}

fn verdicts(ran: &crate::fixture::Ran) -> Vec<Verdict> {
    ran.outcome.steps.iter().map(|step| step.verdict).collect()
}

fn steps_share_their_file_system(sandbox: &Sandbox) {
    let ran =
        sandbox.run(with_steps(sandbox, &["echo one > x; echo two > /tmp/y", "cat x /tmp/y"]));
    assert_eq!(ran.outcome.verdict, Verdict::Success);
    assert_eq!((ran.stdout(0).as_str(), ran.stdout(1).as_str()), ("", "one\ntwo\n"));
}

fn a_failed_step_leaves_the_rest_out(sandbox: &Sandbox) {
    let ran = sandbox.run(with_steps(sandbox, &["exit 7", "echo never"]));
    assert_eq!(ran.outcome.verdict, Verdict::Failure);
    assert_eq!(verdicts(&ran), [Verdict::Failure, Verdict::Skipped]);
    assert_eq!(ran.stdout(1), "");
}

fn a_step_may_be_allowed_to_fail(sandbox: &Sandbox) {
    let mut spec = with_steps(sandbox, &["exit 7", "echo goes on"]);
    spec.steps[0].allow_failure = true;
    let ran = sandbox.run(spec);
    assert_eq!(ran.outcome.verdict, Verdict::Success);
    assert_eq!(verdicts(&ran), [Verdict::Failure, Verdict::Success]);
}

fn conditions_decide_what_runs_after_a_failure(sandbox: &Sandbox) {
    for (first, expected) in [
        ("exit 1", [Verdict::Failure, Verdict::Success, Verdict::Success]),
        ("exit 0", [Verdict::Success, Verdict::Skipped, Verdict::Success]),
    ] {
        let mut spec = with_steps(sandbox, &[first, "echo failed", "echo always"]);
        spec.steps[1].when = When::Failure;
        spec.steps[2].when = When::Always;
        assert_eq!(verdicts(&sandbox.run(spec)), expected);
    }
}

fn a_step_over_its_limit_leaves_the_container_to_those_that_always_run(sandbox: &Sandbox) {
    let mut spec = with_steps(sandbox, &["echo x > x; sleep 60 & sleep 60", "cat x"]);
    spec.steps[0].limits.wall_ms = bytes(300);
    spec.steps[1].when = When::Always;
    let ran = sandbox.run(spec);
    assert_eq!(verdicts(&ran), [Verdict::WallLimit, Verdict::Success]);
    assert_eq!(ran.outcome.verdict, Verdict::WallLimit);
    assert_eq!(ran.stdout(1), "x\n");
}

fn a_job_that_could_not_go_on_is_no_success(sandbox: &Sandbox) {
    let eat = "/usr/bin/python3 -I -c 'x = b\"x\" * (100 << 20)'";
    let mut spec = with_steps(sandbox, &[eat, "echo needed"]);
    spec.steps[0].limits.memory_bytes = bytes(64 << 20);
    spec.steps[0].allow_failure = true;
    let ran = sandbox.run(spec);
    assert_eq!(verdicts(&ran), [Verdict::MemoryLimit, Verdict::Skipped]);
    assert_eq!(ran.outcome.verdict, Verdict::MemoryLimit);
}

fn files_that_the_image_does_not_allow_are_a_failure(sandbox: &Sandbox) {
    for (workdir, path) in [("/usr", "x"), ("/etc/hosts", "x"), ("/var", "tmp"), ("/usr/x", "x")] {
        let mut spec = sandbox.command(&["true"]);
        spec.workdir = workdir.into();
        spec.files = vec![file(path, "text")];
        let ran = sandbox.run(spec);
        assert_eq!(ran.outcome.verdict, Verdict::Failure, "{workdir}: {:?}", ran.outcome);
        assert!(ran.stderr(0).contains("could not"), "{}", ran.stderr(0));
    }
}

fn a_step_with_less_memory_than_is_stored_is_over_its_limit(sandbox: &Sandbox) {
    let mut spec = with_steps(sandbox, &["head -c 100M /dev/zero > /tmp/x", "true", "true"]);
    spec.disk_bytes = bytes(150 << 20);
    spec.steps[0].limits.memory_bytes = bytes(256 << 20);
    spec.steps[1].limits.memory_bytes = bytes(192 << 20);
    spec.steps[2].limits.memory_bytes = bytes(64 << 20);
    let ran = sandbox.run(spec);
    assert_eq!(verdicts(&ran), [Verdict::Success, Verdict::Success, Verdict::MemoryLimit]);
}

fn a_step_out_of_memory_is_the_end_of_the_job(sandbox: &Sandbox) {
    let eat = "/usr/bin/python3 -I -c 'x = b\"x\" * (100 << 20)'; exit 0";
    let mut spec = with_steps(sandbox, &[eat, "echo never"]);
    spec.steps[0].limits.memory_bytes = bytes(64 << 20);
    spec.steps[1].when = When::Always;
    let ran = sandbox.run(spec);
    assert_eq!(verdicts(&ran), [Verdict::MemoryLimit, Verdict::Skipped]);
}

fn processes_left_behind_are_gone_before_the_next_step(sandbox: &Sandbox) {
    let daemon = "setsid sh -c 'trap \"\" TERM HUP; (while :; do sleep 1; done)' > /dev/null 2>&1 &
                  sleep 0.1";
    let count = "ls -d /proc/[0-9]* | wc -l";
    let ran = sandbox.run(with_steps(sandbox, &[daemon, count]));
    assert_eq!(ran.outcome.verdict, Verdict::Success);
    // The shell, `ls` and `wc`; init is invisible.
    let count: u32 = ran.stdout(1).trim().parse().expect("a number");
    assert!(count <= 3, "{count} processes");
}

fn each_step_is_charged_what_it_used(sandbox: &Sandbox) {
    let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    let ran = sandbox.run(with_steps(sandbox, &[busy, "echo"]));
    let (first, second) = (ran.step(0).usage, ran.step(1).usage);
    let times = if counts_cpu_by_ticks() { 1 } else { 5 };
    assert!(first.cpu_us > times * second.cpu_us, "{first:?} {second:?}");
    assert_eq!((first.output_bytes, second.output_bytes), (0, 1));
}

fn a_step_starts_where_it_says(sandbox: &Sandbox) {
    let mut spec = with_steps(sandbox, &["pwd", "pwd", "sleep 0.1; pwd"]);
    spec.steps[1].workdir = Some("/nowhere".into());
    spec.steps[1].allow_failure = true;
    spec.steps[2].workdir = Some("/usr/share".into());
    let ran = sandbox.run(spec);
    assert_eq!(verdicts(&ran), [Verdict::Success, Verdict::Failure, Verdict::Success]);
    assert_eq!((ran.stdout(0).as_str(), ran.stdout(2).as_str()), ("/workspace\n", "/usr/share\n"));
    assert!(ran.stderr(1).contains("working directory"), "{}", ran.stderr(1));
}

fn a_program_that_is_not_there_is_127_and_one_that_may_not_run_126(sandbox: &Sandbox) {
    for (program, exit_code, why) in [
        ("nosuchprogram", 127, "lazaret: `nosuchprogram`: not found in the image\n"),
        ("./plain", 126, "lazaret: `./plain`: not executable\n"),
    ] {
        let mut spec = sandbox.command(&[program]);
        spec.files = vec![file("plain", "no program")];
        let ran = sandbox.run(spec);
        assert_eq!(ran.outcome.verdict, Verdict::Failure);
        assert_eq!(ran.step(0).exit_code, Some(exit_code));
        assert_eq!(ran.stderr(0), why);
    }
    let ran = sandbox.run(sandbox.command(&["x".repeat(100_000).as_str()]));
    assert_eq!(ran.step(0).exit_code, Some(126));
    assert!(ran.stderr(0).len() < 400, "{}", ran.stderr(0).len());
}

fn arguments_and_environment_arrive_as_they_are(sandbox: &Sandbox) {
    let program = "import os, sys\nprint(sys.argv[1:], sorted(os.environ.items()))";
    let mut spec = sandbox.python(program);
    spec.steps[0].command.extend(["a b".into(), "$HOME".into(), "é\n".into(), String::new()]);
    spec.steps[0].env = vec![("KEY".into(), "a=b c".into())];
    let expected = "['a b', '$HOME', 'é\\n', ''] [('KEY', 'a=b c'), ('LC_CTYPE', 'C.UTF-8')]\n";
    assert_eq!(sandbox.stdout_of(spec), expected);
}

fn a_megabyte_of_arguments_arrives(sandbox: &Sandbox) {
    let mut spec = sandbox.python("import sys; print(sum(map(len, sys.argv)))");
    spec.steps[0].command.extend((0..10).map(|_| "x".repeat(100_000)));
    assert_eq!(sandbox.stdout_of(spec), "1000002\n");
}
