//! What is wrong with a client, where somebody should hear of it.
//!
//! Pure. A client that an operator paused is passed over: whoever pauses it knows. What mends itself within a minute
//! is no trouble: a failed try or two, a take-over whose wait is not over, a token that is being replaced.

use std::time::Duration;

use super::standing::ClientStatus;
use crate::client::{Client, Provider};
use crate::plan::Timing;
use crate::plan::condition::Condition;
use crate::plan::in_doubt::{Risk, Silent, take_over_in};
use crate::time::{Moment, Timestamp};

/// A client that has failed so often in a row has failed for half a minute.
pub(super) const FAILING: u32 = 3;
/// A client may wait so long for its first token.
pub(super) const PENDING: Duration = Duration::from_secs(300);
/// A refresh may come so late: rate budgets and breakers hold up many for a while.
pub(super) const OVERDUE: Duration = Duration::from_secs(300);
/// A token with less than this to live is about to expire ...
pub(super) const ABOUT: Duration = Duration::from_secs(60);
/// ... unless it lives so short that it is not due yet, or has just become so.
const JUST_DUE: Duration = Duration::from_secs(10);
/// How much longer than it must a take-over may take, beside the lease that the taker may have seen last of all.
const TAKE_OVER: Duration = Duration::from_secs(60);

/// What is wrong, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// Its token has expired.
    Expired,
    /// Its token is about to, and should have been replaced.
    AboutToExpire,
    /// The provider said that its grant is gone.
    Dead,
    /// Its refresh token may be spent; an operator decides.
    Held,
    /// Its owner fell silent, and nobody has taken over.
    InDoubt,
    /// Its refreshes fail, and its token is still good.
    Failing,
    /// Its first token does not come.
    Pending,
    /// Nobody refreshes it, though it is due.
    Overdue,
    /// Its provider is not in the configuration.
    NoProvider,
}

/// What is worst about a client.
pub(super) fn trouble(
    client: &Client,
    status: &ClientStatus,
    provider: Option<&Provider>,
    timing: &Timing,
    now: Timestamp,
) -> Option<Trouble> {
    if client.paused {
        return None;
    }
    let before = |at: Option<Timestamp>, by: Duration| at.is_some_and(|at| at.plus(by) <= now);
    match status.condition {
        Condition::Paused => None,
        Condition::Dead => Some(Trouble::Dead),
        Condition::Held => Some(Trouble::Held),
        _ if before(status.expires_at, Duration::ZERO) => Some(Trouble::Expired),
        _ if before(status.wanted_at, JUST_DUE) && ends_within(status, now, ABOUT) => {
            Some(Trouble::AboutToExpire)
        }
        _ if provider.is_none() => Some(Trouble::NoProvider),
        Condition::InDoubt if nobody_took_over(client, status, provider, timing, now) => {
            Some(Trouble::InDoubt)
        }
        _ if status.failures >= FAILING => Some(Trouble::Failing),
        Condition::Pending if before(Some(client.joined), PENDING) => Some(Trouble::Pending),
        Condition::Idle if before(status.next_refresh, OVERDUE) => Some(Trouble::Overdue),
        _ => None,
    }
}

fn ends_within(status: &ClientStatus, now: Timestamp, span: Duration) -> bool {
    status.expires_at.is_some_and(|at| at < now.plus(span))
}

/// Whether a take-over should have been made by now, whoever saw the attempt last: at the end of its lease.
fn nobody_took_over(
    client: &Client,
    status: &ClientStatus,
    provider: Option<&Provider>,
    timing: &Timing,
    now: Timestamp,
) -> bool {
    let (Some(ends), Some(provider)) = (status.ends, provider) else { return false };
    let risk = Risk::of(provider, client.grant);
    let first_seen = Moment::default();
    let silent =
        Silent { lease: timing.lease(), first_seen, expires_at: status.expires_at.unwrap_or_default() };
    let then = now.minus(TAKE_OVER);
    let waited = first_seen.plus(then.since(ends));
    take_over_in(&silent, &risk, timing, true, waited, then).is_zero()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::{client, provider, timing};
    use crate::record::{Gen, Lease, Registration, Snapshot, State, Token};

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn ago(seconds: u64) -> Timestamp {
        NOW.minus(secs(seconds))
    }

    /// A token that lives so long yet, and was due so long ago.
    fn token(left: u64, due: u64) -> Token {
        Token { expires_at: NOW.plus(secs(left)), refresh_at: Some(ago(due)), ..Token::stub(Gen(3)) }
    }

    fn status(client: &Client, lease: Lease, token: Token) -> ClientStatus {
        let registration = Registration::Live(Box::new(client.clone()));
        let read = Snapshot { registration, lease: Some(lease), token: Some(token) };
        ClientStatus::of(client, &read, NOW).expect("it has a lease")
    }

    fn of(client: &Client, lease: Lease, token: Token) -> Option<Trouble> {
        trouble(client, &status(client, lease, token), Some(&provider()), &timing(), NOW)
    }

    fn idle() -> Lease {
        Lease::idle(Gen(3))
    }

    #[test]
    fn a_client_that_is_kept_fresh_is_no_trouble() {
        assert_eq!(of(&client(), idle(), token(600, 0)), None);
        assert_eq!(of(&client(), idle(), token(600, 299)), None, "it is late, and somebody may be at it");
        assert_eq!(of(&client(), idle(), token(20, 5)), None, "a token that lives for a minute");
        assert_eq!(of(&client(), Lease { fails: 2, ..idle() }, token(600, 0)), None);
    }

    #[test]
    fn a_token_that_has_expired_or_is_about_to_is() {
        assert_eq!(of(&client(), idle(), token(0, 0)), Some(Trouble::Expired));
        let in_flight = |lease_ms| Lease {
            state: State::InFlight,
            intended_at: Some(ago(1)),
            lease_ms,
            ..Lease::idle(Gen(4))
        };
        assert_eq!(of(&client(), in_flight(90_000), token(0, 0)), Some(Trouble::Expired), "being refreshed");
        assert_eq!(of(&client(), idle(), token(59, 10)), Some(Trouble::AboutToExpire));
        assert_eq!(of(&client(), in_flight(90_000), token(59, 10)), Some(Trouble::AboutToExpire));
    }

    #[test]
    fn what_an_operator_decides_is_told_until_he_pauses_it() {
        let at = |state| Lease { state, of: Some(Gen(3)), ..Lease::idle(Gen(4)) };
        assert_eq!(of(&client(), at(State::Dead), token(0, 0)), Some(Trouble::Dead));
        assert_eq!(of(&client(), at(State::Held), token(0, 0)), Some(Trouble::Held));
        let paused = Client { paused: true, ..client() };
        for lease in [at(State::Dead), at(State::Held), idle()] {
            assert_eq!(of(&paused, lease, token(0, 900)), None);
        }
    }

    #[test]
    fn a_take_over_is_missed_once_the_longest_wait_is_over_and_the_token_ends() {
        // It began so long ago, with a lease of 90 s; a taker that saw it at its end waits 170 s more.
        let begun = |seconds: u64| Lease {
            state: State::InFlight,
            intended_at: Some(ago(seconds)),
            lease_ms: 90_000,
            ..Lease::idle(Gen(4))
        };
        assert_eq!(of(&client(), begun(319), Token::stub(Gen(3))), None);
        assert_eq!(of(&client(), begun(321), Token::stub(Gen(3))), Some(Trouble::InDoubt));
        assert_eq!(of(&client(), begun(3000), token(600, 0)), None, "it may wait while the token is good");
        assert_eq!(of(&client(), begun(3000), token(61, 300)), None, "it has just begun");
        assert_eq!(of(&client(), begun(3000), token(60, 9)), Some(Trouble::InDoubt));
    }

    #[test]
    fn failing_pending_and_overdue_clients_are_told_after_a_while() {
        let failing = Lease { fails: 3, next_at: Some(NOW.plus(secs(99))), ..idle() };
        assert_eq!(of(&client(), failing, token(600, 900)), Some(Trouble::Failing));
        assert_eq!(of(&client(), idle(), token(600, 300)), Some(Trouble::Overdue));
        let since = |seconds| Client { joined: ago(seconds), ..client() };
        assert_eq!(of(&since(299), idle(), Token::stub(Gen(3))), None);
        assert_eq!(of(&since(300), idle(), Token::stub(Gen(3))), Some(Trouble::Pending));
    }

    #[test]
    fn a_client_whose_provider_is_unknown_is_refreshed_by_nobody() {
        let status = status(&client(), idle(), token(600, 0));
        assert_eq!(trouble(&client(), &status, None, &timing(), NOW), Some(Trouble::NoProvider));
    }
}
