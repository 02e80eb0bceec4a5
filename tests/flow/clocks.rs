//! Wall clocks that are years off, or jump every few seconds: freshness may suffer, safety may not.
//!
//! A store without a `Date` is the worst case: no task notices, and nobody stops acquiring.

use std::sync::Arc;
use std::time::Duration;

use perennial::client::{ClientId, Grant, Provider};
use perennial::entropy::Entropy;
use perennial::item::{Change, Condition};
use perennial::plan::in_doubt::{Risk, Silent, take_over_in};
use perennial::plan::lease::{self, Commit, Doubt, Intent, Release};
use perennial::plan::registry::{self, Imported, Resolution};
use perennial::record::{Gen, Lease, State};
use perennial::reply::{Lifetime, Tokens};
use perennial::secret::Secret;
use perennial::store::memory::{Fault, Operation};
use perennial::time::{Clock, Moment, Sleep, Timestamp};
use proptest::prelude::*;

use super::endpoint::Act;
use super::world::{Daemon, START, SimClock, World, id, lost, profile, secs, timing};

const YEAR_MS: i64 = 365 * 24 * 3_600_000;

/// The steady clock of the world, and a wall clock that is nobody's.
struct Wrong {
    steady: Arc<SimClock>,
    wall: Wall,
}

enum Wall {
    Off(i64),
    /// Somewhere else every few seconds, by this seed.
    Jumping(u64),
}

impl Wrong {
    fn off(world: &World, years: i64) -> Arc<dyn Clock> {
        Arc::new(Self { steady: Arc::clone(&world.clock), wall: Wall::Off(years * YEAR_MS) })
    }

    fn jumping(world: &World, seed: u64) -> Arc<dyn Clock> {
        Arc::new(Self { steady: Arc::clone(&world.clock), wall: Wall::Jumping(seed) })
    }
}

impl Clock for Wrong {
    #[expect(clippy::cast_possible_truncation, reason = "a few years in milliseconds")]
    fn now(&self) -> Timestamp {
        let off = match &self.wall {
            Wall::Off(millis) => *millis,
            Wall::Jumping(seed) => {
                let unit = Entropy::from_seed(seed + self.steady.elapsed().as_secs() / 7).unit();
                ((unit - 0.5) * 20.0 * YEAR_MS as f64) as i64
            }
        };
        Timestamp::from_millis(self.steady.now().as_millis() + off)
    }

    fn moment(&self) -> Moment {
        self.steady.moment()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.steady.sleep(duration)
    }
}

/// Takes every answer from some of the store's operations, before or after it was carried out.
fn shaky(world: &World, seed: u64) {
    let entropy = Entropy::from_seed(seed);
    world.faults(move |operation| match (operation, entropy.unit()) {
        (Operation::Apply(_) | Operation::Read(_), unit) if unit < 0.05 => Fault::Before(lost()),
        (Operation::Apply(_), unit) if unit < 0.10 => Fault::After(lost()),
        _ => Fault::None,
    });
}

async fn ask_for_all(world: &World, ids: &[ClientId], fleet: &[Daemon]) {
    world.no_faults();
    for id in ids {
        let read = world.snapshot(id);
        let ask = registry::refresh_now(read.client().unwrap(), read.tok_gen(), world.clock.wall());
        world.apply(&ask).await;
    }
    for daemon in fleet {
        daemon.reconcile.send(()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn with_absurd_wall_clocks_no_token_is_redeemed_twice_and_none_is_lost() {
    for seed in 1..=3 {
        let world = World::new();
        let mut ids = Vec::new();
        for n in 0..20 {
            let life = secs(600 + 60 * n);
            ids.push(world.add(world.spec(&format!("c{n}")).expires_in(life).refresh_in(life / 2)).await);
        }
        let entropy = Entropy::from_seed(seed);
        world.endpoint.script(move |_| Act::Late(secs(15).mul_f64(entropy.unit())));
        let clocks = [
            Wrong::off(&world, 10),
            Wrong::off(&world, -10),
            Wrong::jumping(&world, seed),
            Arc::clone(&world.clock) as Arc<dyn Clock>,
        ];
        let mut fleet = Vec::new();
        for clock in clocks {
            fleet.push(world.daemon_on(clock, Arc::clone(world.store.vitals())).await);
        }
        let mut highest = vec![(Gen::NONE, Gen::NONE); ids.len()];
        for round in 0..720 {
            // Asked for by operators, since a clock of ten years ago finds every token fresh.
            if round % 60 == 0 {
                ask_for_all(&world, &ids, &fleet).await;
                shaky(&world, seed * 1000 + round);
            }
            world.sleep(secs(10)).await;
            for (id, (gen_before, tok_before)) in ids.iter().zip(&mut highest) {
                let (generation, stored) = (world.lease(id).generation, world.token(id).generation);
                assert!(
                    generation >= *gen_before && stored >= *tok_before && stored <= generation,
                    "seed {seed}: {id}"
                );
                (*gen_before, *tok_before) = (generation, stored);
            }
        }
        world.no_faults();
        for daemon in fleet {
            daemon.stop().await;
        }
        assert_eq!((world.endpoint.double_redemptions(), world.endpoint.overlaps()), (0, 0), "seed {seed}");
        assert!(world.endpoint.grants().len() > 100, "seed {seed}: {} grants", world.endpoint.grants().len());
        ids.iter().for_each(|id| world.assert_whole(id));
    }
}

#[tokio::test(start_paused = true)]
async fn no_wall_clock_lets_a_taker_in_before_the_holder_must_have_given_up() {
    for turn in 0..8 {
        let world = World::new();
        let c = world.due("c").await;
        // It stores its answer at the last moment.
        world.endpoint.script(|call| if call.nth == 0 { Act::Late(secs(165)) } else { Act::Honest });
        let holder = world.begin(&c);
        world.sleep(secs(1)).await;
        let clock = match turn {
            0 => Wrong::off(&world, 10),
            1 => Wrong::off(&world, -10),
            seed => Wrong::jumping(&world, seed),
        };
        let daemon = world.daemon_on(clock, Arc::clone(world.store.vitals())).await;
        world.sleep(secs(166)).await;
        // After that commit a clock that jumps may well find the new token due.
        let early = world.endpoint.calls().iter().skip(1).filter(|call| call.at < secs(165)).count();
        assert_eq!(early, 0, "turn {turn}");
        assert_eq!(holder.await.unwrap().outcome, perennial::refresh::Outcome::Refreshed, "turn {turn}");
        assert_eq!(world.endpoint.double_redemptions(), 0);
        daemon.stop().await;
        world.assert_whole(&c);
    }
}

fn conditions(change: &Change) -> Vec<Condition> {
    change.0.iter().map(|write| write.condition.clone()).collect()
}

fn seen() -> impl Strategy<Value = Lease> {
    let state = prop_oneof![
        Just(State::Idle),
        Just(State::InFlight),
        Just(State::Held),
        Just(State::Dead),
        Just(State::Removed)
    ];
    (0..9_i64, state, proptest::option::of(0..9_i64)).prop_map(|(generation, state, of)| Lease {
        state,
        of: of.map(Gen),
        next_at: Some(START),
        ..Lease::idle(Gen(generation))
    })
}

fn instant() -> impl Strategy<Value = Timestamp> {
    prop_oneof![any::<i64>(), (0..4_000_000_000_000_i64)].prop_map(Timestamp::from_millis)
}

fn granted(now: Timestamp) -> Commit {
    Commit {
        generation: Gen(5),
        tokens: Tokens {
            access_token: Secret::new("a"),
            refresh_token: Some(Secret::new("r")),
            token_type: None,
            scope: None,
            lifetime: Lifetime::Missing,
        },
        expires_at: now,
        refresh_at: now,
        now,
        binding: perennial::client::Binding("b".into()),
        grant: Grant::RefreshToken,
        item_exists: true,
    }
}

/// Every change that a refresh or an operator may write, by a clock that says `now`; what stands there is the same.
fn all_changes(world: &World, seen: &Lease, tok_gen: Gen, now: Timestamp) -> Vec<Option<Change>> {
    let (c, provider) = (id("c"), profile("acme"));
    let intent = Intent { owner: "me#1".into(), lease: secs(90), now };
    let commit = granted(now);
    let absent = Commit { item_exists: false, grant: Grant::ClientCredentials, ..granted(now) };
    let failed = Release::Failed { code: "x".into(), next_at: now, doubt: Doubt::About(tok_gen, 1) };
    let read = world.snapshot(&c);
    let client = read.client().unwrap().clone();
    let binding = client.binding(&provider);
    let held = Lease { state: State::Held, of: Some(read.tok_gen()), ..seen.clone() };
    let held = perennial::record::Snapshot { lease: Some(held), ..read.clone() };
    let tokens = Imported { expires_at: now, ..Imported::nothing() };
    vec![
        lease::acquire(&c, seen, tok_gen, &intent).map(|(change, _)| change),
        Some(lease::commit(&c, &commit)),
        Some(lease::commit(&c, &absent)),
        Some(lease::release(&c, seen.generation, &failed)),
        Some(registry::pause(&client, true, now)),
        Some(registry::refresh_now(&client, tok_gen, now)),
        registry::outside_write(&c, &read, &tokens, &binding, None, now).ok(),
        registry::remove(&c, &read, 4, now).ok(),
        registry::resolve(&c, &held, Resolution::Retry, now).ok(),
    ]
}

proptest! {
    #[test]
    fn no_condition_in_the_table_depends_on_what_a_clock_says(
        lease in seen(),
        tok_gen in -1..9_i64,
        one in instant(),
        other in instant(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            world.due("c").await;
            let of = |now| all_changes(&world, &lease, Gen(tok_gen), now);
            for (one, other) in of(one).iter().zip(&of(other)) {
                prop_assert_eq!(one.as_ref().map(conditions), other.as_ref().map(conditions));
            }
            Ok(())
        })?;
    }

    #[test]
    fn no_wall_time_shortens_the_wait_for_a_take_over(
        now in instant(),
        expires_at in instant(),
        waited in 0..400_u64,
        patient: bool,
        rotates: bool,
    ) {
        let first_seen = Moment::from_origin(secs(1000));
        let silent = Silent { lease: secs(90), first_seen, expires_at };
        let provider = Provider { rotates, ..profile("acme") };
        let risk = Risk::of(&provider, Grant::RefreshToken);
        let wait = take_over_in(&silent, &risk, &timing(), patient, first_seen.plus(secs(waited)), now);
        let must = secs(if rotates { 60 } else { 0 }) + secs(20) + secs(90).mul_f64(1.01);
        prop_assert!(wait + secs(waited) >= must, "{wait:?} after {waited} s");
    }
}
