//! The cache on simulated time, before a table that can be cut off.

use std::sync::Mutex;

use tokio::time::Instant;

use super::*;
use crate::item::{Item, Value, attr};
use crate::record::{Gen, State, encode_config};
use crate::secret::Secret;
use crate::store::MemoryStore;
use crate::store::memory::{Fault, Operation};
use crate::time::testing::Simulated;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

struct World {
    store: MemoryStore,
    clock: Arc<Simulated>,
    reader: Reader<MemoryStore>,
    fault: Arc<Mutex<Fault>>,
}

impl World {
    fn new(settings: Settings) -> Self {
        let store = MemoryStore::new();
        let fault = Arc::new(Mutex::new(Fault::None));
        let decided = Arc::clone(&fault);
        store.on_operation(move |operation| match operation {
            Operation::Load(_) => decided.lock().expect("sound").clone(),
            _ => Fault::None,
        });
        let clock = Arc::new(Simulated::new());
        let overlaps = Box::new(|provider: &str| (provider == "strict").then_some(secs(1)));
        let vitals = Arc::clone(store.vitals());
        let reader = Reader::new(store.clone(), vitals, Arc::clone(&clock) as _, overlaps, settings);
        Self { store, clock, reader, fault }
    }

    fn kept() -> Self {
        let world = Self::new(Settings::default());
        let reader = world.reader.clone();
        tokio::spawn(async move { reader.keep().await });
        world
    }

    fn put(&self, client: &ClientId, generation: i64) {
        self.put_living(client, generation, secs(3600));
    }

    fn put_living(&self, client: &ClientId, generation: i64, life: Duration) {
        let now = self.clock.now();
        let item = Item::default()
            .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new(format!("at-{generation}"))))
            .with(attr::EXPIRES_AT, Value::N(now.plus(life).as_secs()))
            .with(attr::REFRESH_AT, Value::N(now.plus(life.mul_f64(0.9)).as_millis()))
            .with(attr::TOK_GEN, Value::N(generation));
        self.store.put_raw(&Key::partition(client), "TOKEN#ACCESS", item);
    }

    fn put_lease(&self, client: &ClientId, state: &State, of: i64) {
        let lease = Item::default()
            .with(attr::GEN, Value::N(of))
            .with(attr::ST, Value::S(state.as_str().into()))
            .with(attr::OF, Value::N(of))
            .with(attr::ERR, Value::S("invalid_grant".into()));
        self.store.put_raw(&Key::partition(client), "LEASE", lease);
    }

    fn register(&self, client: &ClientId, provider: &str) {
        let registered = crate::client::Client {
            id: client.clone(),
            provider: provider.into(),
            ..crate::plan::testing::client()
        };
        self.store.put_raw(&Key::partition(client), "CONFIG", encode_config(&registered, 0));
        self.put_lease(client, &State::Idle, 0);
    }

    fn cut_off(&self, off: bool) {
        let fault = if off { Fault::Before(StoreError::Unavailable("down".into())) } else { Fault::None };
        *self.fault.lock().expect("sound") = fault;
    }

    async fn read(&self, client: &ClientId) -> Result<i64, Refusal> {
        self.wait(client, Want::default(), Duration::ZERO).await
    }

    async fn wait(&self, client: &ClientId, want: Want, max: Duration) -> Result<i64, Refusal> {
        self.reader.token(client, want, max).await.map(|served| served.token().generation.0)
    }

    fn questions(&self) -> u64 {
        let counts = self.reader.counts();
        counts.answers.load(Ordering::Relaxed) + counts.failures.load(Ordering::Relaxed)
    }

    async fn pass(&self, time: Duration) {
        self.clock.sleep(time).await;
    }
}

fn acme() -> ClientId {
    ClientId::new("acme").expect("an id")
}

#[tokio::test(start_paused = true)]
async fn thousands_of_misses_are_one_question() {
    let world = World::new(Settings::default());
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    let readers = (0..5000).map(|_| {
        let reader = world.reader.clone();
        tokio::spawn(async move { reader.token(&acme(), Want::default(), Duration::ZERO).await.is_ok() })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert!(reader.await.expect("no panic"));
    }
    assert_eq!(world.questions(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    assert_eq!(world.questions(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_is_there_before_anybody_asks_for_it() {
    let world = World::kept();
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.pass(secs(3240)).await;
    world.put(&acme(), 2);
    world.pass(secs(5)).await;
    let served = world.reader.at_hand(&acme(), Want::default()).expect("without a question");
    assert_eq!(served.token().generation.0, 2);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_costs_nothing_and_is_never_served_late() {
    let world = World::kept();
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.pass(secs(3 * 3600)).await;
    let before = world.questions();
    world.pass(secs(3 * 3600)).await;
    assert_eq!(world.questions(), before, "nobody asks any more");
    assert!(world.reader.at_hand(&acme(), Want::default()).is_none());
    world.put(&acme(), 2);
    assert_eq!(world.read(&acme()).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_table_is_survived_as_long_as_the_token_lives() {
    let world = World::kept();
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.cut_off(true);
    world.pass(secs(600)).await;
    let served = world.reader.at_hand(&acme(), Want::default()).expect("it is good");
    assert!(served.stale);
    world.pass(secs(3000)).await;
    assert!(matches!(world.read(&acme()).await, Err(Refusal::Unavailable(_))));
    let questions = world.questions();
    assert!(questions < 300, "{questions} in an hour");
    world.cut_off(false);
    world.put(&acme(), 2);
    world.pass(secs(31)).await;
    assert_eq!(world.read(&acme()).await, Ok(2));
    assert!(!world.reader.at_hand(&acme(), Want::default()).expect("good").stale);
}

#[tokio::test(start_paused = true)]
async fn misses_in_an_outage_do_not_pile_up_on_the_table() {
    let world = World::new(Settings::default());
    world.cut_off(true);
    for _ in 0..1000 {
        assert!(matches!(world.read(&acme()).await, Err(Refusal::Unavailable(_))));
    }
    assert_eq!(world.questions(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_client_is_asked_for_once_in_a_while_and_pushes_nobody_out() {
    let world = World::new(Settings { clients: 10, ..Settings::default() });
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    let before = world.questions();
    for _ in 0..100 {
        assert_eq!(world.read(&ClientId::new("nobody").expect("an id")).await, Err(Refusal::Absent));
    }
    assert_eq!(world.questions(), before + 1);
    for n in 0..5000 {
        let invented = ClientId::new(format!("n{n}")).expect("an id");
        assert_eq!(world.read(&invented).await, Err(Refusal::Absent));
    }
    assert!(world.reader.at_hand(&acme(), Want::default()).is_some());
    let late = ClientId::new("nobody").expect("an id");
    world.register(&late, "p");
    world.put(&late, 3);
    world.pass(secs(6)).await;
    assert_eq!(world.read(&late).await, Ok(3));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_under_way_is_waited_for_and_no_longer_than_allowed() {
    let world = World::new(Settings::default());
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.pass(secs(3241)).await;
    let want = Want { min_ttl: secs(600), after: None };
    let begun = Instant::now();
    let refused = world.wait(&acme(), want, secs(3)).await;
    assert!(matches!(refused, Err(Refusal::ShortLived(_))), "{refused:?}");
    assert!(begun.elapsed() >= secs(3) && begun.elapsed() < secs(4));
    let (reader, waiting) = (world.reader.clone(), Want { min_ttl: Duration::ZERO, after: Some(Gen(1)) });
    let waiter = tokio::spawn(async move { reader.token(&acme(), waiting, secs(30)).await });
    world.pass(secs(2)).await;
    world.put(&acme(), 2);
    let got = waiter.await.expect("no panic").expect("a token");
    assert_eq!(got.token().generation.0, 2);
    assert!(begun.elapsed() < secs(8));
}

#[tokio::test(start_paused = true)]
async fn a_dead_grant_is_told_once_its_token_is_gone_and_a_new_consent_revives_it() {
    let world = World::new(Settings::default());
    world.register(&acme(), "p");
    world.put_living(&acme(), 4, secs(60));
    world.put_lease(&acme(), &State::Dead, 4);
    assert_eq!(world.read(&acme()).await, Ok(4));
    world.pass(secs(60)).await;
    assert_eq!(world.read(&acme()).await, Err(Refusal::Dead("invalid_grant".into())));
    world.put(&acme(), 5);
    world.pass(secs(16)).await;
    assert_eq!(world.read(&acme()).await, Ok(5));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_kills_old_tokens_has_them_confirmed() {
    let world = World::new(Settings::default());
    world.register(&acme(), "strict");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.pass(secs(3239)).await;
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.put(&acme(), 2);
    world.pass(secs(3)).await;
    assert_eq!(world.read(&acme()).await, Ok(2), "the old one may be dead");
}

#[tokio::test(start_paused = true)]
async fn a_thaw_is_noticed_by_the_wall_clock() {
    let world = World::new(Settings::default());
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.clock.be_ahead(secs(7200));
    world.put(&acme(), 2);
    assert_eq!(world.read(&acme()).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn a_question_that_dies_is_no_endless_one() {
    let world = World::new(Settings::default());
    world.store.on_operation(|_| panic!("a question that dies"));
    assert!(matches!(world.read(&acme()).await, Err(Refusal::Unavailable(_))));
    world.store.on_operation(|_| Fault::None);
    assert_eq!(world.read(&acme()).await, Err(Refusal::Absent));
}

#[tokio::test(start_paused = true)]
async fn a_question_asked_later_is_what_a_confirmation_waits_for() {
    let world = World::new(Settings::default());
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.pass(secs(1)).await;
    world.put(&acme(), 2);
    world.reader.confirm(&acme(), world.clock.moment()).await;
    assert_eq!(world.read(&acme()).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn no_older_answer_puts_off_the_look_for_a_newer_token() {
    let world = World::kept();
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.pass(secs(1)).await;
    let (reader, marks) = (world.reader.clone(), AtomicU64::new(0));
    world.store.on_operation(move |_| {
        // The question is under way.
        if marks.fetch_add(1, Ordering::Relaxed) == 0 {
            reader.expect_newer(&acme());
        }
        Fault::None
    });
    // Whoever needs an answer that began now has it asked again: that answer is without a newer token as well.
    world.reader.confirm(&acme(), world.clock.moment()).await;
    let before = world.questions();
    world.put(&acme(), 2);
    world.pass(secs(1)).await;
    let served = world.reader.at_hand(&acme(), Want::default()).expect("without a question");
    assert_eq!((served.token().generation.0, world.questions()), (2, before + 1));
    world.pass(secs(60)).await;
    assert_eq!(world.questions(), before + 1, "nothing is expected any more");
}

#[tokio::test(start_paused = true)]
async fn a_newer_token_that_was_asked_for_is_looked_for_until_it_is_there_and_for_a_minute_at_most() {
    let world = World::kept();
    world.register(&acme(), "p");
    world.put(&acme(), 1);
    assert_eq!(world.read(&acme()).await, Ok(1));
    world.reader.expect_newer(&acme());
    world.pass(secs(20)).await;
    world.put(&acme(), 2);
    world.pass(secs(12)).await;
    let served = world.reader.at_hand(&acme(), Want::default()).expect("without a question");
    assert_eq!(served.token().generation.0, 2);
    let before = world.questions();
    world.pass(secs(60)).await;
    assert_eq!(world.questions(), before, "nothing is expected any more");

    world.reader.expect_newer(&acme());
    world.pass(secs(90)).await;
    let looks = world.questions() - before;
    assert!((8..20).contains(&looks), "{looks} looks");
    world.pass(secs(150)).await;
    assert_eq!(world.questions(), before + looks, "it did not come");
}

#[cfg(test)]
mod copies;
