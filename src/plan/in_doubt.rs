//! What to do when a refresh token may have been redeemed and the answer was lost.
//!
//! Two parties may find themselves there: the *holder*, whose own request went unanswered, and a *taker*, who
//! finds a lease whose owner has fallen silent. The provider's [`InDoubt`] policy says what each may do.

use std::time::Duration;

use super::policy::{LONGEST_LEASE, Timing};
use crate::client::{Grant, InDoubt, Provider};
use crate::time::{Moment, Timestamp};

/// Unanswered sends of one refresh token, at most; then an operator decides.
pub const MOST_SENDS: u32 = 3;

/// How long before the token's expiry a patient taker acts at the latest.
const MARGIN: Duration = Duration::from_secs(120);

/// What is at stake when a request of this client goes unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Risk {
    /// Whether the stored refresh token may be spent by it.
    pub rotates: bool,
    /// What may be done about it.
    pub policy: InDoubt,
    /// How long a spent refresh token is still accepted.
    pub grace_window: Duration,
    /// How long an exchange may take.
    pub request_timeout: Duration,
}

impl Risk {
    /// Of a client with this grant at this provider. A grant that is minted from credentials spends nothing.
    pub fn of(provider: &Provider, grant: Grant) -> Self {
        let rotates = provider.rotates && grant.needs_refresh_token();
        Self {
            rotates,
            policy: if rotates { provider.in_doubt } else { InDoubt::Reusable },
            grace_window: provider.grace_window,
            request_timeout: provider.request_timeout,
        }
    }
}

/// How often the holder may send in one attempt.
fn sends_per_attempt(policy: InDoubt) -> u32 {
    match policy {
        InDoubt::Reusable | InDoubt::RetryOnce => 2,
        InDoubt::Grace => 4,
        InDoubt::Hold => 1,
    }
}

/// Whether the holder may send the same request again now: its policy has replays left, and the exchange and its
/// commit still fit in the lease. `begun` is the moment before the acquire; `sends` counts those of this attempt.
pub fn may_replay(
    risk: &Risk,
    timing: &Timing,
    sends: u32,
    doubtful: u32,
    begun: Moment,
    now: Moment,
) -> bool {
    let in_grace = risk.policy != InDoubt::Grace || now.since(begun) < risk.grace_window;
    let not_spent = !risk.rotates || risk.policy == InDoubt::Grace || doubtful < MOST_SENDS;
    fits_in_lease(risk, timing, begun, now) && in_grace && not_spent && sends < sends_per_attempt(risk.policy)
}

/// Whether one more exchange and its commit still fit in the lease.
pub fn fits_in_lease(risk: &Risk, timing: &Timing, begun: Moment, now: Moment) -> bool {
    now.since(begun) + risk.request_timeout + timing.commit_budget() < timing.lease()
}

/// Whether a new attempt may send a refresh token that is in doubt after `doubtful` unanswered sends.
pub fn may_send_in_doubt(risk: &Risk, doubtful: u32) -> bool {
    match risk.policy {
        InDoubt::Reusable => true,
        InDoubt::Grace | InDoubt::RetryOnce => doubtful < MOST_SENDS,
        // Only an operator's order leaves a count of zero behind.
        InDoubt::Hold => doubtful == 0,
    }
}

/// The lease of somebody who has fallen silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    /// The lease's length, as its holder wrote it.
    pub lease: Duration,
    /// When this task first saw this generation in flight, on its own steady clock.
    pub first_seen: Moment,
    /// Expiry of the stored access token.
    pub expires_at: Timestamp,
}

/// How long to go on waiting before a take-over; zero when it may be made. The wait runs on the taker's own steady
/// clock from its own first sight: nobody's wall clock is trusted. A patient taker waits longer while the stored
/// token is good, since that is free; one that will not be there later does not.
pub fn take_over_in(
    silent: &Silent,
    risk: &Risk,
    timing: &Timing,
    patient: bool,
    moment: Moment,
    now: Timestamp,
) -> Duration {
    let salvage = if risk.rotates { timing.salvage() } else { Duration::ZERO };
    // What stands in the table may have been written by anybody: no holder's configuration says more than this.
    let safe = silent.lease.min(LONGEST_LEASE).mul_f64(1.01) + risk.request_timeout + salvage;
    let must = safe.saturating_sub(moment.since(silent.first_seen));
    if patient && risk.policy != InDoubt::Grace {
        must.max(silent.expires_at.since(now.plus(MARGIN)))
    } else {
        must
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::{risk, timing};

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);
    const SEEN: Moment = Moment::from_origin(Duration::from_secs(50));

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn silent(expires_at: Timestamp) -> Silent {
        Silent { lease: secs(90), first_seen: SEEN, expires_at }
    }

    fn wait(risk: &Risk, expires_at: Timestamp, patient: bool, waited: u64) -> u64 {
        let moment = SEEN.plus(secs(waited));
        take_over_in(&silent(expires_at), risk, &timing(), patient, moment, NOW).as_secs()
    }

    #[test]
    fn a_taker_waits_out_the_lease_the_exchange_and_the_salvage() {
        assert_eq!(wait(&risk(), NOW, true, 0), 170, "90 x 1.01 + 20 + 60 s");
        assert_eq!(wait(&risk(), NOW, true, 170), 0);
        let fixed = Risk { rotates: false, policy: InDoubt::Reusable, ..risk() };
        assert_eq!(wait(&fixed, NOW, true, 0), 110, "there is nothing to salvage");
    }

    #[test]
    fn waiting_longer_is_free_while_the_token_is_good() {
        let good = NOW.plus(secs(3600));
        assert_eq!(wait(&risk(), good, true, 170), 3480);
        assert_eq!(wait(&risk(), good, false, 171), 0, "one that will not be there later does not wait");
        let grace = Risk { policy: InDoubt::Grace, grace_window: secs(600), ..risk() };
        assert_eq!(wait(&grace, good, true, 171), 0, "under grace the window closes meanwhile");
    }

    #[test]
    fn a_holder_replays_once_promptly_and_never_past_its_lease() {
        let may = |policy, sends, elapsed| {
            let risk = Risk { policy, grace_window: secs(600), ..risk() };
            may_replay(&risk, &timing(), sends, 1, SEEN, SEEN.plus(secs(elapsed)))
        };
        assert!(may(InDoubt::RetryOnce, 1, 20));
        assert!(!may(InDoubt::RetryOnce, 2, 20));
        assert!(!may(InDoubt::RetryOnce, 1, 55), "55 + 20 + 15 is the whole lease");
        assert!(may(InDoubt::Grace, 3, 20));
        assert!(!may(InDoubt::Grace, 4, 20));
        assert!(!may(InDoubt::Hold, 1, 1));
    }

    #[test]
    fn a_grace_window_that_has_closed_ends_the_replays() {
        let short = Risk { policy: InDoubt::Grace, grace_window: secs(10), ..risk() };
        assert!(may_replay(&short, &timing(), 1, 1, SEEN, SEEN.plus(secs(9))));
        assert!(!may_replay(&short, &timing(), 1, 1, SEEN, SEEN.plus(secs(10))));
    }

    #[test]
    fn three_unanswered_sends_are_the_end_unless_the_token_can_be_reused() {
        assert!(may_send_in_doubt(&risk(), 2));
        assert!(!may_send_in_doubt(&risk(), 3));
        assert!(may_send_in_doubt(&Risk { policy: InDoubt::Reusable, ..risk() }, 300));
        let hold = Risk { policy: InDoubt::Hold, ..risk() };
        assert!(!may_send_in_doubt(&hold, 1));
        assert!(may_send_in_doubt(&hold, 0), "an operator ordered it");
        assert!(!may_replay(&risk(), &timing(), 1, 3, SEEN, SEEN));
    }
}
