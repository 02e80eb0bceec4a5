//! Who is to be asked about when, without anybody waiting.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::freshness::Question;
use super::slot::{Slot, millis};
use super::{Inner, Store};
use crate::time::Moment;

/// Without anything due, the clock is looked at this often: it may have jumped.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// A calendar of slots. What was evicted from the cache is not kept alive by it.
#[derive(Default)]
pub(super) struct Upkeep {
    calendar: Mutex<BinaryHeap<Reverse<Due>>>,
    sooner: Notify,
}

struct Due {
    at_ms: u64,
    slot: Weak<Slot>,
}

impl Upkeep {
    /// Comes by at this time, and at no other that was planned before.
    pub(super) fn plan(&self, slot: &Arc<Slot>, at: Moment) {
        // Nobody is looked for before the time that was said.
        let at_ms = millis(at).saturating_add(1);
        slot.due_ms.store(at_ms, Ordering::Relaxed);
        let mut calendar = self.calendar.lock().unwrap_or_else(PoisonError::into_inner);
        let first = calendar.peek().is_none_or(|Reverse(due)| at_ms < due.at_ms);
        calendar.push(Reverse(Due { at_ms, slot: Arc::downgrade(slot) }));
        if first {
            self.sooner.notify_one();
        }
    }

    /// Who is due, or how long nobody is.
    fn next(&self, now: Moment) -> Result<Arc<Slot>, Duration> {
        let now_ms = millis(now);
        let mut calendar = self.calendar.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Reverse(due)) = calendar.peek() {
            if due.at_ms > now_ms {
                return Err(LONGEST_REST.min(Duration::from_millis(due.at_ms - now_ms)));
            }
            let Some(Reverse(due)) = calendar.pop() else { break };
            let slot = due.slot.upgrade();
            if let Some(slot) = slot.filter(|slot| slot.due_ms.load(Ordering::Relaxed) == due.at_ms) {
                return Ok(slot);
            }
        }
        Err(LONGEST_REST)
    }
}

impl<S: Store> Inner<S> {
    pub(super) async fn keep(this: &Arc<Self>) {
        loop {
            let now = this.clock.moment();
            match this.upkeep.next(now) {
                // What nobody uses is asked for when somebody does.
                Ok(slot) if slot.unused(now) < this.settings.idle => {
                    this.ask(&slot, Question::Which);
                    // Questions are limited: their turn comes, and this loop does not run ahead of it.
                    drop(this.questions.acquire().await);
                }
                Ok(_) => {}
                Err(rest) => {
                    let pause = this.clock.sleep(rest);
                    tokio::select! { () = pause => {}, () = this.upkeep.sooner.notified() => {} }
                }
            }
        }
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at_ms == other.at_ms
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at_ms.cmp(&other.at_ms)
    }
}
