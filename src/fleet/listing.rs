//! Which clients there are: warm-up, discovery of new, changed and removed ones, reconciliation now and then.
//!
//! The `by-shard` index holds each client's virtual shard and its *join stamp*, which changes only when an operator
//! changes the client: so discovery costs the same whether the fleet refreshes or rests. It is a plain loop on the
//! injected clock, since the fleet's life depends on it. A client that is removed stays in the index as a tombstone
//! until every task has had time to find it there.
//!
//! Items that other tools wrote and that cannot be understood are named and left alone: they are no reason to stop
//! caring for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::client::ClientId;
use crate::item::{Key, attr};
use crate::plan::lease::repair_ttl;
use crate::plan::registry::unlist;
use crate::record::{Gen, Partition, Snapshot};
use crate::refresh::Known;
use crate::scheduler::{Command, Pulse};
use crate::store::{Applied, IndexRow, News, ShardQuery, Store, StoreError, View};
use crate::time::{Clock, Timestamp};

/// Clients read in one batch: three items each, and a hundred keys is DynamoDB's limit (BatchGetItem).
const BATCH: usize = 33;
/// How far discovery looks back: operators' clocks differ, and the index is eventually consistent.
const LOOK_BACK: Duration = Duration::from_secs(300);
/// Whoever is listed for the first time and was changed by an operator in so long a time may have been changed while
/// nobody looked.
const UNHEARD: Duration = Duration::from_secs(3600);

/// How soon the table is asked again that gave no answer.
const RETRY: Duration = Duration::from_secs(2);
/// How old a tombstone is that may leave the index: discovery does not look back so far.
const FOUND: Duration = LOOK_BACK.saturating_mul(2);

/// Finds the clients of some shards, and tells the scheduler.
pub struct Listing<S> {
    store: Arc<S>,
    clock: Arc<dyn Clock>,
    commands: mpsc::Sender<Command>,
    /// The shards under care.
    shards: BTreeMap<u32, Shard>,
    pulse: Arc<Pulse>,
}

/// What is known of a shard.
#[derive(Default)]
struct Shard {
    /// The join stamp with which each client was last seen.
    seen: BTreeMap<ClientId, Timestamp>,
    /// The same of each tombstone.
    buried: BTreeMap<ClientId, Timestamp>,
    /// When the last good look at it began; none while it has not been listed to its end.
    last_good: Option<Timestamp>,
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

impl Census {
    fn add(&mut self, more: Self) {
        self.clients += more.clients;
        self.skipped += more.skipped;
        self.forgotten += more.forgotten;
    }
}

/// What some rows of the index turned out to be.
#[derive(Default)]
struct Found {
    /// Live clients with their join stamps, and those whose items cannot be understood.
    listed: BTreeMap<ClientId, Timestamp>,
    /// Tombstones.
    removed: BTreeMap<ClientId, Timestamp>,
    /// Rows that were none of ours, or not understood.
    skipped: usize,
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

impl Shard {
    fn is_news(&self, id: &ClientId, joined: Timestamp) -> bool {
        ![&self.seen, &self.buried].iter().any(|known| known.get(id) == Some(&joined))
    }
}

impl<S: Store> Listing<S> {
    /// Cares for no shard yet.
    pub fn new(store: Arc<S>, clock: Arc<dyn Clock>, commands: mpsc::Sender<Command>) -> Self {
        let pulse = Arc::new(Pulse::default());
        pulse.turn(clock.moment(), Duration::ZERO);
        Self { store, clock, commands, shards: BTreeMap::new(), pulse }
    }

    /// What health checks read.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Cares for these shards and no others from now on: has the scheduler forget the clients of those that went, and
    /// tells it of the clients of those that came.
    ///
    /// # Errors
    /// Where the store gives no answer: what was listed by then is under care, and the rest is asked for again.
    pub async fn care_for(&mut self, wanted: &BTreeSet<u32>) -> Result<Census, ListingError> {
        let gone: Vec<_> = self.shards.keys().filter(|shard| !wanted.contains(shard)).copied().collect();
        for shard in gone {
            let Some(known) = self.shards.remove(&shard) else { continue };
            for id in known.seen.into_keys() {
                self.tell(Command::Forget(id)).await?;
            }
        }
        let mut census = Census::default();
        for shard in wanted {
            if !self.is_listed(*shard) {
                census.add(self.list_in_full(*shard).await?);
            }
        }
        Ok(census)
    }

    /// Lists every shard under care in full, tells the scheduler of every client, and has it forget those that are
    /// gone.
    ///
    /// # Errors
    /// Where the store gives no answer.
    pub async fn reconcile(&mut self) -> Result<Census, ListingError> {
        let mut census = Census::default();
        for shard in self.shards.keys().copied().collect::<Vec<_>>() {
            census.add(self.list_in_full(shard).await?);
        }
        Ok(census)
    }

    fn is_listed(&self, shard: u32) -> bool {
        self.shards.get(&shard).is_some_and(|known| known.last_good.is_some())
    }

    async fn list_in_full(&mut self, shard: u32) -> Result<Census, ListingError> {
        let began = self.clock.now();
        let look_back = if self.is_listed(shard) { LOOK_BACK } else { UNHEARD };
        let rows = self.list(shard, None).await?;
        let before: Vec<_> = self.shards.entry(shard).or_default().seen.keys().cloned().collect();
        let found = self.learn(shard, &rows).await?;
        self.unlist(&found.removed).await;
        let gone: Vec<_> = before.into_iter().filter(|id| !found.listed.contains_key(id)).collect();
        let census = Census { clients: found.listed.len(), skipped: found.skipped, forgotten: gone.len() };
        self.announce(&found, began.minus(look_back));
        let last_good = Some(began);
        self.shards.insert(shard, Shard { seen: found.listed, buried: found.removed, last_good });
        for id in gone {
            self.store.announce(&id, News::Removed);
            self.tell(Command::Forget(id)).await?;
        }
        Ok(census)
    }

    /// Looks for new, changed and removed clients once. Returns how many there are.
    ///
    /// # Errors
    /// Where the store gives no answer.
    pub async fn discover(&mut self) -> Result<usize, ListingError> {
        let mut news = 0;
        for shard in self.shards.keys().copied().collect::<Vec<_>>() {
            let began = self.clock.now();
            let Some(known) = self.shards.get(&shard) else { continue };
            let since = known.last_good.map(|last_good| last_good.minus(LOOK_BACK));
            let mut rows = self.list(shard, since).await?;
            rows.retain(|row| client_of(row).is_some_and(|id| known.is_news(&id, row.joined)));
            let found = self.learn(shard, &rows).await?;
            self.announce(&found, Timestamp::EPOCH);
            let Some(known) = self.shards.get_mut(&shard) else { continue };
            let gone = found.removed.keys().filter(|id| known.seen.remove(*id).is_some()).count();
            news += found.listed.len() + gone;
            known.seen.extend(found.listed);
            known.buried.extend(found.removed);
            known.last_good = Some(began);
        }
        Ok(news)
    }

    /// An operator's new tokens, or none any more: whoever passes them on has to know of what changed since then.
    fn announce(&self, found: &Found, since: Timestamp) {
        for (clients, news) in [(&found.listed, News::Changed), (&found.removed, News::Removed)] {
            let lately = clients.iter().filter(|(_, joined)| **joined >= since);
            lately.for_each(|(id, _)| self.store.announce(id, news.clone()));
        }
    }

    /// Cares for the shards that `share` names, discovers every `interval`, and says `warm` once all of its first
    /// share is listed. `reconcile` asks for a full listing between two rounds. Ends when nobody listens any more.
    pub(super) async fn watch(
        mut self,
        interval: Duration,
        mut share: watch::Receiver<Option<BTreeSet<u32>>>,
        mut reconcile: mpsc::Receiver<()>,
        warm: impl Fn(),
    ) {
        let mut full = false;
        loop {
            self.pulse.turn(self.clock.moment(), Duration::ZERO);
            let wanted = share.borrow_and_update().clone();
            let nap = match wanted {
                None => interval,
                Some(wanted) => match self.round(&wanted, full).await {
                    Ok(()) => {
                        full = false;
                        warm();
                        interval
                    }
                    Err(ListingError::Stopped(Stopped)) => return,
                    Err(ListingError::Store(error)) => {
                        warn!(%error, "could not look for clients: trying again soon");
                        interval.min(RETRY)
                    }
                },
            };
            // One that failed is still owed.
            full |= tokio::select! {
                biased;
                changed = share.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
                Some(()) = reconcile.recv() => true,
                () = self.clock.sleep(nap) => false,
            };
        }
    }

    async fn round(&mut self, wanted: &BTreeSet<u32>, full: bool) -> Result<(), ListingError> {
        if full {
            let Census { clients, skipped, forgotten } = self.reconcile().await?;
            info!(clients, skipped, forgotten, "reconciled with the table");
        }
        if !self.shards.keys().eq(wanted) || !wanted.iter().all(|shard| self.is_listed(*shard)) {
            let Census { clients, skipped, .. } = self.care_for(wanted).await?;
            info!(shards = wanted.len(), clients, skipped, "warm: the clients of these shards are known");
            return Ok(());
        }
        let news = self.discover().await?;
        if news > 0 {
            info!(clients = news, "new, changed or removed clients");
        }
        Ok(())
    }

    /// Takes tombstones out of the index that every task has found. One that stays is taken out another time.
    async fn unlist(&self, removed: &BTreeMap<ClientId, Timestamp>) {
        let now = self.clock.now();
        for (id, joined) in removed.iter().filter(|(_, joined)| now.since(**joined) > FOUND) {
            if let Err(error) = self.store.apply(&unlist(id, *joined)).await {
                debug!(client = %id, %error, "could not take a tombstone out of the index");
            }
        }
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

    /// Reads the clients of these rows and tells the scheduler. Whoever it has been told of is in the shard's account at
    /// once: a listing that fails half-way may be the last of it.
    async fn learn(&mut self, shard: u32, rows: &[IndexRow]) -> Result<Found, ListingError> {
        let mut found = Found::default();
        for batch in rows.chunks(BATCH) {
            // A long listing is no standstill.
            self.pulse.turn(self.clock.moment(), Duration::ZERO);
            let mut stamps = BTreeMap::new();
            for row in batch {
                match client_of(row) {
                    Some(id) => drop(stamps.insert(id, row.joined)),
                    None => {
                        warn!(item = %format!("{}/{}", row.pk, row.sk), "skipped: in the index, and no client of ours");
                        found.skipped += 1;
                    }
                }
            }
            for (id, partition) in self.load(stamps.keys()).await? {
                let joined = stamps.get(&id).copied().unwrap_or_default();
                let live = match partition.decode(&id) {
                    Ok(snapshot) => {
                        suspect_ttl(&id, &snapshot, &partition);
                        let live = snapshot.client().is_some();
                        found.skipped += usize::from(!self.introduce(&id, snapshot).await?);
                        live
                    }
                    Err(malformed) => {
                        error!(alarm = "malformed_item", client = %id, %malformed, "skipped: repair or remove the item");
                        found.skipped += 1;
                        true
                    }
                };
                if live && let Some(known) = self.shards.get_mut(&shard) {
                    known.seen.insert(id.clone(), joined);
                }
                if live { &mut found.listed } else { &mut found.removed }.insert(id, joined);
            }
        }
        Ok(found)
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
            self.tell(Command::Forget(id.clone())).await?;
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
