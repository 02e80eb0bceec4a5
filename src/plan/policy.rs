//! The numbers that decisions depend on, checked once where they are made.
//!
//! Every invariant between them is refused here, in a constructor, so that nothing later has to check.

use std::time::Duration;

/// No lease can be configured to be longer, whoever holds it.
pub const LONGEST_LEASE: Duration = Duration::from_secs(900);

/// The durations of the lease protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    lease: Duration,
    window: Duration,
    commit_budget: Duration,
    salvage: Duration,
}

/// A lease too short for what must fit in it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a lease of {lease:?} is too short: send window {window:?} + request timeout {request:?} + commit budget \
     {commit_budget:?} must be less"
)]
pub struct LeaseTooShort {
    lease: Duration,
    window: Duration,
    request: Duration,
    commit_budget: Duration,
}

impl Timing {
    /// Refuses a lease (L) that an attempt could outlive: `window + longest_request + commit_budget` must be less.
    /// `longest_request` is the longest HTTP exchange (H) of any provider.
    pub fn try_new(
        lease: Duration,
        window: Duration,
        longest_request: Duration,
        commit_budget: Duration,
        salvage: Duration,
    ) -> Result<Self, LeaseTooShort> {
        if window.saturating_add(longest_request).saturating_add(commit_budget) >= lease {
            return Err(LeaseTooShort { lease, window, request: longest_request, commit_budget });
        }
        Ok(Self { lease, window, commit_budget, salvage })
    }

    /// L: how long an attempt may take, from before its acquire to the end of its commit.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// W: how long after the acquire was begun the request may still be sent.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// What a commit may take before a replay is out of the question.
    pub fn commit_budget(&self) -> Duration {
        self.commit_budget
    }

    /// X: how much longer a taker waits, so that a holder that woke late can still store its answer.
    pub fn salvage(&self) -> Duration {
        self.salvage
    }
}

/// How long to wait after a failure: full jitter under a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Doubled with every failure.
    pub base: Duration,
    /// Between two attempts of one client, at least.
    pub min_interval: Duration,
    /// The cap while the access token is good, and for a while after its expiry.
    pub cap: Duration,
    /// The cap once the token has been expired for a day.
    pub cap_expired: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(2),
            min_interval: Duration::from_secs(5),
            cap: Duration::from_secs(600),
            cap_expired: Duration::from_secs(3600),
        }
    }
}

/// The bounds that a lifetime is clamped to before anything is scheduled by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Never refreshed more often than for a token of this life.
    pub min: Duration,
    /// Never refreshed more seldom.
    pub max: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { min: Duration::from_secs(30), max: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// When a breaker opens, and how long it stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row that open it.
    pub threshold: u32,
    /// How long it stays open the first time; doubled with every probe that fails.
    pub open: Duration,
    /// The longest that it stays open.
    pub open_max: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self { threshold: 5, open: Duration::from_secs(5), open_max: Duration::from_secs(60) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_an_attempt_could_outlive_is_refused() {
        let timing = |lease| {
            let secs = Duration::from_secs;
            Timing::try_new(secs(lease), secs(5), secs(20), secs(15), secs(60))
        };
        assert!(timing(41).is_ok());
        let error = timing(40).expect_err("nothing may be left of it").to_string();
        assert!(error.contains("40s") && error.contains("20s"), "{error}");
    }
}
