//! Why an image could not be pulled or pushed, as one line that names it.

use std::time::Duration;

use lazaret_sandbox::image::{self, Digest};

/// The longest wait that a registry can ask for before another try.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why an image could not be pulled. A variant for each answer that a caller gives.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Whoever asked can ask better: the message says how.
    #[error("{0}")]
    Refused(String),
    /// The registry does not answer, or not as one.
    #[error("could not reach registry `{registry}`: {reason}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What happened instead.
        reason: String,
    },
    /// The registry wants to know who asks, or knows it.
    #[error("registry `{registry}` does not {does_not}")]
    Denied {
        /// Host and port.
        registry: String,
        /// What it does not do, for whom, and what would help.
        does_not: String,
    },
    /// The registry has no such image.
    #[error("registry `{registry}` has no `{image}`")]
    NotFound {
        /// Host and port.
        registry: String,
        /// What was asked for.
        image: String,
    },
    /// The registry wants to be asked less.
    #[error("registry `{registry}` is asked too often{}", again(*.retry_after))]
    RateLimited {
        /// Host and port.
        registry: String,
        /// When it may be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// What describes the image cannot be used.
    #[error("image `{image}`: {source}")]
    Image {
        /// What was asked for.
        image: String,
        /// What is wrong with it.
        source: Box<image::Error>,
    },
    /// A layer stopped coming.
    #[error("image `{image}`: layer `{layer}`: {reason}")]
    Broken {
        /// What was asked for.
        image: String,
        /// Its digest, as it is transferred.
        layer: Digest,
        /// How far it came.
        reason: String,
    },
    /// A layer is not what it should be, or could not be unpacked.
    #[error("image `{image}`: layer `{layer}`: {source}")]
    Layer {
        /// What was asked for.
        image: String,
        /// Its digest, as it is transferred.
        layer: Digest,
        /// What is wrong with it.
        source: Box<image::Error>,
    },
    /// The server stops.
    #[error("image `{image}`: the pull was interrupted: start it again to continue")]
    Interrupted {
        /// What was asked for.
        image: String,
    },
}

impl PullError {
    /// How long to wait before it is worth another try; `None` if it is not worth one. `pause` is
    /// taken where the registry names no time.
    pub(super) fn worth_waiting(&self, pause: Duration) -> Option<Duration> {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => Some(pause),
            Self::RateLimited { retry_after, .. } => {
                Some(retry_after.unwrap_or(pause)).filter(|wait| *wait <= MAX_RETRY_AFTER)
            }
            Self::Refused(_)
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Image { .. }
            | Self::Layer { .. }
            | Self::Interrupted { .. } => None,
        }
    }

    /// Whether this host or the network failed, not the image or whoever asked for it.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::Broken { .. }
            | Self::Interrupted { .. } => true,
            Self::Image { source, .. } | Self::Layer { source, .. } => source.is_failure(),
            Self::Refused(_) | Self::Denied { .. } | Self::NotFound { .. } => false,
        }
    }
}

fn again(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| format!(": again in {} s", wait.as_secs()))
}
