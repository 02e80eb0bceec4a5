//! Take-over: when the holder of a lease falls silent, the wait is long enough, and not longer.

use std::sync::Arc;
use std::time::Duration;

use perennial::client::InDoubt;
use perennial::record::{Gen, State};
use perennial::store::memory::{Fault, Operation};

use super::endpoint::{Act, Rotation, timeout};
use super::world::{START, World, is_commit, lost, secs};

/// L x 1.01 + H + X.
const WAIT: Duration = Duration::from_millis(170_900);

/// A world with one client, expired, whose holder was killed before it sent, or after.
async fn killed(after_send: bool) -> (World, perennial::client::ClientId) {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(move |call| match (after_send, call.nth) {
        (true, 0) => Act::Silence,
        _ => Act::Honest,
    });
    if !after_send {
        world.faults(|operation| match operation {
            Operation::Read(_) => Fault::Before(lost()),
            _ => Fault::None,
        });
    }
    let holder = world.begin(&c);
    world.sleep(secs(1)).await;
    holder.abort();
    world.no_faults();
    assert_eq!((world.lease(&c).state, world.endpoint.sends()), (State::InFlight, usize::from(after_send)));
    (world, c)
}

#[tokio::test(start_paused = true)]
async fn a_taker_waits_from_its_own_first_sight_and_then_sends_once() {
    let (world, c) = killed(false).await;
    world.sleep(secs(1000)).await;
    let began = world.clock.elapsed();
    let daemon = world.daemon().await;
    world.sleep(secs(300)).await;
    let calls = world.endpoint.calls();
    assert_eq!(calls.len(), 1, "how long it lay there before does not count");
    let waited = calls[0].at - began;
    assert!(waited >= WAIT && waited < WAIT + secs(3), "{waited:?}");
    world.assert_whole(&c);
    assert_eq!(world.lease(&c).doubt.map(|(of, _)| of), Some(Gen(0)), "spent with the lease");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_was_redeemed_by_the_dead_holder_is_named_as_lost() {
    let (world, c) = killed(true).await;
    let daemon = world.daemon().await;
    world.sleep(secs(300)).await;
    assert_eq!(world.endpoint.sends(), 2);
    let lease = world.lease(&c);
    assert_eq!((lease.state, lease.error.as_deref()), (State::Dead, Some("lost_rotation")));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn at_a_provider_that_does_not_rotate_nothing_is_lost_and_the_wait_is_shorter() {
    let (mut world, c) = killed(true).await;
    world.endpoint.manner(|manner| manner.rotation = Rotation::Fixed);
    // What the silent holder was granted counts as still good.
    let live = world.endpoint.live("c").unwrap();
    world.edit(
        &perennial::item::Key::Token(c.clone()),
        perennial::item::attr::REFRESH_TOKEN,
        perennial::item::Value::text(perennial::item::attr::REFRESH_TOKEN, live),
    );
    world.provider.rotates = false;
    let began = world.clock.elapsed();
    let daemon = world.daemon().await;
    world.sleep(secs(300)).await;
    let waited = world.endpoint.calls()[1].at - began;
    assert!(waited >= WAIT - secs(60) && waited < WAIT - secs(55), "{waited:?}");
    assert_eq!(world.token(&c).generation, Gen(2));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn while_the_token_is_good_the_taker_waits_until_two_minutes_before_its_expiry() {
    let world = World::new();
    let c = world.add(world.spec("c").expires_in(secs(3600)).refresh_in(secs(10))).await;
    world.sleep(secs(20)).await;
    world.endpoint.script(|call| if call.nth == 0 { Act::Silence } else { Act::Honest });
    let holder = world.begin(&c);
    world.sleep(secs(1)).await;
    holder.abort();
    let reads = world.counts.all();
    let daemon = world.daemon().await;
    world.sleep(secs(3600)).await;
    let at = world.endpoint.calls()[1].at;
    assert!((secs(3480)..secs(3485)).contains(&at), "{at:?}");
    assert!(world.counts.all() - reads < 60 + 4 * 240 + 40, "patience does not read all the time");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_salvage_during_the_wait_ends_it() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Late(secs(120)));
    let holder = world.begin(&c);
    world.sleep(secs(1)).await;
    let daemon = world.daemon().await;
    world.sleep(secs(400)).await;
    assert_eq!(holder.await.unwrap().outcome, perennial::refresh::Outcome::Refreshed);
    assert_eq!(world.endpoint.sends(), 1);
    assert_eq!(world.lease(&c).generation, Gen(1));
    world.assert_whole(&c);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn doubt_outlives_the_taker() {
    let (world, c) = killed(true).await;
    world.endpoint.script(|call| if call.nth < 3 { Act::Silence } else { Act::Honest });
    for deaths in 1..=2_u32 {
        let taker = world.daemon().await;
        world.sleep(WAIT + secs(2)).await;
        taker.kill();
        assert_eq!(world.lease(&c).doubt, Some((Gen(0), deaths)));
        assert_eq!(world.lease(&c).state, State::InFlight);
    }
}

#[tokio::test(start_paused = true)]
async fn three_holders_that_died_in_a_row_leave_the_client_to_an_operator() {
    let (world, c) = killed(true).await;
    world.endpoint.script(|_| Act::Silence);
    for _ in 0..4 {
        let taker = world.daemon().await;
        world.sleep(WAIT + secs(2)).await;
        taker.kill();
    }
    let lease = world.lease(&c);
    assert_eq!((lease.state, lease.of), (State::Held, Some(Gen(0))));
    assert_eq!(world.endpoint.sends(), 3);
}

#[tokio::test(start_paused = true)]
async fn under_hold_a_taker_sends_nothing() {
    let (mut world, c) = killed(false).await;
    world.provider.in_doubt = InDoubt::Hold;
    let daemon = world.daemon().await;
    world.sleep(secs(300)).await;
    assert_eq!((world.endpoint.sends(), world.lease(&c).state), (0, State::Held));
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_wall_clock_neither_shortens_nor_lengthens_the_wait() {
    for step in [3600, -3600] {
        let (world, c) = killed(false).await;
        let began = world.clock.elapsed();
        let daemon = world.daemon().await;
        world.sleep(secs(60)).await;
        world.clock.step(step);
        world.sleep(secs(300)).await;
        let calls = world.endpoint.calls();
        assert_eq!(calls.len(), 1, "{step}");
        let waited = calls[0].at - began;
        assert!(waited >= WAIT && waited < WAIT + secs(21), "{step}: {waited:?}");
        world.assert_whole(&c);
        daemon.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_takers_of_one_silent_lease_send_once() {
    let (world, c) = killed(false).await;
    let (one, other) = (world.daemon().await, world.daemon().await);
    world.sleep(secs(400)).await;
    assert_eq!((world.endpoint.sends(), world.endpoint.overlaps()), (1, 0));
    world.assert_whole(&c);
    one.stop().await;
    other.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_died_between_answer_and_commit_is_what_is_not_guaranteed() {
    let world = World::new();
    let c = world.due("c").await;
    world.faults(|operation| match operation {
        Operation::Apply(change) if is_commit(change) => Fault::Before(lost()),
        _ => Fault::None,
    });
    let holder = world.begin(&c);
    world.sleep(secs(3)).await;
    holder.abort();
    world.no_faults();
    let daemon = world.daemon().await;
    world.sleep(secs(300)).await;
    assert_eq!(world.lease(&c).error.as_deref(), Some("lost_rotation"), "but it is named");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_suspended_machine_does_not_act_on_a_lease_that_ran_out_meanwhile() {
    let world = World::new();
    let c = world.due("c").await;
    let clock = Arc::clone(&world.clock);
    world.endpoint.script(move |call| {
        if call.nth == 0 {
            clock.suspend(secs(3600));
            return Act::Say(timeout());
        }
        Act::Honest
    });
    world.refresh(&c).await;
    assert_eq!(world.endpoint.sends(), 1, "no replay after the lease");
    assert_eq!(world.lease(&c).doubt, Some((Gen(0), 1)));
    assert!(world.lease(&c).next_at.unwrap() > START.plus(secs(3600)));
}
