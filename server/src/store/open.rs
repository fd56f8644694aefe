//! Opening the database: connections, pragmas, migrations.

use std::borrow::Cow;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Row as _, SqlStr, SqliteConnection};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CHANGE_QUEUE, Store, StoreError, checkpoint, writer};

/// The first SQLite whose WAL cannot be corrupted by a checkpoint that races a reset.
const MIN_SQLITE: (u32, u32, u32) = (3, 51, 3);
/// Connections that read at one time.
const READERS: u32 = 4;
/// The database is its owner's alone. SQLite gives the files beside it the same mode.
const FILE_MODE: u32 = 0o600;
/// How long a reader waits for a lock; only a checkpoint that truncates holds one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Page cache of the writer and of each reader, in KiB (negative, as SQLite wants it). Small: jobs
/// are written and read at one end of the table, and the kernel has a cache of its own.
const WRITER_CACHE: &str = "-1024";
const READER_CACHE: &str = "-512";

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database refused, or the disk did.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The schema could not be brought up to date.
    #[error("could not migrate the database: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The file could not be made, or not be kept from others.
    #[error("could not make the database: {0}")]
    File(#[from] io::Error),
    /// Built against a library that corrupts databases.
    #[error("SQLite `{0}` can corrupt a database: build with 3.51.3 or later")]
    OldSqlite(String),
}

/// Opens the store at `path`, made if it is missing. Its tasks run on `tracker`; the writer ends
/// when the last [`Store`] is dropped, the checkpoints with `stop`.
///
/// # Errors
/// As [`OpenError`].
pub async fn open(
    path: &Path,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Store, OpenError> {
    make_private(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("wal_autocheckpoint", "0")
        .pragma("temp_store", "memory");
    let writing = options.clone().pragma("cache_size", WRITER_CACHE);
    let mut connection = writing.connect().await.map_err(StoreError::from)?;
    refuse_old_sqlite(&mut connection).await?;
    migrations().run_direct(None, &mut connection, false).await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(
            SqliteConnectOptions::new()
                .filename(path)
                .read_only(true)
                .busy_timeout(BUSY_TIMEOUT)
                .pragma("cache_size", READER_CACHE)
                .pragma("query_only", "on"),
        )
        .await
        .map_err(StoreError::from)?;
    let checkpoints =
        options.pragma("cache_size", READER_CACHE).connect().await.map_err(StoreError::from)?;
    let (changes, receiver) = mpsc::channel(CHANGE_QUEUE);
    tracker.spawn(writer::write(connection, receiver));
    tracker.spawn(checkpoint::checkpoint(checkpoints, stop.clone()));
    Ok(Store { changes, readers })
}

/// Makes the file before SQLite does, which would let everybody read it, and tightens one that an
/// earlier version made. No connection is open yet: closing a file drops its locks.
fn make_private(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).mode(FILE_MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))
}

/// The migrations, compiled in: a binary carries its schema.
fn migrations() -> Migrator {
    let texts = [
        ("jobs", include_str!("../../../migrations/sqlite/0001_jobs.sql")),
        ("log in job", include_str!("../../../migrations/sqlite/0002_log_in_job.sql")),
    ];
    let migration = |(version, (description, text)): (i64, (&'static str, &'static str))| {
        let (kind, text) = (MigrationType::Simple, SqlStr::from_static(text));
        Migration::new(version, Cow::Borrowed(description), kind, text, false)
    };
    Migrator::with_migrations((1..).zip(texts).map(migration).collect())
}

async fn refuse_old_sqlite(connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let row = sqlx::query("select sqlite_version() as version")
        .fetch_one(connection)
        .await
        .map_err(StoreError::from)?;
    let version: String = row.try_get("version").map_err(StoreError::from)?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    if (next(), next(), next()) < MIN_SQLITE {
        return Err(OpenError::OldSqlite(version));
    }
    Ok(())
}
