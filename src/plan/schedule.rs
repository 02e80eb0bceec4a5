//! When a client is due, and when its next token will be.

use std::time::Duration;

use super::lease::{Standing, standing};
use super::policy::Lifetimes;
use crate::client::Client;
use crate::record::{Lease, State, Token};
use crate::reply::Lifetime;
use crate::time::Timestamp;

/// Below this a take-over would not fit behind the ordinary window.
const SHORT: Duration = Duration::from_secs(22 * 60);
/// How long before expiry a token is due that carries no time of its own: one that another tool wrote.
const UNPLANNED: Duration = Duration::from_secs(300);
/// How far beyond its token's expiry a plan is believed: a token that lives for seconds is refreshed less often than
/// it expires, or nothing else would be done.
const BEYOND: Duration = Duration::from_secs(3600);
/// A refresh that comes so late was held up, and many others with it.
const LATE: Duration = Duration::from_secs(120);

/// What is to be done about a client, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Refresh it at this time.
    At(Timestamp),
    /// Somebody holds its lease, or died holding it: watch it.
    InDoubt,
    /// Held or dead: look at it again now and then, an operator or a late holder may have revived it.
    Recheck,
    /// Nothing until an operator changes it.
    Never,
}

/// What is to be done about this client.
pub fn due(client: &Client, lease: &Lease, token: &Token) -> Due {
    if client.paused {
        return Due::Never;
    }
    match standing(lease, token.generation) {
        Standing::Free => Due::At(wanted_at(client, token).max(not_before(lease))),
        Standing::InDoubt => Due::InDoubt,
        Standing::Held | Standing::Dead => Due::Recheck,
        Standing::Removed | Standing::Unknown => Due::Never,
    }
}

/// When the token itself asks to be refreshed, whatever stands in the way.
pub fn wanted_at(client: &Client, token: &Token) -> Timestamp {
    // This one alone: a number beyond all generations would ask for ever.
    let asked_for = client.refresh_now == Some(token.generation);
    if asked_for || token.expires_at == Timestamp::EPOCH {
        return Timestamp::EPOCH;
    }
    token.refresh_at.unwrap_or(token.expires_at.minus(UNPLANNED)).min(token.expires_at.plus(BEYOND))
}

/// Whether a refresh at `issued` is one of a wave: a first token, or one that comes long after its time, as after an
/// outage.
pub fn comes_in_a_wave(client: &Client, token: Option<&Token>, issued: Timestamp) -> bool {
    token.is_none_or(|token| wanted_at(client, token).plus(LATE) <= issued)
}

/// A backoff binds while the lease is idle; after a success it is a thing of the past.
fn not_before(lease: &Lease) -> Timestamp {
    match lease.state {
        State::Idle => lease.next_at.unwrap_or(Timestamp::EPOCH),
        _ => Timestamp::EPOCH,
    }
}

/// How long a token lives, for its `expires_at`: as stated, but never beyond what is believable; `default` where the
/// provider does not say, or says nonsense.
pub fn lifetime(stated: Lifetime, default: Duration, bounds: &Lifetimes) -> Duration {
    match stated {
        Lifetime::Stated(lifetime) => lifetime.min(bounds.max),
        Lifetime::Missing | Lifetime::Unreadable => default.min(bounds.max),
    }
}

/// When to refresh a token that was requested at `issued` and lives that long. `unit` is uniform in `[0, 1)`, drawn
/// anew each time, so that a fleet's refreshes drift apart; `wide` spreads the first cycle after a mass import or
/// an outage, which would otherwise come back as a wave.
pub fn refresh_at(
    issued: Timestamp,
    lifetime: Duration,
    bounds: &Lifetimes,
    wide: bool,
    unit: f64,
) -> Timestamp {
    let lifetime = lifetime.clamp(bounds.min, bounds.max);
    let (from, to) = match (lifetime < SHORT, wide) {
        (true, _) => (0.50, 0.65),
        (false, true) => (0.50, 0.90),
        (false, false) => (0.70, 0.85),
    };
    issued.plus(lifetime.mul_f64(from + (to - from) * unit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::testing::client;
    use crate::record::Gen;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn token() -> Token {
        let refresh_at = Some(NOW.plus(Duration::from_secs(10)));
        Token { expires_at: NOW.plus(Duration::from_secs(60)), refresh_at, ..Token::stub(Gen(3)) }
    }

    #[test]
    fn an_idle_client_is_due_when_its_token_says_so() {
        assert_eq!(
            due(&client(), &Lease::idle(Gen(3)), &token()),
            Due::At(NOW.plus(Duration::from_secs(10)))
        );
    }

    #[test]
    fn a_client_without_a_token_is_due_at_once() {
        assert_eq!(due(&client(), &Lease::idle(Gen(0)), &Token::stub(Gen(0))), Due::At(Timestamp::EPOCH));
    }

    #[test]
    fn a_backoff_binds_while_idle_and_not_after_a_success() {
        let later = NOW.plus(Duration::from_secs(500));
        let failed = Lease { next_at: Some(later), ..Lease::idle(Gen(3)) };
        assert_eq!(due(&client(), &failed, &token()), Due::At(later));
        let spent = Lease { state: State::InFlight, ..failed };
        assert_eq!(due(&client(), &spent, &token()), Due::At(NOW.plus(Duration::from_secs(10))));
    }

    #[test]
    fn refresh_now_deduplicates_itself_by_generation() {
        let asking = Client { refresh_now: Some(Gen(3)), ..client() };
        assert_eq!(wanted_at(&asking, &token()), Timestamp::EPOCH);
        let replaced = Token { generation: Gen(4), ..token() };
        assert_eq!(wanted_at(&asking, &replaced), NOW.plus(Duration::from_secs(10)));
    }

    #[test]
    fn in_flight_dead_held_and_paused_clients_are_not_due() {
        let at = |state| Lease { state, of: Some(Gen(3)), generation: Gen(4), ..Lease::idle(Gen(4)) };
        assert_eq!(due(&client(), &at(State::InFlight), &token()), Due::InDoubt);
        assert_eq!(due(&client(), &at(State::Dead), &token()), Due::Recheck);
        assert_eq!(due(&client(), &at(State::Held), &token()), Due::Recheck);
        assert_eq!(due(&client(), &at(State::Removed), &token()), Due::Never);
        assert_eq!(due(&client(), &at(State::Unknown("Z".into())), &token()), Due::Never);
        let paused = Client { paused: true, ..client() };
        assert_eq!(due(&paused, &Lease::idle(Gen(3)), &token()), Due::Never);
    }

    #[test]
    fn a_plan_far_beyond_the_expiry_is_not_believed() {
        let absurd = Token { refresh_at: Some(Timestamp::MAX), ..token() };
        assert_eq!(wanted_at(&client(), &absurd), absurd.expires_at.plus(Duration::from_secs(3600)));
    }

    #[test]
    fn no_lifetime_leads_to_never_or_to_a_tight_loop() {
        let bounds = Lifetimes::default();
        let default = Duration::from_secs(3300);
        assert_eq!(lifetime(Lifetime::Missing, default, &bounds), default);
        assert_eq!(lifetime(Lifetime::Unreadable, default, &bounds), default);
        assert_eq!(lifetime(Lifetime::Stated(Duration::MAX), default, &bounds), bounds.max);
        let second = Duration::from_secs(1);
        assert_eq!(refresh_at(NOW, second, &bounds, false, 0.0).since(NOW), Duration::from_secs(15));
    }

    proptest! {
        #[test]
        fn every_token_is_refreshed_inside_its_window(secs in 30_u64..90 * 86_400, unit in 0.0..1.0_f64, wide: bool) {
            let lifetime = Duration::from_secs(secs);
            let share = refresh_at(NOW, lifetime, &Lifetimes::default(), wide, unit).since(NOW).as_secs_f64()
                / lifetime.as_secs_f64();
            let (from, to) = match (secs < 22 * 60, wide) {
                (true, _) => (0.50, 0.65),
                (false, true) => (0.50, 0.90),
                (false, false) => (0.70, 0.85),
            };
            prop_assert!(share >= from - 1e-3 && share <= to + 1e-3, "{share}");
        }
    }
}
