//! Liveness: walks at random, first through faults, then in peace, must come to rest where they should.
//!
//! The checker's `eventually` takes no notice of cycles, and this model is full of them. A walk that chooses evenly
//! among all that is possible is fair with probability one: whatever stays possible happens. So it is enough to give
//! it more steps than it could reasonably need.

use perennial::entropy::Entropy;
use perennial::plan::lease::{Standing, standing};
use stateright::Model as _;

use super::fleet::{Fleet, Move};
use super::laws::is_at_rest;
use super::world::{Errand, World};

/// Steps among faults.
const STORM: usize = 120;
/// Steps that a fleet in peace may take to come to rest.
const PATIENCE: usize = 4_000;

/// Where a walk has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// With a token that is not due.
    Fresh,
    /// With the provider's word that the grant is gone, or an operator's.
    Dead,
    /// Held in doubt.
    Held,
}

/// Walks through faults, then in peace.
///
/// # Errors
///
/// Says what went wrong: a broken law, or no rest.
pub(crate) fn walk(fleet: &Fleet, seed: u64) -> Result<End, String> {
    let entropy = Entropy::from_seed(seed);
    let mut world = fleet.start();
    for _ in 0..STORM {
        world = step(fleet, &world, &entropy, |_| true)?;
    }
    world.left = world.left.without_faults();
    for _ in 0..PATIENCE {
        if let Some(end) = end(fleet, &world) {
            return Ok(end);
        }
        world = step(fleet, &world, &entropy, is_peaceful)?;
    }
    Err(format!("no rest: {world:#?}"))
}

fn step(
    fleet: &Fleet,
    world: &World,
    entropy: &Entropy,
    may: impl Fn(&Move) -> bool,
) -> Result<World, String> {
    let mut moves = Vec::new();
    fleet.actions(world, &mut moves);
    moves.retain(may);
    let next =
        if moves.is_empty() { None } else { fleet.next_state(world, moves[draw(entropy, moves.len())]) };
    let next = next.unwrap_or_else(|| world.clone());
    match fleet.properties().iter().find(|law| !(law.condition)(fleet, &next)) {
        Some(law) => Err(format!("{}: {next:#?}", law.name)),
        None => Ok(next),
    }
}

/// Operators begin nothing any more, but that they register what they have removed.
fn is_peaceful(taken: &Move) -> bool {
    !matches!(taken, Move::Begun(errand) if !matches!(errand, Errand::Register(_)))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the product lies below the bound"
)]
#[expect(clippy::cast_precision_loss, reason = "few moves are possible at once")]
fn draw(entropy: &Entropy, bound: usize) -> usize {
    (entropy.unit() * bound as f64) as usize
}

fn end(fleet: &Fleet, world: &World) -> Option<End> {
    if !is_at_rest(world) {
        return None;
    }
    let lease = world.table.lease()?;
    match standing(lease, world.table.tok_gen()) {
        Standing::Dead => Some(End::Dead),
        Standing::Held => Some(End::Held),
        Standing::Free if !fleet.is_wanted(world) => Some(End::Fresh),
        _ => None,
    }
}
