//! Telling logs, from spools written by hand as a shim writes them.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use lazaret_sandbox::outcome::Verdict;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::follow::{CHUNK_QUEUE, Extent, Source, Wanted, tell};
use super::frame::{Format, StreamName};
use super::*;
use crate::holds::Held;
use crate::job::seq;
use crate::job::spec::sample;
use crate::job::{Inputs, JobEnd, State};
use crate::live::{Live, LiveJob};
use crate::store::{Entry, FinishedAttempt, NewJob};

/// A job that runs, and everything a follower needs.
struct Stage {
    _dir: tempfile::TempDir,
    source: Source,
    id: JobId,
    job: LiveJob,
    spool: File,
    tracker: TaskTracker,
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

impl Stage {
    async fn open() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let path = dir.path().join("lazaret.db");
        let store = crate::store::open(&path, &tracker, &stop).await.expect("opened");
        let files = LogFiles::open(dir.path()).expect("opened");
        let (id, live) = (JobId::generate(), Arc::new(Live::default()));
        let job = live.enter(id, (State::Running, 1), Held::default());
        let (spec, inputs) = (Arc::new(sample()), Arc::new(Inputs::default()));
        let entry = Entry::Claimed;
        let new = NewJob { id, spec, inputs, created_at: now(), entry, idempotency: None };
        store.insert(new).await.expect("stored");
        let spool = files.create_spool(id, 1).expect("made");
        Self { _dir: dir, source: Source { store, files, live, stop }, id, job, spool, tracker }
    }

    /// Appends output as a shim does, and says so.
    fn write(&mut self, kind: u8, bytes: &[u8]) {
        self.write_silently(kind, bytes);
        self.job.grew();
    }

    fn write_silently(&mut self, kind: u8, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("small");
        let mut record = length.to_le_bytes().to_vec();
        record.extend_from_slice(&[kind, 0, 0, 0]);
        record.extend_from_slice(&7_u64.to_le_bytes());
        record.extend_from_slice(bytes);
        self.spool.write_all(&record).expect("written");
    }

    /// Ends the job as the desk does.
    async fn finish(&mut self, attempt: u32) {
        let mut harvest = harvest::harvest(&self.source.files, self.id, attempt).expect("read");
        let end = JobEnd {
            verdict: Verdict::Success,
            steps: harvest.steps(Vec::new()),
            detail: None,
            last_seq: harvest.last_seq(attempt),
        };
        let log = harvest.log;
        let finished = FinishedAttempt { id: self.id, attempt, end, log, now: now() };
        self.source.store.finish(finished).await.expect("stored");
        self.source.live.leave(self.id, attempt);
        self.source.files.remove_spool(self.id, attempt).expect("removed");
    }

    fn wanted(&self, format: Format) -> Wanted {
        let extent = Extent::ToTheEnd;
        Wanted { id: self.id, after: 0, step: None, stream: None, extent, format }
    }

    fn follow(&self, wanted: Wanted) -> Told {
        let (chunks, receiver) = mpsc::channel(CHUNK_QUEUE);
        self.tracker.spawn(tell(self.source.clone(), wanted, chunks));
        Told { receiver, text: Vec::new() }
    }

    async fn told(&self, wanted: Wanted) -> String {
        self.follow(wanted).rest().await
    }
}

/// What a follower was told.
struct Told {
    receiver: mpsc::Receiver<io::Result<axum::body::Bytes>>,
    text: Vec<u8>,
}

impl Told {
    /// Reads until `text` has been told.
    async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.text).contains(text) {
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.receiver.recv()).await;
            self.text.extend(chunk.expect("in time").expect("not the end").expect("readable"));
        }
    }

    async fn rest(mut self) -> String {
        while let Some(chunk) = self.receiver.recv().await {
            self.text.extend(chunk.expect("readable"));
        }
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

fn ids(text: &str) -> Vec<u64> {
    let ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.map(|id| id.parse().expect("a number")).collect()
}

#[tokio::test]
async fn output_is_told_while_it_is_written_and_ends_with_the_verdict() {
    let mut stage = Stage::open().await;
    let mut told = stage.follow(stage.wanted(Format::EventStream));
    stage.write(3, b"run");
    told.until("event: step").await;
    stage.write(1, b"one\n");
    told.until("one\\n").await;
    stage.write(2, b"two\n");
    told.until("\"stream\":\"stderr\"").await;
    stage.finish(1).await;
    let text = told.rest().await;
    assert_eq!(ids(&text), [seq(1, 1), seq(1, 2), seq(1, 3), seq(1, 4)]);
    assert!(text.ends_with("\"verdict\":\"success\"}\n\n"), "{text}");
}

#[tokio::test]
async fn a_reader_that_comes_back_is_told_the_rest_and_nothing_twice() {
    let mut stage = Stage::open().await;
    for number in 0..5 {
        stage.write(1, format!("{number}\n").as_bytes());
    }
    let live = stage.follow(Wanted { after: seq(1, 2), ..stage.wanted(Format::EventStream) });
    stage.write(1, b"5\n");
    stage.finish(1).await;
    let live = ids(&live.rest().await);
    assert_eq!(live, (3..=7).map(|number| seq(1, number)).collect::<Vec<_>>());
    for after in 0..=6 {
        let wanted = Wanted { after: seq(1, after), ..stage.wanted(Format::EventStream) };
        let replayed = ids(&stage.told(wanted).await);
        assert_eq!(replayed, (after + 1..=7).map(|number| seq(1, number)).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn text_is_the_bytes_of_the_chosen_stream_and_nothing_else() {
    let mut stage = Stage::open().await;
    stage.write(3, b"run");
    stage.write(1, b"out\n");
    stage.write(2, b"err\n");
    stage.finish(1).await;
    assert_eq!(stage.told(stage.wanted(Format::Text)).await, "out\nerr\n");
    let stderr = Wanted { stream: Some(StreamName::Stderr), ..stage.wanted(Format::Text) };
    assert_eq!(stage.told(stderr).await, "err\n");
    let other = Wanted { step: Some(1), ..stage.wanted(Format::Text) };
    assert_eq!(stage.told(other).await, "");
}

#[tokio::test]
async fn who_does_not_follow_is_told_what_is_there() {
    let mut stage = Stage::open().await;
    stage.write(1, b"so far\n");
    let so_far = Wanted { extent: Extent::SoFar, ..stage.wanted(Format::JsonLines) };
    let text = stage.told(so_far).await;
    assert!(text.contains("so far") && !text.contains("\"end\""), "{text}");
}

#[tokio::test]
async fn a_long_log_is_kept_compressed_and_told_alike() {
    let mut stage = Stage::open().await;
    let line = [b'x'; 10_000];
    for _ in 0..100 {
        stage.write_silently(1, &line);
    }
    let before = stage.told(Wanted { extent: Extent::SoFar, ..stage.wanted(Format::Text) }).await;
    stage.finish(1).await;
    assert!(stage.source.store.log(stage.id, 1).await.expect("read").is_none(), "not a row");
    assert!(stage.source.files.is_kept(stage.id, 1));
    assert_eq!(stage.told(stage.wanted(Format::Text)).await, before);
    assert_eq!(before.len(), 1_000_000);
}

#[tokio::test]
async fn a_second_attempt_is_marked_and_both_are_told() {
    let mut stage = Stage::open().await;
    stage.write(1, b"first\n");
    let told = stage.follow(stage.wanted(Format::EventStream));
    let log = harvest::harvest(&stage.source.files, stage.id, 1).expect("read").log;
    stage.source.store.retry(stage.id, 1, log).await.expect("stored");
    stage.job.moved(State::Queued, 1);
    stage.source.files.remove_spool(stage.id, 1).expect("removed");
    stage.source.store.claim(stage.id, now()).await.expect("stored");
    stage.spool = stage.source.files.create_spool(stage.id, 2).expect("made");
    stage.job.moved(State::Running, 2);
    stage.write(1, b"second\n");
    stage.finish(2).await;
    let text = told.rest().await;
    assert_eq!(ids(&text), [seq(1, 1), seq(2, 0), seq(2, 1), seq(2, 2)], "{text}");
    assert!(text.contains("event: attempt\n"), "{text}");
    assert_eq!(stage.told(stage.wanted(Format::Text)).await, "first\nsecond\n");
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_nobody() {
    let mut stage = Stage::open().await;
    let slow = stage.follow(stage.wanted(Format::Text));
    for _ in 0..200 {
        stage.write(1, &[b'x'; 16_000]);
    }
    stage.finish(1).await;
    assert_eq!(slow.rest().await.len(), 200 * 16_000, "it reads the file later");
}

#[tokio::test]
async fn a_stop_ends_every_follower() {
    let stage = Stage::open().await;
    let told = stage.follow(stage.wanted(Format::EventStream));
    stage.source.stop.cancel();
    let told = tokio::time::timeout(Duration::from_secs(10), told.rest()).await;
    assert!(told.is_ok(), "ended");
}

#[tokio::test]
async fn that_output_was_cut_is_no_event_of_its_own() {
    let mut stage = Stage::open().await;
    stage.write(1, b"kept\n");
    stage.write(1, b"");
    stage.finish(1).await;
    let text = stage.told(stage.wanted(Format::EventStream)).await;
    assert_eq!(ids(&text), [seq(1, 1), seq(1, 3)]);
    assert_eq!(text.matches("event: output").count(), 1, "{text}");
}
