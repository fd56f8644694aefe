//! What is forgotten by itself once it is old.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::Store;

/// How long an idempotency key stands for its job.
const KEY_AGE: SignedDuration = SignedDuration::from_hours(24);
/// How often old keys are looked for.
const INTERVAL: Duration = Duration::from_secs(600);

/// Forgets old idempotency keys now and then, until `stop`.
pub async fn forget_old_keys(store: Store, clock: fn() -> Timestamp, stop: CancellationToken) {
    loop {
        if let Err(error) =
            store.forget_keys(clock().saturating_sub(KEY_AGE).unwrap_or(Timestamp::MIN)).await
        {
            tracing::error!(%error, "could not forget old idempotency keys");
        }
        if stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
            return;
        }
    }
}
