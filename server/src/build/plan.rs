//! What a Dockerfile asks for: its stages, and the steps of each, as far as they can be done here.

use parse_dockerfile::{
    Command as Words, CopyInstruction, Flag, Instruction, RunInstruction, Source, Span,
    UnescapedString,
};

use super::BuildError;
use super::words::{Lookup, expand};

/// A Dockerfile that was read. Variables are still in its words.
#[derive(Debug)]
pub(super) struct Plan {
    /// The character that takes a meaning away, and joins lines.
    pub(super) escape: char,
    /// `ARG`s in front of the first stage: `NAME` or `NAME=value`.
    pub(super) arguments: Vec<String>,
    pub(super) stages: Vec<Stage>,
}

/// From one `FROM` to the next.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) line: usize,
    /// An image, or the name of an earlier stage.
    pub(super) base: String,
    pub(super) platform: Option<String>,
    pub(super) name: Option<String>,
    pub(super) steps: Vec<Step>,
}

/// One instruction.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) line: usize,
    /// As it is written, on one line.
    pub(super) text: String,
    pub(super) what: What,
}

/// What is done.
#[derive(Debug)]
pub(super) enum What {
    Run(Command),
    Copy(Files),
    Env(String),
    Arg(String),
    Label(String),
    Workdir(String),
    User(String),
    Expose(Vec<String>),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    /// Something that nothing here would ever look at.
    LeftOut,
}

/// A program and its arguments, or a line for a shell.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Exec(Vec<String>),
    Shell(String),
}

/// `COPY` and `ADD`.
#[derive(Debug)]
pub(super) struct Files {
    /// A stage or an image; the context, if none is named.
    pub(super) from: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) sources: Vec<String>,
    pub(super) destination: String,
    /// What becomes of archives among them.
    pub(super) archives: Archives,
}

/// What becomes of archives that are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Archives {
    /// They are files as others are.
    Copied,
    /// The files in them are copied.
    Unpacked,
}

impl Plan {
    /// Reads a Dockerfile.
    pub(super) fn parse(text: &str) -> Result<Self, BuildError> {
        if text.contains('\0') {
            return Err(BuildError::refused("Dockerfile: there is a zero byte in it"));
        }
        let read = parse_dockerfile::parse(text)
            .map_err(|error| BuildError::refused(format!("Dockerfile: {error}")))?;
        let escape = read.parser_directives.escape.as_ref().map_or('\\', |known| known.value.value);
        let reader = Reader { text, escape };
        let mut stages = Vec::new();
        for stage in read.stages() {
            let from = stage.from;
            let line = reader.line(&from.from.span);
            let platform = flag(&from.options, "platform");
            reader.allow(&from.options, &["platform"], line)?;
            let steps = stage.instructions.iter().map(|instruction| reader.step(instruction));
            stages.push(Stage {
                line,
                base: from.image.value.to_string(),
                platform,
                name: from.as_.as_ref().map(|(_, name)| name.value.to_lowercase()),
                steps: steps.collect::<Result<_, _>>()?,
            });
        }
        let arguments = read.global_args().map(|arg| arg.arguments.value.to_string()).collect();
        Ok(Self { escape, arguments, stages })
    }

    /// Replaces the variables in the names and platforms of what stages start with.
    pub(super) fn expand_bases(&mut self, lookup: Lookup<'_>) -> Result<(), BuildError> {
        for stage in &mut self.stages {
            let expand = |word: &str| {
                expand(word, self.escape, lookup).map_err(|error| error.on_line(stage.line))
            };
            stage.base = expand(&stage.base)?;
            stage.platform = stage.platform.as_deref().map(expand).transpose()?;
        }
        Ok(())
    }

    /// The stage that `word` means to a step of the stage `before`.
    pub(super) fn stage(&self, word: &str, before: usize) -> Option<usize> {
        let named = |stage: &Stage| stage.name.as_deref() == Some(&word.to_lowercase());
        let by_name = self.stages.iter().take(before).rposition(named);
        by_name.or_else(|| word.parse().ok().filter(|number| *number < before))
    }
}

struct Reader<'a> {
    text: &'a str,
    escape: char,
}

impl Reader<'_> {
    fn line(&self, span: &Span) -> usize {
        1 + self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum; what is new is refused")]
    fn step(&self, instruction: &Instruction<'_>) -> Result<Step, BuildError> {
        let text = |words: &UnescapedString<'_>| words.value.to_string();
        let (keyword, what) = match instruction {
            Instruction::Run(run) => (&run.run, What::Run(self.run(run)?)),
            Instruction::Copy(copy) => (&copy.copy, What::Copy(self.copy(copy)?)),
            Instruction::Add(add) => {
                let line = self.line(&add.add.span);
                self.allow(&add.options, &["chown", "chmod", "link"], line)?;
                let files =
                    self.files((&add.options, &add.src, &add.dest), Archives::Unpacked, line)?;
                (&add.add, What::Copy(files))
            }
            Instruction::Env(env) => (&env.env, What::Env(text(&env.arguments))),
            Instruction::Arg(arg) => (&arg.arg, What::Arg(text(&arg.arguments))),
            Instruction::Label(label) => (&label.label, What::Label(text(&label.arguments))),
            Instruction::Workdir(to) => (&to.workdir, What::Workdir(text(&to.arguments))),
            Instruction::User(user) => (&user.user, What::User(text(&user.arguments))),
            Instruction::Expose(ports) => {
                (&ports.expose, What::Expose(ports.arguments.iter().map(text).collect()))
            }
            Instruction::Cmd(cmd) => (&cmd.cmd, What::Cmd(self.command(&cmd.arguments))),
            Instruction::Entrypoint(entrypoint) => {
                let command = self.command(&entrypoint.arguments);
                (&entrypoint.entrypoint, What::Entrypoint(command))
            }
            Instruction::Shell(shell) => {
                (&shell.shell, What::Shell(shell.arguments.iter().map(text).collect()))
            }
            Instruction::Healthcheck(check) => (&check.healthcheck, What::LeftOut),
            Instruction::Maintainer(maintainer) => (&maintainer.maintainer, What::LeftOut),
            Instruction::Stopsignal(signal) => (&signal.stopsignal, What::LeftOut),
            Instruction::Volume(volume) => (&volume.volume, What::LeftOut),
            _ => return Err(BuildError::refused("Dockerfile: `ONBUILD` is not supported")),
        };
        let line = self.line(&keyword.span);
        Ok(Step { line, text: self.shown(line), what })
    }

    /// An instruction as people see it: its first line.
    fn shown(&self, line: usize) -> String {
        let first = self.text.lines().nth(line - 1).unwrap_or_default();
        let shown = first.trim().trim_end_matches(self.escape).trim_end();
        if shown.len() < first.trim().len() { format!("{shown} …") } else { shown.to_owned() }
    }

    fn run(&self, run: &RunInstruction<'_>) -> Result<Command, BuildError> {
        let line = self.line(&run.run.span);
        let no_network = |flag: &&Flag<'_>| {
            flag.name.value == "network"
                && flag.value.as_ref().is_some_and(|value| value.value == "none")
        };
        if let Some(flag) = run.options.iter().find(|flag| !no_network(flag)) {
            return Err(unsupported(line, flag));
        }
        match (self.command(&run.arguments), run.here_docs.as_slice()) {
            (command, []) => Ok(command),
            (Command::Shell(text), [script]) if text.is_empty() => {
                if script.value.starts_with("#!") {
                    let why = "a here-document is run by the shell: put a script of another \
                               program into a file";
                    return Err(at(line, why));
                }
                Ok(Command::Shell(script.value.to_string()))
            }
            _ => Err(at(line, "a here-document can only be a whole script: put it into a file")),
        }
    }

    fn copy(&self, copy: &CopyInstruction<'_>) -> Result<Files, BuildError> {
        let line = self.line(&copy.copy.span);
        self.allow(&copy.options, &["from", "chown", "chmod", "link"], line)?;
        self.files((&copy.options, &copy.src, &copy.dest), Archives::Copied, line)
    }

    fn files(
        &self,
        (flags, sources, destination): (&[Flag<'_>], &[Source<'_>], &UnescapedString<'_>),
        archives: Archives,
        line: usize,
    ) -> Result<Files, BuildError> {
        let sources = sources.iter().map(|source| {
            if let Source::Path(path) = source {
                return Ok(path.value.to_string());
            }
            Err(at(line, "here-documents cannot be copied: put the file into the context"))
        });
        Ok(Files {
            from: flag(flags, "from"),
            owner: flag(flags, "chown"),
            mode: flag(flags, "chmod"),
            sources: sources.collect::<Result<_, _>>()?,
            destination: destination.value.to_string(),
            archives,
        })
    }

    fn command(&self, words: &Words<'_>) -> Command {
        match words {
            Words::Exec(words) => {
                Command::Exec(words.value.iter().map(|word| word.value.to_string()).collect())
            }
            Words::Shell(text) => Command::Shell(self.joined(text.value)),
            _ => Command::Shell(String::new()),
        }
    }

    /// Lines joined where one ends in the escape character; comments between them are left out.
    fn joined(&self, text: &str) -> String {
        let mut joined = String::new();
        let mut goes_on = false;
        for line in text.lines() {
            if goes_on && (line.trim().is_empty() || line.trim_start().starts_with('#')) {
                continue;
            }
            if !joined.is_empty() && !goes_on {
                joined.push('\n');
            }
            let end = line.trim_end();
            goes_on = end.ends_with(self.escape);
            joined += if goes_on { end.trim_end_matches(self.escape) } else { line };
        }
        joined
    }

    fn allow(&self, flags: &[Flag<'_>], known: &[&str], line: usize) -> Result<(), BuildError> {
        let other = flags.iter().find(|flag| !known.contains(&flag.name.value.as_ref()));
        other.map_or(Ok(()), |flag| Err(unsupported(line, flag)))
    }
}

fn flag(flags: &[Flag<'_>], name: &str) -> Option<String> {
    let flag = flags.iter().find(|flag| flag.name.value == name)?;
    flag.value.as_ref().map(|value| value.value.to_string())
}

fn unsupported(line: usize, flag: &Flag<'_>) -> BuildError {
    at(line, &format!("`--{}` is not supported", flag.name.value))
}

/// What is wrong on a line.
pub(super) fn at(line: usize, what: &str) -> BuildError {
    BuildError::refused(format!("Dockerfile, line {line}: {what}"))
}
