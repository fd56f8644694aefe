//! Containers made ahead of time. Most of what a container needs does not depend on its job:
//! namespaces, cgroup, filters. So a few wait with all of that done, each for its only job.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lazaret_sandbox::error::Result;
use lazaret_sandbox::{Container, Zygote};
use uuid::Uuid;

/// The containers that wait, and what makes more of them.
#[derive(Debug)]
pub struct Pool {
    zygote: Zygote,
    /// How many wait when nothing happens.
    size: usize,
    ready: Mutex<VecDeque<Container>>,
    /// Held by who fills the pool, so that it is filled once.
    filling: Mutex<()>,
    /// Whether the last attempt to make a container failed: the zygote does not answer, or the
    /// host has nothing left to give.
    is_failing: AtomicBool,
}

impl Pool {
    /// An empty pool that will hold `size` containers; 0 has each made when it is asked for.
    #[must_use]
    pub fn new(zygote: Zygote, size: usize) -> Self {
        let (ready, filling) = (Mutex::new(VecDeque::new()), Mutex::new(()));
        Self { zygote, size, ready, filling, is_failing: AtomicBool::new(false) }
    }

    /// A container that never had a job: the one that waits the longest, or a new one. Blocks.
    ///
    /// # Errors
    /// If none waits and none can be made.
    pub fn take(&self) -> Result<Container> {
        while let Some(mut container) = self.pop() {
            // A shim that died while it waited is nobody's fault, and no job's.
            if matches!(container.try_event(), Ok(None)) {
                return Ok(container);
            }
            tracing::warn!(container = container.id(), "a waiting container was gone");
        }
        self.spawn()
    }

    /// A descriptor that is readable once the zygote has ended.
    ///
    /// # Errors
    /// If this process may not have another descriptor.
    pub fn zygote(&self) -> io::Result<OwnedFd> {
        self.zygote.process().try_clone_to_owned()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready().is_empty()
    }

    /// Whether the last container that was asked for could not be made.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Makes one container, whether or not one is wanted: how a pool that failed finds out that it
    /// does no longer. Does nothing while another thread makes some. Blocks.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn probe(&self) -> Result<()> {
        let Ok(_filling) = self.filling.try_lock() else { return Ok(()) };
        let container = self.spawn()?;
        let mut ready = self.ready();
        if ready.len() < self.size {
            ready.push_back(container);
        }
        Ok(())
    }

    /// Makes containers until enough wait. Does nothing while another thread does this. Blocks.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn fill(&self) -> Result<()> {
        let Ok(_filling) = self.filling.try_lock() else { return Ok(()) };
        while self.ready().len() < self.size {
            let container = self.spawn()?;
            self.ready().push_back(container);
        }
        Ok(())
    }

    /// Ends the containers that wait and the zygote, with all that it made. Blocks.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn close(&self) -> Result<()> {
        self.ready().clear();
        self.zygote.end()
    }

    fn pop(&self) -> Option<Container> {
        self.ready().pop_front()
    }

    fn spawn(&self) -> Result<Container> {
        // Not the job's name: there is no job yet. What runs in it is written beside it later.
        let spawned = self.zygote.spawn(&Uuid::now_v7().to_string());
        self.is_failing.store(spawned.is_err(), Ordering::Relaxed);
        spawned
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<Container>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
