//! Frames between our own processes: the only serialization of this crate.
//!
//! ```text
//! frame = length: u32 little-endian | descriptors: u8 | body: postcard
//! ```
//!
//! A [`Channel`] is one end of a stream socket. Descriptors travel beside the first byte of the
//! frame that they belong to (`SCM_RIGHTS`, unix(7)); a frame says how many are its own, because
//! the kernel may hand over those of the next one with it. A length beyond the receiver's cap ends
//! the conversation: it is a bug or an attack, never a long message.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::clock;

use crate::spec::MAX_VOLUMES;

/// The largest frame that a shim accepts: the files and stdin of a job, as the server bounded them.
pub(crate) const MAX_SPEC_BYTES: usize = 256 << 20;
/// The largest frame of every other conversation.
pub(crate) const MAX_FRAME_BYTES: usize = 8 << 20;
/// Descriptors that may travel with one frame: no other has as many as that with the mounts of a
/// container's volumes.
const MAX_DESCRIPTORS: usize = MAX_VOLUMES;
/// One read from the socket, where no more is known to come: most messages are far shorter, and
/// a process just forked pays for every page that it touches.
const READ_BYTES: usize = 4 << 10;
/// One read of what comes outside any frame.
const RAW_READ_BYTES: usize = 64 << 10;
const LENGTH_BYTES: usize = 4;
/// The length, and the number of descriptors.
const HEADER_BYTES: usize = LENGTH_BYTES + 1;

/// One value as bytes, without a length in front.
pub(crate) fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))
}

/// The value that `encode` made these bytes of.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// Bytes received and not yet decoded.
    received: Vec<u8>,
    /// Descriptors received and not yet taken, in order of arrival.
    descriptors: VecDeque<OwnedFd>,
    max_frame_bytes: usize,
}

impl Channel {
    /// A channel over a connected stream socket that accepts frames up to `max_frame_bytes`.
    pub(crate) fn new(socket: OwnedFd, max_frame_bytes: usize) -> Self {
        Self { socket, received: Vec::new(), descriptors: VecDeque::new(), max_frame_bytes }
    }

    /// Sends one frame with its descriptors, waiting while the socket is full.
    pub(crate) fn send(&self, value: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = frame(value, fds.len())?;
        let mut sent = 0;
        while sent < frame.len() {
            let fds = if sent == 0 { fds } else { &[] };
            match self.send_some(&frame[sent..], fds) {
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_writable()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends bytes as they are, outside any frame: the receiver knows how many come.
    pub(crate) fn send_raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.send_some(&bytes[sent..], &[]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_writable()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what the socket takes of `bytes` now; `WouldBlock` if it takes nothing.
    pub(crate) fn send_some(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "too many descriptors"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let parts = [io::IoSlice::new(bytes)];
        Ok(rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &parts, &mut control, flags)
        })?)
    }

    /// The next frame and its descriptors, waiting for it; `UnexpectedEof` if the other end is
    /// gone.
    pub(crate) fn recv<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        loop {
            if let Some(message) = self.take_frame()? {
                return Ok(message);
            }
            self.fill(RecvFlags::empty())?;
        }
    }

    /// The next frame and its descriptors; `TimedOut` if it is not there within the bound. It may
    /// have come with the one before it, so that there is nothing more to read.
    pub(crate) fn recv_within<T: DeserializeOwned>(
        &mut self,
        bound: Duration,
    ) -> io::Result<(T, Vec<OwnedFd>)> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let deadline = clock::now() + bound;
        loop {
            if let Some(message) = self.try_recv()? {
                return Ok(message);
            }
            let left = deadline.saturating_sub(clock::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? == 0 {
                let text = format!("no answer within {bound:?}");
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
        }
    }

    /// The next frame if it has arrived whole, without waiting.
    pub(crate) fn try_recv<T: DeserializeOwned>(
        &mut self,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            if let Some(message) = self.take_frame()? {
                return Ok(Some(message));
            }
            match self.fill(RecvFlags::DONTWAIT) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next bytes sent outside any frame, at most `max` of them; waits for at least one.
    pub(crate) fn recv_raw(&mut self, max: usize) -> io::Result<Vec<u8>> {
        if self.received.is_empty() {
            self.received.reserve(max.min(RAW_READ_BYTES));
            self.fill(RecvFlags::empty())?;
        }
        let n = max.min(self.received.len());
        Ok(self.received.drain(..n).collect())
    }

    fn take_frame<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(header) = self.received.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [length @ .., descriptors] = *header;
        let length = u32::from_le_bytes(length) as usize;
        if length > self.max_frame_bytes {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("a frame of {length} bytes, at most {} are accepted", self.max_frame_bytes),
            ));
        }
        let end = HEADER_BYTES + length;
        if self.received.len() < end {
            self.received.reserve(end - self.received.len());
            return Ok(None);
        }
        let value = decode(&self.received[HEADER_BYTES..end])?;
        self.received.drain(..end);
        let own = usize::from(descriptors).min(self.descriptors.len());
        Ok(Some((value, self.descriptors.drain(..own).collect())))
    }

    fn fill(&mut self, flags: RecvFlags) -> io::Result<()> {
        let filled = self.received.len();
        let free = (self.received.capacity() - filled).max(READ_BYTES);
        self.received.resize(filled + free, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [io::IoSliceMut::new(&mut self.received[filled..])];
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let got = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.socket, &mut parts, &mut control, flags)
        });
        self.received.truncate(filled + got.as_ref().map_or(0, |message| message.bytes));
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.descriptors.extend(fds);
            }
        }
        match got?.bytes {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "the other end has closed")),
            _ => Ok(()),
        }
    }

    fn wait_writable(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One value as a whole frame, with which so many descriptors travel.
pub(crate) fn frame(value: &impl Serialize, descriptors: usize) -> io::Result<Vec<u8>> {
    let body = encode(value)?;
    let refused = |error| io::Error::new(ErrorKind::InvalidInput, error);
    let length = u32::try_from(body.len()).map_err(refused)?;
    let descriptors = u8::try_from(descriptors).map_err(refused)?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.push(descriptors);
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Two connected ends: `SOCK_STREAM`, close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(max_frame_bytes: usize) -> (Channel, Channel) {
        let (a, b) = pair().expect("a socket pair");
        (Channel::new(a, max_frame_bytes), Channel::new(b, max_frame_bytes))
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        let (a, mut b) = channels(MAX_FRAME_BYTES);
        for n in 0..100_u32 {
            a.send(&(n, "x".repeat(n as usize)), &[]).expect("sent");
        }
        for n in 0..100_u32 {
            let ((number, text), _): ((u32, String), _) = b.recv().expect("received");
            assert_eq!((number, text.len()), (n, n as usize));
        }
        assert!(b.try_recv::<u32>().expect("open").is_none());
    }

    #[test]
    fn a_frame_beyond_the_cap_is_refused_and_one_at_the_cap_is_not() {
        let (a, mut b) = channels(100);
        // One byte of length prefix in postcard for strings shorter than 128 bytes.
        a.send(&"x".repeat(99), &[]).expect("sent");
        assert_eq!(b.recv::<String>().expect("at the cap").0.len(), 99);
        a.send(&"x".repeat(100), &[]).expect("sent");
        let error = b.recv::<String>().expect_err("beyond the cap");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_descriptor_travels_with_its_frame() {
        let (a, mut b) = channels(MAX_FRAME_BYTES);
        let (one, two) = pair().expect("a socket pair");
        a.send(&1_u8, &[one.as_fd()]).expect("sent");
        drop(one);
        let (_, mut fds): (u8, _) = b.recv().expect("received");
        let one = fds.pop().expect("a descriptor");
        rustix::io::write(&one, b"!").expect("written");
        let mut byte = [0];
        rustix::io::read(&two, &mut byte).expect("read");
        assert_eq!(&byte, b"!");
    }

    #[test]
    fn a_frame_has_its_own_descriptors_and_no_others() {
        let (a, mut b) = channels(MAX_FRAME_BYTES);
        let (one, two) = pair().expect("a socket pair");
        a.send(&1_u8, &[]).expect("sent");
        a.send(&2_u8, &[one.as_fd(), two.as_fd()]).expect("sent");
        a.send(&3_u8, &[one.as_fd()]).expect("sent");
        let mut next = || b.recv::<u8>().map(|(n, fds)| (n, fds.len())).expect("received");
        assert_eq!([next(), next(), next()], [(1, 0), (2, 2), (3, 1)]);
    }

    #[test]
    fn a_frame_that_came_with_the_one_before_is_not_waited_for() {
        let (a, mut b) = channels(MAX_FRAME_BYTES);
        a.send(&1_u8, &[]).expect("sent");
        a.send(&2_u8, &[]).expect("sent");
        let bound = Duration::from_secs(60);
        let mut next = || b.recv_within::<u8>(bound).map(|(n, _)| n).expect("received");
        assert_eq!([next(), next()], [1, 2]);
        let late = b.recv_within::<u8>(Duration::from_millis(1)).expect_err("nothing came");
        assert_eq!(late.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_closed_end_is_an_end_of_file() {
        let (a, mut b) = channels(MAX_FRAME_BYTES);
        drop(a);
        assert_eq!(b.recv::<u8>().expect_err("closed").kind(), ErrorKind::UnexpectedEof);
    }
}
