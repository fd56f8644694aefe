//! One text of SQL for each transition; its `where` names the state it leaves.
//!
//! A change that is one statement is its own transaction. One that needs several sends them as one
//! text, with the transaction around them if it is alone in it: each statement by itself would cost
//! a switch to the connection's thread and back, and those were once more than half of what the
//! server spent on a job.
//!
//! Parameters are written `$1`, not `?1`: SQLite numbers the latter with gaps where a statement
//! uses only some of them, and sqlx fills gaps with the wrong values.

use jiff::Timestamp;
use lazaret_sandbox::image::ImageName;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection};

use super::{Change, Effect, Entry, FinishedAttempt, KeptLog, NewJob, StoreError, query, row};
use crate::job::{JobEnd, JobId};

/// Whether a change brings its transaction along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is a transaction by itself.
    Alone,
    /// It runs inside an open transaction.
    InBatch,
}

/// Makes one change. If it fails a transaction may be left open.
pub(super) async fn apply(
    connection: &mut SqliteConnection,
    place: Place,
    change: &Change,
) -> Result<Effect, StoreError> {
    match change {
        Change::Insert(job) => insert(connection, place, job).await,
        Change::Claim { id, now } => claim(connection, place, *id, *now).await,
        Change::Finish(attempt) => finish(connection, place, attempt).await,
        Change::FinishQueued { id, end, now } => {
            finish_queued(connection, place, (*id, *now), end).await
        }
        Change::RequestCancel { id } => request_cancel(connection, place, *id).await,
        Change::SetCommit { id, name } => set_commit(connection, place, *id, name).await,
        Change::Retry { id, attempt, log } => retry(connection, place, (*id, *attempt), log).await,
        Change::Delete { id } => delete(connection, place, *id).await,
        Change::ForgetKeys { before } => forget_keys(connection, place, *before).await,
    }
}

type Statements = Query<'static, Sqlite, SqliteArguments>;

/// The statements as one text. The one that moves the job says `returning`.
fn statements(place: Place, parts: &[&'static str]) -> Statements {
    match (place, parts) {
        (Place::InBatch, _) | (Place::Alone, [_]) => sqlx::query(AssertSqlSafe(parts.join("; "))),
        (Place::Alone, _) => {
            sqlx::query(AssertSqlSafe(format!("begin immediate; {}; commit", parts.join("; "))))
        }
    }
}

/// Runs them all. They say by a row that they moved something.
async fn run(
    connection: &mut SqliteConnection,
    statements: Statements,
) -> Result<Effect, StoreError> {
    let moved = row_of(connection, statements).await?;
    Ok(if moved.is_some() { Effect::Done } else { Effect::WrongState })
}

/// Runs them all, and answers with the row of what they moved.
async fn row_of(
    connection: &mut SqliteConnection,
    statements: Statements,
) -> Result<Option<SqliteRow>, StoreError> {
    // All rows, not the first: who stops at the first never comes to `commit`.
    Ok(statements.fetch_all(connection).await?.pop())
}

async fn insert(
    connection: &mut SqliteConnection,
    place: Place,
    job: &NewJob,
) -> Result<Effect, StoreError> {
    // Before the transaction, but nobody else writes in between.
    if let Some(key) = &job.idempotency
        && let Some(effect) = query::job_of_key(&mut *connection, key).await?
    {
        return Ok(effect);
    }
    let inputs = (!job.inputs.is_empty()).then(|| row::inputs_bytes(&job.inputs)).transpose()?;
    let key = job.idempotency.as_ref();
    let mut parts = vec![
        "insert into jobs (id, state, attempt, version, created_at, started_at, spec) \
         values ($1, $2, $3, 1, $4, $5, $6) returning 1",
    ];
    if !job.spec.labels.is_empty() {
        parts.push(
            "insert into job_labels (key, value, job_id) select key, value, $1 from json_each($7)",
        );
    }
    if inputs.is_some() {
        parts.push("insert into job_inputs (job_id, content) values ($1, $8)");
    }
    if key.is_some() {
        parts.push(
            "insert into idempotency_keys (key, fingerprint, job_id, created_at) \
             values ($9, $10, $1, $4)",
        );
    }
    let created_at = job.created_at.as_microsecond();
    let (state, attempt, started_at) = match job.entry {
        Entry::Queued => ("queued", 0, None),
        Entry::Claimed => ("running", 1, Some(created_at)),
    };
    let statements = statements(place, &parts)
        .bind(bytes(job.id))
        .bind(state)
        .bind(attempt)
        .bind(created_at)
        .bind(started_at)
        .bind(row::spec_text(&job.spec)?)
        .bind(row::labels_text(&job.spec)?)
        .bind(inputs)
        .bind(key.map(|key| key.key.clone()))
        .bind(key.map(|key| key.fingerprint.to_vec()));
    run(connection, statements).await
}

async fn claim(
    connection: &mut SqliteConnection,
    place: Place,
    id: JobId,
    now: Timestamp,
) -> Result<Effect, StoreError> {
    let text = "update jobs set state = 'running', attempt = attempt + 1, started_at = $2, \
         version = version + 1 where id = $1 and state = 'queued' returning 1";
    let statements = statements(place, &[text]).bind(bytes(id)).bind(now.as_microsecond());
    run(connection, statements).await
}

async fn finish(
    connection: &mut SqliteConnection,
    place: Place,
    attempt: &FinishedAttempt,
) -> Result<Effect, StoreError> {
    let text = concat!(
        "update jobs set state = 'finished', verdict = $3, outcome = $4, finished_at = $5, \
         log = $6, version = version + 1 \
         where id = $1 and state = 'running' and attempt = $2 returning ",
        row::job_columns!()
    );
    let statements = statements(place, &[text])
        .bind(bytes(attempt.id))
        .bind(attempt.attempt)
        .bind(attempt.end.verdict.as_str())
        .bind(row::end_text(&attempt.end)?)
        .bind(attempt.now.as_microsecond())
        .bind(content(&attempt.log));
    match row_of(connection, statements).await? {
        Some(finished) => Ok(Effect::Finished(Box::new(row::job(&finished)?))),
        None => Ok(Effect::WrongState),
    }
}

async fn finish_queued(
    connection: &mut SqliteConnection,
    place: Place,
    (id, now): (JobId, Timestamp),
    end: &JobEnd,
) -> Result<Effect, StoreError> {
    let text = "update jobs set state = 'finished', verdict = $2, outcome = $3, finished_at = $4, \
         version = version + 1 where id = $1 and state = 'queued' returning 1";
    let statements = statements(place, &[text])
        .bind(bytes(id))
        .bind(end.verdict.as_str())
        .bind(row::end_text(end)?)
        .bind(now.as_microsecond());
    run(connection, statements).await
}

async fn request_cancel(
    connection: &mut SqliteConnection,
    place: Place,
    id: JobId,
) -> Result<Effect, StoreError> {
    let text = "update jobs set cancel_requested = 1, version = version + 1 \
         where id = $1 and state = 'running' returning 1";
    run(connection, statements(place, &[text]).bind(bytes(id))).await
}

async fn set_commit(
    connection: &mut SqliteConnection,
    place: Place,
    id: JobId,
    name: &ImageName,
) -> Result<Effect, StoreError> {
    let text = "update jobs set spec = json_set(spec, '$.commit', $2), version = version + 1 \
         where id = $1 and state <> 'finished' and cancel_requested = 0 returning 1";
    run(connection, statements(place, &[text]).bind(bytes(id)).bind(name.to_string())).await
}

async fn retry(
    connection: &mut SqliteConnection,
    place: Place,
    (id, attempt): (JobId, u32),
    log: &KeptLog,
) -> Result<Effect, StoreError> {
    let keep_log = "insert into attempt_logs (job_id, attempt, content) \
         select id, attempt, $3 from jobs where id = $1 and state = 'running' \
         and attempt = $2 and cancel_requested = 0 and $3 is not null";
    let requeue = "update jobs set state = 'queued', started_at = null, version = version + 1 \
         where id = $1 and state = 'running' and attempt = $2 and cancel_requested = 0 \
         returning 1";
    let statements =
        statements(place, &[keep_log, requeue]).bind(bytes(id)).bind(attempt).bind(content(log));
    run(connection, statements).await
}

async fn delete(
    connection: &mut SqliteConnection,
    place: Place,
    id: JobId,
) -> Result<Effect, StoreError> {
    let text = "delete from jobs where id = $1 and state = 'finished' returning 1";
    run(connection, statements(place, &[text]).bind(bytes(id))).await
}

async fn forget_keys(
    connection: &mut SqliteConnection,
    place: Place,
    before: Timestamp,
) -> Result<Effect, StoreError> {
    let text = "delete from idempotency_keys where created_at < $1";
    run(connection, statements(place, &[text]).bind(before.as_microsecond())).await?;
    Ok(Effect::Done)
}

fn bytes(id: JobId) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// What of a log belongs into the store.
fn content(log: &KeptLog) -> Option<Vec<u8>> {
    match log {
        KeptLog::Row(content) => Some(content.clone()),
        KeptLog::File | KeptLog::Spool | KeptLog::Nothing => None,
    }
}
