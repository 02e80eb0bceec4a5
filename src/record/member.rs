//! The `MEMBER` item: one running task, as it describes itself to the others.

use std::fmt;

use super::{Malformed, Reader};
use crate::item::{Item, Key, Value, attr};
use crate::time::Timestamp;

/// Where a task stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It is there, and does not know its clients yet.
    Joining,
    /// It works.
    Active,
    /// It finishes what it has begun, and begins nothing any more.
    Leaving,
}

impl Phase {
    /// As the table spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "JOINING",
            Self::Active => "ACTIVE",
            Self::Leaving => "LEAVING",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Joining, Self::Active, Self::Leaving].into_iter().find(|phase| phase.as_str() == text)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A task, as its last beat described it. Only `beat`, `phase` and `lag_ms` decide anything; the rest is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Random per process start; also the first half of the name of every lease that it takes.
    pub incarnation: String,
    /// Grows by one with every beat.
    pub beat: i64,
    /// Where it stands in its life.
    pub phase: Phase,
    /// How late its scheduler is, in milliseconds.
    pub lag_ms: i64,
    /// How far its wall clock is ahead of the store's, in milliseconds.
    pub skew_ms: i64,
    /// When it wrote this, by its own wall clock.
    pub at: Timestamp,
    /// Its version.
    pub version: String,
    /// What it has done so far.
    pub tally: Tally,
}

/// What a task has under its care, and what it has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Clients that it cares for.
    pub clients: u64,
    /// Refreshes that stored new tokens.
    pub refreshed: u64,
    /// Refreshes that failed.
    pub failed: u64,
    /// Attempts that found another's lease or newer tokens.
    pub conflicts: u64,
    /// Leases taken over from owners that had fallen silent.
    pub takeovers: u64,
}

/// The item of a member, to be deleted by DynamoDB's TTL some time after `ttl` unless it beats again.
pub fn encode_member(member: &Member, ttl: Timestamp) -> Item {
    let count = |count: u64| Value::N(i64::try_from(count).unwrap_or(i64::MAX));
    let Tally { clients, refreshed, failed, conflicts, takeovers } = member.tally;
    Item::default()
        .with(attr::BEAT, Value::N(member.beat))
        .with(attr::STATE, Value::S(member.phase.as_str().to_owned()))
        .with(attr::LAG_MS, Value::N(member.lag_ms))
        .with(attr::SKEW_MS, Value::N(member.skew_ms))
        .with(attr::AT, Value::N(member.at.as_millis()))
        .with(attr::VERSION, Value::S(member.version.clone()))
        .with(attr::CLIENTS, count(clients))
        .with(attr::REFRESHED, count(refreshed))
        .with(attr::FAILED, count(failed))
        .with(attr::CONFLICTS, count(conflicts))
        .with(attr::TAKEOVERS, count(takeovers))
        .with(attr::TTL, Value::N(ttl.as_secs()))
}

/// Understands a `MEMBER` item.
///
/// # Errors
/// Names the attribute that is missing or of another type. A member of a later version may have more attributes.
pub fn decode_member(incarnation: &str, item: &Item) -> Result<Member, Malformed> {
    let read = Reader { key: Key::Member(incarnation.to_owned()), item };
    let phase = read.required(attr::STATE, Reader::string)?;
    let count = |name| read.number(name).map(|n| u64::try_from(n.unwrap_or(0)).unwrap_or(0));
    Ok(Member {
        incarnation: incarnation.to_owned(),
        beat: read.required(attr::BEAT, Reader::number)?,
        phase: Phase::parse(&phase)
            .ok_or_else(|| read.bad(attr::STATE, "is none of JOINING, ACTIVE, LEAVING"))?,
        lag_ms: read.number(attr::LAG_MS)?.unwrap_or(0),
        skew_ms: read.number(attr::SKEW_MS)?.unwrap_or(0),
        at: Timestamp::from_millis(read.number(attr::AT)?.unwrap_or(0)),
        version: read.string(attr::VERSION)?.unwrap_or_default(),
        tally: Tally {
            clients: count(attr::CLIENTS)?,
            refreshed: count(attr::REFRESHED)?,
            failed: count(attr::FAILED)?,
            conflicts: count(attr::CONFLICTS)?,
            takeovers: count(attr::TAKEOVERS)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member {
            incarnation: "a1".into(),
            beat: 7,
            phase: Phase::Active,
            lag_ms: 3,
            skew_ms: -2,
            at: Timestamp::from_secs(100),
            version: "1.2.3".into(),
            tally: Tally { clients: 130, refreshed: 5, failed: 4, conflicts: 3, takeovers: 2 },
        }
    }

    #[test]
    fn a_member_survives_the_table() {
        let item = encode_member(&member(), Timestamp::from_secs(500));
        assert_eq!(item.get(attr::TTL), Some(&Value::N(500)), "DynamoDB's TTL counts in seconds");
        assert_eq!(decode_member("a1", &item), Ok(member()));
    }

    #[test]
    fn a_phase_of_a_later_version_is_named() {
        let item = encode_member(&member(), Timestamp::EPOCH).with(attr::STATE, Value::S("RESTING".into()));
        let error = decode_member("a1", &item).expect_err("not understood").to_string();
        assert!(error.starts_with("MEMBER/a1: attribute `state`"), "{error}");
    }
}
