//! Time as one simulated machine sees it: tokio's paused clock, a wall clock of its own, and pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use perennial::time::{Clock, Moment, Sleep, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

/// When every simulation begins.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// The true time.
#[derive(Clone, Copy)]
pub(crate) struct Origin(Instant);

impl Origin {
    /// The simulation begins now.
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    /// How long the simulation has been running.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// The true wall time.
    pub(crate) fn wall(self) -> Timestamp {
        START.plus(self.elapsed())
    }
}

/// A machine: its clocks, and whether it stands still.
#[derive(Clone)]
pub(crate) struct Machine {
    origin: Origin,
    skew_ms: Arc<AtomicI64>,
    paused: Arc<AtomicBool>,
    /// Wakes in the order of waiting, which `watch` does not.
    resumed: Arc<Notify>,
}

impl Machine {
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, skew_ms: Arc::default(), paused: Arc::default(), resumed: Arc::default() }
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Sets the wall clock ahead of the true time, or behind it.
    pub(crate) fn skew(&self, millis: i64) {
        self.skew_ms.store(millis, Ordering::Relaxed);
    }

    /// Stands still: what it was doing goes on when it is resumed. Steady time runs on, as CLOCK_BOOTTIME does.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
        self.resumed.notify_waiters();
    }

    /// Something is on its way through the network, which does not stand still.
    #[expect(clippy::disallowed_methods, reason = "simulated time")]
    pub(crate) async fn travel(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Returns while the machine runs.
    pub(crate) async fn running(&self) {
        while self.paused.load(Ordering::Relaxed) {
            self.resumed.notified().await;
        }
    }
}

impl Clock for Machine {
    fn now(&self) -> Timestamp {
        let skewed = self.origin.wall().as_millis() + self.skew_ms.load(Ordering::Relaxed);
        Timestamp::from_millis(skewed)
    }

    fn moment(&self) -> Moment {
        Moment::from_origin(Duration::from_secs(1000) + self.origin.elapsed())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the injected clock")]
    fn sleep(&self, duration: Duration) -> Sleep {
        let machine = self.clone();
        Box::pin(async move {
            tokio::time::sleep(duration).await;
            machine.running().await;
        })
    }
}
