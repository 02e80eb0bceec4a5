//! Simulated time, for tests of what waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::{Clock, Moment, Sleep, Timestamp};

/// Wall time when a simulated clock is made.
const BEGIN: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Runs on tokio's paused time; the wall clock can be set forward.
pub(crate) struct Simulated {
    origin: Instant,
    ahead_ms: AtomicU64,
}

impl Simulated {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), ahead_ms: AtomicU64::new(0) }
    }

    /// The time since it was made, by the steady clock.
    pub(crate) fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The wall clock is so far ahead of the steady one from now on.
    pub(crate) fn be_ahead(&self, by: Duration) {
        self.ahead_ms.store(u64::try_from(by.as_millis()).expect("no age of the world"), Ordering::Relaxed);
    }
}

impl Clock for Simulated {
    fn now(&self) -> Timestamp {
        BEGIN.plus(self.elapsed()).plus(Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed)))
    }

    fn moment(&self) -> Moment {
        Moment::from_origin(self.elapsed())
    }

    #[expect(clippy::disallowed_methods, reason = "this is a clock")]
    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}
