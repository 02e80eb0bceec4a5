//! The table, with a referee over every write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use perennial::client::ClientId;
use perennial::item::{Change, Item, Key, Value, attr};
use perennial::plan::lease::{Standing, standing};
use perennial::record::{Partition, Snapshot, State};
use perennial::store::{Applied, MemoryStore, Store as _, StoreError};
use perennial::time::Timestamp;

use super::clock::Origin;
use super::provider::Providers;
use super::witness::Witness;

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Task,
    Operator,
}

/// What is known of a client over the whole run.
#[derive(Default)]
struct Past {
    generation: i64,
    tok_gen: i64,
    removed: bool,
    /// When tokens were stored, and until when each is good.
    commits: Vec<(Duration, Timestamp)>,
    /// Refresh tokens that were ever stored, and when first.
    stored: BTreeMap<String, Duration>,
}

#[derive(Default)]
struct Books {
    past: BTreeMap<ClientId, Past>,
    objections: Vec<String>,
    writes: u64,
}

/// The table of a simulated world. Writers that weaken it are for showing that the referee sees.
#[derive(Clone)]
pub(crate) struct Table {
    pub(crate) store: MemoryStore,
    origin: Origin,
    providers: Providers,
    witness: Witness,
    books: Arc<Mutex<Books>>,
    weaken: Option<fn(&Change) -> Change>,
}

impl Table {
    pub(crate) fn new(origin: Origin, providers: Providers, witness: Witness) -> Self {
        Self { store: MemoryStore::new(), origin, providers, witness, books: Arc::default(), weaken: None }
    }

    /// Has every write of a task go through this first.
    pub(crate) fn weaken(&mut self, weaken: fn(&Change) -> Change) {
        self.weaken = Some(weaken);
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn objections(&self) -> Vec<String> {
        self.books().objections.clone()
    }

    pub(crate) fn object(&self, objection: String) {
        self.books().objections.push(format!("{:?}: {objection}", self.origin.elapsed()));
    }

    pub(crate) fn writes(&self) -> u64 {
        self.books().writes
    }

    /// When this client's tokens were stored, and until when each was good.
    pub(crate) fn commits(&self, id: &ClientId) -> Vec<(Duration, Timestamp)> {
        self.books().past.get(id).map(|past| past.commits.clone()).unwrap_or_default()
    }

    /// When this refresh token was stored first, if ever.
    pub(crate) fn stored_at(&self, client: &str, token: &str) -> Option<Duration> {
        let id = ClientId::new(client).ok()?;
        self.books().past.get(&id)?.stored.get(token).copied()
    }

    pub(crate) fn snapshot(&self, id: &ClientId) -> Snapshot {
        let mut partition = Partition::default();
        for key in [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id.clone())] {
            if let Some(item) = self.raw(&key) {
                partition.insert(&key, item);
            }
        }
        partition.decode(id).expect("our own items decode")
    }

    fn raw(&self, key: &Key) -> Option<Item> {
        self.store.raw(&key.pk(), key.sk())
    }

    /// Carries a change out, and looks at what it did.
    pub(crate) fn apply(&self, change: &Change, writer: Writer) -> Result<Applied, StoreError> {
        let weakened = self.weaken.filter(|_| writer == Writer::Task).map(|weaken| weaken(change));
        let change = weakened.as_ref().unwrap_or(change);
        let applied = self.store.apply(change).now_or_never().expect("the table in memory never waits")?;
        self.books().writes += 1;
        if applied == Applied::Committed {
            let ids: BTreeSet<_> = change.0.iter().filter_map(|write| of(&write.key)).collect();
            ids.into_iter().for_each(|id| self.look(id, change, writer));
        }
        Ok(applied)
    }

    /// After a write to one of this client's items.
    fn look(&self, id: &ClientId, change: &Change, writer: Writer) {
        let snapshot = self.snapshot(id);
        let Some(lease) = &snapshot.lease else { return self.object(format!("{id}: its LEASE is gone")) };
        let (generation, tok_gen) = (lease.generation.0, snapshot.tok_gen().0);
        let mut objections = Vec::new();
        let mut books = self.books();
        let past =
            books.past.entry(id.clone()).or_insert(Past { generation: -1, tok_gen: -1, ..Past::default() });
        if generation < past.generation || snapshot.token.is_some() && tok_gen < past.tok_gen {
            objections.push(format!(
                "went back from {}/{} to {generation}/{tok_gen}",
                past.generation, past.tok_gen
            ));
        }
        if tok_gen > generation {
            objections.push(format!("tok_gen {tok_gen} is ahead of gen {generation}"));
        }
        if acquires(change) && generation <= past.generation {
            objections.push(format!("generation {generation} was acquired twice"));
        }
        if past.removed
            && writer == Writer::Task
            && (snapshot.token.is_some() || lease.state != State::Removed)
        {
            objections.push("a task brought it back".to_owned());
        }
        if lease.state == State::InFlight && lease.lease_ms <= 0 {
            objections.push("a lease without a length".to_owned());
        }
        past.removed = snapshot.client().is_none();
        past.generation = generation;
        if let Some(token) = &snapshot.token {
            if tok_gen > past.tok_gen {
                past.commits.push((self.origin.elapsed(), token.expires_at));
                if let Some(token) = &token.refresh_token {
                    past.stored.entry(token.expose().to_owned()).or_insert(self.origin.elapsed());
                }
                self.witness.renewed(id.as_str());
            }
            past.tok_gen = tok_gen;
            let dead = standing(lease, token.generation) == Standing::Dead;
            let live =
                token.refresh_token.as_ref().is_some_and(|token| self.providers.is_live(token.expose()));
            if dead && live && writer == Writer::Task {
                objections.push("is called dead, and its stored refresh token is live".to_owned());
            }
        }
        drop(books);
        objections.into_iter().for_each(|objection| self.object(format!("{id}: {objection}")));
    }
}

fn of(key: &Key) -> Option<&ClientId> {
    match key {
        Key::Config(id) | Key::Lease(id) | Key::Token(id) => Some(id),
        Key::Member(_) | Key::Schema => None,
    }
}

/// Whether the change takes a lease.
fn acquires(change: &Change) -> bool {
    use perennial::item::{Action, Assignment};
    change.0.iter().any(|write| match &write.action {
        Action::Update(list) => list.iter().any(|it| matches!(it, Assignment::Set(attr::OWN, Value::S(_)))),
        _ => false,
    })
}
