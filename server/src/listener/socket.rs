//! A client's socket as hyper gets it: withholds what hyper says by itself, and bounds how long a
//! request may take to come.
//!
//! To what it cannot read hyper answers with a bare status, which cannot be configured. Looking
//! for that in what it writes would be wrong some day: a job may print the same bytes. But hyper
//! flushes when it has written everything, so what it writes after the flush of one answer and
//! before the next request is handed over can only be its own:
//!
//! ```text
//! read ─▶ request handed over ─▶ body of the answer dropped ─▶ flush ─▶ read ─▶ …
//!         └──── what is written is ours: sent as it is ────────┘       └─ hyper's: withheld
//! ```

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{HEADER_TIMEOUT, IDLE_TIMEOUT};

/// How many requests of a connection were handed over, and how many answers are complete. Written
/// by who answers, read by the socket; both are one task.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    asked: AtomicUsize,
    answered: AtomicUsize,
}

/// A request that is being answered, until the whole answer is with hyper.
#[derive(Debug)]
pub(super) struct Exchange(Arc<Exchanges>);

impl Exchange {
    pub(super) fn begin(exchanges: &Arc<Exchanges>) -> Self {
        exchanges.asked.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(exchanges))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// A client's socket.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    exchanges: Arc<Exchanges>,
    /// Answers that have left.
    sent: usize,
    /// Whether bytes of the next request have come.
    has_begun: bool,
    /// By when the next request, or the rest of its headers, has to be there.
    until: Instant,
    alarm: Pin<Box<Sleep>>,
    /// Whether it was not there by then.
    is_late: bool,
    has_withheld: bool,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, exchanges: Arc<Exchanges>) -> Self {
        let until = Instant::now() + HEADER_TIMEOUT;
        Self {
            stream,
            exchanges,
            sent: 0,
            // Who connects has something to say: the shorter time counts from the start.
            has_begun: true,
            until,
            alarm: Box::pin(sleep_until(until)),
            is_late: false,
            has_withheld: false,
        }
    }

    /// Whether every request so far has had its whole answer.
    pub(super) fn is_between_requests(&self) -> bool {
        self.exchanges.asked.load(Ordering::Relaxed) == self.sent
    }

    /// Whether the next request did not come in time.
    pub(super) fn is_late(&self) -> bool {
        self.is_late
    }

    /// Whether hyper has answered by itself, and the client does not know.
    pub(super) fn has_withheld(&self) -> bool {
        self.has_withheld
    }

    /// The socket, to be written to without hyper.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn poll_alarm(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // Set only where something is waited for: most requests come whole.
        if self.alarm.deadline() != self.until {
            self.alarm.as_mut().reset(self.until);
        }
        self.alarm.as_mut().poll(context)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if !self.is_between_requests() {
            return read;
        }
        if read.is_pending() {
            ready!(self.poll_alarm(context));
            self.is_late = true;
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        if buffer.filled().len() > before && !self.has_begun {
            self.has_begun = true;
            self.until = Instant::now() + HEADER_TIMEOUT;
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_between_requests() {
            self.has_withheld = true;
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_between_requests() {
            self.has_withheld = true;
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        let answered = self.exchanges.answered.load(Ordering::Relaxed);
        if answered != self.sent && answered == self.exchanges.asked.load(Ordering::Relaxed) {
            self.sent = answered;
            self.has_begun = false;
            self.until = Instant::now() + IDLE_TIMEOUT;
            // hyper may have looked for the next request already, when nobody waited for it.
            self.is_late = self.poll_alarm(context).is_ready();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
