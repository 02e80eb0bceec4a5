//! What a view is fed with: rounds of reading, and the stories of single clients.

use std::sync::Arc;

use tokio::sync::OnceCell;

use super::super::judge::judge;
use super::super::muster::Muster;
use super::super::status::Report;
use super::super::survey::look;
use super::super::{App, why};
use super::sweep::{Coverage, Sweep};
use crate::client::ClientId;
use crate::store::{DynamoVault, View as Detail};
use crate::time::{Clock, Timestamp};

/// What a round of reading found.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) report: Report,
    pub(super) coverage: Coverage,
}

/// The table, opened by whoever first needs it: one that does not answer at start may later.
pub(super) struct Table<'a> {
    app: &'a App,
    opened: OnceCell<DynamoVault>,
}

impl<'a> Table<'a> {
    pub(super) fn new(app: &'a App) -> Self {
        Self { app, opened: OnceCell::new() }
    }

    async fn store(&self) -> anyhow::Result<&DynamoVault> {
        self.opened.get_or_try_init(|| self.app.store()).await
    }

    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        self.app.clock()
    }

    /// The time by the table's clock, as far as it is known.
    pub(super) fn now(&self) -> Timestamp {
        self.opened.get().map_or_else(|| self.app.clock().now(), |store| self.app.table_time(store))
    }

    /// What `perennial why` tells of a client.
    pub(super) async fn story(&self, id: &ClientId) -> anyhow::Result<String> {
        Ok(why::story_of(self.app, self.store().await?, id).await?.text())
    }
}

/// Reads round after round.
pub(super) struct Reader<'a> {
    table: &'a Table<'a>,
    most: usize,
    sweep: Option<Sweep<'a, DynamoVault>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(table: &'a Table<'a>, most: usize) -> Self {
        Self { table, most, sweep: None }
    }

    /// Looks at all members, and at as many clients as a round may.
    pub(super) async fn round(&mut self) -> anyhow::Result<Round> {
        let (app, store) = (self.table.app, self.table.store().await?);
        let before = store.vitals().read_units();
        let muster = Muster::read(app, store).await?;
        let sweep = self.sweep.get_or_insert_with(|| Sweep::new(store, app.config().store.shards));
        let now = || app.table_time(store);
        let look = async |ids: &[ClientId]| look(store, ids, Detail::Glance, app.config(), now).await;
        let coverage = sweep.round(self.most, look).await?;
        let survey = sweep.survey();
        let report = Report {
            verdict: judge(Some(&muster), Some(&survey)),
            muster: Some(muster),
            survey: Some(survey),
            now: now(),
            read_units: store.vitals().read_units() - before,
        };
        Ok(Round { report, coverage })
    }
}
