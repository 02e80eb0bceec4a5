//! The cases, each a story about one store.

use std::collections::{BTreeMap, BTreeSet};

use perennial::client::ClientId;
use perennial::item::{Action, Assignment, Change, Condition, Item, Key, Value, attr};
use perennial::record::Partition;
use perennial::secret::Secret;
use perennial::store::{Applied, IndexRow, ShardQuery, Store, StoreError, View};
use perennial::time::Timestamp;

use super::worlds::World;

/// Runs every case on its own task; says which failed, and fails if any did.
pub(crate) async fn run_all<W: World>(world: W) {
    let mut failed = Vec::new();
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {
            $(if let Err(error) = tokio::spawn($case(world.clone())).await {
                failed.push(format!("{}: {error}", stringify!($case)));
            })*
        };
    }
    cases![
        conditions_are_judged_on_the_item_as_it_stands,
        comparisons_with_other_types_are_false,
        an_item_that_is_missing_satisfies_only_what_speaks_of_absence,
        put_replaces_the_whole_item,
        delete_leaves_nothing,
        update_sets_adds_and_removes,
        update_creates_a_missing_item,
        adding_to_a_string_is_refused,
        a_failed_condition_brings_the_old_item,
        unknown_attributes_survive_updates,
        foreign_types_are_read_and_never_written_back,
        reserved_words_are_ordinary_names,
        a_transaction_stands_or_falls_whole,
        a_transaction_may_check_without_writing,
        a_transaction_that_cannot_add_is_refused,
        programming_errors_are_refused,
        items_over_400_kb_are_refused,
        a_partition_is_read_whole_and_others_not_at_all,
        a_large_partition_is_read_to_its_end,
        a_shard_is_listed_page_by_page,
        later_joins_are_strictly_later,
        only_items_with_both_numbers_are_in_the_index,
        load_brings_each_existing_item_once,
        a_view_without_secrets_has_none,
        one_of_many_acquires_wins,
        transactions_lose_no_update_to_each_other,
        capacity_is_what_the_documentation_says,
    ];
    assert!(failed.is_empty(), "{failed:#?}");
}

fn id(name: &str) -> ClientId {
    ClientId::new(name).expect("a valid id")
}

fn lease(name: &str) -> Key {
    Key::Lease(id(name))
}

fn s(text: &str) -> Value {
    Value::S(text.into())
}

fn item<const N: usize>(attributes: [(&str, Value); N]) -> Item {
    attributes.into_iter().fold(Item::default(), |item, (name, value)| item.with(name, value))
}

async fn seed(world: &impl World, key: &Key, item: Item) {
    world.seed(&key.pk(), key.sk(), item).await;
}

async fn stored(world: &impl World, key: &Key) -> Option<Item> {
    let found = world.store().load(std::slice::from_ref(key), View::Whole).await.expect("loads");
    found.into_iter().next().map(|(_, item)| item)
}

async fn apply(world: &impl World, key: &Key, condition: Condition, action: Action) -> Applied {
    world.store().apply(&Change::one(key.clone(), condition, action)).await.expect("an outcome")
}

/// Whether the condition holds, by a write that marks the item.
async fn holds(world: &impl World, key: &Key, condition: Condition) -> bool {
    let mark = Action::Update(vec![Assignment::Add("marks", 1)]);
    apply(world, key, condition, mark).await == Applied::Committed
}

async fn conditions_are_judged_on_the_item_as_it_stands<W: World>(world: W) {
    use Condition::{Absent, All, Any, Below, Equals, Exists, Has, Lacks};
    let key = lease("conditions");
    let map = Value::M(BTreeMap::from([("k".into(), Value::L(vec![Value::N(1)]))]));
    let secret = Value::Secret(Secret::new("r"));
    let there =
        item([("gen", Value::N(5)), ("st", s("I")), ("flag", Value::Bool(true)), ("map", map.clone())]);
    seed(&world, &key, there.with(attr::REFRESH_TOKEN, secret.clone())).await;
    let truths = [
        Exists,
        Has("gen"),
        Lacks("of"),
        Equals("gen", Value::N(5)),
        Equals("st", s("I")),
        Equals("flag", Value::Bool(true)),
        Equals("map", map),
        Equals(attr::REFRESH_TOKEN, secret),
        Below("gen", 6),
        All(vec![]),
        All(vec![Exists, Has("st"), All(vec![])]),
        Any(vec![Absent, Has("st")]),
        All(vec![Any(vec![Lacks("gen"), Below("gen", 6)]), Any(vec![Has("of"), Lacks("of")])]),
    ];
    for condition in truths {
        assert!(holds(&world, &key, condition.clone()).await, "{condition:?} holds");
    }
    let lies = [
        Absent,
        Has("of"),
        Lacks("gen"),
        Equals("gen", Value::N(6)),
        Equals("st", s("i")),
        Equals(attr::REFRESH_TOKEN, Value::Secret(Secret::new("R"))),
        Below("gen", 5),
        Below("gen", -6),
        All(vec![Exists, Absent]),
        Any(vec![Absent, Has("of")]),
        All(vec![Has("st"), Any(vec![Lacks("gen"), Below("gen", 5)])]),
    ];
    for condition in lies {
        assert!(!holds(&world, &key, condition.clone()).await, "{condition:?} does not hold");
    }
}

async fn comparisons_with_other_types_are_false<W: World>(world: W) {
    let key = lease("types");
    seed(&world, &key, item([("gen", s("5")), ("st", Value::N(5)), ("b", Value::Bool(false))])).await;
    assert!(!holds(&world, &key, Condition::Below("gen", 9)).await);
    assert!(!holds(&world, &key, Condition::Below("b", 9)).await);
    assert!(!holds(&world, &key, Condition::Equals("gen", Value::N(5))).await);
    assert!(!holds(&world, &key, Condition::Equals("st", s("5"))).await);
}

async fn an_item_that_is_missing_satisfies_only_what_speaks_of_absence<W: World>(world: W) {
    let conditions = [
        (Condition::Exists, false),
        (Condition::Has("gen"), false),
        (Condition::Equals("gen", Value::N(0)), false),
        (Condition::Below("gen", 9), false),
        (Condition::Absent, true),
        (Condition::Lacks("gen"), true),
        (Condition::All(vec![]), true),
    ];
    for (at, (condition, expected)) in conditions.into_iter().enumerate() {
        let key = lease(&format!("missing-{at}"));
        assert_eq!(holds(&world, &key, condition.clone()).await, expected, "{condition:?}");
        assert_eq!(stored(&world, &key).await.is_some(), expected, "{condition:?}");
    }
}

async fn put_replaces_the_whole_item<W: World>(world: W) {
    let key = lease("put");
    let (first, second) = (item([("a", Value::N(1)), ("b", Value::N(2))]), item([("b", Value::N(3))]));
    assert_eq!(apply(&world, &key, Condition::Absent, Action::Put(first)).await, Applied::Committed);
    assert_eq!(apply(&world, &key, Condition::Exists, Action::Put(second.clone())).await, Applied::Committed);
    assert_eq!(stored(&world, &key).await, Some(second));
}

async fn delete_leaves_nothing<W: World>(world: W) {
    let key = lease("delete");
    seed(&world, &key, item([("gen", Value::N(1))])).await;
    let other = Condition::Equals("gen", Value::N(2));
    assert!(matches!(apply(&world, &key, other, Action::Delete).await, Applied::Lost(_)));
    assert_eq!(apply(&world, &key, Condition::Exists, Action::Delete).await, Applied::Committed);
    assert_eq!(stored(&world, &key).await, None);
    // Deleting what is not there succeeds, on no condition.
    assert_eq!(apply(&world, &key, Condition::All(vec![]), Action::Delete).await, Applied::Committed);
}

async fn update_sets_adds_and_removes<W: World>(world: W) {
    let key = lease("update");
    seed(
        &world,
        &key,
        item([("st", s("F")), ("own", s("me")), ("fails", Value::N(2)), ("keep", Value::Bool(true))]),
    )
    .await;
    let update = vec![
        Assignment::Set("st", s("I")),
        Assignment::Remove("own"),
        Assignment::Remove("never_there"),
        Assignment::Add("fails", -5),
        Assignment::Add("count", 3),
        Assignment::Set(attr::ACCESS_TOKEN, Value::Secret(Secret::new("t"))),
    ];
    apply(&world, &key, Condition::Exists, Action::Update(update)).await;
    let expected =
        item([("st", s("I")), ("fails", Value::N(-3)), ("count", Value::N(3)), ("keep", Value::Bool(true))]);
    assert_eq!(
        stored(&world, &key).await,
        Some(expected.with(attr::ACCESS_TOKEN, Value::Secret(Secret::new("t"))))
    );
}

async fn update_creates_a_missing_item<W: World>(world: W) {
    let updates = [
        vec![Assignment::Set("a", Value::N(1))],
        vec![Assignment::Add("a", 1)],
        vec![Assignment::Remove("b"), Assignment::Add("a", 1)],
    ];
    for (at, update) in updates.into_iter().enumerate() {
        let key = lease(&format!("create-{at}"));
        assert_eq!(apply(&world, &key, Condition::Absent, Action::Update(update)).await, Applied::Committed);
        assert_eq!(stored(&world, &key).await, Some(item([("a", Value::N(1))])));
    }
    let (key, remove) = (lease("create-empty"), vec![Assignment::Remove("b")]);
    assert_eq!(apply(&world, &key, Condition::Absent, Action::Update(remove)).await, Applied::Committed);
    assert_eq!(stored(&world, &key).await, Some(Item::default()));
}

async fn adding_to_a_string_is_refused<W: World>(world: W) {
    let key = lease("add-string");
    let before = item([("fails", s("2"))]);
    seed(&world, &key, before.clone()).await;
    let change =
        |condition| Change::one(key.clone(), condition, Action::Update(vec![Assignment::Add("fails", 1)]));
    assert!(matches!(world.store().apply(&change(Condition::Exists)).await, Err(StoreError::Refused(_))));
    // The condition comes first.
    let lost = Applied::Lost(vec![Some(before.clone())]);
    assert_eq!(world.store().apply(&change(Condition::Absent)).await, Ok(lost));
    assert_eq!(stored(&world, &key).await, Some(before));
}

async fn a_failed_condition_brings_the_old_item<W: World>(world: W) {
    let key = lease("old");
    let before = item([("gen", Value::N(4)), ("own", s("other#1")), ("raw", Value::Other("B"))]);
    seed(&world, &key, before.clone()).await;
    for action in
        [Action::Update(vec![Assignment::Add("gen", 1)]), Action::Put(Item::default()), Action::Delete]
    {
        let outcome = apply(&world, &key, Condition::Equals("gen", Value::N(3)), action).await;
        assert_eq!(outcome, Applied::Lost(vec![Some(before.clone())]));
    }
    let outcome = apply(&world, &lease("old-none"), Condition::Exists, Action::Delete).await;
    assert_eq!(outcome, Applied::Lost(vec![None]));
}

async fn unknown_attributes_survive_updates<W: World>(world: W) {
    let key = lease("unknown");
    let foreign = [("note", s("theirs")), ("blob", Value::Other("B")), ("set", Value::Other("SS"))];
    let before =
        foreign.into_iter().fold(item([("gen", Value::N(0))]), |item, (name, value)| item.with(name, value));
    seed(&world, &key, before.clone()).await;
    apply(&world, &key, Condition::Exists, Action::Update(vec![Assignment::Set("gen", Value::N(1))])).await;
    assert_eq!(stored(&world, &key).await, Some(before.with("gen", Value::N(1))));
}

async fn foreign_types_are_read_and_never_written_back<W: World>(world: W) {
    let key = Key::Token(id("foreign"));
    let kinds = ["B", "BS", "SS", "NS", "NULL", "N"];
    let foreign =
        kinds.iter().fold(Item::default(), |item, kind| item.with(&format!("x{kind}"), Value::Other(kind)));
    seed(&world, &key, foreign.clone()).await;
    let read = world.store().read(&id("foreign")).await.expect("reads");
    assert_eq!(read.token, Some(foreign.clone()));
    assert!(!holds(&world, &key, Condition::Below("xN", i64::MAX)).await, "1e40 is below nothing here");
    let back = world.store().apply(&Change::one(key.clone(), Condition::Exists, Action::Put(foreign))).await;
    assert!(matches!(back, Err(StoreError::Refused(_))), "{back:?}");
}

async fn reserved_words_are_ordinary_names<W: World>(world: W) {
    let key = lease("reserved");
    let words = ["of", "scope", "ttl", "state", "name", "values", "key", "status"];
    let sets = words.iter().map(|word| Assignment::Set(word, Value::N(1))).collect();
    assert_eq!(apply(&world, &key, Condition::Lacks("of"), Action::Update(sets)).await, Applied::Committed);
    let all = Condition::All(words.iter().map(|word| Condition::Equals(word, Value::N(1))).collect());
    let removes = words.iter().map(|word| Assignment::Remove(word)).collect();
    assert_eq!(apply(&world, &key, all, Action::Update(removes)).await, Applied::Committed);
    assert_eq!(stored(&world, &key).await, Some(Item::default()));
}

async fn a_transaction_stands_or_falls_whole<W: World>(world: W) {
    let [config, lease, token] = [Key::Config(id("tx")), Key::Lease(id("tx")), Key::Token(id("tx"))];
    let registration = |gen_| {
        Change::one(config.clone(), Condition::Absent, Action::Put(item([("provider", s("p"))])))
            .and(
                lease.clone(),
                Condition::Absent,
                Action::Update(vec![Assignment::Set("gen", Value::N(gen_))]),
            )
            .and(token.clone(), Condition::Lacks("tok_gen"), Action::Put(item([("tok_gen", Value::N(gen_))])))
    };
    assert_eq!(world.store().apply(&registration(1)).await, Ok(Applied::Committed));
    let before = world.store().read(&id("tx")).await.expect("reads");
    let met = [before.config.clone(), before.lease.clone(), before.token.clone()];
    assert_eq!(world.store().apply(&registration(2)).await, Ok(Applied::Lost(met.to_vec())));

    // Only the second fails: it alone brings its item, and nothing of the others happens.
    let mixed = Change::one(config, Condition::Exists, Action::Delete)
        .and(lease, Condition::Equals("gen", Value::N(9)), Action::Delete)
        .and(token, Condition::Exists, Action::Update(vec![Assignment::Add("tok_gen", 1)]));
    assert_eq!(world.store().apply(&mixed).await, Ok(Applied::Lost(vec![None, met[1].clone(), None])));
    assert_eq!(world.store().read(&id("tx")).await, Ok(before));
}

async fn a_transaction_may_check_without_writing<W: World>(world: W) {
    let (checked, written) = (Key::Lease(id("check")), Key::Token(id("check")));
    let there = item([("gen", Value::N(3)), ("st", s("F"))]);
    seed(&world, &checked, there.clone()).await;
    let commit = |gen_| {
        let mine =
            Condition::All(vec![Condition::Equals("gen", Value::N(gen_)), Condition::Equals("st", s("F"))]);
        let free = Condition::Any(vec![Condition::Absent, Condition::Below("tok_gen", gen_)]);
        let update = vec![Assignment::Set("tok_gen", Value::N(gen_))];
        Change::one(checked.clone(), mine, Action::Check).and(written.clone(), free, Action::Update(update))
    };
    assert_eq!(world.store().apply(&commit(2)).await, Ok(Applied::Lost(vec![Some(there.clone()), None])));
    assert_eq!(stored(&world, &written).await, None);
    assert_eq!(world.store().apply(&commit(3)).await, Ok(Applied::Committed));
    assert_eq!(stored(&world, &checked).await, Some(there));
    let newer = item([("tok_gen", Value::N(3))]);
    assert_eq!(world.store().apply(&commit(3)).await, Ok(Applied::Lost(vec![None, Some(newer)])));
}

async fn a_transaction_that_cannot_add_is_refused<W: World>(world: W) {
    let (first, second) = (lease("tx-add-1"), lease("tx-add-2"));
    seed(&world, &first, item([("fails", s("x"))])).await;
    let add = || Action::Update(vec![Assignment::Add("fails", 1)]);
    let change = Change::one(first, Condition::Exists, add()).and(second.clone(), Condition::Absent, add());
    assert!(matches!(world.store().apply(&change).await, Err(StoreError::Refused(_))));
    assert_eq!(stored(&world, &second).await, None);
}

async fn programming_errors_are_refused<W: World>(world: W) {
    let key = || lease("wrong");
    let update = |assignments| Change::one(key(), Condition::Absent, Action::Update(assignments));
    let changes = [
        Change(vec![]),
        Change::one(key(), Condition::Absent, Action::Check),
        Change::one(key(), Condition::Any(vec![]), Action::Delete),
        Change::one(key(), Condition::Absent, Action::Delete).and(key(), Condition::Absent, Action::Delete),
        update(vec![]),
        update(vec![Assignment::Set("a", Value::N(1)), Assignment::Remove("a")]),
        update(vec![Assignment::Set(attr::SK, s("x"))]),
        update(vec![Assignment::Set(attr::JN, s("soon"))]),
        update(vec![Assignment::Set("a", Value::Other("SS"))]),
        Change::one(key(), Condition::Equals("a", Value::Other("B")), Action::Delete),
    ];
    for change in changes {
        let outcome = world.store().apply(&change).await;
        assert!(matches!(outcome, Err(StoreError::Refused(_))), "{change:?}: {outcome:?}");
    }
    assert_eq!(stored(&world, &key()).await, None);
}

async fn items_over_400_kb_are_refused<W: World>(world: W) {
    let key = Key::Token(id("huge"));
    let put = |kb: usize| {
        let secret = Value::Secret(Secret::new("hunter2".repeat(kb * 1024 / 7)));
        Change::one(key.clone(), Condition::Absent, Action::Put(item([(attr::ACCESS_TOKEN, secret)])))
    };
    let error = world.store().apply(&put(401)).await.expect_err("too large");
    assert!(matches!(&error, StoreError::Refused(text) if !text.contains("hunter2")), "{error}");
    assert_eq!(world.store().apply(&put(399)).await, Ok(Applied::Committed));
}

async fn a_partition_is_read_whole_and_others_not_at_all<W: World>(world: W) {
    let one = |name: &str| item([("x", s(name))]);
    for (pk, sk) in [("CLIENT#part", "CONFIG"), ("CLIENT#part", "LEASE"), ("CLIENT#part", "TOKEN#ACCESS")] {
        world.seed(pk, sk, one(sk)).await;
    }
    for (pk, sk) in [("CLIENT#part", "TOKEN#ID"), ("CLIENT#part2", "LEASE"), ("CLIENT#par", "LEASE")] {
        world.seed(pk, sk, one("foreign")).await;
    }
    let read = world.store().read(&id("part")).await.expect("reads");
    let whole = Partition {
        config: Some(one("CONFIG")),
        lease: Some(one("LEASE")),
        token: Some(one("TOKEN#ACCESS")),
    };
    assert_eq!(read, whole);
    assert_eq!(world.store().read(&id("nobody")).await, Ok(Partition::default()));
}

/// A page of a query ends at 1 MB: foreign items between ours must not hide the last of ours.
async fn a_large_partition_is_read_to_its_end<W: World>(world: W) {
    for at in 0..4 {
        world.seed("CLIENT#large", &format!("FOREIGN#{at}"), item([("x", s(&"x".repeat(390_000)))])).await;
    }
    let token = item([("tok_gen", Value::N(1))]);
    seed(&world, &Key::Token(id("large")), token.clone()).await;
    let read = world.store().read(&id("large")).await.expect("reads");
    assert_eq!(read.token, Some(token));
}

/// All rows, page by page, and the number of pages.
async fn list(world: &impl World, shard: u32, joined_after: Option<i64>) -> (Vec<IndexRow>, usize) {
    let joined_after = joined_after.map(Timestamp::from_millis);
    let mut query = ShardQuery { shard, joined_after, after: None };
    let (mut rows, mut pages) = (Vec::new(), 0);
    loop {
        let page = world.store().query(&query).await.expect("a page");
        query.after = page.rows.last().cloned().or(query.after);
        rows.extend(page.rows);
        pages += 1;
        if !page.more {
            return (rows, pages);
        }
        assert!(pages < 100, "the pages never end");
    }
}

async fn a_shard_is_listed_page_by_page<W: World>(world: W) {
    const ROWS: i64 = 620;
    for at in 0..ROWS {
        // Runs of equal join stamps, one of them longer than a page.
        let joined = if at < 300 { 5 } else { at / 7 };
        let row = item([(attr::VS, Value::N(901)), (attr::JN, Value::N(joined))]);
        seed(&world, &Key::Config(id(&format!("row-{at}"))), row).await;
    }
    let (rows, pages) = list(&world, 901, None).await;
    assert!((3..10).contains(&pages), "{pages} pages");
    assert!(rows.is_sorted_by_key(|row| row.joined), "not in the order of join stamps");
    let distinct: BTreeSet<_> = rows.iter().map(|row| (&row.pk, &row.sk)).collect();
    assert_eq!((rows.len(), distinct.len()), (620, 620));
    let expected: BTreeSet<_> = (0..ROWS).map(|at| format!("CLIENT#row-{at}")).collect();
    assert_eq!(rows.iter().map(|row| row.pk.clone()).collect::<BTreeSet<_>>(), expected);
    assert_eq!(list(&world, 901, Some(5)).await.0.len(), 320);
}

async fn later_joins_are_strictly_later<W: World>(world: W) {
    for joined in [10, 20, 30] {
        let row = item([(attr::VS, Value::N(902)), (attr::JN, Value::N(joined))]);
        seed(&world, &Key::Config(id(&format!("join-{joined}"))), row).await;
    }
    let joins = async |after| {
        let (rows, _) = list(&world, 902, after).await;
        rows.iter().map(|row| row.joined.as_millis()).collect::<Vec<_>>()
    };
    assert_eq!(joins(None).await, [10, 20, 30]);
    assert_eq!(joins(Some(9)).await, [10, 20, 30]);
    assert_eq!(joins(Some(10)).await, [20, 30]);
    assert_eq!(joins(Some(30)).await, Vec::<i64>::new());
    assert_eq!(list(&world, 903, None).await.0, []);
}

async fn only_items_with_both_numbers_are_in_the_index<W: World>(world: W) {
    let key = Key::Config(id("indexed"));
    let (shard, joined) = ((attr::VS, Value::N(904)), (attr::JN, Value::N(1)));
    seed(&world, &Key::Config(id("no-join")), item([shard.clone()])).await;
    seed(&world, &Key::Config(id("no-shard")), item([joined.clone()])).await;
    world.seed("THEIRS", "x", item([shard.clone(), joined.clone()])).await;
    seed(&world, &key, item([shard, joined])).await;
    let pks = async || list(&world, 904, None).await.0.into_iter().map(|row| row.pk).collect::<BTreeSet<_>>();
    assert_eq!(pks().await, BTreeSet::from(["CLIENT#indexed".to_owned(), "THEIRS".to_owned()]));

    let later = vec![Assignment::Set(attr::JN, Value::N(50))];
    apply(&world, &key, Condition::Exists, Action::Update(later)).await;
    assert_eq!(list(&world, 904, Some(1)).await.0.len(), 1);
    let gone = vec![Assignment::Remove(attr::VS), Assignment::Remove(attr::JN)];
    apply(&world, &key, Condition::Exists, Action::Update(gone)).await;
    assert_eq!(pks().await, BTreeSet::from(["THEIRS".to_owned()]));
}

async fn load_brings_each_existing_item_once<W: World>(world: W) {
    let keys: Vec<_> = (0..230).map(|at| lease(&format!("load-{at}"))).collect();
    for key in keys.iter().step_by(2) {
        seed(&world, key, item([("x", s(&key.pk()))])).await;
    }
    let asked: Vec<_> = keys.iter().chain(&keys[..120]).cloned().collect();
    let found = world.store().load(&asked, View::Whole).await.expect("loads");
    assert_eq!(found.len(), 115);
    for (key, found) in &found {
        assert_eq!(found, &item([("x", s(&key.pk()))]));
    }
    let found: BTreeSet<_> = found.into_iter().map(|(key, _)| key).collect();
    assert_eq!(found, keys.iter().step_by(2).cloned().collect());
    assert_eq!(world.store().load(&[], View::Whole).await, Ok(vec![]));
}

async fn a_view_without_secrets_has_none<W: World>(world: W) {
    let plain = item([
        (attr::TOK_GEN, Value::N(3)),
        (attr::SCOPE, s("a b")),
        (attr::OF, Value::N(1)),
        (attr::PARAMS, Value::M(BTreeMap::from([("k".into(), Value::Secret("v".into()))]))),
    ]);
    let secrets =
        attr::SECRETS.iter().fold(plain.clone(), |item, name| item.with(name, Value::text(name, "hunter2")));
    let key = Key::Token(id("view"));
    seed(&world, &key, secrets.clone().with("theirs", s("unknown"))).await;
    let view = async |view| world.store().load(std::slice::from_ref(&key), view).await.expect("loads");
    assert_eq!(view(View::WithoutSecrets).await, vec![(key.clone(), plain.clone())]);
    assert_eq!(view(View::Glance).await, vec![(key.clone(), plain)]);
    let readers = item([(attr::TOK_GEN, Value::N(3)), (attr::SCOPE, s("a b"))]);
    let access = Value::text(attr::ACCESS_TOKEN, "hunter2");
    assert_eq!(view(View::Reader).await, vec![(key.clone(), readers.with(attr::ACCESS_TOKEN, access))]);
    assert_eq!(view(View::Whole).await, vec![(key.clone(), secrets.with("theirs", s("unknown")))]);
}

async fn one_of_many_acquires_wins<W: World>(world: W) {
    let key = lease("race");
    seed(&world, &key, item([("gen", Value::N(0)), ("st", s("I"))])).await;
    for round in 0..5 {
        let attempts: Vec<_> = (0..16)
            .map(|task| {
                let (world, key) = (world.clone(), key.clone());
                tokio::spawn(async move {
                    let sets = vec![
                        Assignment::Set("gen", Value::N(round + 1)),
                        Assignment::Set("own", s(&format!("task#{task}"))),
                    ];
                    let outcome =
                        apply(&world, &key, Condition::Equals("gen", Value::N(round)), Action::Update(sets))
                            .await;
                    (task, outcome)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for attempt in attempts {
            let (task, outcome) = attempt.await.expect("no panic");
            match outcome {
                Applied::Committed => winners.push(task),
                Applied::Lost(items) => {
                    let met = items[0].as_ref().expect("the winner's item");
                    assert_eq!(met.get("gen"), Some(&Value::N(round + 1)));
                }
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        let owner = stored(&world, &key).await.and_then(|item| item.get("own").cloned());
        assert_eq!(owner, Some(s(&format!("task#{}", winners[0]))));
    }
}

/// Two items, each transaction adds to both: a conflict is not applied, and may be repeated.
async fn transactions_lose_no_update_to_each_other<W: World>(world: W) {
    let [left, right] = [lease("tx-race-l"), lease("tx-race-r")];
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let add = || Action::Update(vec![Assignment::Add("n", 1)]);
            let always = || Condition::All(vec![]);
            let change = Change::one(left.clone(), always(), add()).and(right.clone(), always(), add());
            let world = world.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    while let Err(error) = world.store().apply(&change).await {
                        assert!(matches!(error, StoreError::Conflict(_)), "{error}");
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    for key in [left, right] {
        assert_eq!(stored(&world, &key).await, Some(item([("n", Value::N(80))])));
    }
}

/// Write and read units of an operation.
async fn cost<W: World, T>(world: &W, operation: impl Future<Output = T>) -> (f64, f64) {
    let before = (world.vitals().write_units(), world.vitals().read_units());
    operation.await;
    (world.vitals().write_units() - before.0, world.vitals().read_units() - before.1)
}

async fn capacity_is_what_the_documentation_says<W: World>(world: W) {
    let name = id("cost");
    let key = lease("cost");
    let token = Key::Token(name.clone());
    let acquire = |seen| {
        let sets = vec![
            Assignment::Set(attr::GEN, Value::N(seen + 1)),
            Assignment::Set(attr::OWN, s("0123456789abcdef#0123456789abcdef")),
        ];
        Change::one(key.clone(), Condition::Equals(attr::GEN, Value::N(seen)), Action::Update(sets))
    };
    seed(&world, &key, item([(attr::GEN, Value::N(0))])).await;
    assert_eq!(cost(&world, world.store().apply(&acquire(0))).await, (1.0, 0.0), "a lease update");
    assert_eq!(cost(&world, world.store().apply(&acquire(0))).await, (1.0, 0.0), "a lost acquire");
    assert_eq!(cost(&world, world.store().read(&name)).await, (0.0, 1.0), "a small partition");

    let tokens = Value::Secret(Secret::new("t".repeat(2500)));
    let commit = Action::Update(vec![Assignment::Set(attr::ACCESS_TOKEN, tokens)]);
    let commit = Change::one(token.clone(), Condition::Absent, commit);
    assert_eq!(cost(&world, world.store().apply(&commit)).await, (3.0, 0.0), "a commit of 2.5 KB");
    assert_eq!(cost(&world, world.store().apply(&commit)).await, (3.0, 0.0), "a superseded one");
    seed(&world, &Key::Config(name.clone()), item([("x", s(&"x".repeat(2000)))])).await;
    assert_eq!(cost(&world, world.store().read(&name)).await, (0.0, 2.0), "a partition of 4.6 KB");
    assert_eq!(
        cost(&world, world.store().load(&[key.clone(), token.clone()], View::Whole)).await,
        (0.0, 2.0),
        "a load"
    );
}
