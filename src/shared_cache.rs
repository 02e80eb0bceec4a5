//! Access tokens beside the table: published to Redis or Valkey, and read there before the table is asked.
//!
//! A copy and never the truth. A daemon tells of a token once it is committed, and waits for nobody; what it tells is what
//! stands in the table, sealed where that is sealed. An agent looks there first, for a short time, and asks the table
//! where that brings nothing it may serve. While the server is away everything goes on without it.
//!
//! Invariants: an older generation never takes the place of a newer one, and an entry expires with its token; what an entry says
//! is believed as little as what any stranger says.

mod entry;
mod link;
mod lookup;
mod publisher;
mod queue;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

pub use link::Link;
pub use lookup::Lookup;
pub use publisher::Publisher;
pub use queue::Queue;

use crate::secret::Secret;

/// Where the server is, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `redis://` or `rediss://`, with the number of the database as its path.
    pub url: Url,
    /// Its user; none for the server's default user.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Password>,
    /// The authorities that are trusted, in place of the platform's.
    pub ca_file: Option<PathBuf>,
    /// What keys begin with.
    pub prefix: String,
    /// How long an agent waits for an answer.
    pub patience: Duration,
}

/// Where a password is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// Here.
    Given(Secret),
    /// In this file, which is read again for each connection: a password may change while connections last.
    File(PathBuf),
}

/// Why the server did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
enum CacheError {
    /// It gives no answer, or cannot work now: the connection is given up.
    #[error("no answer from the shared cache: {0}")]
    Unreachable(String),
    /// It refuses: credentials, rights, memory.
    #[error("the shared cache refuses: {0}")]
    Refused(String),
    /// What stands under the key is no entry.
    #[error("what stands under the key is of another type")]
    WrongType,
}
