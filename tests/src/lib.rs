//! The rules of the tree: what a source file may be called, hold and import.
//!
//! Rules that the compiler or clippy can hold are not here (see `[workspace.lints]`).

/// The longest line, in characters.
const MAX_COLUMNS: usize = 100;
/// Above this many lines a file has a second noun.
const MAX_LINES: usize = 400;
/// No reason is good enough for more lines than this.
const MAX_LINES_EVER: usize = 600;
/// Files that may have more than [`MAX_LINES`], each with its reason beside it.
const LONG_FILES: [&str; 0] = [];

/// This file, which has to name what it forbids.
const RULES: &str = "tests/src/lib.rs";

/// Words that say nothing about what a thing is.
const EMPTY_WORDS: [&str; 8] =
    ["util", "utils", "common", "helper", "helpers", "manager", "managers", "info"];
/// Words that a module may not have for its whole name.
const EMPTY_MODULES: [&str; 3] = ["data", "misc", "types"];
/// What a name follows where it is chosen.
const DECLARING: [&str; 9] =
    ["fn", "struct", "enum", "trait", "mod", "type", "const", "static", "let"];

/// A text that only some files may have.
struct Confined {
    /// What is searched for, outside comments.
    texts: &'static [&'static str],
    /// Where the rule holds: the start of a path.
    within: &'static str,
    /// Where it does not: starts of paths.
    except: &'static [&'static str],
    /// The rule, in words.
    rule: &'static str,
}

/// Invariant 4 of ARCHITECTURE.md.
const CONFINED: [Confined; 7] = [
    Confined {
        texts: &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "#[unsafe"],
        within: "",
        except: &["sandbox/src/sys/"],
        rule: "`unsafe` is only in `sandbox/src/sys/`",
    },
    Confined {
        texts: &["sqlx::", "insert into", "delete from", "select * from"],
        within: "",
        except: &["server/src/store/", "server/tests/"],
        rule: "SQL is only in `server/src/store/`",
    },
    Confined {
        texts: &["StatusCode::", "status_code"],
        within: "server/src/",
        except: &["server/src/api/problem.rs", "server/src/cli/"],
        rule: "status codes are only in `server/src/api/problem.rs`",
    },
    Confined {
        texts: &["env::var", "env::set_var", "env::remove_var"],
        within: "",
        except: &["server/src/config"],
        rule: "the environment is read only in `config.rs`",
    },
    Confined {
        texts: &["tokio", "axum", "sqlx", "hyper", "reqwest"],
        within: "sandbox/",
        except: &[],
        rule: "the sandbox knows no HTTP, SQL or async runtime",
    },
    Confined {
        texts: &["lazaret_sandbox::", "Command::new"],
        within: "loadtest/src/http.rs",
        except: &[],
        rule: "the HTTP load test talks HTTP only",
    },
    Confined {
        texts: &["Zygote", "Container", "Command::new"],
        within: "server/src/api/",
        except: &[],
        rule: "`api` cannot start a process",
    },
];

/// What is wrong with the Rust source `text` at `path`, which is relative to the workspace.
#[must_use]
pub fn faults_of_source(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.starts_with("//! ") {
        faults.push(format!("{path}:1: no `//!` says what the file owns"));
    }
    faults.extend(faults_of_length(path, text));
    faults.extend(faults_of_width(path, text));
    faults.extend(faults_of_path(path));
    if path == RULES {
        return faults;
    }
    for (index, line) in text.lines().enumerate() {
        let (place, code) = (format!("{path}:{}", index + 1), without_comment(line));
        faults.extend(declared_names(code).filter_map(|name| {
            let word = empty_word(name)?;
            Some(format!("{place}: `{word}` in `{name}` says nothing"))
        }));
        faults.extend(
            CONFINED
                .iter()
                .filter(|confined| confined.forbids(path, code))
                .map(|confined| format!("{place}: {}", confined.rule)),
        );
    }
    faults
}

/// What is wrong with the script or manifest `text` at `path`.
#[must_use]
pub fn faults_of_script(path: &str, text: &str) -> Vec<String> {
    let mut faults = faults_of_width(path, text);
    faults.extend(faults_of_length(path, text));
    faults.extend(faults_of_path(path));
    faults
}

/// Dependencies of the workspace manifest `text` that do not say why they are there.
#[must_use]
pub fn faults_of_manifest(text: &str) -> Vec<String> {
    let table = text.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1);
    table
        .take_while(|line| !line.starts_with('['))
        .filter(|line| line.contains('=') && !line.contains("path = "))
        .filter(|line| line.split_once(" # ").is_none_or(|(_, reason)| reason.trim().is_empty()))
        .map(|line| format!("Cargo.toml: no reason for `{line}`"))
        .collect()
}

impl Confined {
    fn forbids(&self, path: &str, code: &str) -> bool {
        path.starts_with(self.within)
            && !self.except.iter().any(|allowed| path.starts_with(allowed))
            && self.texts.iter().any(|text| code.contains(text))
    }
}

fn faults_of_length(path: &str, text: &str) -> Option<String> {
    let (lines, is_excused) = (text.lines().count(), LONG_FILES.contains(&path));
    let allowed = if is_excused { MAX_LINES_EVER } else { MAX_LINES };
    (lines > allowed).then(|| format!("{path}: {lines} lines; {allowed} are enough"))
}

fn faults_of_width(path: &str, text: &str) -> Vec<String> {
    let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > MAX_COLUMNS);
    wide.filter(|(_, line)| !line.contains("://"))
        .map(|(index, _)| format!("{path}:{}: more than {MAX_COLUMNS} columns", index + 1))
        .collect()
}

fn faults_of_path(path: &str) -> Vec<String> {
    let parts = path.split('/').map(|part| part.split_once('.').map_or(part, |(stem, _)| stem));
    parts
        .filter(|part| EMPTY_MODULES.contains(part) || empty_word(part).is_some())
        .map(|part| format!("{path}: `{part}` says nothing"))
        .collect()
}

/// The line up to a comment. A string with `//` in it is cut too, which hides nothing that
/// matters.
fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Names that this line chooses.
fn declared_names(code: &str) -> impl Iterator<Item = &str> {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    let mut is_declared = false;
    code.split(move |character| !is_name(character)).filter(move |token| {
        let was_declared = is_declared && *token != "mut";
        is_declared = DECLARING.contains(token) || (is_declared && *token == "mut");
        was_declared && !token.is_empty()
    })
}

/// The first word of `name` that says nothing. Words are parted by `_`, `-` or a capital letter.
fn empty_word(name: &str) -> Option<&'static str> {
    let mut words = vec![String::new()];
    for character in name.chars() {
        if character == '_' || character == '-' || character.is_uppercase() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.extend(character.to_lowercase().filter(|character| character.is_alphanumeric()));
        }
    }
    EMPTY_WORDS.into_iter().find(|empty| words.iter().any(|word| word == empty))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, body: &str) -> usize {
        faults_of_source(path, &format!("//! Owns.\n{body}\n")).len()
    }

    #[test]
    fn a_tidy_file_has_no_fault() {
        let body = "// unsafe { } and sqlx:: in a comment\nfn claim(commonplace: u8) {}";
        assert_eq!(faults("server/src/scheduler.rs", body), 0);
    }

    #[test]
    fn each_rule_finds_its_fault() {
        let long = "\n".repeat(MAX_LINES);
        for (path, body) in [
            ("server/src/util.rs", ""),
            ("server/src/data/x.rs", ""),
            ("server/src/job.rs", "fn job_helper() {}"),
            ("server/src/job.rs", "struct JobManager;"),
            ("server/src/job.rs", "let mut info = 1;"),
            ("server/src/job.rs", "unsafe { f() }"),
            ("server/src/job.rs", "use sqlx::Row;"),
            ("server/src/api/jobs.rs", "StatusCode::OK"),
            ("server/src/api/jobs.rs", "let c: Container = f();"),
            ("server/src/job.rs", "std::env::var(\"HOME\")"),
            ("sandbox/src/shim.rs", "use tokio::spawn;"),
            ("server/src/job.rs", &"x".repeat(MAX_COLUMNS + 1)),
            ("server/src/job.rs", &long),
        ] {
            assert_eq!(faults(path, body), 1, "{path}: {body}");
        }
        assert_eq!(faults_of_source("a.rs", "fn main() {}\n").len(), 1);
    }

    #[test]
    fn a_dependency_without_reason_is_a_fault() {
        let text =
            "[workspace.dependencies]\na = \"1\" # for b\nc = \"1\"\n\n[profile.dev]\nx = 1\n";
        assert_eq!(faults_of_manifest(text), ["Cargo.toml: no reason for `c = \"1\"`"]);
    }
}
