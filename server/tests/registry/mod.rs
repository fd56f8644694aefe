//! A registry that a test makes: it speaks just enough HTTP, fails as it is told to, and remembers
//! what it was asked for.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod client;
pub(crate) mod debian;
pub(crate) mod images;
pub(crate) mod layers;
pub(crate) mod trees;

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use images::{Blob, Made};

/// What a slow registry sends at one time.
const PIECE_BYTES: usize = 32 << 10;

/// What happens to one request, instead of what should.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This status, and these headers.
    Answer(u16, &'static str),
    /// The whole is announced, and the connection closed after so many bytes.
    CutAt(usize),
    /// So many bytes are sent, and then nothing until the client is gone.
    StallAt(usize),
    /// Half is sent, and the rest when the test says so; see [`Registry::release`].
    Held,
    /// A range is not heeded.
    Whole,
}

/// Whom a registry answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Everyone.
    Open,
    /// Who has the password, in base64.
    Password(&'static str),
    /// Who has a token that is given for the password, in base64.
    Token(&'static str),
}

/// The token that a registry gives.
pub(crate) const TOKEN: &str = "open-sesame";

/// The registry. It goes when the test's process does.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    address: String,
    door: Door,
    /// Between the pieces that blobs are sent in.
    pause: Duration,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Debug, Default)]
struct Shelf {
    blobs: HashMap<String, Blob>,
    faults: HashMap<String, VecDeque<Fault>>,
    asked: Vec<Asked>,
    stalled: usize,
    is_released: bool,
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Its path.
    pub(crate) path: String,
    /// Its `Range`.
    pub(crate) range: Option<String>,
    /// Its `Authorization`.
    authorization: Option<String>,
    /// When it came.
    pub(crate) at: Instant,
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::start_behind(Door::Open)
    }

    pub(crate) fn start_behind(door: Door) -> Self {
        Self::start_with(door, Duration::ZERO)
    }

    /// Starts one that pauses so long after each piece of a blob.
    pub(crate) fn start_slow(pause: Duration) -> Self {
        Self::start_with(Door::Open, pause)
    }

    fn start_with(door: Door, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let registry = Self { address, door, pause, shelf: Arc::default() };
        let served = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (registry, stream) = (served.clone(), stream.expect("a connection"));
                // A client that is gone ends only its own connection.
                std::thread::spawn(move || drop(registry.serve(stream)));
            }
        });
        registry
    }

    /// A reference to what it has.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Has an image, by its digest and by `tag`.
    pub(crate) fn put(&self, tag: &str, made: &Made) {
        let mut shelf = self.shelf.lock().expect("no panic");
        for blob in made.blobs() {
            shelf.blobs.insert(blob_path(blob), blob.clone());
        }
        for handle in [tag, &made.manifest.digest] {
            shelf.blobs.insert(manifest_path(handle), made.manifest.clone());
        }
    }

    /// What happens to the next requests for `path`, one after another.
    pub(crate) fn fail(&self, path: &str, faults: &[Fault]) {
        let faults = faults.iter().cloned().collect();
        self.shelf.lock().expect("no panic").faults.insert(path.to_owned(), faults);
    }

    /// The requests for `path` so far.
    pub(crate) fn asked(&self, path: &str) -> Vec<Asked> {
        let shelf = self.shelf.lock().expect("no panic");
        shelf.asked.iter().filter(|asked| asked.path == path).cloned().collect()
    }

    /// Requests that hang at this moment, or have.
    pub(crate) fn stalled(&self) -> usize {
        self.shelf.lock().expect("no panic").stalled
    }

    /// Sends what is held.
    pub(crate) fn release(&self) {
        self.shelf.lock().expect("no panic").is_released = true;
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let Some(asked) = Asked::parse(&lines) else { return Ok(()) };
        let mut stream = reader.into_inner();
        let (path, fault) = {
            let mut shelf = self.shelf.lock().expect("no panic");
            shelf.asked.push(asked.clone());
            let fault = shelf.faults.get_mut(&asked.path).and_then(VecDeque::pop_front);
            (asked.path.clone(), fault)
        };
        if path == "/token" {
            return self.give_token(&mut stream, &asked);
        }
        if let Some(challenge) = self.challenge(&asked) {
            return answer(&mut stream, 401, &challenge, b"");
        }
        if path == "/v2/" {
            return answer(&mut stream, 200, "", b"");
        }
        if let Some(Fault::Answer(status, headers)) = fault {
            return answer(&mut stream, status, headers, b"{}");
        }
        let blob = self.shelf.lock().expect("no panic").blobs.get(&path).cloned();
        match blob {
            Some(blob) => self.send(&mut stream, &blob, &asked, fault.as_ref()),
            None => answer(&mut stream, 404, "", b"{}"),
        }
    }

    fn send(
        &self,
        stream: &mut TcpStream,
        blob: &Blob,
        asked: &Asked,
        fault: Option<&Fault>,
    ) -> std::io::Result<()> {
        let start = match (fault, &asked.range) {
            (Some(Fault::Whole), _) | (_, None) => 0,
            (_, Some(range)) => {
                let start = range.trim_start_matches("bytes=").trim_end_matches('-');
                start.parse().expect("a number")
            }
        };
        let (body, status) = (&blob.sent[start..], if start > 0 { 206 } else { 200 });
        let headers = format!("content-type: {}\r\n", blob.media_type);
        match fault {
            Some(Fault::CutAt(bytes)) => {
                head(stream, status, &headers, body.len())?;
                stream.write_all(&body[..*bytes])
            }
            Some(Fault::StallAt(bytes)) => {
                head(stream, status, &headers, body.len())?;
                stream.write_all(&body[..*bytes])?;
                self.shelf.lock().expect("no panic").stalled += 1;
                // Ends when the client is gone.
                stream.read(&mut [0]).map(drop)
            }
            Some(Fault::Held) => {
                head(stream, status, &headers, body.len())?;
                stream.write_all(&body[..body.len() / 2])?;
                while !self.shelf.lock().expect("no panic").is_released {
                    std::thread::yield_now();
                }
                stream.write_all(&body[body.len() / 2..])
            }
            Some(Fault::Whole | Fault::Answer(..)) | None => {
                head(stream, status, &headers, body.len())?;
                for piece in body.chunks(PIECE_BYTES) {
                    stream.write_all(piece)?;
                    std::thread::sleep(self.pause);
                }
                Ok(())
            }
        }
    }

    fn give_token(&self, stream: &mut TcpStream, asked: &Asked) -> std::io::Result<()> {
        let Door::Token(password) = self.door else { return answer(stream, 404, "", b"") };
        if asked.authorization.as_deref() == Some(&format!("Basic {password}")) {
            answer(stream, 200, "", format!("{{\"token\": \"{TOKEN}\"}}").as_bytes())
        } else {
            answer(stream, 401, "", b"who are you?")
        }
    }

    /// What is wanted of who asks, and was not given.
    fn challenge(&self, asked: &Asked) -> Option<String> {
        let (right, challenge) = match self.door {
            Door::Open => return None,
            Door::Password(password) => {
                (format!("Basic {password}"), "Basic realm=\"test\"".to_owned())
            }
            Door::Token(_) => {
                let realm = format!("http://{}/token", self.address);
                (format!("Bearer {TOKEN}"), format!("Bearer realm=\"{realm}\",service=\"test\""))
            }
        };
        let is_right = asked.authorization.as_ref() == Some(&right);
        (!is_right).then(|| format!("www-authenticate: {challenge}\r\n"))
    }
}

impl Asked {
    fn parse(lines: &[String]) -> Option<Self> {
        let header = |name: &str| {
            let of_name = |line: &String| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            };
            lines.iter().find_map(of_name)
        };
        let path = lines.first()?.split(' ').nth(1)?.split('?').next()?.to_owned();
        let (range, authorization) = (header("range"), header("authorization"));
        Some(Self { path, range, authorization, at: Instant::now() })
    }
}

/// Where a registry has the layers and configs of the images of these tests.
pub(crate) fn blob_path(blob: &Blob) -> String {
    format!("/v2/test/image/blobs/{}", blob.digest)
}

/// Where it has their manifests.
pub(crate) fn manifest_path(handle: &str) -> String {
    format!("/v2/test/image/manifests/{handle}")
}

fn head(stream: &mut TcpStream, status: u16, headers: &str, bytes: usize) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {bytes}\r\n{headers}\r\n"
    )
}

fn answer(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    head(stream, status, headers, body.len())?;
    stream.write_all(body)
}
