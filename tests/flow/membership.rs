//! Several tasks divide the work, take over from the dead, and roll through a deployment.

use std::sync::Arc;

use perennial::client::ClientId;
use perennial::item::Change;
use perennial::record::{Member, Phase};
use perennial::store::Vitals;
use perennial::store::memory::{Fault, Operation};

use super::world::{Daemon, World, lost, secs};

/// Sixty clients with tokens of an hour, due at various times.
async fn sixty(world: &World) -> Vec<ClientId> {
    let mut ids = Vec::new();
    for n in 0..60 {
        let spec = world.spec(&format!("c{n}")).expires_in(secs(3600)).refresh_in(secs(600 + 30 * n));
        ids.push(world.add(spec).await);
    }
    ids
}

fn of<'a>(members: &'a [Member], daemon: &Daemon) -> &'a Member {
    members.iter().find(|member| member.incarnation == daemon.name).expect("it is a member")
}

fn whole(world: &World, ids: &[ClientId]) {
    ids.iter().for_each(|id| world.assert_whole(id));
    assert_eq!(world.endpoint.double_redemptions(), 0);
}

#[tokio::test(start_paused = true)]
async fn tasks_divide_the_clients_and_do_not_get_in_each_others_way() {
    let world = World::new();
    let ids = sixty(&world).await;
    let fleet = [world.daemon().await, world.daemon().await, world.daemon().await];
    world.sleep(secs(60)).await;
    let members = world.members();
    let clients: Vec<_> = fleet.iter().map(|daemon| of(&members, daemon).tally.clients).collect();
    assert_eq!(clients.iter().sum::<u64>(), 60, "{clients:?}");
    world.sleep(secs(7200)).await;
    let mut conflicts = 0;
    for daemon in fleet {
        conflicts += daemon.stop().await.tally.conflicts;
    }
    assert_eq!(conflicts, 0);
    assert!(world.endpoint.sends() >= 120, "{}", world.endpoint.sends());
    assert_eq!(world.members(), [], "they took their leave");
    whole(&world, &ids);
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_task_cared_for_is_with_another_within_a_minute() {
    let world = World::new();
    let ids = sixty(&world).await;
    let (one, other) = (world.daemon().await, world.daemon().await);
    world.sleep(secs(60)).await;
    assert!(one.pulse.tally().clients < 60);
    other.kill();
    world.sleep(secs(60)).await;
    assert_eq!(one.pulse.tally().clients, 60);
    world.sleep(secs(7200)).await;
    assert_eq!(one.stop().await.tally.takeovers, 0, "nothing was in flight");
    whole(&world, &ids);
}

#[tokio::test(start_paused = true)]
async fn a_rolling_replacement_costs_neither_a_second_nor_a_take_over() {
    let world = World::new();
    let ids = sixty(&world).await;
    let mut fleet = vec![world.daemon().await, world.daemon().await, world.daemon().await];
    let (mut takeovers, mut conflicts, mut refreshed) = (0, 0, 0);
    for _ in 0..12 {
        world.sleep(secs(400)).await;
        // The new one first, as an ECS service does.
        fleet.push(world.daemon().await);
        let summary = fleet.remove(0).stop().await;
        assert_eq!(summary.abandoned, 0);
        takeovers += summary.tally.takeovers;
        conflicts += summary.tally.conflicts;
        refreshed += summary.tally.refreshed;
        for id in &ids {
            assert!(world.token(id).expires_at > world.clock.wall(), "{id} has expired");
        }
    }
    assert_eq!(takeovers, 0);
    assert!(refreshed > 60 && conflicts * 20 < refreshed, "{conflicts} conflicts in {refreshed} refreshes");
    whole(&world, &ids);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_asked_to_stop_says_so_first_and_stores_what_it_has_begun() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| super::endpoint::Act::Late(secs(15)));
    let daemon = world.daemon().await;
    world.sleep(secs(2)).await;
    daemon.drain.cancel();
    world.sleep(secs(1)).await;
    assert_eq!(of(&world.members(), &daemon).phase, Phase::Leaving);
    assert_eq!(world.token(&c).generation.0, 0, "still in flight");
    assert_eq!(daemon.stop().await.tally.refreshed, 1);
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn one_whose_heartbeat_cannot_be_written_stops_acquiring_and_goes_on_after() {
    let world = World::new();
    let ids = sixty(&world).await;
    let daemon = world.daemon().await;
    let is_write = |operation: Operation<'_>| matches!(operation, Operation::Apply(_));
    world.heartbeat_faults(move |operation| match is_write(operation) {
        true => Fault::Before(lost()),
        false => Fault::None,
    });
    world.sleep(secs(2700)).await;
    assert_eq!(world.endpoint.sends(), 0, "others have its clients, if there are others");
    world.heartbeat_faults(|_| Fault::None);
    world.sleep(secs(600)).await;
    assert!(world.endpoint.sends() >= 60);
    daemon.stop().await;
    whole(&world, &ids);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_suspended_for_longer_than_the_silence_beats_before_it_acquires() {
    let world = World::new();
    let c = world.add(world.spec("c").expires_in(secs(3600)).refresh_in(secs(200))).await;
    let daemon = world.daemon().await;
    world.sleep(secs(60)).await;
    world.heartbeat_faults(|_| Fault::Before(lost()));
    world.clock.suspend(secs(600));
    world.sleep(secs(60)).await;
    assert_eq!(world.endpoint.sends(), 0, "others have its clients, as far as it can know");
    world.heartbeat_faults(|_| Fault::None);
    world.sleep(secs(15)).await;
    assert_eq!((world.endpoint.sends(), daemon.stop().await.tally.refreshed), (1, 1));
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_with_a_slow_clock_wrote_is_found_by_the_next_reconciliation() {
    let world = World::new();
    let daemon = world.daemon().await;
    world.sleep(secs(3600)).await;
    // An hour behind: its join stamp lies before all that discovery looks back to.
    let mut late = world.spec("late");
    late.client.joined = world.clock.wall().minus(secs(3600));
    let id = world.add(late).await;
    world.sleep(secs(600)).await;
    assert_eq!((world.endpoint.sends(), daemon.pulse.tally().clients), (0, 0), "discovery cannot see it");
    let mut failures = 3;
    world.faults(move |operation| match operation {
        Operation::Query(_) if failures > 0 => {
            failures -= 1;
            Fault::Before(lost())
        }
        _ => Fault::None,
    });
    daemon.reconcile.send(()).await.unwrap();
    world.sleep(secs(20)).await;
    assert_eq!(daemon.pulse.tally().clients, 1, "one that failed was not tried again");
    daemon.stop().await;
    world.assert_whole(&id);
}

#[tokio::test(start_paused = true)]
async fn one_whose_wall_clock_is_off_acquires_nobody_and_loses_its_shards_until_it_is_right() {
    let world = World::new();
    let ids = sixty(&world).await;
    let vitals = Arc::new(Vitals::default());
    let right = world.daemon().await;
    let wrong = world.daemon_on(Arc::clone(&world.clock) as _, Arc::clone(&vitals)).await;
    world.sleep(secs(60)).await;
    let share = wrong.pulse.tally().clients;
    assert!(share > 0 && right.pulse.tally().clients == 60 - share, "{share}");
    // The store's clock, as the `Date` of its answers tells it.
    let clock = world.clock.as_ref();
    vitals.answered(clock, Some(world.clock.wall().plus(secs(31))));
    world.sleep(secs(180)).await;
    assert_eq!(of(&world.members(), &wrong).skew_ms, -31_000, "exported");
    assert_eq!((right.pulse.tally().clients, wrong.pulse.tally().clients), (60, 0));
    world.sleep(secs(3000)).await;
    assert_eq!(wrong.pulse.tally().refreshed, 0);
    vitals.answered(clock, Some(world.clock.wall()));
    world.sleep(secs(60)).await;
    assert_eq!(wrong.pulse.tally().clients, share, "back at work");
    right.stop().await;
    wrong.stop().await;
    assert!(world.endpoint.grants().len() >= 60);
    whole(&world, &ids);
}

#[tokio::test(start_paused = true)]
async fn members_that_cannot_be_read_stay_as_they_were_last_seen() {
    let world = World::new();
    let ids = sixty(&world).await;
    let fleet = [world.daemon().await, world.daemon().await];
    world.sleep(secs(60)).await;
    let before: Vec<_> = fleet.iter().map(|daemon| daemon.pulse.tally().clients).collect();
    world.heartbeat_faults(|operation| match operation {
        Operation::Members => Fault::Before(lost()),
        _ => Fault::None,
    });
    world.sleep(secs(3600)).await;
    let after: Vec<_> = fleet.iter().map(|daemon| daemon.pulse.tally().clients).collect();
    assert_eq!(before, after);
    for daemon in fleet {
        assert_eq!(daemon.stop().await.tally.conflicts, 0);
    }
    whole(&world, &ids);
}

#[tokio::test(start_paused = true)]
async fn changes_by_operators_reach_the_task_that_cares_within_a_discovery() {
    let world = World::new();
    let ids = sixty(&world).await;
    let fleet = [world.daemon().await, world.daemon().await];
    world.sleep(secs(60)).await;
    let all = |fleet: &[Daemon]| fleet.iter().map(|daemon| daemon.pulse.tally().clients).sum::<u64>();
    let refresh = |id: &ClientId| -> Change {
        let read = world.snapshot(id);
        perennial::plan::registry::refresh_now(read.client().unwrap(), read.tok_gen(), world.clock.wall())
    };
    world.apply(&refresh(&ids[7])).await;
    world.apply(&world.removal(&ids[8])).await;
    world.due("new").await;
    world.sleep(secs(16)).await;
    assert_eq!(world.endpoint.sends(), 2, "the one asked for, and the new one");
    assert_eq!(all(&fleet), 60, "one came, one went");
    assert_eq!(world.token(&ids[7]).generation.0, 1);
}
