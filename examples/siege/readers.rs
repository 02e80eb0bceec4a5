//! Readers who take tokens without a pause, and judge every answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::join_all;
use perennial::time::{Clock as _, SystemClock, Timestamp};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::camp::Camp;

const READERS: usize = 8;

/// What they have seen together.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) reads: AtomicU64,
    pub(crate) stale: AtomicU64,
    /// A token that had expired before it was asked for.
    pub(crate) expired: AtomicU64,
    /// A generation below one that was seen before.
    pub(crate) backwards: AtomicU64,
    pub(crate) rotations: AtomicU64,
    /// Refusals while the table was out of reach; these are right for tokens that have expired meanwhile.
    pub(crate) refused: AtomicU64,
    /// Refusals where the table had no good token: on a busy machine a refresh may be late.
    pub(crate) late: AtomicU64,
    /// Other refusals, and answers that are none.
    pub(crate) errors: AtomicU64,
    table_is_gone: AtomicBool,
    ended: AtomicBool,
}

impl Tally {
    /// From now on refusals are right for what has expired; or they are not any more.
    pub(crate) fn without_table(&self, gone: bool) {
        self.table_is_gone.store(gone, Ordering::SeqCst);
    }

    pub(crate) fn of(count: &AtomicU64) -> u64 {
        count.load(Ordering::SeqCst)
    }

    /// `None` for a refusal that wants a reason.
    fn judge(
        &self,
        id: &str,
        begun: Timestamp,
        (status, told): &(u16, Value),
        last: &mut BTreeMap<String, i64>,
    ) -> Option<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if *status != 200 {
            let right =
                *status == 503 && id.starts_with("brief") && self.table_is_gone.load(Ordering::SeqCst);
            return right.then(|| _ = self.refused.fetch_add(1, Ordering::SeqCst));
        }
        if told["stale"] == true {
            self.stale.fetch_add(1, Ordering::SeqCst);
        }
        // To the second, as `expires_at` is.
        if told["expires_at"].as_i64().unwrap_or_default() < begun.as_secs() {
            self.expired.fetch_add(1, Ordering::SeqCst);
        }
        let generation = told["generation"].as_i64().unwrap_or_default();
        match last.insert(id.to_owned(), generation) {
            Some(before) if before > generation => _ = self.backwards.fetch_add(1, Ordering::SeqCst),
            Some(before) if before < generation => _ = self.rotations.fetch_add(1, Ordering::SeqCst),
            _ => {}
        }
        Some(())
    }
}

/// All readers at work.
pub(crate) struct Readers {
    pub(crate) tally: Arc<Tally>,
    working: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(crate) fn begin(camp: &Arc<Camp>) -> Self {
        let tally = Arc::new(Tally::default());
        let working =
            (0..READERS).map(|number| tokio::spawn(read(number, Arc::clone(camp), Arc::clone(&tally))));
        Self { working: working.collect(), tally }
    }

    pub(crate) async fn end(self) -> Arc<Tally> {
        self.tally.ended.store(true, Ordering::SeqCst);
        for ended in join_all(self.working).await {
            ended.expect("a reader does not panic");
        }
        self.tally
    }
}

async fn read(number: usize, camp: Arc<Camp>, tally: Arc<Tally>) {
    let ids: Vec<_> = camp.lasting.iter().chain(&camp.brief).collect();
    let mut last = BTreeMap::new();
    for id in ids.iter().cycle().skip(number) {
        if tally.ended.load(Ordering::SeqCst) {
            return;
        }
        let begun = SystemClock.now();
        let answer = camp.read(id).await;
        if tally.judge(id, begun, &answer, &mut last).is_none() {
            let is_late = answer.1["code"] == "expired" && camp.is_late(id, begun).await;
            let count = if is_late { &tally.late } else { &tally.errors };
            count.fetch_add(1, Ordering::SeqCst);
            eprintln!("{id}: {} {}{}", answer.0, answer.1["code"], if is_late { ", late" } else { "" });
        }
        // The siege is the load; readers only have to be there.
        pause().await;
    }
}

#[expect(clippy::disallowed_methods, reason = "readers live in real time")]
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
}
