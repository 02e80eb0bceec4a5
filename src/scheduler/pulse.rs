//! What the scheduler's loop shows of itself, for health checks that must not wait for it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::time::Moment;

/// What health checks read of a loop: that it turns, and how late it is.
#[derive(Debug, Default)]
pub struct Pulse {
    turned_ms: AtomicU64,
    lag_ms: AtomicI64,
    clients: AtomicU64,
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

    /// Notes how many clients are under care.
    pub(super) fn caring_for(&self, clients: usize) {
        self.clients.store(clients as u64, Ordering::Relaxed);
    }

    /// Clients under care.
    pub fn clients(&self) -> u64 {
        self.clients.load(Ordering::Relaxed)
    }
}
