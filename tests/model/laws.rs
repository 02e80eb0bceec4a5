//! What must hold, in every state of every run.

use perennial::client::InDoubt;
use perennial::plan::lease::{Standing, standing};
use stateright::Property;

use super::fleet::Fleet;
use super::provider::Kind;
use super::world::{Desk, History, World};

/// Invariants about steps: a step that breaks one leaves a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Law {
    Acquire,
    Growth,
    Announced,
    Alone,
    Answer,
    Memory,
}

pub(crate) const ACQUIRE: &str = "at most one acquire for each generation";
pub(crate) const GROWTH: &str = "generations only grow, across removal too";
pub(crate) const ORDER: &str = "no tokens are newer than the lease";
pub(crate) const ANNOUNCED: &str = "a refresh token is redeemed again by an announced replay only";
pub(crate) const ALONE: &str = "nobody sends what somebody else's lease still covers";
pub(crate) const ANSWER: &str = "an answer that was received is stored or superseded";
pub(crate) const REST: &str = "at rest the stored token is the live one, or its loss is explained";
pub(crate) const VERDICT: &str = "no verdict is in force against a live token";
pub(crate) const REMOVED: &str = "a removed client stays removed";
pub(crate) const CROSSING: &str = "no token crosses a registration or an outside write";
pub(crate) const MEMORY: &str = "what a task remembers of its own write is what stands there";

impl History {
    pub(crate) fn broke(&mut self, law: Law) {
        self.flaws |= 1 << law as u16;
    }

    fn kept(&self, law: Law) -> bool {
        self.flaws & (1 << law as u16) == 0
    }
}

/// All of them.
pub(crate) fn laws() -> Vec<Property<Fleet>> {
    vec![
        Property::always(ACQUIRE, |_, world: &World| world.history.kept(Law::Acquire)),
        Property::always(GROWTH, |_, world: &World| world.history.kept(Law::Growth)),
        Property::always(ORDER, |_, world: &World| {
            world.table.lease().is_none_or(|lease| world.table.tok_gen() <= lease.generation)
        }),
        Property::always(ANNOUNCED, |_, world: &World| world.history.kept(Law::Announced)),
        Property::always(ALONE, |_, world: &World| world.history.kept(Law::Alone)),
        Property::always(ANSWER, |_, world: &World| world.history.kept(Law::Answer)),
        Property::always(REST, |fleet, world| !is_at_rest(world) || is_live_or_explained(fleet, world)),
        Property::always(VERDICT, is_fair),
        Property::always(REMOVED, |_, world: &World| !world.history.removed || world.table.is_tombstone()),
        Property::always(CROSSING, |_, world: &World| {
            world.table.refresh_token().is_none_or(|token| token >= world.history.floor)
        }),
        Property::always(MEMORY, |_, world: &World| world.history.kept(Law::Memory)),
    ]
}

/// Nobody is at anything, and nothing is under way.
pub(crate) fn is_at_rest(world: &World) -> bool {
    world.tasks.iter().all(super::world::Task::is_idle)
        && world.desk == Desk::Empty
        && world.late_writes.is_empty()
        && world.late_requests.is_empty()
}

/// Explained: the answer that replaced it was lost, by a crash or on the way; or the provider has revoked the grant.
/// That in turn is explained, since [`ANNOUNCED`] holds: a replay that the policy orders came too late.
fn is_live_or_explained(fleet: &Fleet, world: &World) -> bool {
    let Some(stored) = world.table.refresh_token() else { return true };
    fleet.kind == Kind::Fixed
        || world.grants.is_live(stored)
        || world.grants.revoked
        || world.history.lost.is_some_and(|lost| lost > stored)
}

/// `D` is the provider's word, and speaks of a dead token. `Q` is a doubt: about a token of which nobody knows. It is
/// in force only where the policy holds back, or where enough sends went unanswered.
fn is_fair(fleet: &Fleet, world: &World) -> bool {
    let Some(lease) = world.table.lease() else { return true };
    let tok_gen = world.table.tok_gen();
    match standing(lease, tok_gen) {
        // An operator's word, which ends no doubt.
        Standing::Dead if lease.doubt_about(tok_gen).is_some() => true,
        Standing::Dead => world.table.refresh_token().is_none_or(|token| !world.grants.is_live(token)),
        Standing::Held => {
            let sends = lease.doubt_about(tok_gen);
            sends.is_some_and(|sends| fleet.provider.in_doubt == InDoubt::Hold || sends >= 3)
        }
        _ => true,
    }
}
