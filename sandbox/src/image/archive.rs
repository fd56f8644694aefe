//! A layer's archive as a stream: unpacked from gzip or zstd, hashed and bounded while it is read.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tar::Header;

use super::Digest;

/// The largest window a zstd stream may ask us to hold: 2 to the power of this, 32 MiB.
const MAX_ZSTD_WINDOW_LOG: u32 = 25;
const READ_BYTES: usize = 64 << 10;
/// How streams start that are compressed (RFC 1952 and RFC 8878).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Bytes of a header, and where in it its checksum is.
const BLOCK_BYTES: usize = 512;
const CHECKSUM_PLACE: Range<usize> = 148..156;

/// The uncompressed archive in `stream`, whatever it is compressed with.
pub(super) fn open(stream: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut stream = BufReader::with_capacity(READ_BYTES, stream);
    let magic = stream.fill_buf()?;
    if magic.starts_with(&GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(stream)));
    }
    if magic.starts_with(&ZSTD) {
        let mut decoder = zstd::Decoder::with_buffer(stream)?;
        decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(stream))
}

/// Whether what is in `file` has to be decompressed.
pub(super) fn is_compressed(file: &File) -> io::Result<bool> {
    let mut magic = [0; 4];
    let bytes = file.read_at(&mut magic, 0)?;
    Ok(magic[..bytes].starts_with(&GZIP) || magic[..bytes].starts_with(&ZSTD))
}

/// The name of the first entry of an uncompressed archive; none if it is no archive. That of an
/// archive of nothing is empty.
pub(super) fn first_name(mut source: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut block = Vec::new();
    source.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
    let is_archive = starts_archive(&block);
    Ok(is_archive.then(|| Header::from_byte_slice(&block).path_bytes().into_owned()))
}

/// The stream `source`, if it starts as an archive does.
pub(super) fn recognized<R: Read>(mut source: R) -> io::Result<Option<impl Read>> {
    let mut block = Vec::new();
    source.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
    Ok(starts_archive(&block).then(|| io::Cursor::new(block).chain(source)))
}

/// Whether this is a header, by its checksum as even the oldest have one, or the end of an archive
/// of nothing.
fn starts_archive(block: &[u8]) -> bool {
    if block.len() != BLOCK_BYTES {
        return false;
    }
    let checksum = Header::from_byte_slice(block).cksum();
    let sum = |bytes: &[u8]| bytes.iter().copied().map(u32::from).sum::<u32>();
    // It counts as spaces itself.
    let spaces = sum(&[b' '; CHECKSUM_PLACE.end - CHECKSUM_PLACE.start]);
    let sum = sum(block) - sum(&block[CHECKSUM_PLACE]) + spaces;
    checksum.is_ok_and(|checksum| checksum == sum) || block.iter().all(|byte| *byte == 0)
}

/// A stream that is hashed as it is read, and gives no more than its allowance.
///
/// Some makers of archives leave out what fills up the last block. Where that is all that can be
/// missing, which is so while the next entry is looked for, zeros are given in its place.
///
/// The tar crate reads the names and attributes in front of an entry into memory whatever their
/// length is. The allowance is therefore small while it looks for the next entry.
pub(super) struct Metered<R> {
    source: R,
    hasher: Sha256,
    allowance: Allowance,
    /// Bytes given so far of the block at hand.
    given: usize,
}

/// How many more bytes a [`Metered`] stream may give; shared with who reads it through others.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    /// Of the whole stream.
    total: Rc<Cell<u64>>,
    /// Before the next call of [`Allowance::narrow`] or [`Allowance::widen`]; at most `total`.
    now: Rc<Cell<u64>>,
    /// Which of the two was called last.
    is_narrow: Rc<Cell<bool>>,
}

impl Allowance {
    /// An allowance of `total` bytes.
    pub(super) fn new(total: u64) -> Self {
        let (total, now) = (Rc::new(Cell::new(total)), Rc::new(Cell::new(total)));
        Self { total, now, is_narrow: Rc::default() }
    }

    /// Lets the stream give at most `bytes` for now: the next entry is looked for.
    pub(super) fn narrow(&self, bytes: u64) {
        self.is_narrow.set(true);
        self.now.set(self.total.get().min(bytes));
    }

    /// Lets the stream give all that is left of the total.
    pub(super) fn widen(&self) {
        self.is_narrow.set(false);
        self.now.set(self.total.get());
    }

    fn spend(&self, bytes: u64) {
        self.total.set(self.total.get() - bytes);
        self.now.set(self.now.get() - bytes);
    }
}

impl<R: Read> Metered<R> {
    /// The stream `source`, within `allowance`.
    pub(super) fn new(source: R, allowance: Allowance) -> Self {
        Self { source, hasher: Sha256::new(), allowance, given: 0 }
    }

    /// The zeros that fill up the last block, if they may be missing.
    fn fill_up(&mut self, buffer: &mut [u8]) -> usize {
        let missing = self.given.next_multiple_of(BLOCK_BYTES) - self.given;
        if !self.allowance.is_narrow.get() {
            return 0;
        }
        let bytes = buffer.len().min(missing);
        buffer[..bytes].fill(0);
        self.given = (self.given + bytes) % BLOCK_BYTES;
        bytes
    }

    /// Reads what is left and answers with the digest of the whole stream.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        let mut rest = vec![0; READ_BYTES];
        while self.read(&mut rest)? > 0 {}
        Ok(Digest::finish(self.hasher))
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = usize::try_from(self.allowance.now.get()).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(allowed);
        if wanted == 0 && !buffer.is_empty() {
            // At the very end of the stream there is nothing to refuse.
            return match self.source.read(&mut [0])? {
                0 => Ok(self.fill_up(buffer)),
                _ => {
                    Err(io::Error::new(ErrorKind::QuotaExceeded, "the bytes its archive may have"))
                }
            };
        }
        let bytes = self.source.read(&mut buffer[..wanted])?;
        if bytes == 0 {
            return Ok(self.fill_up(buffer));
        }
        self.hasher.update(&buffer[..bytes]);
        self.allowance.spend(bytes as u64);
        self.given = (self.given + bytes) % BLOCK_BYTES;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_gives_its_allowance_and_no_more() {
        let allowance = Allowance::new(6);
        let mut stream = Metered::new(&b"0123456789"[..], allowance.clone());
        let mut buffer = [0; 4];
        allowance.narrow(3);
        assert_eq!(stream.read(&mut buffer).expect("read"), 3);
        assert_eq!(stream.read(&mut buffer).expect_err("refused").kind(), ErrorKind::QuotaExceeded);
        allowance.widen();
        assert_eq!(stream.read(&mut buffer).expect("read"), 3);
        assert_eq!(stream.read(&mut buffer).expect_err("refused").kind(), ErrorKind::QuotaExceeded);
    }

    #[test]
    fn the_digest_covers_what_nobody_asked_for() {
        let mut stream = Metered::new(&b"0123456789"[..], Allowance::new(10));
        stream.read_exact(&mut [0; 4]).expect("read");
        assert_eq!(stream.finish().expect("read"), Digest::of(b"0123456789"));
    }
}
