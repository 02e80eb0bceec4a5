//! Time, in two kinds that cannot be mixed up, and the only file that reads a clock.
//!
//! [`Timestamp`] is wall time: persisted, shared between tasks, and good for *freshness* only. [`Moment`] is a
//! reading of a clock that never steps and counts the time in which the machine was suspended
//! (`CLOCK_BOOTTIME`, clock_gettime(2)): every decision that safety depends on is made on it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Wall time, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The Unix epoch: the `expires_at` of a token that does not exist yet.
    pub const EPOCH: Self = Self(0);
    /// Later than everything.
    pub const MAX: Self = Self(i64::MAX);

    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// From seconds since the Unix epoch, saturating.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This time plus a duration, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// This time minus a duration, saturating.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// What another clock shows, where this reading's clock is so far ahead of it; saturating.
    #[must_use]
    pub const fn set_right(self, ahead_ms: i64) -> Self {
        Self(self.0.saturating_sub(ahead_ms))
    }

    /// How long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC with milliseconds, as in `2026-01-31T12:00:00.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const YEAR_9999: i64 = 253_402_300_799_999;
        let within = Duration::from_millis(self.0.clamp(0, YEAR_9999).unsigned_abs());
        humantime::format_rfc3339_millis(UNIX_EPOCH + within).fmt(f)
    }
}

/// A reading of the process's steady clock: the time since an arbitrary origin, suspended time included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Later than everything.
    pub const MAX: Self = Self(Duration::MAX);

    /// From the time since the clock's origin.
    pub const fn from_origin(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// How long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment minus a duration, not before the origin.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }

    /// This moment plus a duration, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Whether so much time has passed by either clock: one of them may have stood still together with its machine.
pub fn has_passed(span: Duration, since: (Moment, Timestamp), now: (Moment, Timestamp)) -> bool {
    now.0.since(since.0) >= span || now.1.since(since.1) >= span
}

/// A pending sleep.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where a task reads the time and waits for it. Production has one, [`SystemClock`]; a simulated fleet gives
/// each of its tasks another, with a skew of its own.
pub trait Clock: Send + Sync + 'static {
    /// Wall time: for freshness, for people, for what is persisted. It may step.
    fn now(&self) -> Timestamp;
    /// Steady time: for leases, send windows and take-over waits. It never steps back.
    fn moment(&self) -> Moment;
    /// Completes after `duration`. It may complete late; callers look at the clock again.
    fn sleep(&self, duration: Duration) -> Sleep;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::EPOCH.plus(since_epoch)
    }

    fn moment(&self) -> Moment {
        let reading = clock_gettime(ClockId::Boottime);
        let secs = u64::try_from(reading.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(reading.tv_nsec).unwrap_or_default();
        Moment(Duration::new(secs, nanos))
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that sleeps")]
        let sleep = tokio::time::sleep(duration);
        Box::pin(sleep)
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_print_as_rfc_3339_and_survive_absurd_values() {
        assert_eq!(Timestamp::from_secs(1_700_000_000).to_string(), "2023-11-14T22:13:20.000Z");
        assert_eq!(Timestamp::from_millis(-5).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn arithmetic_saturates() {
        let second = Duration::from_secs(1);
        assert_eq!(Timestamp::MAX.plus(second), Timestamp::MAX);
        assert_eq!(Timestamp::EPOCH.since(Timestamp::MAX), Duration::ZERO);
        assert_eq!(Timestamp::from_millis(-1).as_secs(), -1);
        assert_eq!(Moment::default().since(Moment::default().plus(second)), Duration::ZERO);
    }

    #[test]
    fn time_has_passed_where_either_clock_says_so() {
        let span = Duration::from_secs(5);
        let at = |steady: u64, wall: i64| {
            (Moment::from_origin(Duration::from_secs(steady)), Timestamp::from_secs(wall))
        };
        for later in [at(105, 1005), at(100, 1005), at(105, 1000), at(105, 900), at(101, 9000)] {
            assert!(has_passed(span, at(100, 1000), later), "{later:?}");
        }
        for soon in [at(104, 1004), at(100, 1000), at(101, 900)] {
            assert!(!has_passed(span, at(100, 1000), soon), "{soon:?}");
        }
    }

    #[test]
    fn the_steady_clock_counts_from_the_boot_suspended_time_included() {
        // proc_pid_uptime(5) counts as CLOCK_BOOTTIME does; CLOCK_MONOTONIC falls behind where a machine has slept.
        let read = std::fs::read_to_string("/proc/uptime").expect("Linux");
        let uptime: f64 = read.split(' ').next().expect("two numbers").parse().expect("seconds");
        let moment = SystemClock.moment().since(Moment::default()).as_secs_f64();
        assert!((moment - uptime).abs() < 5.0, "{moment} and {uptime}");
    }

    #[test]
    fn the_steady_clock_does_not_go_back() {
        let first = SystemClock.moment();
        assert!(SystemClock.moment() >= first);
    }
}
