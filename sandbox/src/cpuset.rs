//! A set of CPUs, written as the kernel writes one: `0-3,6` (cpuset(7), list format).

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::str::FromStr;

/// More CPUs than any kernel is built for.
const MAX_CPUS: u32 = 8192;
/// Where the kernel lists those that are in use.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// CPUs by their numbers; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpuset(BTreeSet<u32>);

/// Why a text is no set of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no list of CPUs such as `0-3,6`")]
pub struct NotCpuset;

impl Cpuset {
    /// The CPUs that this host uses.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub fn online() -> io::Result<Self> {
        std::fs::read_to_string(ONLINE)?.parse().map_err(io::Error::other)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Those that are not in `other`, if there are any.
    #[must_use]
    pub fn without(&self, other: &Self) -> Option<Self> {
        let rest: BTreeSet<_> = self.0.difference(&other.0).copied().collect();
        (!rest.is_empty()).then_some(Self(rest))
    }
}

impl FromStr for Cpuset {
    type Err = NotCpuset;

    fn from_str(text: &str) -> Result<Self, NotCpuset> {
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(NotCpuset);
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

/// The number of a CPU, bounded so that a range of them is.
fn number(text: &str) -> Result<u32, NotCpuset> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| is_plain && *number < MAX_CPUS);
    number.ok_or(NotCpuset)
}

impl fmt::Display for Cpuset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuset(text: &str) -> Cpuset {
        text.parse().expect("a set")
    }

    #[test]
    fn a_set_is_written_as_the_kernel_writes_it() {
        for (text, written, count) in [
            ("0", "0", 1),
            ("0-3,6\n", "0-3,6", 5),
            ("6,1,0,2-2", "0-2,6", 4),
            ("3,3-4,1-1", "1,3-4", 3),
            ("8191", "8191", 1),
        ] {
            assert_eq!((cpuset(text).to_string().as_str(), cpuset(text).count()), (written, count));
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for text in ["", " ", ",", "0,", "a", "1-", "-1", "3-2", "+1", "0 1", "0-8192", "0--1"] {
            assert_eq!(text.parse::<Cpuset>(), Err(NotCpuset), "{text}");
        }
    }

    #[test]
    fn cpus_that_another_set_lacks_are_named() {
        let missing = cpuset("0-3,6").without(&cpuset("0-1"));
        assert_eq!(missing.map(|cpus| cpus.to_string()).as_deref(), Some("2-3,6"));
        assert_eq!(cpuset("1").without(&cpuset("0-1")), None);
    }

    #[test]
    fn this_host_has_at_least_one() {
        assert!(Cpuset::online().expect("listed").count() > 0);
    }
}
