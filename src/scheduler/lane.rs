//! Clients whose time has come and who wait for one token endpoint.

use std::collections::BTreeSet;

use crate::client::{Client, Provider};
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

/// A queue in the order of expiry. Who goes first is asked anew each time, since tokens expire while they wait.
#[derive(Debug, Default)]
pub(crate) struct Lane(BTreeSet<(Timestamp, u32)>);

impl Lane {
    pub(crate) fn insert(&mut self, expires_at: Timestamp, slot: u32) {
        self.0.insert((expires_at, slot));
    }

    pub(crate) fn remove(&mut self, expires_at: Timestamp, slot: u32) {
        self.0.remove(&(expires_at, slot));
    }

    /// The soonest expiry, and after all of those the ones already expired, the latest first: a token that can still
    /// be saved is worth more than one that is lost already.
    pub(crate) fn first(&self, now: Timestamp) -> Option<u32> {
        self.head(now).map(|(_, slot)| slot)
    }

    /// Orders lanes by their heads.
    pub(crate) fn urgency(&self, now: Timestamp) -> Option<(bool, i64)> {
        let (expires_at, _) = self.head(now)?;
        let (expired, millis) = (expires_at <= now, expires_at.as_millis());
        Some((expired, if expired { millis.saturating_neg() } else { millis }))
    }

    fn head(&self, now: Timestamp) -> Option<(Timestamp, u32)> {
        self.0.range((now, u32::MAX)..).next().or_else(|| self.0.last()).copied()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(_, slot)| *slot)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_saved_goes_first_and_the_longest_expired_last() {
        let at = Timestamp::from_secs;
        let mut lane = Lane::default();
        for expires_at in [100, 200, 300, 400] {
            lane.insert(at(expires_at), u32::try_from(expires_at).expect("small"));
        }
        let mut order = Vec::new();
        while let Some(slot) = lane.first(at(250)) {
            order.push(slot);
            lane.remove(at(i64::from(slot)), slot);
        }
        assert_eq!(order, [300, 400, 200, 100]);
    }

    #[test]
    fn the_lane_whose_head_expires_soonest_comes_first() {
        let at = Timestamp::from_secs;
        let lane = |expires_at| Lane(BTreeSet::from([(at(expires_at), 0)]));
        let urgency = |expires_at| lane(expires_at).urgency(at(250));
        assert!(urgency(300) < urgency(400) && urgency(400) < urgency(200) && urgency(200) < urgency(100));
        assert_eq!(Lane::default().urgency(at(0)), None);
    }
}
