//! The store against its interface, so that a second engine can be held to the same.

use std::path::Path;

use jiff::Timestamp;
use lazaret_sandbox::outcome::Verdict;
use serde_bytes::ByteBuf;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::job::State;
use crate::job::spec::sample;

struct Opened {
    store: Store,
    tracker: TaskTracker,
    stop: CancellationToken,
}

async fn open_at(dir: &Path) -> Opened {
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let store = open(&dir.join("lazaret.db"), &tracker, &stop).await.expect("opened");
    Opened { store, tracker, stop }
}

impl Opened {
    async fn close(self) {
        drop(self.store);
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[tokio::test]
async fn the_database_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    for file in ["lazaret.db", "lazaret.db-wal"] {
        let mode = std::fs::metadata(dir.path().join(file)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    opened.close().await;
}

fn now() -> Timestamp {
    Timestamp::from_microsecond(1_700_000_000_000_000).expect("a time")
}

fn new_job(labels: &[(&str, &str)]) -> NewJob {
    let mut spec = sample();
    spec.labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    NewJob {
        id: JobId::generate(),
        spec: Arc::new(spec),
        inputs: Arc::new(Inputs { files: Vec::new(), stdin: vec![ByteBuf::from(b"1 2\n")] }),
        created_at: now(),
        entry: Entry::Queued,
        idempotency: None,
    }
}

fn end(verdict: Verdict) -> JobEnd {
    JobEnd::without_steps(verdict, None, 7)
}

fn finished(id: JobId, attempt: u32) -> FinishedAttempt {
    let log = KeptLog::Row(b"what it wrote".to_vec());
    FinishedAttempt { id, attempt, end: end(Verdict::Success), log, now: now() }
}

#[tokio::test]
async fn a_job_comes_back_as_it_was_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let new = new_job(&[("contest", "7")]);
    assert_eq!(opened.store.insert(new.clone()).await.expect("stored"), Effect::Done);
    let job = opened.store.job(new.id).await.expect("read").expect("there");
    assert_eq!((job.state, job.attempt, job.version), (State::Queued, 0, 1));
    assert_eq!((&job.spec, job.created_at), (&*new.spec, now()));
    assert_eq!(opened.store.inputs(new.id).await.expect("read"), *new.inputs);
    assert!(opened.store.job(JobId::generate()).await.expect("read").is_none());
    opened.close().await;
}

#[tokio::test]
async fn a_job_runs_through_its_states_and_forgets_its_inputs() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let (store, new) = (&opened.store, new_job(&[]));
    let id = new.id;
    store.insert(new).await.expect("stored");
    assert_eq!(store.claim(id, now()).await.expect("written"), Effect::Done);
    let told = store.finish(finished(id, 1)).await.expect("written");
    let job = store.job(id).await.expect("read").expect("there");
    assert_eq!(told, Effect::Finished(Box::new(job.clone())));
    assert_eq!((job.state, job.attempt, job.version), (State::Finished, 1, 3));
    assert_eq!(job.end, Some(end(Verdict::Success)));
    assert!(store.inputs(id).await.expect("read").is_empty());
    assert_eq!(store.log(id, 1).await.expect("read").expect("kept"), b"what it wrote");
    opened.close().await;
}

#[tokio::test]
async fn a_change_comes_after_an_insert_that_was_begun_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let new = NewJob { entry: Entry::Claimed, ..new_job(&[("contest", "7")]) };
    let id = new.id;
    let begun = opened.store.begin_insert(new).await.expect("begun");
    let told = opened.store.finish(finished(id, 1)).await.expect("written");
    assert!(matches!(told, Effect::Finished(_)), "{told:?}");
    assert_eq!(begun.done().await.expect("stored"), Effect::Done);
    assert!(opened.store.inputs(id).await.expect("read").is_empty());
    opened.close().await;
}

#[tokio::test]
async fn a_transition_out_of_another_state_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let (store, new) = (&opened.store, new_job(&[]));
    let id = new.id;
    store.insert(new).await.expect("stored");
    let wrong = Effect::WrongState;
    assert_eq!(store.finish(finished(id, 1)).await.expect("written"), wrong);
    assert_eq!(store.delete(id).await.expect("written"), wrong);
    assert_eq!(store.request_cancel(id).await.expect("written"), wrong);
    assert_eq!(store.retry(id, 0, KeptLog::Nothing).await.expect("written"), wrong);
    store.claim(id, now()).await.expect("written");
    assert_eq!(store.claim(id, now()).await.expect("written"), wrong);
    let cancelled = store.finish_queued(id, end(Verdict::Cancelled), now());
    assert_eq!(cancelled.await.expect("written"), wrong);
    assert_eq!(store.finish(finished(id, 2)).await.expect("written"), wrong, "another attempt");
    store.finish(finished(id, 1)).await.expect("written");
    assert_eq!(store.finish(finished(id, 1)).await.expect("written"), wrong, "a second verdict");
    let job = store.job(id).await.expect("read").expect("there");
    assert_eq!(job.version, 3, "what changed nothing left no trace");
    opened.close().await;
}

#[tokio::test]
async fn a_cancelled_job_is_not_retried() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let (store, new) = (&opened.store, new_job(&[]));
    let id = new.id;
    store.insert(NewJob { entry: Entry::Claimed, ..new }).await.expect("stored");
    assert_eq!(store.request_cancel(id).await.expect("written"), Effect::Done);
    let retried = store.retry(id, 1, KeptLog::Nothing).await.expect("written");
    assert_eq!(retried, Effect::WrongState);
    opened.close().await;
}

#[tokio::test]
async fn a_retried_job_waits_again_and_keeps_the_log_of_its_first_attempt() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let (store, new) = (&opened.store, new_job(&[]));
    let id = new.id;
    store.insert(NewJob { entry: Entry::Claimed, ..new }).await.expect("stored");
    let log = KeptLog::Row(b"first".to_vec());
    assert_eq!(store.retry(id, 1, log).await.expect("written"), Effect::Done);
    store.claim(id, now()).await.expect("written");
    let job = store.job(id).await.expect("read").expect("there");
    assert_eq!((job.state, job.attempt), (State::Running, 2));
    assert_eq!(store.log(id, 1).await.expect("read").expect("kept"), b"first");
    opened.close().await;
}

#[tokio::test]
async fn every_change_of_a_batch_gets_its_own_answer() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let jobs: Vec<NewJob> = (0..100).map(|_| new_job(&[])).collect();
    let twice = jobs.iter().chain(&jobs[..50]);
    let mut inserts = tokio::task::JoinSet::new();
    for job in twice.cloned() {
        let store = opened.store.clone();
        inserts.spawn(async move { store.insert(job).await });
    }
    let answers = inserts.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 100);
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 50);
    for job in &jobs {
        assert!(opened.store.job(job.id).await.expect("read").is_some(), "one failure spoils none");
    }
    opened.close().await;
}

#[tokio::test]
async fn what_was_promised_is_there_after_a_crash_and_what_was_not_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let (promised, torn) = (new_job(&[]), new_job(&[]));
    opened.store.insert(promised.clone()).await.expect("stored");
    // The database as a power cut in the middle of the next transaction leaves it.
    let mut raw = raw_connection(&dir.path().join("lazaret.db")).await;
    sqlx::query("begin immediate").execute(&mut raw).await.expect("begun");
    let insert = Change::Insert(Box::new(torn.clone()));
    change::apply(&mut raw, change::Place::InBatch, &insert).await.expect("applied");
    let copy = tempfile::tempdir().expect("a directory");
    for name in ["lazaret.db", "lazaret.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).expect("copied");
    }
    let after = open_at(copy.path()).await;
    assert!(after.store.job(promised.id).await.expect("read").is_some());
    assert!(after.store.job(torn.id).await.expect("read").is_none());
    after.close().await;
}

async fn raw_connection(path: &Path) -> sqlx::SqliteConnection {
    use sqlx::ConnectOptions as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    options.connect().await.expect("connected")
}

#[tokio::test]
async fn a_list_is_newest_first_filtered_and_pages_without_gap_or_repeat() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let store = &opened.store;
    let mut ids = Vec::new();
    for number in 0..7 {
        let new = new_job(if number % 2 == 0 { &[("kind", "even")] } else { &[] });
        ids.push(new.id);
        store.insert(new).await.expect("stored");
    }
    ids.reverse();
    let first = store.list(&Filter { limit: 4, ..Filter::default() }).await.expect("read");
    let before = first.last().map(|job| job.id);
    let rest = Filter { limit: 4, before, ..Filter::default() };
    let rest = store.list(&rest).await.expect("read");
    let listed: Vec<JobId> = first.iter().chain(&rest).map(|job| job.id).collect();
    assert_eq!(listed, ids);
    let labels = vec![("kind".to_owned(), "even".to_owned())];
    let even = store.list(&Filter { labels, limit: 9, ..Filter::default() }).await.expect("read");
    assert_eq!(even.len(), 4);
    store.claim(ids[0], now()).await.expect("written");
    let state = Some(State::Running);
    let running = store.list(&Filter { state, limit: 9, ..Filter::default() }).await.expect("read");
    assert_eq!(running.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[0]]);
    assert_eq!(store.unfinished().await.expect("read").len(), 7);
    opened.close().await;
}

#[tokio::test]
async fn an_idempotency_key_makes_one_job_of_many_requests() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let store = &opened.store;
    let key = IdempotencyKey { key: "k".into(), fingerprint: [1; 32] };
    let first = NewJob { idempotency: Some(key.clone()), ..new_job(&[]) };
    store.insert(first.clone()).await.expect("stored");
    let again = NewJob { idempotency: Some(key.clone()), ..new_job(&[]) };
    assert_eq!(store.insert(again.clone()).await.expect("stored"), Effect::Replayed(first.id));
    assert!(store.job(again.id).await.expect("read").is_none());
    let other = IdempotencyKey { fingerprint: [2; 32], ..key };
    let other = NewJob { idempotency: Some(other), ..new_job(&[]) };
    assert_eq!(store.insert(other.clone()).await.expect("stored"), Effect::KeyReused);
    store.forget_keys(Timestamp::MAX).await.expect("written");
    assert_eq!(store.insert(other).await.expect("stored"), Effect::Done);
    opened.close().await;
}

#[tokio::test]
async fn a_deleted_job_leaves_no_row_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let (store, new) = (&opened.store, new_job(&[("a", "b")]));
    let id = new.id;
    store.insert(NewJob { entry: Entry::Claimed, ..new }).await.expect("stored");
    store.finish(finished(id, 1)).await.expect("written");
    assert_eq!(store.delete(id).await.expect("written"), Effect::Done);
    assert!(store.job(id).await.expect("read").is_none());
    assert!(store.log(id, 1).await.expect("read").is_none());
    let labels = vec![("a".to_owned(), "b".to_owned())];
    let listed = store.list(&Filter { labels, limit: 9, ..Filter::default() }).await;
    assert!(listed.expect("read").is_empty());
    opened.close().await;
}

#[tokio::test]
async fn a_change_that_fails_alone_is_undone_and_the_next_one_works() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_at(dir.path()).await;
    let (store, first) = (&opened.store, new_job(&[]));
    store.insert(first.clone()).await.expect("stored");
    assert!(store.insert(first).await.is_err(), "the same id twice");
    let next = new_job(&[("a", "b")]);
    assert_eq!(store.insert(next.clone()).await.expect("stored"), Effect::Done);
    assert!(store.job(next.id).await.expect("read").is_some());
    opened.close().await;
}

#[test]
fn a_store_whose_writer_has_ended_is_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let ended = runtime();
    // Its tasks end with it, wherever they are.
    let store = ended.block_on(open_at(dir.path())).store;
    drop(ended);
    let claimed = runtime().block_on(store.claim(JobId::generate(), now()));
    assert!(matches!(claimed, Err(StoreError::Closed)), "{claimed:?}");
}
