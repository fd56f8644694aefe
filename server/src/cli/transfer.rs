//! What pulls and pushes have in common: who asks the registry, and how far they are, as bars on a
//! terminal and a line for each layer elsewhere.

use std::io::{self, IsTerminal as _, Read as _};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::watch;

use super::{CliError, say};
use crate::config;
use crate::registry::{
    Credentials, LayerProgress, LayerState, Progress, PullError, Secret, Source, Teller, Transport,
};

/// The longest password.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;
/// Digits of a digest that tell the layers of an image apart.
const SHORT_DIGEST: usize = "sha256:".len() + 12;
const BAR: &str = "{prefix}  {msg:11}  [{wide_bar:.}] {bytes:>11} / {total_bytes:11}";

/// How a registry is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Access {
    /// Speak plain HTTP to a registry of this host.
    #[arg(long)]
    plain_http: bool,
    /// Who asks; without it, whom docker's `config.json` names.
    #[arg(long, requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from stdin.
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

impl Access {
    /// How it is spoken to.
    pub(super) fn transport(&self) -> Transport {
        if self.plain_http { Transport::Plain } else { Transport::Tls }
    }

    /// Who asks it.
    pub(super) fn credentials(&self, source: &Source) -> Result<Credentials, CliError> {
        let Some(username) = self.username.clone() else {
            return Ok(source.credentials(config::docker_config().as_deref())?);
        };
        let mut password = String::new();
        io::stdin().take(MAX_PASSWORD_BYTES).read_to_string(&mut password)?;
        // What ends the line is not part of it.
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Credentials::Password { username, password: Secret::new(password) })
    }
}

impl From<PullError> for CliError {
    fn from(error: PullError) -> Self {
        if error.is_failure() { Self::failed(error) } else { Self::refused(error) }
    }
}

/// Runs a transfer to its end, showing how far it is.
pub(super) fn run<T>(
    transfer: impl AsyncFnOnce(&Teller) -> Result<T, PullError>,
) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let (teller, progress) = Teller::new();
        let transfer = transfer(&teller);
        show_while(transfer, progress).await
    });
    Ok(done?)
}

async fn show_while<T>(
    transfer: impl Future<Output = T>,
    mut progress: watch::Receiver<Progress>,
) -> T {
    let mut display = Display::of_stderr();
    tokio::pin!(transfer);
    let done = loop {
        tokio::select! {
            done = &mut transfer => break done,
            Ok(()) = progress.changed() => {}
        }
        display.show(&progress.borrow_and_update());
    };
    display.show(&progress.borrow_and_update());
    done
}

/// How far a transfer is, on stderr.
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
