//! Long runs: no trouble becomes a tight loop, a day loses no second of freshness, and a restart bunches nobody.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use perennial::item::{Key, Value, attr};
use perennial::reply::Lifetime;
use perennial::store::StoreError;
use perennial::store::memory::{Fault, Operation};
use perennial::time::Clock as _;

use super::endpoint::{Act, Granted, server_error};
use super::world::{START, World, id, is_commit, secs};

/// What one client in trouble may cost in an hour.
struct Bound {
    sends: usize,
    /// Reads and writes, beside what discovery does anyway.
    operations: u64,
    turns: u64,
}

/// Discovery: four shards every 15 s.
const DISCOVERY: u64 = 4 * 239;

async fn an_hour_of(world: World, bound: Bound) -> World {
    let daemon = world.daemon().await;
    let (operations, sends) = (world.counts.all(), world.endpoint.sends());
    let waits = world.clock.waits.load(Ordering::Relaxed);
    world.sleep(secs(3600)).await;
    let (operations, sends) = (world.counts.all() - operations - DISCOVERY, world.endpoint.sends() - sends);
    let turns = world.clock.waits.load(Ordering::Relaxed) - waits;
    daemon.kill();
    assert!(sends <= bound.sends, "{sends} sends");
    assert!(operations <= bound.operations, "{operations} operations");
    assert!(turns <= bound.turns, "{turns} turns of loops");
    world
}

/// The loop turns every five seconds at least; discovery and heartbeats beside it.
const QUIET: u64 = 1200 + 360;

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_writes_is_not_hammered() {
    let world = World::new();
    world.due("c").await;
    world.faults(|operation| match operation {
        Operation::Apply(_) => Fault::Before(StoreError::Refused("access denied".into())),
        _ => Fault::None,
    });
    an_hour_of(world, Bound { sends: 0, operations: 150, turns: QUIET }).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_only_commits_is_asked_every_few_seconds() {
    let world = World::new();
    world.due("c").await;
    world.faults(|operation| match operation {
        Operation::Apply(change) if is_commit(change) => Fault::Before(StoreError::Refused("size".into())),
        _ => Fault::None,
    });
    an_hour_of(world, Bound { sends: 1, operations: 1100, turns: 3000 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_gone_is_not_hammered() {
    let world = World::new();
    world.due("c").await;
    world.faults(|operation| match operation {
        Operation::Query(_) | Operation::Load(_) => Fault::None,
        _ => Fault::Before(StoreError::Unavailable("cut".into())),
    });
    // Each attempt is issued again for five seconds.
    an_hour_of(world, Bound { sends: 0, operations: 2000, turns: 4000 }).await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_always_panics_is_left_to_an_operator() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Panic);
    let world = an_hour_of(world, Bound { sends: 3, operations: 120, turns: QUIET }).await;
    assert_eq!(world.lease(&c).state, perennial::record::State::Held);
}

#[tokio::test(start_paused = true)]
async fn absurd_lifetimes_lead_neither_to_a_tight_loop_nor_to_never() {
    let stated = |life| Lifetime::Stated(life);
    let cases = [
        (stated(secs(1)), 200..241),
        (stated(Duration::from_millis(1)), 200..241),
        (Lifetime::Missing, 1..3),
        (Lifetime::Unreadable, 1..3),
        (stated(Duration::MAX), 1..2),
    ];
    for (lifetime, sends) in cases {
        let world = World::new();
        let c = world.due("c").await;
        world.endpoint.manner(|manner| manner.lifetime = lifetime);
        let operations = u64::try_from(sends.end * 3 + 10).unwrap();
        let bound = Bound { sends: sends.end, operations, turns: 2500 };
        let world = an_hour_of(world, bound).await;
        assert!(sends.contains(&world.endpoint.sends()), "{lifetime:?}: {}", world.endpoint.sends());
        assert!(world.token(&c).expires_at < START.plus(secs(91 * 86_400)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_too_far_off_stops_the_acquiring_and_the_loop_sleeps() {
    let world = World::new();
    for n in 0..10 {
        world.due(&format!("c{n}")).await;
    }
    world.store.vitals().answered(world.clock.as_ref(), Some(world.clock.now().minus(secs(31))));
    an_hour_of(world, Bound { sends: 0, operations: 20, turns: QUIET }).await;
}

/// By a clock that is an hour ahead every token looks expired, and what is refreshed now is stored with an expiry that is
/// an hour too late.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_stepped_is_noticed_before_the_store_answers_again() {
    let world = World::new();
    for n in 0..10 {
        world.add(world.spec(&format!("c{n}")).expires_in(secs(3600)).refresh_in(secs(3000))).await;
    }
    world.store.vitals().answered(world.clock.as_ref(), Some(world.clock.wall()));
    let daemon = world.daemon().await;
    world.sleep(secs(60)).await;
    world.clock.step(3600);
    world.sleep(secs(60)).await;
    assert_eq!(world.endpoint.sends(), 0, "no token is due");
    world.clock.step(-3600);
    world.sleep(secs(3000)).await;
    assert_eq!(world.endpoint.sends(), 10, "each at its time");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn items_that_turn_unreadable_are_not_hammered() {
    for (token, name) in [(true, attr::EXPIRES_AT), (false, attr::GEN), (false, attr::NEXT_AT)] {
        let world = World::new();
        let c = world.add(world.spec("c").expires_in(secs(3600)).refresh_in(secs(60))).await;
        let key = if token { Key::Token(c.clone()) } else { Key::Lease(c.clone()) };
        let (store, clock) = (world.store.clone(), std::sync::Arc::clone(&world.clock));
        world.faults(move |_| {
            if clock.elapsed() > secs(30) {
                let item = store.raw(&key.pk(), key.sk()).unwrap().with(name, Value::S("x".into()));
                store.put_raw(&key.pk(), key.sk(), item);
            }
            Fault::None
        });
        an_hour_of(world, Bound { sends: 0, operations: 200, turns: QUIET }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn clients_of_a_provider_that_is_not_configured_cost_next_to_nothing() {
    let world = World::new();
    world.add(world.spec("due").provider("gone")).await;
    let doubtful = world.add(world.spec("doubtful").provider("gone")).await;
    world.edit(&Key::Lease(doubtful.clone()), attr::GEN, Value::N(1));
    world.edit(&Key::Lease(doubtful), attr::ST, Value::S("F".into()));
    an_hour_of(world, Bound { sends: 0, operations: 10, turns: QUIET }).await;
}

#[tokio::test(start_paused = true)]
async fn numbers_that_contradict_each_other_lead_to_no_tight_loop() {
    let c = id("c");
    let ahead = (Key::Token(c.clone()), attr::TOK_GEN, 1_000_000);
    let forever = (Key::Config(c), attr::RF, i64::MAX);
    for (key, name, number) in [ahead, forever] {
        let world = World::new();
        world.due("c").await;
        world.edit(&key, name, Value::N(number));
        an_hour_of(world, Bound { sends: 45, operations: 300, turns: QUIET + 200 }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_so_slow_that_the_window_is_always_missed_is_not_hammered() {
    let world = World::new();
    world.due("c").await;
    let clock = std::sync::Arc::clone(&world.clock);
    world.faults(move |operation| {
        if let Operation::Read(_) = operation {
            clock.suspend(secs(6));
        }
        Fault::None
    });
    an_hour_of(world, Bound { sends: 0, operations: 200, turns: QUIET }).await;
}

const DAY: Duration = Duration::from_secs(86_400);

async fn fleet_of_130(world: &World) {
    for n in 0..130_u64 {
        let life = [1, 2, 8][usize::try_from(n % 3).unwrap()] * 3600;
        let name = format!("c{n}");
        world.endpoint.manner(|manner| manner.lifetimes.extend([(name.clone(), secs(life))]));
        // As a fleet that has been running for long.
        let age = life * n / 130 * 3 / 4;
        let spec = world.spec(&name).expires_in(secs(life - age));
        world.add(spec.refresh_in(secs(life * 3 / 4 - age))).await;
    }
}

/// Seconds in which a client had no good token, by client, and when they began.
fn gaps(world: &World, until: Duration) -> Vec<(String, Duration, Duration)> {
    let mut good: BTreeMap<String, Duration> = BTreeMap::new();
    let mut gaps = Vec::new();
    for n in 0..130 {
        let name = format!("c{n}");
        let life = [1, 2, 8][n % 3] * 3600;
        let age = life * n as u64 / 130 * 3 / 4;
        good.insert(name, secs(life - age));
    }
    for Granted { who, at, lifetime } in world.endpoint.grants() {
        let expired = good.insert(who.clone(), at + lifetime).unwrap();
        if at > expired {
            gaps.push((who, expired, at - expired));
        }
    }
    gaps.extend(good.into_iter().filter(|(_, at)| *at < until).map(|(who, at)| (who, at, until - at)));
    gaps
}

/// The most refreshes in any ten minutes of a span, and the mean of ten minutes of the day.
fn peak(grants: &[Granted], span: std::ops::Range<Duration>) -> (usize, f64) {
    let mean = grants.len() as f64 / 144.0;
    let mut most = 0;
    let mut from = span.start;
    while from + secs(600) <= span.end {
        most = most.max(grants.iter().filter(|g| (from..from + secs(600)).contains(&g.at)).count());
        from += secs(60);
    }
    (most, mean)
}

#[tokio::test(start_paused = true)]
async fn a_day_of_130_clients_has_no_second_without_a_good_token() {
    let world = World::new();
    fleet_of_130(&world).await;
    let daemon = world.daemon().await;
    world.sleep(DAY).await;
    daemon.stop().await;
    assert_eq!(gaps(&world, DAY), []);
    let (peak, mean) = peak(&world.endpoint.grants(), secs(0)..DAY);
    assert!(peak as f64 <= 2.0 * mean, "{peak} at the peak, {mean} in the mean");
    assert_eq!((world.endpoint.double_redemptions(), world.endpoint.overlaps()), (0, 0));
    (0..130).for_each(|n| world.assert_whole(&id(&format!("c{n}"))));
    assert!(world.endpoint.sends() < 3200, "{}", world.endpoint.sends());
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_half_an_hour_costs_only_what_could_not_be_saved() {
    let (from, to) = (secs(30_000), secs(31_800));
    let world = World::new();
    fleet_of_130(&world).await;
    world.endpoint.script(move |call| match (from..to).contains(&call.at) {
        true => Act::Say(server_error()),
        false => Act::Honest,
    });
    let daemon = world.daemon().await;
    world.sleep(DAY).await;
    daemon.stop().await;
    let gaps = gaps(&world, DAY);
    for (who, began, gap) in &gaps {
        let n: usize = who[1..].parse().unwrap();
        assert_ne!(n % 3, 2, "{who}: eight hours outlast an outage");
        // A token that expired when nobody could refresh it is replaced soon after.
        // An open breaker is probed every 75 s at the longest.
        assert!(*began > from && *began < to + secs(75), "{who} expired at {began:?}");
        assert!(*began + *gap < to + secs(660), "{who} was back at {:?}", *began + *gap);
    }
    let grants = world.endpoint.grants();
    let (peak, mean) = peak(&grants, to + secs(1800)..DAY);
    assert!(peak as f64 <= 2.0 * mean, "{peak} at the peak after the catch-up, {mean} in the mean");
    let in_outage = world.endpoint.calls().iter().filter(|call| (from..to).contains(&call.at)).count();
    assert!(in_outage < 250, "{in_outage} sends into the outage");
    (0..130).for_each(|n| world.assert_whole(&id(&format!("c{n}"))));
}

#[tokio::test(start_paused = true)]
async fn a_restart_in_the_middle_of_the_day_bunches_nobody() {
    let world = World::new();
    fleet_of_130(&world).await;
    let daemon = world.daemon().await;
    world.sleep(DAY / 2).await;
    daemon.stop().await;
    // Ten minutes of nobody: some are overdue at the start.
    world.sleep(secs(300)).await;
    let daemon = world.daemon().await;
    world.sleep(DAY / 2 - secs(300)).await;
    daemon.stop().await;
    assert_eq!(gaps(&world, DAY), []);
    let (peak, mean) = peak(&world.endpoint.grants(), secs(0)..DAY);
    assert!(peak as f64 <= 2.0 * mean, "{peak} at the peak, {mean} in the mean");
}
