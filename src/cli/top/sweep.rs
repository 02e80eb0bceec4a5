//! Walks over all clients, a part of them each round: what a round costs is bounded, however many there are.
//!
//! What was seen is kept until the next time around. A sweep that reaches the end forgets whom it did not meet. A round
//! that fails loses nothing: the next one goes on where it was.

use std::collections::{BTreeMap, VecDeque};

use super::super::survey::{Sighting, Survey};
use super::super::walk::{BATCH, Listing};
use crate::client::ClientId;
use crate::store::{Store, StoreError};

/// How much of the table has been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Coverage {
    /// Whether every client has been seen at least once.
    pub(super) whole: bool,
    /// How many rounds the last whole sweep took; rows may be so many rounds old.
    pub(super) rounds: u32,
}

pub(super) struct Sweep<'a, S> {
    store: &'a S,
    shards: u32,
    listing: Listing<'a, S>,
    /// Listed, and not looked at yet.
    waiting: VecDeque<ClientId>,
    /// What was seen last of each client, and in which sweep.
    known: BTreeMap<ClientId, (u64, Sighting)>,
    sweep: u64,
    /// Rounds of this sweep.
    rounds: u32,
    coverage: Coverage,
}

impl<'a, S: Store> Sweep<'a, S> {
    pub(super) fn new(store: &'a S, shards: u32) -> Self {
        Self {
            store,
            shards,
            listing: Listing::new(store, shards),
            waiting: VecDeque::new(),
            known: BTreeMap::new(),
            sweep: 0,
            rounds: 0,
            coverage: Coverage::default(),
        }
    }

    /// Looks at up to so many clients more, and never at one of them twice.
    pub(super) async fn round(
        &mut self,
        most: usize,
        mut look: impl AsyncFnMut(&[ClientId]) -> Result<Vec<(ClientId, Sighting)>, StoreError>,
    ) -> Result<Coverage, StoreError> {
        let mut left = most;
        loop {
            if self.waiting.is_empty() {
                let Some(page) = self.listing.next().await? else { break self.turn() };
                self.waiting.extend(page.ids);
            } else if left == 0 {
                break self.rounds += 1;
            } else {
                let count = self.waiting.len().min(left).min(BATCH);
                let ids: Vec<_> = self.waiting.range(..count).cloned().collect();
                self.note(look(&ids).await?);
                self.waiting.drain(..count);
                left -= count;
            }
        }
        Ok(self.coverage)
    }

    fn note(&mut self, seen: Vec<(ClientId, Sighting)>) {
        for (id, sighting) in seen {
            match sighting {
                Sighting::Gone => drop(self.known.remove(&id)),
                sighting => drop(self.known.insert(id, (self.sweep, sighting))),
            }
        }
    }

    /// All were seen: who was not is no client any more.
    fn turn(&mut self) {
        self.known.retain(|_, (sweep, _)| *sweep == self.sweep);
        self.coverage = Coverage { whole: true, rounds: self.rounds + 1 };
        self.rounds = 0;
        self.sweep += 1;
        self.listing = Listing::new(self.store, self.shards);
    }

    /// What is known of all of them, the most urgent first.
    pub(super) fn survey(&self) -> Survey {
        let mut survey = Survey::default();
        for (id, (_, sighting)) in &self.known {
            survey.add(id, sighting.clone());
        }
        survey.keep_first(usize::MAX);
        survey
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::survey::tests::row;
    use super::*;
    use crate::item::{Action, Assignment, Change, Condition as If, Item, Key, Value, attr};
    use crate::plan::condition::Condition;
    use crate::store::MemoryStore;

    async fn table(ids: &[&str]) -> MemoryStore {
        let store = MemoryStore::new();
        for (at, id) in (0..).zip(ids) {
            let item = Item::default().with(attr::VS, Value::N(at % 3)).with(attr::JN, Value::N(at));
            let change = Change::one(key(id), If::Absent, Action::Put(item));
            store.apply(&change).await.expect("applies");
        }
        store
    }

    fn key(id: &str) -> Key {
        Key::Config(ClientId::new(id).expect("a valid id"))
    }

    async fn seen(ids: &[ClientId]) -> Result<Vec<(ClientId, Sighting)>, StoreError> {
        let sighting = |id: &ClientId| Sighting::Client(Box::new(row(id.as_str(), Condition::Idle, None)));
        Ok(ids.iter().map(|id| (id.clone(), sighting(id))).collect())
    }

    fn clients<S: Store>(sweep: &Sweep<'_, S>) -> usize {
        sweep.survey().clients()
    }

    #[tokio::test]
    async fn a_round_looks_at_no_more_than_it_may_and_the_next_goes_on() {
        let store = table(&["a", "b", "c", "d", "e"]).await;
        let mut sweep = Sweep::new(&store, 3);
        let mut counts = Vec::new();
        for _ in 0..6 {
            let mut looked = 0;
            let look = async |ids: &[ClientId]| {
                looked += ids.len();
                seen(ids).await
            };
            let coverage = sweep.round(2, look).await.expect("a round");
            counts.push((looked, clients(&sweep), coverage.whole, coverage.rounds));
        }
        let (first, later) = counts.split_at(3);
        assert_eq!(first, [(2, 2, false, 0), (2, 4, false, 0), (1, 5, true, 3)]);
        assert_eq!(later, [(2, 5, true, 3), (2, 5, true, 3), (1, 5, true, 3)]);
    }

    #[tokio::test]
    async fn a_limit_that_all_just_keep_to_is_no_partial_view() {
        let store = table(&["a", "b", "c"]).await;
        let mut sweep = Sweep::new(&store, 3);
        assert_eq!(sweep.round(3, seen).await, Ok(Coverage { whole: true, rounds: 1 }));
        assert_eq!(sweep.round(9, seen).await, Ok(Coverage { whole: true, rounds: 1 }));
    }

    #[tokio::test]
    async fn who_is_removed_is_forgotten() {
        let store = table(&["a", "b", "c"]).await;
        let mut sweep = Sweep::new(&store, 3);
        sweep.round(9, seen).await.expect("a round");
        let out = vec![Assignment::Remove(attr::VS), Assignment::Remove(attr::JN)];
        let change = Change::one(key("b"), If::Exists, Action::Update(out));
        store.apply(&change).await.expect("applies");
        sweep.round(9, seen).await.expect("a round");
        assert_eq!(clients(&sweep), 2);
        let gone = async |ids: &[ClientId]| Ok(ids.iter().map(|id| (id.clone(), Sighting::Gone)).collect());
        sweep.round(1, gone).await.expect("a round");
        assert_eq!(clients(&sweep), 1, "a tombstone");
    }

    #[tokio::test]
    async fn a_round_that_fails_loses_nobody() {
        let store = table(&["a", "b", "c"]).await;
        let mut sweep = Sweep::new(&store, 3);
        let fails = async |_: &[ClientId]| Err(StoreError::Unavailable("no answer".into()));
        sweep.round(1, seen).await.expect("a round");
        sweep.round(9, fails).await.expect_err("no answer");
        assert_eq!(clients(&sweep), 1, "the last good data stays");
        assert_eq!(sweep.round(9, seen).await.map(|coverage| coverage.whole), Ok(true));
        assert_eq!(clients(&sweep), 3);
    }
}
