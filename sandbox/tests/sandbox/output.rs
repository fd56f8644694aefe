//! What a program reads and writes: complete, in order, as it is written.

use lazaret_sandbox::outcome::Verdict;
use lazaret_sandbox::spool::{Entry, MAX_RECORD_BYTES, Stream};

use crate::fixture::{Sandbox, bytes};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    stdin_arrives_whole_and_ends,
    stdin_that_nobody_reads_holds_nothing_up,
    both_streams_are_kept_apart_and_whole,
    a_line_appears_while_the_program_runs,
    a_prompt_without_a_newline_appears_too,
    a_billion_bytes_without_a_newline_are_bounded_records,
    output_before_a_kill_is_kept,
    the_end_waits_for_nobody_who_holds_stdout,
    the_spool_tells_of_steps_in_order,
];

fn stdin_arrives_whole_and_ends(sandbox: &Sandbox) {
    let mut spec = sandbox.script("md5sum; wc -c");
    spec.steps[0].stdin = vec![b'x'; 1 << 20];
    assert!(sandbox.stdout_of(spec).ends_with("-\n0\n"));
    let mut spec = sandbox.command(&["wc", "-c"]);
    spec.steps[0].stdin = vec![b'x'; 1 << 20];
    assert_eq!(sandbox.stdout_of(spec), "1048576\n");
}

fn stdin_that_nobody_reads_holds_nothing_up(sandbox: &Sandbox) {
    let mut spec = sandbox.command(&["/bin/true"]);
    spec.steps[0].stdin = vec![b'x'; 4 << 20];
    assert_eq!(sandbox.run(spec).outcome.verdict, Verdict::Success);
}

fn both_streams_are_kept_apart_and_whole(sandbox: &Sandbox) {
    let ran = sandbox.run(sandbox.script("seq 10000; seq 10000 20000 >&2"));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let expected = |range: std::ops::RangeInclusive<u32>| {
        range.map(|number| number.to_string()).collect::<Vec<_>>()
    };
    assert!(lines(&ran.stdout(0)) == expected(1..=10_000), "{:?}", ran.outcome);
    assert!(lines(&ran.stderr(0)) == expected(10_000..=20_000), "{:?}", ran.outcome);
    let written = ran.stdout(0).len() + ran.stderr(0).len();
    assert_eq!(ran.step(0).usage.output_bytes, written as u64);
}

fn a_line_appears_while_the_program_runs(sandbox: &Sandbox) {
    let mut live = sandbox.start_container(sandbox.script("echo first; sleep 60"));
    live.await_output();
    live.container.cancel().expect("cancelled");
    let ran = live.finish(sandbox);
    assert_eq!(ran.stdout(0), "first\n");
    assert_eq!(ran.outcome.verdict, Verdict::Cancelled);
}

fn a_prompt_without_a_newline_appears_too(sandbox: &Sandbox) {
    let mut live = sandbox.start_container(sandbox.script("printf 'name? '; sleep 60"));
    live.await_output();
    live.container.cancel().expect("cancelled");
    assert_eq!(live.finish(sandbox).stdout(0), "name? ");
}

fn a_billion_bytes_without_a_newline_are_bounded_records(sandbox: &Sandbox) {
    let mut spec = sandbox.script("head -c 1000000000 /dev/zero");
    spec.steps[0].limits.output_bytes = bytes(1 << 20);
    let ran = sandbox.run(spec);
    assert_eq!(ran.outcome.verdict, Verdict::OutputLimit);
    let lengths = ran.records.iter().filter_map(|record| match &record.entry {
        Entry::Output(Stream::Stdout, bytes) => Some(bytes.len()),
        Entry::Output(..) | Entry::StepStarted(_) | Entry::StepEnded(_) => None,
    });
    let lengths: Vec<_> = lengths.collect();
    assert!(lengths.iter().all(|length| *length <= MAX_RECORD_BYTES));
    assert_eq!(lengths.iter().sum::<usize>(), 1 << 20);
}

fn output_before_a_kill_is_kept(sandbox: &Sandbox) {
    let mut spec = sandbox.script("seq 1000; while :; do :; done");
    spec.steps[0].limits.cpu_ms = bytes(300);
    let ran = sandbox.run(spec);
    assert_eq!(ran.outcome.verdict, Verdict::CpuLimit);
    assert_eq!(ran.stdout(0).lines().count(), 1000);
}

fn the_end_waits_for_nobody_who_holds_stdout(sandbox: &Sandbox) {
    let ran = sandbox.run(sandbox.script("(sleep 60; echo late) & echo done"));
    assert_eq!(ran.outcome.verdict, Verdict::Success);
    assert_eq!(ran.stdout(0), "done\n");
    assert!(ran.step(0).usage.wall_us < 30_000_000, "{:?}", ran.step(0).usage);
}

fn the_spool_tells_of_steps_in_order(sandbox: &Sandbox) {
    let ran = sandbox.run(sandbox.script("echo hello"));
    let entries: Vec<_> = ran.records.iter().map(|record| &record.entry).collect();
    let [Entry::StepStarted(name), Entry::Output(Stream::Stdout, hello), Entry::StepEnded(end)] =
        entries.as_slice()
    else {
        panic!("{entries:?}");
    };
    assert_eq!((name.as_str(), hello.as_slice()), ("run", b"hello\n".as_slice()));
    assert_eq!(end, ran.step(0));
    let numbers: Vec<_> = ran.records.iter().map(|record| record.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
}
