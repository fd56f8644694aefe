//! The one task that writes: takes all changes that wait, commits them together, answers each.

use sqlx::SqliteConnection;
use tokio::sync::mpsc;

use super::change::{self, Place};
use super::{Change, Effect, Pending, StoreError};

/// Changes in one commit. More would only make the first of them wait longer.
const MAX_BATCH: usize = 256;

/// Writes until every sender is gone.
pub(super) async fn write(mut connection: SqliteConnection, mut changes: mpsc::Receiver<Pending>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while changes.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (changes, answers): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|pending| (pending.change, pending.answer)).unzip();
        let results = commit(&mut connection, &changes).await;
        // Before the answers: who gets one may then own what the change had shared.
        drop(changes);
        for (answer, result) in answers.into_iter().zip(results) {
            // Whoever asked may have left; what was written stays.
            drop(answer.send(result));
        }
    }
}

/// Runs the changes in one transaction. A change that fails is undone alone; a commit that fails
/// undoes and fails them all.
async fn commit(
    connection: &mut SqliteConnection,
    changes: &[Change],
) -> Vec<Result<Effect, StoreError>> {
    let applied = match changes {
        [alone] => change::apply(connection, Place::Alone, alone).await.map(|done| vec![Ok(done)]),
        several => apply_several(connection, several).await,
    };
    match applied {
        Ok(results) => results,
        Err(error) => {
            // There is nothing to roll back where the transaction never began.
            drop(execute(connection, "rollback").await);
            changes.iter().map(|_| Err(error.clone())).collect()
        }
    }
}

async fn apply_several(
    connection: &mut SqliteConnection,
    changes: &[Change],
) -> Result<Vec<Result<Effect, StoreError>>, StoreError> {
    let mut results = Vec::with_capacity(changes.len());
    execute(connection, "begin immediate").await?;
    for change in changes {
        execute(connection, "savepoint one").await?;
        let result = change::apply(connection, Place::InBatch, change).await;
        if result.is_err() {
            execute(connection, "rollback to one").await?;
        }
        execute(connection, "release one").await?;
        results.push(result);
    }
    execute(connection, "commit").await?;
    Ok(results)
}

async fn execute(
    connection: &mut SqliteConnection,
    statement: &'static str,
) -> Result<(), StoreError> {
    sqlx::query(statement).execute(connection).await?;
    Ok(())
}
