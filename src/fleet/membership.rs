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
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::item::{Action, Change, Condition, Key};
use crate::metrics;
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
    /// For the scheduler: until when to acquire. A moment and not a yes, since it runs out by itself: where a write hangs, and
    /// where the machine was suspended.
    pub(super) permit: watch::Sender<Moment>,
}

impl<S: Store + Roster> Membership<S> {
    /// Beats until `leave` is cancelled, and ends between two beats. `phase` says where the task stands; a change of it is
    /// told at once.
    pub(super) async fn run(self, mut phase: watch::Receiver<Phase>, leave: &CancellationToken) {
        let (mut view, mut strangers) = (View::new(self.rules), BTreeSet::new());
        let (mut beat, mut workers) = (0, None);
        while !leave.is_cancelled() {
            let standing = *phase.borrow_and_update();
            beat += 1;
            let began = self.clock.moment();
            match self.write(beat, standing).await {
                Ok(()) => self.permit(standing, began),
                Err(error) => self.complain(&error, standing),
            }
            match self.read(&mut strangers).await {
                Ok(members) => {
                    view.observe(members, self.clock.moment(), self.clock.now());
                    let seen: Vec<_> = view.workers().into_iter().map(str::to_owned).collect();
                    metrics::FLEET_MEMBERS.set_count(&[], seen.len());
                    // The division follows from these two alone, and is not made anew for every beat.
                    if workers.as_ref() != Some(&(standing, seen.clone())) {
                        info!(members = seen.len(), phase = %standing, "the fleet has changed");
                        self.divide(&view, standing);
                        workers = Some((standing, seen));
                    }
                }
                Err(error) => warn!(%error, "could not read the members: the last view of them stands"),
            }
            tokio::select! {
                biased;
                () = leave.cancelled() => {}
                Ok(()) = phase.changed() => {}
                () = self.clock.sleep(self.rules.beat) => {}
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
            skew_ms: self.vitals.skew_ms(self.clock.as_ref()),
            at: now,
            version: VERSION.to_owned(),
            tally: self.pulse.tally(),
        };
        let item = encode_member(&member, now.plus(RETENTION));
        let key = Key::Member(self.incarnation.clone());
        self.store.apply(&Change::one(key, ALWAYS, Action::Put(item))).await.map(drop)
    }

    /// The members. Items that are none are `strangers`, and named as they come: not with every beat.
    async fn read(&self, strangers: &mut BTreeSet<String>) -> Result<Vec<Member>, StoreError> {
        let items = self.store.members().await?;
        let (mut members, before) = (Vec::new(), std::mem::take(strangers));
        for (incarnation, item) in items {
            match decode_member(&incarnation, &item) {
                Ok(member) => members.push(member),
                Err(malformed) => {
                    if !before.contains(&incarnation) {
                        warn!(%malformed, "skipped: not a member as this version knows them");
                    }
                    strangers.insert(incarnation);
                }
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

    /// The others give this task up no earlier than a silence after they have seen this beat.
    fn permit(&self, phase: Phase, beaten: Moment) {
        let until = if phase == Phase::Active { beaten.plus(self.rules.silence) } else { Moment::default() };
        self.permit.send_replace(until);
    }

    fn complain(&self, error: &StoreError, phase: Phase) {
        if phase == Phase::Active && *self.permit.borrow() <= self.clock.moment() {
            warn!(%error, "the heartbeat cannot be written: others take over, nothing is acquired here");
        } else {
            warn!(%error, "could not write the heartbeat: trying again");
        }
    }
}

/// No condition: a member's item is its own, and comes back if somebody deletes it.
const ALWAYS: Condition = Condition::All(Vec::new());

/// Takes a member off the list.
pub(super) fn farewell(incarnation: &str) -> Change {
    Change::one(Key::Member(incarnation.to_owned()), ALWAYS, Action::Delete)
}
