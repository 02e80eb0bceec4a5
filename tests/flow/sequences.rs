//! Whatever a provider answers, in whatever order: the limits hold, and memory agrees with the table.

use std::time::Duration;

use perennial::client::InDoubt;
use perennial::item::{Action, Item, Value, attr};
use perennial::plan::lease::{self, Doubt, Intent, Release};
use perennial::record::{Gen, Lease, State, decode_lease};
use perennial::refresh::Outcome;
use perennial::reply::Reply;
use perennial::store::memory::{holds, perform};
use perennial::time::Timestamp;
use proptest::prelude::*;

use super::endpoint::{Act, server_error, throttled, timeout};
use super::world::{START, World, id, secs};

fn reply() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Say(timeout())),
        2 => Just(Act::LoseReply(timeout())),
        2 => Just(Act::Say(server_error())),
        1 => Just(Act::LoseReply(server_error())),
        1 => Just(Act::Say(throttled(Some(60)))),
        1 => Just(Act::Say(Reply::NotSent("dns".into()))),
        1 => Just(Act::Say(Reply::Blocked("http_403".into()))),
        1 => Just(Act::Say(Reply::Rejected("invalid_client".into()))),
        1 => Just(Act::Say(Reply::Rejected("unauthorized_client".into()))),
        1 => Just(Act::Honest),
    ]
}

fn policy() -> impl Strategy<Value = InDoubt> {
    prop_oneof![Just(InDoubt::RetryOnce), Just(InDoubt::Grace), Just(InDoubt::Hold)]
}

fn simulate<T>(story: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(story)
}

/// The sends of each stored token to which nothing was heard, and how the last attempt ended.
async fn unheard_by_token(policy: InDoubt, replies: Vec<Act>) -> (Vec<u32>, World) {
    let mut world = World::new();
    world.provider.in_doubt = policy;
    world.provider.grace_window = secs(600);
    let c = world.due("c").await;
    let script = replies.clone();
    world.endpoint.script(move |call| script.get(call.nth).cloned().unwrap_or(Act::Honest));
    let mut unheard = vec![0_u32];
    for _ in 0..12 {
        let before = world.endpoint.sends();
        let outcome = world.refresh(&c).await.outcome;
        let silent = |act: &&Act| match act {
            Act::Say(reply) | Act::LoseReply(reply) => reply.code() == "timeout",
            _ => false,
        };
        let after = world.endpoint.sends().min(replies.len());
        let lost = replies[before.min(after)..after].iter().filter(silent).count();
        *unheard.last_mut().unwrap() += u32::try_from(lost).unwrap();
        match outcome {
            Outcome::Refreshed => unheard.push(0),
            Outcome::Dead(_) | Outcome::Held(_) => break,
            _ => {}
        }
        world.sleep(secs(7200)).await;
    }
    (unheard, world)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_refresh_token_is_sent_more_often_than_its_policy_allows(
        policy in policy(),
        replies in proptest::collection::vec(reply(), 1..16),
    ) {
        let (unheard, world) = simulate(unheard_by_token(policy, replies));
        let most = match policy {
            InDoubt::Hold => 1,
            // Four inside the window, which count as one, and two by later attempts.
            InDoubt::Grace => 6,
            _ => 3,
        };
        prop_assert!(unheard.iter().all(|sends| *sends <= most), "{unheard:?}");
        let lease = world.lease(&id("c"));
        // Never dead or held while the stored token is the live one, but where nobody can know that.
        if lease.state == State::Dead {
            prop_assert_eq!(lease.error.as_deref(), Some("lost_rotation"));
            prop_assert_eq!(world.endpoint.live("c"), None);
        }
        if lease.state == State::Held {
            prop_assert_eq!(lease.doubt.map(|(of, _)| of), Some(world.token(&id("c")).generation));
        }
        if lease.state == State::InFlight {
            world.assert_whole(&id("c"));
        }
    }

    #[test]
    fn the_memory_of_a_release_is_what_the_table_holds(held in held(), release in release(), fails in 0_u32..40) {
        let held = Lease { fails, ..held };
        let change = lease::release(&id("c"), held.generation, &release);
        prop_assert_eq!(written(&held, &change.0[0]), Some(lease::released(&held, &release)));
    }

    #[test]
    fn the_memory_of_an_acquire_is_what_the_table_holds(seen in lease(), tok_gen in -1_i64..6) {
        let intent = Intent { owner: "me#1".into(), lease: secs(90), now: START };
        let Some((change, next)) = lease::acquire(&id("c"), &seen, Gen(tok_gen), &intent) else {
            prop_assert!(!matches!(seen.state, State::Idle), "an idle client may always be acquired");
            return Ok(());
        };
        prop_assert_eq!(written(&seen, &change.0[0]), Some(next.clone()));
        // Above both: another tool may have numbered its tokens beyond the lease.
        prop_assert_eq!(next.generation, seen.generation.max(Gen(tok_gen)).next());
        // On anything else it fails.
        let moved = Lease { generation: seen.generation.next(), ..seen.clone() };
        prop_assert_eq!(written(&moved, &change.0[0]), None);
        // A lease in doubt leaves its doubt behind in the same write.
        if seen.state == State::InFlight && tok_gen < seen.generation.0 {
            prop_assert!(next.doubt_about(Gen(tok_gen)) > Some(0));
        }
    }

    #[test]
    fn an_abandoned_lease_is_the_one_of_that_name_only(seen in lease()) {
        let change = lease::abandon(&id("c"), "me#1");
        let mine = Lease { owner: Some("me#1".into()), state: State::InFlight, ..seen.clone() };
        prop_assert_eq!(written(&mine, &change.0[0]), Some(Lease { state: State::Idle, ..mine }));
        prop_assert_eq!(written(&Lease { owner: Some("me#2".into()), ..seen }, &change.0[0]), None);
    }
}

fn lease() -> impl Strategy<Value = Lease> {
    let state = prop_oneof![
        Just(State::Idle),
        Just(State::InFlight),
        Just(State::Held),
        Just(State::Dead),
        Just(State::Removed),
        Just(State::Unknown("Z".into())),
    ];
    let time = || proptest::option::of((0_i64..2_000_000_000_000).prop_map(Timestamp::from_millis));
    let doubt = proptest::option::of((-1_i64..6, 0_u32..5).prop_map(|(of, sends)| (Gen(of), sends)));
    let numbers = (0_i64..6, 0_u32..40, proptest::option::of((-1_i64..6).prop_map(Gen)));
    (state, numbers, time(), time(), doubt, proptest::option::of("[a-z_]{1,64}")).prop_map(
        |(state, (generation, fails, of), intended_at, next_at, doubt, error)| Lease {
            generation: Gen(generation),
            state,
            owner: Some("other#1".into()),
            lease_ms: 90_000,
            intended_at,
            next_at,
            fails,
            error,
            of,
            doubt,
        },
    )
}

fn held() -> impl Strategy<Value = Lease> {
    lease().prop_map(|lease| Lease { state: State::InFlight, ..lease })
}

fn release() -> impl Strategy<Value = Release> {
    let doubt = prop_oneof![
        Just(Doubt::Unchanged),
        Just(Doubt::Ended),
        (0_i64..6, 0_u32..5).prop_map(|(of, sends)| Doubt::About(Gen(of), sends)),
    ];
    // Anything at all, as a provider may spell it.
    let code = || ".{0,100}";
    let next_at = (0_u64..4_000_000).prop_map(|wait| START.plus(Duration::from_secs(wait)));
    prop_oneof![
        Just(Release::NotNeeded),
        (code(), next_at, doubt).prop_map(|(code, next_at, doubt)| Release::Failed { code, next_at, doubt }),
        (code(), 0_i64..6, 0_u32..5).prop_map(|(code, of, sends)| Release::Hold { code, of: Gen(of), sends }),
        (code(), 0_i64..6).prop_map(|(code, of)| Release::Bury { code, of: Gen(of) }),
    ]
}

/// What a write makes of a lease, as the table's interpreter has it; `None` where its condition does not hold.
fn written(lease: &Lease, write: &perennial::item::Write) -> Option<Lease> {
    let item = encode(lease);
    assert!(matches!(write.action, Action::Update(_)));
    let holds = holds(&write.condition, Some(&item));
    let item = holds.then(|| perform(&write.action, Some(item)).unwrap().unwrap())?;
    Some(decode_lease(&id("c"), &item).unwrap())
}

fn encode(lease: &Lease) -> Item {
    let time = |at: Option<Timestamp>| at.map(|at| Value::N(at.as_millis()));
    Item::default()
        .with(attr::GEN, Value::N(lease.generation.0))
        .with(attr::ST, Value::S(lease.state.as_str().into()))
        .with_some(attr::OWN, lease.owner.clone().map(Value::S))
        .with(attr::LEASE_MS, Value::N(lease.lease_ms))
        .with_some(attr::INT_AT, time(lease.intended_at))
        .with_some(attr::NEXT_AT, time(lease.next_at))
        .with(attr::FAILS, Value::N(lease.fails.into()))
        .with_some(attr::ERR, lease.error.clone().map(Value::S))
        .with_some(attr::OF, lease.of.map(|of| Value::N(of.0)))
        .with_some(attr::DBT, lease.doubt.map(|(of, _)| Value::N(of.0)))
        .with_some(attr::DBT_SENDS, lease.doubt.map(|(_, sends)| Value::N(sends.into())))
}
