//! Where an image comes from, and what it is called here.

use std::net::IpAddr;
use std::path::Path;

use lazaret_sandbox::image::{Digest, ImageName};
use oci_client::Reference;

use super::{Credentials, PullError};

/// An image of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    reference: Reference,
    digest: Option<Digest>,
    transport: Transport,
}

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HTTP over TLS.
    Tls,
    /// HTTP that everybody on the way can read and change. Only on this host.
    Plain,
}

impl Source {
    /// Reads `text` as docker does: `python:3.13` is `docker.io/library/python:3.13`.
    ///
    /// # Errors
    /// [`PullError::Refused`] if it is no reference, or its registry must not be asked so.
    pub fn parse(text: &str, transport: Transport) -> Result<Self, PullError> {
        let reference: Reference = text.parse().map_err(|error| {
            PullError::Refused(format!("`{}` names no image: {error}", text.escape_debug()))
        })?;
        let digest = reference.digest().map(str::parse::<Digest>).transpose();
        let digest = digest.map_err(PullError::Refused)?;
        let source = Self { reference, digest, transport };
        if transport == Transport::Plain && !source.is_loopback() {
            return Err(PullError::Refused(format!(
                "registry `{}` is not on this host: plain HTTP is only for 127.0.0.0/8, ::1 and \
                 `localhost`",
                source.registry()
            )));
        }
        Ok(source)
    }

    /// The name that an image gets if nobody chose one: the reference as it was written, with its
    /// tag and without its digest.
    ///
    /// # Errors
    /// [`PullError::Refused`] if there is only a digest, or the reference cannot be a name.
    pub fn default_name(&self, text: &str) -> Result<ImageName, PullError> {
        let Some(tag) = self.reference.tag() else {
            return Err(PullError::Refused(format!(
                "`{text}` has a digest and no tag: choose a name for the image (`--as`, `as`)"
            )));
        };
        let written = text.split('@').next().unwrap_or_default();
        let has_tag = written.rsplit('/').next().is_some_and(|last| last.contains(':'));
        let name = if has_tag { written.to_owned() } else { format!("{written}:{tag}") };
        name.parse().map_err(|error| PullError::Refused(format!("{error}")))
    }

    /// Who docker says asks this registry.
    ///
    /// # Errors
    /// [`PullError::Refused`] if docker's configuration cannot be read.
    pub fn credentials(&self, docker_config: Option<&Path>) -> Result<Credentials, PullError> {
        docker_config.map_or(Ok(Credentials::Anonymous), |path| {
            Credentials::of_docker(path, self.registry())
        })
    }

    /// As oci-client has it.
    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The digest that was asked for.
    pub(super) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Host and port as they were written.
    pub(super) fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// Registry and repository, joined by a slash.
    pub(super) fn place(&self) -> String {
        format!("{}/{}", self.registry(), self.reference.repository())
    }

    /// Where the repository is.
    pub(super) fn url(&self) -> String {
        let scheme = match self.transport {
            Transport::Tls => "https",
            Transport::Plain => "http",
        };
        let (host, repository) = (self.reference.resolve_registry(), self.reference.repository());
        format!("{scheme}://{host}/v2/{repository}")
    }

    /// How it is spoken to.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Whether it could be spoken to in plain HTTP, and is not.
    pub(super) fn may_be_plain(&self) -> bool {
        self.transport == Transport::Tls && self.is_loopback()
    }

    /// Tag or digest by which the registry knows the image.
    pub(super) fn handle(&self) -> String {
        match (&self.digest, self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        }
    }

    fn is_loopback(&self) -> bool {
        let registry = self.registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _port)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.reference.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn source(text: &str) -> Source {
        Source::parse(text, Transport::Tls).expect("a reference")
    }

    #[test]
    fn a_reference_is_read_as_docker_reads_it() {
        let python = source("python:3.13");
        assert_eq!(python.to_string(), "docker.io/library/python:3.13");
        assert_eq!(python.url(), "https://index.docker.io/v2/library/python");
        assert_eq!(source("localhost:5000/a/b").to_string(), "localhost:5000/a/b:latest");
        assert_eq!(source(&format!("a.b/c:1@{DIGEST}")).handle(), DIGEST);
        for text in ["", "A:1", "a b", "a@sha256:00", "https://a/b"] {
            assert!(Source::parse(text, Transport::Tls).is_err(), "{text}");
        }
    }

    #[test]
    fn an_image_is_called_as_it_was_asked_for() {
        let name = |text: &str| source(text).default_name(text).map(String::from).ok();
        assert_eq!(name("python:3.13").as_deref(), Some("python:3.13"));
        assert_eq!(name("localhost:5000/a").as_deref(), Some("localhost:5000/a:latest"));
        assert_eq!(name(&format!("a:1@{DIGEST}")).as_deref(), Some("a:1"));
        assert_eq!(name(&format!("a@{DIGEST}")), None);
    }

    #[test]
    fn plain_http_is_for_this_host_only() {
        let is_accepted = |text: &str| Source::parse(text, Transport::Plain).is_ok();
        for text in ["localhost/a", "localhost:5000/a", "127.0.0.1:5000/a", "127.9.9.9/a"] {
            assert!(is_accepted(text), "{text}");
        }
        for text in ["a", "128.0.0.1:5000/a", "localhost.example.org/a", "127.0.0.1.nip.io/a"] {
            assert!(!is_accepted(text), "{text}");
        }
    }
}
