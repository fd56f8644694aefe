//! How often, and how patiently, a registry is asked again.

use std::time::Duration;

use super::PullError;
use super::progress::Teller;

/// How often something is asked for.
const MAX_TRIES: u32 = 5;
/// The pause before the second try; each later one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What is left of it.
#[derive(Debug)]
pub(super) struct Patience {
    tries_left: u32,
    pause: Duration,
}

impl Patience {
    /// All of it: the first try has been made.
    pub(super) fn new() -> Self {
        Self { tries_left: MAX_TRIES - 1, pause: FIRST_PAUSE }
    }

    /// Waits until it is time for another try; gives the error back if it is not worth one.
    pub(super) async fn wait(
        &mut self,
        error: PullError,
        teller: &Teller,
    ) -> Result<(), PullError> {
        let Some(wait) = error.worth_waiting(self.pause).filter(|_| self.tries_left > 0) else {
            return Err(error);
        };
        teller.retry(&error);
        self.tries_left -= 1;
        self.pause *= 2;
        tokio::time::sleep(wait).await;
        Ok(())
    }
}
