//! One statement for each transition; its `where` names the state it leaves.

use jiff::Timestamp;
use sqlx::{Row as _, SqliteConnection};

use super::{
    Change, Effect, Entry, FinishedAttempt, IdempotencyKey, KeptLog, NewJob, StoreError, row,
};
use crate::job::{JobEnd, JobId};

/// Makes one change inside the open transaction.
pub(super) async fn apply(
    connection: &mut SqliteConnection,
    change: &Change,
) -> Result<Effect, StoreError> {
    match change {
        Change::Insert(job) => insert(connection, job).await,
        Change::Claim { id, now } => claim(connection, *id, *now).await,
        Change::Finish(attempt) => finish(connection, attempt).await,
        Change::FinishQueued { id, end, now } => finish_queued(connection, *id, end, *now).await,
        Change::RequestCancel { id } => request_cancel(connection, *id).await,
        Change::Retry { id, attempt, log } => retry(connection, *id, *attempt, log).await,
        Change::Delete { id } => delete(connection, *id).await,
        Change::ForgetKeys { before } => forget_keys(connection, *before).await,
    }
}

async fn insert(connection: &mut SqliteConnection, job: &NewJob) -> Result<Effect, StoreError> {
    if let Some(key) = &job.idempotency
        && let Some(effect) = job_of_key(connection, key).await?
    {
        return Ok(effect);
    }
    let created_at = job.created_at.as_microsecond();
    let (state, attempt, started_at) = match job.entry {
        Entry::Queued => ("queued", 0, None),
        Entry::Claimed => ("running", 1, Some(created_at)),
    };
    sqlx::query(
        "insert into jobs (id, state, attempt, version, created_at, started_at, spec) \
         values (?, ?, ?, 1, ?, ?, ?)",
    )
    .bind(&job.id.as_bytes()[..])
    .bind(state)
    .bind(attempt)
    .bind(created_at)
    .bind(started_at)
    .bind(row::spec_text(&job.spec)?)
    .execute(&mut *connection)
    .await?;
    for (key, value) in &job.spec.labels {
        sqlx::query("insert into job_labels (key, value, job_id) values (?, ?, ?)")
            .bind(key)
            .bind(value)
            .bind(&job.id.as_bytes()[..])
            .execute(&mut *connection)
            .await?;
    }
    if !job.inputs.is_empty() {
        sqlx::query("insert into job_inputs (job_id, content) values (?, ?)")
            .bind(&job.id.as_bytes()[..])
            .bind(row::inputs_bytes(&job.inputs)?)
            .execute(&mut *connection)
            .await?;
    }
    if let Some(key) = &job.idempotency {
        keep_key(connection, key, job).await?;
    }
    Ok(Effect::Done)
}

async fn job_of_key(
    connection: &mut SqliteConnection,
    key: &IdempotencyKey,
) -> Result<Option<Effect>, StoreError> {
    let found = sqlx::query("select fingerprint, job_id from idempotency_keys where key = ?")
        .bind(&key.key)
        .fetch_optional(connection)
        .await?;
    let Some(found) = found else { return Ok(None) };
    let fingerprint: Vec<u8> = found.try_get("fingerprint")?;
    if fingerprint != key.fingerprint {
        return Ok(Some(Effect::KeyReused));
    }
    Ok(Some(Effect::Replayed(row::job_id(&found, "job_id")?)))
}

async fn keep_key(
    connection: &mut SqliteConnection,
    key: &IdempotencyKey,
    job: &NewJob,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into idempotency_keys (key, fingerprint, job_id, created_at) values (?, ?, ?, ?)",
    )
    .bind(&key.key)
    .bind(&key.fingerprint[..])
    .bind(&job.id.as_bytes()[..])
    .bind(job.created_at.as_microsecond())
    .execute(connection)
    .await?;
    Ok(())
}

async fn claim(
    connection: &mut SqliteConnection,
    id: JobId,
    now: Timestamp,
) -> Result<Effect, StoreError> {
    let claimed = sqlx::query(
        "update jobs set state = 'running', attempt = attempt + 1, started_at = ?, \
         version = version + 1 where id = ? and state = 'queued'",
    )
    .bind(now.as_microsecond())
    .bind(&id.as_bytes()[..])
    .execute(connection)
    .await?;
    Ok(effect(claimed.rows_affected()))
}

async fn finish(
    connection: &mut SqliteConnection,
    attempt: &FinishedAttempt,
) -> Result<Effect, StoreError> {
    let finished = sqlx::query(
        "update jobs set state = 'finished', verdict = ?, outcome = ?, finished_at = ?, \
         version = version + 1 where id = ? and state = 'running' and attempt = ?",
    )
    .bind(attempt.end.verdict.as_str())
    .bind(row::end_text(&attempt.end)?)
    .bind(attempt.now.as_microsecond())
    .bind(&attempt.id.as_bytes()[..])
    .bind(attempt.attempt)
    .execute(&mut *connection)
    .await?;
    if finished.rows_affected() == 0 {
        return Ok(Effect::WrongState);
    }
    forget_inputs(connection, attempt.id).await?;
    keep_log(connection, attempt.id, attempt.attempt, &attempt.log).await?;
    Ok(Effect::Done)
}

async fn finish_queued(
    connection: &mut SqliteConnection,
    id: JobId,
    end: &JobEnd,
    now: Timestamp,
) -> Result<Effect, StoreError> {
    let finished = sqlx::query(
        "update jobs set state = 'finished', verdict = ?, outcome = ?, finished_at = ?, \
         version = version + 1 where id = ? and state = 'queued'",
    )
    .bind(end.verdict.as_str())
    .bind(row::end_text(end)?)
    .bind(now.as_microsecond())
    .bind(&id.as_bytes()[..])
    .execute(&mut *connection)
    .await?;
    if finished.rows_affected() == 0 {
        return Ok(Effect::WrongState);
    }
    forget_inputs(connection, id).await?;
    Ok(Effect::Done)
}

async fn request_cancel(
    connection: &mut SqliteConnection,
    id: JobId,
) -> Result<Effect, StoreError> {
    let requested = sqlx::query(
        "update jobs set cancel_requested = 1, version = version + 1 \
         where id = ? and state = 'running'",
    )
    .bind(&id.as_bytes()[..])
    .execute(connection)
    .await?;
    Ok(effect(requested.rows_affected()))
}

async fn retry(
    connection: &mut SqliteConnection,
    id: JobId,
    attempt: u32,
    log: &KeptLog,
) -> Result<Effect, StoreError> {
    let retried = sqlx::query(
        "update jobs set state = 'queued', started_at = null, version = version + 1 \
         where id = ? and state = 'running' and attempt = ? and cancel_requested = 0",
    )
    .bind(&id.as_bytes()[..])
    .bind(attempt)
    .execute(&mut *connection)
    .await?;
    if retried.rows_affected() == 0 {
        return Ok(Effect::WrongState);
    }
    keep_log(connection, id, attempt, log).await?;
    Ok(Effect::Done)
}

async fn delete(connection: &mut SqliteConnection, id: JobId) -> Result<Effect, StoreError> {
    let deleted = sqlx::query("delete from jobs where id = ? and state = 'finished'")
        .bind(&id.as_bytes()[..])
        .execute(connection)
        .await?;
    Ok(effect(deleted.rows_affected()))
}

async fn forget_keys(
    connection: &mut SqliteConnection,
    before: Timestamp,
) -> Result<Effect, StoreError> {
    sqlx::query("delete from idempotency_keys where created_at < ?")
        .bind(before.as_microsecond())
        .execute(connection)
        .await?;
    Ok(Effect::Done)
}

async fn forget_inputs(connection: &mut SqliteConnection, id: JobId) -> Result<(), StoreError> {
    sqlx::query("delete from job_inputs where job_id = ?")
        .bind(&id.as_bytes()[..])
        .execute(connection)
        .await?;
    Ok(())
}

async fn keep_log(
    connection: &mut SqliteConnection,
    id: JobId,
    attempt: u32,
    log: &KeptLog,
) -> Result<(), StoreError> {
    match log {
        KeptLog::Row(content) => {
            sqlx::query("insert into attempt_logs (job_id, attempt, content) values (?, ?, ?)")
                .bind(&id.as_bytes()[..])
                .bind(attempt)
                .bind(content)
                .execute(connection)
                .await?;
        }
        KeptLog::File | KeptLog::Spool | KeptLog::Nothing => {}
    }
    Ok(())
}

const fn effect(rows: u64) -> Effect {
    if rows == 0 { Effect::WrongState } else { Effect::Done }
}
