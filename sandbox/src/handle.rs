//! The caller's end of a container: what it may ask of a shim, and what a shim tells it.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::error::{At as _, Result, Stage};
use crate::outcome::{Outcome, StepOutcome};
use crate::spec::ContainerSpec;
use crate::wire::{Channel, MAX_FRAME_BYTES};

/// What the caller asks of a shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Become this container and run it; the spool travels along. Once only.
    Start(Box<ContainerSpec>),
    /// Kill the container, with the verdict `cancelled`.
    Cancel,
    /// The outcome is stored: forget everything.
    Acknowledge,
}

/// What a shim tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The step's program was executed.
    StepStarted {
        /// Index of the step in the spec.
        step: u16,
    },
    /// The spool has grown. Several growths may be told as one.
    Output {
        /// Length of the spool now.
        spool_bytes: u64,
    },
    /// The step has ended, and the spool says so too.
    StepEnded {
        /// Index of the step in the spec.
        step: u16,
        /// How it ended.
        outcome: StepOutcome,
    },
    /// Nothing of the job runs any more, and the spool is whole. What else is left of the container
    /// is removed right after. The last event.
    Finished(Outcome),
}

/// A container of one's own: first an empty one that waits, after [`Container::start`] one that
/// runs, after [`Event::Finished`] none. Dropped before the start it is thrown away; dropped later
/// it runs to its end, and its outcome is kept in `$run`.
#[derive(Debug)]
pub struct Container {
    id: String,
    channel: Channel,
}

impl Container {
    pub(crate) fn new(id: String, socket: OwnedFd) -> Self {
        Self { id, channel: Channel::new(socket, MAX_FRAME_BYTES) }
    }

    /// The name of its directory in `$run` and of its cgroup.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Has the container run `spec`, its output appended to `spool`, an empty file that is open
    /// for writing. Blocks while the shim takes the files in.
    ///
    /// # Errors
    /// At [`Stage::Shim`] if the shim is gone. What is wrong with the spec itself comes back as a
    /// fault in [`Event::Finished`].
    pub fn start(&mut self, spec: ContainerSpec, spool: BorrowedFd<'_>) -> Result<()> {
        self.channel.send(&Request::Start(Box::new(spec)), &[spool]).at(Stage::Shim)
    }

    /// Has the container killed. It still tells how it ended.
    ///
    /// # Errors
    /// At [`Stage::Shim`] if the shim is gone.
    pub fn cancel(&self) -> Result<()> {
        self.channel.send(&Request::Cancel, &[]).at(Stage::Shim)
    }

    /// Says that the outcome is kept, so that the shim may forget it.
    ///
    /// # Errors
    /// At [`Stage::Shim`] if the shim is gone.
    pub fn acknowledge(self) -> Result<()> {
        self.channel.send(&Request::Acknowledge, &[]).at(Stage::Shim)
    }

    /// The next event if there is one now. [`AsFd`] tells when to look again.
    ///
    /// # Errors
    /// At [`Stage::Shim`], with `UnexpectedEof`, if the shim died before it finished.
    pub fn try_event(&mut self) -> Result<Option<Event>> {
        let event = self.channel.try_recv().at(Stage::Shim)?;
        Ok(event.map(|(event, _)| event))
    }

    /// The next event, waiting for it at most `timeout_ms` milliseconds.
    ///
    /// # Errors
    /// As [`Container::try_event`]; `TimedOut` if nothing came.
    pub fn wait_event(&mut self, timeout_ms: u32) -> Result<Event> {
        loop {
            if let Some(event) = self.try_event()? {
                return Ok(event);
            }
            let timeout = Timespec {
                tv_sec: i64::from(timeout_ms / 1000),
                tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000,
            };
            let mut fds = [PollFd::new(&self.channel, PollFlags::IN)];
            let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)));
            if ready.at(Stage::Shim)? == 0 {
                return Err(io::Error::from(ErrorKind::TimedOut)).at(Stage::Shim);
            }
        }
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
