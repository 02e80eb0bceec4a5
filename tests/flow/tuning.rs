//! New numbers and new providers under a daemon that works.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perennial::client::Provider;
use perennial::plan::{Backoff, Lifetimes};
use perennial::scheduler::Tuning;

use super::endpoint::{Act, throttled};
use super::world::{World, profile, secs};

/// What the world was made with, but for these providers.
fn tuning(world: &World, providers: &[&Provider]) -> Tuning {
    let providers: BTreeMap<_, _> =
        providers.iter().map(|provider| (provider.name.clone(), Arc::new((*provider).clone()))).collect();
    Tuning {
        providers,
        concurrency: world.settings.concurrency,
        breaker: world.breaker,
        spread: world.settings.spread,
        max_skew: world.settings.max_skew,
        backoff: Backoff::default(),
        lifetimes: Lifetimes::default(),
        patience: secs(110),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_is_finished_though_its_provider_is_gone() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Late(secs(10)));
    let daemon = world.daemon().await;
    world.sleep(secs(5)).await;
    assert_eq!((world.endpoint.sends(), *daemon.pulse.in_flight().borrow()), (1, 1));

    daemon.ordering.send_replace(Some(Arc::new(tuning(&world, &[]))));
    world.sleep(secs(2)).await;
    assert_eq!(*daemon.pulse.in_flight().borrow(), 1, "it is not forgotten");
    world.sleep(secs(20)).await;
    assert_eq!(world.endpoint.live("c"), world.stored(&c));
    assert_eq!(*daemon.pulse.in_flight().borrow(), 0);

    world.sleep(secs(2 * 3600)).await;
    assert_eq!(world.endpoint.sends(), 1, "nobody sends to a provider that is not configured");
    daemon.ordering.send_replace(Some(Arc::new(tuning(&world, &[&world.provider]))));
    world.sleep(secs(60)).await;
    assert_eq!(world.endpoint.sends(), 2, "it is taken up where it comes back");
    assert_eq!(world.endpoint.double_redemptions(), 0);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn clients_in_a_lane_follow_their_provider_to_its_new_limits() {
    let mut world = World::new();
    world.provider.concurrency = 1;
    world.others = vec![profile("other")];
    for n in 0..40 {
        world.due(&format!("c{n}")).await;
    }
    world.endpoint.script(|_| Act::Late(secs(8)));
    let daemon = world.daemon().await;
    world.sleep(secs(4)).await;
    assert_eq!(world.endpoint.most_in_flight(), 1);
    let wider = Provider { concurrency: 20, ..world.provider.clone() };
    let tuning = Tuning { concurrency: 10, ..tuning(&world, &[&wider]) };
    daemon.ordering.send_replace(Some(Arc::new(tuning)));
    world.sleep(secs(60)).await;
    assert_eq!((world.endpoint.sends(), world.endpoint.most_in_flight()), (40, 10));
    assert_eq!(world.endpoint.double_redemptions(), 0);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn new_backoff_and_patience_hold_for_what_comes() {
    let world = World::new();
    world.due("c").await;
    world.endpoint.script(|_| Act::Say(throttled(None)));
    let daemon = world.daemon().await;
    let calm =
        Backoff { base: secs(3000), min_interval: secs(500), cap: secs(3000), cap_expired: secs(3000) };
    let tuning = Tuning { backoff: calm, patience: secs(3), ..tuning(&world, &[&world.provider]) };
    daemon.ordering.send_replace(Some(Arc::new(tuning)));
    world.sleep(secs(60)).await;
    let sends = world.endpoint.sends();
    world.sleep(secs(400)).await;
    assert_eq!(world.endpoint.sends(), sends, "it is left alone for 500 s at least");

    world.endpoint.script(|_| Act::Late(Duration::from_secs(15)));
    let begun = world.endpoint.sends();
    for _ in 0..7200 {
        if world.endpoint.sends() > begun {
            break;
        }
        world.sleep(secs(1)).await;
    }
    assert_eq!(world.endpoint.sends(), begun + 1);
    let before = world.clock.elapsed();
    let summary = daemon.stop().await;
    assert_eq!(summary.abandoned, 1);
    assert!(world.clock.elapsed() - before < secs(7), "it waited for three seconds and said farewell");
}
