//! The parts that other tests lean on do what is claimed of them.
//!
//! A provider that forgave a double redemption, or a fault that left no trace, would make every test above it
//! worthless without a sign. So the referees are tested first.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use serde_json::{Value, json};
use support::{
    Auth, DynamoLocal, OidcServer, Process, ReaderToken, Reply, StrictProvider, free_port, node_reader,
    wait_until,
};

/// A client whose secret needs the form encoding.
const APP: Auth<'static> = Auth::Basic("app", "s+/=&:%");
const CLIENT_CREDENTIALS: &[(&str, &str)] = &[("grant_type", "client_credentials")];

async fn provider() -> StrictProvider {
    let provider = StrictProvider::start(&["--lifetime-secs", "30"]).await;
    provider.register(APP).await;
    provider
}

#[tokio::test]
async fn the_strict_provider_rotates() {
    let provider = provider().await;
    let seeded = provider.seed("app").await;
    let reply = provider.refresh(APP, &seeded.refresh_token).await.unwrap();

    assert_eq!((reply.status, reply.header("cache-control")), (200, "no-store"));
    assert_eq!(reply.json()["expires_in"], 30);
    assert_eq!(reply.text("token_type"), "Bearer");
    assert_eq!(reply.text("scope"), "read write");
    let rotated = reply.text("refresh_token");
    assert_ne!(rotated, seeded.refresh_token);
    assert!(provider.is_live(&rotated).await && !provider.is_live(&seeded.refresh_token).await);
    assert!(provider.is_active(&reply.text("access_token")).await);
    assert_eq!(provider.stats().await.double_redemptions, 0);
}

#[tokio::test]
async fn the_strict_provider_revokes_the_family_when_a_refresh_token_is_used_twice() {
    let provider = provider().await;
    let (victim, bystander) = (provider.seed("app").await, provider.seed("app").await);
    let winner = provider.refresh(APP, &victim.refresh_token).await.unwrap();
    let reuse = provider.refresh(APP, &victim.refresh_token).await.unwrap();

    assert_eq!((reuse.status, reuse.text("error").as_str()), (400, "invalid_grant"));
    assert!(!provider.is_live(&winner.text("refresh_token")).await);
    assert!(!provider.is_active(&winner.text("access_token")).await);
    assert_eq!(provider.refresh(APP, &winner.text("refresh_token")).await.unwrap().status, 400);
    assert!(provider.is_live(&bystander.refresh_token).await);
    let stats = provider.stats().await;
    assert_eq!((stats.double_redemptions, stats.families, stats.families_revoked), (1, 2, 1));
    assert_eq!((stats.by_client["app"].granted, stats.by_client["app"].refused), (1, 2));
}

#[tokio::test]
async fn of_concurrent_redemptions_one_wins() {
    let provider = provider().await;
    let seeded = provider.seed("app").await;
    let attempts = (0..8).map(|_| provider.refresh(APP, &seeded.refresh_token));
    let replies = futures_util::future::join_all(attempts).await;

    let granted = replies.iter().filter(|reply| reply.as_ref().unwrap().status == 200).count();
    assert_eq!(granted, 1);
    assert_eq!(provider.stats().await.double_redemptions, 7);
}

#[tokio::test]
async fn a_provider_without_rotation_keeps_the_refresh_token() {
    let provider = StrictProvider::start(&["--rotate", "false"]).await;
    provider.register(APP).await;
    let seeded = provider.seed("app").await;
    for _ in 0..2 {
        let reply = provider.refresh(APP, &seeded.refresh_token).await.unwrap();
        assert_eq!((reply.status, &reply.json()["refresh_token"]), (200, &Value::Null));
    }
    assert!(provider.is_live(&seeded.refresh_token).await);
}

#[tokio::test]
async fn client_credentials_work_with_each_way_of_authentication() {
    let provider = provider().await;
    let post = Auth::Post("poster", "s3cr3t");
    provider.register(post).await;
    for auth in [APP, post] {
        let reply = provider.token(auth, CLIENT_CREDENTIALS).await.unwrap();
        assert_eq!((reply.status, &reply.json()["refresh_token"]), (200, &Value::Null), "{auth:?}");
        assert!(provider.is_active(&reply.text("access_token")).await);
    }
    let scoped =
        [("grant_type", "client_credentials"), ("scope", "read"), ("resource", "urn:a"), ("audience", "b")];
    assert_eq!(provider.token(post, &scoped).await.unwrap().text("scope"), "read");
}

#[tokio::test]
async fn refusals_follow_the_rfc() {
    let provider = provider().await;
    let refused = async |auth, params: &[(&str, &str)]| {
        let reply = provider.token(auth, params).await.unwrap();
        (reply.status, reply.text("error"), reply.header("www-authenticate").to_owned())
    };
    let wrong = Auth::Basic("app", "wrong");
    let (status, error, challenge) = refused(wrong, CLIENT_CREDENTIALS).await;
    assert_eq!((status, error.as_str()), (401, "invalid_client"));
    assert!(challenge.starts_with("Basic"));
    // The client is registered for Basic: the method is pinned.
    assert_eq!(refused(Auth::Post("app", "s+/=&:%"), CLIENT_CREDENTIALS).await.0, 401);
    assert_eq!(refused(APP, &[("grant_type", "password")]).await.1, "unsupported_grant_type");
    assert_eq!(refused(APP, &[("scope", "a")]).await.1, "invalid_request");
    let dotted = [("grant_type", "client_credentials"), ("scope", "a\"b")];
    assert_eq!(refused(APP, &dotted).await.1, "invalid_scope");
    let unknown = [("grant_type", "refresh_token"), ("refresh_token", "never-issued")];
    assert_eq!(refused(APP, &unknown).await.1, "invalid_grant");
}

#[tokio::test]
async fn a_public_client_refreshes_without_a_secret() {
    let provider = provider().await;
    let public = Auth::Public("installed");
    provider.register(public).await;
    let seeded = provider.seed("installed").await;
    assert_eq!(provider.refresh(APP, &seeded.refresh_token).await.unwrap().text("error"), "invalid_grant");
    assert_eq!(provider.refresh(public, &seeded.refresh_token).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_lost_reply_has_rotated_all_the_same() {
    let provider = provider().await;
    let seeded = provider.seed("app").await;
    provider.fault(json!({ "kind": "lose_reply", "times": 1 })).await;
    let lost = provider.refresh(APP, &seeded.refresh_token).await.unwrap_err();

    assert!(lost.is_request() && !lost.is_timeout() && !lost.is_connect(), "{lost:?}");
    assert!(!provider.is_live(&seeded.refresh_token).await);
    let stats = provider.stats().await;
    assert_eq!((stats.granted, stats.double_redemptions, stats.faults_met), (1, 0, 1));
    assert_eq!(provider.refresh(APP, &seeded.refresh_token).await.unwrap().status, 400);
    assert_eq!(provider.stats().await.double_redemptions, 1);
}

#[tokio::test]
async fn a_reset_before_has_not_rotated() {
    let provider = provider().await;
    let seeded = provider.seed("app").await;
    provider.fault(json!({ "kind": "reset_before", "times": 1 })).await;
    assert!(provider.refresh(APP, &seeded.refresh_token).await.unwrap_err().is_request());
    assert!(provider.is_live(&seeded.refresh_token).await);
    assert_eq!(provider.refresh(APP, &seeded.refresh_token).await.unwrap().status, 200);
}

#[tokio::test]
async fn an_error_status_may_hide_a_rotation() {
    let provider = provider().await;
    let seeded = provider.seed("app").await;
    provider.fault(json!({ "kind": "status", "code": 500, "times": 1 })).await;
    assert_eq!(provider.refresh(APP, &seeded.refresh_token).await.unwrap().status, 500);
    assert!(provider.is_live(&seeded.refresh_token).await);
    provider.fault(json!({ "kind": "status", "code": 500, "times": 1, "process": true })).await;
    assert_eq!(provider.refresh(APP, &seeded.refresh_token).await.unwrap().status, 500);
    assert!(!provider.is_live(&seeded.refresh_token).await);
}

/// Orders a fault for one request and makes that request.
async fn under(provider: &StrictProvider, mut fault: Value) -> reqwest::Result<Reply> {
    let seeded = provider.seed("app").await;
    fault["times"] = json!(1);
    provider.fault(fault).await;
    provider.refresh(APP, &seeded.refresh_token).await
}

#[tokio::test]
async fn faulty_answers_are_seen_as_ordered() {
    let provider = provider().await;
    let throttled = json!({
        "kind": "status", "code": 429, "body": "{\"error\":\"slow_down\"}", "headers": { "retry-after": "7" },
    });
    let reply = under(&provider, throttled).await.unwrap();
    assert_eq!(
        (reply.status, reply.header("retry-after"), reply.text("error").as_str()),
        (429, "7", "slow_down")
    );

    let reply = under(&provider, json!({ "kind": "html", "code": 403 })).await.unwrap();
    assert_eq!(reply.status, 403);
    assert!(reply.header("content-type").starts_with("text/html") && reply.body.starts_with("<!doctype"));

    let reply = under(&provider, json!({ "kind": "empty200" })).await.unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));

    let reply = under(&provider, json!({ "kind": "error200", "error": "token_expired" })).await.unwrap();
    assert_eq!((reply.status, reply.json()), (200, json!({ "ok": false, "error": "token_expired" })));

    let reply = under(&provider, json!({ "kind": "huge", "bytes": 3_000_000 })).await.unwrap();
    assert!(reply.status == 200 && reply.text("access_token").len() == 3_000_000);

    let elsewhere = "http://127.0.0.1:1/elsewhere";
    let reply = under(&provider, json!({ "kind": "redirect", "location": elsewhere })).await.unwrap();
    assert_eq!((reply.status, reply.header("location")), (302, elsewhere));

    let cut = under(&provider, json!({ "kind": "truncated" })).await.unwrap_err();
    assert!(cut.is_body() || cut.is_decode(), "{cut:?}");
}

#[tokio::test]
async fn slow_answers_come_late_and_whole() {
    let provider = provider().await;
    let seeded = provider.seed("app").await;
    provider.fault(json!({ "kind": "slow", "ms": 20_000, "times": 1 })).await;
    // The work is done before the wait: a client that gives up has spent its refresh token.
    tokio::select! {
        reply = provider.refresh(APP, &seeded.refresh_token) => panic!("too early: {reply:?}"),
        () = wait_until(Duration::from_secs(10), "the token is spent", async || {
            !provider.is_live(&seeded.refresh_token).await
        }) => {}
    }

    let started = tokio::time::Instant::now();
    let late = under(&provider, json!({ "kind": "slow", "ms": 200 })).await.unwrap();
    assert!(late.status == 200 && started.elapsed() >= Duration::from_millis(200));
    let dripping = under(&provider, json!({ "kind": "slow", "drip_ms": 1 })).await.unwrap();
    assert_eq!((dripping.status, dripping.json()["expires_in"].clone()), (200, json!(30)));
}

#[tokio::test]
async fn answers_can_be_reshaped() {
    let provider = provider().await;
    for odd in [json!("3600"), json!(59.5), json!(null), json!(-1), json!(1e20), json!(0)] {
        let reply = under(&provider, json!({ "kind": "expires_in", "value": odd })).await.unwrap();
        assert_eq!(reply.json().get("expires_in"), Some(&odd));
    }
    let has = |reply: Reply, field: &str| reply.status == 200 && reply.json().get(field).is_some();
    assert!(!has(under(&provider, json!({ "kind": "expires_in" })).await.unwrap(), "expires_in"));
    assert!(!has(under(&provider, json!({ "kind": "omit_refresh_token" })).await.unwrap(), "refresh_token"));
    assert!(!has(under(&provider, json!({ "kind": "omit_scope" })).await.unwrap(), "scope"));
    let reply = under(&provider, json!({ "kind": "token_type", "value": "mac" })).await.unwrap();
    assert_eq!(reply.text("token_type"), "mac");
}

#[tokio::test]
async fn a_fault_can_be_for_one_client_and_can_be_cleared() {
    let provider = provider().await;
    let other = Auth::Post("other", "s3cr3t");
    provider.register(other).await;
    provider.fault(json!({ "kind": "html", "client_id": "other" })).await;
    for _ in 0..2 {
        assert_eq!(provider.token(APP, CLIENT_CREDENTIALS).await.unwrap().status, 200);
        assert_eq!(provider.token(other, CLIENT_CREDENTIALS).await.unwrap().status, 503);
    }
    provider.clear_faults().await;
    assert_eq!(provider.token(other, CLIENT_CREDENTIALS).await.unwrap().status, 200);
}

#[tokio::test]
async fn the_event_log_tells_the_outcome_and_no_token() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let provider = StrictProvider::start(&["--event-log", log.path().to_str().unwrap()]).await;
    provider.register(APP).await;
    let seeded = provider.seed("app").await;
    provider.refresh(APP, &seeded.refresh_token).await.unwrap();
    provider.refresh(APP, &seeded.refresh_token).await.unwrap();

    let text = std::fs::read_to_string(log.path()).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["outcome"], "granted");
    assert_eq!(
        (&events[1]["outcome"], &events[1]["double_redemption"]),
        (&json!("invalid_grant"), &json!(true))
    );
    assert!(!text.contains(&seeded.refresh_token));
}

#[tokio::test]
async fn the_strict_provider_stops_on_sigterm() {
    let mut provider = StrictProvider::start(&[]).await;
    provider.process().signal("TERM");
    wait_until(Duration::from_secs(5), "the provider stops", async || {
        support::http_client().get(provider.url()).send().await.is_err()
    })
    .await;
    wait_until(Duration::from_secs(5), "the provider has ended", async || provider.process_mut().has_ended())
        .await;
}

#[tokio::test]
async fn the_certified_provider_rotates_and_reports_reuse() {
    let server = OidcServer::start().await;
    for (id, auth) in
        [("basic", OidcServer::BASIC), ("post", OidcServer::POST), ("public", OidcServer::PUBLIC)]
    {
        let seeded = server.seed(id).await;
        assert!(server.is_live(&seeded.refresh_token).await);
        let reply = server.refresh(auth, &seeded.refresh_token).await.unwrap();
        assert_eq!(reply.status, 200, "{id}: {}", reply.body);
        assert!(server.is_active(&reply.text("access_token")).await);
        assert!(
            server.is_live(&reply.text("refresh_token")).await
                && !server.is_live(&seeded.refresh_token).await
        );
    }
    assert_eq!(server.token(OidcServer::BASIC, CLIENT_CREDENTIALS).await.unwrap().status, 200);
    assert_eq!(server.stats().await.reuses, 0);

    let seeded = server.seed("basic").await;
    let winner = server.refresh(OidcServer::BASIC, &seeded.refresh_token).await.unwrap();
    let reuse = server.refresh(OidcServer::BASIC, &seeded.refresh_token).await.unwrap();
    assert_eq!((reuse.status, reuse.text("error").as_str()), (400, "invalid_grant"));
    assert!(!server.is_live(&winner.text("refresh_token")).await);
    assert!(!server.is_active(&winner.text("access_token")).await);
    let stats = server.stats().await;
    assert_eq!((stats.reuses, stats.grants_revoked), (1, 1));
    assert!(server.events().await.iter().any(|event| event["reuse"] == true));
}

#[tokio::test]
async fn dynamodb_local_answers_and_a_node_reader_reads_what_it_holds() {
    let dynamo = DynamoLocal::shared().await;
    let (client, table) = (dynamo.client(), DynamoLocal::fresh_table_name());
    create_table(&client, &table).await;
    assert_eq!(node_reader(dynamo.endpoint(), &table, "acme").await, None);

    let item =
        [("PK", "CLIENT#acme"), ("SK", "TOKEN#ACCESS"), ("access_token", "secret"), ("refresh_token", "r")];
    let mut put =
        client.put_item().table_name(&table).item("expires_at", AttributeValue::N("1900000000".to_owned()));
    for (name, value) in item {
        put = put.item(name, AttributeValue::S(value.to_owned()));
    }
    put.clone().send().await.unwrap();
    let expected = ReaderToken { access_token: "secret".to_owned(), expires_at: 1_900_000_000 };
    assert_eq!(node_reader(dynamo.endpoint(), &table, "acme").await, Some(expected));
    let refused = put.condition_expression("attribute_not_exists(PK)").send().await.unwrap_err();
    assert!(refused.into_service_error().is_conditional_check_failed_exception());
}

async fn create_table(client: &aws_sdk_dynamodb::Client, table: &str) {
    let mut creation = client.create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
    for (name, kind) in [("PK", KeyType::Hash), ("SK", KeyType::Range)] {
        let attribute = AttributeDefinition::builder()
            .attribute_name(name)
            .attribute_type(ScalarAttributeType::S)
            .build();
        let key = KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
        creation = creation.attribute_definitions(attribute.expect("it has its name and type"));
        creation = creation.key_schema(key.expect("it has its name and type"));
    }
    creation.send().await.expect("DynamoDB Local makes a table");
}

#[tokio::test]
async fn a_child_dies_with_its_fixture() {
    let process = Process::start("sleep", ["600"], |_| {}).await;
    let pid = process.pid().to_owned();
    assert!(runs(&pid));
    drop(process);
    assert!(!runs(&pid));
}

#[tokio::test]
#[should_panic(expected = "no such thing")]
async fn a_program_that_ends_early_is_reported_with_its_words() {
    let mut process = Process::start("sh", ["-c", "echo no such thing >&2"], |_| {}).await;
    process.ready(Duration::from_secs(5)).await;
}

#[tokio::test]
#[should_panic(expected = "the impossible")]
async fn waiting_is_bounded_and_names_what_it_waited_for() {
    wait_until(Duration::from_millis(60), "the impossible", async || false).await;
}

#[test]
fn free_ports_differ() {
    assert_ne!(free_port(), free_port());
}

fn runs(pid: &str) -> bool {
    let probe = Command::new("kill").args(["-0", pid]).stderr(Stdio::null()).status();
    probe.expect("tests need `kill`").success()
}
