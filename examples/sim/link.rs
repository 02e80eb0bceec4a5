//! The way from one process to the table, with everything that happens on such ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use perennial::client::ClientId;
use perennial::entropy::Entropy;
use perennial::item::{Change, Item, Key};
use perennial::record::Partition;
use perennial::store::{Applied, Page, Roster, ShardQuery, Store, StoreError, View, Vitals};
use perennial::time::Clock as _;

use super::clock::Machine;
use super::table::{Table, Writer};

/// How the way is today. Shares are in thousandths.
#[derive(Default)]
pub(crate) struct Road {
    /// Nothing gets through.
    pub(crate) cut: AtomicBool,
    /// Operations that the table refuses for the moment.
    pub(crate) throttled: AtomicU64,
    /// Operations whose answer is lost; a write may have happened, or happen later.
    pub(crate) lost: AtomicU64,
    /// Writes that are delivered twice.
    pub(crate) doubled: AtomicU64,
}

/// A process's own handle of the table.
pub(crate) struct Link {
    pub(crate) table: Table,
    pub(crate) machine: Machine,
    pub(crate) road: Arc<Road>,
    pub(crate) dice: Arc<Entropy>,
    pub(crate) vitals: Arc<Vitals>,
}

/// What becomes of an operation on its way.
enum Fate {
    Passes,
    /// Does not arrive; the caller is told so, or waits in vain.
    Stops(StoreError),
    /// Arrives, and its answer does not.
    Unanswered,
}

impl Link {
    fn share(&self, share: &AtomicU64) -> bool {
        self.dice.unit() * 1000.0 < share.load(Ordering::Relaxed) as f64
    }

    async fn leave(&self) -> Fate {
        self.machine.running().await;
        if self.road.cut.load(Ordering::Relaxed) {
            self.machine.sleep(Duration::from_secs(7).mul_f64(self.dice.unit())).await;
            return Fate::Stops(unavailable());
        }
        self.machine.sleep(Duration::from_millis(2).mul_f64(1.0 + 10.0 * self.dice.unit())).await;
        if self.share(&self.road.throttled) {
            return Fate::Stops(StoreError::Throttled("slow down".into()));
        }
        if self.share(&self.road.lost) { Fate::Unanswered } else { Fate::Passes }
    }

    /// An answer has come.
    async fn arrive(&self) {
        self.machine.sleep(Duration::from_millis(1)).await;
        self.vitals.answered(&self.machine, Some(whole_second(&self.machine)));
    }

    async fn give_up(&self) -> StoreError {
        self.machine.sleep(Duration::from_secs(4).mul_f64(self.dice.unit())).await;
        unavailable()
    }

    async fn ask<T>(&self, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        match self.leave().await {
            Fate::Stops(error) => Err(error),
            Fate::Unanswered => Err(self.give_up().await),
            Fate::Passes => {
                let answer = answer.await;
                self.arrive().await;
                answer
            }
        }
    }

    /// A write that its sender has given up on arrives all the same, or much later, or never.
    fn stray(&self, change: &Change) {
        let draw = self.dice.unit();
        if draw < 0.5 {
            drop(self.table.apply(change, Writer::Task));
        } else if draw < 0.75 {
            let (table, change) = (self.table.clone(), change.clone());
            let late = Duration::from_secs(30).mul_f64(self.dice.unit());
            let wait = tokio::time::Instant::now() + late;
            tokio::spawn(async move {
                tokio::time::sleep_until(wait).await;
                drop(table.apply(&change, Writer::Task));
            });
        }
    }
}

/// The `Date` header is cut to whole seconds.
fn whole_second(machine: &Machine) -> perennial::time::Timestamp {
    perennial::time::Timestamp::from_secs(machine.origin().wall().as_secs())
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("cut".into())
}

impl Store for Link {
    async fn read(&self, id: &ClientId) -> Result<Partition, StoreError> {
        self.ask(self.table.store.read(id)).await
    }

    async fn apply(&self, change: &Change) -> Result<Applied, StoreError> {
        match self.leave().await {
            Fate::Stops(error) => Err(error),
            Fate::Unanswered => {
                self.stray(change);
                Err(self.give_up().await)
            }
            Fate::Passes => {
                let mut applied = self.table.apply(change, Writer::Task);
                // A retry below us: its answer is the one that is heard.
                if self.share(&self.road.doubled) {
                    applied = self.table.apply(change, Writer::Task);
                }
                self.arrive().await;
                applied
            }
        }
    }

    async fn query(&self, query: &ShardQuery) -> Result<Page, StoreError> {
        self.ask(self.table.store.query(query)).await
    }

    async fn load(&self, keys: &[Key], view: View) -> Result<Vec<(Key, Item)>, StoreError> {
        self.ask(self.table.store.load(keys, view)).await
    }
}

impl Roster for Link {
    async fn members(&self) -> Result<Vec<(String, Item)>, StoreError> {
        self.ask(self.table.store.members()).await
    }
}
