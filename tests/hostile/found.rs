//! What fuzzing and hostile reading have found, each named after what broke.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use perennial::client::{ClientId, Grant, Provider};
use perennial::config::{Config, Sources};
use perennial::entry::item_from_table;
use perennial::item::{Item, Value, attr};
use perennial::plan::Timing;
use perennial::plan::in_doubt::{Risk, Silent, take_over_in};
use perennial::plan::lease::{Intent, acquire};
use perennial::plan::registry::{Imported, outside_write};
use perennial::plan::schedule::wanted_at;
use perennial::record::{Gen, Malformed, Partition, Snapshot};
use perennial::seal::{Label, LocalKeys};
use perennial::store::{Applied, MemoryStore, Store as _};
use perennial::time::{Moment, Timestamp};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn id() -> ClientId {
    ClientId::new("c1").expect("a valid id")
}

fn provider() -> Provider {
    Provider::new("acme", "https://acme.test/token".parse().expect("a URL"))
}

/// A sound client whose three items are then changed.
fn partition(change: impl Fn(&str, Item) -> Item) -> Partition {
    let text = |text: &str| Value::S(text.to_owned());
    let config = Item::default()
        .with(attr::PROVIDER, text("acme"))
        .with(attr::GRANT, text("refresh_token"))
        .with(attr::CLIENT_ID, text("app"))
        .with(attr::JN, Value::N(1));
    let lease = Item::default().with(attr::GEN, Value::N(4)).with(attr::ST, text("I"));
    let token = Item::default()
        .with(attr::REFRESH_TOKEN, Value::Secret("r".into()))
        .with(attr::EXPIRES_AT, Value::N(NOW.plus(Duration::from_secs(3600)).as_secs()))
        .with(attr::TOK_GEN, Value::N(4));
    Partition {
        config: Some(change("CONFIG", config)),
        lease: Some(change("LEASE", lease)),
        token: Some(change("TOKEN#ACCESS", token)),
    }
}

fn with(sk: &'static str, name: &'static str, value: Value) -> Partition {
    partition(|at, item| if at == sk { item.with(name, value.clone()) } else { item })
}

fn understood(partition: &Partition) -> Snapshot {
    partition.decode(&id()).expect("it is understood")
}

fn named(partition: &Partition) -> Malformed {
    partition.decode(&id()).expect_err("it is no sound item")
}

#[test]
fn a_generation_at_the_end_of_64_bits_did_not_grow_any_more_and_two_held_one_lease() {
    for (sk, name) in [("LEASE", attr::GEN), ("TOKEN#ACCESS", attr::TOK_GEN)] {
        for number in [i64::MAX, Gen::MOST.0 + 1, -2, i64::MIN] {
            let malformed = named(&with(sk, name, Value::N(number)));
            assert_eq!(malformed.attribute, name, "{malformed}");
        }
    }
    assert_eq!(
        named(&with("LEASE", attr::GEN, Value::N(-1))).attribute,
        attr::GEN,
        "only tokens may have none"
    );
    understood(&with("TOKEN#ACCESS", attr::TOK_GEN, Value::N(-1)));
}

#[test]
fn a_refresh_now_beyond_all_generations_was_asked_for_after_every_refresh() {
    let rests = |asked: i64| {
        let snapshot = understood(&with("CONFIG", attr::RF, Value::N(asked)));
        let token = snapshot.token.clone().expect("a token item");
        wanted_at(snapshot.client().expect("registered"), &token) > NOW
    };
    assert!(rests(i64::MAX) && rests(5) && rests(3));
    assert!(!rests(4), "the one that stands there");
}

#[test]
fn a_lease_of_a_million_years_was_waited_for() {
    let secs = Duration::from_secs;
    let timing = Timing::try_new(secs(90), secs(5), secs(20), secs(15), secs(60)).expect("the defaults");
    let wait = |lease| {
        let silent = Silent { lease, first_seen: Moment::default(), expires_at: NOW };
        let risk = Risk::of(&provider(), Grant::RefreshToken);
        take_over_in(&silent, &risk, &timing, true, Moment::default(), NOW)
    };
    assert_eq!(wait(Duration::MAX), wait(secs(900)), "the longest that can be configured");
    assert!(wait(secs(900)) > wait(secs(899)));
}

#[tokio::test]
async fn tokens_that_were_numbered_beyond_their_lease_could_be_replaced_by_nobody() {
    let partition = with("TOKEN#ACCESS", attr::TOK_GEN, Value::N(1_000_000));
    let store = MemoryStore::new();
    for (sk, item) in
        [("CONFIG", &partition.config), ("LEASE", &partition.lease), ("TOKEN#ACCESS", &partition.token)]
    {
        store.put_raw("CLIENT#c1", sk, item.clone().expect("it is there"));
    }
    let read = understood(&partition);
    let (client, lease) = (read.client().expect("registered"), read.lease.as_ref().expect("a lease"));
    let intent = Intent { owner: "a#1".into(), lease: Duration::from_secs(90), now: NOW };
    let (_, held) = acquire(&id(), lease, read.tok_gen(), &intent).expect("it is free");
    assert_eq!(held.generation, Gen(1_000_001), "an answer could not be stored under any below");
    let imported = Imported { refresh_token: Some("new".into()), ..Imported::nothing() };
    let change = outside_write(&id(), &read, &imported, &client.binding(&provider()), None, NOW);
    let applied = store.apply(&change.expect("it is registered")).await;
    assert_eq!(applied, Ok(Applied::Committed), "nor could an operator import");
}

#[test]
fn a_number_beyond_64_bits_had_type_n_and_needed_type_n() {
    let raw = [(attr::GEN.to_owned(), AttributeValue::N("1e40".into()))].into();
    let lease = Some(item_from_table(raw));
    let malformed = named(&Partition { lease, ..partition(|_, item| item) });
    assert_eq!(malformed.to_string(), "CLIENT#c1/LEASE: attribute `gen` is a number beyond 64 bits");
}

#[test]
fn a_value_of_400_kilobytes_was_quoted_whole() {
    let grant = Value::S("\u{1b}[2J".repeat(100_000));
    let told = named(&with("CONFIG", attr::GRANT, grant)).to_string();
    assert!(told.len() < 400 && !told.chars().any(char::is_control), "{told}");
}

#[test]
fn the_name_of_a_key_reached_the_terminal_as_it_stood_in_a_header() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let header = r#"{"alg":"A256KW","enc":"A256GCM","kid":"\u001b[2J\u202e","tbl":"t","cid":"c","att":"a","ver":1,"iat":0}"#;
    // A name without an escape is borrowed from the header as it stands.
    let header = header.replace(r"\u001b", "\u{9b}").replace(r"\u202e", "\u{202e}");
    let sealed = format!("{}.AAAA.AAAA.AAAA.AAAA", URL_SAFE_NO_PAD.encode(header));
    let label = Label { table: "t", client: "c", attribute: "a", version: 1 };
    let keys = LocalKeys::parse(&"00".repeat(32)).expect("a key");
    let told = keys.open(&sealed, &label).err().expect("an unknown key").to_string();
    assert!(told.contains("\\u{9b}[2J\\u{202e}") && told.chars().all(perennial::shown::is_plain), "{told}");
}

#[test]
fn the_name_of_a_variable_broke_the_line_of_its_error() {
    for name in
        ["PERENNIAL__STORE__X\nY", "PERENNIAL__PROVIDERS__ACME__HEADERS__\u{7f}\nX", "PERENNIAL_\u{1b}[2J"]
    {
        let environment = [(name.to_owned(), "x".into())].into();
        let errors = Config::load(Sources { path: None, environment }).expect_err("no key takes it");
        for error in &errors.0 {
            let told = error.to_string();
            assert!(!told.chars().any(char::is_control), "{told:?}");
        }
    }
}
