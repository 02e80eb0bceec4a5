//! The run that ends: it does what is due, names what failed, and does end.

use perennial::item::{Key, Value, attr};
use perennial::record::{State, Tally};
use perennial::reply::Reply;
use perennial::scheduler::Summary;
use perennial::store::memory::{Fault, Operation};
use perennial::time::Clock as _;

use super::endpoint::{Act, server_error};
use super::world::{World, id, is_acquire, lost, secs};

#[tokio::test(start_paused = true)]
async fn all_that_is_due_is_done_and_the_rest_left_alone() {
    let mut world = World::new();
    for n in 0..30 {
        world.due(&format!("due{n}")).await;
        world.add(world.spec(&format!("good{n}")).expires_in(secs(3600)).refresh_in(secs(1800))).await;
    }
    let summary = world.once(secs(300)).await;
    assert_eq!((summary.tally.refreshed, summary.tally.failed, summary.unfinished.len()), (30, 0, 0));
    assert_eq!(world.endpoint.sends(), 30);
    assert!(world.clock.elapsed() < secs(5), "{:?}", world.clock.elapsed());
}

#[tokio::test(start_paused = true)]
async fn it_ends_at_once_when_nothing_is_due() {
    let mut world = World::new();
    world.add(world.spec("good").expires_in(secs(3600)).refresh_in(secs(1800))).await;
    let summary = world.once(secs(300)).await;
    let nothing = Tally { clients: 1, ..Tally::default() };
    assert_eq!(summary, Summary { tally: nothing, ..Summary::default() });
    assert!(world.clock.elapsed() < secs(6));
}

#[tokio::test(start_paused = true)]
async fn failures_are_named_and_not_tried_again() {
    let mut world = World::new();
    for name in ["fine", "gone", "broken", "elsewhere", "panics"] {
        let spec = world.spec(name);
        world.add(if name == "elsewhere" { spec.provider("unconfigured") } else { spec }).await;
    }
    world.endpoint.script(|call| match call.who.as_str() {
        "gone" => Act::Say(Reply::Rejected("invalid_grant".into())),
        "broken" => Act::Say(Reply::NotSent("dns".into())),
        "panics" => Act::Panic,
        _ => Act::Honest,
    });
    let summary = world.once(secs(300)).await;
    let named: Vec<_> = summary.unfinished.iter().map(|(id, why)| (id.as_str(), why.as_str())).collect();
    assert_eq!(
        named,
        [
            ("broken", "failed: dns"),
            ("elsewhere", "provider `unconfigured` is not configured"),
            ("gone", "dead: invalid_grant"),
            ("panics", "its refresh panicked"),
        ]
    );
    assert_eq!((summary.tally.refreshed, world.endpoint.sends()), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn it_waits_out_a_take_over_impatiently() {
    let mut world = World::new();
    let c = world.add(world.spec("c").expires_in(secs(3600)).refresh_in(secs(1))).await;
    world.sleep(secs(5)).await;
    world.endpoint.script(|call| if call.nth == 0 { Act::Silence } else { Act::Honest });
    world.endpoint.manner(|manner| manner.rotation = super::endpoint::Rotation::Grace(secs(900)));
    let holder = world.begin(&c);
    world.sleep(secs(1)).await;
    holder.abort();
    let summary = world.once(secs(300)).await;
    assert_eq!((summary.tally.refreshed, summary.unfinished.len()), (1, 0));
    assert!(world.clock.elapsed() < secs(190), "not until two minutes before the expiry");
}

#[tokio::test(start_paused = true)]
async fn it_gives_up_after_the_longest_wait_and_names_the_client() {
    let mut world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Silence);
    let holder = world.begin(&c);
    world.sleep(secs(1)).await;
    holder.abort();
    world.due("fine").await;
    world.endpoint.script(|_| Act::Honest);
    let summary = world.once(secs(30)).await;
    assert_eq!(summary.tally.refreshed, 1);
    assert!(summary.unfinished[&c].contains("in doubt"), "{summary:?}");
    assert!(world.clock.elapsed() < secs(60));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_breaker_is_open_does_not_hang_it() {
    let mut world = World::new();
    for n in 0..60 {
        world.due(&format!("c{n}")).await;
    }
    world.endpoint.script(|_| Act::Say(server_error()));
    let summary = world.once(secs(120)).await;
    assert_eq!((summary.tally.refreshed, summary.unfinished.len()), (0, 60), "each of them is named");
    assert!(world.clock.elapsed() < secs(200), "{:?}", world.clock.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_application_that_is_refused_does_not_hang_it() {
    let mut world = World::new();
    for n in 0..30 {
        world.due(&format!("c{n}")).await;
    }
    world.endpoint.script(|_| Act::Say(Reply::Rejected("invalid_client".into())));
    let summary = world.once(secs(120)).await;
    assert_eq!(summary.unfinished.len(), 30);
    assert!(world.clock.elapsed() < secs(200), "{:?}", world.clock.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_off_does_not_hang_it() {
    let mut world = World::new();
    world.due("c").await;
    world.store.vitals().answered(world.clock.as_ref(), Some(world.clock.now().minus(secs(100))));
    let summary = world.once(secs(120)).await;
    assert!(summary.unfinished[&id("c")].contains("clock"), "{summary:?}");
    assert_eq!(world.endpoint.sends(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_writes_is_named() {
    let mut world = World::new();
    world.due("c").await;
    world.faults(|operation| match operation {
        Operation::Apply(_) => Fault::Before(perennial::store::StoreError::Refused("access denied".into())),
        _ => Fault::None,
    });
    let summary = world.once(secs(120)).await;
    assert!(summary.unfinished[&id("c")].contains("access denied"), "{summary:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missed_send_window_is_a_failure_and_not_a_job_done() {
    let mut world = World::new();
    world.due("c").await;
    let clock = std::sync::Arc::clone(&world.clock);
    world.faults(move |operation| {
        if let Operation::Read(_) = operation {
            clock.suspend(secs(6));
        }
        Fault::None
    });
    let summary = world.once(secs(120)).await;
    assert!(summary.unfinished[&id("c")].contains("window"), "{summary:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_still_due_after_a_lost_race_is_not_forgotten() {
    let mut world = World::new();
    let c = world.due("c").await;
    let (store, lease) = (world.store.clone(), Key::Lease(c.clone()));
    let mut raced = false;
    // Another task acquires just before, and gives the lease back: nothing was refreshed.
    world.faults(move |operation| {
        if let Operation::Apply(change) = operation
            && is_acquire(change)
            && !std::mem::replace(&mut raced, true)
        {
            let item = store.raw(&lease.pk(), lease.sk()).unwrap().with(attr::GEN, Value::N(1));
            store.put_raw(&lease.pk(), lease.sk(), item);
        }
        Fault::None
    });
    let summary = world.once(secs(300)).await;
    assert_eq!((summary.tally.conflicts, summary.tally.refreshed, summary.unfinished.len()), (1, 1, 0));
    assert_eq!(world.lease(&c).state, State::InFlight);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_turns_unreadable_meanwhile_does_not_hang_it() {
    let mut world = World::new();
    let c = world.due("c").await;
    let (store, lease) = (world.store.clone(), Key::Lease(c.clone()));
    world.faults(move |operation| {
        if let Operation::Apply(_) = operation {
            let item = store.raw(&lease.pk(), lease.sk()).unwrap().with(attr::GEN, Value::S("x".into()));
            store.put_raw(&lease.pk(), lease.sk(), item);
        }
        Fault::None
    });
    let summary = world.once(secs(120)).await;
    assert!(summary.unfinished[&c].contains("gen"), "{summary:?}");
}

#[tokio::test(start_paused = true)]
async fn reads_that_fail_for_a_while_do_not_end_a_wait() {
    let mut world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|call| if call.nth == 0 { Act::Silence } else { Act::Honest });
    world.endpoint.manner(|manner| manner.rotation = super::endpoint::Rotation::Grace(secs(900)));
    let holder = world.begin(&c);
    world.sleep(secs(1)).await;
    holder.abort();
    let clock = std::sync::Arc::clone(&world.clock);
    world.faults(move |operation| match operation {
        Operation::Read(_) if clock.elapsed() < secs(60) => Fault::Before(lost()),
        _ => Fault::None,
    });
    let summary = world.once(secs(300)).await;
    assert_eq!((summary.tally.refreshed, summary.unfinished.len()), (1, 0), "{summary:?}");
}
