//! Random histories of a few items: the in-memory store and a DynamoDB one must tell the same story.

use std::sync::atomic::{AtomicU64, Ordering};

use perennial::client::ClientId;
use perennial::item::{Action, Assignment, Change, Condition, Item, Key, Value, Write};
use perennial::record::Partition;
use perennial::store::{Applied, MemoryStore, Store, StoreError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::worlds::{DynamoWorld, World};

const NAMES: [&str; 3] = ["gen", "st", "of"];

fn name() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&NAMES[..])
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (0..4_i64).prop_map(Value::N),
        1 => "[IF]".prop_map(Value::S),
        1 => any::<bool>().prop_map(Value::Bool),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    let leaf = prop_oneof![
        3 => Just(Condition::Exists),
        2 => Just(Condition::Absent),
        1 => name().prop_map(Condition::Has),
        2 => name().prop_map(Condition::Lacks),
        2 => (name(), value()).prop_map(|(name, value)| Condition::Equals(name, value)),
        2 => (name(), 0..4_i64).prop_map(|(name, bound)| Condition::Below(name, bound)),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Condition::All),
            proptest::collection::vec(inner, 0..3).prop_map(Condition::Any),
        ]
    })
}

fn assignment() -> impl Strategy<Value = Assignment> {
    prop_oneof![
        3 => (name(), value()).prop_map(|(name, value)| Assignment::Set(name, value)),
        2 => (name(), -2..3_i64).prop_map(|(name, amount)| Assignment::Add(name, amount)),
        1 => name().prop_map(Assignment::Remove),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let item = proptest::collection::vec((name(), value()), 0..3);
    prop_oneof![
        6 => proptest::collection::vec(assignment(), 0..3).prop_map(Action::Update),
        2 => item.prop_map(|values| {
            Action::Put(values.into_iter().fold(Item::default(), |item, (name, value)| item.with(name, value)))
        }),
        1 => Just(Action::Delete),
        1 => Just(Action::Check),
    ]
}

/// A write of one of six items: two clients' three.
fn write() -> impl Strategy<Value = (usize, Condition, Action)> {
    (0..6_usize, condition(), action())
}

fn history() -> impl Strategy<Value = Vec<Vec<(usize, Condition, Action)>>> {
    let change = prop_oneof![
        3 => proptest::collection::vec(write(), 1..2),
        1 => proptest::collection::vec(write(), 2..4),
    ];
    proptest::collection::vec(change, 1..25)
}

/// What both stores must agree on: the outcome, or the class of the error.
fn told(outcome: Result<Applied, StoreError>) -> Result<Applied, &'static str> {
    outcome.map_err(|error| match error {
        StoreError::Throttled(_) => "throttled",
        StoreError::Conflict(_) => "conflict",
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Refused(_) => "refused",
        StoreError::Unreadable(_) => "unreadable",
    })
}

static CASE: AtomicU64 = AtomicU64::new(0);

/// New clients for every history, so that one table serves all.
fn clients() -> [ClientId; 2] {
    let case = CASE.fetch_add(1, Ordering::Relaxed);
    ["a", "b"].map(|name| ClientId::new(format!("case-{case}-{name}")).expect("a valid id"))
}

fn change(clients: &[ClientId; 2], writes: Vec<(usize, Condition, Action)>) -> Change {
    let key = |at: usize| {
        let id = clients[at / 3].clone();
        [Key::Config, Key::Lease, Key::Token][at % 3](id)
    };
    Change(
        writes.into_iter().map(|(at, condition, action)| Write { key: key(at), condition, action }).collect(),
    )
}

async fn partitions(store: &impl Store, clients: &[ClientId; 2]) -> Vec<Partition> {
    let mut all = Vec::new();
    for id in clients {
        all.push(store.read(id).await.expect("reads"));
    }
    all
}

async fn same_story(
    world: &DynamoWorld,
    history: Vec<Vec<(usize, Condition, Action)>>,
) -> Result<(), TestCaseError> {
    let (memory, clients) = (MemoryStore::new(), clients());
    for writes in history {
        let change = change(&clients, writes);
        let (mine, theirs) = (memory.apply(&change).await, world.store().apply(&change).await);
        prop_assert_eq!(told(mine), told(theirs), "{:?}", change);
        prop_assert_eq!(
            partitions(&memory, &clients).await,
            partitions(world.store(), &clients).await,
            "{:?}",
            change
        );
    }
    Ok(())
}

/// On failure proptest prints the seed, which `PROPTEST_RNG_SEED` takes, and the shortest history it found.
fn compare(cases: u32, world: impl Future<Output = DynamoWorld>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let world = runtime.block_on(world);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome =
        TestRunner::new(config).run(&history(), |history| runtime.block_on(same_story(&world, history)));
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[cfg(feature = "embedded")]
#[test]
fn memory_and_embedded_tell_the_same_story() {
    compare(150, DynamoWorld::embedded());
}

#[test]
fn memory_and_dynamodb_local_tell_the_same_story() {
    compare(40, DynamoWorld::local());
}
