//! What becomes of a client in doubt when tasks, shards, operators and late holders get in the way.

use std::time::Duration;

use perennial::client::{ClientId, InDoubt};
use perennial::plan::registry::{self, Resolution};
use perennial::record::{Gen, State};

use super::endpoint::{Act, Rotation};
use super::world::{Daemon, World, secs};

/// L x 1.01 + H + X.
const WAIT: Duration = Duration::from_millis(170_900);

/// Expired clients, each left in flight by a holder that was killed after its request had been redeemed.
async fn redeemed_and_killed(world: &World, names: &[String]) -> Vec<ClientId> {
    world.endpoint.script(|_| Act::Silence);
    let mut ids = Vec::new();
    for name in names {
        let id = world.due(name).await;
        let holder = world.begin(&id);
        world.sleep(secs(1)).await;
        holder.abort();
        assert_eq!(world.lease(&id).state, State::InFlight);
        ids.push(id);
    }
    world.endpoint.script(|_| Act::Honest);
    ids
}

fn takeover_of(world: &World, id: &ClientId) -> Option<Duration> {
    world.endpoint.calls().iter().filter(|call| call.who == id.as_str()).nth(1).map(|call| call.at)
}

#[tokio::test(start_paused = true)]
async fn each_policy_has_its_own_end_for_a_token_that_a_dead_holder_redeemed() {
    // What the provider makes of a second use; then sends after the first, state, and code.
    let ends = [
        (InDoubt::RetryOnce, Rotation::Strict, 1, State::Dead, Some("lost_rotation")),
        (InDoubt::Grace, Rotation::Grace(secs(600)), 1, State::InFlight, None),
        (InDoubt::Grace, Rotation::Grace(secs(60)), 1, State::Dead, Some("lost_rotation")),
        (InDoubt::Hold, Rotation::Strict, 0, State::Held, Some("in_doubt")),
    ];
    for (policy, rotation, sends, state, code) in ends {
        let mut world = World::new();
        world.provider.in_doubt = policy;
        world.endpoint.manner(|manner| manner.rotation = rotation);
        let ids = redeemed_and_killed(&world, &["c".into()]).await;
        let daemon = world.daemon().await;
        world.sleep(secs(200)).await;
        let lease = world.lease(&ids[0]);
        assert_eq!(world.endpoint.sends(), 1 + sends, "{policy:?} {rotation:?}");
        assert_eq!((&lease.state, lease.error.as_deref()), (&state, code), "{policy:?} {rotation:?}");
        if state == State::InFlight {
            world.assert_whole(&ids[0]);
            assert_eq!(world.token(&ids[0]).generation, lease.generation, "the lease is spent");
        }
        daemon.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn under_grace_a_taker_does_not_wait_for_the_expiry_of_a_good_token() {
    let mut world = World::new();
    world.provider.in_doubt = InDoubt::Grace;
    world.endpoint.manner(|manner| manner.rotation = Rotation::Grace(secs(600)));
    let c = world.add(world.spec("c").expires_in(secs(3600)).refresh_in(secs(0))).await;
    world.endpoint.script(|call| if call.nth == 0 { Act::Silence } else { Act::Honest });
    let holder = world.begin(&c);
    world.sleep(secs(1)).await;
    holder.abort();
    let began = world.clock.elapsed();
    let daemon = world.daemon().await;
    world.sleep(secs(200)).await;
    let waited = takeover_of(&world, &c).expect("taken over") - began;
    assert!(waited >= WAIT && waited < WAIT + secs(3), "{waited:?}");
    world.assert_whole(&c);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn news_and_reconciliations_do_not_restart_the_wait() {
    let world = World::new();
    let ids = redeemed_and_killed(&world, &["c".into()]).await;
    let began = world.clock.elapsed();
    let daemon = world.daemon().await;
    for _ in 0..8 {
        world.sleep(secs(20)).await;
        let read = world.snapshot(&ids[0]);
        let ask = registry::refresh_now(read.client().unwrap(), read.tok_gen(), world.clock.wall());
        world.apply(&ask).await;
        daemon.reconcile.send(()).await.unwrap();
    }
    world.sleep(secs(60)).await;
    let waited = takeover_of(&world, &ids[0]).expect("taken over") - began;
    assert!(waited >= WAIT && waited < WAIT + secs(20), "{waited:?}");
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_goes_and_comes_back_begins_its_wait_anew() {
    let world = World::new();
    let names: Vec<_> = (0..12).map(|n| format!("c{n}")).collect();
    let ids = redeemed_and_killed(&world, &names).await;
    let (began, first) = (world.clock.elapsed(), world.daemon().await);
    world.sleep(secs(100)).await;
    let second = world.daemon().await;
    world.sleep(secs(20)).await;
    let moved = second.pulse.tally().clients;
    assert!(moved > 0 && moved < 12, "{moved} of 12 moved: the names of the tasks are not those they were");
    second.kill();
    world.sleep(secs(600)).await;
    // Nobody watched while the shard changed hands: to be sure takes longer, and is never too early.
    let waits: Vec<_> = ids.iter().filter_map(|id| Some(takeover_of(&world, id)? - began)).collect();
    assert_eq!(waits.len(), 12, "every one is taken over");
    let prompt = waits.iter().filter(|wait| **wait < WAIT + secs(20)).count() as u64;
    let anew = waits.iter().filter(|wait| **wait >= secs(150) + WAIT).count() as u64;
    assert_eq!((prompt, anew), (12 - moved, moved), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait >= WAIT), "{waits:?}");
    assert_eq!(world.endpoint.overlaps(), 0);
    first.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_was_buried_lives_again_when_the_late_holder_stores_its_answer() {
    // Beyond its second use the provider leaves the newest token alone.
    let world = World::new();
    world.endpoint.manner(|manner| manner.rotation = Rotation::Fixed);
    let c = world.due("c").await;
    world.endpoint.script(|call| match call.nth {
        0 => Act::Late(secs(200)),
        1 => Act::Say(perennial::reply::Reply::Rejected("invalid_grant".into())),
        _ => Act::Honest,
    });
    let holder = world.begin(&c);
    world.sleep(secs(1)).await;
    let daemon = world.daemon().await;
    world.sleep(secs(190)).await;
    let lease = world.lease(&c);
    assert_eq!((lease.state, lease.error.as_deref()), (State::Dead, Some("lost_rotation")));
    assert_eq!(holder.await.unwrap().outcome, perennial::refresh::Outcome::Refreshed, "salvaged");
    assert_eq!((world.token(&c).generation, world.lease(&c).of), (Gen(1), Some(Gen(0))), "void");
    // Looked at again when the salvage wait is over, and then in its time.
    world.sleep(secs(3600)).await;
    assert!(world.token(&c).generation >= Gen(3), "{:?}", world.token(&c).generation);
    world.assert_whole(&c);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_is_resolved_is_taken_up_by_whoever_cares_within_a_discovery() {
    for (resolution, sends) in [(Resolution::Retry, 1), (Resolution::Dead, 0)] {
        let mut world = World::new();
        world.provider.in_doubt = InDoubt::Hold;
        world.endpoint.manner(|manner| manner.rotation = Rotation::Grace(secs(100_000)));
        let names: Vec<_> = (0..10).map(|n| format!("c{n}")).collect();
        let ids = redeemed_and_killed(&world, &names).await;
        let fleet = [world.daemon().await, world.daemon().await, world.daemon().await];
        world.sleep(secs(300)).await;
        assert!(ids.iter().all(|id| world.lease(id).state == State::Held));
        let cares = |daemon: &Daemon| daemon.pulse.tally().clients;
        assert!(
            fleet.iter().filter(|daemon| cares(daemon) > 0).count() > 1,
            "more than one has some of them"
        );
        for id in &ids {
            let change = registry::resolve(id, &world.snapshot(id), resolution, world.clock.wall()).unwrap();
            world.apply(&change).await;
        }
        world.sleep(secs(16)).await;
        assert_eq!(world.endpoint.sends(), 10 + 10 * sends, "{resolution:?}");
        for id in &ids {
            let healthy = world.token(id).generation == world.lease(id).generation;
            assert_eq!((healthy, world.lease(id).state == State::Dead), (sends == 1, sends == 0), "{id}");
        }
        for daemon in fleet {
            daemon.stop().await;
        }
    }
}
