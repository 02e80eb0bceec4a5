//! What an operator does: brings in a new consent, removes, registers again, decides about what is held.
//!
//! Planned by the registry from what was read, applied in a step of its own, and planned anew where somebody was
//! quicker, as the registrar does it.

use perennial::plan::lease::{Standing, standing};
use perennial::plan::registry::{self, Imported, Refusal, Resolution};

use super::fleet::{Event, Fleet, Move, NOW, SHARDS, Way};
use super::table::{self, Applied, Shared, id};
use super::world::{Desk, Errand, Order, Purpose, World};
use perennial::item::Change;

impl Fleet {
    pub(crate) fn moves_of_the_operator(&self, world: &World, moves: &mut Vec<Move>) {
        match &world.desk {
            Desk::Open(_) => moves.push(Move::Plan),
            Desk::Planned(..) => {
                moves.push(Move::Operate(Way::There));
                if world.left.store_faults > 0 {
                    moves.push(Move::Operate(Way::Twice));
                }
            }
            Desk::Empty if world.history.removed => {
                moves.push(Move::Begun(Errand::Register(0)));
            }
            Desk::Empty => {
                if world.left.consents > 0 {
                    moves.push(Move::Begun(Errand::Import(0)));
                }
                if world.left.removals > 0 {
                    moves.push(Move::Begun(Errand::Remove));
                }
                if world.left.decisions > 0 && self.is_held(world) {
                    moves.extend([Move::Begun(Errand::Retry), Move::Begun(Errand::Bury)]);
                }
            }
        }
    }

    fn is_held(&self, world: &World) -> bool {
        let lease = world.table.lease();
        lease.is_some_and(|lease| standing(lease, world.table.tok_gen()) == Standing::Held)
    }

    /// A consent is given at the provider first: the token that it leaves is what the operator brings in.
    pub(crate) fn begin_errand(&self, world: &mut World, errand: Errand) {
        let errand = match errand {
            Errand::Import(_) => {
                world.left.consents -= 1;
                Errand::Import(world.grants.consent())
            }
            Errand::Register(_) => Errand::Register(world.grants.consent()),
            Errand::Remove => {
                world.left.removals -= 1;
                Errand::Remove
            }
            Errand::Retry | Errand::Bury => {
                world.left.decisions -= 1;
                errand
            }
        };
        world.desk = Desk::Open(errand);
    }

    pub(crate) fn plan_errand(&self, world: &mut World) {
        let Desk::Open(errand) = world.desk else { panic!("there is something to plan") };
        world.desk = match self.plan_of(world, errand) {
            Ok(change) => {
                let order = Order { purpose: Purpose::Operate(errand), change };
                Desk::Planned(errand, Shared::new(order, errand))
            }
            // Somebody else has done it, or it makes no sense any more.
            Err(_) => Desk::Empty,
        };
    }

    fn plan_of(&self, world: &World, errand: Errand) -> Result<Change, Refusal> {
        let (client, read, id) = (self.client(), &world.table.read, id());
        let binding = client.binding(&self.provider);
        let tokens = |number| Imported { refresh_token: Some(table::token(number)), ..Imported::nothing() };
        match errand {
            Errand::Import(token) => registry::outside_write(&id, read, &tokens(token), &binding, None, NOW),
            Errand::Register(token) => {
                registry::register(&client, read, &tokens(token), &binding, SHARDS, NOW)
            }
            Errand::Remove => registry::remove(&id, read, SHARDS, NOW),
            Errand::Retry => registry::resolve(&id, read, Resolution::Retry, NOW),
            Errand::Bury => registry::resolve(&id, read, Resolution::Dead, NOW),
        }
    }

    pub(crate) fn carry_out_errand(&self, world: &mut World, way: Way) {
        let Desk::Planned(errand, order) = std::mem::take(&mut world.desk) else {
            panic!("there is something to apply")
        };
        world.desk = match self.submit(world, None, &order, way) {
            Some(Applied::Committed) => Desk::Empty,
            Some(Applied::Lost) => {
                self.witness(Event::Replanned);
                Desk::Open(errand)
            }
            None => Desk::Open(errand),
        };
    }
}
