//! Which clients there are: warm-up at start, discovery of new and changed ones, reconciliation now and then.
//!
//! The `by-shard` index holds each client's virtual shard and its *join stamp*, which changes only when an operator
//! changes the client: so discovery costs the same whether the fleet refreshes or rests. It is a plain loop on the
//! injected clock, since the fleet's life depends on it. Clients that are removed leave the index silently; the
//! scheduler finds their tombstone at their next turn, and reconciliation forgets them at the latest.
//!
//! Items that other tools wrote and that cannot be understood are named and left alone: they are no reason to stop
//! caring for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::client::ClientId;
use crate::item::{Key, attr};
use crate::plan::lease::repair_ttl;
use crate::record::{Gen, Partition, Snapshot};
use crate::refresh::Known;
use crate::scheduler::{Command, Pulse};
use crate::store::{Applied, IndexRow, ShardQuery, Store, StoreError, View};
use crate::time::{Clock, Timestamp};

/// Clients read in one batch: three items each, and a hundred keys is DynamoDB's limit (BatchGetItem).
const BATCH: usize = 33;
/// How far discovery looks back: operators' clocks differ, and the index is eventually consistent.
const LOOK_BACK: Duration = Duration::from_secs(300);

/// Finds clients, and tells the scheduler.
pub struct Fleet<S> {
    store: Arc<S>,
    clock: Arc<dyn Clock>,
    shards: u32,
    commands: mpsc::Sender<Command>,
    /// The join stamp with which each client was last seen.
    seen: BTreeMap<ClientId, Timestamp>,
    /// When the last good discovery began.
    last_good: Timestamp,
    pulse: Arc<Pulse>,
}

/// What a full listing found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Live clients.
    pub clients: usize,
    /// Items in the index that are no clients of ours, or cannot be understood.
    pub skipped: usize,
    /// Clients that are no longer registered.
    pub forgotten: usize,
}

/// The scheduler has gone: nobody is listening.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the scheduler has stopped")]
pub struct Stopped;

/// Why a listing ended early.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ListingError {
    /// The store gave no answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody is listening.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl<S: Store> Fleet<S> {
    /// Knows no client yet.
    pub fn new(store: Arc<S>, clock: Arc<dyn Clock>, shards: u32, commands: mpsc::Sender<Command>) -> Self {
        let pulse = Arc::new(Pulse::default());
        Self { store, clock, shards, commands, seen: BTreeMap::new(), last_good: Timestamp::EPOCH, pulse }
    }

    /// What health checks read.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Lists every shard in full, tells the scheduler of every client, and has it forget those that are gone.
    pub async fn reconcile(&mut self) -> Result<Census, ListingError> {
        let began = self.clock.now();
        let mut census = Census::default();
        let mut listed = BTreeSet::new();
        for shard in 0..self.shards {
            let rows = self.list(shard, None).await?;
            census.skipped += self.learn(&rows, &mut listed).await?;
        }
        let gone: Vec<_> = self.seen.keys().filter(|id| !listed.contains(*id)).cloned().collect();
        census.forgotten = gone.len();
        for id in gone {
            self.seen.remove(&id);
            self.tell(Command::Forget(id)).await?;
        }
        census.clients = listed.len();
        self.last_good = began;
        Ok(census)
    }

    /// Looks for new and changed clients once.
    pub async fn discover(&mut self) -> Result<usize, ListingError> {
        let began = self.clock.now();
        let since = self.last_good.minus(LOOK_BACK);
        let mut fresh = Vec::new();
        for shard in 0..self.shards {
            let rows = self.list(shard, Some(since)).await?;
            fresh.extend(rows.into_iter().filter(|row| self.is_news(row)));
        }
        let mut listed = BTreeSet::new();
        self.learn(&fresh, &mut listed).await?;
        self.last_good = began;
        Ok(listed.len())
    }

    fn is_news(&self, row: &IndexRow) -> bool {
        client_of(row).is_some_and(|id| self.seen.get(&id) != Some(&row.joined))
    }

    /// Discovers for as long as anybody listens; `reconcile` asks for a full listing between two rounds.
    pub async fn watch(mut self, interval: Duration, mut reconcile: mpsc::Receiver<()>) {
        loop {
            self.pulse.turn(self.clock.moment(), Duration::ZERO);
            let nap = self.clock.sleep(interval);
            let full = tokio::select! {
                biased;
                Some(()) = reconcile.recv() => true,
                () = nap => false,
            };
            match self.round(full).await {
                Ok(()) => {}
                Err(ListingError::Stopped(Stopped)) => return,
                Err(ListingError::Store(error)) => {
                    warn!(%error, "could not look for clients: trying again soon");
                }
            }
        }
    }

    async fn round(&mut self, full: bool) -> Result<(), ListingError> {
        if full {
            let census = self.reconcile().await?;
            let Census { clients, skipped, forgotten } = census;
            info!(clients, skipped, forgotten, "reconciled with the table");
        } else {
            let news = self.discover().await?;
            if news > 0 {
                info!(clients = news, "new or changed clients");
            }
        }
        Ok(())
    }

    async fn list(&self, shard: u32, joined_after: Option<Timestamp>) -> Result<Vec<IndexRow>, StoreError> {
        let mut rows = Vec::new();
        let mut query = ShardQuery { shard, joined_after, after: None };
        loop {
            let page = self.store.query(&query).await?;
            self.pulse.turn(self.clock.moment(), Duration::ZERO);
            query.after = page.rows.last().cloned();
            rows.extend(page.rows);
            if !page.more || query.after.is_none() {
                return Ok(rows);
            }
        }
    }

    /// Reads the clients of these rows and tells the scheduler. Returns how many rows were none, or not understood.
    async fn learn(
        &mut self,
        rows: &[IndexRow],
        listed: &mut BTreeSet<ClientId>,
    ) -> Result<usize, ListingError> {
        let mut skipped = 0;
        for batch in rows.chunks(BATCH) {
            // A long listing is no standstill.
            self.pulse.turn(self.clock.moment(), Duration::ZERO);
            let mut stamps = BTreeMap::new();
            for row in batch {
                match client_of(row) {
                    Some(id) => drop(stamps.insert(id, row.joined)),
                    None => {
                        warn!(item = %format!("{}/{}", row.pk, row.sk), "skipped: in the index, and no client of ours");
                        skipped += 1;
                    }
                }
            }
            for (id, partition) in self.load(stamps.keys()).await? {
                self.seen.insert(id.clone(), stamps.get(&id).copied().unwrap_or_default());
                match partition.decode(&id) {
                    Ok(snapshot) => {
                        suspect_ttl(&id, &snapshot, &partition);
                        skipped += usize::from(!self.introduce(&id, snapshot).await?);
                        listed.insert(id);
                    }
                    Err(malformed) => {
                        error!(alarm = "malformed_item", client = %id, %malformed, "skipped: repair or remove the item");
                        listed.insert(id);
                        skipped += 1;
                    }
                }
            }
        }
        Ok(skipped)
    }

    async fn load(
        &self,
        ids: impl Iterator<Item = &ClientId>,
    ) -> Result<BTreeMap<ClientId, Partition>, StoreError> {
        let keys: Vec<_> = ids
            .flat_map(|id| [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id.clone())])
            .collect();
        let mut partitions: BTreeMap<ClientId, Partition> = BTreeMap::new();
        for (key, item) in self.store.load(&keys, View::WithoutSecrets).await? {
            if let Key::Config(id) | Key::Lease(id) | Key::Token(id) = &key {
                partitions.entry(id.clone()).or_default().insert(&key, item);
            }
        }
        Ok(partitions)
    }

    async fn introduce(&self, id: &ClientId, snapshot: Snapshot) -> Result<bool, Stopped> {
        self.repair(id, &snapshot).await;
        if snapshot.client().is_none() {
            // Removed since it was indexed.
            return Ok(true);
        }
        suspect_second_writer(id, &snapshot);
        let Some(known) = Known::of(snapshot) else {
            warn!(client = %id, "skipped: it has no LEASE item; register it with `perennial clients add`");
            return Ok(false);
        };
        self.tell(Command::Learn(Box::new(known))).await?;
        Ok(true)
    }

    /// DynamoDB's TTL deletes whole items: one that holds a refresh token must not carry a `ttl`.
    async fn repair(&self, id: &ClientId, snapshot: &Snapshot) {
        let needs_it = snapshot.client().is_some_and(|client| client.grant.needs_refresh_token());
        let Some(change) =
            snapshot.token.as_ref().filter(|_| needs_it).and_then(|token| repair_ttl(id, token))
        else {
            return;
        };
        match self.store.apply(&change).await {
            Ok(Applied::Lost(_)) => {}
            Ok(Applied::Committed) => error!(
                alarm = "ttl_on_refresh_token",
                client = %id,
                "another tool put a ttl on an item that holds a refresh token: removed it, or DynamoDB would have \
                 deleted the customer's grant"
            ),
            Err(error) => {
                warn!(client = %id, %error, "could not remove a ttl from an item that holds a refresh token");
            }
        }
    }

    async fn tell(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }
}

/// Registration gives every token a generation, and no generation runs ahead of its lease.
fn suspect_second_writer(id: &ClientId, snapshot: &Snapshot) {
    let (Some(token), Some(lease)) = (&snapshot.token, &snapshot.lease) else { return };
    if token.generation == Gen::NONE || token.generation > lease.generation {
        let (tok_gen, generation) = (token.generation.0, lease.generation.0);
        error!(
            alarm = "second_writer",
            client = %id,
            tok_gen,
            generation,
            "another tool writes this client's token item: stop it, then import the newest token"
        );
    }
}

/// A `ttl` is for the items of removed clients: DynamoDB would delete a live client's registration.
fn suspect_ttl(id: &ClientId, snapshot: &Snapshot, partition: &Partition) {
    if snapshot.client().is_none() {
        return;
    }
    let items = [(Key::Config(id.clone()), &partition.config), (Key::Lease(id.clone()), &partition.lease)];
    for (key, item) in items {
        if item.as_ref().is_some_and(|item| item.get(attr::TTL).is_some()) {
            error!(
                alarm = "ttl_on_registration",
                client = %id,
                item = %key,
                "another tool put a ttl on this item: remove the attribute `ttl`, or DynamoDB deletes the item"
            );
        }
    }
}

fn client_of(row: &IndexRow) -> Option<ClientId> {
    match Key::parse(&row.pk, &row.sk) {
        Some(Key::Config(id)) => Some(id),
        _ => {
            debug!(pk = row.pk, sk = row.sk, "not a client");
            None
        }
    }
}
