//! Telling a log: history and live tail are the same loop over the same file.
//!
//! The wake is registered before the file is read, so nothing written in between is missed. What a
//! follower holds in memory is one batch and a short channel; a slow one reads the file later.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use lazaret_sandbox::spool::{Entry, Record};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::frame::{Format, Frame, StreamName};
use super::{AttemptReader, LogError, LogFiles};
use crate::job::{JobId, State, seq};
use crate::live::{Live, Progress};
use crate::store::Store;

/// Bytes told at one time.
const BATCH_BYTES: usize = 64 << 10;
/// Batches that wait for a slow reader.
pub const CHUNK_QUEUE: usize = 2;
/// How often a silent event stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a follower is told from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The jobs.
    pub store: Store,
    /// Their logs.
    pub files: LogFiles,
    /// What wakes.
    pub live: Arc<Live>,
    /// Ends every follower when the server stops.
    pub stop: CancellationToken,
}

/// What a follower wants to be told.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Of which job.
    pub id: JobId,
    /// Only what is after this position.
    pub after: u64,
    /// Only output and events of this step.
    pub step: Option<u16>,
    /// Only output of this stream.
    pub stream: Option<StreamName>,
    /// Up to what is there, or up to the end of the job.
    pub extent: Extent,
    /// In which form.
    pub format: Format,
}

/// How far a log is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What is there now.
    SoFar,
    /// Until the job has finished.
    ToTheEnd,
}

/// Where told bytes go. Full, it makes the follower wait; closed, it ends it.
pub type Chunks = mpsc::Sender<io::Result<Bytes>>;

/// Why telling ended early.
enum Stopped {
    /// The reader has left, or the server stops.
    Left,
    /// The log could not be read.
    Failed(LogError),
}

impl<E: Into<LogError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Whether anything more may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    Changed,
    NothingMore,
}

/// Tells the log to `chunks` until its end, or until the reader has left.
pub async fn tell(source: Source, wanted: Wanted, chunks: Chunks) {
    let (id, failed) = (wanted.id, chunks.clone());
    let mut follower = Follower { source, wanted, chunks, out: Vec::new() };
    if let Err(Stopped::Failed(error)) = follower.tell().await {
        tracing::error!(job.id = %id, %error, "could not tell a log to its end");
        // An error in the body cuts the connection, so that nobody takes this for the end.
        drop(failed.send(Err(io::Error::other(error))).await);
    }
}

struct Follower {
    source: Source,
    wanted: Wanted,
    chunks: Chunks,
    /// What is written and not yet sent.
    out: Vec<u8>,
}

impl Follower {
    async fn tell(&mut self) -> Result<(), Stopped> {
        let mut attempt = 1;
        loop {
            let mut wake = self.source.live.get(self.wanted.id).map(|job| job.subscribe());
            let Some(job) = self.source.store.job(self.wanted.id).await.map_err(LogError::from)?
            else {
                return Ok(());
            };
            if attempt <= job.attempt {
                self.tell_attempt(attempt, job.state, wake).await?;
                attempt += 1;
                continue;
            }
            if let Some(end) = &job.end {
                let verdict = end.verdict.as_str().into();
                self.write(&Frame::End { seq: end.last_seq, verdict })?;
                return self.flush().await;
            }
            if self.wanted.extent == Extent::ToTheEnd {
                self.write(&Frame::State { state: job.state })?;
            }
            self.flush().await?;
            if self.wait(&mut wake).await? == Wake::NothingMore {
                return Ok(());
            }
        }
    }

    async fn tell_attempt(
        &mut self,
        attempt: u32,
        state: State,
        mut wake: Option<watch::Receiver<Progress>>,
    ) -> Result<(), Stopped> {
        if attempt > 1 {
            self.write(&Frame::Attempt { seq: seq(attempt, 0), attempt })?;
        } else if state == State::Running && self.wanted.extent == Extent::ToTheEnd {
            self.write(&Frame::State { state })?;
        }
        let mut reader = None;
        loop {
            // Before the read: what is written after it is told by another turn of this loop.
            let is_over = wake
                .as_mut()
                .is_none_or(|progress| is_over(&progress.borrow_and_update(), attempt));
            if reader.is_none() {
                let Source { files, store, .. } = &self.source;
                reader = files.attempt(store, self.wanted.id, attempt).await?;
            }
            let has_more = match reader.take() {
                Some(open) => {
                    let (open, records) = read_batch(open, attempt, self.wanted.after).await?;
                    reader = Some(open);
                    self.write_records(attempt, &records)?;
                    !records.is_empty()
                }
                None => false,
            };
            self.flush().await?;
            if has_more {
                continue;
            }
            if is_over || self.wait(&mut wake).await? == Wake::NothingMore {
                return Ok(());
            }
        }
    }

    fn write_records(&mut self, attempt: u32, records: &[Record]) -> Result<(), Stopped> {
        for record in records {
            if self.wanted.step.is_some_and(|step| step != record.step) {
                continue;
            }
            if let Entry::Output(stream, bytes) = &record.entry {
                let is_unwanted = self.wanted.stream.is_some_and(|only| only != (*stream).into());
                // Output of no bytes only tells the shown start of the stream that it was cut.
                if is_unwanted || bytes.is_empty() {
                    continue;
                }
                if self.wanted.format == Format::Text {
                    self.out.extend_from_slice(bytes);
                    continue;
                }
            }
            self.write(&Frame::of_record(attempt, record.clone()))?;
        }
        Ok(())
    }

    /// Writes a frame, unless the reader has it already.
    fn write(&mut self, frame: &Frame) -> Result<(), Stopped> {
        if frame.position().is_none_or(|seq| seq > self.wanted.after) {
            frame.write(self.wanted.format, &mut self.out).map_err(io::Error::from)?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Stopped> {
        if self.out.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.out));
        tokio::select! {
            // What there is room for is told, even at the end: it may be the end of the job.
            biased;
            sent = self.chunks.send(Ok(chunk)) => sent.map_err(|_left| Stopped::Left),
            () = self.source.stop.cancelled() => Err(Stopped::Left),
        }
    }

    /// Waits for a change of the job, saying now and then that the stream is alive.
    async fn wait(
        &mut self,
        wake: &mut Option<watch::Receiver<Progress>>,
    ) -> Result<Wake, Stopped> {
        let (Some(wake), Extent::ToTheEnd) = (wake.as_mut(), self.wanted.extent) else {
            return Ok(Wake::NothingMore);
        };
        loop {
            tokio::select! {
                // A change counts more than the end of the server: it may be the end of the job.
                biased;
                // An error says that the job has left: what it last said is still to be read.
                _ = wake.changed() => return Ok(Wake::Changed),
                () = self.chunks.closed() => return Err(Stopped::Left),
                () = self.source.stop.cancelled() => return Err(Stopped::Left),
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    if self.wanted.format == Format::EventStream {
                        self.out.extend_from_slice(b": alive\n\n");
                    }
                }
            }
            self.flush().await?;
        }
    }
}

/// Whether nothing more is written to the spool of this attempt.
fn is_over(progress: &Progress, attempt: u32) -> bool {
    match progress.state {
        State::Finished => true,
        State::Queued => progress.attempt >= attempt,
        State::Running => progress.attempt > attempt,
    }
}

/// Reads the next records after the position, as many as are told at one time.
async fn read_batch(
    mut reader: AttemptReader,
    attempt: u32,
    after: u64,
) -> Result<(AttemptReader, Vec<Record>), LogError> {
    let read = move || {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(record) = reader.next_record()?
        {
            if seq(attempt, record.number) <= after {
                continue;
            }
            bytes += RECORD_COST + output_bytes(&record);
            records.push(record);
        }
        Ok((reader, records))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// What a record costs beside its output.
const RECORD_COST: usize = 128;

const fn output_bytes(record: &Record) -> usize {
    match &record.entry {
        Entry::Output(_, bytes) => bytes.len(),
        Entry::StepStarted(_) | Entry::StepEnded(_) => 0,
    }
}
