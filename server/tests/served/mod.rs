//! A real server with a data directory of its own, and a client that knows just enough HTTP.
#![expect(clippy::expect_used, reason = "a test ends where something is not as expected")]
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::disallowed_methods, reason = "a test starts the server as an operator does")]

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

/// A port that the kernel chooses.
pub(crate) const FREE_PORT: &str = "127.0.0.1:0";
/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what a killed server left behind may take to go, until its cgroup stays behind, too.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(1);

/// A server that ends with the test.
pub(crate) struct Server {
    child: Child,
    address: String,
    run_dir: PathBuf,
    cgroup_parent: String,
    log: PathBuf,
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

/// Waits until this is so.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// Changes the database behind the server's back.
pub(crate) fn execute(data: &Path, sql: &'static str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let changed = runtime.expect("a runtime").block_on(async {
        let database = SqliteConnectOptions::new().filename(data.join("lazaret.db"));
        let mut connection = database.connect().await?;
        sqlx::query(sql).execute(&mut connection).await
    });
    changed.expect("changed");
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
        Self::start_saying(data, config, Stdio::inherit())
    }

    /// Starts a server that writes down what it says; see [`Server::has_said`].
    pub(crate) fn start_logged(data: &Path, config: &str) -> Self {
        let log = std::fs::File::create(data.with_extension("log")).expect("made");
        Self::start_saying(data, config, log.into())
    }

    /// Starts a server whose data are on a disk of `mib` MiB of their own, which ends with it.
    pub(crate) fn start_on_small_disk(data: &Path, mib: u32) -> Self {
        std::fs::create_dir(data).expect("made");
        let script = format!("mount -t tmpfs -o size={mib}m tmpfs \"$0\" && exec \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(data);
        let serve = serve_command(data, FREE_PORT);
        command.arg(serve.get_program()).args(serve.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Self::start_by(command, data, "", Stdio::inherit())
    }

    fn start_saying(data: &Path, config: &str, log: Stdio) -> Self {
        Self::start_by(serve_command(data, FREE_PORT), data, config, log)
    }

    fn start_by(mut command: Command, data: &Path, config: &str, log: Stdio) -> Self {
        let file = data.with_extension("toml");
        // Both by the name of the data: the next server on it cleans up after this one.
        let run_dir = data.with_extension("run");
        let cgroup_parent = format!("lazaret/tests-{}", test_name(data));
        let place = format!("run_dir = {run_dir:?}\ncgroup_parent = {cgroup_parent:?}\n");
        std::fs::write(&file, place + config).expect("written");
        let mut child = command.arg("--config").arg(&file).stderr(log).spawn().expect("started");
        let stdout = child.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("read");
        let address = line.trim().strip_prefix("listening on http://").expect("an address");
        let (address, log) = (address.to_owned(), data.with_extension("log"));
        Self { child, address, run_dir, cgroup_parent, log }
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
        call(&self.address, (method, path), headers, body).expect("an answer")
    }

    /// Sends a request and leaves the answer to be read.
    pub(crate) fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> TcpStream {
        open(&self.address, (method, path), headers, body).expect("sent")
    }

    /// Whether this is in the log of a server that has one.
    pub(crate) fn has_said(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).expect("a log").contains(text)
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

    /// Where it keeps what it must know of its containers after a crash.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The processes that make its containers: one.
    pub(crate) fn zygotes(&self) -> Vec<u32> {
        children(self.child.id())
    }

    /// Waits until the server has ended.
    pub(crate) fn ended(mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::yield_now();
        }
    }

    /// Where the cgroup of all its containers is, or would be, in every hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten();
        let roots = hierarchies.map(|entry| entry.path()).chain([root.to_owned()]);
        roots.map(|root| root.join(&self.cgroup_parent)).collect()
    }

    /// Removes the cgroup of all its containers in every hierarchy; false if some is in use.
    fn remove_cgroup(&self) -> bool {
        let removed = self.cgroups().into_iter().map(std::fs::remove_dir);
        let in_use = |result: &io::Result<()>| {
            result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
        };
        removed.filter(in_use).count() == 0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let had_ended = matches!(self.child.try_wait(), Ok(Some(_)));
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        // Its containers go by themselves, but after it. Who has waited for the end of the server
        // starts another in its place, which cleans up.
        let start = Instant::now();
        while !had_ended && !self.remove_cgroup() && start.elapsed() < CLEANUP_PATIENCE {
            std::thread::yield_now();
        }
    }
}

/// What tells the directories of tests apart, without the dot at its start.
fn test_name(data: &Path) -> String {
    let dir = data.parent().and_then(Path::file_name).expect("a directory of the test's own");
    dir.to_string_lossy().trim_start_matches('.').to_owned()
}

/// One request, with its method and path, on a connection of its own. HTTP/1.0, so that a body
/// ends where the connection does and needs no decoding.
pub(crate) fn call(
    address: &str,
    target: (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Answer> {
    let mut stream = open(address, target, headers, body)?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers: Vec<(String, String)> =
        headers.map(|(key, value)| (key.into(), value.into())).collect();
    let answer =
        Answer { status: status.parse().expect("a number"), headers, body: body.to_owned() };
    let length = answer.header("content-length").and_then(|length| length.parse().ok());
    if length.is_some_and(|length: usize| length > answer.body.len()) {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

fn open(
    address: &str,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    let headers: String =
        headers.iter().map(|(key, value)| format!("{key}: {value}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: test\r\n\
         {headers}Content-Length: {length}\r\n\r\n{body}"
    )?;
    Ok(stream)
}
