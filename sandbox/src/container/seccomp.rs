//! The filters that every step runs under, compiled once from the rules in `seccomp/`.
//!
//! | rules | a call that matches | any other call | installed by |
//! |---|---|---|---|
//! | `allow.json` | goes on | `ENOSYS`: libcs fall back to what they know | the zygote |
//! | `refuse.json` | `EPERM` | goes on | the step |
//! | `sockets.json` | `EAFNOSUPPORT` | goes on | the step |
//! | `ignore.json` | done, without doing it | goes on | the step |
//! | `absent.json` | `ENOSYS` | goes on | the step |
//!
//! Where several answer with an error, the first of the step's counts, and each of those before
//! that of the zygote, which was installed earlier (seccomp(2)). The long list is dear (the kernel
//! takes 0.6 ms to translate it and to try every number on it) and is inherited for nothing, so it
//! is installed once, on the zygote. What shims and inits need to make containers stands in it too;
//! each step is refused that by one of the others. Those are one program, because the kernel takes
//! its time for every one that it is given.
//!
//! All of them end a process that enters the kernel through another architecture's calls, since
//! `int 0x80` would walk round rules for 64-bit arguments. Arguments that the kernel reads as
//! `int` are compared as 32 bits: compared as 64 they could be told apart from what it will see.

use std::io;

use seccompiler::{BpfProgram, SeccompAction, TargetArch, apply_filter, compile_from_json};

const ALLOW: (&str, &str) = ("allow", include_str!("../seccomp/allow.json"));
const ABSENT: (&str, &str) = ("absent", include_str!("../seccomp/absent.json"));
const IGNORE: (&str, &str) = ("ignore", include_str!("../seccomp/ignore.json"));
const SOCKETS: (&str, &str) = ("sockets", include_str!("../seccomp/sockets.json"));
const REFUSE: (&str, &str) = ("refuse", include_str!("../seccomp/refuse.json"));

/// The filters, ready to be installed.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    allow: BpfProgram,
    /// `refuse`, `sockets`, `ignore` and `absent`, in this order.
    step: BpfProgram,
}

impl Filters {
    /// Compiles the rules for this machine.
    pub(crate) fn compile() -> io::Result<Self> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
        let compile = |(name, rules): (&str, &str)| {
            let mut programs =
                compile_from_json(rules.as_bytes(), arch).map_err(io::Error::other)?;
            let missing = || io::Error::other(format!("no rules are called `{name}`"));
            programs.remove(name).ok_or_else(missing)
        };
        let parts = [REFUSE, SOCKETS, IGNORE, ABSENT].map(compile);
        let step = chain(parts.into_iter().collect::<io::Result<_>>()?)?;
        Ok(Self { allow: compile(ALLOW)?, step })
    }

    /// Confines the zygote, and with it all that descends from it, to the calls that are known to
    /// be needed.
    pub(crate) fn install_on_zygote(&self) -> io::Result<()> {
        apply_filter(&self.allow).map_err(io::Error::other)
    }

    /// Refuses a step, and all that it becomes, what only those before it needed.
    pub(crate) fn install_on_step(&self) -> io::Result<()> {
        apply_filter(&self.step).map_err(io::Error::other)
    }
}

/// One program that runs several, each for the calls that those before it let go on: instead of
/// that they jump to its start.
fn chain(programs: Vec<BpfProgram>) -> io::Result<BpfProgram> {
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
    let goes_on = u32::from(SeccompAction::Allow);
    let last = programs.len() - 1;
    let mut whole = BpfProgram::new();
    for (number, mut program) in programs.into_iter().enumerate() {
        let length = program.len();
        for (place, instruction) in program.iter_mut().enumerate() {
            if number < last && u32::from(instruction.code) == RETURN && instruction.k == goes_on {
                instruction.code = u16::try_from(JUMP).map_err(io::Error::other)?;
                // Counted from the instruction after this one.
                instruction.k = u32::try_from(length - place - 1).map_err(io::Error::other)?;
            }
        }
        whole.append(&mut program);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_reason_and_stands_once() {
        for (name, rules) in [ALLOW, ABSENT, IGNORE, SOCKETS, REFUSE] {
            let rules: serde_json::Value = serde_json::from_str(rules).expect("JSON");
            let filter = rules[name]["filter"].as_array().expect("a list of rules");
            let mut seen = std::collections::HashSet::new();
            for rule in filter {
                let reason = rule["comment"].as_str().unwrap_or_default();
                assert!(reason.len() > 5, "{rule} gives no reason");
                assert!(seen.insert(rule.to_string()), "{rule} stands twice");
            }
        }
    }

    #[test]
    fn what_only_the_sandbox_needs_is_kept_from_steps() {
        let rules = |(name, text): (&str, &str)| {
            let rules: serde_json::Value = serde_json::from_str(text).expect("JSON");
            rules[name]["filter"].as_array().expect("a list of rules").clone()
        };
        let allow = rules(ALLOW);
        let ours = allow.iter().filter(|rule| rule["comment"] == OUR_REASON);
        let names: Vec<&str> = ours.filter_map(|rule| rule["syscall"].as_str()).collect();
        assert!(names.len() > 5, "{names:?}");
        let kept = [rules(ABSENT), rules(REFUSE)].concat();
        for name in names {
            let is_kept =
                |rule: &serde_json::Value| rule["syscall"] == name && rule.get("args").is_none();
            assert!(kept.iter().any(is_kept), "steps can call `{name}`");
        }
    }

    #[test]
    fn the_rules_compile() {
        let filters = Filters::compile().expect("programs");
        // BPF_MAXINSNS: the kernel refuses longer programs.
        for program in [&filters.allow, &filters.step] {
            assert!((1..=4096).contains(&program.len()));
        }
    }

    const OUR_REASON: &str = "makes containers, and is kept from steps";
}
