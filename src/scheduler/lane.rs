//! Clients whose time has come and who wait for one token endpoint.

use std::collections::BTreeSet;

use crate::client::{Client, Provider};
use crate::refresh::Known;
use crate::time::Timestamp;

/// One token endpoint under one provider profile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LaneKey {
    pub(crate) provider: String,
    pub(crate) endpoint: String,
}

impl LaneKey {
    pub(crate) fn of(client: &Client, provider: &Provider) -> Self {
        Self { provider: provider.name.clone(), endpoint: client.endpoint(provider).to_string() }
    }
}

/// Who goes first: the soonest expiry, and after all of those the ones already expired, the latest first. A token
/// that can still be saved is worth more than one that is lost already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Priority {
    expired: bool,
    rank: i64,
}

impl Priority {
    pub(crate) fn of(known: &Known, now: Timestamp) -> Self {
        let expires_at = known.token.expires_at;
        let expired = expires_at <= now;
        let millis = expires_at.as_millis();
        Self { expired, rank: if expired { millis.saturating_neg() } else { millis } }
    }
}

/// A queue by priority.
#[derive(Debug, Default)]
pub(crate) struct Lane(BTreeSet<(Priority, u32)>);

impl Lane {
    pub(crate) fn insert(&mut self, priority: Priority, slot: u32) {
        self.0.insert((priority, slot));
    }

    pub(crate) fn remove(&mut self, priority: Priority, slot: u32) {
        self.0.remove(&(priority, slot));
    }

    pub(crate) fn first(&self) -> Option<u32> {
        self.0.first().map(|(_, slot)| *slot)
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(_, slot)| *slot)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
