//! Every class of failure: how often something is sent, and what is left in the table.

use std::time::Duration;

use perennial::client::{ClientId, InDoubt};
use perennial::item::{Key, Value, attr};
use perennial::record::{Gen, Lease, State};
use perennial::refresh::Outcome;
use perennial::reply::Reply;
use perennial::store::memory::{Fault, Operation};
use perennial::time::Clock as _;

use super::endpoint::{Act, Rotation, server_error, throttled, timeout};
use super::world::{World, lost, secs};

/// One attempt of a client with a good token, where the provider always answers so.
async fn always(policy: InDoubt, act: Act) -> (World, ClientId, Outcome) {
    let mut world = World::new();
    world.provider.in_doubt = policy;
    world.provider.rotates = policy != InDoubt::Reusable;
    world.provider.grace_window = secs(600);
    let spec = world.spec("c").expires_in(secs(600)).refresh_in(secs(0));
    let c = world.add(spec).await;
    world.endpoint.script(move |_| act.clone());
    let outcome = world.refresh(&c).await.outcome;
    (world, c, outcome)
}

fn backs_off(world: &World, lease: &Lease) -> bool {
    let wait = lease.next_at.unwrap().since(world.clock.now());
    (secs(4)..secs(200)).contains(&wait)
}

#[tokio::test(start_paused = true)]
async fn what_was_not_processed_is_tried_again_later_and_leaves_no_doubt() {
    for reply in [
        Reply::NotSent("connect".into()),
        throttled(None),
        Reply::Blocked("http_403".into()),
        Reply::Rejected("invalid_scope".into()),
    ] {
        let (world, c, outcome) = always(InDoubt::RetryOnce, Act::Say(reply.clone())).await;
        assert_eq!(outcome, Outcome::Failed(reply.code().into()));
        let lease = world.lease(&c);
        assert_eq!((world.endpoint.sends(), &lease.state, lease.fails), (1, &State::Idle, 1));
        assert_eq!((lease.doubt, lease.of), (None, None), "{reply:?}");
        assert!(backs_off(&world, &lease), "{lease:?}");
        assert_eq!(world.token(&c).generation, Gen(0), "the working token is as it was");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_comes_back_before_retry_after() {
    let unavailable = Reply::Unknown { code: "http_503".into(), server_fault: true, after: Some(secs(900)) };
    for reply in [throttled(Some(900)), unavailable] {
        let (world, c, _) = always(InDoubt::RetryOnce, Act::Say(reply)).await;
        assert_eq!(world.endpoint.sends(), 1, "not even the replay");
        assert!(world.lease(&c).next_at.unwrap().since(world.clock.now()) >= secs(890));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_lost_follows_the_providers_in_doubt_policy() {
    type Left = (usize, State, Option<(Gen, u32)>);
    let idle = |sends, doubt| (sends, State::Idle, doubt);
    let cases: [(InDoubt, Left); 4] = [
        (InDoubt::Reusable, idle(2, None)),
        (InDoubt::RetryOnce, idle(2, Some((Gen(0), 2)))),
        // Three sends fit into the lease, and replays inside the window count as one.
        (InDoubt::Grace, idle(3, Some((Gen(0), 1)))),
        (InDoubt::Hold, (1, State::Held, Some((Gen(0), 1)))),
    ];
    for (policy, expected) in cases {
        let (world, c, _) = always(policy, Act::Say(timeout())).await;
        let lease = world.lease(&c);
        let of = (lease.state == State::Held).then_some(Gen(0));
        assert_eq!(lease.of, of);
        assert_eq!((world.endpoint.sends(), lease.state, lease.doubt), expected, "{policy:?}");
        assert_eq!(lease.fails, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_servers_own_word_that_it_failed_is_not_counted_as_unheard() {
    let cases = [
        (InDoubt::Reusable, 2, State::Idle, None),
        (InDoubt::RetryOnce, 2, State::Idle, Some((Gen(0), 1))),
        (InDoubt::Grace, 4, State::Idle, Some((Gen(0), 1))),
        (InDoubt::Hold, 1, State::Held, Some((Gen(0), 1))),
    ];
    for (policy, sends, state, doubt) in cases {
        let (world, c, _) = always(policy, Act::Say(server_error())).await;
        let lease = world.lease(&c);
        assert_eq!((world.endpoint.sends(), lease.state, lease.doubt), (sends, state, doubt), "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_lost_under_grace_is_recovered_by_the_replay() {
    let mut world = World::new();
    world.provider.in_doubt = InDoubt::Grace;
    world.provider.grace_window = secs(60);
    world.endpoint.manner(|manner| manner.rotation = Rotation::Grace(secs(60)));
    let c = world.due("c").await;
    world.endpoint.script(|call| if call.nth == 0 { Act::LoseReply(timeout()) } else { Act::Honest });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!(world.endpoint.sends(), 2);
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_lost_on_its_way_is_saved_by_the_one_replay() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|call| if call.nth == 0 { Act::Say(timeout()) } else { Act::Honest });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!((world.endpoint.sends(), world.endpoint.double_redemptions()), (2, 0));
    assert_eq!(world.lease(&c).doubt, None);
}

#[tokio::test(start_paused = true)]
async fn three_unheard_sends_end_held_for_an_operator_and_never_dead() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Say(timeout()));
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("timeout".into()));
    world.sleep(secs(600)).await;
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Held("timeout".into()));
    let lease = world.lease(&c);
    assert_eq!((lease.state, lease.of, lease.doubt), (State::Held, Some(Gen(0)), Some((Gen(0), 3))));
    assert_eq!(world.endpoint.sends(), 3);
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Conflict, "nobody goes on by himself");
    assert_eq!(world.endpoint.sends(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refused_grant_is_dead_and_named_a_lost_rotation_where_a_send_was_in_doubt() {
    let (world, c, outcome) =
        always(InDoubt::RetryOnce, Act::Say(Reply::Rejected("invalid_grant".into()))).await;
    assert_eq!(outcome, Outcome::Dead("invalid_grant".into()));
    let lease = world.lease(&c);
    assert_eq!((lease.state, lease.of, lease.doubt), (State::Dead, Some(Gen(0)), None));
    assert_eq!(world.endpoint.sends(), 1);

    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|call| if call.nth == 0 { Act::LoseReply(timeout()) } else { Act::Honest });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Dead("lost_rotation".into()));
    assert_eq!(world.endpoint.double_redemptions(), 1, "the replay that its policy orders");
}

#[tokio::test(start_paused = true)]
async fn doubt_from_an_earlier_attempt_names_the_loss_too() {
    let world = World::new();
    let c = world.due("c").await;
    let replies =
        [Act::LoseReply(timeout()), Act::Say(timeout()), Act::Say(Reply::Rejected("invalid_client".into()))];
    world.endpoint.script(move |call| replies.get(call.nth).cloned().unwrap_or(Act::Honest));
    for expected in ["timeout", "invalid_client"] {
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed(expected.into()));
        assert_eq!(world.lease(&c).doubt, Some((Gen(0), 2)), "{expected} ends no doubt");
        world.sleep(secs(600)).await;
    }
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Dead("lost_rotation".into()));
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_was_refused_because_a_sibling_won_is_not_dead() {
    let world = World::new();
    let c = world.due("c").await;
    let (store, token) = (world.store.clone(), Key::Token(c.clone()));
    world.endpoint.script(move |_| {
        let item = store.raw(&token.pk(), token.sk()).unwrap().with(attr::TOK_GEN, Value::N(1));
        store.put_raw(&token.pk(), token.sk(), item);
        Act::Say(Reply::Rejected("invalid_grant".into()))
    });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::NotNeeded);
    assert_eq!(world.lease(&c).state, State::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_cannot_be_verified_kills_nobody() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Say(Reply::Rejected("invalid_grant".into())));
    let mut reads = 0;
    world.faults(move |operation| match operation {
        Operation::Read(_) => {
            reads += 1;
            if reads > 1 { Fault::Before(lost()) } else { Fault::None }
        }
        _ => Fault::None,
    });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("store_unavailable".into()));
    assert_eq!(world.lease(&c).state, State::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_refused_application_kills_no_grant_and_a_new_secret_is_tried_once() {
    for rotated in [false, true] {
        let world = World::new();
        let c = world.due("c").await;
        world.endpoint.manner(|manner| manner.secrets = ["s2".to_owned()].into());
        let (store, config) = (world.store.clone(), Key::Config(c.clone()));
        world.endpoint.script(move |call| {
            if rotated && call.nth == 0 {
                let secret = Value::text(attr::CLIENT_SECRET, "s2");
                let item = store.raw(&config.pk(), config.sk()).unwrap().with(attr::CLIENT_SECRET, secret);
                store.put_raw(&config.pk(), config.sk(), item);
            }
            Act::Honest
        });
        let outcome = world.refresh(&c).await.outcome;
        let (expected, sends) = match rotated {
            true => (Outcome::Refreshed, 2),
            false => (Outcome::Failed("invalid_client".into()), 1),
        };
        assert_eq!((outcome, world.endpoint.sends()), (expected, sends));
        assert_ne!(world.lease(&c).state, State::Dead);
        world.assert_whole(&c);
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_secret_that_is_refused_too_is_the_last_one_tried() {
    let world = World::new();
    let c = world.due("c").await;
    world.edit(&Key::Lease(c.clone()), attr::DBT, Value::N(0));
    world.edit(&Key::Lease(c.clone()), attr::DBT_SENDS, Value::N(1));
    let (store, config) = (world.store.clone(), Key::Config(c.clone()));
    world.endpoint.script(move |call| {
        let secret = Value::text(attr::CLIENT_SECRET, format!("another-{}", call.nth));
        let item = store.raw(&config.pk(), config.sk()).unwrap().with(attr::CLIENT_SECRET, secret);
        store.put_raw(&config.pk(), config.sk(), item);
        Act::Say(Reply::Rejected("invalid_client".into()))
    });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("invalid_client".into()));
    assert_eq!(world.endpoint.sends(), 2);
    assert_eq!(world.lease(&c).doubt, Some((Gen(0), 1)), "nobody has looked at the refresh token");
}

#[tokio::test(start_paused = true)]
async fn a_dead_or_held_client_lives_again_when_its_token_moves_on() {
    for state in ["D", "Q"] {
        let world = World::new();
        let c = world.due("c").await;
        world.edit(&Key::Lease(c.clone()), attr::ST, Value::S(state.into()));
        world.edit(&Key::Lease(c.clone()), attr::OF, Value::N(0));
        world.apply(&world.new_consent(&c)).await;
        world.sleep(secs(3600)).await;
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
        world.assert_whole(&c);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_wait_longer_and_longer_up_to_the_cap() {
    let world = World::new();
    let c = world.due("c").await;
    world.endpoint.script(|_| Act::Say(Reply::NotSent("dns".into())));
    let mut longest = Duration::ZERO;
    for fails in 1..=40 {
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("dns".into()));
        let lease = world.lease(&c);
        assert_eq!(lease.fails, fails);
        let wait = lease.next_at.unwrap().since(world.clock.now());
        assert!(wait >= secs(4) && wait <= secs(3600), "{wait:?}");
        longest = longest.max(wait);
        world.sleep(wait).await;
    }
    assert!(longest > secs(600), "expired for long: up to an hour");
}

#[tokio::test(start_paused = true)]
async fn an_absurd_count_in_the_table_breaks_nothing() {
    let world = World::new();
    let c = world.due("c").await;
    world.edit(&Key::Lease(c.clone()), attr::FAILS, Value::N(i64::MAX));
    world.endpoint.script(|_| Act::Say(throttled(None)));
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("http_429".into()));
}
