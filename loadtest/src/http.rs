//! A closed loop over HTTP: as many clients as `concurrency`, each with one job at a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::Error;
use crate::report::Report;

/// How long the server may hold one request, in seconds.
const WAIT_S: u32 = 60;
/// How long a client waits for an answer: more than the server holds a request.
const TIMEOUT: Duration = Duration::from_secs(90);

/// What is sent.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Jobs to send.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Clients at one time.
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// How long each client waits before it sends its next job, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pause_ms: u64,
    /// The image to run in; the server's default if it is left out.
    #[arg(long)]
    image: Option<String>,
    /// What each job runs.
    #[arg(default_value = "/usr/bin/true", last = true)]
    command: Vec<String>,
}

/// Sends the jobs. Every one has to succeed.
pub(crate) fn measure(load: &Load) -> Result<Report, Error> {
    let client =
        Client::builder().timeout(TIMEOUT).pool_max_idle_per_host(load.concurrency).build()?;
    let url = format!("{}/v1/jobs?wait={WAIT_S}", load.server.trim_end_matches('/'));
    let mut job = json!({ "command": load.command });
    if let Some(image) = &load.image {
        job["image"] = json!(image);
    }
    let sent = AtomicU64::new(0);
    let started = Instant::now();
    let times = thread::scope(|scope| {
        let clients: Vec<_> = (0..load.concurrency)
            .map(|_| scope.spawn(|| send_all(&client, &url, &job, (&sent, load))))
            .collect();
        clients.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    Report::new(&times.concat(), started.elapsed())
}

fn join(client: thread::ScopedJoinHandle<'_, Result<Vec<Duration>, Error>>) -> Times {
    client.join().unwrap_or_else(|_| Err(Error::Unexpected("a client died".into())))
}

/// How long each job of one client took.
type Times = Result<Vec<Duration>, Error>;

/// Sends jobs until all clients together have sent as many as there are to be.
fn send_all(client: &Client, url: &str, job: &Value, (sent, load): (&AtomicU64, &Load)) -> Times {
    let mut times = Vec::new();
    while sent.fetch_add(1, Ordering::Relaxed) < load.count {
        thread::sleep(Duration::from_millis(load.pause_ms));
        let started = Instant::now();
        let response = client.post(url).json(job).send()?;
        let status = response.status();
        let body: Value = response.json()?;
        times.push(started.elapsed());
        if body["verdict"] != "success" {
            return Err(Error::Unexpected(format!("answer {status}: {body}")));
        }
    }
    Ok(times)
}
