//! Reading the spool of an ended attempt once: the start of each stream for the job's row, and the
//! whole for whoever asks for the log later.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek as _};
use std::path::Path;

use lazaret_sandbox::outcome::{Outcome, StepOutcome};
use lazaret_sandbox::spool::{Entry, SpoolReader, Stream};

use super::{LogFiles, open_if_there, remove_if_there};
use crate::job::{JobEnd, JobId, OutputHead, StepEnd, seq};
use crate::store::KeptLog;

/// Bytes of each stream of each step that are shown in the job.
pub const HEAD_BYTES: usize = 64 << 10;
/// The largest spool that is kept as a row of the store.
const MAX_ROW_BYTES: u64 = 64 << 10;

/// What the spool of an ended attempt held.
#[derive(Debug)]
pub struct Harvest {
    /// The start of stdout and stderr, by step.
    heads: Vec<[Head; 2]>,
    /// The steps that the spool says have ended.
    ended: Vec<(u16, StepOutcome)>,
    /// How many records there were.
    records: u32,
    /// Where the whole is kept.
    pub log: KeptLog,
}

#[derive(Debug, Clone, Default)]
struct Head {
    bytes: Vec<u8>,
    is_truncated: bool,
}

impl Harvest {
    /// A harvest of nothing.
    #[must_use]
    pub const fn empty() -> Self {
        Self { heads: Vec::new(), ended: Vec::new(), records: 0, log: KeptLog::Nothing }
    }

    /// What is known of a spool that could not be read, or not be kept anywhere else.
    #[must_use]
    pub const fn lost() -> Self {
        Self { heads: Vec::new(), ended: Vec::new(), records: u32::MAX - 1, log: KeptLog::Spool }
    }

    /// The number of the event that ends the log after this attempt.
    #[must_use]
    pub const fn last_seq(&self, attempt: u32) -> u64 {
        seq(attempt, self.records + 1)
    }

    /// The end of a job whose container told its outcome.
    #[must_use]
    pub fn end(&mut self, outcome: Outcome, attempt: u32) -> JobEnd {
        let Outcome { verdict, steps, detail } = outcome;
        JobEnd { verdict, steps: self.steps(steps), detail, last_seq: self.last_seq(attempt) }
    }

    /// The outcomes of the steps with what they wrote.
    #[must_use]
    pub fn steps(&mut self, outcomes: Vec<StepOutcome>) -> Vec<StepEnd> {
        let mut heads = std::mem::take(&mut self.heads).into_iter();
        let is_lost = matches!(self.log, KeptLog::Spool);
        let step = |outcome: StepOutcome| {
            let [mut stdout, mut stderr] = heads.next().unwrap_or_default();
            if is_lost && outcome.usage.output_bytes > 0 {
                (stdout.is_truncated, stderr.is_truncated) = (true, true);
            }
            StepEnd { outcome, stdout: stdout.into_output(), stderr: stderr.into_output() }
        };
        outcomes.into_iter().map(step).collect()
    }

    /// The outcomes of the steps that had ended, where no one tells of the whole.
    #[must_use]
    pub fn ended_steps(&mut self) -> Vec<StepEnd> {
        let ended = std::mem::take(&mut self.ended);
        self.steps(ended.into_iter().map(|(_, outcome)| outcome).collect())
    }

    fn add(&mut self, step: u16, stream: Stream, bytes: &[u8]) {
        let index = usize::from(step);
        if self.heads.len() <= index {
            self.heads.resize_with(index + 1, Default::default);
        }
        let [stdout, stderr] = &mut self.heads[index];
        match stream {
            Stream::Stdout => stdout.add(bytes),
            Stream::Stderr => stderr.add(bytes),
        }
    }
}

impl Head {
    fn add(&mut self, bytes: &[u8]) {
        let room = HEAD_BYTES - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..room.min(bytes.len())]);
        // A record without bytes tells that some were thrown away.
        self.is_truncated |= bytes.is_empty() || bytes.len() > room;
    }

    fn into_output(self) -> OutputHead {
        let bytes = if self.is_truncated { whole_characters(&self.bytes) } else { &self.bytes };
        OutputHead {
            text: String::from_utf8_lossy(bytes).into_owned(),
            is_truncated: self.is_truncated,
        }
    }
}

/// The bytes without a character that was cut in two at their end.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    const MAX_CHARACTER_BYTES: usize = 4;
    let near_end = bytes.len().saturating_sub(MAX_CHARACTER_BYTES - 1);
    for start in (near_end..bytes.len()).rev() {
        if let Err(error) = std::str::from_utf8(&bytes[start..])
            && error.valid_up_to() == 0
            && error.error_len().is_none()
        {
            return &bytes[..start];
        }
    }
    bytes
}

/// Reads the spool of an ended attempt, and keeps it where it belongs from now on. The spool
/// itself stays until what is kept is known to be durable.
///
/// # Errors
/// If the spool cannot be read or the log not be written.
pub fn harvest(files: &LogFiles, id: JobId, attempt: u32) -> io::Result<Harvest> {
    let Some(mut spool) = open_if_there(&files.spool_path(id, attempt))? else {
        return Ok(Harvest::empty());
    };
    let mut harvest = read(&spool)?;
    spool.rewind()?;
    let spool_bytes = spool.metadata()?.len();
    harvest.log = if spool_bytes == 0 {
        KeptLog::Nothing
    } else if spool_bytes <= MAX_ROW_BYTES {
        let mut content = Vec::new();
        spool.read_to_end(&mut content)?;
        KeptLog::Row(content)
    } else {
        match keep_file(files, id, attempt, spool) {
            Ok(()) => KeptLog::File,
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                give_up(files, &mut harvest, (id, attempt))?
            }
            Err(error) => return Err(error),
        }
    };
    Ok(harvest)
}

/// Gives up a log for the room that it takes: what fills the disk is most likely this, and the jobs
/// to come need some. Its start is in the job.
fn give_up(
    files: &LogFiles,
    harvest: &mut Harvest,
    (id, attempt): (JobId, u32),
) -> io::Result<KeptLog> {
    tracing::error!(job.id = %id, attempt, "the disk is full: gave up the log of an attempt");
    harvest.heads.iter_mut().flatten().for_each(|head| head.is_truncated = true);
    files.remove_spool(id, attempt)?;
    Ok(KeptLog::Nothing)
}

fn read(spool: &File) -> io::Result<Harvest> {
    let mut harvest = Harvest::empty();
    let mut reader = SpoolReader::new(spool);
    while let Some(record) = reader.next_record()? {
        harvest.records = record.number;
        match record.entry {
            Entry::Output(stream, bytes) => harvest.add(record.step, stream, &bytes),
            Entry::StepStarted(_) => {}
            Entry::StepEnded(outcome) => harvest.ended.push((record.step, outcome)),
        }
    }
    Ok(harvest)
}

/// Compresses the spool to a file that is whole and synced before it has its name.
fn keep_file(files: &LogFiles, id: JobId, attempt: u32, spool: File) -> io::Result<()> {
    let path = files.kept_path(id, attempt);
    let unfinished = path.with_extension("tmp");
    if let Err(error) = compress(spool, &unfinished) {
        // The disk may be full: half a log is of no use, and nobody would ever find it.
        return remove_if_there(&unfinished).and(Err(error));
    }
    std::fs::rename(&unfinished, &path)?;
    File::open(&files.kept)?.sync_all()
}

fn compress(mut spool: File, path: &Path) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(File::create(path)?, 0)?;
    io::copy(&mut spool, &mut encoder)?;
    encoder.finish()?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_a_whole_character() {
        assert_eq!(whole_characters("aé".as_bytes()), "aé".as_bytes());
        assert_eq!(whole_characters(&"aé".as_bytes()[..2]), b"a");
        assert_eq!(whole_characters(&"a😀".as_bytes()[..4]), b"a");
        assert_eq!(whole_characters(b"a\xff"), b"a\xff", "not cut, just not UTF-8");
        assert_eq!(whole_characters(b""), b"");
    }

    #[test]
    fn a_head_says_when_there_was_more() {
        let mut head = Head::default();
        head.add(&[b'x'; HEAD_BYTES]);
        assert!(!head.is_truncated);
        head.add(b"y");
        let output = head.into_output();
        assert!(output.is_truncated);
        assert_eq!(output.text.len(), HEAD_BYTES);
    }

    #[test]
    fn a_head_says_when_the_shim_threw_something_away() {
        let mut head = Head::default();
        head.add(b"kept");
        head.add(b"");
        let output = head.into_output();
        assert_eq!((output.text.as_str(), output.is_truncated), ("kept", true));
    }

    #[test]
    fn what_is_not_text_is_shown_as_replacement_characters() {
        let mut head = Head::default();
        head.add(b"a\xffb");
        assert_eq!(head.into_output().text, "a\u{fffd}b");
    }
}
