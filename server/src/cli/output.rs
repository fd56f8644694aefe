//! What a program writes: passed on as it comes, or kept for the one JSON object at its end.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt as _;

use lazaret_sandbox::outcome::{Outcome, StepOutcome, Usage};
use lazaret_sandbox::spec::Limits;
use lazaret_sandbox::spool::{Entry, SpoolReader, Stream};

use crate::api::StepView;
use crate::cli::{CliError, Form};
use crate::job::{OutputHead, StepEnd};

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// Each stream is passed on to ours of the same name.
    AsItIs,
    /// Both are passed on to stderr.
    OnStderr,
    /// Both are kept for the JSON object.
    AtTheEnd,
}

impl From<Form> for Shown {
    fn from(form: Form) -> Self {
        match form {
            Form::Text => Self::AsItIs,
            Form::Json => Self::AtTheEnd,
        }
    }
}

/// What the spool holds, and what has become of it so far.
pub(super) struct Output {
    spool: SpoolReader<FromStart>,
    shown: Shown,
    kept: Kept,
    /// Whether who it is passed on to has gone.
    is_unread: bool,
}

/// Both streams, whole: a run has no log to read the rest in.
#[derive(Default)]
struct Kept {
    stdout: KeptStream,
    stderr: KeptStream,
}

#[derive(Default)]
struct KeptStream {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Kept {
    fn add(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        kept.bytes.extend_from_slice(bytes);
        // A record without bytes tells that some were thrown away.
        kept.is_cut |= bytes.is_empty();
    }
}

impl From<KeptStream> for OutputHead {
    fn from(kept: KeptStream) -> Self {
        let KeptStream { bytes, is_cut } = kept;
        Self { text: String::from_utf8_lossy(&bytes).into_owned(), is_truncated: is_cut }
    }
}

impl Output {
    pub(super) fn new(spool: File, shown: Shown) -> Self {
        let spool = SpoolReader::new(FromStart { file: spool, offset: 0 });
        Self { spool, shown, kept: Kept::default(), is_unread: false }
    }

    /// Whether nobody reads it any more.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Takes what the spool has got.
    pub(super) fn take(&mut self) -> Result<(), CliError> {
        while let Some(record) = self.spool.next_record()? {
            let Entry::Output(stream, bytes) = record.entry else { continue };
            let written = match (self.shown, stream) {
                (Shown::AtTheEnd, stream) => {
                    self.kept.add(stream, &bytes);
                    Ok(())
                }
                (Shown::AsItIs, Stream::Stdout) => write_now(&mut io::stdout().lock(), &bytes),
                (Shown::AsItIs, Stream::Stderr) | (Shown::OnStderr, _) => {
                    write_now(&mut io::stderr().lock(), &bytes)
                }
            };
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.is_unread = true,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The end of the job as a step of the HTTP API, if that was asked for.
    pub(super) fn into_json(self, outcome: &Outcome, limits: &Limits) -> Option<StepView> {
        let kept = (self.shown == Shown::AtTheEnd).then_some(self.kept)?;
        let step = outcome.steps.first().cloned();
        let step = step.unwrap_or_else(|| StepOutcome {
            name: "run".into(),
            verdict: outcome.verdict,
            exit_code: None,
            signal: None,
            limit_hit: None,
            usage: Usage::default(),
            detail: None,
        });
        let detail = outcome.detail.clone().or(step.detail);
        let end = StepEnd {
            outcome: StepOutcome { verdict: outcome.verdict, detail, ..step },
            stdout: kept.stdout.into(),
            stderr: kept.stderr.into(),
        };
        Some(StepView::new(end.outcome.name.clone(), limits, Some(end)))
    }
}

fn write_now(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// Reads by offset: the shim writes through the same open file.
struct FromStart {
    file: File,
    offset: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read_at(buffer, self.offset)?;
        self.offset += bytes as u64;
        Ok(bytes)
    }
}
