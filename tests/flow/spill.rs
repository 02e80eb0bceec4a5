//! The table does not take an answer: it goes to the spill, and from there into the table, whoever lives or dies.

use perennial::client::ClientId;
use perennial::item::{Action, Assignment, Change, Value, attr};
use perennial::refresh::Outcome;
use perennial::spill::Memory;
use perennial::store::StoreError;
use perennial::store::memory::{Fault, Operation};

use super::endpoint::Act;
use super::world::{World, is_commit, lost, secs};

/// The generation of the tokens that a change stores.
fn sets_tok_gen(change: &Change) -> Option<i64> {
    change.0.iter().find_map(|write| match &write.action {
        Action::Update(list) => list.iter().find_map(|it| match it {
            Assignment::Set(attr::TOK_GEN, Value::N(generation)) => Some(*generation),
            _ => None,
        }),
        _ => None,
    })
}

/// A world with a spill, whose table takes no new tokens.
async fn without_commits(error: StoreError) -> (World, Memory, ClientId) {
    let mut world = World::new();
    let memory = Memory::default();
    world.spill = Some(memory.clone());
    let c = world.due("c").await;
    world.faults(move |operation| match operation {
        Operation::Apply(change) if is_commit(change) => Fault::Before(error.clone()),
        _ => Fault::None,
    });
    (world, memory, c)
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_spilled_after_ten_seconds_and_removed_once_it_is_stored() {
    let (world, memory, c) = without_commits(lost()).await;
    let refresh = world.begin(&c);
    world.sleep(secs(9)).await;
    assert!(memory.is_empty(), "a blip is over by then");
    world.sleep(secs(6)).await;
    assert_eq!(memory.len(), 1);
    world.no_faults();
    assert_eq!(refresh.await.unwrap().outcome, Outcome::Refreshed);
    assert!(memory.is_empty());
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_no_retry_cures_spills_at_once() {
    let (world, memory, c) = without_commits(StoreError::Refused("access denied".into())).await;
    let refresh = world.begin(&c);
    world.sleep(secs(1)).await;
    assert_eq!(memory.len(), 1);
    world.no_faults();
    assert_eq!(refresh.await.unwrap().outcome, Outcome::Refreshed);
    assert!(memory.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_process_has_spilled_is_replayed_by_another_and_nothing_is_sent() {
    let (world, memory, c) = without_commits(lost()).await;
    let dying = world.daemon().await;
    world.sleep(secs(20)).await;
    assert_eq!(memory.len(), 1);
    dying.kill();
    world.no_faults();
    let heir = world.daemon().await;
    world.sleep(secs(5)).await;
    assert_eq!((world.endpoint.sends(), memory.len()), (1, 0));
    world.assert_whole(&c);
    world.sleep(secs(7200)).await;
    assert_eq!(world.endpoint.double_redemptions(), 0);
    world.assert_whole(&c);
    assert_eq!(heir.stop().await.tally.takeovers, 0, "the lease was spent by the replay");
}

#[tokio::test(start_paused = true)]
async fn a_taker_finds_the_answer_before_it_sends() {
    let (world, memory, c) = without_commits(lost()).await;
    let held = world.begin(&c);
    world.sleep(secs(60)).await;
    held.abort();
    world.no_faults();
    assert_eq!(memory.len(), 1);
    let report = world.refresh(&c).await;
    assert_eq!((report.outcome, world.endpoint.sends()), (Outcome::Refreshed, 1));
    assert_eq!(world.token(&c).generation, world.lease(&c).generation, "the lease is spent at once");
    assert!(memory.is_empty());
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn a_late_holder_finds_its_own_tokens_stored_by_the_taker() {
    let (world, memory, c) = without_commits(lost()).await;
    let holder = world.begin(&c);
    world.sleep(secs(60)).await;
    // The taker's writes reach the table, the holder's do not.
    let stalled = world.lease(&c).generation.0;
    world.faults(move |operation| match operation {
        Operation::Apply(change) if sets_tok_gen(change) == Some(stalled) => Fault::Before(lost()),
        _ => Fault::None,
    });
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    world.no_faults();
    assert_eq!(holder.await.unwrap().outcome, Outcome::Conflict);
    assert_eq!((world.endpoint.sends(), memory.len()), (1, 0));
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn a_spill_that_does_not_answer_keeps_a_doubtful_token_from_being_sent() {
    let (world, memory, c) = without_commits(lost()).await;
    let held = world.begin(&c);
    world.sleep(secs(60)).await;
    held.abort();
    world.no_faults();
    memory.cut(true);
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Failed("spill_unreadable".into()));
    assert_eq!(world.endpoint.sends(), 1, "sending the old token would have killed the grant");
    memory.cut(false);
    world.sleep(secs(60)).await;
    assert_eq!(world.refresh(&c).await.outcome, Outcome::Refreshed);
    assert_eq!(world.endpoint.sends(), 1);
    world.assert_whole(&c);
}

#[tokio::test(start_paused = true)]
async fn neither_table_nor_spill_and_the_process_keeps_the_answer() {
    let (world, memory, c) = without_commits(lost()).await;
    memory.cut(true);
    let daemon = world.daemon().await;
    world.sleep(secs(600)).await;
    assert_eq!(world.endpoint.sends(), 1);
    memory.cut(false);
    world.sleep(secs(10)).await;
    assert_eq!(memory.len(), 1, "as soon as one of them is back");
    world.no_faults();
    world.sleep(secs(10)).await;
    assert!(memory.is_empty());
    world.assert_whole(&c);
    daemon.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_never_lands_on_a_newer_consent_or_on_a_removed_client() {
    for removed in [true, false] {
        let (world, memory, c) = without_commits(lost()).await;
        let held = world.begin(&c);
        world.sleep(secs(60)).await;
        held.abort();
        world.no_faults();
        if removed {
            world.apply(&world.removal(&c)).await;
        } else {
            world.apply(&world.new_consent(&c)).await;
        }
        let before = world.snapshot(&c);
        world.endpoint.script(|_| Act::Honest);
        let daemon = world.daemon().await;
        world.sleep(secs(5)).await;
        assert_eq!(world.snapshot(&c), before);
        assert!(memory.is_empty(), "nobody needs it any more");
        daemon.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_of_sixty_days_is_refused_and_kept() {
    let (world, memory, c) = without_commits(lost()).await;
    let held = world.begin(&c);
    world.sleep(secs(60)).await;
    held.abort();
    world.no_faults();
    world.clock.step(61 * 86_400);
    let daemon = world.daemon().await;
    world.sleep(secs(5)).await;
    assert_eq!((memory.len(), world.token(&c).generation.0), (1, 0));
    daemon.kill();
}

#[tokio::test(start_paused = true)]
async fn a_record_of_sixty_days_blocks_no_take_over_for_ever() {
    let (world, memory, c) = without_commits(lost()).await;
    let held = world.begin(&c);
    world.sleep(secs(60)).await;
    held.abort();
    world.no_faults();
    world.clock.step(61 * 86_400);
    let report = world.refresh(&c).await;
    assert_eq!(memory.len(), 1);
    assert_eq!(
        report.outcome,
        Outcome::Dead("lost_rotation".into()),
        "the policy decides, as without a spill"
    );
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_asked_to_stop_spills_at_once() {
    let (world, memory, c) = without_commits(lost()).await;
    let daemon = world.daemon().await;
    world.sleep(secs(2)).await;
    assert!(memory.is_empty());
    daemon.drain.cancel();
    world.sleep(secs(6)).await;
    assert_eq!(memory.len(), 1, "it may not have ten seconds");
    daemon.kill();
    world.no_faults();
    let heir = world.daemon().await;
    world.sleep(secs(5)).await;
    assert_eq!((world.endpoint.sends(), memory.len()), (1, 0));
    world.assert_whole(&c);
    heir.stop().await;
}

/// Another table of the same name, which has never heard of the client.
#[tokio::test(start_paused = true)]
async fn a_record_of_an_unknown_client_is_kept() {
    let (world, memory, c) = without_commits(lost()).await;
    let held = world.begin(&c);
    world.sleep(secs(60)).await;
    held.abort();
    let mut elsewhere = World::new();
    elsewhere.spill = Some(memory.clone());
    let daemon = elsewhere.daemon().await;
    elsewhere.sleep(secs(180)).await;
    assert_eq!(memory.len(), 1, "the only copy of somebody's grant");
    daemon.kill();
}
