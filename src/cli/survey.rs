//! What one walk over all clients finds: how many are in which state, what is wrong, and who most needs an eye.
//!
//! It holds counts, a few names for each trouble, and as many rows as are asked for, however many clients there are.
//! No secret is read.

use std::collections::BTreeMap;

use serde_json::Value;

use super::App;
use super::standing::ClientStatus;
use super::trouble::{Trouble, trouble};
use super::walk::{BATCH, Listing, load, understand};
use crate::client::{Client, ClientId, Grant};
use crate::config::Config;
use crate::plan::condition::Condition;
use crate::store::{DynamoVault, Store, StoreError, View};
use crate::time::Timestamp;

/// How many are named of those with the same trouble.
const NAMED: usize = 5;

/// Some, of whom the first few are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) count: usize,
    pub(super) first: Vec<String>,
}

impl Named {
    pub(super) fn add(&mut self, name: impl Into<String>) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(name.into());
        }
    }
}

/// A client in a list by urgency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: ClientId,
    pub(super) provider: String,
    pub(super) grant: Grant,
    pub(super) paused: bool,
    pub(super) status: ClientStatus,
    pub(super) trouble: Option<Trouble>,
}

impl Row {
    fn of(client: Client, status: ClientStatus, trouble: Option<Trouble>) -> Self {
        let Client { id, provider, grant, paused, .. } = client;
        Self { id, provider, grant, paused, status, trouble }
    }

    pub(super) fn json(&self) -> Value {
        self.status.json(&self.id, &self.provider, self.grant, self.paused)
    }

    /// First who is in trouble or fails, then whose customer has to consent again, then who is kept fresh, then who is
    /// not; the soonest expiry first.
    pub(super) fn rank(&self) -> (u8, Option<Timestamp>, &ClientId) {
        let status = &self.status;
        let group = match status.condition {
            Condition::Paused => 3,
            Condition::Dead if self.paused => 3,
            Condition::Dead => 1,
            _ if self.trouble.is_some() || status.failures > 0 => 0,
            _ => 2,
        };
        (group, status.expires_at, &self.id)
    }
}

/// What a look at a client finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sighting {
    Client(Box<Row>),
    /// One of its items cannot be understood.
    Malformed,
    /// It is not registered any more.
    Gone,
}

/// Looks at these clients, in their order.
pub(super) async fn look(
    store: &impl Store,
    ids: &[ClientId],
    view: View,
    config: &Config,
    now: impl Fn() -> Timestamp,
) -> Result<Vec<(ClientId, Sighting)>, StoreError> {
    let partitions = load(store, ids, view).await?;
    let now = now();
    let sighting = |id: &ClientId| match understand(id, partitions.get(id), now) {
        Ok(Some((client, status))) => {
            let trouble = trouble_of(&client, &status, config, now);
            Sighting::Client(Box::new(Row::of(client, status, trouble)))
        }
        Ok(None) => Sighting::Gone,
        Err(_) => Sighting::Malformed,
    };
    Ok(ids.iter().map(|id| (id.clone(), sighting(id))).collect())
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Clients by state.
    pub(super) by: BTreeMap<Condition, usize>,
    /// The soonest expiry of a token that is kept fresh.
    pub(super) least: Option<Timestamp>,
    /// The soonest refresh; in the past where it is overdue.
    pub(super) next_due: Option<Timestamp>,
    pub(super) troubles: BTreeMap<Trouble, Named>,
    /// Clients of whose items one cannot be understood.
    pub(super) malformed: Named,
    /// The most urgent ones, the first of them first.
    pub(super) rows: Vec<Row>,
    /// When the walk ended.
    pub(super) at: Timestamp,
}

impl Survey {
    /// Walks over all clients, and keeps at most so many rows.
    pub(super) async fn read(app: &App, store: &DynamoVault, keep: usize) -> Result<Self, StoreError> {
        let mut survey = Self::default();
        let mut listing = Listing::new(store, app.config().store.shards);
        while let Some(page) = listing.next().await? {
            for ids in page.ids.chunks(BATCH) {
                let now = || app.table_time(store);
                for (id, sighting) in look(store, ids, View::WithoutSecrets, app.config(), now).await? {
                    survey.add(&id, sighting);
                }
                survey.keep_first(keep);
            }
        }
        survey.at = app.table_time(store);
        Ok(survey)
    }

    pub(super) fn add(&mut self, id: &ClientId, sighting: Sighting) {
        match sighting {
            Sighting::Client(row) => self.count(*row),
            Sighting::Malformed => self.malformed.add(id.as_str()),
            Sighting::Gone => {}
        }
    }

    fn count(&mut self, row: Row) {
        *self.by.entry(row.status.condition).or_default() += 1;
        if row.status.condition.is_kept_fresh() && !row.paused {
            self.least = self.least.into_iter().chain(row.status.expires_at).min();
        }
        self.next_due = self.next_due.into_iter().chain(row.status.next_refresh).min();
        if let Some(trouble) = row.trouble {
            self.troubles.entry(trouble).or_default().add(row.id.as_str());
        }
        self.rows.push(row);
    }

    pub(super) fn keep_first(&mut self, keep: usize) {
        self.rows.sort_by(|one, other| one.rank().cmp(&other.rank()));
        self.rows.truncate(keep);
    }

    /// Clients that were understood.
    pub(super) fn clients(&self) -> usize {
        self.by.values().sum()
    }
}

fn trouble_of(client: &Client, status: &ClientStatus, config: &Config, now: Timestamp) -> Option<Trouble> {
    let provider = config.providers.get(&client.provider).map(AsRef::as_ref);
    trouble(client, status, provider, &config.refresh.timing, now)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    pub(in super::super) fn row(id: &str, condition: Condition, expires_at: Option<Timestamp>) -> Row {
        let status = ClientStatus {
            condition,
            expires_at,
            wanted_at: expires_at,
            next_refresh: expires_at.map(|at| at.minus(Duration::from_secs(300))),
            failures: 0,
            error: None,
            owner: None,
            last_attempt: None,
            ends: None,
            doubt: None,
        };
        let id = ClientId::new(id).expect("a valid id");
        Row {
            id,
            provider: "acme".into(),
            grant: Grant::ClientCredentials,
            paused: false,
            status,
            trouble: None,
        }
    }

    #[test]
    fn who_fails_comes_first_and_who_is_not_kept_fresh_last() {
        let at = |secs: u64| Some(NOW.plus(Duration::from_secs(secs)));
        let failing = row("failing", Condition::Idle, at(500));
        let failing = Row { status: ClientStatus { failures: 1, ..failing.status }, ..failing };
        let held = Row { trouble: Some(Trouble::Held), ..row("held", Condition::Held, at(400)) };
        let dead = Row { trouble: Some(Trouble::Dead), ..row("dead", Condition::Dead, at(0)) };
        let rows = vec![
            row("later", Condition::Idle, at(20)),
            dead,
            failing,
            row("paused", Condition::Paused, at(1)),
            row("pending", Condition::Pending, None),
            held,
            row("sooner", Condition::Refreshing, at(10)),
        ];
        let mut survey = Survey { rows, ..Survey::default() };
        survey.keep_first(6);
        let order: Vec<_> = survey.rows.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(order, ["held", "failing", "dead", "pending", "sooner", "later"]);
    }

    #[test]
    fn the_least_lifetime_is_of_those_that_are_kept_fresh() {
        let mut survey = Survey::default();
        let at = |secs: u64| Some(NOW.plus(Duration::from_secs(secs)));
        for (paused, condition, expires_at) in [
            (false, Condition::Idle, at(70)),
            (false, Condition::Refreshing, at(50)),
            (true, Condition::InDoubt, at(40)),
            (false, Condition::Dead, at(30)),
            (false, Condition::Pending, None),
        ] {
            survey.count(Row { paused, ..row("c", condition, expires_at) });
        }
        assert_eq!((survey.least, survey.clients()), (at(50), 5));
    }
}
