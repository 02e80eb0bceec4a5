//! The negative controls: what the protocol would be without one of its parts.
//!
//! Each weakens the interpreter of changes, or the driver of the tasks. The planner is never touched: it is what is
//! checked.

use perennial::item::{Action, Assignment, Change, Condition, Key, Value, attr};
use perennial::record::{Gen, Snapshot};

use super::fleet::{NOW, at};
use super::table::id;
use super::world::{Errand, Order, Purpose};

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// A commit is stored over whatever stands there.
    NoFence,
    /// An acquire does not look at what it replaces.
    BlindAcquire,
    /// A commit is fenced on the ownership of the lease, and not on the age of what is stored.
    OwnershipFence,
    /// A commit may create the item.
    CreatingCommit,
    /// A lease in flight is taken over at sight.
    NoWait,
    /// Whatever is read after the acquire is sent.
    NoCheckAfterRead,
    /// `tok_gen` is not looked at after the acquire, the lease's generation is.
    NoTokenCheckAfterRead,
    /// A client that is registered again begins at generation 0.
    RestartedGenerations,
    /// A release does not write down that the token may be spent.
    ForgottenDoubt,
    /// A lease lasts until a wall clock says that it is over.
    Clock,
    /// The send window is not looked at: as if suspended between the look and the system call.
    LateSend,
    /// A take-over's wait never ends.
    EndlessWait,
}

/// How far the second task's wall clock is ahead, where the clock takes part.
const SKEW: i64 = 3_600_000;

/// The order as the weakened interpreter understands it.
pub(crate) fn weaken(control: Control, task: Option<usize>, order: &Order) -> Change {
    let change = order.change.clone();
    match (control, order.purpose) {
        (Control::NoFence, Purpose::Commit(_)) => on_condition(change, Condition::Exists),
        (Control::BlindAcquire, Purpose::Acquire) => on_condition(change, Condition::Exists),
        (Control::OwnershipFence, Purpose::Commit(generation)) => owned(change, generation),
        (Control::CreatingCommit, Purpose::Commit(generation)) => {
            let older = vec![Condition::Lacks(attr::TOK_GEN), Condition::Below(attr::TOK_GEN, generation.0)];
            on_condition(change, Condition::Any(older))
        }
        (Control::RestartedGenerations, Purpose::Operate(Errand::Register(_))) => restarted(change),
        (Control::ForgottenDoubt, Purpose::Release) => forgetful(change),
        (Control::Clock, Purpose::Acquire) => timed(change, task),
        _ => change,
    }
}

fn on_condition(mut change: Change, condition: Condition) -> Change {
    change.0.iter_mut().for_each(|write| write.condition = condition.clone());
    change
}

/// `gen = :g AND st = F` on the lease, and no look at the tokens.
fn owned(change: Change, generation: Gen) -> Change {
    let mine = Condition::All(vec![
        Condition::Equals(attr::GEN, Value::N(generation.0)),
        Condition::Equals(attr::ST, Value::S("F".into())),
    ]);
    let [write] = change.0.try_into().expect("a commit over an item is one write");
    Change::one(Key::Lease(id()), mine, Action::Check).and(write.key, Condition::Exists, write.action)
}

fn restarted(mut change: Change) -> Change {
    for write in &mut change.0 {
        match &mut write.action {
            Action::Put(item) if item.get(attr::GEN).is_some() => {
                *item = std::mem::take(item).with(attr::GEN, Value::N(0));
            }
            Action::Update(assignments) => {
                for assignment in assignments {
                    if let Assignment::Set(attr::TOK_GEN, value) = assignment {
                        *value = Value::N(0);
                    }
                }
            }
            _ => {}
        }
    }
    change
}

fn forgetful(mut change: Change) -> Change {
    let of_doubt =
        |assignment: &Assignment| matches!(assignment, Assignment::Set(attr::DBT | attr::DBT_SENDS, _));
    for write in &mut change.0 {
        if let Action::Update(assignments) = &mut write.action {
            assignments.retain(|assignment| !of_doubt(assignment));
        }
    }
    change
}

/// The lease is free, or has run out by this task's clock.
fn timed(mut change: Change, task: Option<usize>) -> Change {
    let lease_ms = 3_000;
    let over = Condition::Below(attr::INT_AT, NOW.as_millis() + skew(task.unwrap_or(0)) - lease_ms);
    for write in &mut change.0 {
        let free = Condition::Equals(attr::ST, Value::S("I".into()));
        let available = Condition::Any(vec![free, over.clone()]);
        let before = std::mem::replace(&mut write.condition, Condition::Exists);
        write.condition = Condition::All(vec![before, available]);
        if let Action::Update(assignments) = &mut write.action {
            for assignment in assignments {
                if let Assignment::Set(attr::INT_AT, value) = assignment {
                    *value = Value::N(NOW.as_millis() + skew(task.unwrap_or(0)));
                }
            }
        }
    }
    change
}

fn skew(task: usize) -> i64 {
    if task == 1 { SKEW } else { 0 }
}

/// What a task believes to have read.
pub(crate) fn misread(control: Option<Control>, held: Gen, mut read: Snapshot) -> Snapshot {
    let before = Gen(held.0 - 1);
    if control == Some(Control::NoCheckAfterRead)
        && let Some(lease) = &mut read.lease
    {
        lease.generation = held;
    }
    if matches!(control, Some(Control::NoCheckAfterRead | Control::NoTokenCheckAfterRead))
        && let Some(token) = read.token.as_mut().filter(|token| token.generation >= held)
    {
        token.generation = before;
        token.refresh_at = Some(at(0));
    }
    read
}
