//! The items of a client's partition as another tool may leave them: sound ones, and then the stranger's edits.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use perennial::client::ClientId;
use perennial::entry::{Raw, item_from_table, item_to_table};
use perennial::item::{Action, Change, Item, Key, Value, Write, attr};
use perennial::plan::condition::{condition, lease_end};
use perennial::plan::in_doubt::{Risk, Silent, take_over_in};
use perennial::plan::lease::{Commit, Intent, Standing, acquire, commit, repair_ttl, standing};
use perennial::plan::membership::{Rules, View};
use perennial::plan::outcome::{Attempt, Go, after_read, escalates};
use perennial::plan::registry::{self, Imported, Resolution};
use perennial::plan::schedule::{Due, due, wanted_at};
use perennial::plan::{Backoff, Lifetimes};
use perennial::record::{
    Gen, Lease, Malformed, Member, Partition, Snapshot, Token, decode_member, encode_config, encode_member,
};
use perennial::reply::{Lifetime, Tokens};
use perennial::store::{Applied, MemoryStore, Store};
use perennial::time::{Moment, Timestamp};

use super::answers::{provider, timing};
use super::bytes::Bytes;
use super::run;

const CANARY: &str = "hunter2-canary";
/// An attribute of another tool, in every item.
const NOTE: &str = "note";
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

const NAMES: [&str; 49] = [
    attr::GEN,
    attr::ST,
    attr::OWN,
    attr::LEASE_MS,
    attr::INT_AT,
    attr::NEXT_AT,
    attr::FAILS,
    attr::ERR,
    attr::OF,
    attr::DBT,
    attr::DBT_SENDS,
    attr::ACCESS_TOKEN,
    attr::REFRESH_TOKEN,
    attr::TOKEN_TYPE,
    attr::SCOPE,
    attr::EXPIRES_AT,
    attr::LAST_UPDATED,
    attr::REFRESH_AT,
    attr::TOK_GEN,
    attr::BND,
    attr::TTL,
    attr::PROVIDER,
    attr::GRANT,
    attr::CLIENT_ID,
    attr::CLIENT_SECRET,
    attr::CLIENT_SECRET_REF,
    attr::SECOND_CLIENT_SECRET,
    attr::SECOND_CLIENT_SECRET_REF,
    attr::SCOPES,
    attr::AUDIENCE,
    attr::RESOURCE,
    attr::PARAMS,
    attr::TOKEN_URL,
    attr::PAUSED,
    attr::RF,
    attr::VS,
    attr::JN,
    attr::GONE,
    attr::BEAT,
    attr::STATE,
    attr::LAG_MS,
    attr::SKEW_MS,
    attr::AT,
    attr::VERSION,
    attr::CLIENTS,
    attr::REFRESHED,
    attr::FAILED,
    attr::CONFLICTS,
    attr::TAKEOVERS,
];
const NUMBERS: [&str; 24] = [
    "0",
    "1",
    "3",
    "4",
    "5",
    "6",
    "-1",
    "-2",
    "1800000000",
    "1799999999000",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "9007199254740993",
    "9007199254740992",
    "1e40",
    "-1E-130",
    "0.5",
    "-0.5",
    "4294967296",
    "253402300800",
    "NaN",
    "",
    "99999999999999999999999999999999999999",
];
const TEXTS: [&str; 26] = [
    "env:CRM_SECRET",
    "ssm:/oauth/crm",
    "I",
    "F",
    "Q",
    "D",
    "X",
    "",
    "Z",
    "refresh_token",
    "client_credentials",
    "acme",
    "https://acme.test/token",
    "JOINING",
    "ACTIVE",
    "LEAVING",
    "CLIENT#c1",
    "c1\n\u{1b}[2Jc2",
    "\u{202e}nekot",
    "\u{200b}\u{feff}",
    "\0",
    "a b  c",
    "http://[",
    "a1#0123",
    "eyJhbGciOiJBMjU2S1ciLCJ0YmwiOiJ0IiwiY2lkIjoiYyIsImF0dCI6IngifQ.a.b.c.d",
    "ｇｅｎ",
];

/// Any edits of a client's three items and of a member's.
pub(crate) fn table_item(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut raws = [config(), lease(), token(), member()];
    while !bytes.is_empty() {
        let which = usize::from(bytes.byte()) % raws.len();
        edit(&mut raws[which], &mut bytes);
    }
    let keys = [Key::Config(id()), Key::Lease(id()), Key::Token(id()), Key::Member("a1".to_owned())];
    let items = raws.map(item_from_table);
    for (key, item) in keys.iter().zip(&items) {
        survives_the_table(key, item);
    }
    let [config, lease, token, member] = items;
    is_seen_or_named(&member);
    let partition = Partition { config: Some(config), lease: Some(lease), token: Some(token) };
    assert!(!format!("{partition:?}").contains(CANARY), "a secret is shown");
    match partition.decode(&id()) {
        Err(malformed) => is_well_named(&malformed, "CLIENT#c1/"),
        Ok(snapshot) => {
            assert!(!format!("{snapshot:?}").contains(CANARY), "a secret is shown");
            is_understood(&partition, &snapshot);
        }
    }
}

fn id() -> ClientId {
    ClientId::new("c1").expect("a valid id")
}

fn raw<const N: usize>(values: [(&str, AttributeValue); N]) -> Raw {
    let mut raw: Raw = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    raw.insert(NOTE.to_owned(), text("of another tool"));
    raw
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(number: &str) -> AttributeValue {
    AttributeValue::N(number.to_owned())
}

fn config() -> Raw {
    raw([
        (attr::PROVIDER, text("acme")),
        (attr::GRANT, text("refresh_token")),
        (attr::CLIENT_ID, text("app")),
        (attr::CLIENT_SECRET, text(CANARY)),
        (attr::VS, number("7")),
        (attr::JN, number("1700000000000")),
    ])
}

fn lease() -> Raw {
    raw([(attr::GEN, number("4")), (attr::ST, text("I")), (attr::LEASE_MS, number("90000"))])
}

fn token() -> Raw {
    raw([
        (attr::ACCESS_TOKEN, text(CANARY)),
        (attr::REFRESH_TOKEN, text(CANARY)),
        (attr::EXPIRES_AT, number("1799999990")),
        (attr::REFRESH_AT, number("1799999000000")),
        (attr::TOK_GEN, number("4")),
    ])
}

fn member() -> Raw {
    raw([(attr::BEAT, number("3")), (attr::STATE, text("ACTIVE")), (attr::LAG_MS, number("0"))])
}

fn edit(raw: &mut Raw, bytes: &mut Bytes<'_>) {
    let name = bytes.pick(&NAMES);
    match bytes.byte() % 8 {
        0 => drop(raw.remove(name)),
        _ => drop(raw.insert(name.to_owned(), value(name, bytes, 0))),
    }
}

/// A secret is the canary, as long as it is a string at all: it must not be seen anywhere.
fn value(name: &str, bytes: &mut Bytes<'_>, depth: usize) -> AttributeValue {
    let secret = attr::SECRETS.contains(&name);
    match bytes.byte() % 12 {
        0..=3 => number(bytes.pick(&NUMBERS)),
        4 => number(&bytes.text(40)),
        _ if secret => text(CANARY),
        5 | 6 => text(bytes.pick(&TEXTS)),
        7 => text(&bytes.text(200)),
        8 => AttributeValue::Bool(bytes.byte().is_multiple_of(2)),
        9 if depth < 3 => {
            AttributeValue::L((0..bytes.byte() % 4).map(|_| value(NOTE, bytes, depth + 1)).collect())
        }
        10 if depth < 3 => {
            let mut entry = || (bytes.pick(&NAMES).to_owned(), value(NOTE, bytes, depth + 1));
            AttributeValue::M([entry(), entry()].into())
        }
        _ => foreign(bytes),
    }
}

fn foreign(bytes: &mut Bytes<'_>) -> AttributeValue {
    match bytes.byte() % 5 {
        0 => AttributeValue::Null(true),
        1 => AttributeValue::B(Blob::new(bytes.some(20))),
        2 => AttributeValue::Bs(vec![Blob::new(bytes.some(20))]),
        3 => AttributeValue::Ss(vec![bytes.text(20)]),
        _ => AttributeValue::Ns(vec!["1".to_owned()]),
    }
}

/// What can be written back is read again as the same; what another tool's type stands in is not written back.
fn survives_the_table(key: &Key, item: &Item) {
    let mut values = item.0.values();
    match item_to_table(key, item) {
        Ok(raw) => assert_eq!(&item_from_table(raw), item),
        Err(error) => {
            assert!(values.any(is_foreign), "{error}");
            assert!(!error.to_string().contains(CANARY));
        }
    }
}

fn is_foreign(value: &Value) -> bool {
    match value {
        Value::Other(_) => true,
        Value::L(list) => list.iter().any(is_foreign),
        Value::M(map) => map.values().any(is_foreign),
        _ => false,
    }
}

/// Item and attribute, what is wrong with it, in a short line that contradicts neither itself nor the table.
fn is_well_named(malformed: &Malformed, item: &str) {
    let told = malformed.to_string();
    assert!(malformed.item.starts_with(item), "{told}");
    assert!(NAMES.contains(&malformed.attribute.as_str()), "{told}");
    assert!(!told.contains(CANARY), "a secret is shown");
    assert!(!told.chars().any(char::is_control), "{told:?}");
    assert!(told.len() < 400, "{} bytes about one attribute", told.len());
    let words: Vec<_> = malformed.problem.split_whitespace().collect();
    if let ["has", "type", has, "needs", needs] = words.as_slice() {
        assert_ne!(has.trim_end_matches(','), *needs, "{told}");
    }
}

fn is_seen_or_named(item: &Item) {
    match decode_member("a1", item) {
        Err(malformed) => is_well_named(&malformed, "MEMBER/a1"),
        Ok(member) => {
            let again = decode_member("a1", &encode_member(&member, NOW));
            assert_eq!(again.as_ref(), Ok(&member));
            observes(member);
        }
    }
}

/// Whatever a member says of itself, all observers go on, and every shard has at most one owner.
fn observes(stranger: Member) {
    let secs = Duration::from_secs;
    let mut view = View::new(Rules { beat: secs(10), silence: secs(30), max_lag: secs(30) });
    let own = Member { incarnation: "b2".to_owned(), beat: 1, lag_ms: 0, ..stranger.clone() };
    for round in 0..6_u32 {
        let beat = own.beat + i64::from(round);
        let moment = Moment::from_origin(secs(10) * round);
        view.observe(vec![stranger.clone(), Member { beat, ..own.clone() }], moment, NOW);
    }
    let (one, other) = (view.shards_of("a1", 64), view.shards_of("b2", 64));
    assert!(one.is_disjoint(&other) && one.len() + other.len() <= 64);
}

/// Every decision is made, and none of them breaks a promise.
fn is_understood(partition: &Partition, snapshot: &Snapshot) {
    let (Some(client), Some(lease), Some(token)) = (snapshot.client(), &snapshot.lease, &snapshot.token)
    else {
        assert!(snapshot.client().is_none(), "lease and token are there");
        return;
    };
    let config = encode_config(client, 7);
    let again = Partition { config: Some(config), ..Partition::default() }.decode(&id());
    assert_eq!(again.expect("ours").client(), Some(client));
    condition(client, lease, token, NOW);
    let _ = (lease_end(lease).to_string(), escalates(lease, token.expires_at, NOW));
    is_taken_over_in_time(lease, token);
    operators_may_act(partition, snapshot);
    if let Some(change) = repair_ttl(&client.id, token) {
        keeps_the_rest(&store(partition), &change);
    }
    // At the last number there is no next one.
    let counts_on = lease.generation.max(token.generation) < Gen::MOST;
    if counts_on && matches!(due(client, lease, token), Due::At(_) | Due::InDoubt) {
        is_refreshed_by_one(partition, lease, token);
    }
}

fn store(partition: &Partition) -> MemoryStore {
    let store = MemoryStore::new();
    let items =
        [("CONFIG", &partition.config), ("LEASE", &partition.lease), ("TOKEN#ACCESS", &partition.token)];
    for (sk, item) in items {
        store.put_raw("CLIENT#c1", sk, item.clone().expect("all three are there"));
    }
    store
}

/// Whoever has fallen silent is not waited for any longer than the longest lease that can be configured.
fn is_taken_over_in_time(lease: &Lease, token: &Token) {
    let risk = Risk::of(&provider(), perennial::client::Grant::RefreshToken);
    let silent = Silent {
        lease: Duration::from_millis(lease.lease_ms.max(0).unsigned_abs()),
        first_seen: Moment::default(),
        expires_at: token.expires_at,
    };
    let wait = take_over_in(&silent, &risk, &timing(), false, Moment::default(), NOW);
    assert!(wait <= DAY, "nobody takes over for {wait:?}");
}

fn operators_may_act(partition: &Partition, snapshot: &Snapshot) {
    let client = snapshot.client().expect("it is registered");
    let (id, binding) = (&client.id, client.binding(&provider()));
    let mut changes =
        vec![registry::pause(client, true, NOW), registry::refresh_now(client, snapshot.tok_gen(), NOW)];
    let imported = Imported { refresh_token: Some("new".into()), ..Imported::nothing() };
    let imports = client.grant.needs_refresh_token();
    let imported = if imports { imported } else { Imported::nothing() };
    let imported = registry::outside_write(id, snapshot, &imported, &binding, None, NOW).expect("registered");
    changes.push(imported.clone());
    changes.extend(registry::resolve(id, snapshot, Resolution::Retry, NOW).ok());
    for change in &changes {
        assert!(!format!("{change:?}").contains(CANARY));
        keeps_the_rest(&store(partition), change);
    }
    let removed = registry::remove(id, snapshot, 64, NOW).expect("registered");
    let done = run(store(partition).apply(&removed)).expect("a change of ours is never refused");
    assert_eq!(done, Applied::Committed, "it cannot be removed");
    let store = store(partition);
    assert_eq!(run(store.apply(&imported)), Ok(Applied::Committed), "no operator can give it new tokens");
    assert!(run(store.apply(&imported)).is_ok_and(|again| again != Applied::Committed), "written twice");
}

/// Attributes that a change does not name stay as they are, whoever wrote them.
fn keeps_the_rest(store: &MemoryStore, change: &Change) -> Applied {
    let before = BTreeMap::from_iter(store.items());
    let applied = run(store.apply(change)).expect("a change of ours is never refused");
    let after = BTreeMap::from_iter(store.items());
    for Write { key, action, .. } in &change.0 {
        let place = (key.pk(), key.sk().to_owned());
        let named: Vec<_> = match action {
            Action::Update(assignments) => {
                assignments.iter().map(|assignment| assigned(assignment)).collect()
            }
            _ => continue,
        };
        let rest = |item: &Item| {
            let rest = item.0.iter().filter(|(name, _)| !named.contains(&name.as_str()));
            rest.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(before.get(&place).map(rest), after.get(&place).map(rest), "something else was changed");
    }
    applied
}

fn assigned(assignment: &perennial::item::Assignment) -> &'static str {
    use perennial::item::Assignment::{Add, Remove, Set};
    match assignment {
        Set(name, _) | Add(name, _) | Remove(name) => name,
    }
}

/// Of two who acquire it at once, one does; what that one stores is the newest and is not due again at once.
fn is_refreshed_by_one(partition: &Partition, lease: &Lease, token: &Token) {
    let intent = |owner: &str| Intent { owner: owner.to_owned(), lease: timing().lease(), now: NOW };
    let Some((one, held)) = acquire(&id(), lease, token.generation, &intent("a#1")) else { return };
    let (other, _) = acquire(&id(), lease, token.generation, &intent("b#2")).expect("as much as the one");
    assert!(held.generation > lease.generation, "gen does not grow");
    let store = store(partition);
    assert_eq!(keeps_the_rest(&store, &one), Applied::Committed);
    assert!(keeps_the_rest(&store, &other) != Applied::Committed, "two hold one lease");
    let read = run(store.read(&id())).expect("read").decode(&id()).expect("our own writes are understood");
    assert_eq!(read.lease.as_ref(), Some(&held), "the lease as it stands");
    match after_read(read, &held, &provider(), &Backoff::default(), Moment::default(), NOW, 0.5) {
        Go::Send(attempt) => is_stored_and_at_rest(&store, &attempt),
        Go::Drop(why) => panic!("nobody else has written, and it is dropped: {why}"),
        Go::Release(release) => {
            let change = perennial::plan::lease::release(&id(), held.generation, &release);
            assert_eq!(keeps_the_rest(&store, &change), Applied::Committed);
        }
    }
}

fn is_stored_and_at_rest(store: &MemoryStore, attempt: &Attempt) {
    let tokens = Tokens {
        access_token: "new".into(),
        refresh_token: Some("new".into()),
        token_type: None,
        scope: None,
        lifetime: Lifetime::Missing,
    };
    let bounds = Lifetimes::default();
    let commit_of = Commit {
        generation: attempt.lease.generation,
        tokens,
        expires_at: NOW.plus(bounds.max),
        refresh_at: NOW.plus(bounds.min),
        now: NOW,
        binding: attempt.client.binding(&provider()),
        grant: attempt.client.grant,
        item_exists: true,
    };
    assert_eq!(keeps_the_rest(store, &commit(&id(), &commit_of)), Applied::Committed, "the answer is lost");
    let read = run(store.read(&id())).expect("read").decode(&id()).expect("our own writes are understood");
    let (Some(client), Some(lease), Some(token)) = (read.client(), &read.lease, &read.token) else {
        panic!("an item is gone");
    };
    assert_eq!((token.generation, token.ttl), (lease.generation, None));
    assert_eq!(standing(lease, token.generation), Standing::Free, "success needs no release");
    // Who asks for the replacement of one of the next generations is obeyed then, once.
    let next = |more: i64| Token { generation: Gen(token.generation.0 + more), ..token.clone() };
    let due_at_once = (0..8).filter(|more| wanted_at(client, &next(*more)) <= NOW).count();
    assert!(due_at_once <= 1, "it is due again at once, and would be for ever");
}
