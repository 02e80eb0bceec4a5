//! Commit: an answer is stored exactly once, however long it takes, and never over anything newer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use perennial::item::{Key, Value, attr};
use perennial::record::{Gen, State};
use perennial::refresh::Outcome;
use perennial::store::memory::{Fault, Operation};
use perennial::store::{Store as _, StoreError};

use super::endpoint::Act;
use super::world::{World, at_once, is_commit, lost, secs};

/// A fault for commits alone, and how many commits there were.
fn on_commits(world: &World, mut fault: impl FnMut(u32) -> Fault + Send + 'static) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&count);
    world.faults(move |operation| match operation {
        Operation::Apply(change) if is_commit(change) => fault(counter.fetch_add(1, Ordering::Relaxed)),
        _ => Fault::None,
    });
    count
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_landed_unanswered_is_recognised_and_not_reported_as_lost() {
    let world = World::new();
    let c = world.due("c").await;
    let commits = on_commits(&world, |n| if n == 0 { Fault::After(lost()) } else { Fault::None });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!((commits.load(Ordering::Relaxed), world.endpoint.sends()), (2, 1));
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn throttling_for_minutes_and_an_error_that_no_retry_cures_do_not_lose_the_tokens() {
    for error in [StoreError::Throttled("slow".into()), StoreError::Refused("access denied".into())] {
        let world = World::new();
        let c = world.due("c").await;
        let (clock, until) = (Arc::clone(&world.clock), secs(400));
        let commits = on_commits(&world, move |_| match clock.elapsed() < until {
            true => Fault::Before(error.clone()),
            false => Fault::None,
        });
        let report = world.refresh(&c).await;
        assert_eq!(report.outcome, Outcome::Refreshed);
        assert_eq!(report.known, None, "past the lease, what stands there has to be read");
        assert_eq!(world.endpoint.sends(), 1);
        assert!(commits.load(Ordering::Relaxed) < 400, "retries slow down");
        world.assert_whole(&c);
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_wakes_after_its_lease_still_stores_the_only_live_token() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Late(secs(100)));
    let holder = world.begin(&c);
    world.sleep(secs(95)).await;
    // Somebody acquires after the lease, and stops there.
    let taker = world.known(&c);
    world.faults(|operation| match operation {
        Operation::Read(_) => Fault::Before(StoreError::Refused("cut".into())),
        _ => Fault::None,
    });
    let taken = world.refresher().refresh(&taker, &world.provider).await;
    assert!(matches!(taken.outcome, Outcome::StoreUnavailable(_)));
    assert_eq!(holder.await.unwrap().outcome, Outcome::Refreshed);
    assert_eq!((world.token(&c).generation, world.lease(&c).generation), (Gen(1), Gen(2)));
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_a_newer_token_is_dropped() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Late(secs(10)));
    let holder = world.begin(&c);
    world.sleep(secs(5)).await;
    world.apply(&world.new_consent(&c)).await;
    let newer = world.stored(&c);
    assert_eq!(holder.await.unwrap().outcome, Outcome::Conflict);
    assert_eq!((world.stored(&c), world.token(&c).generation), (newer, Gen(2)));
}

#[tokio::test(start_paused = true)]
async fn nothing_comes_back_of_a_client_that_was_removed_meanwhile() {
    for mintable in [false, true] {
        let world = World::new();
        let spec = world.spec("c");
        let c = world.add(if mintable { spec.mintable() } else { spec }).await;
        if mintable {
            world.store_without_token(&c);
        }
        world.endpoint.script(|_| Act::Late(secs(10)));
        let holder = world.begin(&c);
        world.sleep(secs(5)).await;
        world.apply(&world.removal(&c)).await;
        let report = holder.await.unwrap();
        assert!(matches!(report.outcome, Outcome::Removed | Outcome::Conflict), "{report:?}");
        assert_eq!(world.raw(&Key::Token(c.clone())), None);
        assert_eq!(world.lease(&c).state, State::Removed);
        // Registered again, the id starts behind everything that may still be in flight.
        let again = world.spec("c");
        world.add(if mintable { again.mintable() } else { again }).await;
        assert_eq!(world.lease(&c).generation, Gen(3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_item_that_ttl_took_is_made_again_with_the_lease_checked() {
    for unanswered in [false, true] {
        let world = World::new();
        let c = world.add(world.spec("c").mintable()).await;
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
        let ttl = world.token(&c).ttl.unwrap();
        assert!(ttl > world.token(&c).expires_at, "a mintable token may expire, after its life");
        world.sleep(secs(3500)).await;
        world.store_without_token(&c);
        on_commits(&world, move |n| if unanswered && n == 0 { Fault::After(lost()) } else { Fault::None });
        // Its last generation went with the item: the lease is found in doubt, and taken over in its time.
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
        assert_eq!(world.token(&c).generation, Gen(2));
    }
}

#[tokio::test(start_paused = true)]
async fn minted_tokens_whose_lease_was_taken_meanwhile_are_dropped_as_a_conflict() {
    let world = World::new();
    let c = world.add(world.spec("c").mintable()).await;
    world.store_without_token(&c);
    world.endpoint.script(|call| if call.nth == 0 { Act::Late(secs(19)) } else { Act::Honest });
    let holder = world.begin(&c);
    world.sleep(secs(10)).await;
    world.edit(&Key::Lease(c.clone()), attr::GEN, Value::N(7));
    assert_eq!(holder.await.unwrap().outcome, Outcome::Conflict, "the client is still there");
    assert_eq!(world.raw(&Key::Token(c)), None);
}

#[tokio::test(start_paused = true)]
async fn committing_a_refresh_token_takes_off_a_ttl() {
    let world = World::new();
    let c = world.due("c").await;
    world.edit(&Key::Token(c.clone()), attr::TTL, Value::N(5));
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!(world.token(&c).ttl, None);
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_omits_stays_as_it_is_stored() {
    let world = World::new();
    world.endpoint.manner(|manner| {
        manner.rotation = super::endpoint::Rotation::Fixed;
        manner.scope = None;
    });
    let c = world.due("c").await;
    world.edit(&Key::Token(c.clone()), "another_tools", Value::S("note".into()));
    let before = world.stored(&c);
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!(world.stored(&c), before);
    assert_eq!(world.token(&c).scope.as_deref(), Some("first"));
    let item = world.raw(&Key::Token(c)).unwrap();
    assert_eq!(item.get("another_tools"), Some(&Value::S("note".into())), "and what nobody here knows");
}

#[tokio::test(start_paused = true)]
async fn the_expiry_is_counted_from_before_the_request() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Late(secs(15)));
    let issued = perennial::time::Clock::now(&*world.clock);
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!(world.token(&c).expires_at.since(issued), secs(3600));
}

#[tokio::test(start_paused = true)]
async fn two_commits_of_one_attempt_never_overwrite_a_sibling() {
    let world = World::new();
    let c = world.due("c").await;
    let (store, consent_made) = (world.store.clone(), Arc::new(AtomicU32::new(0)));
    let made = Arc::clone(&consent_made);
    let lease = Key::Lease(c.clone());
    let token = Key::Token(c.clone());
    on_commits(&world, move |n| {
        if n == 0 {
            // It lands, unanswered; then somebody else goes on from it, to generation 2.
            return Fault::After(lost());
        }
        if made.fetch_add(1, Ordering::Relaxed) == 0 {
            let raise = |key: &Key, name| {
                let item = store.raw(&key.pk(), key.sk()).unwrap().with(name, Value::N(2));
                store.put_raw(&key.pk(), key.sk(), item);
            };
            raise(&lease, attr::GEN);
            raise(&token, attr::TOK_GEN);
            at_once(store.read(&super::world::id("c"))).unwrap();
        }
        Fault::None
    });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Conflict);
    assert_eq!(world.token(&c).generation, Gen(2));
    assert_eq!(consent_made.load(Ordering::Relaxed), 1);
}
