//! Over a source that is told what to say.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::*;
use crate::plan::testing::client;
use crate::time::{Sleep, Timestamp};

/// Time passes when it is told to; nobody is ever too late.
#[derive(Default)]
struct Hands(AtomicU64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::EPOCH
    }
    fn moment(&self) -> Moment {
        Moment::from_origin(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }
    fn sleep(&self, _: Duration) -> Sleep {
        Box::pin(std::future::pending())
    }
}

struct Told {
    says: Mutex<Result<Secret, Failure>>,
    asked: AtomicU32,
}

impl Source for Told {
    fn fetch<'a>(&'a self, _: &'a Allowed) -> Answer<'a> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.says.lock().expect("unpoisoned").clone()
        })
    }
}

struct World {
    clock: Arc<Hands>,
    source: Arc<Told>,
    secrets: Secrets,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(Hands::default());
        let source = Arc::new(Told { says: Mutex::new(Ok(Secret::new("s1"))), asked: AtomicU32::new(0) });
        let rules = Rules(["ssm:/*", "secretsmanager:*"].map(|rule| rule.parse().expect("a rule")).into());
        let keeping = Keeping { fresh: Duration::from_secs(100), stale: Duration::from_secs(1000) };
        let entropy = Arc::new(Entropy::from_seed(1));
        let secrets =
            Secrets::new(rules, keeping, Arc::clone(&source) as _, Arc::clone(&clock) as _, entropy);
        Self { clock, source, secrets }
    }

    fn says(&self, answer: Result<&str, Failure>) {
        *self.source.says.lock().expect("unpoisoned") = answer.map(Secret::new);
    }

    fn pass(&self, time: Duration) {
        self.clock.0.fetch_add(u64::try_from(time.as_millis()).expect("short"), Ordering::Relaxed);
    }

    fn asked(&self) -> u32 {
        self.source.asked.load(Ordering::Relaxed)
    }

    async fn resolve(&self) -> Result<String, SecretError> {
        self.follow("ssm:/a", None).await
    }

    async fn follow(&self, reference: &str, refused: Option<&str>) -> Result<String, SecretError> {
        let credential = Credential::At(reference.parse().expect("a reference"));
        let refused = refused.map(Secret::new);
        let found = match &refused {
            None => self.secrets.resolve(&credential, &client(), "acme").await,
            Some(sent) => self.secrets.resolve_again(&credential, &client(), "acme", sent).await,
        };
        found.map(|secret| secret.expose().to_owned())
    }
}

fn silence() -> Result<&'static str, Failure> {
    Err(Failure::NoAnswer("down".into()))
}

const LONG: Duration = Duration::from_secs(101);

#[tokio::test]
async fn what_is_kept_is_fresh_for_a_while_and_then_asked_for_again() {
    let world = World::new();
    for _ in 0..3 {
        assert_eq!(world.resolve().await, Ok("s1".into()));
    }
    world.says(Ok("s2"));
    world.pass(Duration::from_secs(74));
    assert_eq!((world.resolve().await, world.asked()), (Ok("s1".into()), 1));
    world.pass(LONG);
    assert_eq!((world.resolve().await, world.asked()), (Ok("s2".into()), 2));
}

#[tokio::test]
async fn of_many_who_miss_the_same_secret_one_asks() {
    let world = World::new();
    let all = futures_util::future::join_all((0..50).map(|_| world.resolve())).await;
    assert!(all.iter().all(|found| *found == Ok("s1".into())));
    assert_eq!(world.asked(), 1);
}

#[tokio::test]
async fn what_is_kept_is_used_while_there_is_no_answer_and_not_for_ever() {
    let world = World::new();
    world.resolve().await.expect("found");
    world.says(silence());
    world.pass(LONG);
    for _ in 0..3 {
        assert_eq!(world.resolve().await, Ok("s1".into()));
    }
    assert_eq!(world.asked(), 2, "a question without an answer is not repeated at once");
    world.pass(Duration::from_secs(1000));
    let error = world.resolve().await.expect_err("it is too old");
    assert!(error.is_transient() && error.to_string().contains("ssm:/a"), "{error}");
}

#[tokio::test]
async fn a_refusal_ends_what_is_kept() {
    let world = World::new();
    world.resolve().await.expect("found");
    world.says(Err(Failure::Refused("gone".into())));
    world.pass(LONG);
    for _ in 0..2 {
        let error = world.resolve().await.expect_err("refused");
        assert!(!error.is_transient() && error.to_string().contains("gone"), "{error}");
    }
    world.says(silence());
    world.pass(LONG);
    assert!(world.resolve().await.is_err_and(|error| error.is_transient()), "nothing is kept any more");
    world.says(Ok("s2"));
    world.pass(SILENCE);
    assert_eq!(world.resolve().await, Ok("s2".into()));
}

#[tokio::test]
async fn what_a_provider_refuses_is_looked_up_again_by_one_of_many() {
    let world = World::new();
    world.resolve().await.expect("found");
    world.says(Ok("s2"));
    world.pass(AGAIN);
    let all = futures_util::future::join_all((0..50).map(|_| world.follow("ssm:/a", Some("s1")))).await;
    assert!(all.iter().all(|found| *found == Ok("s2".into())), "{all:?}");
    assert_eq!(world.asked(), 2);
    // Refused as well: not more than once a second.
    for _ in 0..5 {
        assert_eq!(world.follow("ssm:/a", Some("s2")).await, Ok("s2".into()));
    }
    assert_eq!(world.asked(), 2);
    world.says(silence());
    world.pass(AGAIN);
    assert_eq!(
        world.follow("ssm:/a", Some("s2")).await,
        Ok("s2".into()),
        "unchanged, as far as anybody knows"
    );
}

#[tokio::test]
async fn of_many_keys_of_one_secret_the_whole_is_looked_up_once() {
    let world = World::new();
    world.says(Ok(r#"{"a": "s1", "b": "s2", "port": 5432, "empty": ""}"#));
    let of = async |key: &str| world.follow(&format!("secretsmanager:shared#{key}"), None).await;
    let (a, b, c) = tokio::join!(of("a"), of("b"), of("c"));
    assert_eq!((a, b), (Ok("s1".into()), Ok("s2".into())));
    for absent in [c, of("port").await, of("empty").await] {
        let error = absent.expect_err("it is not there");
        assert!(!error.is_transient() && error.to_string().starts_with("secretsmanager:shared#"), "{error}");
    }
    assert!(world.follow("secretsmanager:shared", None).await.is_ok(), "all of it is a secret, too");
    assert_eq!(world.asked(), 1);
    assert!(world.follow("secretsmanager:shared?stage=AWSPENDING#a", None).await.is_ok());
    assert_eq!(world.asked(), 2, "another version is another secret");

    // One that is added is found before the others are old; and so is one that was changed and refused.
    world.says(Ok(r#"{"a": "s1", "b": "s3", "c": "s4"}"#));
    world.pass(SILENCE);
    assert_eq!((of("a").await, world.asked()), (Ok("s1".into()), 2));
    assert_eq!((of("c").await, world.asked()), (Ok("s4".into()), 3));
    assert_eq!((of("b").await, world.asked()), (Ok("s3".into()), 3));
    world.says(Ok(r#"{"a": "s5", "b": "s3"}"#));
    world.pass(AGAIN);
    let again = world.follow("secretsmanager:shared#a", Some("s1")).await;
    assert_eq!((again, world.asked()), (Ok("s5".into()), 4));
}

#[tokio::test]
async fn what_is_not_allowed_is_not_asked_for_whatever_is_kept() {
    let world = World::new();
    world.resolve().await.expect("found");
    for reference in ["ssm:/a/b", "env:A", "file:/a"] {
        let error = world.follow(reference, None).await.expect_err("no rule");
        assert!(matches!(error, SecretError::NotAllowed(_)) && error.to_string().contains("secrets.allow"));
    }
    let entropy = Arc::new(Entropy::from_seed(1));
    let nobody = Secrets::none(Arc::clone(&world.clock) as _, entropy);
    let credential = Credential::At("ssm:/a".parse().expect("a reference"));
    assert!(nobody.resolve(&credential, &client(), "acme").await.is_err());
    assert_eq!(world.asked(), 1);
}

#[tokio::test]
async fn what_is_no_secret_is_refused_and_not_shown() {
    let world = World::new();
    for (n, bad) in ["", "canary\0", &"x".repeat(LONGEST + 1)].into_iter().enumerate() {
        world.says(Ok(bad));
        let error = world.follow(&format!("ssm:/{n}"), None).await.expect_err("no secret");
        assert!(!error.is_transient() && !error.to_string().contains("canary"), "{error}");
    }
}

#[tokio::test]
async fn there_is_a_bound_to_what_is_kept() {
    let world = World::new();
    for n in 0..MOST + 10 {
        world.pass(Duration::from_millis(1));
        world.follow(&format!("ssm:/{n}"), None).await.expect("found");
    }
    let kept = world.secrets.slots.lock().expect("unpoisoned").len();
    assert_eq!(kept, MOST);
    assert!(!format!("{:?}", world.secrets).contains("s1"));
}

/// Each client of a service that is down would hold its refresh up; and what is kept is used at once.
#[tokio::test]
async fn a_silent_service_is_left_alone_by_all_who_need_it() {
    let world = World::new();
    assert_eq!(world.resolve().await, Ok("s1".into()));
    world.says(silence());
    world.pass(LONG);
    for n in 0..SILENT {
        assert!(world.follow(&format!("ssm:/a{n}"), None).await.is_err());
    }
    let asked = world.asked();
    for n in 0..50 {
        assert!(world.follow(&format!("ssm:/b{n}"), None).await.is_err());
    }
    assert_eq!((world.resolve().await, world.asked()), (Ok("s1".into()), asked));
    world.pass(SILENCE);
    world.says(Ok("s2"));
    assert_eq!(world.follow("ssm:/c", None).await, Ok("s2".into()), "one asks");
    assert_eq!(world.resolve().await, Ok("s2".into()), "and then all may");
}
