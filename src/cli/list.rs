//! `perennial clients list`: shard by shard, page by page, without holding the fleet in memory.
//!
//! Items that other tools wrote and that cannot be understood are named on stderr and skipped. With `--sort` the ids
//! and their sort keys are held, and nothing else.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::standing::{ClientStatus, relative};
use super::walk::{BATCH, Listing, load, understand};
use super::{App, output};
use crate::client::{Client, ClientId};
use crate::plan::condition::Condition;
use crate::store::{Store, StoreError, View};
use crate::time::Timestamp;

/// List the registered clients.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  perennial clients list --state dead
  perennial clients list --failing --sort failures --limit 20
  perennial clients list --json | jq -r 'select(.expires_at == null) | .client'")]
pub(super) struct List {
    /// Only those in this state.
    #[arg(long)]
    state: Option<Condition>,
    /// Only those of this provider.
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only those whose last attempts failed.
    #[arg(long)]
    failing: bool,
    /// Sort them; without it they come in the table's order, as they are read.
    #[arg(long, value_name = "BY")]
    sort: Option<Sort>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// By name.
    Id,
    /// The soonest expiry first; those without a token before all.
    Expiry,
    /// The soonest refresh first; those that will not be refreshed last.
    NextRefresh,
    /// The most failures first.
    Failures,
}

/// What the listing sorts by, ties broken by name.
pub(super) type SortKey = (i64, ClientId);

impl Sort {
    pub(super) fn key(self, id: &ClientId, status: &ClientStatus) -> SortKey {
        let millis = |at: Option<Timestamp>, missing: i64| at.map_or(missing, Timestamp::as_millis);
        let rank = match self {
            Self::Id => 0,
            Self::Expiry => millis(status.expires_at, i64::MIN),
            Self::NextRefresh => millis(status.next_refresh, i64::MAX),
            Self::Failures => -i64::from(status.failures),
        };
        (rank, id.clone())
    }
}

impl List {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store().await?;
        let mut printer = Printer { now: app.clock().now(), json: self.json, left: self.limit, begun: false };
        let shards = app.config().store.shards;
        match self.sort {
            None => self.stream(&store, shards, &mut printer).await?,
            Some(sort) => self.sorted(&store, shards, sort, &mut printer).await?,
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn stream(&self, store: &impl Store, shards: u32, printer: &mut Printer) -> anyhow::Result<()> {
        let mut listing = Listing::new(store, shards);
        while let Some(page) = listing.next().await? {
            page.name_strangers();
            for ids in page.ids.chunks(BATCH) {
                for (client, status) in self.load(store, ids, printer.now, true).await? {
                    if !printer.print(&client, &status)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    async fn sorted(
        &self,
        store: &impl Store,
        shards: u32,
        sort: Sort,
        printer: &mut Printer,
    ) -> anyhow::Result<()> {
        let mut keys: Vec<SortKey> = Vec::new();
        let mut listing = Listing::new(store, shards);
        while let Some(page) = listing.next().await? {
            page.name_strangers();
            for ids in page.ids.chunks(BATCH) {
                let loaded = self.load(store, ids, printer.now, true).await?;
                keys.extend(loaded.iter().map(|(client, status)| sort.key(&client.id, status)));
            }
        }
        keys.sort_unstable();
        for batch in keys.chunks(BATCH) {
            let ids: Vec<ClientId> = batch.iter().map(|(_, id)| id.clone()).collect();
            for (client, status) in self.load(store, &ids, printer.now, false).await? {
                if !printer.print(&client, &status)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Those of these clients that are asked for, in the given order.
    async fn load(
        &self,
        store: &impl Store,
        ids: &[ClientId],
        now: Timestamp,
        name_broken: bool,
    ) -> Result<Vec<(Client, ClientStatus)>, StoreError> {
        let partitions = load(store, ids, View::WithoutSecrets).await?;
        let mut found = Vec::new();
        for id in ids {
            match understand(id, partitions.get(id), now) {
                Ok(Some((client, status))) if self.asks_for(&client, &status) => found.push((client, status)),
                Ok(_) => {}
                Err(problem) if name_broken => output::skipped(problem),
                Err(_) => {}
            }
        }
        Ok(found)
    }

    fn asks_for(&self, client: &Client, status: &ClientStatus) -> bool {
        self.state.is_none_or(|condition| condition == status.condition)
            && self.provider.as_ref().is_none_or(|name| *name == client.provider)
            && (!self.failing || status.failures > 0)
    }
}

struct Printer {
    now: Timestamp,
    json: bool,
    left: Option<usize>,
    begun: bool,
}

impl Printer {
    /// False once no more are wanted.
    fn print(&mut self, client: &Client, status: &ClientStatus) -> anyhow::Result<bool> {
        if self.left == Some(0) {
            return Ok(false);
        }
        self.left = self.left.map(|left| left - 1);
        if self.json {
            output::json(&status.json(&client.id, &client.provider, client.grant, client.paused))?;
        } else {
            self.header()?;
            output::row(row(
                client.id.as_str(),
                &client.provider,
                client.grant.as_str(),
                &status.word(client.paused),
                [&self.time(status.expires_at), &self.time(status.next_refresh)],
                &status.failures.to_string(),
                status.owner.as_deref().unwrap_or("-"),
            ))?;
        }
        Ok(self.left != Some(0))
    }

    fn header(&mut self) -> anyhow::Result<()> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        let header =
            row("ID", "PROVIDER", "GRANT", "STATE", ["EXPIRES", "NEXT REFRESH"], "FAILURES", "OWNER");
        output::line(header)
    }

    fn time(&self, at: Option<Timestamp>) -> String {
        at.map_or_else(|| "-".into(), |at| relative(at, self.now))
    }
}

fn row(
    id: &str,
    provider: &str,
    grant: &str,
    state: &str,
    [expires, next]: [&str; 2],
    failures: &str,
    owner: &str,
) -> String {
    format!("{id:<28} {provider:<14} {grant:<18} {state:<12} {expires:<14} {next:<14} {failures:<8} {owner}")
}
