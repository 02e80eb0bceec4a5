//! A state of the model: the table, the provider, the tasks, an operator, and what is under way between them.

use perennial::item::Change;
use perennial::plan::lease::Release;
use perennial::plan::outcome::{Attempt, Tally};
use perennial::record::{Gen, Lease};

use super::provider::{Answer, Grants};
use super::table::{Shared, Table};

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) table: Table,
    pub(crate) grants: Grants,
    /// Wall time, coarse: a token lives for less than an hour.
    pub(crate) hour: u8,
    pub(crate) tasks: Vec<Task>,
    pub(crate) desk: Desk,
    /// Writes that may arrive at the table at any time, or never.
    pub(crate) late_writes: Vec<Shared<Order>>,
    /// Requests that may arrive at the provider at any time, or never: nobody waits for their answers.
    pub(crate) late_requests: Vec<Request>,
    pub(crate) left: Budget,
    pub(crate) history: History,
}

/// What may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Leases acquired.
    pub(crate) acquires: u8,
    /// Hours that pass.
    pub(crate) hours: u8,
    /// Tasks that die.
    pub(crate) crashes: u8,
    /// Faults between a task and the table.
    pub(crate) store_faults: u8,
    /// Faults between a task and the provider.
    pub(crate) provider_faults: u8,
    /// New consents, written from outside.
    pub(crate) consents: u8,
    /// Removals, each with a registration that may follow.
    pub(crate) removals: u8,
    /// Decisions about a client that is held in doubt.
    pub(crate) decisions: u8,
}

impl Budget {
    /// What is left when the faults have ended.
    pub(crate) fn without_faults(self) -> Self {
        Self { hours: 0, crashes: 0, store_faults: 0, provider_faults: 0, consents: 0, removals: 0, ..self }
    }
}

/// A running task, and its attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    /// The table as it last looked at it; none where it has to look again.
    pub(crate) known: Option<Table>,
    /// Which generation it saw in flight, and how many ticks ago first.
    pub(crate) silent: Option<(Gen, u8)>,
    /// Ticks since its attempt was begun, on a clock that counts suspended time.
    pub(crate) age: u8,
    pub(crate) step: Step,
}

/// How far an attempt is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    #[default]
    Idle,
    /// The acquire is to be issued; or issued again, under the nonce of the one that went unanswered.
    Acquiring { seen: Table, unanswered: Option<u8> },
    /// The lease is held.
    Reading { held: Shared<Lease> },
    /// The partition was read, and said: send.
    Sending { going: Going },
    /// A request is under way; an answer, once there, waits to be read. `aged`: a tick has passed since.
    Waiting { going: Going, request: Request, answer: Option<Answer>, aged: bool },
    /// The policy orders a replay, after a pause.
    Pausing { going: Going, after: Answer },
    /// A refused grant is looked up before it is believed.
    Rechecking { going: Going },
    /// An answer is to be stored.
    Committing { held: Shared<Lease>, order: Shared<Order>, answer: Option<u8> },
    /// The lease is to be given back.
    Releasing { held: Shared<Lease>, release: Shared<Release> },
}

/// An attempt that may send.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Going {
    pub(crate) held: Shared<Lease>,
    pub(crate) attempt: Shared<Attempt>,
    /// Sends, those of them that went unanswered, and those to which nothing was heard.
    counts: [u8; 3],
}

impl Going {
    pub(crate) fn new(held: Shared<Lease>, attempt: Shared<Attempt>) -> Self {
        Self { held, attempt, counts: [0; 3] }
    }

    pub(crate) fn tally(&self) -> Tally {
        let [sends, unanswered, unheard] = self.counts.map(u32::from);
        Tally { sends, unanswered, unheard, second_secret: false }
    }

    pub(crate) fn count(&mut self, tally: &Tally) {
        let small = |count: u32| u8::try_from(count).expect("few sends");
        self.counts = [tally.sends, tally.unanswered, tally.unheard].map(small);
    }

    /// The refresh token that it sends.
    pub(crate) fn token(&self) -> u8 {
        let stored = self.attempt.token.as_ref().and_then(|token| token.refresh_token.as_ref());
        super::table::number_of(stored.expect("the plan sends no request without one"))
    }
}

impl Task {
    /// The attempt, where it may have sent something or still may.
    pub(crate) fn going(&self) -> Option<&Going> {
        match &self.step {
            Step::Sending { going }
            | Step::Waiting { going, .. }
            | Step::Pausing { going, .. }
            | Step::Rechecking { going } => Some(going),
            _ => None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.step == Step::Idle
    }
}

/// A token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Request {
    pub(crate) token: u8,
    /// Whether it was logged beforehand that this token may have been used.
    pub(crate) announced: bool,
}

/// What a write is for: the weakened interpreters of the negative controls look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Acquire,
    Commit(Gen),
    Release,
    Abandon,
    Operate(Errand),
}

/// A write on its way to the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Order {
    pub(crate) purpose: Purpose,
    pub(crate) change: Change,
}

/// What an operator is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Errand {
    /// Brings in this token of a new consent.
    Import(u8),
    Remove,
    /// Registers the client again, with this token.
    Register(u8),
    /// Orders that a held client be tried again.
    Retry,
    /// Declares a held client dead.
    Bury,
}

/// The operator's desk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Desk {
    #[default]
    Empty,
    /// The partition is to be read, and the change planned.
    Open(Errand),
    /// The change is to be applied.
    Planned(Errand, Shared<Order>),
}

/// What has happened, as far as an invariant needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct History {
    /// The highest generations that ever stood in the table.
    pub(crate) top: (Gen, Gen),
    /// Refresh tokens that were redeemed without a word that they may be used already: one bit each.
    pub(crate) redeemed: u32,
    /// The newest token of which the provider's answer was lost.
    pub(crate) lost: Option<u8>,
    /// The first token of the registration, or of the last outside write.
    pub(crate) floor: u8,
    pub(crate) removed: bool,
    /// Invariants that a step has broken: one bit each.
    pub(crate) flaws: u16,
}
