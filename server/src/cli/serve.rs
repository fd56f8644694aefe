//! `lazaret serve`: everything is opened in order, served until a signal, and closed in reverse.
//!
//! ```text
//! configuration ─ lock free? ─ zygote (before any thread) ─ lock ─ orphans ─ images, logs, store
//! ─ unfinished jobs ─ socket ─▶ serve ─ SIGTERM ─▶ drain: running jobs end ─▶ connections ─▶ store
//! ─▶ zygote                           └ a second signal, or too long: at once
//! ```

mod orphans;

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lazaret_sandbox::error::{Error, Stage};
use lazaret_sandbox::image::ImageStore;
use lazaret_sandbox::volume::VolumeStore;
use lazaret_sandbox::{Orphan, Settings, Zygote};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::CliError;
use crate::api::body::BodyRoom;
use crate::api::{self, Api, UploadRoom};
use crate::config::{Config, Flags, docker_config, log_filter};
use crate::dispatch::Dispatch;
use crate::logs::LogFiles;
use crate::pool::Pool;
use crate::registry::Pulls;
use crate::runner::Runner;
use crate::scheduler::Scheduler;
use crate::volumes::Volumes;
use crate::{clock, listener, store, telemetry};

/// Threads that may block at one time: each starting container and each reading follower is one.
const MAX_BLOCKING_THREADS: usize = 128;
/// How long connections may take to end after the last job has.
const CONNECTION_GRACE: Duration = Duration::from_secs(5);

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address and port to serve HTTP on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where everything durable is [default: /var/lib/lazaret]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve an address that others can reach, without asking who they are
    #[arg(long)]
    insecure_no_auth: bool,
}

/// Serves until a signal.
pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    lazaret_sandbox::bound_heap();
    telemetry::start(&log_filter()).map_err(CliError::Refused)?;
    let config = Config::load(&Flags {
        listen: args.listen,
        data_dir: args.data.clone(),
        config_file: args.config.clone(),
    });
    let config = config.map_err(|error| CliError::Refused(error.to_string()))?;
    if !config.listen.ip().is_loopback() && !args.insecure_no_auth {
        return Err(CliError::Refused(format!(
            "`{}` can be reached by others, and no one is asked for a token: listen on 127.0.0.1, \
             or give `--insecure-no-auth` if something in front of it does the asking",
            config.listen
        )));
    }
    let opened = open(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|error| CliError::Failed(format!("could not start the runtime: {error}")))?;
    let served = runtime.block_on(serve(opened));
    // What still blocks belongs to a job that the next start takes up.
    runtime.shutdown_background();
    served
}

/// What is opened before there is a second thread.
struct Opened {
    config: Config,
    runner: Runner,
    /// What a predecessor left, with how attempts ended while there was no server to store it.
    orphans: Vec<Orphan>,
    /// Held until the process ends.
    _lock: File,
}

fn open(config: Config) -> Result<Opened, CliError> {
    let settings = Settings {
        run_dir: config.run_dir.clone(),
        ids_dir: config.ids_dir.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        memory_bytes: NonZeroU64::new(config.capacity.memory_bytes),
        cpuset: config.cpuset.clone(),
    };
    // A second server on this directory is refused before it touches the first one's cgroups.
    drop(try_lock(&config.data_dir)?);
    // Before the lock is taken: who is forked would hold it, too, and longer than this process.
    let zygote = Zygote::start(&settings).map_err(|error| no_sandbox(&error))?;
    let lock = lock(&config.data_dir)?;
    raise_descriptor_limit();
    let orphans = lazaret_sandbox::reap_orphans(&settings)
        .map_err(|error| CliError::Failed(format!("could not clean up after a crash: {error}")))?;
    let images = ImageStore::open(&config.data_dir.join("images"))
        .map_err(|error| CliError::Failed(format!("could not open the images: {error}")))?;
    let files = LogFiles::open(&config.data_dir)
        .map_err(|error| CliError::Refused(format!("could not make the log files: {error}")))?;
    let pool = Pool::new(zygote, config.warm_containers);
    let volumes = VolumeStore::open(&config.data_dir.join("volumes"))
        .map_err(|error| CliError::Failed(format!("could not open the volumes: {error}")))?;
    let volumes = Arc::new(Volumes { store: volumes, binds: config.allowed_binds.clone() });
    let runner = Runner { pool, images: Arc::new(images), volumes, files, grace: config.grace };
    Ok(Opened { config, runner, orphans, _lock: lock })
}

/// Takes as many descriptors as this process may have: each connection and each live container
/// needs some, and the soft limit of most hosts is made for programs that call select(2).
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}

fn no_sandbox(error: &Error) -> CliError {
    if !rustix::process::geteuid().is_root() {
        return CliError::Refused(format!("containers need root: start it with `sudo` ({error})"));
    }
    if error.stage == Stage::Cgroup {
        return CliError::Refused(format!(
            "containers need cgroups: mount the controllers cpu, memory and pids where this \
             process can write ({error})"
        ));
    }
    if error.stage == Stage::Cpuset {
        return CliError::Refused(format!(
            "`cpuset` is set, but containers cannot be kept to CPUs here: take it out of the \
             configuration, or mend what `lazaret doctor` says of `cpuset` ({error})"
        ));
    }
    CliError::Refused(format!(
        "containers cannot be made here: `lazaret doctor` says what is missing ({error})"
    ))
}

/// Takes the data directory for this process alone, and says so to who comes later.
fn lock(data_dir: &Path) -> Result<File, CliError> {
    let file = try_lock(data_dir)?;
    let pid = format!("{}\n", std::process::id());
    let written = file.set_len(0).and_then(|()| file.write_all_at(pid.as_bytes(), 0));
    written.map_err(|error| no_lock(data_dir, &error))?;
    Ok(file)
}

fn no_lock(data_dir: &Path, error: &io::Error) -> CliError {
    CliError::Refused(format!(
        "could not lock `{}`: {error}: name a writable directory with `--data DIR`",
        data_dir.join("lock").display()
    ))
}

/// The lock of the data directory, until it is dropped.
fn try_lock(data_dir: &Path) -> Result<File, CliError> {
    let path = data_dir.join("lock");
    let refused = |error: io::Error| no_lock(data_dir, &error);
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.map_err(refused)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = io::read_to_string(&file).unwrap_or_default();
            Err(CliError::Refused(format!(
                "data directory `{}` is in use by process {}: stop it, or name another with \
                 `--data DIR`",
                data_dir.display(),
                holder.trim()
            )))
        }
        Err(errno) => Err(refused(errno.into())),
    }
}

/// The tasks of the server, by when they end.
struct Tasks {
    /// Attempts, and requests that must not be torn.
    jobs: TaskTracker,
    /// Connections, and followers of logs.
    connections: TaskTracker,
    /// The store's own.
    store: TaskTracker,
    /// Cancelled: no more jobs.
    drain: CancellationToken,
    /// Cancelled: no more anything.
    stop: CancellationToken,
}

async fn serve(opened: Opened) -> Result<ExitCode, CliError> {
    let Opened { config, runner, orphans, _lock } = opened;
    let tasks = Tasks {
        jobs: TaskTracker::new(),
        connections: TaskTracker::new(),
        store: TaskTracker::new(),
        drain: CancellationToken::new(),
        stop: CancellationToken::new(),
    };
    let mut signals = Signals::catch()?;
    let zygote_gone = watch_zygote(&runner).map_err(|error| CliError::Failed(error.to_string()))?;
    let (config, runner) = (Arc::new(config), Arc::new(runner));
    let socket = bind(config.listen).await?;
    let address = socket.local_addr().map_err(|error| CliError::Failed(error.to_string()))?;
    let api = start(Arc::clone(&config), Arc::clone(&runner), &tasks).await?;
    orphans::take_up(&api, &orphans).await?;
    let router = api::router(api);
    say_address(address);
    let serve =
        listener::serve(socket, router, config.max_connections, &tasks.connections, &tasks.stop);
    let stop = async {
        let code = reason_to_stop(&mut signals, &zygote_gone).await;
        (drained(&mut signals, &tasks, config.drain_timeout).await, code)
    };
    let (drained, code) = tokio::select! {
        () = serve => (Drained::Whole, ExitCode::SUCCESS),
        stopped = stop => stopped,
    };
    tasks.stop.cancel();
    if drained == Drained::CutShort {
        return Ok(code);
    }
    for tracker in [&tasks.connections, &tasks.store] {
        tracker.close();
        if tokio::time::timeout(CONNECTION_GRACE, tracker.wait()).await.is_err() {
            tracing::warn!("gave up on what did not end in time");
        }
    }
    // The directory is still locked, so no successor looks on.
    if let Err(error) = tokio::task::block_in_place(|| runner.pool.close()) {
        tracing::warn!(%error, "the zygote did not end in time");
    }
    Ok(code)
}

/// Opens the store and has the API ready.
async fn start(config: Arc<Config>, runner: Arc<Runner>, tasks: &Tasks) -> Result<Api, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    let path = config.data_dir.join("lazaret.db");
    let store = store::open(&path, &tasks.store, &tasks.stop).await;
    let store = store.map_err(|error| failed(&error))?;
    let forget = store::forget_old_keys(store.clone(), clock::now, tasks.stop.clone());
    tasks.store.spawn(forget);
    let scheduler = Scheduler::new(config.capacity, config.queue_max);
    let (jobs, drain) = (tasks.jobs.clone(), tasks.drain.clone());
    let dispatch =
        Dispatch::new(store.clone(), Arc::clone(&runner), scheduler, jobs, drain.clone());
    let (images, connections) = (Arc::clone(&runner.images), tasks.connections.clone());
    Ok(Api {
        pulls: Pulls::new(images, docker_config(), connections.clone(), tasks.stop.clone()),
        uploads: UploadRoom::default(),
        bodies: BodyRoom::new(config.max_body_bytes),
        config,
        store,
        dispatch,
        runner,
        tracker: connections,
        drain,
        stop: tasks.stop.clone(),
    })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|error| {
        let mend = if error.kind() == ErrorKind::AddrInUse {
            "stop what uses it, or name another with `--listen`"
        } else {
            "name an address and port that this process may use with `--listen`"
        };
        CliError::Refused(format!("could not listen on `{address}`: {error}: {mend}"))
    })
}

/// On stdout, for whoever started this with port 0.
fn say_address(address: SocketAddr) {
    tracing::info!(%address, "serving");
    // Without stdout nobody asked.
    drop(writeln!(io::stdout(), "listening on http://{address}"));
}

/// The signals that ask for the end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal is gone.
    hangup: Signal,
}

impl Signals {
    fn catch() -> Result<Self, CliError> {
        let catch = |kind| {
            signal(kind).map_err(|error| CliError::Failed(format!("could not catch: {error}")))
        };
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    /// Nothing runs any more.
    Whole,
    /// Something still runs; the next start of the server takes it up.
    CutShort,
}

/// Cancels the token when the zygote has ended. A thread of its own waits for that, until the end
/// of this process: tokio takes only descriptors that are sockets or pipes without `unsafe`.
fn watch_zygote(runner: &Runner) -> io::Result<CancellationToken> {
    let zygote = runner.pool.zygote()?;
    let gone = CancellationToken::new();
    let tell = gone.clone();
    std::thread::Builder::new().name("zygote-watch".into()).spawn(move || {
        let mut fds = [PollFd::new(&zygote, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut fds, None)) {
            Ok(_) => tell.cancel(),
            Err(error) => tracing::error!(%error, "could not watch the zygote"),
        }
    })?;
    Ok(gone)
}

/// Waits for a reason to stop; answers with the exit code.
async fn reason_to_stop(signals: &mut Signals, zygote_gone: &CancellationToken) -> ExitCode {
    tokio::select! {
        () = signals.next() => {
            tracing::info!("draining: running jobs end, queued ones stay");
            ExitCode::SUCCESS
        }
        () = zygote_gone.cancelled() => {
            tracing::error!("the zygote has ended: draining, to be started anew");
            ExitCode::FAILURE
        }
    }
}

/// Waits for the running jobs, but not beyond a signal or the time-out.
async fn drained(signals: &mut Signals, tasks: &Tasks, timeout: Duration) -> Drained {
    tasks.drain.cancel();
    tasks.jobs.close();
    tokio::select! {
        () = tasks.jobs.wait() => Drained::Whole,
        () = signals.next() => {
            tracing::warn!("stopping at once: the next start retries what ran");
            Drained::CutShort
        }
        () = tokio::time::sleep(timeout) => {
            tracing::warn!("running jobs did not end in time: the next start retries them");
            Drained::CutShort
        }
    }
}
