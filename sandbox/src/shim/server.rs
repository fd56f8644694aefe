//! The shim's end of the server: tells events without ever waiting for it, and takes requests.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::handle::{Event, Request};
use crate::spec::ContainerSpec;
use crate::wire::{self, Channel};

/// The conversation with the server, as long as there is one.
#[derive(Debug)]
pub(super) struct Server {
    channel: Option<Channel>,
    /// Frames that the socket did not take yet. Two for a step and one for the end at most: the
    /// growth of the spool is told as one number.
    waiting: VecDeque<Vec<u8>>,
    /// Bytes of the first of them that were sent.
    sent: usize,
    /// Length of the spool that was not told yet.
    grown: Option<u64>,
    /// Whether the client asked for the end.
    pub(super) is_cancelled: bool,
    is_acknowledged: bool,
}

impl Server {
    pub(super) const fn new(channel: Channel) -> Self {
        Self {
            channel: Some(channel),
            waiting: VecDeque::new(),
            sent: 0,
            grown: None,
            is_cancelled: false,
            is_acknowledged: false,
        }
    }

    /// Waits for the job; none if the server threw the container away, or `abandoned`, a process,
    /// ended.
    pub(super) fn await_start(
        &mut self,
        abandoned: Option<BorrowedFd<'_>>,
    ) -> io::Result<Option<(ContainerSpec, OwnedFd)>> {
        let Some(channel) = &mut self.channel else {
            return Ok(None);
        };
        loop {
            match channel.try_recv() {
                Ok(Some((Request::Start(spec), fds))) => {
                    let mut fds = fds.into_iter();
                    let spool = fds.next().ok_or_else(|| io::Error::other("no spool came"))?;
                    return Ok(Some((*spec, spool)));
                }
                Ok(Some((Request::Cancel | Request::Acknowledge, _))) => return Ok(None),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
            let mut fds = vec![PollFd::new(&*channel, PollFlags::IN)];
            fds.extend(abandoned.iter().map(|process| PollFd::new(process, PollFlags::IN)));
            rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
            if fds.get(1).is_some_and(|process| !process.revents().is_empty()) {
                return Ok(None);
            }
        }
    }

    /// Tells an event, as soon as the socket takes it.
    pub(super) fn tell(&mut self, event: &Event) -> io::Result<()> {
        self.grown = None;
        self.waiting.push_back(wire::frame(event, 0)?);
        self.send_waiting()
    }

    /// Tells that the spool has grown.
    pub(super) fn tell_growth(&mut self, spool_bytes: u64) -> io::Result<()> {
        self.grown = Some(spool_bytes);
        self.send_waiting()
    }

    /// Sends what the socket takes. A server that has gone is no error: the job goes on.
    pub(super) fn send_waiting(&mut self) -> io::Result<()> {
        loop {
            if self.waiting.is_empty() {
                let Some(spool_bytes) = self.grown.take() else {
                    return Ok(());
                };
                self.waiting.push_back(wire::frame(&Event::Output { spool_bytes }, 0)?);
            }
            let (Some(channel), Some(frame)) = (&self.channel, self.waiting.front()) else {
                self.waiting.clear();
                return Ok(());
            };
            match channel.send_some(&frame[self.sent..], &[]) {
                Ok(bytes) if self.sent + bytes == frame.len() => {
                    self.waiting.pop_front();
                    self.sent = 0;
                }
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_gone) => self.channel = None,
            }
        }
    }

    /// Takes the requests that have come.
    pub(super) fn receive(&mut self) {
        while let Some(channel) = &mut self.channel {
            match channel.try_recv() {
                Ok(Some((Request::Cancel, _))) => self.is_cancelled = true,
                Ok(Some((Request::Acknowledge, _))) => self.is_acknowledged = true,
                // A second start is a bug of the server's, which ends the conversation.
                Ok(Some((Request::Start(_), _))) | Err(_) => self.channel = None,
                Ok(None) => return,
            }
        }
    }

    /// What to watch, and for what.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let channel = self.channel.as_ref()?;
        let is_idle = self.waiting.is_empty() && self.grown.is_none();
        let flags = if is_idle { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        Some((channel.as_fd(), flags))
    }

    /// Waits until the outcome is stored, but not longer than `bound`.
    pub(super) fn await_acknowledgement(&mut self, bound: Option<Duration>) -> io::Result<Kept> {
        let timeout = bound.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        loop {
            self.send_waiting()?;
            self.receive();
            if self.is_acknowledged {
                return Ok(Kept::ByServer);
            }
            let Some((fd, flags)) = self.interest() else { return Ok(Kept::ByNobody) };
            let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
            if rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))? == 0 {
                return Ok(Kept::NotYet);
            }
        }
    }
}

/// Who has the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// The server, durably.
    ByServer,
    /// Nobody but the shim: the server went away before it had it.
    ByNobody,
    /// That is not known yet.
    NotYet,
}
