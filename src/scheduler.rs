//! When each client's turn comes, and how many at once.
//!
//! One heap of times (sixteen bytes an entry; an entry is void once its client's epoch has moved on), and behind it
//! one *lane* for each token endpoint: clients whose time has come wait there, the soonest expiry first and those
//! already expired last, until the gate lets them through. The gate is asked *before* the acquire: while a breaker is
//! open, a rate budget is spent or a shutdown has begun, nobody is acquired, so that an outage costs no write and
//! leaves no doubt behind.
//!
//! Not cron jobs: a million of those cost hundreds of megabytes, and bursts beyond their channel are lost.
//!
//! Invariant: at most one job runs for a client, and a job is a refresh or a look. A client whose refresh holds an
//! answer that is not committed yet is therefore never acquired again by this process.

mod begin;
mod census;
mod finish;
mod gate;
mod lane;
mod pulse;
mod slot;
mod tuning;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::gate::{Gate, Pass};
use self::lane::{Lane, LaneKey};
use self::pulse::LONGEST_SLEEP;
pub use self::pulse::Pulse;
use self::slot::{Done, Entry, Pace, Phase, Slot};
pub use self::tuning::Tuning;
use crate::client::{ClientId, Provider};
use crate::entropy::Entropy;
use crate::plan::BreakerPolicy;
use crate::plan::in_doubt::{Risk, Silent, take_over_in};
use crate::plan::schedule::{Due, due};
use crate::provider::TokenEndpoint;
use crate::record::Tally;
use crate::refresh::{Known, Refresher};
use crate::store::{Store, Vitals};
use crate::time::{Clock, Moment, Timestamp};

/// The two clocks disagree by so much after a step, and not while one of them is slewed.
const STEP: Duration = Duration::from_secs(2);
/// A wall clock that is so far off the store's is an alarm.
pub(crate) const SKEW_ALARM: Duration = Duration::from_secs(5);
/// How soon a lease that somebody else just took is looked at: most refreshes are over by then.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// How often it is looked at while its wait runs; the longer the silence, the more seldom.
const NEXT_LOOK: Duration = Duration::from_secs(15);
/// How long a client is left alone whose turn came to nothing: at first, and doubled so often.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_DOUBLINGS: u32 = 7;
/// How often dead and held clients are looked at: a late holder or an operator may have revived them.
const RECHECK: Duration = Duration::from_secs(3600);

/// What the fleet tells the scheduler.
#[derive(Clone, Debug)]
pub enum Command {
    /// A client is new, or has changed, or was read again.
    Learn(Box<Known>),
    /// A client is no longer registered, or no longer this task's.
    Forget(ClientId),
}

/// How a scheduler goes about its work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Refreshes in flight at once, over all providers.
    pub concurrency: usize,
    /// When breakers open.
    pub breaker: BreakerPolicy,
    /// Over how long the overdue clients of a start are spread while their tokens are still good.
    pub spread: Duration,
    /// Beyond this skew of the wall clock against the store's nobody is acquired.
    pub max_skew: Duration,
    /// How often the clients are counted for the metrics; none: not at all.
    pub census: Option<Duration>,
    /// Run until nothing is due, and then end: failures are not tried again, and take-overs are not put off.
    pub once: Option<Once>,
}

/// A run that ends.
#[derive(Clone, Copy, Debug)]
pub struct Once {
    /// How long to wait for leases in doubt.
    pub max_wait: Duration,
}

/// What a scheduler has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// In numbers.
    pub tally: Tally,
    /// In a run that ends: clients that failed, or are still in doubt, and why.
    pub unfinished: BTreeMap<ClientId, String>,
    /// Jobs that a drain could not wait for.
    pub abandoned: usize,
}

/// Runs refreshes when they are due.
pub struct Scheduler<S, E> {
    refresher: Arc<Refresher<S, E>>,
    store: Arc<S>,
    vitals: Arc<Vitals>,
    clock: Arc<dyn Clock>,
    entropy: Arc<Entropy>,
    providers: BTreeMap<String, Arc<Provider>>,
    settings: Settings,
    gate: Gate,
    slots: Vec<Option<Slot>>,
    /// Slots that are free to be used again.
    free: Vec<u32>,
    /// The last epoch that was given: no two entries of the heap have the same.
    epoch: u32,
    index: BTreeMap<ClientId, u32>,
    heap: BinaryHeap<Reverse<Entry>>,
    lanes: BTreeMap<LaneKey, Lane>,
    jobs: JoinSet<Done>,
    running: HashMap<Id, (u32, Option<Pass>)>,
    pulse: Arc<Pulse>,
    /// Until when this task may acquire.
    permit: watch::Receiver<Moment>,
    /// What is to be changed while it runs; both ends, so that there is always one who could order.
    orders: watch::Receiver<Option<Arc<Tuning>>>,
    ordering: Arc<watch::Sender<Option<Arc<Tuning>>>>,
    /// How long a drain waits, where that was ordered since the start.
    patience: Option<Duration>,
    summary: Summary,
    started: (Timestamp, Moment),
    /// The two clocks at the last turn.
    turned: (Timestamp, Moment),
    /// Cancelled when nobody is to be acquired any more.
    draining: CancellationToken,
    /// Whether the skew was an alarm, and too much, at the last turn.
    skewed: (bool, bool),
    /// Since when it is too much.
    skewed_since: Option<Moment>,
    /// When the clients were counted.
    counted: Option<Moment>,
}

/// What a scheduler works with.
pub struct Parts<S, E> {
    /// Who refreshes.
    pub refresher: Arc<Refresher<S, E>>,
    /// Where clients are read again.
    pub store: Arc<S>,
    /// The store's clock, for the skew.
    pub vitals: Arc<Vitals>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Jitter.
    pub entropy: Arc<Entropy>,
    /// Provider profiles by name.
    pub providers: BTreeMap<String, Arc<Provider>>,
    /// Numbers.
    pub settings: Settings,
}

impl<S: Store, E: TokenEndpoint> Scheduler<S, E> {
    /// Knows no client yet. Nobody is acquired from the moment on that `permit` names.
    pub fn new(parts: Parts<S, E>, permit: watch::Receiver<Moment>) -> Self {
        let gate = Gate::new(&parts.providers, parts.settings.breaker, Arc::clone(&parts.clock));
        let started = (parts.clock.now(), parts.clock.moment());
        let pulse = Pulse::default();
        pulse.turn(started.1, Duration::ZERO);
        let (ordering, orders) = watch::channel(None);
        Self {
            refresher: parts.refresher,
            store: parts.store,
            vitals: parts.vitals,
            clock: parts.clock,
            entropy: parts.entropy,
            providers: parts.providers,
            settings: parts.settings,
            gate,
            slots: Vec::new(),
            free: Vec::new(),
            epoch: 0,
            index: BTreeMap::new(),
            heap: BinaryHeap::new(),
            lanes: BTreeMap::new(),
            jobs: JoinSet::new(),
            running: HashMap::new(),
            pulse: Arc::new(pulse),
            permit,
            orders,
            ordering: Arc::new(ordering),
            patience: None,
            summary: Summary::default(),
            started,
            turned: started,
            draining: CancellationToken::new(),
            skewed: (false, false),
            skewed_since: None,
            counted: None,
        }
    }

    /// What health checks read.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Takes orders while it runs: between two turns, the last one.
    pub fn ordering(&self) -> Arc<watch::Sender<Option<Arc<Tuning>>>> {
        Arc::clone(&self.ordering)
    }

    /// Runs until `drain` is cancelled (or, in a run that ends, until nothing is due), then waits for what is in
    /// flight, at most for `patience` and not beyond `now`.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        drain: &CancellationToken,
        now: &CancellationToken,
        patience: Duration,
    ) -> Summary {
        loop {
            self.start_what_may();
            self.pulse.busy_with(self.gate.running());
            if self.has_ended(&commands) {
                break;
            }
            let nap = self.clock.sleep(self.nap());
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                Some(done) = self.jobs.join_next_with_id() => self.finish(done),
                Some(command) = commands.recv() => self.obey(command),
                Ok(()) = self.permit.changed() => {}
                Ok(()) = self.orders.changed() => self.tune(),
                () = nap => {}
            }
        }
        let patience = self.patience.unwrap_or(patience);
        self.drain(now, patience).await
    }

    /// Stops acquiring, and lets every job end: a refresh in flight may hold the only copy of its tokens.
    async fn drain(mut self, now: &CancellationToken, patience: Duration) -> Summary {
        self.draining.cancel();
        self.refresher.hurry();
        let limit = self.clock.sleep(patience);
        tokio::pin!(limit);
        while !self.jobs.is_empty() {
            tokio::select! {
                biased;
                () = now.cancelled() => break,
                () = &mut limit => break,
                Some(done) = self.jobs.join_next_with_id() => self.finish(done),
            }
            self.pulse.busy_with(self.gate.running());
        }
        self.name_abandoned();
        self.take_last_census();
        Summary { tally: self.pulse.tally(), ..self.summary }
    }

    fn name_abandoned(&mut self) {
        let in_flight: Vec<_> =
            self.running.values().filter(|(_, pass)| pass.is_some()).map(|(slot, _)| *slot).collect();
        for slot in in_flight {
            let Some(id) = self.place(slot).map(|place| place.known.client.id.clone()) else { continue };
            error!(alarm = "abandoned", client = %id, "stopped without waiting for its refresh: its answer may be lost");
            self.summary.unfinished.insert(id, "stopped while its refresh was in flight".to_owned());
            self.summary.abandoned += 1;
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Learn(known) => self.learn(*known),
            Command::Forget(id) => self.forget(&id),
        }
    }

    fn learn(&mut self, known: Known) {
        let slot = match self.index.get(&known.client.id) {
            Some(slot) => *slot,
            None => self.admit(known.clone()),
        };
        let Some(place) = self.slots[slot as usize].as_mut() else { return };
        if place.phase == Phase::Running {
            // The job may have overtaken what was read: look again when it ends.
            (place.stale, place.dismissed) = (true, false);
            return;
        }
        // Reads may arrive out of order; generations tell. What else an older one says may be news all the same.
        if known.lease.generation < place.known.lease.generation {
            self.leave_lane(slot);
            return self.look(slot);
        }
        place.known = known;
        self.reschedule(slot, Pace::Spread);
    }

    fn admit(&mut self, known: Known) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.index.insert(known.client.id.clone(), slot);
        self.slots[slot as usize] = Some(Slot::new(known));
        self.pulse.caring_for(self.index.len());
        slot
    }

    fn forget(&mut self, id: &ClientId) {
        let Some(slot) = self.index.get(id).copied() else { return };
        if let Some(place) = self.place_mut(slot).filter(|place| place.phase == Phase::Running) {
            // What is begun is finished: it may hold the only copy of its tokens.
            place.dismissed = true;
            return;
        }
        self.leave_lane(slot);
        self.slots[slot as usize] = None;
        self.free.push(slot);
        self.index.remove(id);
        self.pulse.caring_for(self.index.len());
    }

    /// What was asked for while a job was running is done when it has ended: true where the client is forgotten.
    fn dismiss(&mut self, slot: u32) -> bool {
        let Some(place) = self.place_mut(slot).filter(|place| place.dismissed) else { return false };
        let id = place.known.client.id.clone();
        self.forget(&id);
        true
    }

    /// Puts a client where it belongs by what is known of it now.
    fn reschedule(&mut self, slot: u32, pace: Pace) {
        self.leave_lane(slot);
        let (now, moment) = (self.clock.now(), self.clock.moment());
        let Some(place) = self.slots[slot as usize].as_mut() else { return };
        // Void until it is woken for anew.
        place.epoch = 0;
        place.phase = Phase::Waiting;
        let due = due(&place.known.client, &place.known.lease, &place.known.token);
        let generation = place.known.lease.generation;
        place.silent = match (due, place.silent) {
            (Due::InDoubt, Some((seen, since))) if seen == generation => Some((seen, since)),
            (Due::InDoubt, _) => Some((generation, moment)),
            _ => None,
        };
        let settled = (due == Due::Recheck).then_some(generation);
        let first_sight = settled != std::mem::replace(&mut place.settled, settled);
        let at = match due {
            _ if !self.cares_about(due) => return,
            Due::At(at) => self.pace(slot, at, now, pace),
            Due::InDoubt => now.plus(self.next_look(slot, moment, now)),
            // A holder that was late may have stored its answer meanwhile.
            Due::Recheck if first_sight => now.plus(self.refresher.timing().salvage().max(PAUSE)),
            // Many may have died together.
            Due::Recheck => now.plus(RECHECK.mul_f64(0.75 + self.entropy.unit() / 2.0)),
            Due::Never => return,
        };
        self.wake_at(slot, at.max(now));
    }

    /// A run that ends takes what was due when it began, and what is in doubt.
    fn cares_about(&self, due: Due) -> bool {
        match (self.settings.once, due) {
            (None, _) | (Some(_), Due::InDoubt) => true,
            (Some(_), Due::At(at)) => at <= self.started.0,
            (Some(_), _) => false,
        }
    }

    fn pace(&mut self, slot: u32, at: Timestamp, now: Timestamp, pace: Pace) -> Timestamp {
        let spread = self.settings.spread;
        let good = self.place(slot).is_some_and(|place| place.known.token.expires_at > now.plus(spread));
        match pace {
            _ if at > now => {
                self.place_mut(slot).into_iter().for_each(|place| place.fruitless = 0);
                at
            }
            Pace::Prompt => at,
            Pace::Again => now.plus(self.pause(slot)),
            Pace::Spread if self.settings.once.is_none() && good && (Timestamp::EPOCH < at && at < now) => {
                now.plus(spread.mul_f64(self.entropy.unit()))
            }
            Pace::Spread => at,
        }
    }

    /// No trouble, foreseen or not, becomes a tight loop.
    fn pause(&mut self, slot: u32) -> Duration {
        let unit = self.entropy.unit();
        let Some(place) = self.place_mut(slot) else { return PAUSE };
        let bound = PAUSE * (1 << place.fruitless.min(PAUSE_DOUBLINGS));
        place.fruitless = place.fruitless.saturating_add(1);
        bound.mul_f64(0.5 + unit / 2.0)
    }

    fn next_look(&self, slot: u32, moment: Moment, now: Timestamp) -> Duration {
        let Some(wait) = self.take_over_in(slot, moment, now) else { return RECHECK };
        let first_seen = self.place(slot).and_then(|place| place.silent).map_or(moment, |(_, since)| since);
        let silence = moment.since(first_seen);
        let pause = if silence.is_zero() { FIRST_LOOK } else { NEXT_LOOK.max(silence / 4) };
        let patience =
            self.settings.once.map(|once| once.max_wait.saturating_sub(moment.since(self.started.1)));
        wait.min(pause).min(patience.unwrap_or(pause)).max(Duration::from_millis(200))
    }

    /// How long until the lease in doubt may be taken over; `None` where it is not in doubt, or nobody knows how.
    fn take_over_in(&self, slot: u32, moment: Moment, now: Timestamp) -> Option<Duration> {
        let place = self.place(slot)?;
        let (_, first_seen) = place.silent?;
        let provider = self.providers.get(&place.known.client.provider)?;
        let silent = Silent {
            // At least our own: what stands there may have been edited.
            lease: Duration::from_millis(place.known.lease.lease_ms.max(0).unsigned_abs())
                .max(self.refresher.timing().lease()),
            first_seen,
            expires_at: place.known.token.expires_at,
        };
        let risk = Risk::of(provider, place.known.client.grant);
        Some(take_over_in(&silent, &risk, self.refresher.timing(), self.settings.once.is_none(), moment, now))
    }

    fn place(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn place_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    fn leave_lane(&mut self, slot: u32) {
        let Some(place) = self.place_mut(slot) else { return };
        let Some((key, expires_at)) = place.queued.take() else { return };
        place.phase = Phase::Waiting;
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.remove(expires_at, slot);
        if lane.is_empty() {
            self.lanes.remove(&key);
        }
    }

    fn lane_of(&self, known: &Known) -> Option<LaneKey> {
        let provider = self.providers.get(&known.client.provider)?;
        Some(LaneKey::of(&known.client, provider))
    }

    /// Moves what is due into its lane, then starts what the gate lets through.
    fn start_what_may(&mut self) {
        let (now, moment) = (self.clock.now(), self.clock.moment());
        self.notice_step(now, moment);
        let lag = self.collect_due(now, moment);
        self.notice_skew(moment);
        self.take_census(now, moment);
        // One that acquires nobody gets later and later: in the end its peers take its shards.
        self.pulse.turn(moment, lag.max(self.skewed_since.map_or(lag, |since| moment.since(since))));
        if self.skewed_since.is_some() {
            self.dismiss_lanes("the wall clock is too far from the store's");
            return;
        }
        if *self.permit.borrow_and_update() <= moment {
            return;
        }
        let waiting = self.lanes.iter();
        let mut waiting: Vec<_> =
            waiting.filter_map(|(key, lane)| Some((lane.urgency(now)?, key.clone()))).collect();
        waiting.sort();
        for (_, key) in waiting {
            self.start_lane(&key, moment, now);
        }
    }

    /// After a step of the wall clock every time in the heap is worked out anew: a wait that has nothing to do with
    /// wall time would end an hour late after a step of an hour back.
    fn notice_step(&mut self, now: Timestamp, moment: Moment) {
        let expected = self.turned.0.plus(moment.since(self.turned.1));
        self.turned = (now, moment);
        if now.since(expected).max(expected.since(now)) < STEP {
            return;
        }
        warn!(%expected, "the wall clock was stepped: working out every time anew");
        for Reverse(entry) in std::mem::take(&mut self.heap) {
            if self.is_valid(&entry) {
                self.reschedule(entry.slot, Pace::Prompt);
            }
        }
    }

    fn is_valid(&self, entry: &Entry) -> bool {
        self.place(entry.slot).is_some_and(|p| p.epoch == entry.epoch && p.phase == Phase::Waiting)
    }

    /// Says so when the wall clock has gone astray, and when that begins to cost refreshes.
    fn notice_skew(&mut self, moment: Moment) {
        let skew_ms = self.vitals.skew_ms(self.clock.as_ref());
        self.skewed_since = self.too_skewed().then(|| self.skewed_since.unwrap_or(moment));
        let alarming = Duration::from_millis(skew_ms.unsigned_abs()) > SKEW_ALARM;
        let state = (alarming, self.too_skewed());
        if state == std::mem::replace(&mut self.skewed, state) {
            return;
        }
        match state {
            (_, true) => error!(
                alarm = "clock_skew",
                skew_ms, "the wall clock is too far off the store's: nobody is refreshed"
            ),
            (true, _) => error!(
                alarm = "clock_skew",
                skew_ms, "the wall clock is off the store's: tokens may expire early"
            ),
            _ => warn!(skew_ms, "the wall clock agrees with the store's again"),
        }
    }

    fn too_skewed(&self) -> bool {
        Duration::from_millis(self.vitals.skew_ms(self.clock.as_ref()).unsigned_abs())
            > self.settings.max_skew
    }

    /// Returns how late the first of them is.
    fn collect_due(&mut self, now: Timestamp, moment: Moment) -> Duration {
        let mut lag = Duration::ZERO;
        while let Some(Reverse(entry)) = self.heap.peek().copied().filter(|Reverse(entry)| entry.at <= now) {
            self.heap.pop();
            if self.is_valid(&entry) {
                lag = lag.max(now.since(entry.at));
                self.make_ready(entry.slot, moment);
            }
        }
        lag
    }

    fn make_ready(&mut self, slot: u32, moment: Moment) {
        let Some(place) = self.place(slot) else { return };
        match due(&place.known.client, &place.known.lease, &place.known.token) {
            Due::At(_) => self.enter_lane(slot),
            Due::InDoubt if self.waited_out(moment) => {
                self.give_up_on(slot, "in doubt: another attempt holds its lease");
            }
            Due::InDoubt | Due::Recheck => self.look(slot),
            Due::Never => {}
        }
    }

    fn waited_out(&self, moment: Moment) -> bool {
        self.settings.once.is_some_and(|once| moment.since(self.started.1) >= once.max_wait)
    }

    fn give_up_on(&mut self, slot: u32, why: &str) {
        self.leave_lane(slot);
        if let Some(place) = self.place(slot) {
            let id = place.known.client.id.clone();
            self.summary.unfinished.insert(id, why.to_owned());
        }
    }

    /// In a run that ends, nobody waits for what will not come.
    fn dismiss_lanes(&mut self, why: &str) {
        if self.settings.once.is_some() {
            let waiting: Vec<_> = self.lanes.values().flat_map(Lane::slots).collect();
            waiting.into_iter().for_each(|slot| self.give_up_on(slot, why));
        }
    }

    fn enter_lane(&mut self, slot: u32) {
        let Some(place) = self.place(slot) else { return };
        let Some(key) = self.lane_of(&place.known) else {
            let client = place.known.client.id.clone();
            let provider = place.known.client.provider.clone();
            warn!(%client, provider, "skipped: its provider is not in this task's configuration");
            self.summary.unfinished.insert(client, format!("provider `{provider}` is not configured"));
            return;
        };
        let expires_at = place.known.token.expires_at;
        if let Some(place) = self.place_mut(slot) {
            place.phase = Phase::Ready;
            place.queued = Some((key.clone(), expires_at));
        }
        self.lanes.entry(key).or_default().insert(expires_at, slot);
    }

    fn start_lane(&mut self, key: &LaneKey, moment: Moment, now: Timestamp) {
        while self.has_room() {
            let Some(slot) = self.lanes.get(key).and_then(|lane| lane.first(now)) else { return };
            let Some(app) = self.place(slot).map(|place| place.known.client.client_id.clone()) else {
                return;
            };
            if let Some(until) = self.gate.application_opens_at(key, &app, moment) {
                // One application's dead secret must not hold up its neighbours.
                self.park(slot, now.plus(until.since(moment)), moment);
                continue;
            }
            match self.gate.admit(key, &app, moment) {
                Some(pass) => self.start(slot, pass),
                None if self.waited_out(moment) && self.gate.is_open(key) => {
                    self.give_up_on(slot, "its token endpoint keeps failing");
                }
                None => return,
            }
        }
    }

    /// Looks do not count: many clients that are only watched must not hold up the others.
    fn has_room(&self) -> bool {
        self.gate.running() < self.settings.concurrency
    }

    fn park(&mut self, slot: u32, until: Timestamp, moment: Moment) {
        self.leave_lane(slot);
        if self.waited_out(moment) {
            self.give_up_on(slot, "its application is refused by the token endpoint");
            return;
        }
        self.wake_at(slot, until);
    }

    /// Wakes for a client whose turn told nothing about it.
    fn wake_later(&mut self, slot: u32) {
        let at = self.clock.now().plus(self.pause(slot));
        self.wake_at(slot, at);
    }

    /// Wakes for a client at that time, whatever is known of it.
    fn wake_at(&mut self, slot: u32, at: Timestamp) {
        let epoch = self.epoch.checked_add(1).unwrap_or(1);
        self.epoch = epoch;
        let Some(place) = self.place_mut(slot) else { return };
        place.epoch = epoch;
        self.heap.push(Reverse(Entry { at, slot, epoch }));
        // Void entries stay until their time: reconciliations would pile them up for tokens that live for weeks.
        if self.heap.len() > 2 * self.slots.len() + 1024 {
            let slots = &self.slots;
            self.heap.retain(|Reverse(entry)| {
                slots[entry.slot as usize].as_ref().is_some_and(|place| place.epoch == entry.epoch)
            });
        }
    }

    fn has_ended(&self, commands: &mpsc::Receiver<Command>) -> bool {
        self.settings.once.is_some()
            && commands.is_closed()
            && commands.is_empty()
            && self.jobs.is_empty()
            && self.heap.is_empty()
            && self.lanes.values().all(Lane::is_empty)
    }

    fn nap(&self) -> Duration {
        let (now, moment) = (self.clock.now(), self.clock.moment());
        let next = self.heap.peek().map_or(LONGEST_SLEEP, |Reverse(entry)| entry.at.since(now));
        let waiting = self.lanes.iter().filter(|(_, lane)| !lane.is_empty()).map(|(key, _)| key);
        // Where something else stands in the way, its end wakes the loop, and the gate's times mean nothing.
        let may_start = self.has_room() && !self.too_skewed() && moment < *self.permit.borrow();
        let gate = may_start.then(|| self.gate.opens_in(waiting, moment)).flatten();
        let least = Duration::from_millis(1);
        next.min(gate.unwrap_or(LONGEST_SLEEP)).clamp(least, LONGEST_SLEEP)
    }
}
