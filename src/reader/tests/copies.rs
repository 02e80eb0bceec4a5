//! Copies beside the table: quicker, behind, wrong, or silent.

use std::collections::HashMap;
use std::pin::Pin;

use super::*;
use crate::item::{Action, Change, Condition};
use crate::record::Token;
use crate::store::Applied;

/// What is kept beside the table.
#[derive(Default)]
struct Kept {
    held: Mutex<HashMap<ClientId, Copied>>,
    looks: AtomicU64,
    hangs: std::sync::atomic::AtomicBool,
}

impl Kept {
    fn put(&self, client: &ClientId, now: Timestamp, generation: i64, life: Duration) {
        let token = Token {
            access_token: Some(Secret::new(format!("at-{generation}"))),
            expires_at: now.plus(life),
            refresh_at: Some(now.plus(life.mul_f64(0.9))),
            ..Token::stub(Gen(generation))
        };
        self.held.lock().expect("sound").insert(client.clone(), Copied { token, lives: life });
    }
}

impl Copies for Kept {
    fn copy<'a>(&'a self, id: &'a ClientId) -> Pin<Box<dyn Future<Output = Option<Copied>> + Send + 'a>> {
        Box::pin(async move {
            self.looks.fetch_add(1, Ordering::Relaxed);
            if self.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            self.held.lock().expect("sound").get(id).cloned()
        })
    }
}

fn world() -> (World, Arc<Kept>) {
    let (mut world, kept) = (World::new(Settings::default()), Arc::new(Kept::default()));
    let vitals = Arc::clone(world.store.vitals());
    let overlaps = Box::new(|provider: &str| (provider == "strict").then_some(secs(1)));
    let clock = Arc::clone(&world.clock) as _;
    let reader = Reader::new(world.store.clone(), vitals, clock, overlaps, Settings::default());
    world.reader = reader.with_copies(Arc::clone(&kept) as _);
    let keeping = world.reader.clone();
    tokio::spawn(async move { keeping.keep().await });
    world.register(&acme(), "p");
    (world, kept)
}

#[tokio::test(start_paused = true)]
async fn what_nobody_knew_is_served_from_a_copy_and_the_table_is_asked_before_its_successor_is_due() {
    let (world, kept) = world();
    world.put(&acme(), 1);
    kept.put(&acme(), world.clock.now(), 1, secs(3600));
    assert_eq!(world.read(&acme()).await, Ok(1));
    assert_eq!((world.questions(), kept.looks.load(Ordering::Relaxed)), (0, 1));
    world.pass(secs(301)).await;
    assert_eq!(world.questions(), 1);
    world.pass(secs(2400)).await;
    assert_eq!(world.questions(), 1, "the copy confirms it");
    let looks = kept.looks.load(Ordering::Relaxed);
    assert!((9..20).contains(&looks), "{looks}");
}

#[tokio::test(start_paused = true)]
async fn the_table_speaks_now_and_then_whatever_copies_say() {
    let (world, kept) = world();
    world.put_living(&acme(), 1, secs(86_400));
    kept.put(&acme(), world.clock.now(), 1, secs(86_400));
    for _ in 0..(3 * 60) {
        assert_eq!(world.read(&acme()).await, Ok(1));
        world.pass(secs(60)).await;
    }
    let questions = world.questions();
    assert!((3..6).contains(&questions), "{questions} in three hours");
}

#[tokio::test(start_paused = true)]
async fn a_removed_client_is_not_revived_by_a_copy_that_stayed() {
    let (world, kept) = world();
    world.put(&acme(), 1);
    kept.put(&acme(), world.clock.now(), 1, secs(3600));
    assert_eq!(world.read(&acme()).await, Ok(1));
    for key in [Key::Token(acme()), Key::Config(acme()), Key::Lease(acme())] {
        let gone = world.store.apply(&Change::one(key, Condition::Exists, Action::Delete)).await;
        assert_eq!(gone, Ok(Applied::Committed));
    }
    world.pass(secs(301)).await;
    for _ in 0..5 {
        assert_eq!(world.read(&acme()).await, Err(Refusal::Absent));
        world.pass(secs(10)).await;
    }
    world.cut_off(true);
    world.pass(secs(10)).await;
    assert!(world.read(&acme()).await.is_err(), "not while the table is silent, either");
}

#[tokio::test(start_paused = true)]
async fn an_older_copy_is_no_step_back() {
    let (world, kept) = world();
    world.put(&acme(), 7);
    assert_eq!(world.read(&acme()).await, Ok(7));
    kept.put(&acme(), world.clock.now(), 6, secs(86_400));
    world.cut_off(true);
    world.pass(secs(3599)).await;
    assert_eq!(world.read(&acme()).await, Ok(7));
    world.pass(secs(1)).await;
    assert!(matches!(world.read(&acme()).await, Err(Refusal::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn a_copy_with_other_dates_does_not_lengthen_the_life_of_the_token_that_is_known() {
    let (world, kept) = world();
    world.put(&acme(), 7);
    assert_eq!(world.read(&acme()).await, Ok(7));
    kept.put(&acme(), world.clock.now(), 7, secs(86_400));
    world.pass(secs(400)).await;
    assert_eq!(world.questions(), 2, "that is no confirmation");
    world.cut_off(true);
    world.pass(secs(3200)).await;
    assert!(matches!(world.read(&acme()).await, Err(Refusal::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn a_successor_is_found_beside_a_table_that_is_cut_off() {
    let (world, kept) = world();
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.cut_off(true);
    kept.put(&acme(), world.clock.now(), 2, secs(3600));
    let want = Want { after: Some(Gen(1)), ..Want::default() };
    assert_eq!(world.wait(&acme(), want, secs(5)).await, Ok(2));
    world.pass(secs(4000)).await;
    assert!(matches!(world.read(&acme()).await, Err(Refusal::Unavailable(_))), "it has expired");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_newer_one_is_not_content_with_the_same() {
    let (world, kept) = world();
    world.put(&acme(), 1);
    kept.put(&acme(), world.clock.now(), 1, secs(3600));
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.put(&acme(), 2);
    let want = Want { after: Some(Gen(1)), ..Want::default() };
    assert_eq!(world.wait(&acme(), want, secs(2)).await, Ok(2), "from the table");
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_the_token_that_was_refused_is_no_answer_however_long_its_successor_takes() {
    let (world, kept) = world();
    world.put(&acme(), 1);
    kept.put(&acme(), world.clock.now(), 1, secs(3600));
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.reader.confirm(&acme(), world.clock.moment()).await;
    world.reader.expect_newer(&acme());
    world.pass(secs(10)).await;
    world.put(&acme(), 2);
    world.pass(secs(8)).await;
    let served = world.reader.at_hand(&acme(), Want::default()).expect("without a question");
    assert_eq!(served.token().generation.0, 2);
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_is_the_tables_own() {
    let (world, kept) = world();
    world.put(&acme(), 1);
    kept.put(&acme(), world.clock.now(), 1, secs(3600));
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.put(&acme(), 2);
    world.reader.confirm(&acme(), world.clock.moment()).await;
    assert_eq!(world.read(&acme()).await, Ok(2));
    world.cut_off(true);
    world.pass(secs(1)).await;
    world.reader.confirm(&acme(), world.clock.moment()).await;
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_by_either_clock_or_is_due_is_asked_of_the_table() {
    let (world, kept) = world();
    world.put(&acme(), 2);
    let now = world.clock.now();
    // By ours, and by that of whoever keeps it.
    for (expires_in, lives) in [(0, 3600), (3600, 0)] {
        kept.put(&acme(), now, 1, secs(expires_in));
        kept.held.lock().expect("sound").get_mut(&acme()).expect("it is kept").lives = secs(lives);
        assert_eq!(world.read(&acme()).await, Ok(2));
    }
    let other = ClientId::new("other").expect("an id");
    world.register(&other, "p");
    world.put(&other, 5);
    kept.put(&other, now.minus(secs(3300)), 4, secs(3600));
    assert_eq!(world.read(&other).await, Ok(5), "its successor was due");
}

#[tokio::test(start_paused = true)]
async fn the_more_cautious_clock_counts() {
    let (world, kept) = world();
    kept.put(&acme(), world.clock.now(), 1, secs(3600));
    kept.held.lock().expect("sound").get_mut(&acme()).expect("it is kept").lives = secs(600);
    assert_eq!(world.read(&acme()).await, Ok(1));
    kept.held.lock().expect("sound").clear();
    world.cut_off(true);
    world.pass(secs(599)).await;
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.pass(secs(1)).await;
    assert!(world.read(&acme()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn copies_that_do_not_answer_keep_nobody_for_longer_than_a_question_may_take() {
    let (world, kept) = world();
    world.put(&acme(), 1);
    kept.hangs.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    assert_eq!(world.read(&acme()).await, Ok(1));
    assert!(begun.elapsed() <= Settings::default().patience);
}
