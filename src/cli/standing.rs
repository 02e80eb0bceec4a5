//! A client's state in one word, with the times that go with it: what `list`, `show` and `why` have in common.
//!
//! Pure. What an item says of the past is told apart from what it says of now: after a success the lease still
//! carries the failures before it.

use clap::builder::PossibleValue;
use serde_json::{Value, json};

use crate::client::{Client, ClientId, Grant};
use crate::plan::condition::{Condition, condition, lease_end};
use crate::plan::lease::{Standing, standing};
use crate::plan::schedule::{Due, due, wanted_at};
use crate::record::{Gen, Snapshot, State, Token};
use crate::time::Timestamp;

impl clap::ValueEnum for Condition {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Idle => "Its token is good, or it waits for its next try with a good one",
            Self::Refreshing => "An attempt is under way",
            Self::InDoubt => "An attempt has not ended in its time: its owner may have died",
            Self::Held => "Its refresh token may be spent; an operator decides",
            Self::Dead => "The provider said that its grant is gone",
            Self::Paused => "An operator paused it",
            Self::Pending => "Its first token is yet to come",
            Self::Expired => "Its token has expired",
        };
        Some(PossibleValue::new(self.as_str()).help(help))
    }
}

/// What is known of a registered client now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientStatus {
    pub(super) condition: Condition,
    /// Expiry of the access token; none where there is no token yet.
    pub(super) expires_at: Option<Timestamp>,
    /// When its token asks to be replaced, whatever stands in the way; none where there is no token yet.
    pub(super) wanted_at: Option<Timestamp>,
    /// When it will be refreshed, if nothing comes between; in the past where that is overdue.
    pub(super) next_refresh: Option<Timestamp>,
    /// Failures since the last success.
    pub(super) failures: u32,
    /// The last of them.
    pub(super) error: Option<String>,
    /// Who made the last attempt.
    pub(super) owner: Option<String>,
    /// When that began.
    pub(super) last_attempt: Option<Timestamp>,
    /// By when an attempt that is under way has to end.
    pub(super) ends: Option<Timestamp>,
    /// Unanswered sends of the stored refresh token.
    pub(super) doubt: Option<u32>,
}

impl ClientStatus {
    /// None where the client has no `LEASE` item: nobody can refresh it then.
    pub(super) fn of(client: &Client, read: &Snapshot, now: Timestamp) -> Option<Self> {
        let lease = read.lease.as_ref()?;
        // TTL may take the token item of a grant that can be minted again.
        let stub = Token::stub(Gen::NONE);
        let token = read.token.as_ref().unwrap_or(&stub);
        // A success leaves no release behind: the lease still tells of what was before it.
        let succeeded = lease.state == State::InFlight && token.generation >= lease.generation;
        Some(Self {
            condition: condition(client, lease, token, now),
            expires_at: (token.expires_at != Timestamp::EPOCH).then_some(token.expires_at),
            wanted_at: (token.expires_at != Timestamp::EPOCH).then(|| wanted_at(client, token)),
            next_refresh: match due(client, lease, token) {
                Due::At(at) => Some(at.max(client.joined.min(now))),
                Due::InDoubt | Due::Recheck | Due::Never => None,
            },
            failures: if succeeded { 0 } else { lease.fails },
            error: lease.error.clone().filter(|_| !succeeded),
            owner: lease.owner.clone(),
            last_attempt: lease.intended_at,
            ends: (standing(lease, token.generation) == Standing::InDoubt).then(|| lease_end(lease)),
            doubt: lease.doubt_about(token.generation).filter(|_| !succeeded),
        })
    }

    /// The state of a client that is paused, or not. A pause beside another state is told, too: it outlasts whatever
    /// is done about that one.
    pub(super) fn word(&self, paused: bool) -> String {
        let paused = if paused && self.condition != Condition::Paused { ",paused" } else { "" };
        format!("{}{paused}", self.condition)
    }

    pub(super) fn json(&self, id: &ClientId, provider: &str, grant: Grant, paused: bool) -> Value {
        let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
        json!({
            "client": id.as_str(),
            "provider": provider,
            "grant": grant.as_str(),
            "state": self.condition.as_str(),
            "paused": paused,
            "expires_at": time(self.expires_at),
            "next_refresh_at": time(self.next_refresh),
            "failures": self.failures,
            "error": self.error,
            "owner": self.owner,
            "last_attempt_at": time(self.last_attempt),
        })
    }
}

/// A time as a person says it: `in 12m 5s`, `3h ago`, `now`.
pub(super) fn relative(at: Timestamp, now: Timestamp) -> String {
    match (at.since(now).as_secs(), now.since(at).as_secs()) {
        (0, 0) => "now".into(),
        (ahead @ 1.., _) => format!("in {}", span(ahead)),
        (_, ago) => format!("{} ago", span(ago)),
    }
}

/// The two largest units of a span of seconds.
pub(super) fn span(secs: u64) -> String {
    let parts = [(secs / 86_400, "d"), (secs / 3600 % 24, "h"), (secs / 60 % 60, "m"), (secs % 60, "s")];
    let from = parts.iter().position(|(count, _)| *count > 0).unwrap_or(parts.len());
    let shown: Vec<String> = parts
        .iter()
        .skip(from)
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_by_their_two_largest_units() {
        let now = Timestamp::from_secs(1_000_000);
        let tell = |secs: i64| relative(Timestamp::from_secs(1_000_000 + secs), now);
        assert_eq!(tell(0), "now");
        assert_eq!(tell(725), "in 12m 5s");
        assert_eq!(tell(-10_800), "3h ago");
        assert_eq!(tell(2 * 86_400 + 61), "in 2d");
        assert_eq!(tell(-59), "59s ago");
    }
}
