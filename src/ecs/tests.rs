//! The driver, on simulated time, before an agent that grants, refuses, or never answers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::time::testing::Simulated;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[derive(Clone, Copy)]
enum Mood {
    Grants,
    Refuses,
    Silent,
}

/// Notes what it is asked for, and after how many seconds.
struct Recorder {
    clock: Arc<Simulated>,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<(u64, Request)>>,
}

impl Guard for Recorder {
    async fn ask(&self, request: Request) -> Result<(), AgentError> {
        self.asked.lock().unwrap().push((self.clock.elapsed().as_secs(), request));
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Grants => Ok(()),
            Mood::Refuses => Err(AgentError::Status(429)),
            Mood::Silent => std::future::pending().await,
        }
    }
}

struct World {
    clock: Arc<Simulated>,
    guard: Arc<Recorder>,
    account: Arc<Account>,
    work: watch::Sender<usize>,
    stop: CancellationToken,
    keeping: JoinHandle<()>,
}

impl World {
    fn new(mood: Mood) -> Self {
        let clock = Arc::new(Simulated::new());
        let guard =
            Arc::new(Recorder { clock: Arc::clone(&clock), mood: Mutex::new(mood), asked: Mutex::default() });
        let (account, stop) = (Arc::<Account>::default(), CancellationToken::new());
        let (work, in_flight) = watch::channel(0);
        let keeping = tokio::spawn({
            let (guard, account, clock, stop) =
                (Arc::clone(&guard), Arc::clone(&account), Arc::clone(&clock), stop.clone());
            async move {
                let entropy = Entropy::from_seed(1);
                protect(guard.as_ref(), in_flight, &account, clock.as_ref(), &entropy, &stop).await;
            }
        });
        Self { clock, guard, account, work, stop, keeping }
    }

    /// One refresh after another, each of which is over before anybody looks.
    async fn refresh(&self, times: usize, every: Duration) {
        for _ in 0..times {
            self.work.send_replace(1);
            self.work.send_replace(0);
            self.clock.sleep(every).await;
        }
    }

    fn asked(&self) -> Vec<(u64, Request)> {
        self.guard.asked.lock().unwrap().clone()
    }

    async fn end(self) -> Vec<(u64, Request)> {
        self.stop.cancel();
        self.keeping.await.expect("it ends by itself");
        assert!(!self.account.is_protected());
        self.guard.asked.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_refreshes_are_one_request_and_a_rest_another() {
    let world = World::new(Mood::Grants);
    world.refresh(1000, Duration::from_millis(300)).await;
    assert_eq!(world.asked(), [(0, Request::Protect)]);
    assert!(world.account.is_protected());
    world.clock.sleep(secs(600)).await;
    assert_eq!(world.asked(), [(0, Request::Protect), (359, Request::Release)]);
    assert!(!world.account.is_protected());
    assert_eq!(world.end().await.len(), 2, "there is nothing to let go of");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_does_not_end_keeps_its_protection() {
    let world = World::new(Mood::Grants);
    world.work.send_replace(1);
    world.clock.sleep(secs(1500)).await;
    assert_eq!(world.asked(), [0, 600, 1200].map(|second| (second, Request::Protect)));
    assert_eq!(world.end().await.last(), Some(&(1500, Request::Release)), "the drain is over");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_throttles_is_asked_less_and_less_and_taken_up_again() {
    let world = World::new(Mood::Refuses);
    world.refresh(300, secs(1)).await;
    let refused = world.asked().len();
    assert!((5..=9).contains(&refused), "{refused} requests in five minutes");
    assert!(!world.account.is_protected());
    *world.guard.mood.lock().unwrap() = Mood::Grants;
    world.refresh(400, secs(1)).await;
    assert_eq!(world.asked().len(), refused + 1);
    assert!(world.account.is_protected());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_holds_up_no_exit() {
    let world = World::new(Mood::Silent);
    world.refresh(1, secs(5)).await;
    let (clock, stopped) = (Arc::clone(&world.clock), Instant::now());
    let asked = world.end().await;
    assert_eq!(asked, [(0, Request::Protect), (5, Request::Release)], "it may have been granted");
    assert!(stopped.elapsed() <= FAREWELL && clock.elapsed() < secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_task_at_rest_asks_for_nothing() {
    let world = World::new(Mood::Grants);
    world.clock.sleep(secs(86_400)).await;
    assert!(world.end().await.is_empty());
}
