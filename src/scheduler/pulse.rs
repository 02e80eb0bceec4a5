//! What the scheduler's loop shows of itself, for health checks that must not wait for it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::record::Tally;
use crate::refresh::Outcome;
use crate::time::Moment;

/// A loop that turns takes no longer rests than this.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// What health checks read of a loop: that it turns, and how late it is.
#[derive(Debug, Default)]
pub struct Pulse {
    turned_ms: AtomicU64,
    lag_ms: AtomicI64,
    clients: AtomicU64,
    refreshed: AtomicU64,
    failed: AtomicU64,
    conflicts: AtomicU64,
    takeovers: AtomicU64,
    in_flight: watch::Sender<usize>,
}

impl Pulse {
    /// Notes a turn of the loop, and how late it came.
    pub fn turn(&self, moment: Moment, lag: Duration) {
        let millis = u64::try_from(moment.since(Moment::default()).as_millis()).unwrap_or(u64::MAX);
        self.turned_ms.store(millis, Ordering::Relaxed);
        self.lag_ms.store(i64::try_from(lag.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// How long ago the loop turned.
    pub fn since_turn(&self, now: Moment) -> Duration {
        let turned = Duration::from_millis(self.turned_ms.load(Ordering::Relaxed));
        now.since(Moment::from_origin(turned))
    }

    /// How late the loop came to what was due, the last time it turned.
    pub fn lag(&self) -> Duration {
        Duration::from_millis(self.lag_ms.load(Ordering::Relaxed).max(0).unsigned_abs())
    }

    /// How late the loop is by now: one that does not turn at all grows later and later.
    pub fn lateness(&self, now: Moment) -> Duration {
        self.lag().max(self.since_turn(now).saturating_sub(LONGEST_SLEEP))
    }

    /// Counts the end of a refresh.
    pub(super) fn ended(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Refreshed => &self.refreshed,
            Outcome::Conflict => &self.conflicts,
            Outcome::NotNeeded | Outcome::Removed => return,
            Outcome::Failed(_) | Outcome::Held(_) | Outcome::Dead(_) | Outcome::StoreUnavailable(_) => {
                &self.failed
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a refresh that panicked.
    pub(super) fn panicked(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a lease taken over.
    pub(super) fn took_over(&self) {
        self.takeovers.fetch_add(1, Ordering::Relaxed);
    }

    /// What is under care, and what was done so far.
    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally {
            clients: read(&self.clients),
            refreshed: read(&self.refreshed),
            failed: read(&self.failed),
            conflicts: read(&self.conflicts),
            takeovers: read(&self.takeovers),
        }
    }

    /// Refreshes that have begun and have not ended: they may hold the only copy of their tokens. Every change is told.
    pub fn in_flight(&self) -> watch::Receiver<usize> {
        self.in_flight.subscribe()
    }

    /// Notes how many refreshes are in flight.
    pub(super) fn busy_with(&self, refreshes: usize) {
        self.in_flight.send_if_modified(|known| std::mem::replace(known, refreshes) != refreshes);
    }

    /// Notes how many clients are under care.
    pub(super) fn caring_for(&self, clients: usize) {
        self.clients.store(clients as u64, Ordering::Relaxed);
    }
}
