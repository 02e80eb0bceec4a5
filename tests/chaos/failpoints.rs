//! A crash, or a stop, at each step of a refresh, against the shipped program: what the next task finds, does, saves
//! and loses.

use std::time::Duration;

use perennial::plan::lease::Standing;
use tokio::runtime::Runtime;

use crate::checker::{Rest, Verdict, judge};
use crate::end::{collect, settle};
use crate::fleet::{Fleet, Setup, rest};
use crate::journal::Task;
use crate::network::{Hop, Weather};
use crate::support::wait_until;
use crate::timings::{PROMPT, Timings};
use crate::trap::{Release, Row, Side};

/// What a crash leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    /// Nothing was begun, or all was done: the next task finds a free client.
    Nothing,
    /// The next task waits, then sends what may have been sent, as the policy orders, and is answered.
    TakenOver,
    /// As that, and an answer was lost with its hearer: the window that nobody can close.
    Lost,
    /// An answer was on its way to the table when its hearer died, and arrived.
    Landed,
    /// The provider still takes the token whose answer was lost.
    Reused,
}

const RETRY_ONCE: (&str, &[&str]) = ("", &[]);
const GRACE: (&str, &[&str]) = ("in_doubt = \"grace\"\ngrace_window = \"1m\"", &["--grace-secs", "60"]);
const REUSABLE: (&str, &[&str]) = ("rotates = false", &["--rotate", "false"]);
const HOLD: (&str, &[&str]) = ("in_doubt = \"hold\"", &[]);

async fn one_client(policy: (&'static str, &'static [&'static str])) -> Fleet {
    let mut timings = Timings::scaled();
    if policy == REUSABLE {
        // Nobody can come too late with a token that does not rotate: no salvage wait.
        timings.take_over -= Duration::from_secs(2);
    }
    let (policy, arguments) = policy;
    Fleet::prepare(&Setup { policy, arguments, ..Setup::of(timings, 1) }).await
}

/// Starts a daemon and kills it where its first refresh comes by.
async fn crash_at(fleet: &mut Fleet, place: (Row, Side), release: Release) {
    let mut trap = fleet.network.traps.set(1, place);
    assert_eq!(fleet.start().await, 1);
    let caught = tokio::time::timeout(PROMPT, trap.caught()).await;
    assert_eq!(caught.ok().flatten().as_deref(), Some("customer-0"), "{place:?} never came by");
    fleet.kill(1).await;
    trap.release(release);
}

/// Rest, a polite stop for these, and the judgement.
async fn verdict_on(fleet: &mut Fleet, running: &[Task]) -> (Verdict, Rest) {
    let at_rest = settle(fleet).await;
    let (evidence, complaints) = collect(fleet, at_rest, running).await;
    let mut verdict = judge(&evidence);
    verdict.complaints.extend(complaints);
    assert!(verdict.is_clean(), "{verdict:#?}");
    let end = evidence.rest["customer-0"].clone();
    println!("{}", verdict.summary());
    (verdict, end)
}

async fn crash(
    place: (Row, Side),
    release: Release,
    policy: (&'static str, &'static [&'static str]),
    cost: Cost,
) {
    let mut fleet = one_client(policy).await;
    crash_at(&mut fleet, place, release).await;
    let next = fleet.start().await;
    if policy == HOLD {
        held_and_retried(&mut fleet).await;
    } else {
        wait_until(rest(&fleet.timings), "the next task has dealt with it", async || {
            dealt_with(&fleet).await
        })
        .await;
    }
    let (verdict, end) = verdict_on(&mut fleet, &[next]).await;
    let what = format!("{place:?}, {release:?}, {policy:?}: {verdict:#?}");

    let counts = (verdict.takeovers, verdict.crash_window_injected, verdict.crash_window_lost);
    let expected = match cost {
        Cost::Nothing => (0, 0, 0),
        Cost::TakenOver => (1, 0, 0),
        Cost::Lost => (1, 1, 1),
        Cost::Landed => (0, 1, 0),
        Cost::Reused => (1, usize::from(policy == GRACE), 0),
    };
    assert_eq!(counts, expected, "{what}");
    assert_eq!(matches!(end, Rest::Lost(_)), cost == Cost::Lost, "{what}");
    // What does not rotate is no replay, it is a token as good as before.
    let replayed = verdict.takeovers > 0 && policy != REUSABLE;
    assert_eq!(verdict.replays > 0, replayed, "{what}");
    if verdict.takeovers > 0 {
        let early = fleet.timings.take_over.saturating_sub(Duration::from_millis(100));
        assert!(verdict.takeover_p99 >= early, "it did not wait: {what}");
    }
}

/// New tokens are stored, or the client is dead.
async fn dealt_with(fleet: &Fleet) -> bool {
    let snapshot = fleet.snapshot("customer-0").await;
    crate::fleet::stands(&snapshot) == Standing::Dead
        || snapshot.token.is_some_and(|token| token.generation.0 > 0)
}

/// Under `hold` nobody sends what may be spent, until an operator says so.
async fn held_and_retried(fleet: &mut Fleet) {
    let before = fleet.provider.redemptions().await.len();
    wait_until(rest(&fleet.timings), "the client is held", async || {
        fleet.stands("customer-0").await == Standing::Held
    })
    .await;
    assert_eq!(fleet.provider.redemptions().await.len(), before, "sent, and nobody had ordered it");
    fleet.retry("customer-0");
    wait_until(rest(&fleet.timings), "the operator's order is carried out", async || {
        !matches!(fleet.stands("customer-0").await, Standing::Held)
    })
    .await;
    wait_until(rest(&fleet.timings), "it is settled", async || dealt_with(fleet).await).await;
}

/// All at once, each on a runtime of its own: they wait most of the time.
fn together<F: Future<Output = ()>>(scenarios: impl IntoIterator<Item = impl FnOnce() -> F + Send>) {
    std::thread::scope(|scope| {
        for scenario in scenarios {
            scope.spawn(move || Runtime::new().expect("a runtime").block_on(scenario()));
        }
    });
}

#[test]
fn a_crash_at_any_step_costs_what_is_written_and_no_more() {
    use {Cost::*, Release::*, Row::*, Side::*};
    let rows = [
        ((Acquire, Before), Drop, Nothing),
        ((Acquire, Before), Deliver, TakenOver),
        ((Acquire, After), Drop, TakenOver),
        ((Read, Before), Drop, TakenOver),
        ((Read, After), Drop, TakenOver),
        ((Send, Before), Drop, TakenOver),
        ((Send, Before), Deliver, Lost),
        ((Send, After), Drop, Lost),
        ((Commit, Before), Drop, Lost),
        ((Commit, Before), Deliver, Landed),
        ((Commit, After), Drop, Nothing),
    ];
    together(rows.map(|(place, release, cost)| move || crash(place, release, RETRY_ONCE, cost)));
}

#[test]
fn what_a_crash_costs_is_the_policys_choice() {
    use {Cost::*, Release::*, Row::*, Side::*};
    let rows = [
        ((Send, After), GRACE, Reused),
        ((Commit, Before), GRACE, Reused),
        ((Send, After), REUSABLE, Reused),
        ((Commit, Before), REUSABLE, Reused),
        ((Acquire, After), HOLD, TakenOver),
        ((Send, Before), HOLD, TakenOver),
        ((Send, After), HOLD, Lost),
        ((Commit, Before), HOLD, Lost),
    ];
    together(rows.map(|(place, policy, cost)| move || crash(place, Drop, policy, cost)));
}

/// Starts a daemon, stops it where its first refresh comes by, and lets another wait it out.
async fn stop_past_its_wait(
    fleet: &mut Fleet,
    place: (Row, Side),
    waited_out: impl AsyncFn(&Fleet) -> bool,
) -> (Task, Task) {
    let mut trap = fleet.network.traps.set(1, place);
    let holder = fleet.start().await;
    assert!(
        tokio::time::timeout(PROMPT, trap.caught()).await.is_ok_and(|caught| caught.is_some()),
        "{place:?}"
    );
    let from = fleet.journal.now();
    fleet.run(holder).process.signal("STOP");
    let taker = fleet.start().await;
    wait_until(rest(&fleet.timings), "the taker has waited it out", async || waited_out(fleet).await).await;
    trap.release(Release::Deliver);
    fleet.run(holder).process.signal("CONT");
    fleet.journal.stopped(holder, from);
    (holder, taker)
}

#[test]
fn a_holder_that_wakes_past_its_wait_finds_itself_fenced_out_and_sends_nothing() {
    let places = [(Row::Acquire, Side::After), (Row::Read, Side::After)];
    together(places.map(|place| move || fenced_out(place)));
}

async fn fenced_out(place: (Row, Side)) {
    let mut fleet = one_client(RETRY_ONCE).await;
    let (holder, taker) = stop_past_its_wait(&mut fleet, place, dealt_with).await;
    wait_until(PROMPT, "the holder has given up its attempt", async || {
        let log = std::fs::read_to_string(fleet.runs[0].process.log()).unwrap_or_default();
        log.contains("\"outcome\":")
    })
    .await;
    let sent = fleet.journal.seen().sends;
    assert!(sent.iter().all(|send| send.task == taker), "{place:?}: the late holder has sent: {sent:#?}");
    let (verdict, end) = verdict_on(&mut fleet, &[holder, taker]).await;
    assert!(matches!(end, Rest::Live(_)) && verdict.takeovers == 1, "{verdict:#?}");
    assert_eq!((verdict.crash_window_lost, verdict.reply_lost), (0, 0), "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_wakes_late_with_the_only_answer_stores_it() {
    let mut fleet = one_client(HOLD).await;
    let held = async |fleet: &Fleet| fleet.stands("customer-0").await == Standing::Held;
    let (holder, taker) = stop_past_its_wait(&mut fleet, (Row::Commit, Side::Before), held).await;
    wait_until(PROMPT, "the late answer frees the client", async || {
        fleet.stands("customer-0").await == Standing::Free
    })
    .await;
    let (verdict, end) = verdict_on(&mut fleet, &[holder, taker]).await;
    assert!(matches!(end, Rest::Live(_)), "{verdict:#?}");
    assert_eq!((verdict.crash_window_injected, verdict.crash_window_lost), (1, 0), "{verdict:#?}");
    assert_eq!((verdict.takeovers, verdict.replays), (1, 0), "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_the_spill_outlives_the_table_and_its_hearer() {
    let mut fleet = Fleet::prepare(&Setup { spill: true, ..Setup::of(Timings::scaled(), 1) }).await;
    let mut trap = fleet.network.traps.set(1, (Row::Commit, Side::Before));
    let hearer = fleet.start().await;
    assert!(tokio::time::timeout(PROMPT, trap.caught()).await.is_ok_and(|caught| caught.is_some()));
    fleet.network.set(hearer, Hop::Store, Weather::Cut);
    trap.release(Release::Drop);
    // Ten seconds of failures, and what the last of them takes.
    wait_until(PROMPT, "the answer is in the spill", async || fleet.spilled() == 1).await;
    fleet.kill(hearer).await;
    let next = fleet.start().await;
    wait_until(rest(&fleet.timings), "the spill is emptied", async || {
        fleet.spilled() == 0 && dealt_with(&fleet).await
    })
    .await;
    let (verdict, end) = verdict_on(&mut fleet, &[next]).await;
    assert!(matches!(end, Rest::Live(_)), "{verdict:#?}");
    assert_eq!((verdict.crash_window_injected, verdict.crash_window_lost), (1, 0), "{verdict:#?}");
    assert_eq!(verdict.replays, 0, "the spent token was sent again: {verdict:#?}");
}
