//! Acquire, read, and the send window: nobody sends without a lease that is known to stand.

use perennial::item::{Key, Value, attr};
use perennial::plan::registry;
use perennial::record::{Gen, State};
use perennial::refresh::Outcome;
use perennial::store::memory::{Fault, Operation};
use perennial::store::{Store as _, StoreError};

use super::endpoint::{Act, timeout};
use super::world::{World, at_once, id, is_acquire, lost, secs};

/// A fault for acquires alone, the first `times` of them.
fn on_acquires(world: &World, times: u32, fault: impl Fn(StoreError) -> Fault + Send + 'static) {
    let mut left = times;
    world.faults(move |operation| match operation {
        Operation::Apply(change) if is_acquire(change) && left > 0 => {
            left -= 1;
            fault(lost())
        }
        _ => Fault::None,
    });
}

#[tokio::test(start_paused = true)]
async fn a_refresh_costs_a_lease_write_a_token_write_and_one_read_of_the_partition() {
    for access_len in [20, 3000, 9500] {
        let world = World::new();
        world.endpoint.manner(|manner| manner.access_len = access_len);
        let c = world.due("c").await;
        // The second refresh meets an item of its final size.
        for _ in 0..2 {
            let vitals = world.store.vitals();
            let (reads, writes) = (vitals.read_units(), vitals.write_units());
            let partition = access_len * usize::from(world.token(&c).access_token.is_some());
            assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
            let kilobytes = (access_len + 250).div_ceil(1024);
            assert_eq!(vitals.write_units() - writes, 1.0 + kilobytes as f64, "{access_len}");
            let pages = (partition + 700).div_ceil(4096);
            assert_eq!(vitals.read_units() - reads, pages as f64, "{access_len}");
            world.sleep(secs(3500)).await;
        }
        assert_eq!(world.counts.writes.load(std::sync::atomic::Ordering::Relaxed), 1 + 2 * 2, "no release");
        world.assert_whole(&c);
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_landed_unanswered_is_recognised_by_its_own_name() {
    let world = World::new();
    let c = world.due("c").await;
    on_acquires(&world, 1, Fault::After);
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!((world.endpoint.sends(), world.lease(&c).generation), (1, Gen(1)));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_did_not_land_is_issued_again() {
    let world = World::new();
    let c = world.due("c").await;
    on_acquires(&world, 3, Fault::Before);
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!((world.endpoint.sends(), world.lease(&c).generation), (1, Gen(1)));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_never_answered_sends_nothing_and_is_given_back() {
    for landed in [true, false] {
        let world = World::new();
        let c = world.due("c").await;
        let fault = if landed { Fault::After } else { Fault::Before };
        on_acquires(&world, u32::MAX, fault);
        let began = world.clock.elapsed();
        let report = world.refresh(&c).await;
        assert!(matches!(report.outcome, Outcome::StoreUnavailable(_)), "{report:?}");
        assert_eq!(world.endpoint.sends(), 0);
        assert_eq!(world.lease(&c).state, State::Idle, "the abandoned lease was given back");
        assert!(world.clock.elapsed() - began < secs(6), "not beyond the send window");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_loses_the_acquire_sends_nothing_and_learns_the_winners_lease() {
    let world = World::new();
    let c = world.due("c").await;
    let (winner, loser) = (world.begin(&c), world.begin(&c));
    let (winner, loser) = (winner.await.unwrap(), loser.await.unwrap());
    assert_eq!((winner.outcome, loser.outcome), (Outcome::Refreshed, Outcome::Conflict));
    assert_eq!(world.endpoint.sends(), 1);
    assert_eq!(loser.known.unwrap().lease.generation, Gen(1));
}

#[tokio::test(start_paused = true)]
async fn a_consent_between_acquire_and_read_fences_the_attempt_out_and_stays() {
    let world = World::new();
    let c = world.due("c").await;
    let (store, consent) = (world.store.clone(), world.new_consent(&c));
    let mut consent = Some(consent);
    let snapshot = {
        let (world_store, c) = (world.store.clone(), c.clone());
        move || at_once(world_store.read(&c))
    };
    world.faults(move |operation| {
        let now = matches!(operation, Operation::Read(_));
        if let Some(mut change) = consent.take_if(|_| now) {
            // The operator's tool reads the generation as the acquire left it.
            let lease = snapshot().unwrap().lease.unwrap();
            let Some(Value::N(generation)) = lease.get(attr::GEN) else { panic!("a lease has a generation") };
            rebase(&mut change, *generation);
            at_once(store.apply(&change)).unwrap();
        }
        Fault::None
    });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Conflict);
    assert_eq!(world.endpoint.sends(), 0);
    assert_eq!((world.token(&c).generation, world.lease(&c).state), (Gen(2), State::Idle));
    world.assert_whole(&c);
}

/// The same outside write, planned on another generation.
fn rebase(change: &mut perennial::item::Change, generation: i64) {
    use perennial::item::{Action, Assignment, Condition};
    for write in &mut change.0 {
        match (&write.key, &mut write.action) {
            (Key::Lease(_), Action::Update(list)) => {
                write.condition = Condition::Equals(attr::GEN, Value::N(generation));
                list[0] = Assignment::Set(attr::GEN, Value::N(generation + 1));
            }
            (Key::Token(_), Action::Update(list)) => {
                list.retain(|assignment| !matches!(assignment, Assignment::Set(attr::TOK_GEN, _)));
                list.push(Assignment::Set(attr::TOK_GEN, Value::N(generation + 1)));
            }
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_after_the_window_though_the_machine_was_only_suspended() {
    let world = World::new();
    let c = world.due("c").await;
    let clock = std::sync::Arc::clone(&world.clock);
    world.faults(move |operation| {
        if let Operation::Read(_) = operation {
            clock.suspend(secs(6));
        }
        Fault::None
    });
    let report = world.refresh(&c).await;
    assert_eq!(world.endpoint.sends(), 0);
    assert_eq!(world.lease(&c).state, State::Idle, "given back: nothing is in doubt");
    assert!(
        matches!(report.outcome, Outcome::StoreUnavailable(_)),
        "not as if it was not needed: {report:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_replay_leaves_after_a_suspension_that_outlasted_the_lease() {
    let world = World::new();
    let c = world.due("c").await;
    let clock = std::sync::Arc::clone(&world.clock);
    world.endpoint.script(move |call| {
        if call.nth > 0 {
            return Act::Honest;
        }
        // Suspended between the reply and the replay, while the pause runs.
        let clock = std::sync::Arc::clone(&clock);
        tokio::spawn(async move {
            perennial::time::Clock::sleep(&*clock, std::time::Duration::from_millis(20_001)).await;
            clock.suspend(secs(600));
        });
        Act::Say(timeout())
    });
    let report = world.refresh(&c).await;
    assert_eq!(world.endpoint.sends(), 1, "{report:?}");
    assert_eq!(world.lease(&c).doubt, Some((Gen(0), 1)));
}

#[tokio::test(start_paused = true)]
async fn a_read_that_gives_no_answer_sends_nothing_and_gives_the_lease_back() {
    let world = World::new();
    let c = world.due("c").await;
    world.faults(|operation| match operation {
        Operation::Read(_) => Fault::Before(lost()),
        _ => Fault::None,
    });
    assert!(matches!(world.refresh(&c).await.outcome, Outcome::StoreUnavailable(_)));
    assert_eq!((world.endpoint.sends(), world.lease(&c).state), (0, State::Idle));
}

#[tokio::test(start_paused = true)]
async fn tokens_of_another_registration_are_never_sent() {
    let world = World::new();
    let c = world.due("c").await;
    world.edit(&Key::Config(c.clone()), attr::CLIENT_ID, Value::S("another".into()));
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("binding_mismatch".into()));
    assert_eq!(world.endpoint.sends(), 0);
    // Nor is a secret, where somebody moved a client to another provider by hand.
    let m = world.add(world.spec("m").mintable()).await;
    let known = world.known(&m);
    world.edit(&Key::Config(m.clone()), attr::PROVIDER, Value::S("other".into()));
    let report = world.refresher().refresh(&known, &world.provider).await;
    assert_eq!((world.endpoint.sends(), report.outcome), (0, Outcome::NotNeeded));
}

#[tokio::test(start_paused = true)]
async fn dead_held_removed_and_unknown_states_are_not_acquired() {
    for state in ["D", "Q", "X", "Z"] {
        let world = World::new();
        let c = world.due("c").await;
        world.edit(&Key::Lease(c.clone()), attr::ST, Value::S(state.into()));
        world.edit(&Key::Lease(c.clone()), attr::OF, Value::N(0));
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Conflict);
        assert_eq!((world.endpoint.sends(), world.lease(&c).generation), (0, Gen(0)), "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_said_of_an_older_token_does_not_hold_back_a_newer_one() {
    for state in ["D", "Q"] {
        let world = World::new();
        let c = world.due("c").await;
        world.edit(&Key::Lease(c.clone()), attr::ST, Value::S(state.into()));
        world.edit(&Key::Lease(c.clone()), attr::OF, Value::N(-1));
        world.edit(&Key::Lease(c.clone()), attr::DBT, Value::N(-1));
        world.edit(&Key::Lease(c.clone()), attr::FAILS, Value::N(7));
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
        let lease = world.lease(&c);
        assert_eq!((lease.of, lease.doubt, lease.fails), (None, None, 0), "a clean slate");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_client_is_not_sent_even_if_it_was_paused_a_moment_ago() {
    let world = World::new();
    let c = world.due("c").await;
    let known = world.known(&c);
    world.apply(&registry::pause(&known.client, true, super::world::START)).await;
    let report = world.refresher().refresh(&known, &world.provider).await;
    assert_eq!((report.outcome, world.endpoint.sends()), (Outcome::NotNeeded, 0));
    assert_eq!(world.lease(&id("c")).state, State::Idle);
}
