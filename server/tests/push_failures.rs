//! Registries that do not take what they are given.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]

mod registry;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use registry::client::{Client, Told};
use registry::images;

/// What a request is answered with, by its method and path: a status line, and headers.
type Answers = dyn Fn(&str, &str, usize) -> (&'static str, String) + Send + Sync;

/// A registry that has nothing.
struct Registry {
    address: String,
    /// Methods and paths of the requests that came.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    /// Answers as `answers` says of method, path, and how often that was asked before. Bodies are
    /// read with a pause before each part.
    fn start(
        pause: Duration,
        answers: impl Fn(&str, &str, usize) -> (&'static str, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (answers, asked_of): (Arc<Answers>, _) = (Arc::new(answers), Arc::clone(&asked));
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked_of));
                // Who leaves early ends the conversation, and nothing else.
                std::thread::spawn(move || drop(converse(&connection, pause, &answers, &asked)));
            }
        });
        Self { address, asked }
    }

    fn count(&self, start: &str) -> usize {
        let asked = self.asked.lock().expect("not poisoned");
        asked.iter().filter(|request| request.starts_with(start)).count()
    }
}

fn converse(
    connection: &TcpStream,
    pause: Duration,
    answers: &Arc<Answers>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let request: Vec<&str> = line.split(' ').collect();
        let (method, path) = (request[0], request[1].split('?').next().unwrap_or_default());
        let mut bytes = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            let header = header.to_lowercase();
            if let Some(length) = header.strip_prefix("content-length:") {
                bytes = length.trim().parse().expect("a number");
            }
        }
        let mut part = vec![0; 64 << 10];
        while bytes > 0 {
            std::thread::sleep(pause);
            let read = reader.read(&mut part[..bytes.min(64 << 10)])?;
            if read == 0 {
                return Ok(());
            }
            bytes -= read;
        }
        let key = format!("{method} {path}");
        let before = {
            let mut asked = asked.lock().expect("not poisoned");
            asked.push(key.clone());
            asked.iter().filter(|one| **one == key).count() - 1
        };
        let (status, headers) = answers(method, path, before);
        write!(&*connection, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n{headers}\r\n")?;
    }
}

/// A registry that takes all.
fn taking(method: &str, path: &str) -> (&'static str, String) {
    match method {
        "HEAD" => ("404 Not Found", String::new()),
        "POST" => ("202 Accepted", format!("location: {path}here?state=1\r\n")),
        "PUT" => ("201 Created", String::new()),
        _ => ("200 OK", String::new()),
    }
}

/// An image in a data directory of its own: a layer of so many bytes that cannot be compressed.
fn client_with(bytes: usize) -> Client {
    let client = Client::new();
    let tar = client.data().join("made.tar");
    let noise = images::noise(bytes);
    std::fs::write(&tar, images::archive(&[("noise", &noise)])).expect("written");
    let told = client.run(&["image", "import", tar.to_str().expect("UTF-8"), "made:1"]);
    assert_eq!(told.code, 0, "{told:?}");
    client
}

fn push(client: &Client, registry: &Registry) -> Told {
    let target = format!("{}/team/app:1", registry.address);
    client.run(&["image", "push", "made:1", &target, "--plain-http"])
}

#[test]
fn an_upload_goes_where_the_registry_says_on_itself_and_nowhere_else() {
    let client = client_with(1000);
    let registry = Registry::start(Duration::ZERO, |method, path, _| taking(method, path));
    let told = push(&client, &registry);
    assert_eq!(told.code, 0, "{told:?}");
    // A layer and the config, then the manifest.
    assert_eq!((registry.count("POST"), registry.count("PUT")), (2, 3));

    let elsewhere = Registry::start(Duration::ZERO, |method, path, _| taking(method, path));
    let address = elsewhere.address.clone();
    let registry = Registry::start(Duration::ZERO, move |method, path, _| match method {
        "POST" => ("202 Accepted", format!("location: http://{address}{path}here\r\n")),
        _ => taking(method, path),
    });
    let told = push(&client, &registry);
    assert!(told.code == 2 && told.err.contains("where on it an upload goes"), "{told:?}");
    assert_eq!(elsewhere.count(""), 0);
}

#[test]
fn what_fails_for_a_moment_is_tried_again_and_what_is_refused_is_told() {
    let client = client_with(1000);
    let registry = Registry::start(Duration::ZERO, |method, path, before| match (method, before) {
        ("PUT", 0) if path.contains("/blobs/") => ("503 Service Unavailable", String::new()),
        _ => taking(method, path),
    });
    let told = push(&client, &registry);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.err.contains("again: "), "{told:?}");
    for (status, words) in [
        ("403 Forbidden", "does not take"),
        ("401 Unauthorized", "does not take"),
        ("429 Too Many Requests", "asked too often"),
    ] {
        let registry = Registry::start(Duration::ZERO, move |method, path, _| match method {
            "POST" => (status, "retry-after: 100000\r\n".into()),
            _ => taking(method, path),
        });
        let told = push(&client, &registry);
        assert!(told.code != 0 && told.err.contains(words), "{status}: {told:?}");
        assert!(told.err.contains(&registry.address), "{status}: {told:?}");
        assert_eq!(registry.count("PUT"), 0);
    }
}

/// Longer than an answer may take, but never without a move.
#[test]
fn a_registry_that_takes_its_time_gets_it() {
    let client = client_with(6 << 20);
    let pause = Duration::from_millis(370);
    let registry = Registry::start(pause, |method, path, _| taking(method, path));
    let start = std::time::Instant::now();
    let told = push(&client, &registry);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(!told.err.contains("again: "), "{told:?}");
    assert!(start.elapsed() > Duration::from_secs(31), "it was not slow enough to tell");
}
