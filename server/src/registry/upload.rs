//! What a registry is given (OCI distribution-spec 1.1, push): blobs in one piece, then a manifest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::Bytes;
use futures_core::Stream;
use lazaret_sandbox::image::Digest;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Response, Url};

use super::PullError;
use super::client::{CREATED, MISSING, Registry};

impl Registry {
    /// Whether it has this blob.
    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, PullError> {
        let url = format!("{}/blobs/{digest}", self.source.url());
        let response = self.send(|http| http.head(&url)).await?;
        match response.status().as_u16() {
            MISSING => Ok(false),
            _ => self.accepted(response).map(|_| true),
        }
    }

    /// Has it take a blob from another of its repositories, if it has it there and lets us at it.
    pub(super) async fn mount(&self, digest: &Digest, place: &str) -> Result<bool, PullError> {
        let own = format!("{}/", self.source.registry());
        let Some(from) = place.strip_prefix(&own) else { return Ok(false) };
        let start = format!("{}/blobs/uploads/", self.source.url());
        let mount = [("mount", digest.to_string()), ("from", from.to_owned())];
        let response =
            self.send(|http| http.post(&start).query(&mount).header(CONTENT_LENGTH, 0)).await?;
        // Otherwise it begins an upload, which it forgets.
        Ok(response.status().as_u16() == CREATED)
    }

    /// Gives it a blob of so many bytes. Each call of `body` gives them anew, and counts them as
    /// they go.
    pub(super) async fn upload(
        &self,
        digest: &Digest,
        bytes: u64,
        body: impl Fn(&Arc<AtomicU64>) -> Body,
    ) -> Result<(), PullError> {
        let start = format!("{}/blobs/uploads/", self.source.url());
        let response = self.send(|http| http.post(&start).header(CONTENT_LENGTH, 0)).await?;
        let place = self.place(&start, &self.accepted(response)?)?;
        let sent = Arc::new(AtomicU64::new(0));
        let put = |http: &reqwest::Client| {
            let request = http.put(place.clone()).query(&[("digest", digest.to_string())]);
            let request = request.header(CONTENT_TYPE, "application/octet-stream");
            request.header(CONTENT_LENGTH, bytes).body(body(&sent))
        };
        self.accepted(self.send_long(put, &sent).await?).map(drop)
    }

    /// Gives it a manifest, whose blobs it has.
    pub(super) async fn put_manifest(&self, kind: &str, text: &[u8]) -> Result<(), PullError> {
        let url = format!("{}/manifests/{}", self.source.url(), self.source.handle());
        let put = self.send(|http| http.put(&url).header(CONTENT_TYPE, kind).body(text.to_vec()));
        self.accepted(put.await?).map(drop)
    }

    /// Where an upload goes. Never to another host: it carries what lets us in.
    fn place(&self, start: &str, answer: &Response) -> Result<Url, PullError> {
        let place = answer.headers().get(LOCATION).and_then(|place| place.to_str().ok());
        let start: Option<Url> = start.parse().ok();
        let place = start.as_ref().zip(place).and_then(|(start, place)| start.join(place).ok());
        match (start, place) {
            (Some(start), Some(place)) if start.origin() == place.origin() => Ok(place),
            _ => {
                let registry = self.source.registry();
                let why = format!("registry `{registry}` does not say where on it an upload goes");
                Err(PullError::Refused(why))
            }
        }
    }

    fn accepted(&self, response: Response) -> Result<Response, PullError> {
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(&response)) }
    }
}

/// A file as a body: read where this one is, so that several can be at it.
pub(super) struct FileBody {
    file: Arc<File>,
    read_bytes: u64,
    /// Counts what has gone.
    sent: Arc<AtomicU64>,
}

/// Bytes that are read from the file at one time, which were written just before.
const READ_BYTES: usize = 128 << 10;

impl FileBody {
    /// All of the file.
    pub(super) fn of(file: &Arc<File>, sent: &Arc<AtomicU64>) -> Body {
        let (file, sent) = (Arc::clone(file), Arc::clone(sent));
        Body::wrap_stream(Self { file, read_bytes: 0, sent })
    }
}

impl Stream for FileBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut chunk = vec![0; READ_BYTES];
        let read = match self.file.read_at(&mut chunk, self.read_bytes) {
            Ok(read) => read,
            Err(error) => return Poll::Ready(Some(Err(error))),
        };
        self.read_bytes += read as u64;
        self.sent.fetch_add(read as u64, Ordering::Relaxed);
        chunk.truncate(read);
        Poll::Ready((read > 0).then(|| Ok(chunk.into())))
    }
}
