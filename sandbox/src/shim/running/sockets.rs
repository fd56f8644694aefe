//! Buffers of sockets, as far as the kernel counts them in no cgroup: all of them on cgroup v1,
//! whose own bound gives way with their number, and everywhere those of TCP connections that nobody
//! has accepted yet. It tells nobody when they grow: so they are looked at.
//!
//! Filling them takes CPU. A step that uses little is looked at less and less often, so that a
//! thousand sleeping ones cost next to nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::Running;
use crate::clock::micros;
use crate::error::{At as _, Result, Stage};
use crate::shim::container::Container;

/// How often at the most: in this time a CPU can fill some MiB of buffers.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// How often at the least.
const LONGEST_PAUSE: Duration = Duration::from_millis(320);
/// A step that used less than one part in so many of the time of one CPU was idle.
const IDLE_PART: u64 = 20;
/// TCP sockets that are taken for empty; of the others each is taken to hold as much as one does
/// that a connection was made to and that has not been read from.
const EMPTY_SOCKETS: u64 = 256;
const SOCKET_BYTES: u64 = 16 << 10;

/// When to look, and what the last look saw.
#[derive(Debug)]
pub(super) struct SocketWatch {
    pub(super) next_look: Duration,
    pause: Duration,
    cpu_us: u64,
    counts: Vec<OwnedFd>,
}

impl SocketWatch {
    /// The watch of a step that has started.
    pub(super) fn new(container: &Container, started: Duration, cpu_us: u64) -> io::Result<Self> {
        let counts = container.open_socket_counts()?;
        Ok(Self { next_look: started + SHORTEST_PAUSE, pause: SHORTEST_PAUSE, cpu_us, counts })
    }

    /// What the TCP sockets of the container are taken to hold.
    fn held_bytes(&self) -> io::Result<u64> {
        let mut sockets = 0;
        for counts in &self.counts {
            let mut text = [0; 1024];
            let bytes = rustix::io::pread(counts, &mut text, 0)?;
            sockets += tcp_sockets(&String::from_utf8_lossy(&text[..bytes]));
        }
        Ok(sockets.saturating_sub(EMPTY_SOCKETS) * SOCKET_BYTES)
    }

    fn looked(&mut self, now: Duration, cpu_us: u64) {
        let used = cpu_us.saturating_sub(std::mem::replace(&mut self.cpu_us, cpu_us));
        self.pause = next_pause(self.pause, used);
        self.next_look = now + self.pause;
    }
}

/// The pause after one in which so much CPU time was used.
fn next_pause(pause: Duration, used_us: u64) -> Duration {
    let is_idle = used_us < micros(pause) / IDLE_PART;
    if is_idle { (pause * 2).min(LONGEST_PAUSE) } else { SHORTEST_PAUSE }
}

/// How many TCP sockets one of the files tells of, those included that only the kernel still has.
fn tcp_sockets(counts: &str) -> u64 {
    let is_tcp = |line: &&str| line.starts_with("TCP:") || line.starts_with("TCP6:");
    let words: Vec<&str> = counts.lines().filter(is_tcp).flat_map(str::split_whitespace).collect();
    let number = |key: &str| {
        let at = words.iter().position(|word| *word == key)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    number("inuse").unwrap_or(0).saturating_add(number("orphan").unwrap_or(0))
}

impl Running<'_, '_> {
    /// Ends the container if memory and buffers of sockets are more than the limit of memory, as
    /// the OOM killer would where the one includes the other.
    pub(super) fn look_at_sockets(&mut self, now: Duration) -> Result<()> {
        if now < self.sockets.next_look {
            return Ok(());
        }
        let leaf = &self.job.container.leaf;
        self.sockets.looked(now, leaf.cpu_us().at(Stage::Cgroup)?);
        let uncounted = self.sockets.held_bytes().at(Stage::Step)?;
        let held = leaf.memory_with_sockets(uncounted).at(Stage::Cgroup)?;
        if held.is_some_and(|bytes| bytes > self.step.limits.memory_bytes.get()) {
            self.memory_with_sockets = held;
            self.kill_container()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_step_is_looked_at_less_often_until_it_is_busy() {
        let mut pause = SHORTEST_PAUSE;
        for expected in [40, 80, 160, 320, 320] {
            pause = next_pause(pause, 1);
            assert_eq!(pause, Duration::from_millis(expected));
        }
        assert_eq!(next_pause(pause, 100_000), SHORTEST_PAUSE);
    }

    #[test]
    fn connections_are_counted_with_those_that_were_closed_on_one_side() {
        let counts = "sockets: used 300\nTCP: inuse 290 orphan 3 tw 1 alloc 295 mem 7\n\
                      UDP: inuse 5 mem 0\n";
        assert_eq!(tcp_sockets(counts), 293);
        assert_eq!(tcp_sockets("TCP6: inuse 7\nUDP6: inuse 3\n"), 7);
        assert_eq!(tcp_sockets(""), 0);
    }
}
