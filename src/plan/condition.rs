//! A client's condition in one word: what operators filter by, and what is counted.
//!
//! The words are public: commands print them, metrics carry them as labels. What most needs somebody's eye comes
//! first where more than one would fit.

use std::fmt;
use std::time::Duration;

use super::lease::{Standing, standing};
use crate::client::Client;
use crate::record::{Lease, Token};
use crate::time::Timestamp;

/// How a client fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// Its token is good, or it waits for its next try with a good one.
    Idle,
    /// An attempt is under way.
    Refreshing,
    /// An attempt has not ended in its time: its owner may have died.
    InDoubt,
    /// Its refresh token may be spent; an operator decides.
    Held,
    /// The provider said that its grant is gone.
    Dead,
    /// An operator paused it.
    Paused,
    /// Its first token is yet to come.
    Pending,
    /// Its token has expired.
    Expired,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Refreshing,
        Self::InDoubt,
        Self::Held,
        Self::Dead,
        Self::Paused,
        Self::Pending,
        Self::Expired,
    ];

    /// As commands print it and are asked for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InDoubt => "in-doubt",
            other => other.label(),
        }
    }

    /// As a metric's label, where a hyphen is unusual.
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Refreshing => "refreshing",
            Self::InDoubt => "in_doubt",
            Self::Held => "held",
            Self::Dead => "dead",
            Self::Paused => "paused",
            Self::Pending => "pending",
            Self::Expired => "expired",
        }
    }

    /// Whether somebody sees to it that its token is good.
    pub fn is_kept_fresh(self) -> bool {
        matches!(self, Self::Idle | Self::Refreshing | Self::InDoubt | Self::Expired)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How this client fares now.
pub fn condition(client: &Client, lease: &Lease, token: &Token, now: Timestamp) -> Condition {
    match standing(lease, token.generation) {
        Standing::Dead | Standing::Removed => Condition::Dead,
        Standing::Held | Standing::Unknown => Condition::Held,
        Standing::InDoubt if now < lease_end(lease) => Condition::Refreshing,
        Standing::InDoubt => Condition::InDoubt,
        Standing::Free if client.paused => Condition::Paused,
        Standing::Free if token.expires_at == Timestamp::EPOCH => Condition::Pending,
        Standing::Free if token.expires_at <= now => Condition::Expired,
        Standing::Free => Condition::Idle,
    }
}

/// When an attempt's time is over, by the clock of whoever wrote it.
pub fn lease_end(lease: &Lease) -> Timestamp {
    let begun = lease.intended_at.unwrap_or(Timestamp::EPOCH);
    begun.plus(Duration::from_millis(lease.lease_ms.max(0).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::client;
    use crate::record::{Gen, State};

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn good() -> Token {
        Token { expires_at: NOW.plus(Duration::from_secs(60)), ..Token::stub(Gen(3)) }
    }

    fn of(state: State, token: &Token) -> Condition {
        let lease = Lease { state, of: Some(Gen(3)), ..Lease::idle(Gen(4)) };
        condition(&client(), &lease, token, NOW)
    }

    #[test]
    fn a_client_that_may_be_acquired_is_told_by_its_token() {
        let expired = Token { expires_at: NOW, ..good() };
        assert_eq!(of(State::Idle, &good()), Condition::Idle);
        assert_eq!(of(State::Idle, &expired), Condition::Expired, "to the second");
        assert_eq!(of(State::Idle, &Token::stub(Gen(3))), Condition::Pending);
        let paused = Client { paused: true, ..client() };
        assert_eq!(condition(&paused, &Lease::idle(Gen(3)), &expired, NOW), Condition::Paused);
    }

    #[test]
    fn an_attempt_is_in_doubt_once_its_lease_is_over() {
        let begun = NOW.minus(Duration::from_secs(90));
        let attempt = |lease_ms| Lease {
            state: State::InFlight,
            intended_at: Some(begun),
            lease_ms,
            ..Lease::idle(Gen(4))
        };
        assert_eq!(condition(&client(), &attempt(90_001), &good(), NOW), Condition::Refreshing);
        assert_eq!(condition(&client(), &attempt(90_000), &good(), NOW), Condition::InDoubt);
        assert_eq!(condition(&client(), &attempt(-5), &good(), NOW), Condition::InDoubt, "nonsense");
    }

    #[test]
    fn what_an_operator_must_decide_outdoes_an_expired_token_and_a_newer_token_ends_it() {
        let expired = Token { expires_at: NOW, ..good() };
        assert_eq!(of(State::Held, &expired), Condition::Held);
        assert_eq!(of(State::Unknown("Z".into()), &expired), Condition::Held);
        assert_eq!(of(State::Dead, &expired), Condition::Dead);
        assert_eq!(of(State::Removed, &expired), Condition::Dead);
        assert_eq!(of(State::Dead, &Token { generation: Gen(4), ..good() }), Condition::Idle);
    }

    #[test]
    fn every_word_is_a_label_of_its_own() {
        let labels: std::collections::BTreeSet<_> = Condition::ALL.map(Condition::label).into();
        assert_eq!(labels.len(), 8);
        assert!(labels.iter().all(|label| label.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
        assert_eq!(format!("{:<10}|", Condition::InDoubt), "in-doubt  |");
    }
}
