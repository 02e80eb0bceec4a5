//! Whose turn it is, how many at once, and what holds a client back.

use std::collections::BTreeSet;
use std::time::Duration;

use perennial::client::{InDoubt, RateLimit};
use perennial::item::{Key, Value, attr};
use perennial::plan::registry;
use perennial::record::State;
use perennial::reply::Reply;
use perennial::store::memory::{Fault, Operation};
use perennial::time::Clock as _;

use super::endpoint::{Act, server_error, throttled, timeout};
use super::world::{World, id, is_acquire, is_commit, lost, profile, secs};

#[tokio::test(start_paused = true)]
async fn limits_of_concurrency_hold_over_all_and_per_provider() {
    for (global, each, expected) in [(5, 16, 5), (64, 3, 6)] {
        let mut world = World::new();
        world.settings.concurrency = global;
        world.provider.concurrency = each;
        world.others = vec![perennial::client::Provider { concurrency: each, ..profile("other") }];
        for n in 0..20 {
            world.due(&format!("a{n}")).await;
            world.add(world.spec(&format!("b{n}")).provider("other")).await;
        }
        world.endpoint.script(|_| Act::Late(secs(10)));
        let daemon = world.daemon().await;
        world.sleep(secs(200)).await;
        assert_eq!((world.endpoint.grants().len(), world.endpoint.most_in_flight()), (40, expected));
        assert_eq!(world.endpoint.overlaps(), 0);
        daemon.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_loop_sleeps_while_a_limit_holds_everything_up() {
    let mut world = World::new();
    world.settings.concurrency = 1;
    world.provider.rate = RateLimit { per_second: 1.0, burst: 1 };
    world.others = vec![profile("other")];
    for n in 0..20 {
        world.due(&format!("a{n}")).await;
        world.add(world.spec(&format!("b{n}")).provider("other")).await;
    }
    // One provider's budget is spent, and then another's hanging request takes the only place.
    world.endpoint.script(|call| match call.who.starts_with('a') {
        true => Act::Late(Duration::from_millis(10)),
        false => Act::Late(secs(15)),
    });
    let daemon = world.daemon().await;
    let before = world.clock.waits.load(std::sync::atomic::Ordering::Relaxed);
    world.sleep(secs(120)).await;
    let waits = world.clock.waits.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert!(waits < 300, "{waits} turns in two minutes");
    daemon.kill();
}

#[tokio::test(start_paused = true)]
async fn the_rate_budget_is_kept() {
    let mut world = World::new();
    world.provider.rate = RateLimit { per_second: 2.0, burst: 4 };
    for n in 0..60 {
        world.due(&format!("c{n}")).await;
    }
    let daemon = world.daemon().await;
    world.sleep(secs(60)).await;
    let calls = world.endpoint.calls();
    assert_eq!(calls.len(), 60);
    for (n, call) in calls.iter().enumerate().skip(4) {
        assert!(call.at >= Duration::from_millis(500) * u32::try_from(n - 4).unwrap(), "{n}: {:?}", call.at);
    }
    assert!(calls[59].at < secs(31), "and used: {:?}", calls[59].at);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_the_soonest_expiry_goes_first_and_the_expired_last() {
    let mut world = World::new();
    world.provider.concurrency = 1;
    world.provider.rate = RateLimit { per_second: 1000.0, burst: 1000 };
    for (name, expires_in) in [("late", 4000), ("expired", 100), ("soon", 3000), ("lost", 50), ("mid", 3500)]
    {
        world.add(world.spec(name).expires_in(secs(expires_in)).refresh_in(secs(10))).await;
    }
    world.settings.spread = Duration::ZERO;
    // The store is down when they fall due, and two of them expire in the lane.
    let daemon = world.daemon().await;
    world.store.vitals().answered(world.clock.as_ref(), Some(world.clock.now().minus(secs(100))));
    world.sleep(secs(200)).await;
    assert_eq!(world.endpoint.sends(), 0, "a clock that is off stops the acquiring");
    world.store.vitals().answered(world.clock.as_ref(), Some(world.clock.now()));
    world.sleep(secs(60)).await;
    let order: Vec<_> = world.endpoint.calls().into_iter().map(|call| call.who).collect();
    assert_eq!(order, ["soon", "mid", "late", "expired", "lost"]);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_provider_does_not_starve_another_whose_tokens_expire_sooner() {
    let mut world = World::new();
    world.settings.concurrency = 2;
    world.others = vec![profile("zeta")];
    for n in 0..200 {
        world.due(&format!("a{n}")).await;
    }
    world.add(world.spec("z").provider("zeta").expires_in(secs(300)).refresh_in(secs(1))).await;
    world.endpoint.script(|_| Act::Late(secs(5)));
    let daemon = world.daemon().await;
    world.sleep(secs(80)).await;
    assert_eq!(world.endpoint.sends_of("z"), 1);
    daemon.kill();
}

#[tokio::test(start_paused = true)]
async fn the_overdue_of_a_start_are_spread_while_their_tokens_are_good() {
    let world = World::new();
    for n in 0..60 {
        world.add(world.spec(&format!("c{n}")).expires_in(secs(3600)).refresh_in(secs(10))).await;
    }
    world.due("expired").await;
    world.sleep(secs(600)).await;
    let daemon = world.daemon().await;
    world.sleep(secs(70)).await;
    let calls = world.endpoint.calls();
    assert_eq!((calls.len(), calls[0].who.as_str()), (61, "expired"));
    let most = (0..12)
        .map(|n| secs(600 + n * 5)..secs(605 + n * 5))
        .map(|span| calls.iter().filter(|call| span.contains(&call.at)).count())
        .max();
    assert!(most < Some(15), "{most:?} in five seconds");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_backoff_outlives_the_process() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Say(throttled(Some(900))));
    let first = world.daemon().await;
    world.sleep(secs(10)).await;
    first.stop().await;
    let next_at = world.lease(&c).next_at.unwrap();
    world.endpoint.script(|_| Act::Honest);
    let second = world.daemon().await;
    world.sleep(secs(880)).await;
    assert_eq!(world.endpoint.sends(), 1);
    world.sleep(secs(120)).await;
    assert!(world.endpoint.calls()[1].at >= next_at.since(super::world::START));
    world.assert_whole(&c);
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn refresh_now_is_obeyed_once_however_often_it_is_asked() {
    let world = World::new();
    let c = world.add(world.spec("c").expires_in(secs(36_000)).refresh_in(secs(30_000))).await;
    let daemon = world.daemon().await;
    world.sleep(secs(60)).await;
    assert_eq!(world.endpoint.sends(), 0);
    for _ in 0..3 {
        let client = world.snapshot(&c).client().unwrap().clone();
        world.apply(&registry::refresh_now(&client, perennial::record::Gen(0), world.clock.now())).await;
        world.sleep(secs(1)).await;
    }
    world.sleep(secs(120)).await;
    assert_eq!(world.endpoint.sends(), 1);
    world.sleep(secs(600)).await;
    assert_eq!(world.endpoint.sends(), 1);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn paused_unknown_and_removed_clients_are_left_alone() {
    let world = World::new();
    for (name, state) in [("paused", "I"), ("unknown", "Z"), ("held", "Q"), ("dead", "D")] {
        let c = world.due(name).await;
        world.edit(&Key::Lease(c.clone()), attr::ST, Value::S(state.into()));
        world.edit(&Key::Lease(c.clone()), attr::OF, Value::N(0));
        if name == "paused" {
            world.edit(&Key::Config(c), attr::PAUSED, Value::Bool(true));
        }
    }
    let removed = world.due("removed").await;
    world.apply(&world.removal(&removed)).await;
    let writes = world.counts.writes.load(std::sync::atomic::Ordering::Relaxed);
    let daemon = world.daemon().await;
    world.sleep(secs(4000)).await;
    assert_eq!(world.endpoint.sends(), 0);
    assert_eq!(world.counts.writes.load(std::sync::atomic::Ordering::Relaxed), writes);
    assert_eq!(daemon.pulse.tally().clients, 4);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_who_resumes_revives_or_removes_a_client_is_heard_within_a_minute() {
    let world = World::new();
    let c = world.due("c").await;
    world.edit(&Key::Config(c.clone()), attr::PAUSED, Value::Bool(true));
    let dead = world.due("dead").await;
    world.edit(&Key::Lease(dead.clone()), attr::ST, Value::S("D".into()));
    world.edit(&Key::Lease(dead.clone()), attr::OF, Value::N(0));
    let daemon = world.daemon().await;
    world.sleep(secs(100)).await;
    let client = world.snapshot(&c).client().unwrap().clone();
    world.apply(&registry::pause(&client, false, world.clock.now())).await;
    let consent = world.new_consent(&dead);
    world.apply(&consent).await;
    world.sleep(secs(60)).await;
    world.assert_whole(&c);
    assert_eq!(world.endpoint.sends(), 1);
    world.sleep(secs(3300)).await;
    assert!(world.endpoint.sends_of("dead") == 1 && world.token(&dead).generation.0 == 2);
    world.apply(&world.removal(&c)).await;
    daemon.reconcile.send(()).await.unwrap();
    world.sleep(secs(20)).await;
    assert_eq!(daemon.pulse.tally().clients, 1);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_one_clients_refresh_stops_nobody_and_it_is_tried_again() {
    let world = World::new();
    for n in 0..10 {
        world.due(&format!("c{n}")).await;
    }
    world.endpoint.script(|call| if call.who == "c3" && call.nth < 10 { Act::Panic } else { Act::Honest });
    let daemon = world.daemon().await;
    world.sleep(secs(10)).await;
    assert_eq!(world.endpoint.grants().len(), 9);
    world.sleep(secs(300)).await;
    assert_eq!(world.endpoint.grants().len(), 10);
    world.assert_whole(&id("c3"));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn thirty_minutes_of_server_errors_condemn_nobody_and_are_over_soon_after() {
    for policy in [InDoubt::RetryOnce, InDoubt::Reusable] {
        let mut world = World::new();
        world.provider.in_doubt = policy;
        let ids: Vec<_> = (0..40).map(|n| format!("c{n}")).collect();
        for name in &ids {
            world.add(world.spec(name).expires_in(secs(3600)).refresh_in(secs(60))).await;
        }
        world
            .endpoint
            .script(|call| if call.at < secs(1800) { Act::Say(server_error()) } else { Act::Honest });
        let daemon = world.daemon().await;
        world.sleep(secs(1800)).await;
        let sends = world.endpoint.sends();
        assert!(sends < 180, "the breaker keeps 40 clients at {sends} sends");
        let writes = world.counts.writes.load(std::sync::atomic::Ordering::Relaxed);
        assert!(writes < 300, "and at {writes} writes");
        for name in &ids {
            let state = world.lease(&id(name)).state;
            assert!(!matches!(state, State::Dead | State::Held), "{name}: {state:?}");
        }
        world.sleep(secs(720)).await;
        ids.iter().for_each(|name| world.assert_whole(&id(name)));
        assert!(ids.iter().all(|name| world.endpoint.grants().iter().any(|grant| grant.who == *name)));
        assert_eq!(world.endpoint.double_redemptions(), 0);
        daemon.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_application_is_isolated_from_its_neighbours_at_the_same_endpoint() {
    let world = World::new();
    for n in 0..40 {
        let app = if n % 2 == 0 { "bad" } else { "good" };
        world.add(world.spec(&format!("{app}{n}")).app(app)).await;
    }
    world.endpoint.script(|call| match call.app.as_str() {
        "bad" => Act::Say(Reply::Rejected("invalid_client".into())),
        _ => Act::Honest,
    });
    let daemon = world.daemon().await;
    world.sleep(secs(1800)).await;
    let granted: BTreeSet<_> = world.endpoint.grants().into_iter().map(|grant| grant.who).collect();
    assert_eq!(granted.len(), 20);
    let refused = world.endpoint.calls().iter().filter(|call| call.app == "bad").count();
    assert!(refused < 100, "{refused} requests with a dead secret");
    for n in (0..40).step_by(2) {
        assert_eq!(world.lease(&id(&format!("bad{n}"))).state, State::Idle);
    }
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_no_writes_while_the_breaker_is_open() {
    let mut world = World::new();
    world.provider.request_timeout = secs(5);
    for n in 0..300 {
        world.due(&format!("c{n}")).await;
    }
    world.endpoint.script(|_| Act::Say(Reply::NotSent("connect".into())));
    let daemon = world.daemon().await;
    world.sleep(secs(600)).await;
    let sends = world.endpoint.sends();
    assert!(sends < 60, "{sends} sends for 300 clients in ten minutes");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_stores_what_is_in_flight_and_begins_nothing() {
    let mut world = World::new();
    world.provider.concurrency = 4;
    for n in 0..20 {
        world.due(&format!("c{n}")).await;
    }
    world.endpoint.script(|_| Act::Late(secs(10)));
    let clock = std::sync::Arc::clone(&world.clock);
    world.faults(move |operation| match operation {
        Operation::Apply(change) if is_commit(change) && clock.elapsed() < secs(100) => Fault::Before(lost()),
        _ => Fault::None,
    });
    let daemon = world.daemon().await;
    world.sleep(secs(5)).await;
    let reads = world.counts.reads.load(std::sync::atomic::Ordering::Relaxed);
    let summary = daemon.stop().await;
    assert!(world.clock.elapsed() >= secs(100), "it waited for the commits");
    assert_eq!(world.counts.reads.load(std::sync::atomic::Ordering::Relaxed), reads);
    assert_eq!((summary.tally.refreshed, summary.abandoned, world.endpoint.sends()), (4, 0, 4));
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_the_drain_at_once_and_so_does_its_patience() {
    for twice in [true, false] {
        let world = World::new();
        world.due("c").await;
        world.faults(|operation| match operation {
            Operation::Apply(change) if is_commit(change) => Fault::Before(lost()),
            _ => Fault::None,
        });
        let daemon = world.daemon().await;
        world.sleep(secs(5)).await;
        let (now, began) = (daemon.now.clone(), world.clock.elapsed());
        if twice {
            now.cancel();
        }
        let summary = daemon.stop().await;
        assert_eq!(summary.abandoned, 1);
        let took = world.clock.elapsed() - began;
        assert!(if twice { took < secs(1) } else { (secs(110)..secs(112)).contains(&took) }, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_holds_an_uncommitted_answer_never_acquires_that_client_again() {
    let world = World::new();
    let c = world.due("c").await;
    let acquires = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&acquires);
    let clock = std::sync::Arc::clone(&world.clock);
    world.faults(move |operation| match operation {
        Operation::Apply(change) if is_commit(change) && clock.elapsed() < secs(1000) => {
            Fault::Before(lost())
        }
        Operation::Apply(change) if is_acquire(change) => {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Fault::None
        }
        _ => Fault::None,
    });
    let daemon = world.daemon().await;
    world.sleep(secs(900)).await;
    // Even if an operator touches it meanwhile.
    let client = world.snapshot(&c).client().unwrap().clone();
    world.apply(&registry::refresh_now(&client, perennial::record::Gen(-1), world.clock.now())).await;
    world.sleep(secs(200)).await;
    assert_eq!(acquires.load(std::sync::atomic::Ordering::Relaxed), 1);
    world.assert_whole(&c);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_holds_up_nobody_else() {
    let mut world = World::new();
    world.provider.concurrency = 2;
    for n in 0..10 {
        world.due(&format!("c{n}")).await;
    }
    world.endpoint.script(|call| if call.who == "c0" { Act::Say(timeout()) } else { Act::Honest });
    let daemon = world.daemon().await;
    world.sleep(secs(15)).await;
    assert_eq!(world.endpoint.grants().len(), 9);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_learnt_late_is_no_lag_of_the_scheduler() {
    let world = World::new();
    world.add(world.spec("old").expires_in(secs(36_000)).refresh_in(secs(30_000))).await;
    let daemon = world.daemon().await;
    world.sleep(secs(3600)).await;
    world.due("new").await;
    for _ in 0..300 {
        world.sleep(Duration::from_millis(100)).await;
        assert!(daemon.pulse.lag() < secs(6), "{:?}", daemon.pulse.lag());
    }
    assert_eq!(world.endpoint.sends_of("new"), 1);
    daemon.stop().await;
}
