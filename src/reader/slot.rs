//! One client's place in the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::freshness::Entry;
use crate::client::ClientId;
use crate::time::Moment;

/// What is known of a client, and whether the table is being asked.
pub(super) struct Slot {
    pub(super) id: ClientId,
    pub(super) entry: ArcSwap<Entry>,
    /// Told to everybody who waits, whenever a question has ended.
    pub(super) ended: Notify,
    is_asked: AtomicBool,
    /// When somebody last wanted it, in milliseconds of steady time.
    used_ms: AtomicU64,
    /// When upkeep comes by, in milliseconds of steady time: what it finds in its calendar under another time is void.
    pub(super) due_ms: AtomicU64,
}

impl Slot {
    pub(super) fn new(id: ClientId) -> Self {
        Self {
            id,
            entry: ArcSwap::default(),
            ended: Notify::new(),
            is_asked: AtomicBool::new(false),
            used_ms: AtomicU64::new(0),
            due_ms: AtomicU64::new(u64::MAX),
        }
    }

    /// Somebody wants it.
    pub(super) fn touch(&self, now: Moment) {
        self.used_ms.store(millis(now), Ordering::Relaxed);
    }

    /// How long nobody has wanted it.
    pub(super) fn unused(&self, now: Moment) -> Duration {
        Duration::from_millis(millis(now).saturating_sub(self.used_ms.load(Ordering::Relaxed)))
    }

    /// The right to ask, unless somebody has it.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Question> {
        let free = !self.is_asked.swap(true, Ordering::AcqRel);
        free.then(|| Question(Arc::clone(self)))
    }
}

/// A question under way: it ends when this is dropped, also where its task panics.
pub(super) struct Question(Arc<Slot>);

impl Drop for Question {
    fn drop(&mut self) {
        self.0.is_asked.store(false, Ordering::Release);
        self.0.ended.notify_waiters();
    }
}

pub(super) fn millis(moment: Moment) -> u64 {
    u64::try_from(moment.since(Moment::default()).as_millis()).unwrap_or(u64::MAX)
}
