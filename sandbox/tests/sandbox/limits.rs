//! Every limit, just under and just over, and the verdict that tells of it.

use lazaret_sandbox::outcome::{LimitHit, LimitName, StepOutcome, Verdict};
use lazaret_sandbox::spec::{ContainerSpec, Cpus, MIN_MEMORY_BYTES, OutputOverflow};
use std::num::NonZeroU32;

use crate::fixture::{Sandbox, bytes, counts_cpu_by_ticks, file};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_success_tells_what_it_used,
    an_exit_code_is_a_failure,
    a_fatal_signal_is_told_by_its_number,
    a_real_time_signal_is_told_too,
    a_busy_program_meets_its_cpu_limit,
    cpu_time_just_under_the_limit_passes,
    cpu_time_of_children_counts,
    a_sleeping_program_meets_its_wall_limit,
    wall_time_just_under_the_limit_passes,
    the_job_has_a_bound_of_its_own,
    memory_beyond_the_limit_is_a_memory_limit,
    memory_just_under_the_limit_passes,
    a_child_out_of_memory_ends_the_job_even_if_its_parent_succeeds,
    memory_files_count_as_memory,
    stopped_processes_and_zombies_hold_nothing_up,
    reading_much_is_no_memory_limit,
    the_least_memory_is_enough_for_a_small_program,
    a_fork_bomb_ends_at_its_wall_limit,
    a_kill_is_not_slowed_down_by_the_share_of_a_cpu,
    processes_up_to_the_limit_can_be_made_and_no_more,
    endless_output_is_an_output_limit,
    endless_output_may_be_truncated_instead,
    output_at_the_limit_passes,
    a_full_disk_is_a_disk_limit,
    storage_just_under_the_limit_passes,
    all_places_to_write_share_one_bound,
    many_small_files_are_bounded_too,
    files_of_the_job_that_do_not_fit_are_a_disk_limit,
    a_share_of_a_cpu_is_enforced,
    descriptors_are_limited,
];

pub(crate) fn run(sandbox: &Sandbox, spec: ContainerSpec) -> StepOutcome {
    sandbox.run_one(spec).0
}

/// The limit that was met, which must have been observed to be at least what was allowed and at
/// most ten times that.
pub(crate) fn hit(outcome: &StepOutcome, limit: LimitName) -> LimitHit {
    let hit = outcome.limit_hit.unwrap_or_else(|| panic!("no limit was hit: {outcome:?}"));
    assert_eq!(hit.limit, limit, "{outcome:?}");
    assert!(hit.observed >= hit.allowed, "{hit:?}");
    assert!(hit.observed <= hit.allowed * 10, "{hit:?}");
    hit
}

fn a_success_tells_what_it_used(sandbox: &Sandbox) {
    let outcome = run(sandbox, sandbox.script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"));
    assert_eq!(outcome.verdict, Verdict::Success);
    assert_eq!((outcome.exit_code, outcome.signal, outcome.limit_hit), (Some(0), None, None));
    let usage = outcome.usage;
    assert!(usage.cpu_us > 0 && usage.wall_us > 0 && usage.memory_peak_bytes > 0, "{usage:?}");
    assert!(usage.wall_us < 90_000_000, "{usage:?}");
    assert_eq!(usage.pids_peak.unwrap_or(1), 1);
    assert_eq!((usage.output_bytes, usage.oom_kills), (0, 0));
}

fn an_exit_code_is_a_failure(sandbox: &Sandbox) {
    let outcome = run(sandbox, sandbox.script("exit 3"));
    assert_eq!((outcome.verdict, outcome.exit_code), (Verdict::Failure, Some(3)));
}

fn a_fatal_signal_is_told_by_its_number(sandbox: &Sandbox) {
    let outcome = run(sandbox, sandbox.script("kill -SEGV $$"));
    assert_eq!(outcome.verdict, Verdict::Signaled);
    assert_eq!((outcome.exit_code, outcome.signal), (None, Some(11)));
}

fn a_real_time_signal_is_told_too(sandbox: &Sandbox) {
    let outcome = run(sandbox, sandbox.script("sh -c 'kill -34 $$'; kill -35 $$"));
    assert_eq!((outcome.verdict, outcome.signal), (Verdict::Signaled, Some(35)));
}

fn a_busy_program_meets_its_cpu_limit(sandbox: &Sandbox) {
    let mut spec = sandbox.script("while :; do :; done");
    spec.steps[0].limits.cpu_ms = bytes(300);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::CpuLimit);
    assert_eq!(hit(&outcome, LimitName::CpuMs).allowed, 300);
    assert!(outcome.usage.cpu_us >= 300_000, "{:?}", outcome.usage);
}

fn cpu_time_just_under_the_limit_passes(sandbox: &Sandbox) {
    let program = "import time\nwhile time.process_time() < 0.4: pass";
    let mut spec = sandbox.python(program);
    // By ticks the cgroup sees now more, now less than the program itself does.
    let (allowed_ms, least_us) =
        if counts_cpu_by_ticks() { (4000, 200_000) } else { (500, 390_000) };
    spec.steps[0].limits.cpu_ms = bytes(allowed_ms);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    assert!(outcome.usage.cpu_us >= least_us, "{:?}", outcome.usage);
}

fn cpu_time_of_children_counts(sandbox: &Sandbox) {
    let mut spec =
        sandbox.script("while :; do (i=0; while [ $i -lt 999 ]; do i=$((i+1)); done); done");
    spec.steps[0].limits.cpu_ms = bytes(300);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::CpuLimit);
    hit(&outcome, LimitName::CpuMs);
}

fn a_sleeping_program_meets_its_wall_limit(sandbox: &Sandbox) {
    let mut spec = sandbox.command(&["sleep", "60"]);
    spec.steps[0].limits.wall_ms = bytes(500);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::WallLimit);
    assert_eq!(hit(&outcome, LimitName::WallMs).allowed, 500);
    assert!(outcome.usage.wall_us >= 500_000, "{:?}", outcome.usage);
}

fn wall_time_just_under_the_limit_passes(sandbox: &Sandbox) {
    let mut spec = sandbox.command(&["sleep", "0.5"]);
    spec.steps[0].limits.wall_ms = bytes(5000);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::Success);
    assert!(outcome.usage.wall_us >= 500_000, "{:?}", outcome.usage);
}

fn the_job_has_a_bound_of_its_own(sandbox: &Sandbox) {
    let mut spec = sandbox.command(&["sleep", "60"]);
    spec.job_wall_ms = bytes(400);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::WallLimit);
    assert_eq!(hit(&outcome, LimitName::JobWallMs).allowed, 400);
}

fn touch(mib: u32) -> String {
    format!("x = bytearray({mib} << 20)\nfor i in range(0, len(x), 4096): x[i] = 1")
}

fn memory_beyond_the_limit_is_a_memory_limit(sandbox: &Sandbox) {
    let mut spec = sandbox.python(&touch(100));
    spec.steps[0].limits.memory_bytes = bytes(64 << 20);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::MemoryLimit, "{outcome:?}");
    let hit = outcome.limit_hit.expect("a limit");
    assert_eq!((hit.limit, hit.allowed), (LimitName::MemoryBytes, 64 << 20));
    assert!(outcome.usage.oom_kills > 0);
    assert!(outcome.usage.memory_peak_bytes > 60 << 20, "{:?}", outcome.usage);
}

fn memory_just_under_the_limit_passes(sandbox: &Sandbox) {
    let mut spec = sandbox.python(&touch(40));
    spec.steps[0].limits.memory_bytes = bytes(64 << 20);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    assert!(outcome.usage.memory_peak_bytes >= 40 << 20, "{:?}", outcome.usage);
}

fn a_child_out_of_memory_ends_the_job_even_if_its_parent_succeeds(sandbox: &Sandbox) {
    let script = format!("/usr/bin/python3 -I -c '{}'; exit 0", touch(100));
    let mut spec = sandbox.script(&script);
    spec.steps[0].limits.memory_bytes = bytes(64 << 20);
    assert_eq!(run(sandbox, spec).verdict, Verdict::MemoryLimit);
}

fn memory_files_count_as_memory(sandbox: &Sandbox) {
    for place in ["/tmp/x", "/dev/shm/x", "x"] {
        let mut spec = sandbox.script(&format!("head -c 100m /dev/zero > {place}"));
        spec.disk_bytes = bytes(200 << 20);
        spec.steps[0].limits.memory_bytes = bytes(64 << 20);
        assert_eq!(run(sandbox, spec).verdict, Verdict::MemoryLimit, "{place}");
    }
}

fn stopped_processes_and_zombies_hold_nothing_up(sandbox: &Sandbox) {
    let program = "import os, signal\nfor n in range(20):\n if os.fork() == 0:\n  if n % 2: \
                   os.kill(os.getpid(), signal.SIGSTOP)\n  os._exit(0)\nprint('done')";
    let (outcome, stdout) = sandbox.run_one(sandbox.python(program));
    assert_eq!((outcome.verdict, stdout.as_str()), (Verdict::Success, "done\n"));
    assert!(outcome.usage.wall_us < 30_000_000, "{:?}", outcome.usage);
}

fn reading_much_is_no_memory_limit(sandbox: &Sandbox) {
    let mut spec = sandbox.script("cat /usr/lib/x86_64-linux-gnu/*.so* /usr/bin/* > /dev/null");
    // What is being read ahead cannot be reclaimed, and some disks are read 8 MiB ahead: with 16
    // the kernel may find nothing else, and kill.
    spec.steps[0].limits.memory_bytes = bytes(64 << 20);
    let ran = sandbox.run(spec);
    assert_ne!(ran.outcome.verdict, Verdict::MemoryLimit, "{:?}", ran.outcome);
    assert_eq!(ran.step(0).usage.oom_kills, 0);
}

fn the_least_memory_is_enough_for_a_small_program(sandbox: &Sandbox) {
    let mut spec = sandbox.command(&["/bin/true"]);
    spec.steps[0].limits.memory_bytes = bytes(MIN_MEMORY_BYTES);
    assert_eq!(run(sandbox, spec).verdict, Verdict::Success);
}

fn a_fork_bomb_ends_at_its_wall_limit(sandbox: &Sandbox) {
    let bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass";
    let mut spec = sandbox.python(bomb);
    let limits = &mut spec.steps[0].limits;
    limits.pids = NonZeroU32::new(32).expect("not 0");
    limits.wall_ms = bytes(1000);
    limits.memory_bytes = bytes(512 << 20);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::WallLimit, "{outcome:?}");
    assert!(outcome.usage.pids_peak.unwrap_or(32) <= 32, "{:?}", outcome.usage);
}

fn a_kill_is_not_slowed_down_by_the_share_of_a_cpu(sandbox: &Sandbox) {
    let busy = "import os\nfor _ in range(200):\n if os.fork() == 0:\n  while True: pass\nwhile \
                True: pass";
    let mut spec = sandbox.python(busy);
    let limits = &mut spec.steps[0].limits;
    limits.pids = NonZeroU32::new(300).expect("not 0");
    limits.cpus = Cpus::from_millis(50).expect("enough");
    limits.wall_ms = bytes(2000);
    limits.memory_bytes = bytes(1 << 30);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::WallLimit, "{outcome:?}");
    hit(&outcome, LimitName::WallMs);
}

fn processes_up_to_the_limit_can_be_made_and_no_more(sandbox: &Sandbox) {
    let program = "import os, signal\nmade = 0\ntry:\n while True:\n  if os.fork() == 0:\n   \
                   signal.pause()\n  made += 1\nexcept OSError: print(made)";
    let mut spec = sandbox.python(program);
    spec.steps[0].limits.pids = NonZeroU32::new(8).expect("not 0");
    let (outcome, stdout) = sandbox.run_one(spec);
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    assert_eq!(stdout, "7\n");
}

fn endless_output_is_an_output_limit(sandbox: &Sandbox) {
    let mut spec = sandbox.command(&["yes"]);
    spec.steps[0].limits.output_bytes = bytes(1 << 20);
    let (outcome, stdout) = sandbox.run_one(spec);
    assert_eq!(outcome.verdict, Verdict::OutputLimit);
    hit(&outcome, LimitName::OutputBytes);
    assert_eq!(stdout.len(), 1 << 20);
}

fn endless_output_may_be_truncated_instead(sandbox: &Sandbox) {
    let mut spec = sandbox.script("yes | head -c 3000000; yes | head -c 1000 >&2");
    spec.steps[0].limits.output_bytes = bytes(1 << 20);
    spec.steps[0].output_overflow = OutputOverflow::Truncate;
    let ran = sandbox.run(spec);
    let outcome = ran.step(0);
    assert_eq!((outcome.verdict, outcome.exit_code), (Verdict::Success, Some(0)));
    assert_eq!(hit(outcome, LimitName::OutputBytes).observed, 3_001_000);
    assert_eq!(ran.stdout(0).len(), 1 << 20);
}

fn output_at_the_limit_passes(sandbox: &Sandbox) {
    let spec = |count: u32| {
        let mut spec =
            sandbox.script(&format!("head -c {count} /dev/zero; head -c 50 /dev/zero >&2"));
        spec.steps[0].limits.output_bytes = bytes(100_050);
        spec
    };
    assert_eq!(run(sandbox, spec(100_000)).verdict, Verdict::Success);
    assert_eq!(run(sandbox, spec(100_001)).verdict, Verdict::OutputLimit);
}

fn a_full_disk_is_a_disk_limit(sandbox: &Sandbox) {
    let mut spec = sandbox.script("head -c 20m /dev/zero > big");
    spec.disk_bytes = bytes(16 << 20);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::DiskLimit, "{outcome:?}");
    assert_eq!(hit(&outcome, LimitName::DiskBytes).allowed, 16 << 20);
}

fn storage_just_under_the_limit_passes(sandbox: &Sandbox) {
    let mut spec = sandbox.script("head -c 15m /dev/zero > big && ls -l big | cut -d' ' -f5");
    spec.disk_bytes = bytes(16 << 20);
    assert_eq!(sandbox.stdout_of(spec), format!("{}\n", 15 << 20));
}

fn all_places_to_write_share_one_bound(sandbox: &Sandbox) {
    let fill = "head -c 6m /dev/zero > big; head -c 6m /dev/zero > /tmp/big; \
                head -c 6m /dev/zero > /dev/shm/big";
    let mut spec = sandbox.script(fill);
    spec.disk_bytes = bytes(16 << 20);
    assert_eq!(run(sandbox, spec).verdict, Verdict::DiskLimit);
}

fn many_small_files_are_bounded_too(sandbox: &Sandbox) {
    let mut spec = sandbox.python("for i in range(1000000): open(str(i), 'w').close()");
    spec.disk_bytes = bytes(4 << 20);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::DiskLimit, "{outcome:?}");
    assert_eq!(hit(&outcome, LimitName::DiskFiles).allowed, 2048);

    let mut spec = sandbox.command(&["/bin/true"]);
    spec.disk_bytes = bytes(4 << 20);
    spec.files = (0..3000).map(|n| file(&n.to_string(), "")).collect();
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::DiskLimit, "{outcome:?}");
    hit(&outcome, LimitName::DiskFiles);
}

fn files_of_the_job_that_do_not_fit_are_a_disk_limit(sandbox: &Sandbox) {
    let mut spec = sandbox.command(&["/bin/true"]);
    spec.disk_bytes = bytes(2 << 20);
    spec.files = vec![file("big", &"x".repeat(3 << 20))];
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::DiskLimit, "{outcome:?}");
    hit(&outcome, LimitName::DiskBytes);
}

fn a_share_of_a_cpu_is_enforced(sandbox: &Sandbox) {
    // While the machine has much else to do, a container may not even get its share.
    const ATTEMPTS: u32 = 5;
    assert!((0..ATTEMPTS).any(|_| is_throttled_to_its_share(sandbox)), "never held");
}

/// Whether the quota held four busy processes, which have no more than their share in any case.
fn is_throttled_to_its_share(sandbox: &Sandbox) -> bool {
    let mut spec = sandbox.script("for i in 1 2 3 4; do (while :; do :; done) & done; sleep 2");
    // By ticks only a small share is surely told from a whole CPU, the only one there is then.
    let (millis, tolerance) = if counts_cpu_by_ticks() { (100, 2) } else { (500, 1) };
    spec.steps[0].limits.cpus = Cpus::from_millis(millis).expect("enough");
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    // Two periods may be cut by the start and the end.
    let bound = (outcome.usage.wall_us + 200_000) * u64::from(millis) / 1000;
    assert!(outcome.usage.cpu_us <= tolerance * bound, "{:?}", outcome.usage);
    outcome.usage.throttled_us > 0
}

fn descriptors_are_limited(sandbox: &Sandbox) {
    let program = "import os\nn = 0\ntry:\n while True:\n  os.dup(1); n += 1\nexcept OSError as e: \
                   print(n + 3, e.errno)";
    let mut spec = sandbox.python(program);
    spec.steps[0].limits.open_files = NonZeroU32::new(50).expect("not 0");
    assert_eq!(sandbox.stdout_of(spec), "50 24\n");
}
