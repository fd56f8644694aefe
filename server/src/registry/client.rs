//! One repository of a registry over HTTP: tokens by oci-client, transfers by ourselves, since it
//! keeps neither `Retry-After` nor a bound on what it reads into memory.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lazaret_sandbox::image::{self, Digest};
use oci_client::RegistryOperation;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use reqwest::header::{ACCEPT, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{RequestBuilder, Response};
use tokio::sync::RwLock;

use super::credentials::{Credentials, Secret};
use super::{PullError, Source, Transport};

/// How long a registry may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to say who may ask.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest manifest, as registries have it, and the largest config.
const MAX_DOCUMENT_BYTES: usize = 4 << 20;
const USER_AGENT: &str = concat!("lazaret/", env!("CARGO_PKG_VERSION"));
/// What a tag may stand for.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

// Answers of registries that mean something to us.
pub(super) const CREATED: u16 = 201;
const PARTIAL: u16 = 206;
const UNAUTHORIZED: u16 = 401;
const FORBIDDEN: u16 = 403;
pub(super) const MISSING: u16 = 404;
const TOO_MANY: u16 = 429;

/// A repository that an image is pulled from.
pub(super) struct Registry {
    /// Where it is.
    pub(super) source: Source,
    credentials: Credentials,
    purpose: RegistryOperation,
    tokens: oci_client::Client,
    http: reqwest::Client,
    /// For what is sent for longer than an answer may take.
    sender: reqwest::Client,
    authorization: RwLock<Authorization>,
}

/// What requests carry.
#[derive(Debug, Clone)]
enum Authorization {
    None,
    Token(Secret),
    Password { username: String, password: Secret },
}

/// A blob that comes.
pub(super) struct Blob {
    /// Its bytes.
    pub(super) response: Response,
    /// Whether it starts where it was asked to, and not at its start.
    pub(super) is_partial: bool,
}

impl Registry {
    /// Finds out how the registry wants to be asked.
    pub(super) async fn open(
        source: Source,
        credentials: Credentials,
        purpose: RegistryOperation,
    ) -> Result<Arc<Self>, PullError> {
        provide_tls();
        let (protocol, is_https_only) = match source.transport() {
            Transport::Tls => (ClientProtocol::Https, true),
            Transport::Plain => (ClientProtocol::Http, false),
        };
        let tokens = oci_client::Client::try_from(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        });
        let client = || {
            let client = reqwest::Client::builder().https_only(is_https_only);
            client.connect_timeout(CONNECT_TIMEOUT).user_agent(USER_AGENT)
        };
        let (http, sender) = (client().read_timeout(READ_TIMEOUT).build(), client().build());
        let registry = source.registry().to_owned();
        let no_client = |reason: String| PullError::Unreachable { registry, reason };
        let (tokens, http, sender) = match (tokens, http, sender) {
            (Ok(tokens), Ok(http), Ok(sender)) => (tokens, http, sender),
            (Err(error), ..) => return Err(no_client(error.to_string())),
            (_, Err(error), _) | (.., Err(error)) => return Err(no_client(error.to_string())),
        };
        let authorization = RwLock::new(Authorization::None);
        let registry =
            Arc::new(Self { source, credentials, purpose, tokens, http, sender, authorization });
        registry.authorize().await?;
        Ok(registry)
    }

    /// An index or a manifest, of the digest that was asked for, if one was.
    pub(super) async fn manifest(
        &self,
        handle: &str,
        digest: Option<Digest>,
    ) -> Result<Vec<u8>, PullError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, reqwest::header::HeaderValue::from_static(MANIFESTS));
        let url = format!("{}/manifests/{handle}", self.source.url());
        self.document(&url, headers, digest).await
    }

    /// A config.
    pub(super) async fn config(&self, digest: Digest) -> Result<Vec<u8>, PullError> {
        let url = format!("{}/blobs/{digest}", self.source.url());
        self.document(&url, HeaderMap::new(), Some(digest)).await
    }

    /// A blob, from its byte `offset` on if the registry can do that.
    pub(super) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Blob, PullError> {
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(range) = format!("bytes={offset}-").parse()
        {
            headers.insert(RANGE, range);
        }
        let url = format!("{}/blobs/{digest}", self.source.url());
        let response = self.get(&url, headers).await?;
        let is_partial = response.status().as_u16() == PARTIAL;
        Ok(Blob { response, is_partial })
    }

    async fn document(
        &self,
        url: &str,
        headers: HeaderMap,
        digest: Option<Digest>,
    ) -> Result<Vec<u8>, PullError> {
        let unusable = |source| {
            let (image, source) = (self.source.to_string(), Box::new(source));
            PullError::Image { image, source }
        };
        let mut response = self.get(url, headers).await?;
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            text.extend_from_slice(&chunk);
            if text.len() > MAX_DOCUMENT_BYTES {
                let what = format!("its manifest or config is beyond {MAX_DOCUMENT_BYTES} bytes");
                return Err(unusable(image::Error::NoImage { what }));
            }
        }
        let found = Digest::of(&text);
        match digest {
            Some(expected) if expected != found => {
                Err(unusable(image::Error::WrongDigest { expected, found }))
            }
            Some(_) | None => Ok(text),
        }
    }

    /// Gets what is at `url`.
    async fn get(&self, url: &str, headers: HeaderMap) -> Result<Response, PullError> {
        let response = self.send(|http| http.get(url).headers(headers.clone())).await?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(&response)) }
    }

    /// Sends a request. A token may have become too old meanwhile: then once more, with a new one.
    pub(super) async fn send(
        &self,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, PullError> {
        self.send_by(&self.http, request).await
    }

    /// As [`Registry::send`], of a body whose sending takes its time: `sent` counts its bytes, and
    /// what is given up is only one that stands still.
    pub(super) async fn send_long(
        &self,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
        sent: &AtomicU64,
    ) -> Result<Response, PullError> {
        let sending = self.send_by(&self.sender, request);
        tokio::pin!(sending);
        loop {
            let before = sent.load(Ordering::Relaxed);
            tokio::select! {
                answer = &mut sending => return answer,
                () = tokio::time::sleep(READ_TIMEOUT) => {}
            }
            if sent.load(Ordering::Relaxed) == before {
                return Err(self.silent("it takes no more, and does not answer"));
            }
        }
    }

    async fn send_by(
        &self,
        client: &reqwest::Client,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, PullError> {
        let response = self.send_once(request(client)).await?;
        if response.status().as_u16() != UNAUTHORIZED {
            return Ok(response);
        }
        self.authorize().await?;
        self.send_once(request(client)).await
    }

    async fn send_once(&self, request: RequestBuilder) -> Result<Response, PullError> {
        let authorization = self.authorization.read().await.clone();
        let request = match authorization {
            Authorization::None => request,
            Authorization::Token(token) => request.bearer_auth(token.reveal()),
            Authorization::Password { username, password } => {
                request.basic_auth(username, Some(password.reveal()))
            }
        };
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    /// What an answer means that is not the one asked for.
    pub(super) fn refusal(&self, response: &Response) -> PullError {
        let registry = self.source.registry().to_owned();
        match response.status().as_u16() {
            UNAUTHORIZED | FORBIDDEN => self.denied(),
            MISSING => PullError::NotFound { registry, image: self.source.to_string() },
            TOO_MANY => PullError::RateLimited { registry, retry_after: retry_after(response) },
            _ => {
                let reason = format!("it answered `{}`", response.status());
                PullError::Unreachable { registry, reason }
            }
        }
    }

    fn denied(&self) -> PullError {
        let (registry, image) = (self.source.registry().to_owned(), self.source.to_string());
        let who = self.credentials.turned_away();
        let does_not = match self.purpose {
            RegistryOperation::Pull => format!("give `{image}` to {who}"),
            RegistryOperation::Push => format!("take `{image}` from {who}"),
        };
        PullError::Denied { registry, does_not }
    }

    /// Gets a token, if the registry gives any.
    async fn authorize(&self) -> Result<(), PullError> {
        let credentials = self.credentials.for_token();
        let asking = self.tokens.auth(self.source.reference(), &credentials, self.purpose);
        let asked = tokio::time::timeout(TOKEN_TIMEOUT, asking).await;
        let token = match asked {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => return Err(self.no_token(&error)),
            Err(_elapsed) => return Err(self.silent("it gives no token in time")),
        };
        let authorization = match (token, &self.credentials) {
            (Some(token), _) => Authorization::Token(Secret::new(token)),
            (None, Credentials::Password { username, password }) => {
                Authorization::Password { username: username.clone(), password: password.clone() }
            }
            (None, Credentials::Anonymous | Credentials::InHelper(_)) => Authorization::None,
        };
        *self.authorization.write().await = authorization;
        Ok(())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most cannot come from asking for a token")]
    fn no_token(&self, error: &OciDistributionError) -> PullError {
        match error {
            OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. } => self.denied(),
            OciDistributionError::RequestError(error) => self.unreachable(error),
            // What it quotes may hold a token.
            _ => self.silent("what it says of tokens cannot be read"),
        }
    }

    /// The registry does not behave as one.
    pub(super) fn silent(&self, reason: &str) -> PullError {
        PullError::Unreachable {
            registry: self.source.registry().to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> PullError {
        let cause = first_cause(error);
        if error.is_connect() && self.source.may_be_plain() {
            return self.silent(&format!("{cause} (or does it speak plain HTTP?)"));
        }
        self.silent(&cause)
    }
}

/// The first cause: reqwest wraps "connection refused" in three sentences, and its own has the
/// address, which may hold what a registry signed.
pub(super) fn first_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it does not answer in time".into();
    }
    let Some(mut cause) = error.source() else { return "it does not speak HTTP".into() };
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The seconds of `Retry-After`. Registries that send a date are asked again after our own pause.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Chooses what does TLS in this process, for every HTTP client in it.
pub fn provide_tls() {
    // Who came first has chosen the same.
    drop(rustls::crypto::ring::default_provider().install_default());
}
