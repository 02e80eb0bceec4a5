//! Client secrets that are kept elsewhere, and a second one beside the first, on the way of a refresh.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial::client::ClientId;
use perennial::client::allowance::Allowed;
use perennial::client::credentials::{Credential, Credentials};
use perennial::item::Value;
use perennial::item::{Key, attr};
use perennial::record::{Gen, State};
use perennial::refresh::Outcome;
use perennial::reply::Reply;
use perennial::secret::Secret;
use perennial::secrets::{Answer, Failure, Source};
use perennial::store::memory::{Fault, Operation};
use perennial::time::Clock;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::endpoint::Act;
use super::world::{SimClock, World, lost, secs};

/// Secrets by reference, and how long an answer takes.
struct Keeper {
    clock: Arc<SimClock>,
    secrets: Mutex<BTreeMap<String, Result<String, Failure>>>,
    latency: Duration,
}

impl Keeper {
    fn says(&self, reference: &str, answer: Result<&str, Failure>) {
        self.secrets.lock().unwrap().insert(reference.into(), answer.map(str::to_owned));
    }
}

impl Source for Keeper {
    fn fetch<'a>(&'a self, allowed: &'a Allowed) -> Answer<'a> {
        Box::pin(async {
            self.clock.sleep(self.latency).await;
            let found = self.secrets.lock().unwrap().get(allowed.reference.as_str()).cloned();
            found.unwrap_or_else(|| Err(Failure::Refused("not there".into()))).map(Secret::from)
        })
    }
}

fn at(reference: &str) -> Option<Credential> {
    Some(Credential::At(reference.parse().unwrap()))
}

/// A client that is due, with these credentials, at a provider that knows this one secret.
async fn with(credentials: Credentials, known: &str, latency: Duration) -> (World, Arc<Keeper>, ClientId) {
    let mut world = World::new();
    let clock = Arc::clone(&world.clock);
    let keeper = Arc::new(Keeper { clock, secrets: Mutex::default(), latency });
    world.secrets = Some(Arc::clone(&keeper) as _);
    let mut spec = world.spec("c");
    spec.client.credentials = credentials;
    let c = world.add(spec).await;
    let known = known.to_owned();
    world.endpoint.manner(move |manner| manner.secrets = [known].into());
    (world, keeper, c)
}

fn by_reference() -> Credentials {
    Credentials { first: at("ssm:/one"), second: None }
}

#[tokio::test(start_paused = true)]
async fn without_a_secret_nothing_is_sent_and_nothing_is_in_doubt() {
    for (answer, code) in [
        (Failure::NoAnswer("down".into()), "secret_unavailable"),
        (Failure::Refused("gone".into()), "secret_refused"),
    ] {
        let (world, keeper, c) = with(by_reference(), "s1", secs(0)).await;
        keeper.says("ssm:/one", Err(answer));
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed(code.into()));
        let lease = world.lease(&c);
        assert_eq!((world.endpoint.sends(), lease.state, lease.doubt), (0, State::Idle, None));
        assert!(lease.next_at.is_some_and(|next| next > world.clock.now()), "it backs off");
        keeper.says("ssm:/one", Ok("s1"));
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed, "another process finds it");
        world.assert_whole(&c);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reference_that_is_not_allowed_sends_nothing() {
    let credentials = Credentials { first: at("ssm:/others/one"), second: None };
    let (world, keeper, c) = with(credentials, "s1", secs(0)).await;
    keeper.says("ssm:/others/one", Ok("s1"));
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("secret_refused".into()));
    assert_eq!(world.endpoint.sends(), 0);
}

/// The send window is five seconds: a slow keeper and a slow table fit in only because the keeper was asked before.
#[tokio::test(start_paused = true)]
async fn a_slow_answer_about_a_secret_costs_no_send_window() {
    let (world, keeper, c) = with(by_reference(), "s1", Duration::from_millis(2900)).await;
    keeper.says("ssm:/one", Ok("s1"));
    let began = world.clock.elapsed();
    let clock = Arc::clone(&world.clock);
    world.faults(move |operation| match operation {
        // The table gives no answer for most of the window.
        Operation::Read(_) if clock.elapsed() - began < Duration::from_millis(2900 + 4000) => {
            Fault::Before(lost())
        }
        _ => Fault::None,
    });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert!(world.clock.elapsed() - began > secs(6));
}

/// A look-up of 2.9 s outlives the time in which this task may acquire: its shard may be another's by then.
#[tokio::test(start_paused = true)]
async fn who_may_acquire_no_more_when_its_secret_is_at_hand_does_not() {
    let (world, keeper, c) = with(by_reference(), "s1", Duration::from_millis(2900)).await;
    keeper.says("ssm:/one", Ok("s1"));
    let (permits, permit) = watch::channel(world.clock.moment().plus(secs(2)));
    let (scheduler, (sender, commands)) = (world.scheduler_within(permit), mpsc::channel(8));
    let (drain, now) = (CancellationToken::new(), CancellationToken::new());
    let ends = drain.clone();
    let work = tokio::spawn(async move { scheduler.run(commands, &ends, &now, secs(110)).await });
    let _listing = world.list(sender).await;
    world.sleep(secs(60)).await;
    assert_eq!((world.lease(&c).generation, world.endpoint.sends()), (Gen(0), 0), "nothing was written");

    // It is not forgotten, nor is the secret.
    permits.send(world.clock.moment().plus(secs(1))).unwrap();
    world.sleep(secs(30)).await;
    assert_eq!((world.lease(&c).generation, world.endpoint.sends()), (Gen(1), 1));
    world.assert_whole(&c);
    drain.cancel();
    work.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_is_stopped_while_it_looks_a_secret_up_acquires_nobody() {
    let (world, keeper, c) = with(by_reference(), "s1", Duration::from_millis(2900)).await;
    keeper.says("ssm:/one", Ok("s1"));
    let (scheduler, (sender, commands)) = (world.scheduler(), mpsc::channel(8));
    let (drain, now) = (CancellationToken::new(), CancellationToken::new());
    let ends = drain.clone();
    let work = tokio::spawn(async move { scheduler.run(commands, &ends, &now, secs(110)).await });
    let _listing = world.list(sender).await;
    world.sleep(secs(1)).await;
    drain.cancel();
    assert_eq!(work.await.unwrap().abandoned, 0);
    assert_eq!((world.lease(&c).generation, world.endpoint.sends()), (Gen(0), 0));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_changed_where_it_is_kept_is_tried_in_the_same_attempt() {
    let (world, keeper, c) = with(by_reference(), "s2", secs(0)).await;
    keeper.says("ssm:/one", Ok("s1"));
    let rotated = Arc::clone(&keeper);
    let clock = Arc::clone(&world.clock);
    // The refusal takes a moment, in which the secret changes.
    world.endpoint.script(move |call| {
        if call.nth == 0 {
            rotated.says("ssm:/one", Ok("s2"));
            clock.suspend(secs(1));
        }
        Act::Honest
    });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!(world.endpoint.sends(), 2);
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn the_second_secret_is_tried_once_where_the_first_is_refused() {
    for (known, outcome) in [("s2", Outcome::Refreshed), ("s3", Outcome::Failed("invalid_client".into()))] {
        let credentials = Credentials { first: Some(Secret::new("s1").into()), second: at("ssm:/two") };
        let (world, keeper, c) = with(credentials, known, secs(0)).await;
        keeper.says("ssm:/two", Ok("s2"));
        world.edit(&Key::Lease(c.clone()), attr::DBT, Value::N(0));
        world.edit(&Key::Lease(c.clone()), attr::DBT_SENDS, Value::N(1));
        assert_eq!(world.refresh(&c).await.outcome, outcome);
        assert_eq!(world.endpoint.sends(), 2);
        if known == "s3" {
            assert_eq!(world.lease(&c).doubt, Some((Gen(0), 1)), "nobody has looked at the refresh token");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_secret_is_for_no_other_refusal() {
    for code in ["unauthorized_client", "invalid_grant", "invalid_scope", "invalid_request"] {
        let credentials =
            Credentials { first: Some(Secret::new("s1").into()), second: Some(Secret::new("s2").into()) };
        let (world, _, c) = with(credentials, "s2", secs(0)).await;
        world.endpoint.script(move |_| Act::Say(Reply::Rejected(code.into())));
        world.refresh(&c).await;
        assert_eq!(world.endpoint.sends(), 1, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_secret_that_is_the_same_or_cannot_be_had_is_not_sent() {
    for answer in [Ok("s1"), Err(Failure::NoAnswer("down".into())), Err(Failure::Refused("gone".into()))] {
        let credentials = Credentials { first: Some(Secret::new("s1").into()), second: at("ssm:/two") };
        let (world, keeper, c) = with(credentials, "s2", secs(0)).await;
        keeper.says("ssm:/two", answer);
        assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("invalid_client".into()));
        assert_eq!(world.endpoint.sends(), 1);
    }
}
