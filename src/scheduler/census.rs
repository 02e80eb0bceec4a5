//! What the scheduler tells the metrics: its clients by state, the token nearest to its expiry, and who is held up.
//!
//! Every client is looked at, every few seconds: a million of them take a tenth of a second.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Scheduler;
use crate::client::Provider;
use crate::metrics;
use crate::plan::condition::{Condition, condition};
use crate::plan::schedule::{Due, due};
use crate::provider::TokenEndpoint;
use crate::refresh::Known;
use crate::store::Store;
use crate::time::{Moment, Timestamp};

/// What a task tells that keeps no token fresh, and the most that it tells: 30 days, in milliseconds.
const LONGEST_LIFETIME_MS: i64 = 30 * 86_400_000;

impl<S: Store, E: TokenEndpoint> Scheduler<S, E> {
    /// Counts the clients a last time, whenever that was done before: a run that ends tells how it leaves them.
    pub(super) fn take_last_census(&mut self) {
        self.counted = None;
        self.take_census(self.clock.now(), self.clock.moment());
    }

    /// Counts the clients where it is time to.
    pub(super) fn take_census(&mut self, now: Timestamp, moment: Moment) {
        let Some(interval) = self.settings.census else { return };
        let since = self.counted.map(|counted| moment.since(counted));
        if since.is_some_and(|since| since < interval) {
            return;
        }
        self.counted = Some(moment);
        Census::of(self.slots.iter().flatten().map(|slot| &slot.known), now).tell();
        self.tell_waiting();
        for (provider, open) in self.gate.open_breakers() {
            metrics::BREAKERS_OPEN.set_count(&[provider], open);
        }
        for (provider, used) in self.gate.budget_used(since.unwrap_or(interval)) {
            metrics::RATE_BUDGET_USED.set(&[provider], used);
        }
    }

    fn tell_waiting(&self) {
        let mut waiting: BTreeMap<&str, usize> =
            self.providers.keys().map(|name| (name.as_str(), 0)).collect();
        for (key, lane) in &self.lanes {
            *waiting.entry(&key.provider).or_default() += lane.len();
        }
        for (provider, waiting) in waiting {
            metrics::WAITING_CLIENTS.set_count(&[provider], waiting);
        }
    }
}

/// How late an attempt begins.
pub(super) fn note_lateness(known: &Known, provider: &Provider, now: Timestamp) {
    if let Due::At(at) = due(&known.client, &known.lease, &known.token)
        && at > Timestamp::EPOCH
    {
        metrics::REFRESH_LATENESS.record(&[&provider.name], now.since(at));
    }
}

/// Clients by state.
#[derive(Debug, PartialEq, Eq)]
struct Census {
    clients: BTreeMap<Condition, usize>,
    /// The least remaining lifetime in milliseconds of a token that is kept fresh.
    least_ms: i64,
}

impl Census {
    fn of<'a>(known: impl Iterator<Item = &'a Known>, now: Timestamp) -> Self {
        let mut census = Self { clients: BTreeMap::new(), least_ms: LONGEST_LIFETIME_MS };
        for Known { client, lease, token } in known {
            let condition = condition(client, lease, token, now);
            *census.clients.entry(condition).or_default() += 1;
            if condition.is_kept_fresh() && token.expires_at != Timestamp::EPOCH {
                let remaining = token.expires_at.as_millis().saturating_sub(now.as_millis());
                census.least_ms = census.least_ms.min(remaining);
            }
        }
        census
    }

    fn tell(&self) {
        for condition in Condition::ALL {
            let count = self.clients.get(&condition).copied().unwrap_or_default();
            metrics::CLIENTS.set_count(&[condition.label()], count);
        }
        let least = Duration::from_millis(self.least_ms.unsigned_abs()).as_secs_f64();
        metrics::LEAST_REMAINING_LIFETIME.set(&[], if self.least_ms < 0 { -least } else { least });
    }
}
