//! What a registry is given (OCI distribution-spec 1.1, push): blobs in one piece, then a manifest.

use lazaret_sandbox::image::Digest;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Response, Url};

use super::PullError;
use super::client::{MISSING, Registry};

impl Registry {
    /// Whether it has this blob.
    pub(super) async fn has(&self, digest: &Digest) -> Result<bool, PullError> {
        let url = format!("{}/blobs/{digest}", self.source.url());
        let response = self.send(|http| Ok(http.head(&url))).await?;
        match response.status().as_u16() {
            MISSING => Ok(false),
            _ => self.accepted(response).map(|_| true),
        }
    }

    /// Gives it a blob of so many bytes, which each call of `body` gives anew.
    pub(super) async fn upload(
        &self,
        digest: &Digest,
        bytes: u64,
        body: impl Fn() -> std::io::Result<Body>,
    ) -> Result<(), PullError> {
        let start = format!("{}/blobs/uploads/", self.source.url());
        let response = self.send(|http| Ok(http.post(&start).header(CONTENT_LENGTH, 0))).await?;
        let place = self.place(&start, &self.accepted(response)?)?;
        let response = self.send(|http| {
            let body = body().map_err(|error| self.silent(&error.to_string()))?;
            let request = http.put(place.clone()).query(&[("digest", digest.to_string())]);
            let request = request.header(CONTENT_TYPE, "application/octet-stream");
            Ok(request.header(CONTENT_LENGTH, bytes).body(body))
        });
        self.accepted(response.await?).map(drop)
    }

    /// Gives it a manifest, whose blobs it has.
    pub(super) async fn put_manifest(&self, kind: &str, text: &[u8]) -> Result<(), PullError> {
        let url = format!("{}/manifests/{}", self.source.url(), self.source.handle());
        let put =
            self.send(|http| Ok(http.put(&url).header(CONTENT_TYPE, kind).body(text.to_vec())));
        self.accepted(put.await?).map(drop)
    }

    /// Where an upload goes. Never to another host: it carries what lets us in.
    fn place(&self, start: &str, answer: &Response) -> Result<Url, PullError> {
        let place = answer.headers().get(LOCATION).and_then(|place| place.to_str().ok());
        let start: Option<Url> = start.parse().ok();
        let place = start.as_ref().zip(place).and_then(|(start, place)| start.join(place).ok());
        match (start, place) {
            (Some(start), Some(place)) if start.origin() == place.origin() => Ok(place),
            _ => Err(self.silent("it does not say where on it an upload goes")),
        }
    }

    fn accepted(&self, response: Response) -> Result<Response, PullError> {
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(&response)) }
    }
}
