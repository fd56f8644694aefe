//! What the shims of a predecessor told, when there was no server to store it.

use std::collections::HashMap;

use lazaret_sandbox::Orphan;
use lazaret_sandbox::outcome::Outcome;

use crate::api::Api;
use crate::cli::CliError;
use crate::job::{JobId, parse_attempt_name};

/// Takes up what a predecessor left. How attempts ended is forgotten only once it is stored.
pub(super) async fn take_up(api: &Api, orphans: &[Orphan]) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    let recovered = api.dispatch.recover(outcomes_of(orphans)).await;
    recovered.map_err(|error| failed(&error))?;
    let told = orphans.iter().filter(|orphan| orphan.outcome.is_some());
    told.map(Orphan::forget).try_for_each(|forgotten| forgotten.map_err(|error| failed(&error)))
}

/// Which attempts orphans ran and how those ended, of each that ran one and told its end.
fn outcomes_of(orphans: &[Orphan]) -> HashMap<(JobId, u32), Outcome> {
    let outcome = |orphan: &Orphan| {
        let Orphan { id, label, outcome, .. } = orphan;
        let attempt = label.as_deref().and_then(parse_attempt_name);
        let job = attempt.map(|(job, _)| tracing::field::display(job));
        tracing::warn!(container = id, job.id = job, "cleaned up an orphan");
        Some((attempt?, outcome.clone()?))
    };
    orphans.iter().filter_map(outcome).collect()
}
