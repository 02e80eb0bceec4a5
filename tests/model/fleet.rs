//! The model: which steps are possible, and what each does.

use std::hash::Hash as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perennial::client::{Client, Grant, InDoubt, Provider};
use perennial::plan::registry::{self, Imported};
use perennial::plan::schedule::wanted_at;
use perennial::plan::{Backoff, Timing};
use perennial::record::{Gen, Snapshot};
use perennial::time::{Moment, Timestamp};
use stateright::{Model, Property};

use super::control::{Control, weaken};
use super::laws::{Law, laws};
use super::provider::{Answer, Grants, Kind, profile};
use super::table::{self, Applied, Shared, id};
use super::world::{Budget, Desk, Errand, History, Order, Purpose, Request, Step, Task, World};

/// When the model begins, by the wall.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
/// When an attempt begins, on its task's steady clock.
pub(crate) const BEGUN: Moment = Moment::from_origin(Duration::from_secs(1000));
/// The lease's length in ticks: beyond it an attempt's age makes no difference.
pub(crate) const LEASE: u8 = 3;
/// Longer than any wait: L x 1.01 + H + X.
const LONGEST_WAIT: u8 = 6;
pub(crate) const SHARDS: u32 = 1;

/// The wall clock at an hour.
pub(crate) fn at(hour: u8) -> Timestamp {
    NOW.plus(Duration::from_secs(3600) * u32::from(hour))
}

/// One tick is a second of the protocol's durations.
pub(crate) fn ticks(ticks: u8) -> Duration {
    Duration::from_secs(u64::from(ticks))
}

/// A configuration of the model.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    pub(crate) kind: Kind,
    pub(crate) provider: Provider,
    pub(crate) timing: Timing,
    pub(crate) backoff: Backoff,
    pub(crate) control: Option<Control>,
    tasks: usize,
    budget: Budget,
    /// How often each event was seen, over all states.
    witnessed: Arc<[AtomicU64; Event::COUNT]>,
}

/// What must happen in some run, or the model would be vacuous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A lease in doubt was acquired.
    TakeOver,
    /// A holder stored its answer after its lease had been taken over.
    Salvage,
    /// A holder sent the same request again.
    Replay,
    /// A new attempt sent a token that was in doubt.
    SendInDoubt,
    /// An attempt found after its acquire that its lease was gone.
    FencedOut,
    /// The send window was missed.
    WindowMissed,
    /// A commit found something newer.
    Superseded,
    /// A commit found its own earlier write.
    OwnCommit,
    /// An acquire whose answer was lost found its own write.
    OwnAcquire,
    /// A late write came, and its condition held.
    LateWriteLanded,
    /// A late write came, and its condition did not hold.
    LateWriteRefused,
    /// A grant was declared dead.
    Buried,
    /// A refused grant was found to have been replaced meanwhile.
    SiblingWon,
    /// `D` or `Q` was voided by newer tokens.
    Voided,
    /// A client was held in doubt.
    Held,
    /// An operator ended a hold.
    Resolved,
    /// A new consent was stored over an attempt in flight.
    Consented,
    /// A client was registered again.
    Reregistered,
    /// A commit found its client removed.
    Homeless,
    /// An operator's change was planned anew.
    Replanned,
    /// A release whose lease had gone.
    ReleaseRefused,
}

impl Event {
    const COUNT: usize = Self::ReleaseRefused as usize + 1;
}

/// How a write fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// It arrives, and so does the answer.
    There,
    /// It does not arrive.
    Nowhere,
    /// It arrives, and the answer does not.
    Silently,
    /// It will arrive, at some time or never; nobody hears of it.
    Late,
    /// It arrives, with an answer, and once more at some time.
    Twice,
}

/// How a request fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    /// It is processed, and the answer arrives.
    Answered,
    /// It is processed, and the answer is lost.
    ReplyLost,
    /// It never arrives, and nobody knows.
    RequestLost,
    /// It may be processed later; nobody waits for the answer.
    Late,
    /// The server fails before it processes anything.
    Fault,
    /// The connection is refused.
    NotSent,
}

/// A step. Numbers are those of tasks, and of places in the lists of what is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Move {
    Tick,
    Hour,
    Look(usize),
    Begin(usize),
    Acquire(usize, Way),
    /// An unanswered acquire is given back.
    Abandon(usize, Way),
    Read(usize),
    /// The table does not answer within the window.
    ReadInVain(usize),
    Send(usize),
    Deliver(usize, Fate),
    Receive(usize),
    SendAgain(usize),
    Recheck(usize),
    /// The table does not answer the second look.
    RecheckInVain(usize),
    Commit(usize, Way),
    Release(usize, Way),
    /// A lease that could not be given back while it lasted.
    LetGo(usize),
    /// `true`: a request that it had sent is still on its way.
    Crash(usize, bool),
    LateWrite(usize),
    LateRequest(usize),
    DropLateWrite(usize),
    DropLateRequest(usize),
    /// An operator begins.
    Begun(Errand),
    Plan,
    Operate(Way),
}

impl Fleet {
    pub(crate) fn new(kind: Kind, in_doubt: InDoubt, tasks: usize, budget: Budget) -> Self {
        let timing = Timing::try_new(ticks(LEASE), ticks(1), ticks(1), Duration::from_millis(500), ticks(1));
        Self {
            kind,
            provider: profile(kind, in_doubt),
            timing: timing.expect("an attempt fits in its lease"),
            backoff: Backoff::default(),
            control: None,
            tasks,
            budget,
            witnessed: Arc::new(std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }

    pub(crate) fn without(self, part: Control) -> Self {
        Self { control: Some(part), ..self }
    }

    pub(crate) fn lacks(&self, part: Control) -> bool {
        self.control == Some(part)
    }

    pub(crate) fn witness(&self, event: Event) {
        self.witnessed[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn saw(&self, event: Event) -> bool {
        self.witnessed[event as usize].load(Ordering::Relaxed) > 0
    }

    /// The registration, as an operator writes it.
    pub(crate) fn client(&self) -> Client {
        Client {
            id: id(),
            provider: self.provider.name.clone(),
            grant: Grant::RefreshToken,
            client_id: "app".into(),
            credentials: perennial::client::credentials::Credentials::default(),
            scopes: Vec::new(),
            audience: None,
            resource: Vec::new(),
            params: std::collections::BTreeMap::new(),
            token_url: None,
            paused: false,
            refresh_now: None,
            joined: NOW,
        }
    }

    /// Registered, and due at once.
    pub(crate) fn start(&self) -> World {
        let nothing =
            Snapshot { registration: perennial::record::Registration::Absent, lease: None, token: None };
        let (client, mut table) = (self.client(), table::empty());
        let tokens = Imported { refresh_token: Some(table::token(0)), ..Imported::nothing() };
        let binding = client.binding(&self.provider);
        let change =
            registry::register(&client, &nothing, &tokens, &binding, SHARDS, NOW).expect("it is new");
        let Applied::Committed = table::apply(&mut table, &change) else { panic!("nothing stands there") };
        World {
            table,
            grants: Grants::first(),
            hour: 0,
            tasks: vec![Task::default(); self.tasks],
            desk: Desk::Empty,
            late_writes: Vec::new(),
            late_requests: Vec::new(),
            left: self.budget,
            history: History {
                top: (Gen::FIRST, Gen::FIRST),
                redeemed: 0,
                lost: None,
                floor: 0,
                removed: false,
                flaws: 0,
            },
        }
    }

    /// Sends an order to the table. `None`: nothing is heard of it.
    pub(crate) fn submit(
        &self,
        world: &mut World,
        task: Option<usize>,
        order: &Shared<Order>,
        way: Way,
    ) -> Option<Applied> {
        if way != Way::There {
            world.left.store_faults -= 1;
        }
        if matches!(way, Way::Late | Way::Twice) {
            world.late_writes.push(order.clone());
            world.late_writes.sort();
        }
        match way {
            Way::There | Way::Twice => Some(self.carry_out(world, task, order)),
            Way::Silently => {
                self.carry_out(world, task, order);
                None
            }
            Way::Nowhere | Way::Late => None,
        }
    }

    /// The table carries an order out, and the laws of the table are looked at.
    pub(crate) fn carry_out(&self, world: &mut World, task: Option<usize>, order: &Order) -> Applied {
        let before = world.table.clone();
        let applied = match self.control {
            Some(control) => table::apply(&mut world.table, &weaken(control, task, order)),
            None => table::apply(&mut world.table, &order.change),
        };
        if let Applied::Committed = applied {
            self.look_at_growth(world, order.purpose);
            self.note_errand(world, order.purpose);
            self.note_voided(&before, world);
        }
        applied
    }

    fn look_at_growth(&self, world: &mut World, purpose: Purpose) {
        let (top, top_token) = world.history.top;
        let generation = world.table.lease().map_or(top, |lease| lease.generation);
        let tok_gen = world.table.read.token.as_ref().map_or(top_token, |token| token.generation);
        if generation < top || tok_gen < top_token {
            world.history.broke(Law::Growth);
        }
        if purpose == Purpose::Acquire && generation <= top {
            world.history.broke(Law::Acquire);
        }
        if purpose == Purpose::Acquire {
            world.left.acquires = world.left.acquires.saturating_sub(1);
        }
        world.history.top = (generation.max(top), tok_gen.max(top_token));
    }

    fn note_errand(&self, world: &mut World, purpose: Purpose) {
        let Purpose::Operate(errand) = purpose else { return };
        match errand {
            Errand::Import(token) => {
                world.history.floor = token;
                world.history.lost = None;
                if world.tasks.iter().any(|task| !task.is_idle()) {
                    self.witness(Event::Consented);
                }
            }
            Errand::Register(token) => {
                world.history.floor = token;
                world.history.lost = None;
                world.history.removed = false;
                self.witness(Event::Reregistered);
            }
            Errand::Remove => world.history.removed = true,
            Errand::Retry | Errand::Bury => self.witness(Event::Resolved),
        }
    }

    fn note_voided(&self, before: &table::Table, world: &World) {
        use perennial::plan::lease::{Standing, standing};
        let of = |table: &table::Table| table.lease().map(|lease| standing(lease, table.tok_gen()));
        let state = |table: &table::Table| table.lease().map(|lease| lease.state.clone());
        let was_final = matches!(of(before), Some(Standing::Dead | Standing::Held));
        if was_final && of(&world.table) == Some(Standing::Free) && state(before) == state(&world.table) {
            self.witness(Event::Voided);
        }
    }

    /// The provider is shown a refresh token.
    pub(crate) fn redeem(&self, world: &mut World, request: Request) -> Answer {
        let (bit, history) = (1_u32 << request.token, &mut world.history);
        // What an older consent had granted is refused without being redeemed, however often.
        let known = request.token >= world.grants.family;
        if self.kind != Kind::Fixed && !request.announced && known {
            if history.redeemed & bit != 0 {
                history.broke(Law::Announced);
            }
            history.redeemed |= bit;
        }
        world.grants.redeem(self.kind, request.token)
    }

    /// An answer that nobody will read.
    pub(crate) fn lose(&self, world: &mut World, answer: Option<Answer>) {
        if let Some(Answer::Granted(Some(token))) = answer
            && token >= world.grants.family
        {
            world.history.lost = world.history.lost.max(Some(token));
        }
    }

    fn tick(&self, world: &mut World) {
        for task in &mut world.tasks {
            if !task.is_idle() {
                task.age = LEASE.min(task.age + 1);
            }
            if let Step::Waiting { aged, answer: None, .. } = &mut task.step {
                *aged = true;
            }
            if let Some((_, ticks)) = &mut task.silent
                && !self.lacks(Control::EndlessWait)
            {
                *ticks = LONGEST_WAIT.min(*ticks + 1);
            }
        }
    }

    /// The stored token asks to be refreshed.
    pub(crate) fn is_wanted(&self, world: &World) -> bool {
        let read = &world.table.read;
        let (Some(client), Some(token)) = (read.client(), &read.token) else { return false };
        wanted_at(client, token) <= at(world.hour)
    }

    fn moves_of_the_world(&self, world: &World, moves: &mut Vec<Move>) {
        // An exchange takes one tick at most: then it was answered, or it was not.
        let overdue = |task: &Task| matches!(task.step, Step::Waiting { answer: None, aged: true, .. });
        if !world.tasks.iter().any(overdue) {
            moves.push(Move::Tick);
        }
        if world.left.hours > 0 && !self.is_wanted(world) && !world.history.removed {
            moves.push(Move::Hour);
        }
        for place in 0..world.late_writes.len() {
            moves.extend([Move::LateWrite(place), Move::DropLateWrite(place)]);
        }
        for place in 0..world.late_requests.len() {
            moves.extend([Move::LateRequest(place), Move::DropLateRequest(place)]);
        }
    }

    fn late_write(&self, world: &mut World, place: usize) {
        let order = world.late_writes.remove(place);
        match self.carry_out(world, None, &order) {
            Applied::Committed => self.witness(Event::LateWriteLanded),
            Applied::Lost => self.witness(Event::LateWriteRefused),
        }
    }
}

impl Model for Fleet {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![self.start()]
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        // What follows a broken law says nothing, unless it is another law that is to be seen broken.
        if world.history.flaws != 0 && self.control.is_none() {
            return;
        }
        self.moves_of_the_world(world, moves);
        self.moves_of_the_operator(world, moves);
        for number in 0..world.tasks.len() {
            self.moves_of_a_task(world, number, moves);
        }
    }

    fn next_state(&self, before: &World, step: Move) -> Option<World> {
        let mut world = before.clone();
        match step {
            Move::Tick => self.tick(&mut world),
            Move::Hour => {
                world.hour += 1;
                world.grants.grace = None;
                world.left.hours -= 1;
            }
            Move::LateWrite(place) => self.late_write(&mut world, place),
            Move::LateRequest(place) => {
                let request = world.late_requests.remove(place);
                let answer = self.redeem(&mut world, request);
                self.lose(&mut world, Some(answer));
            }
            Move::DropLateWrite(place) => drop(world.late_writes.remove(place)),
            Move::DropLateRequest(place) => drop(world.late_requests.remove(place)),
            Move::Begun(errand) => self.begin_errand(&mut world, errand),
            Move::Plan => self.plan_errand(&mut world),
            Move::Operate(way) => self.carry_out_errand(&mut world, way),
            of_a_task => self.step(&mut world, of_a_task),
        }
        if self.control.is_none() {
            // No item says which task is which: one order of them stands for all.
            world.tasks.sort_by_cached_key(|task| table::fingerprint(|hasher| task.hash(hasher)));
        }
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws()
    }
}
