//! The scheduler's memory of one client, and its entries in the heap.

use super::lane::LaneKey;
use crate::record::Gen;
use crate::refresh::{Known, Report};
use crate::time::{Moment, Timestamp};

/// One client's place.
pub(super) struct Slot {
    pub(super) known: Known,
    /// That of its one valid entry in the heap; 0 where it has none.
    pub(super) epoch: u32,
    pub(super) phase: Phase,
    /// Where it waits while it is ready, and under which expiry.
    pub(super) queued: Option<(LaneKey, Timestamp)>,
    /// Which generation was dead or held when this task last looked.
    pub(super) settled: Option<Gen>,
    /// Which generation is in doubt, and when this task first saw it so. Kept across looks: a timer that restarted
    /// with every look would never run out.
    pub(super) silent: Option<(Gen, Moment)>,
    /// Something changed while a job was running.
    pub(super) stale: bool,
    /// It is no longer this task's: it goes when its job ends.
    pub(super) dismissed: bool,
    /// Turns in a row that came to nothing: it was due again as soon as they were over.
    pub(super) fruitless: u32,
}

impl Slot {
    pub(super) fn new(known: Known) -> Self {
        Self {
            known,
            epoch: 0,
            phase: Phase::Waiting,
            queued: None,
            settled: None,
            silent: None,
            stale: false,
            dismissed: false,
            fruitless: 0,
        }
    }
}

/// How a client that is due already comes to its turn.
#[derive(Clone, Copy)]
pub(super) enum Pace {
    /// At once.
    Prompt,
    /// Later and later: its turn is just over, and came to nothing.
    Again,
    /// Spread over a while if its token is still good: after a start many are overdue together.
    Spread,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Ready,
    Running,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) at: Timestamp,
    pub(super) slot: u32,
    pub(super) epoch: u32,
}

pub(super) enum Done {
    Refreshed(Box<Report>),
    /// It may not acquire any more: nothing was written.
    NotBegun,
    /// Read again; `None`: no longer a live client. `Err`: the store gave no answer, or the item is malformed.
    Looked(Result<Option<Box<Known>>, String>),
}
