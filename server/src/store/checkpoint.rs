//! Moves the write-ahead log into the database file, beside the writer and not in its way.

use std::time::Duration;

use sqlx::{Row as _, SqliteConnection};
use tokio_util::sync::CancellationToken;

/// How often.
const INTERVAL: Duration = Duration::from_secs(1);
/// Pages in the log beyond which the writer is made to wait until the log is empty: readers that
/// never pause would let it grow for ever otherwise.
const MAX_WAL_PAGES: i64 = 16_384;

/// Checkpoints each second until `stop`, and once more after it.
pub(super) async fn checkpoint(mut connection: SqliteConnection, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        checkpoint_once(&mut connection).await;
    }
    checkpoint_once(&mut connection).await;
}

async fn checkpoint_once(connection: &mut SqliteConnection) {
    match run(connection, "pragma wal_checkpoint(passive)").await {
        Ok(pages) if pages > MAX_WAL_PAGES => {
            if let Err(error) = run(connection, "pragma wal_checkpoint(truncate)").await {
                tracing::warn!(%error, "could not truncate the write-ahead log");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "could not checkpoint the database"),
    }
}

/// Runs one checkpoint and answers how many pages the log had.
async fn run(
    connection: &mut SqliteConnection,
    statement: &'static str,
) -> Result<i64, sqlx::Error> {
    let row = sqlx::query(statement).fetch_one(connection).await?;
    row.try_get(1)
}
