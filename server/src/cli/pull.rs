//! `lazaret image pull`: bars on a terminal, a line for each layer elsewhere.

use std::io::{self, IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use lazaret_sandbox::image::{Bounds, Image};
use tokio_util::task::TaskTracker;

use super::image::{Place, print};
use super::quantity::parse_bytes;
use super::{CliError, Form, say};
use crate::config;
use crate::registry::{
    self, Credentials, Destination, LayerProgress, LayerState, Progress, PullError, PullRequest,
    Secret, Teller, Transport,
};

/// The longest password.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;
/// Digits of a digest that tell the layers of an image apart.
const SHORT_DIGEST: usize = "sha256:".len() + 12;
const BAR: &str = "{prefix}  {msg:11}  [{wide_bar:.}] {bytes:>11} / {total_bytes:11}";

/// What is pulled, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As docker has it: `python:3.13`, `ghcr.io/owner/image:tag`, `image@sha256:…`.
    reference: String,
    /// What jobs call it; the reference, if this is left out.
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// What its programs shall be for: `os/architecture[/variant]`; this machine, if left out.
    #[arg(long)]
    platform: Option<String>,
    /// Speak plain HTTP to a registry of this host.
    #[arg(long)]
    plain_http: bool,
    /// Who pulls; without it, whom docker's `config.json` names.
    #[arg(long, requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from stdin.
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Refuse a layer of more than this, unpacked.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_unpacked: Option<u64>,
    /// Where the images are.
    #[command(flatten)]
    place: Place,
}

impl From<PullError> for CliError {
    fn from(error: PullError) -> Self {
        if error.is_failure() { Self::failed(error) } else { Self::refused(error) }
    }
}

/// Does it.
pub(super) fn run(args: &Args, form: Form) -> Result<ExitCode, CliError> {
    let transport = if args.plain_http { Transport::Plain } else { Transport::Tls };
    let (name, platform) = (args.name.as_deref(), args.platform.as_deref());
    let request = PullRequest::parse(&args.reference, transport, name, platform)?;
    let credentials = credentials(args, &request)?;
    let defaults = Bounds::default();
    let unpacked_bytes = args.max_unpacked.unwrap_or(defaults.unpacked_bytes);
    let destination = Destination {
        images: Arc::new(args.place.open()?),
        bounds: Bounds { unpacked_bytes, ..defaults },
        unpacking: TaskTracker::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let image: Result<Image, PullError> = runtime.block_on(async {
        let (teller, mut progress) = Teller::new();
        let mut display = Display::of_stderr();
        let pulling = registry::pull(&destination, &request, credentials, &teller);
        tokio::pin!(pulling);
        let image = loop {
            tokio::select! {
                image = &mut pulling => break image,
                Ok(()) = progress.changed() => {}
            }
            display.show(&progress.borrow_and_update());
        };
        display.show(&progress.borrow_and_update());
        image
    });
    print(&[image?], form)?;
    Ok(ExitCode::SUCCESS)
}

fn credentials(args: &Args, request: &PullRequest) -> Result<Credentials, CliError> {
    let Some(username) = args.username.clone() else {
        return Ok(request.credentials(config::docker_config().as_deref())?);
    };
    let mut password = String::new();
    io::stdin().take(MAX_PASSWORD_BYTES).read_to_string(&mut password)?;
    // What ends the line is not part of it.
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    Ok(Credentials::Password { username, password: Secret::new(password) })
}

/// How far the pull is, on stderr.
enum Display {
    /// For a terminal.
    Bars(Bars),
    /// For a file or a pipe.
    Lines(Lines),
}

impl Display {
    fn of_stderr() -> Self {
        if io::stderr().is_terminal() {
            Self::Bars(Bars::default())
        } else {
            Self::Lines(Lines::default())
        }
    }

    fn show(&mut self, progress: &Progress) {
        match self {
            Self::Bars(bars) => bars.show(progress),
            Self::Lines(lines) => lines.show(progress),
        }
    }
}

/// A bar for each layer.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: Vec<ProgressBar>,
    retry: Option<String>,
}

impl Bars {
    fn show(&mut self, progress: &Progress) {
        if progress.retry != self.retry {
            self.retry.clone_from(&progress.retry);
            let said = self.retry.as_ref().map(|why| self.all.println(format!("again: {why}")));
            // Without stderr there is nobody to tell.
            drop(said);
        }
        for layer in progress.layers.iter().skip(self.bars.len()) {
            let style = ProgressStyle::with_template(BAR);
            let bar = ProgressBar::new(layer.total_bytes);
            bar.set_style(style.unwrap_or_else(|_wrong| ProgressStyle::default_bar()));
            bar.set_prefix(short_digest(layer));
            self.bars.push(self.all.add(bar));
        }
        for (bar, layer) in self.bars.iter().zip(&progress.layers) {
            bar.set_message(layer.state.as_str());
            bar.set_position(layer.done_bytes);
            if layer.state.is_done() && !bar.is_finished() {
                bar.abandon();
            }
        }
    }
}

/// A line for each layer that is there.
#[derive(Default)]
struct Lines {
    states: Vec<LayerState>,
    retry: Option<String>,
}

impl Lines {
    fn show(&mut self, progress: &Progress) {
        if progress.retry != self.retry {
            self.retry.clone_from(&progress.retry);
            self.retry.iter().for_each(|why| say(format!("again: {why}")));
        }
        self.states.resize(progress.layers.len(), LayerState::Waiting);
        for (shown, layer) in self.states.iter_mut().zip(&progress.layers) {
            if layer.state.is_done() && *shown != layer.state {
                let (digest, bytes) = (short_digest(layer), layer.total_bytes);
                say(format!("layer {digest}: {}, {bytes} bytes", layer.state.as_str()));
            }
            *shown = layer.state;
        }
    }
}

fn short_digest(layer: &LayerProgress) -> String {
    layer.digest.to_string().chars().take(SHORT_DIGEST).collect()
}
