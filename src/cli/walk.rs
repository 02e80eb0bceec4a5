//! Every registered client, shard by shard and page by page, without holding the fleet in memory.
//!
//! A walk costs, in read units, a half for each shard or for each 40 clients of it, and three for each client: its
//! three items are read strongly consistent, and one unit is the least for each. Who only looks pays half of that.

use std::collections::{BTreeMap, BTreeSet};

use super::output;
use super::standing::ClientStatus;
use crate::client::{Client, ClientId};
use crate::item::Key;
use crate::record::Partition;
use crate::store::{ShardQuery, Store, StoreError, View};
use crate::time::Timestamp;

/// Clients loaded at once: three items each, and DynamoDB takes a hundred keys a request (BatchGetItem).
pub(super) const BATCH: usize = 33;

/// The three items of each of these clients, without their secrets.
pub(super) async fn load(
    store: &impl Store,
    ids: &[ClientId],
    view: View,
) -> Result<BTreeMap<ClientId, Partition>, StoreError> {
    let keys: Vec<Key> = ids
        .iter()
        .flat_map(|id| [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id.clone())])
        .collect();
    let mut partitions: BTreeMap<ClientId, Partition> = BTreeMap::new();
    for (key, item) in store.load(&keys, view).await? {
        if let Key::Config(id) | Key::Lease(id) | Key::Token(id) = &key {
            partitions.entry(id.clone()).or_default().insert(&key, item);
        }
    }
    Ok(partitions)
}

/// A client and its status; none where it is not registered any more.
pub(super) fn understand(
    id: &ClientId,
    partition: Option<&Partition>,
    now: Timestamp,
) -> Result<Option<(Client, ClientStatus)>, String> {
    let Some(partition) = partition else { return Ok(None) };
    let read = partition.decode(id).map_err(|malformed| malformed.to_string())?;
    let Some(client) = read.client() else { return Ok(None) };
    match ClientStatus::of(client, &read, now) {
        Some(status) => Ok(Some((client.clone(), status))),
        None => Err(format!("{}: is missing, though the client is registered", Key::Lease(id.clone()))),
    }
}

/// A page of the index.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Clients, and tombstones of those that were removed lately.
    pub(super) ids: Vec<ClientId>,
    /// Rows that are no client of ours.
    pub(super) strangers: Vec<String>,
}

impl Page {
    pub(super) fn name_strangers(&self) {
        for row in &self.strangers {
            output::skipped(format_args!("{row} is in the index and is no client of ours"));
        }
    }
}

/// Walks the index.
pub(super) struct Listing<'a, S> {
    store: &'a S,
    query: ShardQuery,
    shards: u32,
    /// A client that is changed meanwhile moves to the end of its shard.
    seen: BTreeSet<ClientId>,
}

impl<'a, S: Store> Listing<'a, S> {
    pub(super) fn new(store: &'a S, shards: u32) -> Self {
        let query = ShardQuery { shard: 0, joined_after: None, after: None };
        Self { store, query, shards, seen: BTreeSet::new() }
    }

    /// The next page, which may be empty; `None` after the last shard.
    pub(super) async fn next(&mut self) -> Result<Option<Page>, StoreError> {
        if self.query.shard >= self.shards {
            return Ok(None);
        }
        let page = self.store.query(&self.query).await?;
        let mut found = Page::default();
        for row in &page.rows {
            match Key::parse(&row.pk, &row.sk) {
                Some(Key::Config(id)) if self.seen.insert(id.clone()) => found.ids.push(id),
                Some(Key::Config(_)) => {}
                _ => found.strangers.push(format!("{}/{}", row.pk, row.sk)),
            }
        }
        match page.rows.into_iter().next_back() {
            Some(last) if page.more => self.query.after = Some(last),
            _ => {
                self.query.shard += 1;
                self.query.after = None;
                self.seen.clear();
            }
        }
        Ok(Some(found))
    }
}
