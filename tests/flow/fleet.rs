//! Which clients there are: found, found changed, found gone; what cannot be understood is named and left alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use perennial::fleet::{Census, Listing, ListingError, Stopped};
use perennial::item::{Item, Key, Value, attr};
use perennial::record::Gen;
use perennial::scheduler::Command;
use perennial::store::MemoryStore;
use perennial::store::memory::{Fault, Operation};
use perennial::time::Clock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::endpoint::Act;
use super::world::{World, id, lost, secs};

/// Every shard, of which nothing is known yet.
fn listing(world: &World) -> (Listing<MemoryStore>, mpsc::Receiver<Command>) {
    let (sender, commands) = mpsc::channel(10_000);
    let clock = Arc::clone(&world.clock) as Arc<dyn Clock>;
    (Listing::new(Arc::new(world.store.clone()), clock, sender), commands)
}

fn all() -> BTreeSet<u32> {
    (0..4).collect()
}

fn told(commands: &mut mpsc::Receiver<Command>) -> Vec<String> {
    let mut told = Vec::new();
    while let Ok(command) = commands.try_recv() {
        told.push(match command {
            Command::Learn(known) => known.client.id.to_string(),
            Command::Forget(id) => format!("-{id}"),
        });
    }
    told.sort();
    told
}

#[tokio::test(start_paused = true)]
async fn a_ttl_on_a_live_refresh_token_is_taken_off() {
    let world = World::new();
    let (c, m) = (world.due("c").await, world.add(world.spec("m").mintable()).await);
    for id in [&c, &m] {
        world.edit(&Key::Token(id.clone()), attr::TTL, Value::N(1_800_000_500));
    }
    let (mut fleet, _commands) = listing(&world);
    fleet.care_for(&all()).await.unwrap();
    assert_eq!(world.token(&c).ttl, None);
    assert!(world.token(&m).ttl.is_some(), "a mintable token may expire");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_is_skipped_and_never_overwritten() {
    let world = World::new();
    world.due("fine").await;
    let (bad, bare) = (world.due("bad").await, world.due("bare").await);
    world.edit(&Key::Lease(bad.clone()), attr::GEN, Value::S("7".into()));
    world.store.put_raw(&Key::partition(&bare), "LEASE", Item::default());
    let foreign = Item::default().with(attr::VS, Value::N(1)).with(attr::JN, Value::N(5));
    world.store.put_raw("USER#1", "PROFILE", foreign);
    let before = world.store.items();
    let (mut fleet, mut commands) = listing(&world);
    let census = fleet.care_for(&all()).await.unwrap();
    assert_eq!((census.skipped, census.forgotten), (3, 0));
    assert_eq!(told(&mut commands), ["fine"]);
    assert_eq!(world.store.items(), before);
}

#[tokio::test(start_paused = true)]
async fn only_news_is_told_and_a_removal_is_news() {
    let world = World::new();
    let (a, _b) = (world.due("a").await, world.due("b").await);
    let (mut fleet, mut commands) = listing(&world);
    assert_eq!(fleet.care_for(&all()).await.unwrap().clients, 2);
    assert_eq!(told(&mut commands), ["a", "b"]);
    world.sleep(secs(15)).await;
    assert_eq!(fleet.discover().await, Ok(0), "nothing changed");
    world.due("c").await;
    world.apply(&world.removal(&a)).await;
    assert_eq!(fleet.discover().await, Ok(2));
    assert_eq!(told(&mut commands), ["-a", "c"]);
    assert_eq!(fleet.discover().await, Ok(0), "the tombstone is known");
    world.apply(&world.removal(&id("b"))).await;
    let census = fleet.reconcile().await.unwrap();
    assert_eq!(census, Census { clients: 1, skipped: 0, forgotten: 1 });
    assert_eq!(told(&mut commands), ["-a", "-b", "-b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_leaves_the_index_once_every_task_has_had_time_to_find_it() {
    let world = World::new();
    let a = world.due("a").await;
    world.apply(&world.removal(&a)).await;
    let in_index = || world.raw(&Key::Config(a.clone())).unwrap().get(attr::VS).is_some();
    let (mut fleet, _commands) = listing(&world);
    fleet.care_for(&all()).await.unwrap();
    world.sleep(secs(600)).await;
    fleet.reconcile().await.unwrap();
    assert!(in_index(), "discovery looks back five minutes, and clocks differ");
    world.sleep(secs(1)).await;
    fleet.reconcile().await.unwrap();
    assert!(!in_index());
    assert!(world.raw(&Key::Config(a.clone())).unwrap().get(attr::GONE).is_some(), "it stays a tombstone");
}

#[tokio::test(start_paused = true)]
async fn shards_that_come_are_listed_and_those_that_go_are_forgotten() {
    let world = World::new();
    for n in 0..40 {
        world.due(&format!("c{n}")).await;
    }
    let (mut fleet, mut commands) = listing(&world);
    let half = fleet.care_for(&BTreeSet::from([0, 1])).await.unwrap().clients;
    assert_eq!(told(&mut commands).len(), half);
    let other = fleet.care_for(&BTreeSet::from([2, 3])).await.unwrap().clients;
    assert!(half > 5 && other > 5 && half + other == 40, "{half} + {other}");
    let told = told(&mut commands);
    assert_eq!(told.iter().filter(|told| told.starts_with('-')).count(), half);
    assert_eq!(told.len(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_fails_forgets_nobody() {
    let world = World::new();
    for n in 0..20 {
        world.due(&format!("c{n}")).await;
    }
    let (mut fleet, mut commands) = listing(&world);
    fleet.care_for(&all()).await.unwrap();
    assert_eq!(told(&mut commands).len(), 20);
    let mut asked = 0;
    world.faults(move |operation| match operation {
        Operation::Query(_) => {
            asked += 1;
            if asked == 3 { Fault::Before(lost()) } else { Fault::None }
        }
        _ => Fault::None,
    });
    assert_eq!(fleet.reconcile().await, Err(ListingError::Store(lost())));
    assert!(told(&mut commands).iter().all(|told| !told.starts_with('-')));
    drop(commands);
    assert_eq!(fleet.reconcile().await, Err(ListingError::Stopped(Stopped)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_discovery_is_made_up_for_by_the_next() {
    let world = World::new();
    let (mut fleet, mut commands) = listing(&world);
    fleet.care_for(&all()).await.unwrap();
    world.sleep(secs(100)).await;
    world.due("c").await;
    world.faults(|_| Fault::Before(lost()));
    for _ in 0..100 {
        world.sleep(secs(15)).await;
        assert!(fleet.discover().await.is_err());
    }
    world.no_faults();
    assert_eq!(fleet.discover().await, Ok(1));
    assert_eq!(told(&mut commands), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn more_clients_than_a_page_are_all_found() {
    let world = World::new();
    for n in 0..1200 {
        world.due(&format!("c{n}")).await;
    }
    let (mut fleet, mut commands) = listing(&world);
    let census = fleet.care_for(&all()).await.unwrap();
    assert_eq!((census.clients, told(&mut commands).len()), (1200, 1200));
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_was_read_before_another_tasks_acquire_still_arrives() {
    let world = World::new();
    let c = world.add(world.spec("c").expires_in(secs(3600)).refresh_in(secs(100))).await;
    let (sender, commands) = mpsc::channel(16);
    let scheduler = world.scheduler();
    let daemon = tokio::spawn(async move {
        let (drain, now) = (CancellationToken::new(), CancellationToken::new());
        scheduler.run(commands, &drain, &now, secs(1)).await
    });
    let tell = async |known| sender.send(Command::Learn(Box::new(known))).await.unwrap();
    tell(world.known(&c)).await;
    // Read now, told late: after a refresh.
    let old = world.known(&c);
    world.sleep(secs(150)).await;
    assert_eq!((world.endpoint.sends(), world.lease(&c).generation), (1, Gen(1)));
    world.edit(&Key::Config(c.clone()), attr::RF, Value::N(1));
    tell(old).await;
    world.sleep(secs(30)).await;
    assert_eq!(world.endpoint.sends(), 2, "it may have carried news, so the table was asked");
    daemon.abort();
}

#[tokio::test(start_paused = true)]
async fn news_of_a_client_whose_refresh_is_running_is_read_after_it() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Late(secs(18)));
    let daemon = world.daemon().await;
    world.sleep(secs(2)).await;
    let client = world.snapshot(&id("c")).client().unwrap().clone();
    let pause = perennial::plan::registry::pause(&client, true, world.clock.now());
    world.apply(&pause).await;
    world.sleep(secs(7200)).await;
    assert_eq!((world.endpoint.sends(), world.lease(&c).generation), (1, Gen(1)), "paused since");
    world.assert_whole(&c);
    daemon.stop().await;
}
