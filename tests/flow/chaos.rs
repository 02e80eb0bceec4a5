//! Several processes over one table, faults and kills at random: what holds whatever happens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial::client::ClientId;
use perennial::entropy::Entropy;
use perennial::item::{Change, Key, Value, attr};
use perennial::record::{Gen, State};
use perennial::store::memory::{Fault, Operation};
use perennial::store::{MemoryStore, StoreError};

use super::endpoint::{Act, server_error, throttled, timeout};
use super::world::{World, id, secs};

const CLIENTS: usize = 12;

/// What happens in a run.
#[derive(Clone, Copy)]
struct Weather {
    /// Share of the store's operations whose answers are lost, carried out or not.
    lost: f64,
    /// Share of the provider's requests that it does not process.
    refused: f64,
    /// Share of the provider's requests that it processes without being heard.
    unheard: f64,
    /// How often a process is killed and another started.
    kills: Option<Duration>,
}

/// Watches every write: generations only grow, and the tokens' never beyond the lease's. It keeps what it objects to,
/// since a panic would be one of a refresh.
#[derive(Default)]
struct Referee {
    generations: BTreeMap<ClientId, (i64, i64)>,
    objections: Vec<String>,
}

impl Referee {
    fn see(&mut self, store: &MemoryStore, change: &Change) {
        for write in &change.0 {
            let (Key::Lease(id) | Key::Token(id)) = &write.key else { continue };
            let number = |key: Key, name| match store.raw(&key.pk(), key.sk())?.get(name) {
                Some(Value::N(number)) => Some(*number),
                _ => None,
            };
            let generation = number(Key::Lease(id.clone()), attr::GEN).unwrap();
            let tok_gen = number(Key::Token(id.clone()), attr::TOK_GEN).unwrap();
            let before = self.generations.insert(id.clone(), (generation, tok_gen)).unwrap_or_default();
            if tok_gen > generation || before.0 > generation || before.1 > tok_gen {
                self.objections.push(format!("{id}: {before:?} to {:?}", (generation, tok_gen)));
            }
        }
    }
}

fn bring_down(world: &World, weather: Weather, seed: u64) -> Arc<Mutex<Referee>> {
    let dice = Arc::new(Entropy::from_seed(seed));
    let (store, referee) = (world.store.clone(), Arc::new(Mutex::new(Referee::default())));
    let (storm, witness) = (Arc::clone(&dice), Arc::clone(&referee));
    world.faults(move |operation| {
        if let Operation::Apply(change) = operation {
            witness.lock().unwrap().see(&store, change);
        }
        let error = || match storm.unit() {
            draw if draw < 0.5 => StoreError::Unavailable("cut".into()),
            _ => StoreError::Throttled("slow".into()),
        };
        match storm.unit() {
            draw if draw < weather.lost / 2.0 => Fault::Before(error()),
            // A throttled request is never carried out; only an answer that did not come may hide a write.
            draw if draw < weather.lost => Fault::After(StoreError::Unavailable("cut".into())),
            _ => Fault::None,
        }
    });
    world.endpoint.script(move |_| match dice.unit() {
        draw if draw < weather.refused / 2.0 => Act::Say(throttled(Some(20))),
        draw if draw < weather.refused => Act::Say(server_error()),
        draw if draw < weather.refused + weather.unheard => Act::LoseReply(timeout()),
        _ => Act::Late(secs(8).mul_f64(dice.unit())),
    });
    referee
}

/// Hours of weather over three processes, then calm. Returns how many processes were killed.
async fn live_through(world: &World, weather: Weather, seed: u64) -> usize {
    for n in 0..CLIENTS {
        world.endpoint.manner(|manner| manner.lifetimes.extend([(format!("c{n}"), secs(400))]));
        world.due(&format!("c{n}")).await;
    }
    let referee = bring_down(world, weather, seed);
    let mut fleet = Vec::new();
    for _ in 0..3 {
        fleet.push(world.daemon().await);
    }
    let (dice, mut kills) = (Entropy::from_seed(seed), 0);
    for _ in 0..20 {
        world.sleep(weather.kills.unwrap_or(secs(600)).mul_f64(0.5 + dice.unit())).await;
        if weather.kills.is_some() {
            fleet.remove(0).kill();
            fleet.push(world.daemon().await);
            kills += 1;
        }
    }
    world.no_faults();
    world.endpoint.script(|_| Act::Honest);
    world.sleep(secs(2700)).await;
    for daemon in fleet {
        let summary = daemon.stop().await;
        assert_eq!(summary.abandoned, 0);
    }
    assert_eq!(referee.lock().unwrap().objections, [""; 0], "seed {seed}");
    kills
}

fn ids() -> Vec<ClientId> {
    (0..CLIENTS).map(|n| id(&format!("c{n}"))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_store_that_loses_answers_costs_no_grant_and_no_double_redemption() {
    for seed in 1..=2 {
        let world = World::new();
        let weather = Weather { lost: 0.15, refused: 0.0, unheard: 0.0, kills: None };
        live_through(&world, weather, seed).await;
        assert_eq!((world.endpoint.double_redemptions(), world.endpoint.overlaps()), (0, 0), "seed {seed}");
        for c in ids() {
            world.assert_whole(&c);
            let fresh = world.token(&c).expires_at > perennial::time::Clock::now(&*world.clock);
            assert!(fresh, "seed {seed}: {c} is {:?}", world.lease(&c));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_refuses_now_and_then_costs_no_grant_either() {
    for seed in 1..=2 {
        let world = World::new();
        let weather = Weather { lost: 0.1, refused: 0.3, unheard: 0.0, kills: None };
        live_through(&world, weather, seed).await;
        assert_eq!((world.endpoint.double_redemptions(), world.endpoint.overlaps()), (0, 0), "seed {seed}");
        ids().iter().for_each(|c| world.assert_whole(c));
    }
}

#[tokio::test(start_paused = true)]
async fn what_kills_and_lost_replies_cost_is_named_and_counted() {
    for seed in 1..=2 {
        let world = World::new();
        let weather = Weather { lost: 0.05, refused: 0.1, unheard: 0.02, kills: Some(secs(200)) };
        let kills = live_through(&world, weather, seed).await;
        assert_eq!((kills, world.endpoint.overlaps()), (20, 0), "seed {seed}");
        let mut lost = 0;
        for c in ids() {
            let lease = world.lease(&c);
            if world.stored(&c) == world.endpoint.live(c.as_str()) {
                // Never dead or held in force while the stored token is live.
                let condemned = matches!(lease.state, State::Dead | State::Held);
                assert!(
                    !condemned || lease.of < Some(world.token(&c).generation),
                    "seed {seed}: {c} {lease:?}"
                );
            } else {
                lost += 1;
                assert_eq!(lease.error.as_deref(), Some("lost_rotation"), "seed {seed}: {c} {lease:?}");
                assert!(world.token(&c).generation > Gen(-1));
            }
        }
        // The replay that finds a grant lost is the one double redemption of it.
        assert_eq!(world.endpoint.double_redemptions(), lost, "seed {seed}");
    }
}
