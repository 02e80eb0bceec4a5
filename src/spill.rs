//! The emergency spill: where new tokens go that the table does not take.
//!
//! A provider has answered, the old refresh token is spent, and the table cannot be written: the only copy of a
//! customer's grant is in the memory of one process. After a while it is also put, sealed, into every place that is
//! configured: a directory, an S3 bucket. From there any task brings it into the table through the same fence that
//! every commit goes through, so that a record that is replayed twice, or too late, changes nothing.
//!
//! A place answers "there is none" or does not answer; the two are never confused. A record that cannot be opened is
//! named and left where it is.

mod bucket;
mod directory;
mod memory;
mod record;
mod replay;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tracing::warn;

pub use bucket::{Bucket, BucketAddress};
pub use directory::Directory;
pub use memory::Memory;
pub use record::Record;
pub use replay::{Replayed, Told, replay, replay_all};

use crate::client::ClientId;
use crate::record::Gen;
use crate::seal::{LocalKeys, SealError};
use crate::time::Clock;

/// How long a place may take to answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// A record that is older than this is refused: nobody knows any more what has happened since.
pub const OLDEST: Duration = Duration::from_secs(60 * 24 * 3600);

/// The name of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Whose tokens.
    pub client: ClientId,
    /// The attempt's generation.
    pub generation: Gen,
}

impl Name {
    /// Of a folder with records of one client.
    fn client_of(folder: &str) -> Option<ClientId> {
        ClientId::new(String::from_utf8(hex::decode(folder).ok()?).ok()?).ok()
    }

    /// As files and objects are called: the id in hexadecimal, which every place can spell.
    fn path(&self) -> String {
        format!("{}/{:020}.jwe", folder(&self.client), self.generation.0.max(0))
    }

    fn parse(path: &str) -> Option<Self> {
        let (folder, file) = path.split_once('/')?;
        Some(Self {
            client: Self::client_of(folder)?,
            generation: Gen(file.strip_suffix(".jwe")?.parse().ok()?),
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (generation {})", self.client, self.generation)
    }
}

fn folder(client: &ClientId) -> String {
    hex::encode(client.as_str())
}

/// Why a place gave no answer, or a record no tokens.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpillError {
    /// The place did not answer. The text names it.
    #[error("{0}")]
    Place(String),
    /// The record does not open.
    #[error("{0}: {1}")]
    Sealed(Name, #[source] SealError),
    /// The record is no record of ours.
    #[error("{0}: its content is not understood")]
    Malformed(Name),
    /// The record is too old to be believed.
    #[error("{0}: is older than 60 days, and refused; remove it once nobody misses it")]
    TooOld(Name),
}

/// Somewhere to put records.
#[derive(Clone, Debug)]
pub enum Place {
    /// Files on this machine: as durable as its disk.
    Directory(Directory),
    /// Objects in a versioned S3 bucket: outlives the task.
    Bucket(Bucket),
    /// The memory of a simulated world.
    Memory(Memory),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(place) => place.fmt(f),
            Self::Bucket(place) => place.fmt(f),
            Self::Memory(_) => f.write_str("memory"),
        }
    }
}

impl Place {
    async fn put(&self, name: &Name, sealed: &str) -> Result<(), SpillError> {
        match self {
            Self::Directory(place) => place.put(name, sealed).await,
            Self::Bucket(place) => Box::pin(place.put(name, sealed)).await,
            Self::Memory(place) => place.put(name, sealed),
        }
    }

    /// The records of one client, or all.
    async fn list(&self, client: Option<&ClientId>) -> Result<Vec<Name>, SpillError> {
        match self {
            Self::Directory(place) => place.list(client).await,
            Self::Bucket(place) => Box::pin(place.list(client)).await,
            Self::Memory(place) => place.list(client),
        }
    }

    /// `None` where there is no such record any more.
    async fn fetch(&self, name: &Name) -> Result<Option<String>, SpillError> {
        match self {
            Self::Directory(place) => place.fetch(name).await,
            Self::Bucket(place) => Box::pin(place.fetch(name)).await,
            Self::Memory(place) => place.fetch(name),
        }
    }

    async fn remove(&self, name: &Name) -> Result<(), SpillError> {
        match self {
            Self::Directory(place) => place.remove(name).await,
            Self::Bucket(place) => Box::pin(place.remove(name)).await,
            Self::Memory(place) => place.remove(name),
        }
    }
}

/// The places that are configured, and the keys of what lies there.
#[derive(Clone)]
pub struct Spill(Option<Configured>);

#[derive(Clone)]
struct Configured {
    places: Vec<Place>,
    keys: LocalKeys,
    table: String,
    clock: Arc<dyn Clock>,
    hurried: Arc<AtomicBool>,
}

/// The places that have taken a record.
#[derive(Debug, Default)]
pub struct Taken(BTreeSet<usize>);

impl Spill {
    /// Nowhere.
    pub fn none() -> Self {
        Self(None)
    }

    /// Tokens of this table, into all of these places.
    pub fn new(places: Vec<Place>, keys: LocalKeys, table: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        Self(Some(Configured { places, keys, table: table.into(), clock, hurried: Arc::default() }))
    }

    /// The process is about to end: what the table does not take is put here at once from now on.
    pub fn hurry(&self) {
        if let Some(configured) = &self.0 {
            configured.hurried.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the process is about to end.
    pub fn is_hurried(&self) -> bool {
        self.0.as_ref().is_some_and(|configured| configured.hurried.load(Ordering::Relaxed))
    }

    /// Whether there is anywhere to put anything.
    pub fn is_configured(&self) -> bool {
        self.0.is_some()
    }

    /// The buckets among its places.
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.places().iter().filter_map(|place| match place {
            Place::Bucket(bucket) => Some(bucket),
            _ => None,
        })
    }

    /// The directories among its places.
    pub fn directories(&self) -> impl Iterator<Item = &Directory> {
        self.places().iter().filter_map(|place| match place {
            Place::Directory(directory) => Some(directory),
            _ => None,
        })
    }

    /// Its places, in words.
    pub fn told(&self) -> String {
        self.places().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn places(&self) -> &[Place] {
        self.0.as_ref().map_or(&[], |configured| &configured.places)
    }

    /// Puts a record into every place that has not taken it yet, into all at once.
    ///
    /// # Errors
    /// Where one of them did not take it: it is to be put again.
    pub async fn put(&self, record: &Record, taken: &mut Taken) -> Result<(), SpillError> {
        let Some(configured) = &self.0 else { return Ok(()) };
        let name = record.name();
        let sealed = record.seal(&configured.keys, &configured.table, configured.clock.now());
        let sealed = sealed.map_err(|error| SpillError::Sealed(name.clone(), error))?;
        let missing = configured.places.iter().enumerate().filter(|(place, _)| !taken.0.contains(place));
        let puts = missing
            .map(async |(number, place)| (number, configured.ask(place, place.put(&name, &sealed)).await));
        let mut outcome = Ok(());
        for (number, put) in join_all(puts).await {
            match put {
                Ok(()) => drop(taken.0.insert(number)),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// The newest record of a client whose generation is above this one. One that is too old to be believed is none.
    ///
    /// # Errors
    /// Where a place does not answer, or a record in it does not open: there may be one.
    pub async fn find(&self, client: &ClientId, above: Gen) -> Result<Option<Record>, SpillError> {
        let Some(configured) = &self.0 else { return Ok(None) };
        let mut newest: Option<Record> = None;
        for place in &configured.places {
            let names = configured.ask(place, place.list(Some(client))).await?;
            let Some(name) = names.into_iter().filter(|name| name.generation > above).max() else { continue };
            if newest.as_ref().is_some_and(|record| record.generation >= name.generation) {
                continue;
            }
            match configured.fetch(place, &name).await {
                Ok(found) => newest = found.or(newest),
                Err(SpillError::TooOld(name)) => {
                    warn!(%name, "a record in the spill is too old, and passed over")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(newest)
    }

    /// The names of all records; and why there may be more, where a place did not answer.
    pub async fn names(&self) -> (BTreeSet<Name>, Option<SpillError>) {
        let (mut names, mut silent) = (BTreeSet::new(), None);
        for place in self.places() {
            let Some(configured) = &self.0 else { break };
            match configured.ask(place, place.list(None)).await {
                Ok(found) => names.extend(found),
                Err(error) => silent = silent.or(Some(error)),
            }
        }
        (names, silent)
    }

    /// A record, from the first place that has it and opens it; `None` where it is in none any more.
    ///
    /// # Errors
    /// Where no place has given it, and one of them may have it.
    pub async fn record(&self, name: &Name) -> Result<Option<Record>, SpillError> {
        let mut outcome = Ok(None);
        for place in self.places() {
            let Some(configured) = &self.0 else { break };
            match configured.fetch(place, name).await {
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Removes a record from every place; one that is not there is no error.
    ///
    /// # Errors
    /// Where a place does not answer: what is left there is found to be superseded another time.
    pub async fn remove(&self, name: &Name) -> Result<(), SpillError> {
        let mut outcome = Ok(());
        for place in self.places() {
            let Some(configured) = &self.0 else { break };
            outcome = outcome.and(configured.ask(place, place.remove(name)).await);
        }
        outcome
    }
}

impl Configured {
    async fn fetch(&self, place: &Place, name: &Name) -> Result<Option<Record>, SpillError> {
        let Some(sealed) = self.ask(place, place.fetch(name)).await? else { return Ok(None) };
        let (record, sealed_at) = Record::open(&sealed, name, &self.keys, &self.table)?;
        if self.clock.now().since(sealed_at) > OLDEST {
            return Err(SpillError::TooOld(name.clone()));
        }
        Ok(Some(record))
    }

    /// A network file system may never answer: nobody waits for it for ever.
    async fn ask<T>(
        &self,
        place: &Place,
        work: impl Future<Output = Result<T, SpillError>>,
    ) -> Result<T, SpillError> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.clock.sleep(PATIENCE) => Err(SpillError::Place(format!("{place}: no answer for {PATIENCE:?}"))),
        }
    }
}

impl fmt::Debug for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spill").field("places", &self.places()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_paths_whatever_an_id_is_made_of() {
        let client = ClientId::new("a..b._:@-Z9").expect("an id");
        let name = Name { client, generation: Gen(42) };
        assert!(!name.path().contains("..") && name.path().matches('/').count() == 1, "{}", name.path());
        assert_eq!(Name::parse(&name.path()), Some(name));
        for foreign in ["README", "zz/1.jwe", "63/x.jwe", "63/1.txt", "6/1.jwe"] {
            assert_eq!(Name::parse(foreign), None, "{foreign}");
        }
    }
}
