//! A real server with a data directory of its own, and a client that knows just enough HTTP.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::disallowed_methods, reason = "a test starts the server as an operator does")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A port that the kernel chooses.
pub(crate) const FREE_PORT: &str = "127.0.0.1:0";
/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that ends with the test.
pub(crate) struct Server {
    child: Child,
    address: String,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("a body of JSON")
    }
}

/// The command that starts a server on `address`; port 0 stands for a free one.
pub(crate) fn serve_command(data: &Path, address: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret"));
    command.args(["serve", "--listen", address, "--data"]).arg(data);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

/// Sends a signal by its name.
pub(crate) fn send_signal(name: &str, pid: u32) {
    let killed = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(killed.expect("started").success());
}

/// The children of a process that has one thread for making them.
fn children(pid: u32) -> Vec<u32> {
    let found = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let found = found.expect("a process");
    found.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

impl Server {
    /// Starts a server and waits until it serves.
    pub(crate) fn start(data: &Path) -> Self {
        Self::start_with(data, "")
    }

    /// Starts a server with a configuration file of this text.
    pub(crate) fn start_with(data: &Path, config: &str) -> Self {
        let file = data.with_extension("toml");
        // Beside the data, and one cgroup for all tests, so that a killed server leaves nothing
        // behind that its test does not remove.
        let run_dir = data.with_extension("run");
        let place = format!("run_dir = {run_dir:?}\ncgroup_parent = \"lazaret/tests\"\n");
        std::fs::write(&file, place + config).expect("written");
        let mut child =
            serve_command(data, FREE_PORT).arg("--config").arg(&file).spawn().expect("started");
        let stdout = child.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("read");
        let address = line.trim().strip_prefix("listening on http://").expect("an address");
        Self { child, address: address.to_owned() }
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        let port = self.address.rsplit(':').next().and_then(|port| port.parse().ok());
        port.expect("a port")
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "")
    }

    /// Makes a job and waits for its end.
    pub(crate) fn run(&self, job: &Value) -> Value {
        let answer = self.post("/v1/jobs?wait=30", job);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// Makes a job and does not wait.
    pub(crate) fn submit(&self, job: &Value) -> String {
        let answer = self.post("/v1/jobs", job);
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[("Content-Type", "application/json")], &body.to_string())
    }

    /// Asks for the job until it is in this state.
    pub(crate) fn wait_for(&self, id: &str, state: &str) -> Value {
        let start = Instant::now();
        loop {
            let answer = self.call("GET", &format!("/v1/jobs/{id}"), &[], "");
            let job = answer.json();
            if job["state"] == state {
                return job;
            }
            assert!(start.elapsed() < PATIENCE, "not {state} in time: {job}");
            std::thread::yield_now();
        }
    }

    /// One request on a connection of its own. HTTP/1.0, so that a body ends where the connection
    /// does and needs no decoding.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut stream = self.open(method, path, headers, body);
        let mut text = Vec::new();
        stream.read_to_end(&mut text).expect("read");
        let text = String::from_utf8_lossy(&text);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
        let headers = lines.filter_map(|line| line.split_once(": "));
        Answer {
            status: status.parse().expect("a number"),
            headers: headers.map(|(key, value)| (key.into(), value.into())).collect(),
            body: body.to_owned(),
        }
    }

    /// Sends a request and leaves the answer to be read.
    pub(crate) fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("connected");
        stream.set_read_timeout(Some(2 * PATIENCE)).expect("set");
        let headers: String =
            headers.iter().map(|(key, value)| format!("{key}: {value}\r\n")).collect();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: test\r\n\
             {headers}Content-Length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        stream
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the server a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        send_signal(name, self.child.id());
    }

    /// The processes that answer for containers: children of the zygote, which is the server's
    /// only child.
    pub(crate) fn shims(&self) -> Vec<u32> {
        children(self.child.id()).into_iter().flat_map(children).collect()
    }

    /// Waits until the server has ended.
    pub(crate) fn ended(mut self) -> std::process::ExitStatus {
        self.child.wait().expect("waited")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
