//! Making and checking tables.

use std::sync::Arc;

use aws_sdk_dynamodb::types::TimeToLiveSpecification;
use perennial::item::{Action, Assignment, Change, Condition, Key, Value, attr};
use perennial::store::{Connection, Store, StoreError, TableError, TableSpec, Verdict, table};
use perennial::time::SystemClock;

use super::worlds::{DynamoWorld, SPEC};

async fn make_twice(world: &DynamoWorld) {
    let store = world.dynamo();
    for _ in 0..2 {
        let findings = table::create(store, &SPEC).await.expect("made, then found as needed");
        assert_eq!(findings.len(), 9, "{findings:#?}");
        assert!(findings.iter().all(|finding| finding.verdict != Verdict::Differs), "{findings:#?}");
    }
    assert_eq!(table::preflight(store, 16).await.map(|schema| schema.shards), Ok(16));
    let other = table::preflight(store, 256).await.expect_err("another number of shards").to_string();
    assert!(other.contains("set `shards` to 16"), "{other}");
    let other = table::create(store, &TableSpec { shards: 256, ..SPEC }).await.expect_err("differs");
    assert!(matches!(other, TableError::Differs { differences, .. } if differences.len() == 1));
}

#[tokio::test]
async fn a_table_is_made_once_in_dynamodb_local() {
    let world = DynamoWorld::local_without_table().await;
    let missing = table::preflight(world.dynamo(), 16).await.expect_err("no table").to_string();
    assert!(
        missing.contains(world.dynamo().table()) && missing.contains("perennial table create"),
        "{missing}"
    );
    make_twice(&world).await;
}

#[cfg(feature = "embedded")]
#[tokio::test]
async fn a_table_is_made_once_in_an_embedded_store() {
    make_twice(&DynamoWorld::embedded().await).await;
}

#[tokio::test]
async fn a_table_that_was_left_half_made_is_finished_and_a_newer_one_refused() {
    let world = DynamoWorld::local_without_table().await;
    let store = world.dynamo();
    table::create(store, &SPEC).await.expect("made");
    let gone = Change::one(Key::Schema, Condition::Exists, Action::Delete);
    store.apply(&gone).await.expect("deleted");
    let unfinished = table::preflight(store, 16).await.expect_err("no META").to_string();
    assert!(
        unfinished.contains("META/SCHEMA") && unfinished.contains("perennial table create"),
        "{unfinished}"
    );
    table::create(store, &SPEC).await.expect("finished");
    let newer = Action::Update(vec![Assignment::Set(attr::MIN_READER, Value::N(table::SCHEMA_VERSION + 1))]);
    store.apply(&Change::one(Key::Schema, Condition::Exists, newer)).await.expect("written");
    let newer = table::preflight(store, 16).await.expect_err("too new").to_string();
    assert!(newer.contains("upgrade"), "{newer}");
}

/// Switches TTL off on one attribute, or on.
async fn ttl(world: &DynamoWorld, attribute: &str, enabled: bool) {
    let ttl = TimeToLiveSpecification::builder().enabled(enabled).attribute_name(attribute).build();
    let request = world.dynamo().client().update_time_to_live().table_name(world.dynamo().table());
    request.time_to_live_specification(ttl.expect("complete")).send().await.expect("TTL is changed");
}

#[tokio::test]
async fn ttl_on_another_attribute_is_refused_before_the_start_and_no_ttl_is_not() {
    let world = DynamoWorld::local_without_table().await;
    let store = world.dynamo();
    table::create(store, &SPEC).await.expect("made");
    ttl(&world, "ttl", false).await;
    table::preflight(store, 16).await.expect("without TTL nothing is lost");
    ttl(&world, "expires_at", true).await;
    let wrong = table::preflight(store, 16).await.expect_err("live tokens would go").to_string();
    assert!(wrong.contains("on `ttl` alone") && wrong.contains("found on `expires_at`"), "{wrong}");
    table::schema_of(store, 16).await.expect("META is as needed");
}

#[tokio::test]
async fn errors_of_the_endpoint_are_sorted_by_what_they_mean() {
    let id = perennial::client::ClientId::new("c").expect("a valid id");
    let world = DynamoWorld::local_without_table().await;
    let missing = world.dynamo().read(&id).await.expect_err("no table");
    assert!(
        matches!(&missing, StoreError::Refused(text) if text.contains(world.dynamo().table())),
        "{missing}"
    );

    // A port that nobody listens on.
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let endpoint = Some(format!("http://{free}").parse().expect("a url"));
    let connection = Connection { table: "clients".into(), region: None, endpoint };
    let store = connection.connect(Arc::new(SystemClock)).await.expect("connects lazily");
    let refused = store.read(&id).await.expect_err("nobody there");
    assert!(
        matches!(&refused, StoreError::Unavailable(text) if text.contains(&free.to_string()) && text.contains("endpoint")),
        "{refused}"
    );
    assert_eq!(store.vitals().answered_at(), None);
}
