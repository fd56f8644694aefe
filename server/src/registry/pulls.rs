//! The pulls of a server: each once, however many ask for it. Kept in memory: after a restart
//! nobody knows of them, and the layers that had come are still there.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lazaret_sandbox::image::{Bounds, ImageStore};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{LocalStore, Progress, PullError, PullRequest, Teller};

/// Pulls that run at one time.
const MAX_RUNNING: usize = 4;
/// Pulls that are remembered, those that run among them.
const MAX_KEPT: usize = 100;

/// A pull that runs or has run.
#[derive(Debug)]
pub struct Pull {
    /// Its name.
    pub id: Uuid,
    /// What is pulled.
    pub request: PullRequest,
    progress: watch::Receiver<Progress>,
}

/// All pulls. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Pulls {
    local: LocalStore,
    docker_config: Option<PathBuf>,
    stop: CancellationToken,
    /// The oldest first.
    kept: Arc<Mutex<VecDeque<Arc<Pull>>>>,
}

/// As many pulls run as may.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

impl Pull {
    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    fn is_running(&self) -> bool {
        self.progress.borrow().end.is_none()
    }
}

impl Pulls {
    /// No pull yet. Those that come take credentials from docker's configuration, end with
    /// `tracker`, and are given up at `stop`.
    #[must_use]
    pub fn new(
        images: Arc<ImageStore>,
        docker_config: Option<PathBuf>,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let local = LocalStore { images, bounds: Bounds::default(), unpacking: tracker };
        Self { local, docker_config, stop, kept: Arc::default() }
    }

    /// Starts a pull, or joins the one of the same that runs.
    ///
    /// # Errors
    /// If as many run as may.
    pub fn start(&self, request: PullRequest) -> Result<Arc<Pull>, TooMany> {
        let mut kept = self.kept();
        let mut running = kept.iter().filter(|pull| pull.is_running());
        if let Some(same) = running.clone().find(|pull| pull.request == request) {
            return Ok(Arc::clone(same));
        }
        if running.nth(MAX_RUNNING - 1).is_some() {
            return Err(TooMany);
        }
        if kept.len() >= MAX_KEPT {
            let oldest = kept.iter().position(|pull| !pull.is_running());
            oldest.and_then(|index| kept.remove(index));
        }
        let (teller, progress) = Teller::new();
        let pull = Arc::new(Pull { id: Uuid::now_v7(), request, progress });
        kept.push_back(Arc::clone(&pull));
        self.local.unpacking.spawn(self.clone().run(Arc::clone(&pull), teller));
        Ok(pull)
    }

    /// The pull of this name, if it is remembered.
    #[must_use]
    pub fn get(&self, id: Uuid) -> Option<Arc<Pull>> {
        self.kept().iter().find(|pull| pull.id == id).cloned()
    }

    async fn run(self, pull: Arc<Pull>, teller: Teller) {
        let image = pull.request.source.to_string();
        let end = tokio::select! {
            end = self.pull(&pull.request, &teller) => end,
            () = self.stop.cancelled() => Err(PullError::Interrupted { image: image.clone() }),
        };
        match &end {
            Ok(pulled) => tracing::info!(%image, digest = %pulled.digest, "pulled"),
            Err(error) => tracing::warn!(%image, %error, "could not pull"),
        }
        teller.end(end);
    }

    async fn pull(
        &self,
        request: &PullRequest,
        teller: &Teller,
    ) -> Result<lazaret_sandbox::image::Image, PullError> {
        let credentials = request.source.credentials(self.docker_config.as_deref())?;
        super::pull(&self.local, request, credentials, teller).await
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Pull>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
