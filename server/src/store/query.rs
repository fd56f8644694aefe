//! What can be asked without changing anything.

use jiff::Timestamp;
use lazaret_sandbox::outcome::Verdict;
use sqlx::sqlite::{SqliteExecutor, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite};

use super::{Effect, IdempotencyKey, Store, StoreError, row};
use crate::job::{self, Inputs, Job, JobId, JobSpec, State};

/// Which jobs a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those in this state.
    pub state: Option<State>,
    /// Only those that have all of these labels.
    pub labels: Vec<(String, String)>,
    /// Only those made before this one: where the page before ended.
    pub before: Option<JobId>,
    /// How many at most.
    pub limit: u32,
}

/// A job as a list shows it, without what it wrote.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Its name.
    pub id: JobId,
    /// Where it is on its way.
    pub state: State,
    /// How it ended.
    pub verdict: Option<Verdict>,
    /// How many times it was started.
    pub attempt: u32,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the attempt that counts was started.
    pub started_at: Option<Timestamp>,
    /// When its verdict was stored.
    pub finished_at: Option<Timestamp>,
    /// What was asked for.
    pub spec: JobSpec,
}

/// A job that has no verdict yet, as the start of the server finds it.
#[derive(Debug, Clone)]
pub struct Unfinished {
    /// Its name.
    pub id: JobId,
    /// Queued or running.
    pub state: State,
    /// How many times it was started.
    pub attempt: u32,
    /// What was asked for.
    pub spec: JobSpec,
}

impl Store {
    /// What an idempotency key stands for, if anything: [`Effect::Replayed`] or
    /// [`Effect::KeyReused`].
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn job_of_key(&self, key: &IdempotencyKey) -> Result<Option<Effect>, StoreError> {
        job_of_key(&self.readers, key).await
    }

    /// The job of this name.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let found = sqlx::query(concat!("select ", row::job_columns!(), " from jobs where id = ?"))
            .bind(&id.as_bytes()[..])
            .fetch_optional(&self.readers)
            .await?;
        found.as_ref().map(row::job).transpose()
    }

    /// Jobs, the newest first.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Summary>, StoreError> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "select id, state, verdict, attempt, created_at, started_at, finished_at, spec \
             from jobs where true",
        );
        if let Some(state) = filter.state {
            query.push(" and state = ").push_bind(state.as_str());
        }
        if let Some(before) = filter.before {
            query.push(" and id < ").push_bind(before.as_bytes().to_vec());
        }
        for (key, value) in &filter.labels {
            query
                .push(" and id in (select job_id from job_labels where key = ")
                .push_bind(key)
                .push(" and value = ")
                .push_bind(value)
                .push(")");
        }
        query.push(" order by id desc limit ").push_bind(filter.limit);
        let rows = query.build().fetch_all(&self.readers).await?;
        rows.iter().map(summary).collect()
    }

    /// What the job brings along. Empty once it is finished.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn inputs(&self, id: JobId) -> Result<Inputs, StoreError> {
        let found = sqlx::query("select content from job_inputs where job_id = ?")
            .bind(&id.as_bytes()[..])
            .fetch_optional(&self.readers)
            .await?;
        match found {
            Some(found) => row::inputs(found.try_get("content")?),
            None => Ok(Inputs::default()),
        }
    }

    /// The spool of an ended attempt, if it was small enough to be kept here.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn log(&self, id: JobId, attempt: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let found = sqlx::query(
            "select log from jobs where id = $1 and attempt = $2 and log is not null \
             union all select content from attempt_logs where job_id = $1 and attempt = $2",
        )
        .bind(&id.as_bytes()[..])
        .bind(attempt)
        .fetch_optional(&self.readers)
        .await?;
        Ok(found.map(|found| found.try_get("log")).transpose()?)
    }

    /// Every job without a verdict, the oldest first. As many as the queue holds, so all at once.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, StoreError> {
        let rows = sqlx::query(
            "select id, state, attempt, spec from jobs \
             where state in ('queued', 'running') order by id",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(unfinished).collect()
    }

    /// Whether the store answers at all.
    ///
    /// # Errors
    /// As [`StoreError`].
    pub async fn probe(&self) -> Result<(), StoreError> {
        sqlx::query("select 1").execute(&self.readers).await?;
        Ok(())
    }
}

fn summary(found: &SqliteRow) -> Result<Summary, StoreError> {
    let verdict: Option<&str> = found.try_get("verdict")?;
    Ok(Summary {
        id: row::job_id(found, "id")?,
        state: row::state(found)?,
        verdict: verdict.map(job::parse_verdict).transpose().map_err(row::nonsense)?,
        attempt: found.try_get("attempt")?,
        created_at: row::timestamp(found.try_get("created_at")?)?,
        started_at: row::optional_timestamp(found, "started_at")?,
        finished_at: row::optional_timestamp(found, "finished_at")?,
        spec: row::spec(found)?,
    })
}

fn unfinished(found: &SqliteRow) -> Result<Unfinished, StoreError> {
    Ok(Unfinished {
        id: row::job_id(found, "id")?,
        state: row::state(found)?,
        attempt: found.try_get("attempt")?,
        spec: row::spec(found)?,
    })
}

/// What an idempotency key stands for, as this connection sees it.
pub(super) async fn job_of_key(
    connection: impl SqliteExecutor<'_>,
    key: &IdempotencyKey,
) -> Result<Option<Effect>, StoreError> {
    let found = sqlx::query("select fingerprint, job_id from idempotency_keys where key = ?")
        .bind(key.key.clone())
        .fetch_optional(connection)
        .await?;
    let Some(found) = found else { return Ok(None) };
    let fingerprint: Vec<u8> = found.try_get("fingerprint")?;
    if fingerprint != key.fingerprint {
        return Ok(Some(Effect::KeyReused));
    }
    Ok(Some(Effect::Replayed(row::job_id(&found, "job_id")?)))
}
