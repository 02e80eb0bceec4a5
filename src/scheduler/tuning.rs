//! New numbers and new providers for a scheduler that runs, between two of its turns.
//!
//! What is in flight keeps what it began with: a refresh holds its own copies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Scheduler;
use super::slot::{Pace, Phase};
use crate::client::Provider;
use crate::metrics;
use crate::plan::{Backoff, BreakerPolicy, Lifetimes};
use crate::provider::TokenEndpoint;
use crate::store::Store;

/// What can change while a scheduler runs. The durations of the lease protocol cannot: take-overs depend on them.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Provider profiles by name.
    pub providers: BTreeMap<String, Arc<Provider>>,
    /// Refreshes in flight at once, over all providers.
    pub concurrency: usize,
    /// When breakers open.
    pub breaker: BreakerPolicy,
    /// Over how long overdue clients are spread while their tokens are still good.
    pub spread: Duration,
    /// Beyond this skew of the wall clock against the store's nobody is acquired.
    pub max_skew: Duration,
    /// How long to wait after failures.
    pub backoff: Backoff,
    /// Bounds of a lifetime.
    pub lifetimes: Lifetimes,
    /// How long a drain waits for what is in flight.
    pub patience: Duration,
}

impl<S: Store, E: TokenEndpoint> Scheduler<S, E> {
    /// Takes what was ordered last.
    pub(super) fn tune(&mut self) {
        let Some(tuning) = self.orders.borrow_and_update().clone() else { return };
        let Tuning { concurrency, breaker, spread, max_skew, .. } = *tuning;
        self.settings.concurrency = concurrency;
        self.settings.breaker = breaker;
        self.settings.spread = spread;
        self.settings.max_skew = max_skew;
        self.patience = Some(tuning.patience);
        self.refresher = Arc::new(self.refresher.tuned(tuning.backoff, tuning.lifetimes));
        self.gate.tune(&tuning.providers, breaker);
        let before = std::mem::replace(&mut self.providers, tuning.providers.clone());
        self.move_clients(&before);
        for gone in before.keys().filter(|name| !self.providers.contains_key(*name)) {
            metrics::WAITING_CLIENTS.set_count(&[gone], 0);
            metrics::BREAKERS_OPEN.set_count(&[gone], 0);
            metrics::RATE_BUDGET_USED.set(&[gone], 0.0);
        }
    }

    /// Clients of a provider that has come, gone or changed find their lane anew. One that is running does so when it
    /// has ended.
    fn move_clients(&mut self, before: &BTreeMap<String, Arc<Provider>>) {
        for slot in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            let Some(place) = self.place(slot) else { continue };
            let provider = &place.known.client.provider;
            let changed = before.get(provider) != self.providers.get(provider);
            if changed && place.phase != Phase::Running {
                self.reschedule(slot, Pace::Spread);
            }
        }
    }
}
