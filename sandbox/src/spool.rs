//! The file that a live container's output is written to. The shim appends, the server reads;
//! what is in the file is the truth, and a message only says that it grew.
//!
//! ```text
//! record  = length: u32 | kind: u8 | zero: u8 | step: u16 | t_ms: u64 | payload: length bytes
//! kind    = 1 stdout | 2 stderr | 3 step started (name) | 4 step ended (StepOutcome)
//! ```
//!
//! Output of no bytes says that more of that stream was written and thrown away. Numbers are
//! little-endian. A record is appended with one write; a reader that finds less than
//! a whole record waits for the rest. Records are numbered from 1 in the order of the file.

use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::outcome::StepOutcome;
use crate::wire;

/// The most output bytes in one record.
pub const MAX_RECORD_BYTES: usize = 16 << 10;
/// The largest payload a reader accepts: an outcome with its detail is well below.
const MAX_PAYLOAD_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 16;

/// Which stream of a step output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// One record of the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Position in the file, from 1.
    pub number: u32,
    /// Milliseconds since the first step started.
    pub t_ms: u64,
    /// Index of the step in the spec.
    pub step: u16,
    /// What happened.
    pub entry: Entry,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The step wrote these bytes; at most [`MAX_RECORD_BYTES`]. None: it wrote more than is kept.
    Output(Stream, Vec<u8>),
    /// The step of this name was started.
    StepStarted(String),
    /// The step has ended.
    StepEnded(StepOutcome),
}

/// Appends records. Owned by the shim.
#[derive(Debug)]
pub(crate) struct SpoolWriter {
    file: OwnedFd,
    /// Bytes of whole records written so far.
    length: u64,
    buffer: Vec<u8>,
}

impl SpoolWriter {
    /// A writer that appends to `file`, which is empty.
    pub(crate) fn new(file: OwnedFd) -> Self {
        Self { file, length: 0, buffer: Vec::with_capacity(HEADER_BYTES + MAX_RECORD_BYTES) }
    }

    /// How many bytes of whole records the file has.
    pub(crate) const fn length(&self) -> u64 {
        self.length
    }

    /// Appends one record's output, as one write.
    pub(crate) fn output(
        &mut self,
        step: u16,
        t_ms: u64,
        stream: Stream,
        bytes: &[u8],
    ) -> io::Result<()> {
        let kind = match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        self.append(kind, step, t_ms, bytes)
    }

    /// Notes that bytes of this stream are thrown away.
    pub(crate) fn output_cut(&mut self, step: u16, t_ms: u64, stream: Stream) -> io::Result<()> {
        self.output(step, t_ms, stream, &[])
    }

    /// Notes that a step was started.
    pub(crate) fn step_started(&mut self, step: u16, t_ms: u64, name: &str) -> io::Result<()> {
        self.append(3, step, t_ms, name.as_bytes())
    }

    /// Notes that a step has ended.
    pub(crate) fn step_ended(&mut self, step: u16, t_ms: u64, end: &StepOutcome) -> io::Result<()> {
        self.append(4, step, t_ms, &wire::encode(end)?)
    }

    fn append(&mut self, kind: u8, step: u16, t_ms: u64, payload: &[u8]) -> io::Result<()> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(io::Error::new(ErrorKind::InvalidInput, "longer than a record may be"));
        }
        let length = u32::try_from(payload.len())
            .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        self.buffer.clear();
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(&[kind, 0]);
        self.buffer.extend_from_slice(&step.to_le_bytes());
        self.buffer.extend_from_slice(&t_ms.to_le_bytes());
        self.buffer.extend_from_slice(payload);
        let mut written = 0;
        while written < self.buffer.len() {
            // At an explicit offset: a record cut short by a full disk is overwritten by the next.
            let offset = self.length + written as u64;
            match rustix::io::pwrite(&self.file, &self.buffer[written..], offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.length += written as u64;
        Ok(())
    }
}

/// Reads records, also while they are being appended.
#[derive(Debug)]
pub struct SpoolReader<R> {
    source: R,
    buffer: Vec<u8>,
    /// Where in `buffer` the next record starts.
    start: usize,
    number: u32,
}

impl<R: Read> SpoolReader<R> {
    /// A reader from the start of the spool.
    pub const fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), start: 0, number: 0 }
    }

    /// The next record, or `None` if no further whole record is there yet. Later calls find what
    /// was appended meanwhile.
    ///
    /// # Errors
    /// `InvalidData` if this is not a spool; otherwise what reading the source answered.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        if !self.fill(HEADER_BYTES)? {
            return Ok(None);
        }
        let (length, kind, step, t_ms) = parse_header(&self.buffer[self.start..])?;
        let end = HEADER_BYTES + length;
        if !self.fill(end)? {
            return Ok(None);
        }
        let payload = &self.buffer[self.start + HEADER_BYTES..self.start + end];
        let entry = match kind {
            1 => Entry::Output(Stream::Stdout, payload.to_vec()),
            2 => Entry::Output(Stream::Stderr, payload.to_vec()),
            3 => Entry::StepStarted(String::from_utf8_lossy(payload).into_owned()),
            4 => Entry::StepEnded(wire::decode(payload)?),
            kind => return Err(invalid(&format!("record kind {kind}"))),
        };
        self.start += end;
        self.number += 1;
        Ok(Some(Record { number: self.number, t_ms, step, entry }))
    }

    /// Whether `bytes` bytes of the next record are in the buffer now.
    fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        const READ_BYTES: usize = 64 << 10;
        while self.buffer.len() - self.start < bytes {
            self.buffer.drain(..self.start);
            self.start = 0;
            let filled = self.buffer.len();
            self.buffer.resize(filled + READ_BYTES, 0);
            let got = self.source.read(&mut self.buffer[filled..]);
            self.buffer.truncate(filled + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Length, kind, step and time of the record that starts here.
fn parse_header(bytes: &[u8]) -> io::Result<(usize, u8, u16, u64)> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(invalid("a header cut short"));
    };
    let [l0, l1, l2, l3, kind, _, s0, s1, t_ms @ ..] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > MAX_PAYLOAD_BYTES {
        return Err(invalid(&format!("a record of {length} bytes")));
    }
    Ok((length, kind, u16::from_le_bytes([s0, s1]), u64::from_le_bytes(t_ms)))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not a spool: {what}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_reader_follows_the_writer_and_never_sees_half_a_record() {
        let file = tempfile::tempfile().expect("a file");
        let mut writer = SpoolWriter::new(file.as_fd().try_clone_to_owned().expect("a copy"));
        let mut reader = SpoolReader::new(ReadFromStart { file, offset: 0 });
        assert_eq!(reader.next_record().expect("readable"), None);
        writer.step_started(0, 0, "run").expect("written");
        writer.output(0, 7, Stream::Stderr, b"oh\n").expect("written");
        let first = reader.next_record().expect("readable").expect("a record");
        assert_eq!((first.number, first.entry), (1, Entry::StepStarted("run".into())));
        let second = reader.next_record().expect("readable").expect("a record");
        assert_eq!(second.entry, Entry::Output(Stream::Stderr, b"oh\n".to_vec()));
        assert_eq!((second.number, second.t_ms), (2, 7));
        assert_eq!(reader.next_record().expect("readable"), None);
        writer.output(0, 9, Stream::Stdout, &[b'x'; MAX_RECORD_BYTES]).expect("written");
        assert!(reader.next_record().expect("readable").is_some());
    }

    #[test]
    fn a_spool_cut_anywhere_yields_its_whole_records() {
        let file = tempfile::tempfile().expect("a file");
        let mut writer = SpoolWriter::new(file.as_fd().try_clone_to_owned().expect("a copy"));
        for step in 0..3 {
            writer.output(step, 1, Stream::Stdout, b"0123456789").expect("written");
        }
        let mut bytes = Vec::new();
        ReadFromStart { file, offset: 0 }.read_to_end(&mut bytes).expect("read");
        for cut in 0..=bytes.len() {
            let mut reader = SpoolReader::new(&bytes[..cut]);
            let mut whole = 0;
            while reader.next_record().expect("no error").is_some() {
                whole += 1;
            }
            assert_eq!(whole, cut / (HEADER_BYTES + 10));
        }
    }

    #[test]
    fn a_file_that_is_no_spool_is_said_to_be_none() {
        let error = SpoolReader::new(&[0xff; 64][..]).next_record().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    /// Reads by offset, as the server does: the writer's descriptor has a position of its own.
    struct ReadFromStart {
        file: std::fs::File,
        offset: u64,
    }

    impl Read for ReadFromStart {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let bytes = std::os::unix::fs::FileExt::read_at(&self.file, buffer, self.offset)?;
            self.offset += bytes as u64;
            Ok(bytes)
        }
    }
}
