//! How long to leave a client alone after a failure.
//!
//! Full jitter (a draw between nothing and an exponentially growing bound) spreads the clients that failed
//! together. The bound's cap follows the token's life: while there is a good token to lose, failures are retried
//! often enough to get several tries in before it expires.

use std::time::Duration;

use super::policy::Backoff;
use crate::time::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 3600);
const LEAST_CAP: Duration = Duration::from_secs(10);

/// When to try again after the `fails`-th failure in a row (from 1). `unit` is uniform in `[0, 1)`. Never before
/// `retry_after` has passed, and never sooner than the policy's `min_interval`.
pub fn next_attempt(
    policy: &Backoff,
    fails: u32,
    expires_at: Timestamp,
    retry_after: Option<Duration>,
    now: Timestamp,
    unit: f64,
) -> Timestamp {
    let bound = cap(policy, expires_at, now).min(exponential(policy.base, fails));
    let least = policy.min_interval.max(retry_after.unwrap_or_default());
    now.plus(bound.mul_f64(unit).max(least))
}

fn exponential(base: Duration, fails: u32) -> Duration {
    base.saturating_mul(1_u32.checked_shl(fails).unwrap_or(u32::MAX))
}

fn cap(policy: &Backoff, expires_at: Timestamp, now: Timestamp) -> Duration {
    if now < expires_at {
        return (expires_at.since(now) / 3).clamp(LEAST_CAP.min(policy.cap), policy.cap);
    }
    let expired = now.since(expires_at).min(DAY);
    let growth = policy.cap_expired.saturating_sub(policy.cap);
    policy.cap + growth.mul_f64(expired.as_secs_f64() / DAY.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn longest(fails: u32, expires_at: Timestamp) -> u64 {
        next_attempt(&Backoff::default(), fails, expires_at, None, NOW, 0.999_999).since(NOW).as_secs()
    }

    #[test]
    fn it_doubles_up_to_a_third_of_what_is_left() {
        let in_an_hour = NOW.plus(Duration::from_secs(3600));
        assert_eq!(longest(1, in_an_hour), 5, "the least interval rules a first failure");
        assert_eq!(longest(5, in_an_hour), 63);
        assert_eq!(longest(31, in_an_hour), 599, "ten minutes at most");
        assert_eq!(longest(200, NOW.plus(Duration::from_secs(90))), 29, "a third of 90 s");
        assert_eq!(longest(31, NOW.plus(Duration::from_secs(3))), 9, "never a tight loop");
    }

    #[test]
    fn after_expiry_it_grows_to_an_hour_in_a_day() {
        assert_eq!(longest(31, NOW), 599);
        assert_eq!(longest(31, NOW.minus(DAY / 2)), 2099);
        assert_eq!(longest(31, NOW.minus(DAY * 9)), 3599);
        assert_eq!(longest(31, Timestamp::EPOCH), 3599);
    }

    #[test]
    fn retry_after_is_a_lower_bound() {
        let wait = Some(Duration::from_secs(1800));
        let at = next_attempt(&Backoff::default(), 1, NOW, wait, NOW, 0.0);
        assert_eq!(at.since(NOW).as_secs(), 1800);
    }
}
