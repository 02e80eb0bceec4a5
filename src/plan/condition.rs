//! A client's condition in one word, as operators, metrics and the commands tell it.
//!
//! Made of what is stored, and of wall time: good for telling, never for deciding who may refresh.

use std::fmt;
use std::time::Duration;

use super::lease::{Standing, standing};
use crate::client::Client;
use crate::record::{Lease, Token};
use crate::time::Timestamp;

/// How a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    pub const ALL: &'static [Self] = &[
        Self::Idle,
        Self::Refreshing,
        Self::InDoubt,
        Self::Held,
        Self::Dead,
        Self::Paused,
        Self::Pending,
        Self::Expired,
    ];

    /// As commands spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InDoubt => "in-doubt",
            other => other.label(),
        }
    }

    /// As metrics spell it.
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

/// What most needs an operator's eye comes first.
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
