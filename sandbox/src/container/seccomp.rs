//! The three filters that every step runs under, compiled once from the rules in `seccomp/`.
//!
//! | filter | a call that matches | any other call |
//! |---|---|---|
//! | `allow.json` | goes on | `ENOSYS`: libcs fall back to what they know |
//! | `sockets.json` | `EAFNOSUPPORT` | goes on |
//! | `refuse.json` | `EPERM` | goes on |
//!
//! They are installed in this order: where several answer with an error, that of the filter
//! installed last counts (seccomp(2)). All of them end a process that enters the kernel through
//! another architecture's calls, since `int 0x80` would walk round rules for 64-bit arguments.
//! Arguments that the kernel reads as `int` are compared as 32 bits: compared as 64 they could be
//! told apart from what the kernel will see.

use std::io;

use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};

/// Each rule with the reason it is there.
const RULES: [(&str, &str); 3] = [
    ("allow", include_str!("../seccomp/allow.json")),
    ("sockets", include_str!("../seccomp/sockets.json")),
    ("refuse", include_str!("../seccomp/refuse.json")),
];

/// The filters, ready to be installed.
#[derive(Debug, Clone)]
pub(crate) struct Filters(Vec<BpfProgram>);

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
        RULES.into_iter().map(compile).collect::<io::Result<_>>().map(Self)
    }

    /// Confines this process and all that it becomes.
    pub(crate) fn install(&self) -> io::Result<()> {
        for program in &self.0 {
            apply_filter(program).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_reason_and_stands_once() {
        for (name, rules) in RULES {
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
    fn the_rules_compile() {
        let filters = Filters::compile().expect("programs");
        assert_eq!(filters.0.len(), RULES.len());
        // BPF_MAXINSNS: the kernel refuses longer programs.
        assert!(filters.0.iter().all(|program| program.len() <= 4096));
    }
}
