//! The buffers of sockets, which the kernel counts as nobody's memory, or as too little.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use lazaret_sandbox::outcome::{LimitName, Verdict};
use lazaret_sandbox::spec::Cpus;

use crate::fixture::{Sandbox, bytes};
use crate::leftovers::cgroups_of;
use crate::limits::{hit, run};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    sockets_hold_no_memory_beyond_the_limit,
    connections_that_nobody_accepts_hold_no_memory_beyond_the_limit,
    sockets_within_the_limit_pass,
];

/// A program of this many processes, each of which fills the buffers of this many connections and
/// keeps them.
fn flood(processes: u32, connections: u32) -> String {
    format!(
        "import os, socket\nfor _ in range({processes} - 1):\n if os.fork() == 0: break\n\
         server = socket.create_server(('127.0.0.1', 0))\nkeep = []\n\
         for _ in range({connections}):\n keep += [socket.create_connection(\
         server.getsockname()), server.accept()[0]]\n for s in keep[-2:]:\n  \
         s.setblocking(False)\n  try:\n   while True: s.send(b'x' * 65536)\n  \
         except BlockingIOError: pass"
    )
}

/// Version 1 does not count buffers of sockets as memory, and lets TCP have more of them with each
/// connection: this program would have 140 MiB of them, one in C that is leaner several times that.
fn sockets_hold_no_memory_beyond_the_limit(sandbox: &Sandbox) {
    let mut spec = sandbox.python(&(flood(8, 1000) + "\nimport signal; signal.pause()"));
    let limits = &mut spec.steps[0].limits;
    limits.memory_bytes = bytes(64 << 20);
    limits.open_files = NonZeroU32::new(4096).expect("not 0");
    limits.cpus = Cpus::from_millis(2000).expect("enough");
    let live = sandbox.start_container(spec);
    let leaf = cgroups_of(sandbox.settings(), live.container.id()).into_iter();
    let highest = leaf.map(|leaf| leaf.join("memory.kmem.tcp.max_usage_in_bytes"));
    // What the kernel says of the buffers goes with the cgroup: read until then.
    let buffers = highest.filter(|file| file.exists()).map(|file| last_number(&file)).sum::<u64>();
    let outcome = live.finish(sandbox).step(0).clone();
    assert_eq!(outcome.verdict, Verdict::MemoryLimit, "{outcome:?}");
    assert_eq!(hit(&outcome, LimitName::MemoryBytes).allowed, 64 << 20);
    let held = buffers + outcome.usage.memory_peak_bytes;
    assert!(held <= 96 << 20, "{} MiB, of which {} in buffers", held >> 20, buffers >> 20);
}

/// The kernel counts what they hold in no cgroup until they are accepted.
fn connections_that_nobody_accepts_hold_no_memory_beyond_the_limit(sandbox: &Sandbox) {
    let mut families = vec![("AF_INET", "127.0.0.1")];
    // A kernel may be without IPv6.
    families.extend(Path::new("/proc/net/if_inet6").exists().then_some(("AF_INET6", "::1")));
    for (family, address) in families {
        let program = format!(
            "import socket\nkeep = []\nfor n in range(8):\n \
             server = socket.create_server(('{address}', 0), family=socket.{family}, \
             backlog=4096)\n keep.append(server)\n for _ in range(4000):\n  \
             c = socket.create_connection(server.getsockname()[:2])\n  \
             c.send(b'x' * 15000)\n  c.close()"
        );
        let mut spec = sandbox.python(&program);
        spec.steps[0].limits.memory_bytes = bytes(64 << 20);
        let outcome = run(sandbox, spec);
        assert_eq!(outcome.verdict, Verdict::MemoryLimit, "{family}: {outcome:?}");
        assert_eq!(hit(&outcome, LimitName::MemoryBytes).allowed, 64 << 20);
    }
}

/// The last number that a file had before it went away.
fn last_number(file: &Path) -> u64 {
    let mut last = 0;
    while let Ok(text) = std::fs::read_to_string(file) {
        last = text.trim().parse().expect("a number");
        std::thread::sleep(Duration::from_millis(1));
    }
    last
}

fn sockets_within_the_limit_pass(sandbox: &Sandbox) {
    let mut spec = sandbox.python(&flood(2, 50));
    spec.steps[0].limits.memory_bytes = bytes(128 << 20);
    let outcome = run(sandbox, spec);
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
}
