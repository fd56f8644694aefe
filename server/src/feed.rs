//! The bytes of an archive on their way from the network, which is async, to the unpacker, which
//! blocks: a few at a time, and with an end that only a whole archive has.

use std::io::{self, ErrorKind, Read};

use axum::body::Bytes;
use tokio::sync::mpsc;

/// Pieces on their way: each is what one read of a socket gave, at most some hundred KiB.
const PIECES: usize = 4;

/// The network's side.
pub(crate) struct Feeder(mpsc::Sender<Piece>);

/// The unpacker's side. It ends only where the feeder said so: one that is gone is an error,
/// not the end of an archive.
pub(crate) struct Feed {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    has_ended: bool,
}

enum Piece {
    Some(Bytes),
    End,
}

/// The unpacker reads no more: it has found something wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unread;

/// Both sides.
pub(crate) fn channel() -> (Feeder, Feed) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (Feeder(sender), Feed { pieces, current: Bytes::new(), has_ended: false })
}

impl Feeder {
    /// Hands bytes over, when there is room.
    pub(crate) async fn feed(&self, bytes: Bytes) -> Result<(), Unread> {
        self.0.send(Piece::Some(bytes)).await.map_err(|_closed| Unread)
    }

    /// Says that the archive is whole.
    pub(crate) async fn end(self) -> Result<(), Unread> {
        self.0.send(Piece::End).await.map_err(|_closed| Unread)
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.has_ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Some(bytes)) => self.current = bytes,
                Some(Piece::End) => self.has_ended = true,
                None => {
                    return Err(io::Error::new(ErrorKind::ConnectionAborted, "its sender is gone"));
                }
            }
        }
        let bytes = buffer.len().min(self.current.len());
        buffer[..bytes].copy_from_slice(&self.current.split_to(bytes));
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_was_said_to_be_whole_ends() {
        let (feeder, mut feed) = channel();
        feeder.feed(Bytes::from_static(b"ab")).await.expect("room");
        feeder.feed(Bytes::from_static(b"c")).await.expect("room");
        feeder.end().await.expect("room");
        let read = move || {
            let mut text = String::new();
            feed.read_to_string(&mut text).map(|_| text)
        };
        let read = tokio::task::spawn_blocking(read).await.expect("no panic");
        assert_eq!(read.expect("an end"), "abc");
        let (feeder, mut feed) = channel();
        feeder.feed(Bytes::from_static(b"ab")).await.expect("room");
        drop(feeder);
        let read = move || feed.read_to_end(&mut Vec::new());
        let read = tokio::task::spawn_blocking(read).await.expect("no panic");
        assert_eq!(read.expect_err("no end").kind(), ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn who_feeds_learns_that_nobody_reads() {
        let (feeder, feed) = channel();
        drop(feed);
        assert_eq!(feeder.feed(Bytes::from_static(b"a")).await, Err(Unread));
    }
}
