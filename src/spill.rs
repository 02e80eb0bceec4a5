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

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use bucket::{Bucket, BucketAddress};
pub use directory::Directory;
pub use memory::Memory;
pub use record::Record;
pub use replay::{Replayed, replay, replay_all};

use crate::client::ClientId;
use crate::record::Gen;
use crate::seal::{LocalKeys, SealError};
use crate::time::{Clock, Timestamp};

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
    /// As files and objects are called: the id in hexadecimal, which every place can spell.
    fn path(&self) -> String {
        format!("{}/{:020}.jwe", folder(&self.client), self.generation.0.max(0))
    }

    fn parse(path: &str) -> Option<Self> {
        let (folder, file) = path.split_once('/')?;
        let bytes: Option<Vec<u8>> = (0..folder.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(folder.get(at..at + 2)?, 16).ok())
            .collect();
        let client = ClientId::new(String::from_utf8(bytes?).ok()?).ok()?;
        Some(Self { client, generation: Gen(file.strip_suffix(".jwe")?.parse().ok()?) })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (generation {})", self.client, self.generation)
    }
}

fn folder(client: &ClientId) -> String {
    client.as_str().bytes().map(|byte| format!("{byte:02x}")).collect()
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

impl Place {
    async fn put(&self, name: &Name, sealed: &str) -> Result<(), SpillError> {
        match self {
            Self::Directory(place) => place.put(name, sealed).await,
            Self::Bucket(place) => place.put(name, sealed).await,
            Self::Memory(place) => place.put(name, sealed),
        }
    }

    /// The records of one client, or all.
    async fn list(&self, client: Option<&ClientId>) -> Result<Vec<Name>, SpillError> {
        match self {
            Self::Directory(place) => place.list(client).await,
            Self::Bucket(place) => place.list(client).await,
            Self::Memory(place) => place.list(client),
        }
    }

    /// `None` where there is no such record any more.
    async fn fetch(&self, name: &Name) -> Result<Option<String>, SpillError> {
        match self {
            Self::Directory(place) => place.fetch(name).await,
            Self::Bucket(place) => place.fetch(name).await,
            Self::Memory(place) => place.fetch(name),
        }
    }

    async fn remove(&self, name: &Name) -> Result<(), SpillError> {
        match self {
            Self::Directory(place) => place.remove(name).await,
            Self::Bucket(place) => place.remove(name).await,
            Self::Memory(place) => place.remove(name),
        }
    }
}

/// The places that are configured, and the keys of what lies there.
#[derive(Clone)]
pub struct Spill {
    places: Vec<Place>,
    keys: Option<LocalKeys>,
    table: String,
    clock: Option<Arc<dyn Clock>>,
}

impl Spill {
    /// Nowhere.
    pub fn none() -> Self {
        Self { places: Vec::new(), keys: None, table: String::new(), clock: None }
    }

    /// Tokens of this table, into all of these places.
    pub fn new(places: Vec<Place>, keys: LocalKeys, table: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        Self { places, keys: Some(keys), table: table.into(), clock: Some(clock) }
    }

    /// Whether there is anywhere to put anything.
    pub fn is_configured(&self) -> bool {
        !self.places.is_empty()
    }

    /// The buckets among its places.
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.places
            .iter()
            .filter_map(|place| if let Place::Bucket(bucket) = place { Some(bucket) } else { None })
    }

    fn now(&self) -> Timestamp {
        self.clock.as_ref().map_or(Timestamp::EPOCH, |clock| clock.now())
    }

    /// Puts a record into every place.
    ///
    /// # Errors
    /// Where one of them did not take it, after all were asked. Putting it again is no harm.
    pub async fn put(&self, record: &Record) -> Result<(), SpillError> {
        let Some(keys) = &self.keys else { return Err(SpillError::Place("no spill is configured".into())) };
        let name = record.name();
        let sealed = record.seal(keys, &self.table, self.now());
        let sealed = sealed.map_err(|error| SpillError::Sealed(name.clone(), error))?;
        let mut outcome = Ok(());
        for place in &self.places {
            outcome = outcome.and(place.put(&name, &sealed).await);
        }
        outcome
    }

    /// The newest record of a client whose generation is above this one.
    ///
    /// # Errors
    /// Where a place does not answer, or a record in it does not open: there may be one.
    pub async fn find(&self, client: &ClientId, above: Gen) -> Result<Option<Record>, SpillError> {
        let mut newest: Option<Record> = None;
        for place in &self.places {
            let names = place.list(Some(client)).await?;
            let Some(name) = names.into_iter().filter(|name| name.generation > above).max() else { continue };
            if newest.as_ref().is_some_and(|record| record.generation >= name.generation) {
                continue;
            }
            newest = self.fetch(place, &name).await?.or(newest);
        }
        Ok(newest)
    }

    /// Every record there is, in every place, opened or with what is wrong with it.
    ///
    /// # Errors
    /// Where a place does not answer.
    pub async fn all(&self) -> Result<Vec<(Name, Result<Record, SpillError>)>, SpillError> {
        let mut found = std::collections::BTreeMap::new();
        for place in &self.places {
            for name in place.list(None).await? {
                if matches!(found.get(&name), Some(Ok(_))) {
                    continue;
                }
                match self.fetch(place, &name).await {
                    Ok(Some(record)) => drop(found.insert(name, Ok(record))),
                    Ok(None) => {}
                    Err(error) => drop(found.insert(name, Err(error))),
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    async fn fetch(&self, place: &Place, name: &Name) -> Result<Option<Record>, SpillError> {
        let (Some(keys), Some(sealed)) = (&self.keys, place.fetch(name).await?) else { return Ok(None) };
        let (record, sealed_at) = Record::open(&sealed, name, keys, &self.table)?;
        if self.now().since(sealed_at) > OLDEST {
            return Err(SpillError::TooOld(name.clone()));
        }
        Ok(Some(record))
    }

    /// Removes a record from every place; one that is not there is no error.
    ///
    /// # Errors
    /// Where a place does not answer: what is left there is found to be superseded another time.
    pub async fn remove(&self, name: &Name) -> Result<(), SpillError> {
        let mut outcome = Ok(());
        for place in &self.places {
            outcome = outcome.and(place.remove(name).await);
        }
        outcome
    }
}

impl fmt::Debug for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spill").field("places", &self.places).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_paths_whatever_an_id_is_made_of() {
        let client = ClientId::new("crm:7/../x").or_else(|_| ClientId::new("crm-7")).expect("an id");
        let name = Name { client, generation: Gen(42) };
        assert!(!name.path().contains("..") && name.path().matches('/').count() == 1, "{}", name.path());
        assert_eq!(Name::parse(&name.path()), Some(name));
        for foreign in ["README", "zz/1.jwe", "63/x.jwe", "63/1.txt", "6/1.jwe"] {
            assert_eq!(Name::parse(foreign), None, "{foreign}");
        }
    }
}
