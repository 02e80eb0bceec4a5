//! The embedded store: the DynamoDB API in-process, in one SQLite file. For trying things out and for
//! development, not for production.
//!
//! The SDK's HTTP client is replaced by one that hands each request to the engine, so that everything above it,
//! [`DynamoStore`] included, runs as it does on AWS. Several processes may use one file, as SQLite locks it for each
//! transaction; a second *daemon* is refused by a lock of ours, since its owner surely meant another file.

mod engine;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_sdk_dynamodb::config::{BehaviorVersion, Builder, Credentials, Region};

use super::DynamoStore;
use super::table::{self, TableError, TableSpec};
use crate::time::Clock;

/// What every SQLite file that is not empty begins with.
const SIGNATURE: &[u8] = b"SQLite format 3\0";
const NO_DATABASE: &str =
    "it is another kind of file, or damaged; set `store.path` to another file, or move this one away";

/// An open file.
#[derive(Clone, Debug)]
pub struct Embedded {
    path: PathBuf,
    store: DynamoStore,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Directory or file cannot be made or opened.
    #[error("cannot open {}: check that the directory exists and can be written", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// SQLite refuses the file.
    #[error("{} is no embedded store: {why}", path.display())]
    Engine {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The table in it cannot be made or is another.
    #[error("embedded store {}", path.display())]
    Table {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: TableError,
    },
    /// Another daemon has it.
    #[error(
        "another daemon is running on {} (it holds {}): stop it, or give this one another file",
        path.display(), lock.display()
    )]
    Busy {
        /// The store's file.
        path: PathBuf,
        /// The lock's file.
        lock: PathBuf,
    },
}

/// The right to be the one daemon on a file, until it is dropped or the process ends, however it ends.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct DaemonLock {
    _file: File,
}

impl Embedded {
    /// Opens the file, and makes directory (0700), file (0600) and table where they are missing.
    ///
    /// # Errors
    ///
    /// See [`EmbeddedError`]; each names the file.
    pub async fn open(
        path: impl Into<PathBuf>,
        table: &str,
        shards: u32,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EmbeddedError> {
        let path = path.into();
        prepare(&path).map_err(|source| EmbeddedError::Open { path: path.clone(), source })?;
        if !may_be_database(&path).map_err(|source| EmbeddedError::Open { path: path.clone(), source })? {
            return Err(EmbeddedError::Engine { path, why: NO_DATABASE.to_owned() });
        }
        let client =
            engine::open(&path).await.map_err(|why| EmbeddedError::Engine { path: path.clone(), why })?;
        let store = DynamoStore::new(config().http_client(client), table, clock);
        let spec =
            TableSpec { kms_key: None, shards, deletion_protection: false, point_in_time_recovery: false };
        match table::create(&store, &spec).await {
            Ok(_) => Ok(Self { path, store }),
            Err(source) => Err(EmbeddedError::Table { path, source }),
        }
    }

    /// The store in the file.
    pub fn store(&self) -> &DynamoStore {
        &self.store
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock (`<path>.lock`) that keeps a second daemon away. Other commands do not need it.
    ///
    /// # Errors
    ///
    /// [`EmbeddedError::Busy`] where another process has it.
    pub fn lock_for_daemon(path: &Path) -> Result<DaemonLock, EmbeddedError> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let failed = |source| EmbeddedError::Open { path: lock.clone(), source };
        make_directory(&lock).map_err(failed)?;
        let file = private_file(&lock).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(DaemonLock { _file: file }),
            Err(TryLockError::WouldBlock) => {
                Err(EmbeddedError::Busy { path: path.to_owned(), lock: lock.clone() })
            }
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// The file exists, readable by its owner alone, before SQLite would make it as the umask likes.
fn prepare(path: &Path) -> io::Result<()> {
    make_directory(path)?;
    private_file(path).map(drop)
}

/// SQLite's own message for another file speaks of encryption, which there is none of here.
fn may_be_database(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(SIGNATURE.len() as u64).read_to_end(&mut start)?;
    Ok(start.is_empty() || start == SIGNATURE)
}

fn make_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)
        }
        _ => Ok(()),
    }
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Nothing of the environment reaches the embedded store.
fn config() -> Builder {
    Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("local"))
        .endpoint_url("http://embedded.invalid")
        .credentials_provider(Credentials::new("embedded", "embedded", None, None, "embedded store"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_by_name_until_the_first_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new").join("store.db");
        let first = Embedded::lock_for_daemon(&path).expect("free");
        let error = Embedded::lock_for_daemon(&path).expect_err("taken").to_string();
        assert!(error.contains("store.db.lock") && error.contains("stop it"), "{error}");
        drop(first);
        Embedded::lock_for_daemon(&path).map(drop).expect("free again");
    }

    #[tokio::test]
    async fn another_kind_of_file_is_refused_with_a_remedy_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "groceries").expect("written");
        let clock = Arc::new(crate::time::SystemClock);
        let error = Embedded::open(&path, "clients", 16, clock).await.expect_err("no database").to_string();
        assert!(error.contains("notes.txt") && error.contains("store.path"), "{error}");
        assert!(!error.contains("encrypt"), "{error}");
        assert_eq!(std::fs::read(&path).expect("there"), b"groceries");
    }

    #[test]
    fn directory_and_file_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a").join("store.db");
        prepare(&path).expect("made");
        let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a parent")), 0o700);
    }
}
