//! `lazaret job`: a client of a server's jobs.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use lazaret_sandbox::spec::Access;
use serde_json::{Map, Value, json};

use super::client::Server;
use super::quantity::{parse_bytes, parse_ms, parse_variable};
use super::volume::{Mount, parse_mount};
use super::{CliError, Form, input};

/// The longest line of a log that is read: a frame of 16 KiB, escaped at worst sixfold.
const MAX_FRAME_BYTES: u64 = 256 << 10;

/// What is done with a server's jobs.
#[derive(Debug, Subcommand)]
pub(super) enum Args {
    /// Send a job; prints its id.
    Submit(Box<Submit>),
    /// Show a job.
    Get {
        /// Its id.
        id: String,
        /// The server.
        #[command(flatten)]
        server: Server,
    },
    /// List jobs, the newest first.
    Ls {
        /// Only those in this state: `queued`, `running` or `finished`.
        #[arg(long)]
        state: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// The server.
        #[command(flatten)]
        server: Server,
    },
    /// Write a job's output to stdout and stderr.
    Logs {
        /// Its id.
        id: String,
        /// Go on until the job has ended.
        #[arg(short, long)]
        follow: bool,
        /// The server.
        #[command(flatten)]
        server: Server,
    },
    /// End a job that waits or runs.
    Cancel {
        /// Its id.
        id: String,
        /// The server.
        #[command(flatten)]
        server: Server,
    },
}

/// A job to send.
#[derive(Debug, clap::Args)]
pub(super) struct Submit {
    /// The image to run in; the server's default if it is left out.
    #[arg(long)]
    image: Option<String>,
    /// A script for the image's shell, instead of a command.
    #[arg(long, conflicts_with = "command")]
    script: Option<String>,
    /// Memory of all processes together.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// CPU time of all processes together.
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    cpu_time: Option<u64>,
    /// Time until it has to have ended.
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    wall_time: Option<u64>,
    /// A file to put into the working directory; may be given often.
    #[arg(short, long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// An environment variable for the program; may be given often.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// A volume of the server to show it at PATH, to read only with `:ro`; may be given often.
    #[arg(long = "volume", value_name = "NAME:PATH[:ro]", value_parser = parse_mount)]
    volumes: Vec<Mount>,
    /// A label to find the job by; may be given often.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    label: Vec<(String, String)>,
    /// Make an image of this name of all that it wrote, if it succeeds.
    #[arg(long, value_name = "NAME")]
    commit: Option<String>,
    /// Wait until it has ended and show it; the exit code is 1 unless it succeeded.
    #[arg(long)]
    wait: bool,
    /// The server.
    #[command(flatten)]
    server: Server,
    /// The program and its arguments.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Does it.
pub(super) fn run(args: &Args, form: Form) -> Result<ExitCode, CliError> {
    match args {
        Args::Submit(submit) => return submit.send(form),
        Args::Get { id, server } => show(&server.get(&format!("/v1/jobs/{id}"), &[])?, form)?,
        Args::Ls { state, limit, server } => {
            let limit = limit.to_string();
            let mut query = vec![("limit", limit.as_str())];
            query.extend(state.as_deref().map(|state| ("state", state)));
            list(&server.get("/v1/jobs", &query)?, form)?;
        }
        Args::Logs { id, follow, server } => write_log(server, id, (*follow).into())?,
        Args::Cancel { id, server } => {
            show(&server.post(&format!("/v1/jobs/{id}/cancel"), &json!({}))?, form)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Submit {
    fn send(&self, form: Form) -> Result<ExitCode, CliError> {
        let mut job = self.server.post("/v1/jobs", &self.request()?)?;
        let id = job["id"].as_str().unwrap_or_default().to_owned();
        if !self.wait {
            match form {
                Form::Json => show(&job, form)?,
                Form::Text => writeln!(io::stdout(), "{id}")?,
            }
            return Ok(ExitCode::SUCCESS);
        }
        if job["state"] != "finished" {
            job = self.server.get_finished(&format!("/v1/jobs/{id}"))?;
        }
        show(&job, form)?;
        Ok(ExitCode::from(u8::from(job["verdict"] != "success")))
    }

    /// The body of the request. What was not given is left to the server.
    fn request(&self) -> Result<Value, CliError> {
        let mut request = Map::new();
        let mut limits = Map::new();
        let mut limit = |name: &str, value: Option<u64>| {
            limits.extend(value.map(|value| (name.to_owned(), json!(value))));
        };
        limit("memory_bytes", self.memory);
        limit("cpu_ms", self.cpu_time);
        limit("wall_ms", self.wall_time);
        let files: Map<String, Value> =
            self.files.iter().map(|path| file(path)).collect::<Result<_, _>>()?;
        let mut field = |name: &str, value: Value| request.insert(name.to_owned(), value);
        match &self.script {
            Some(script) => field("script", json!(script)),
            None => field("command", json!(self.command)),
        };
        if let Some(image) = &self.image {
            field("image", json!(image));
        }
        if let Some(name) = &self.commit {
            field("commit", json!(name));
        }
        if !self.volumes.is_empty() {
            field("volumes", self.volumes.iter().map(volume).collect());
        }
        field("limits", Value::Object(limits));
        field("files", Value::Object(files));
        field("env", pairs(&self.env));
        field("labels", pairs(&self.label));
        Ok(Value::Object(request))
    }
}

/// Whether a log is followed to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// What is there now.
    SoFar,
    /// Everything, as it comes.
    ToTheEnd,
}

impl From<bool> for Extent {
    fn from(follow: bool) -> Self {
        if follow { Self::ToTheEnd } else { Self::SoFar }
    }
}

fn volume(Mount { name, path, access }: &Mount) -> Value {
    json!({"name": name, "path": path, "read_only": *access == Access::ReadOnly})
}

fn pairs(pairs: &[(String, String)]) -> Value {
    pairs.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>().into()
}

/// A file's name and how a request carries it.
fn file(path: &std::path::Path) -> Result<(String, Value), CliError> {
    let file = input::read(path)?;
    let mode = format!("{:04o}", file.mode);
    let value = match String::from_utf8(file.content) {
        Ok(text) if file.mode & 0o111 == 0 => json!(text),
        Ok(text) => json!({"base64": STANDARD.encode(text), "mode": mode}),
        Err(error) => json!({"base64": STANDARD.encode(error.into_bytes()), "mode": mode}),
    };
    Ok((file.path, value))
}

/// Writes each frame to the stream that it came from.
fn write_log(server: &Server, id: &str, extent: Extent) -> Result<(), CliError> {
    let follow = if extent == Extent::ToTheEnd { "true" } else { "false" };
    let response = server.open_log(&format!("/v1/jobs/{id}/logs"), &[("follow", follow)])?;
    let mut lines = BufReader::new(response);
    loop {
        let mut line = Vec::new();
        let bytes = lines.by_ref().take(MAX_FRAME_BYTES).read_until(b'\n', &mut line)?;
        if bytes == 0 {
            return Ok(());
        }
        let frame: Value = serde_json::from_slice(&line)
            .map_err(|error| CliError::refused(format!("the log is not as agreed: {error}")))?;
        write_frame(&frame)?;
    }
}

fn write_frame(frame: &Value) -> Result<(), CliError> {
    let bytes = match (frame["text"].as_str(), frame["base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(base64)) => STANDARD.decode(base64).map_err(CliError::refused)?,
        (None, None) => return Ok(()),
    };
    if frame["stream"] == "stderr" {
        return Ok(io::stderr().write_all(&bytes)?);
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes)?;
    Ok(stdout.flush()?)
}

fn list(page: &Value, form: Form) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if form == Form::Json {
        return writeln!(out, "{page:#}");
    }
    writeln!(out, "{:36}  {:8}  {:13}  CREATED", "ID", "STATE", "VERDICT")?;
    for job in page["items"].as_array().into_iter().flatten() {
        let text = |name: &str| job[name].as_str().unwrap_or("-").to_owned();
        let (id, state, verdict) = (text("id"), text("state"), text("verdict"));
        writeln!(out, "{id:36}  {state:8}  {verdict:13}  {:.19}", text("created_at"))?;
    }
    Ok(())
}

/// For people: what became of each step, and what it wrote.
fn show(job: &Value, form: Form) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if form == Form::Json {
        return writeln!(out, "{job:#}");
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    writeln!(out, "{}  {}  {}", text(&job["id"]), text(&job["state"]), text(&job["verdict"]))?;
    let steps = job["steps"].as_array().into_iter().flatten();
    for step in steps.filter(|step| !step["verdict"].is_null()) {
        let usage = &step["usage"];
        writeln!(
            out,
            "{}: {}, exit code {}, {} ms CPU, {} ms, {} bytes of memory at most",
            text(&step["name"]),
            text(&step["verdict"]),
            step["exit_code"],
            usage["cpu_ms"],
            usage["wall_ms"],
            usage["memory_peak_bytes"]
        )?;
        for stream in ["stdout", "stderr"] {
            if let Some(output) = step[stream].as_str().filter(|output| !output.is_empty()) {
                writeln!(out, "--- {stream}\n{}", output.trim_end_matches('\n'))?;
            }
        }
    }
    Ok(())
}
