//! Whether a write whose answer was lost has happened: it is told by its own traces, and never done twice.

use crate::item::{Action, Assignment, Change, Item, Key};
use crate::record::Partition;

/// Whether a change has been written after all. `CONFIG` tells where the change has a part in it: operators alone
/// write it, each with a stamp of their own. The other items may have moved on meanwhile.
pub(super) fn landed(change: &Change, read: &Partition) -> bool {
    let of_config = change.0.iter().find(|write| matches!(write.key, Key::Config(_)));
    let Some(write) = of_config.or(change.0.first()) else { return false };
    let found = match &write.key {
        Key::Config(_) => &read.config,
        Key::Lease(_) => &read.lease,
        Key::Token(_) => &read.token,
        Key::Member(_) | Key::Schema => return false,
    };
    found.as_ref().is_some_and(|item| shows(item, &write.action))
}

fn shows(item: &Item, action: &Action) -> bool {
    match action {
        Action::Put(put) => item == put,
        Action::Update(assignments) => assignments.iter().all(|assignment| match assignment {
            Assignment::Set(name, value) => item.get(name) == Some(value),
            Assignment::Remove(name) => item.get(name).is_none(),
            Assignment::Add(..) => false,
        }),
        Action::Delete | Action::Check => false,
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::entropy::Entropy;
    use crate::item::{Assignment, Change, Condition, Item, Key, Value, attr};
    use crate::plan::registry::Imported;
    use crate::plan::testing::{client, provider};
    use crate::record::Partition;
    use crate::registrar::{Registrar, Wanted};
    use crate::secret::Secret;
    use crate::store::{Applied, MemoryStore, Page, ShardQuery, Store, StoreError, View};
    use crate::time::{Clock, Moment, Sleep, Timestamp};

    /// A second passes with every look, and none with a wait.
    struct Passing(AtomicI64);

    impl Clock for Passing {
        fn now(&self) -> Timestamp {
            Timestamp::from_secs(1_700_000_000 + self.0.fetch_add(1, Ordering::Relaxed))
        }
        fn moment(&self) -> Moment {
            Moment::default()
        }
        fn sleep(&self, _: Duration) -> Sleep {
            Box::pin(ready(()))
        }
    }

    /// The first write from outside arrives when the second is under way, and a task is quick to refresh after it.
    #[derive(Default)]
    struct Late {
        table: MemoryStore,
        late: Mutex<Option<Change>>,
        writes: AtomicU32,
    }

    impl Late {
        async fn write(&self, change: &Change) -> Result<Applied, StoreError> {
            let late = match self.writes.fetch_add(1, Ordering::Relaxed) {
                0 => {
                    *self.late.lock().expect("unpoisoned") = Some(change.clone());
                    return Err(StoreError::Unavailable("timeout".into()));
                }
                _ => self.late.lock().expect("unpoisoned").take(),
            };
            let Some(late) = late else { return self.table.apply(change).await };
            assert_eq!(self.table.apply(&late).await, Ok(Applied::Committed));
            let outcome = self.table.apply(change).await;
            self.refresh().await;
            outcome
        }

        /// The imported token is spent, and its successor stored.
        async fn refresh(&self) {
            let id = client().id;
            let set = |name, value| Action::Update(vec![Assignment::Set(name, value)]);
            let successor = set(attr::REFRESH_TOKEN, Value::Secret(Secret::new("r3")));
            let change = Change::one(Key::Token(id), Condition::Exists, successor);
            assert_eq!(self.table.apply(&change).await, Ok(Applied::Committed));
        }
    }

    impl Store for Late {
        async fn read(&self, id: &crate::client::ClientId) -> Result<Partition, StoreError> {
            self.table.read(id).await
        }
        async fn apply(&self, change: &Change) -> Result<Applied, StoreError> {
            self.write(change).await
        }
        async fn query(&self, query: &ShardQuery) -> Result<Page, StoreError> {
            self.table.query(query).await
        }
        async fn load(&self, keys: &[Key], view: View) -> Result<Vec<(Key, Item)>, StoreError> {
            self.table.load(keys, view).await
        }
    }

    fn tokens(refresh: &str) -> Imported {
        Imported { refresh_token: Some(Secret::new(refresh)), ..Imported::nothing() }
    }

    #[tokio::test]
    async fn a_write_that_arrives_late_is_not_done_again_over_its_successor() {
        let store = Late::default();
        let (clock, entropy) = (Arc::new(Passing(AtomicI64::new(0))), Entropy::from_seed(1));
        let wanted = Wanted { client: client(), paused: None };
        let first = Registrar { store: &store.table, clock: clock.as_ref(), entropy: &entropy, shards: 16 };
        first.register(&wanted, &tokens("r1"), &provider(), false).await.expect("registered");
        let second = Registrar { store: &store, clock: clock.as_ref(), entropy: &entropy, shards: 16 };
        second.import(&client().id, &tokens("r2"), &provider(), true).await.expect("it arrived");
        let token = second.read(&client().id).await.expect("well-formed").token.expect("a token");
        assert_eq!(token.refresh_token, Some(Secret::new("r3")), "a spent token was put over a live one");
    }
}
