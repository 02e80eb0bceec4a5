//! What stands in the table, and what has become of it: read beside the daemon, and counted from its commits.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perennial::client::{ClientId, Grant};
use perennial::item::Key;
use perennial::record::{Gen, Partition, Snapshot};
use perennial::store::{DynamoStore, Embedded, ShardQuery, Store, View};
use perennial::time::{Clock, SystemClock, Timestamp};

const SHARDS: u32 = 16;

pub(crate) async fn open(path: &Path) -> anyhow::Result<DynamoStore> {
    Ok(Embedded::open(path, "client-credentials", SHARDS, Arc::new(SystemClock)).await?.store().clone())
}

/// One client, as it was last seen.
pub(crate) struct Row {
    pub(crate) grant: Grant,
    pub(crate) generation: Gen,
    pub(crate) commits: u64,
    pub(crate) expires_at: Timestamp,
    pub(crate) updated_at: Option<Timestamp>,
    pub(crate) result: String,
    fails: u32,
}

/// A commit that was not there before.
pub(crate) struct News {
    pub(crate) id: ClientId,
    pub(crate) result: String,
}

/// All clients, and what they have been through.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) rows: BTreeMap<ClientId, Row>,
    pub(crate) refreshes: u64,
    pub(crate) failures: u64,
    expired: Duration,
}

impl Ledger {
    /// Reads the whole table.
    pub(crate) async fn read(&mut self, table: &DynamoStore) -> anyhow::Result<Vec<News>> {
        let mut news = Vec::new();
        for shard in 0..SHARDS {
            let page = table.query(&ShardQuery { shard, joined_after: None, after: None }).await?;
            let ids: Vec<_> = page
                .rows
                .iter()
                .filter_map(|row| match Key::parse(&row.pk, &row.sk) {
                    Some(Key::Config(id)) => Some(id),
                    _ => None,
                })
                .collect();
            for id in ids {
                let snapshot = load(table, &id).await?;
                news.extend(self.note(&id, &snapshot));
            }
        }
        Ok(news)
    }

    fn note(&mut self, id: &ClientId, snapshot: &Snapshot) -> Option<News> {
        let (client, lease, token) = (snapshot.client()?, snapshot.lease.as_ref()?, snapshot.token.as_ref()?);
        let updated_at = token.last_updated.as_deref().and_then(parse);
        let was = self.rows.get(id);
        let first = was.is_none_or(|row| row.expires_at == Timestamp::EPOCH);
        let committed =
            token.expires_at != Timestamp::EPOCH && was.is_none_or(|row| token.generation > row.generation);
        let failed = was.is_some_and(|row| lease.fails > row.fails);
        let mut commits = was.map_or(0, |row| row.commits);
        if committed {
            (self.refreshes, commits) = (self.refreshes + 1, commits + 1);
        }
        if let (true, false, Some(row), Some(at)) = (committed, first, was, updated_at) {
            self.expired += at.since(row.expires_at);
        }
        self.failures += u64::from(failed);
        let result = match &lease.error {
            Some(error) if lease.fails > 0 => error.clone(),
            _ if token.expires_at == Timestamp::EPOCH => "waiting".to_owned(),
            _ => "ok".to_owned(),
        };
        let row = Row {
            grant: client.grant,
            generation: token.generation,
            commits,
            expires_at: token.expires_at,
            updated_at,
            result: result.clone(),
            fails: lease.fails,
        };
        self.rows.insert(id.clone(), row);
        (committed || failed).then(|| News { id: id.clone(), result })
    }

    /// What the run comes to.
    pub(crate) fn verdict(&self, double_redemptions: u64) -> Verdict {
        let now = SystemClock.now();
        let overdue: Duration = self
            .rows
            .values()
            .filter(|row| row.expires_at != Timestamp::EPOCH)
            .map(|row| now.since(row.expires_at))
            .sum();
        let never = self.rows.values().filter(|row| row.expires_at == Timestamp::EPOCH).count();
        Verdict {
            refreshes: self.refreshes,
            failures: self.failures,
            expired: self.expired + overdue,
            double_redemptions,
            never,
        }
    }
}

async fn load(table: &DynamoStore, id: &ClientId) -> anyhow::Result<Snapshot> {
    let keys = [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id.clone())];
    let mut partition = Partition::default();
    for (key, item) in table.load(&keys, View::WithoutSecrets).await? {
        partition.insert(&key, item);
    }
    Ok(partition.decode(id)?)
}

fn parse(text: &str) -> Option<Timestamp> {
    let since_epoch = humantime::parse_rfc3339(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::EPOCH.plus(since_epoch))
}

/// The summary line.
pub(crate) struct Verdict {
    refreshes: u64,
    failures: u64,
    expired: Duration,
    double_redemptions: u64,
    never: usize,
}

impl Verdict {
    /// Every client got a token, none expired, and no refresh token was redeemed twice.
    pub(crate) fn is_clean(&self) -> bool {
        let Self { refreshes, failures, expired, double_redemptions, never } = self;
        *refreshes > 0 && *failures == 0 && expired.is_zero() && *double_redemptions == 0 && *never == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded up: a fraction of a second is not nothing.
        let expired = self.expired.as_millis().div_ceil(1000);
        write!(
            f,
            "summary refreshes={} failures={} expired_token_seconds={expired} double_redemptions={}",
            self.refreshes, self.failures, self.double_redemptions
        )
    }
}
