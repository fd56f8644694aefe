//! The HTTP client of the command line.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{ETAG, HeaderValue, IF_NONE_MATCH};
use serde_json::Value;

use super::CliError;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to answer, beyond what it was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the server holds a request for a job that has not changed, in seconds.
const WAIT_S: u64 = 60;

/// The server that a command talks to.
#[derive(Debug, clap::Args)]
pub(super) struct Server {
    /// The server.
    #[arg(long = "server", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

impl Server {
    /// What is at `path`.
    pub(super) fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, CliError> {
        let client = self.client()?;
        let request = client.get(self.url(path)).query(query).timeout(ANSWER_TIMEOUT);
        self.parse(self.send(request)?)
    }

    /// The job at `path`, once it has finished.
    pub(super) fn get_finished(&self, path: &str) -> Result<Value, CliError> {
        let timeout = ANSWER_TIMEOUT + Duration::from_secs(WAIT_S);
        let (client, mut known) = (self.client()?, None::<HeaderValue>);
        loop {
            let mut request = client.get(self.url(path)).timeout(timeout);
            if let Some(tag) = known.clone() {
                request = request.header(IF_NONE_MATCH, tag);
                request = request.header("prefer", format!("wait={WAIT_S}"));
            }
            let response = self.send(request)?;
            known = response.headers().get(ETAG).cloned().or(known);
            if known.is_none() {
                return Err(CliError::failed("the server shows a job without an `ETag`"));
            }
            if response.status() != StatusCode::NOT_MODIFIED {
                let job = self.parse(response)?;
                if job["state"] == "finished" {
                    return Ok(job);
                }
            }
        }
    }

    /// Sends `body` to `path`.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let request = self.client()?.post(self.url(path)).json(body).timeout(ANSWER_TIMEOUT);
        self.parse(self.send(request)?)
    }

    /// A log as JSON Lines. It may take as long as its job.
    pub(super) fn open_log(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Response, CliError> {
        let request = self.client()?.get(self.url(path)).query(query);
        self.send(request.header("accept", "application/jsonl"))
    }

    fn client(&self) -> Result<Client, CliError> {
        let client = Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(None).build();
        client.map_err(CliError::refused)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url.trim_end_matches('/'))
    }

    fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().map_err(|error| {
            let reason = innermost(&error);
            CliError::refused(format!("could not reach `{}`: {reason}: is it running?", self.url))
        })?;
        if response.status().is_client_error() || response.status().is_server_error() {
            return Err(refusal(response));
        }
        Ok(response)
    }

    fn parse(&self, response: Response) -> Result<Value, CliError> {
        let refused = |error| format!("`{}` did not answer JSON: {error}", self.url);
        response.json().map_err(|error| CliError::Refused(refused(error)))
    }
}

/// The server's own words, with each field that it found wrong.
fn refusal(response: Response) -> CliError {
    let status = response.status();
    let problem: Value = response.json().unwrap_or_default();
    let mut message = match problem["detail"].as_str().or(problem["title"].as_str()) {
        Some(detail) => detail.to_owned(),
        None => format!("the server answered {status}"),
    };
    // A single one is the detail already.
    let errors = problem["errors"].as_array().filter(|errors| errors.len() > 1);
    for error in errors.into_iter().flatten() {
        if let (Some(pointer), Some(detail)) = (error["pointer"].as_str(), error["detail"].as_str())
        {
            message += &format!("\n  {pointer}: {detail}");
        }
    }
    CliError::refused(message)
}

/// The first cause: reqwest wraps "connection refused" in three sentences.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
