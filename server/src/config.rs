//! What the operator decides: defaults, then the file of `--config`, then flags. The only reader
//! of the environment.

mod binds;
mod file;
mod host;
mod limits;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lazaret_sandbox::Cpuset;
use sha2::{Digest, Sha256};

pub use binds::AllowedBind;
pub use file::ConfigFile;
pub use limits::{Bound, LimitPolicy};

/// Jobs that may wait at one time.
const DEFAULT_QUEUE_MAX: usize = 10_000;
/// Bytes of a request body: files travel inside it, a third larger as base64.
const DEFAULT_MAX_BODY_BYTES: usize = 64 << 20;
/// The largest `max_body_bytes`: a shim accepts a job of 256 MiB.
const MAX_BODY_BYTES: usize = 256 << 20;
/// How long a drain waits for running jobs before it gives up on them.
const DEFAULT_DRAIN_TIMEOUT_MS: u64 = 600_000;
/// How much longer than its own limit a container may take before its shim is given up.
const DEFAULT_GRACE_MS: u64 = 60_000;
/// Connections served at one time.
const DEFAULT_MAX_CONNECTIONS: usize = 4096;
/// Containers that wait: one for the next job, and one for when it comes before the next is made.
const DEFAULT_WARM_CONTAINERS: usize = 2;
const MAX_WARM_CONTAINERS: usize = 64;
/// Where slots of host ids are locked, for all servers of the host.
const IDS_DIR: &str = "/run/lazaret/ids";
/// The parent of every server's run directory: a tmpfs on any Linux of this century.
const RUN_PARENT: &str = "/run/lazaret";
/// The data directory holds what clients sent and what their jobs wrote: its owner's alone.
const DATA_DIR_MODE: u32 = 0o700;
/// The filter of log lines if the environment names none.
const DEFAULT_LOG_FILTER: &str = "lazaret=info,warn";

/// Everything the server was told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// Where live containers keep their small state.
    pub run_dir: PathBuf,
    /// Where slots of host ids are locked.
    pub ids_dir: PathBuf,
    /// The cgroup below which containers get theirs.
    pub cgroup_parent: String,
    /// The CPUs that all containers run on, if not all of the host's.
    pub cpuset: Option<Cpuset>,
    /// The image of a job that names none.
    pub default_image: String,
    /// Directories of the host that jobs may be shown.
    pub allowed_binds: Vec<AllowedBind>,
    /// Defaults and maxima of every limit.
    pub limits: LimitPolicy,
    /// Whether a job's user may be root (inside its own user namespace).
    pub root_user: RootUser,
    /// Jobs that may wait at one time; one more is refused.
    pub queue_max: usize,
    /// What all running jobs together may take.
    pub capacity: Capacity,
    /// The largest request body.
    pub max_body_bytes: usize,
    /// How long a drain waits for running jobs.
    pub drain_timeout: Duration,
    /// How much longer than its own limit a container may take before its shim is given up.
    pub grace: Duration,
    /// Connections served at one time.
    pub max_connections: usize,
    /// Containers that are made ahead of time and wait.
    pub warm_containers: usize,
}

/// Whether jobs may run as root inside their container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootUser {
    /// A job that asks for it is refused.
    Refused,
    /// A job may ask for it.
    Allowed,
}

/// What all running jobs together may take from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// CPU, in thousandths of one.
    pub cpu_millis: u32,
    /// Memory.
    pub memory_bytes: u64,
}

/// What the command line says, winning over the file.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--data`.
    pub data_dir: Option<PathBuf>,
    /// `--config`.
    pub config_file: Option<PathBuf>,
}

/// Why there is no configuration. The message says what to mend.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Reads the file if one is named, puts the flags over it, and fills in the rest.
    ///
    /// # Errors
    /// If the file cannot be read, has an unknown or impossible value, or the data directory
    /// cannot be made.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config_file {
            Some(path) => ConfigFile::read(path)?,
            None => ConfigFile::default(),
        };
        let wanted = flags.data_dir.clone().or(file.data_dir.clone());
        let data_dir = make_data_dir(&wanted.map_or_else(default_data_dir, Ok)?)?;
        let name = short_name(&data_dir);
        let max_body_bytes = file.max_body_bytes.unwrap_or(DEFAULT_MAX_BODY_BYTES);
        if !(1024..=MAX_BODY_BYTES).contains(&max_body_bytes) {
            return Err(ConfigError(format!(
                "`max_body_bytes` is `{max_body_bytes}`: choose 1024 to {MAX_BODY_BYTES}"
            )));
        }
        let cpuset = file.cpuset.as_deref().map(host::cpuset).transpose()?;
        let default_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        Ok(Self {
            listen: flags.listen.or(file.listen).unwrap_or(default_listen),
            run_dir: file.run_dir.unwrap_or_else(|| Path::new(RUN_PARENT).join(&name)),
            ids_dir: file.ids_dir.unwrap_or_else(|| IDS_DIR.into()),
            cgroup_parent: cgroup_parent(file.cgroup_parent, &name)?,
            default_image: file.default_image.unwrap_or_else(|| "host".into()),
            allowed_binds: binds::from_file(file.allowed_binds, &data_dir)?,
            limits: LimitPolicy::from_file(&file.limits)?,
            root_user: match file.allow_root_user {
                Some(true) => RootUser::Allowed,
                Some(false) | None => RootUser::Refused,
            },
            queue_max: file.queue_max.unwrap_or(DEFAULT_QUEUE_MAX),
            capacity: capacity(&file.capacity, cpuset.as_ref())?,
            cpuset,
            max_body_bytes,
            drain_timeout: Duration::from_millis(
                file.drain_timeout_ms.unwrap_or(DEFAULT_DRAIN_TIMEOUT_MS),
            ),
            grace: Duration::from_millis(file.grace_ms.unwrap_or(DEFAULT_GRACE_MS)),
            warm_containers: bounded(
                "warm_containers",
                file.warm_containers.unwrap_or(DEFAULT_WARM_CONTAINERS),
                MAX_WARM_CONTAINERS,
            )?,
            max_connections: file.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS).max(1),
            data_dir,
        })
    }
}

/// The data directory that every command of this user shares if none is named.
///
/// # Errors
/// If there is no home directory to put it in.
pub fn default_data_dir() -> Result<PathBuf, ConfigError> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/lazaret".into());
    }
    if let Some(dir) = environment("XDG_DATA_HOME").filter(|dir| Path::new(dir).is_absolute()) {
        return Ok(Path::new(&dir).join("lazaret"));
    }
    match environment("HOME") {
        Some(home) => Ok(Path::new(&home).join(".local/share/lazaret")),
        None => Err(ConfigError("there is no home directory: name one with `--data DIR`".into())),
    }
}

/// Where docker keeps the credentials of registries for this user, if there is a place for it.
#[must_use]
pub fn docker_config() -> Option<PathBuf> {
    let directory = match environment("DOCKER_CONFIG") {
        Some(directory) => directory.into(),
        None => Path::new(&environment("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

/// Which log lines are written: the variable `LAZARET_LOG`, in the words of `tracing`.
#[must_use]
pub fn log_filter() -> String {
    environment("LAZARET_LOG").unwrap_or_else(|| DEFAULT_LOG_FILTER.into())
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The directory, made if it is missing and found to be writable, by its canonical name. One that
/// is there keeps the mode that its operator gave it.
fn make_data_dir(dir: &Path) -> Result<PathBuf, ConfigError> {
    let refused = |error: std::io::Error| {
        ConfigError(format!(
            "data directory `{}`: {error}: name a writable one with `--data DIR`",
            dir.display()
        ))
    };
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(refused)?;
    }
    match std::fs::DirBuilder::new().mode(DATA_DIR_MODE).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(refused(error)),
        Ok(()) | Err(_) => {}
    }
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|errno| refused(errno.into()))?;
    dir.canonicalize().map_err(refused)
}

/// Eight digits that tell the servers of one host apart.
fn short_name(data_dir: &Path) -> String {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// A path below the root of each hierarchy. Its parts may be no others than those that name
/// something: the root itself, and what lies beside it, are not ours to bound.
fn cgroup_parent(asked: Option<String>, name: &str) -> Result<String, ConfigError> {
    let Some(path) = asked else { return Ok(format!("lazaret/{name}")) };
    let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if path.split('/').all(is_plain) {
        return Ok(path);
    }
    Err(ConfigError(format!(
        "`cgroup_parent` is `{}`: name a path below the root of the hierarchies, such as \
         `lazaret/main`",
        path.escape_debug()
    )))
}

fn bounded(name: &str, value: usize, max: usize) -> Result<usize, ConfigError> {
    if value > max {
        return Err(ConfigError(format!("`{name}` is `{value}`: choose 0 to {max}")));
    }
    Ok(value)
}

fn capacity(file: &file::CapacityFile, cpuset: Option<&Cpuset>) -> Result<Capacity, ConfigError> {
    let cpu_millis = match file.cpus {
        Some(cpus) => limits::cpu_millis("capacity.cpus", cpus)?,
        None => host::cpu_millis(cpuset),
    };
    let memory_bytes = match file.memory_bytes {
        Some(bytes) => bytes,
        None => host::spare_memory_bytes().map_err(|error| {
            ConfigError(format!("{error}: set `capacity.memory_bytes` in the configuration"))
        })?,
    };
    if memory_bytes < lazaret_sandbox::spec::MIN_MEMORY_BYTES {
        return Err(ConfigError(format!("`capacity.memory_bytes` is only `{memory_bytes}`")));
    }
    Ok(Capacity { cpu_millis, memory_bytes })
}

#[cfg(test)]
mod tests {
    use lazaret_sandbox::spec::Access;

    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lazaret.toml");
        std::fs::write(&path, text).expect("written");
        Config::load(&Flags {
            config_file: Some(path),
            data_dir: Some(dir.path().join("data")),
            listen: None,
        })
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = load("").expect("valid");
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.default_image, "host");
        assert!(config.run_dir.starts_with(RUN_PARENT));
        assert_eq!(config.limits.memory_bytes.default, 256 << 20);
    }

    #[test]
    fn the_file_wins_over_defaults_and_flags_win_over_the_file() {
        let config = load("listen = '127.0.0.1:1'\nqueue_max = 5\n").expect("valid");
        assert_eq!((config.listen.port(), config.queue_max), (1, 5));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = load("lisen = '127.0.0.1:1'").expect_err("refused").to_string();
        assert!(error.contains("lisen"), "{error}");
        let error = load("[limits.cpu_ms]\nmaximum = 3").expect_err("refused").to_string();
        assert!(error.contains("maximum"), "{error}");
    }

    #[test]
    fn a_default_beyond_its_maximum_is_refused_by_name() {
        let error = load("[limits.cpu_ms]\ndefault = 9\nmax = 8").expect_err("refused");
        assert!(error.to_string().contains("limits.cpu_ms"), "{error}");
    }

    #[test]
    fn directories_that_jobs_may_be_shown_lie_below_the_root() {
        let text = "allowed_binds = ['/srv/a//b/', { path = '/srv/c', writable = true }]";
        let [one, other] = &load(text).expect("valid").allowed_binds[..] else { panic!("two") };
        assert_eq!((one.path.to_str(), one.access), (Some("/srv/a/b"), Access::ReadOnly));
        assert_eq!((other.path.to_str(), other.access), (Some("/srv/c"), Access::ReadWrite));
        for bad in ["'/'", "'//'", "'a'", "''", "'/a/../b'", "{ path = '/' }"] {
            let error = load(&format!("allowed_binds = [{bad}]")).expect_err("refused");
            assert!(error.to_string().contains("`allowed_binds`"), "{bad}: {error}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().canonicalize().expect("there");
        let bind = |path: &Path| binds::from_file(vec![file::BindFile::Path(path.into())], &data);
        for bad in [data.as_path(), &data.join("volumes"), data.parent().expect("a parent")] {
            assert!(bind(bad).is_err(), "{bad:?}");
        }
        assert!(bind(&data.with_extension("beside")).is_ok());
        for bad in ["3", "{ path = '/a', write = true }", "{ writable = true }"] {
            let error = load(&format!("allowed_binds = [{bad}]")).expect_err("refused");
            assert!(error.to_string().contains("`path` and `writable`"), "{bad}: {error}");
        }
    }

    #[test]
    fn chosen_cpus_are_what_there_is_to_give() {
        let config = load("cpuset = '0'").expect("valid");
        assert_eq!(config.cpuset.map(|cpuset| cpuset.to_string()).as_deref(), Some("0"));
        assert_eq!(config.capacity.cpu_millis, 1000);
        let config = load("cpuset = '0'\n[capacity]\ncpus = 0.5").expect("valid");
        assert_eq!(config.capacity.cpu_millis, 500);
    }

    #[test]
    fn a_new_data_directory_is_its_owners_alone_and_an_old_one_stays_as_it_is() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let made = make_data_dir(&dir.path().join("a/b")).expect("made");
        let mode =
            |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&made), 0o700);
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o750)).expect("set");
        assert_eq!(mode(&make_data_dir(&made).expect("found")), 0o750);
    }

    #[test]
    fn a_parent_cgroup_lies_below_the_root() {
        assert_eq!(load("cgroup_parent = 'a/b'").expect("valid").cgroup_parent, "a/b");
        for path in ["", "/", "/a", "a/", "../a", "a/../b", "a/./b"] {
            let error = load(&format!("cgroup_parent = '{path}'")).expect_err("refused");
            assert!(error.to_string().contains("`cgroup_parent`"), "{path}: {error}");
        }
    }

    #[test]
    fn two_data_directories_get_two_names() {
        assert_ne!(short_name(Path::new("/a")), short_name(Path::new("/b")));
        assert_eq!(short_name(Path::new("/a")).len(), 8);
    }
}
