//! What a step writes: read from its pipes, cut into records, counted against its limit.
//!
//! A record is one read cut back to its last newline. What remains waits for more, but at most
//! [`PATIENCE`], so that a prompt without a newline appears too. A character is never cut in two,
//! unless nothing else is there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;

use crate::spool::{MAX_RECORD_BYTES, SpoolWriter, Stream};

/// How long bytes without a newline wait for more.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);
/// Reads of one stream before the other events get their turn.
const READS_PER_TURN: usize = 16;
/// The longest beginning of a UTF-8 character that is none yet.
const MAX_PARTIAL_CHARACTER_BYTES: usize = 3;

/// What both streams of a step wrote, and what of it is kept.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) stdout: Source,
    pub(super) stderr: Source,
    /// Bytes written, those thrown away included.
    pub(super) bytes: u64,
    /// Bytes that are kept.
    allowed: u64,
}

/// The reading end of one stream.
#[derive(Debug)]
pub(super) struct Source {
    pipe: Option<OwnedFd>,
    stream: Stream,
    pending: Vec<u8>,
    /// Whether the spool says that bytes of this stream were thrown away.
    is_cut: bool,
    /// When what is pending is written even without a newline.
    pub(super) flush_at: Option<Duration>,
}

/// Where records go: the spool, the step's index, and the time since the job started.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    pub(super) spool: &'a mut SpoolWriter,
    pub(super) step: u16,
    pub(super) t_ms: u64,
}

impl Output {
    /// Reads from these pipes, which do not block, and keeps `allowed` bytes.
    pub(super) const fn new(stdout: OwnedFd, stderr: OwnedFd, allowed: u64) -> Self {
        Self {
            stdout: Source::new(stdout, Stream::Stdout),
            stderr: Source::new(stderr, Stream::Stderr),
            bytes: 0,
            allowed,
        }
    }

    /// Whether more was written than is allowed.
    pub(super) const fn is_over(&self) -> bool {
        self.bytes > self.allowed
    }

    /// Reads what there is, up to a turn's worth; `now` is for what has to wait.
    pub(super) fn pump(&mut self, now: Duration, sink: &mut Sink<'_>) -> io::Result<()> {
        for source in [&mut self.stdout, &mut self.stderr] {
            for _ in 0..READS_PER_TURN {
                if source.read(&mut self.bytes, self.allowed, sink)? == Read::Nothing {
                    break;
                }
            }
            source.cut(now, sink)?;
        }
        Ok(())
    }

    /// Reads all that is left: the step is over, nobody writes any more.
    pub(super) fn drain(&mut self, sink: &mut Sink<'_>) -> io::Result<()> {
        for source in [&mut self.stdout, &mut self.stderr] {
            while source.read(&mut self.bytes, self.allowed, sink)? == Read::Something {}
            source.flush(sink)?;
            source.pipe = None;
        }
        Ok(())
    }

    /// Writes what has waited long enough.
    pub(super) fn flush_due(&mut self, now: Duration, sink: &mut Sink<'_>) -> io::Result<()> {
        for source in [&mut self.stdout, &mut self.stderr] {
            if source.flush_at.is_some_and(|at| at <= now) {
                source.flush(sink)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Read {
    Something,
    Nothing,
}

impl Source {
    const fn new(pipe: OwnedFd, stream: Stream) -> Self {
        Self { pipe: Some(pipe), stream, pending: Vec::new(), is_cut: false, flush_at: None }
    }

    /// The pipe, until its end was read.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// One read, counted in `total`; bytes beyond `allowed` are thrown away.
    fn read(&mut self, total: &mut u64, allowed: u64, sink: &mut Sink<'_>) -> io::Result<Read> {
        let Some(pipe) = &self.pipe else {
            return Ok(Read::Nothing);
        };
        let held = self.pending.len();
        self.pending.resize(MAX_RECORD_BYTES, 0);
        let got = rustix::io::read(pipe, &mut self.pending[held..]);
        let bytes = match got {
            Ok(bytes) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => {
                self.pending.truncate(held);
                return Ok(Read::Nothing);
            }
            Err(error) => return Err(error.into()),
        };
        let room = usize::try_from(allowed.saturating_sub(*total)).unwrap_or(usize::MAX);
        self.pending.truncate(held + bytes.min(room));
        *total += bytes as u64;
        if bytes > room && !self.is_cut {
            self.is_cut = true;
            self.flush(sink)?;
            sink.spool.output_cut(sink.step, sink.t_ms, self.stream)?;
        }
        if bytes == 0 {
            self.pipe = None;
            self.flush(sink)?;
            return Ok(Read::Nothing);
        }
        if self.pending.len() == MAX_RECORD_BYTES {
            let end =
                last_newline(&self.pending).unwrap_or_else(|| whole_characters(&self.pending));
            self.write(end, sink)?;
        }
        Ok(Read::Something)
    }

    /// Writes what ends with a newline; the rest starts to wait.
    fn cut(&mut self, now: Duration, sink: &mut Sink<'_>) -> io::Result<()> {
        if let Some(end) = last_newline(&self.pending) {
            self.write(end, sink)?;
        }
        if !self.pending.is_empty() && self.flush_at.is_none() {
            self.flush_at = Some(now + PATIENCE);
        }
        Ok(())
    }

    fn flush(&mut self, sink: &mut Sink<'_>) -> io::Result<()> {
        self.flush_at = None;
        match whole_characters(&self.pending) {
            0 => self.write(self.pending.len(), sink),
            end => self.write(end, sink),
        }
    }

    fn write(&mut self, end: usize, sink: &mut Sink<'_>) -> io::Result<()> {
        if end > 0 {
            self.flush_at = None;
            sink.spool.output(sink.step, sink.t_ms, self.stream, &self.pending[..end])?;
            self.pending.drain(..end);
        }
        Ok(())
    }
}

/// The length up to and with the last newline.
fn last_newline(bytes: &[u8]) -> Option<usize> {
    bytes.iter().rposition(|&byte| byte == b'\n').map(|at| at + 1)
}

/// The length without a character that has only begun at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=MAX_PARTIAL_CHARACTER_BYTES.min(bytes.len()) {
        let start = bytes.len() - back;
        let needed = match bytes[start] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            // In the middle of a character: its beginning is further back.
            0x80..=0xBF => continue,
            _ => return bytes.len(),
        };
        return if needed > back { start } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::spool::{Entry, SpoolReader};

    struct Fixture {
        output: Output,
        write: OwnedFd,
        _stderr: OwnedFd,
        spool: SpoolWriter,
        file: File,
    }

    fn fixture(allowed: u64) -> Fixture {
        use rustix::pipe::{PipeFlags, pipe_with};
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (read, write) = pipe_with(flags).expect("a pipe");
        let (read_err, stderr) = pipe_with(flags).expect("a pipe");
        let file = tempfile::tempfile().expect("a file");
        let spool = SpoolWriter::new(file.try_clone().expect("a copy").into());
        let output = Output::new(read, read_err, allowed);
        Fixture { output, write, _stderr: stderr, spool, file }
    }

    impl Fixture {
        fn write(&self, bytes: &[u8]) {
            assert_eq!(rustix::io::write(&self.write, bytes).expect("written"), bytes.len());
        }

        fn at(&mut self, now_ms: u64, act: impl FnOnce(&mut Output, Duration, &mut Sink<'_>)) {
            let mut sink = Sink { spool: &mut self.spool, step: 0, t_ms: now_ms };
            act(&mut self.output, Duration::from_millis(now_ms), &mut sink);
        }

        fn pump(&mut self, now_ms: u64) {
            self.at(now_ms, |output, now, sink| output.pump(now, sink).expect("pumped"));
        }

        fn records(&self) -> Vec<Vec<u8>> {
            use std::os::unix::fs::FileExt;
            let mut bytes = vec![0; usize::try_from(self.spool.length()).expect("small")];
            self.file.read_exact_at(&mut bytes, 0).expect("read");
            let mut reader = SpoolReader::new(bytes.as_slice());
            std::iter::from_fn(|| reader.next_record().expect("a spool"))
                .filter_map(|record| match record.entry {
                    Entry::Output(_, bytes) => Some(bytes),
                    Entry::StepStarted(_) | Entry::StepEnded(_) => None,
                })
                .collect()
        }
    }

    #[test]
    fn a_record_ends_with_its_last_newline_and_the_rest_waits() {
        let mut f = fixture(1000);
        f.write(b"one\ntwo\nthr");
        f.pump(0);
        assert_eq!(f.records(), [b"one\ntwo\n"]);
        f.at(49, |output, now, sink| output.flush_due(now, sink).expect("flushed"));
        assert_eq!(f.records().len(), 1);
        f.at(50, |output, now, sink| output.flush_due(now, sink).expect("flushed"));
        assert_eq!(f.records()[1], b"thr");
    }

    #[test]
    fn a_character_is_never_cut_in_two() {
        let mut f = fixture(100_000);
        let line = "é".repeat(MAX_RECORD_BYTES / 2) + "x";
        f.write(b"y");
        f.write(line.as_bytes());
        f.pump(0);
        f.at(1, |output, _, sink| output.drain(sink).expect("drained"));
        let records = f.records();
        assert!(records.iter().all(|record| std::str::from_utf8(record).is_ok()));
        assert_eq!(records.concat(), [b"y", line.as_bytes()].concat());
    }

    #[test]
    fn bytes_that_are_no_text_are_written_all_the_same() {
        let mut f = fixture(100_000);
        f.write(&[0xF0, 0x9F]);
        f.pump(0);
        f.at(50, |output, now, sink| output.flush_due(now, sink).expect("flushed"));
        assert_eq!(f.records(), [[0xF0, 0x9F]]);
    }

    #[test]
    fn output_at_the_limit_is_kept_and_beyond_it_is_counted() {
        let mut f = fixture(10);
        f.write(b"0123456789");
        f.pump(0);
        assert!(!f.output.is_over());
        f.write(b"abc");
        f.pump(1);
        f.at(2, |output, _, sink| output.drain(sink).expect("drained"));
        assert!(f.output.is_over());
        assert_eq!(f.output.bytes, 13);
        assert_eq!(f.records(), [&b"0123456789"[..], b""], "and that there was more is told once");
    }

    #[test]
    fn whole_characters_ends_before_what_has_only_begun() {
        assert_eq!(whole_characters("aé".as_bytes()), 3);
        assert_eq!(whole_characters(&"aé".as_bytes()[..2]), 1);
        assert_eq!(whole_characters(&"😀".as_bytes()[..3]), 0);
        assert_eq!(whole_characters(b"\xff\xff"), 2);
        assert_eq!(whole_characters(b"\x80\x80\x80\x80"), 4);
        assert_eq!(whole_characters(b""), 0);
    }
}
