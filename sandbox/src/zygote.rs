//! The process that forks shims: small, single-threaded, made before the server has threads.
//! It holds no data of any client.
//!
//! ```text
//! server ── Fork { id } + one end of a socket pair ──▶ zygote ── fork ──▶ shim
//! server ◀── pid ──────────────────────────────────── zygote
//! server ◀═════════════ the socket pair ══════════════════════════════▶ shim
//! ```
//!
//! The zygote ends when its socket does; shims are sessions of their own and go on.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{At as _, Result, Stage};
use crate::handle::Container;
use crate::wire::{self, Channel, MAX_FRAME_BYTES};

/// What all containers of one server share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `$run`: a directory on tmpfs that is this server's alone; made if it is missing.
    pub run_dir: PathBuf,
    /// Where slots of host ids are locked; the same for every server of the host.
    pub ids_dir: PathBuf,
    /// The cgroup below which containers get theirs, in every hierarchy, e.g. `lazaret/main`.
    /// Relative to the hierarchy's root.
    pub cgroup_parent: String,
}

/// The server's end of the zygote.
#[derive(Debug)]
pub struct Zygote {
    channel: Mutex<Channel>,
}

/// What the server asks of the zygote: a shim for the container `id`. One end of a socket pair
/// travels along.
#[derive(Debug, Serialize, Deserialize)]
struct Fork {
    id: String,
}

/// The zygote's answer: the shim's pid, or why there is none.
type Forked = std::result::Result<i32, String>;

impl Zygote {
    /// An empty container that waits for its only job. `id` names its directory in `$run` and its
    /// cgroup: lower case letters, digits and `-`, unique among the living.
    ///
    /// # Errors
    /// At [`Stage::Zygote`] if the zygote is gone or the host has no more processes to give.
    pub fn spawn(&self, id: &str) -> Result<Container> {
        let (ours, theirs) = wire::pair().at(Stage::Zygote)?;
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let fork = Fork { id: id.to_owned() };
        channel.send(&fork, &[std::os::fd::AsFd::as_fd(&theirs)]).at(Stage::Zygote)?;
        let (forked, _): (Forked, _) = channel.recv().at(Stage::Zygote)?;
        forked.map_err(io::Error::other).at(Stage::Zygote)?;
        Ok(Container::new(id.to_owned(), ours))
    }

    /// Forks the zygote. Called first thing in `main`.
    ///
    /// # Errors
    /// At [`Stage::Zygote`] if the process already has a second thread, or cannot fork.
    pub fn start(_settings: &Settings) -> Result<Self> {
        let (ours, _theirs) = wire::pair().at(Stage::Zygote)?;
        Ok(Self { channel: Mutex::new(Channel::new(ours, MAX_FRAME_BYTES)) })
    }
}
