//! This task's heartbeat, and its view of the others.
//!
//! Every beat writes this task's `MEMBER` item and reads all of them, strongly consistent; [`View`] makes of it which
//! shards are ours. A plain loop on the injected clock: the fleet's life depends on it. Nothing here is needed for
//! safety, see [`crate::plan::membership`].
//!
//! A task that cannot read the members keeps its last view. One whose own beat cannot be written for as long as the
//! others take to give it up stops acquiring, and goes on committing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::item::{Action, Change, Condition, Key};
use crate::plan::membership::{Rules, View};
use crate::record::{Member, Phase, decode_member, encode_member};
use crate::scheduler::Pulse;
use crate::store::{Roster, Store, StoreError, Vitals};
use crate::time::{Clock, Moment};

/// How long after its last beat DynamoDB's TTL may delete a member that did not take its leave.
const RETENTION: Duration = Duration::from_secs(3600);
/// The version that members tell.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which shards are ours; `None` while that is not known.
pub(super) type Share = Option<BTreeSet<u32>>;

/// What a task tells of itself, and to whom.
pub(super) struct Membership<S> {
    pub(super) store: Arc<S>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) incarnation: String,
    pub(super) rules: Rules,
    pub(super) shards: u32,
    /// The scheduler's own account.
    pub(super) pulse: Arc<Pulse>,
    pub(super) vitals: Arc<Vitals>,
    /// For discovery: which shards to care for.
    pub(super) share: watch::Sender<Share>,
    /// For the scheduler: whether to acquire.
    pub(super) permit: watch::Sender<bool>,
}

impl<S: Store + Roster> Membership<S> {
    /// Beats for as long as it is polled. `phase` says where the task stands; a change of it is told at once.
    pub(super) async fn run(self, mut phase: watch::Receiver<Phase>) {
        let mut view = View::new(self.rules);
        let (mut beat, mut written, mut workers) = (0, None, None);
        loop {
            let standing = *phase.borrow_and_update();
            beat += 1;
            match self.write(beat, standing).await {
                Ok(()) => written = Some(self.clock.moment()),
                Err(error) => warn!(%error, "could not write the heartbeat: trying again"),
            }
            match self.read().await {
                Ok(members) => {
                    view.observe(members, self.clock.moment(), self.clock.now());
                    let seen: Vec<_> = view.workers().into_iter().map(str::to_owned).collect();
                    // The division follows from these two alone, and is not made anew for every beat.
                    if workers.as_ref() != Some(&(standing, seen.clone())) {
                        info!(members = seen.len(), phase = %standing, "the fleet has changed");
                        self.divide(&view, standing);
                        workers = Some((standing, seen));
                    }
                }
                Err(error) => warn!(%error, "could not read the members: the last view of them stands"),
            }
            self.permit(standing, written);
            tokio::select! {
                biased;
                Ok(()) = phase.changed() => {}
                () = self.clock.sleep(self.rules.beat) => self.permit(standing, written),
            }
        }
    }

    async fn write(&self, beat: i64, phase: Phase) -> Result<(), StoreError> {
        let now = self.clock.now();
        let member = Member {
            incarnation: self.incarnation.clone(),
            beat,
            phase,
            lag_ms: i64::try_from(self.pulse.lateness(self.clock.moment()).as_millis()).unwrap_or(i64::MAX),
            skew_ms: self.vitals.skew_ms(),
            at: now,
            version: VERSION.to_owned(),
            tally: self.pulse.tally(),
        };
        let item = encode_member(&member, now.plus(RETENTION));
        let key = Key::Member(self.incarnation.clone());
        self.store.apply(&Change::one(key, ALWAYS, Action::Put(item))).await.map(drop)
    }

    async fn read(&self) -> Result<Vec<Member>, StoreError> {
        let mut members = Vec::new();
        for (incarnation, item) in self.store.members().await? {
            match decode_member(&incarnation, &item) {
                Ok(member) => members.push(member),
                Err(malformed) => warn!(%malformed, "skipped: not a member as this version knows them"),
            }
        }
        Ok(members)
    }

    fn divide(&self, view: &View, phase: Phase) {
        let share = match phase {
            Phase::Joining => view.shards_to_be(&self.incarnation, self.shards),
            Phase::Active => view.shards_of(&self.incarnation, self.shards),
            // What it has begun it finishes; what it cares for does not matter any more.
            Phase::Leaving => return,
        };
        self.share.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&share);
            if changed {
                *before = Some(share);
            }
            changed
        });
    }

    fn permit(&self, phase: Phase, written: Option<Moment>) {
        let heard = written.is_some_and(|at| self.clock.moment().since(at) < self.rules.silence);
        let permitted = phase == Phase::Active && heard;
        let changed =
            self.permit.send_if_modified(|before| std::mem::replace(before, permitted) != permitted);
        if changed && phase == Phase::Active && !permitted {
            warn!("this task's heartbeat cannot be written: others take over, nothing is acquired here");
        }
    }
}

/// No condition: a member's item is its own, and comes back if somebody deletes it.
const ALWAYS: Condition = Condition::All(Vec::new());

/// Takes a member off the list.
pub(super) fn farewell(incarnation: &str) -> Change {
    Change::one(Key::Member(incarnation.to_owned()), ALWAYS, Action::Delete)
}
