//! A daemon on its worst day, at its finest log level: every provider's fault, a table that throttles and refuses, items
//! that others have spoilt, a configuration that breaks under it.

use std::fs;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;

use super::configuration::broken;
use super::requests::ask_everything;
use super::world::{
    ASSERTION, CACHE_ANSWERS, CASES, FILTERS, HEADER, Mood, REFERRED, SECRET, SOON, TOO_LARGE, World,
};
use crate::support::{DynamoLocal, Process, fetch, health_url, log_lines, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_where_everything_is_logged() {
    worst_day(FILTERS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_where_libraries_are_asked_for_everything_by_their_names() {
    worst_day(FILTERS[1]).await;
}

async fn worst_day(filter: &str) {
    let mut world = World::of(CASES.iter().chain([&TOO_LARGE])).await;
    let more = [
        ("PERENNIAL__LOG__FILTER", filter),
        ("PERENNIAL__HEALTH__ENABLED", "true"),
        ("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0"),
    ];
    let mut daemon = world.deployment.daemon_with(&world.with(&more)).await;
    let url = health_url(&daemon).await;
    for case in CASES.iter().chain([&TOO_LARGE]) {
        wait_until(SOON, case.id, async || world.attempts(case.id).await > 0).await;
    }
    wait_until(SOON, "the good ones are stored", async || is_stored(&world)).await;
    says(&daemon, CACHE_ANSWERS).await;
    wait_until(SOON, "the large answer is in the spill", async || spilled(&world).len() == 1).await;
    let mut told = ask_everything(&url);
    told.push_str(&spill_files(&world));
    spoil(&world).await;
    bad_days_of_the_table(&world, &daemon).await;
    world.deployment.configure(&broken());
    daemon.signal("HUP");
    says(&daemon, "the new configuration is refused").await;
    let metrics = fetch(&format!("{url}/metrics")).await.expect("the daemon answers").body;
    assert!(metrics.contains("perennial_"), "{metrics}");
    told.push_str(&metrics);
    daemon.signal("TERM");
    let output = daemon.last_lines(SOON).await.join("\n");
    assert!(output.contains("_aws"), "no metrics on standard output");

    world.plant_stored(true).await;
    let log = daemon.errors();
    for (id, ..) in REFERRED {
        assert!(log.contains(id), "nothing is told of {id}");
    }
    assert!(log.contains("\"level\":\"TRACE\"") || log.contains("\"level\":\"DEBUG\""), "{log}");
    for (what, text) in [("the log", &log), ("the output", &output), ("a response, or the spill", &told)] {
        world.canaries.assert_absent(what, text);
    }
}

fn is_stored(world: &World) -> bool {
    let ids = ["good", "posted"].into_iter().chain(REFERRED.map(|(id, ..)| id));
    ids.into_iter().all(|id| world.run(&["get", id]).status.success())
}

fn spilled(world: &World) -> Vec<Value> {
    log_lines(&String::from_utf8_lossy(&world.run(&["spill", "list", "--json"]).stdout))
}

/// What stands on the disk, names included.
fn spill_files(world: &World) -> String {
    let folders = fs::read_dir(world.deployment.path().join("spill")).expect("there is a spill");
    let files =
        folders.flat_map(|folder| fs::read_dir(folder.expect("an entry").path()).expect("a client's folder"));
    let files: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    let told =
        files.iter().map(|file| format!("{file:?} {}", fs::read_to_string(file).expect("a JWE is text")));
    let told: String = told.collect();
    assert!(told.contains(" eyJ"), "nothing is sealed: {told}");
    told
}

async fn says(daemon: &Process, text: &str) {
    wait_until(SOON, text, async || daemon.errors().contains(text)).await;
}

/// Each time somebody has to be refreshed: by whoever reaches the table by another way.
async fn bad_days_of_the_table(world: &World, daemon: &Process) {
    for (mood, named) in [
        (Mood::Throttles, "ProvisionedThroughputExceeded"),
        (Mood::Denies, "AccessDenied"),
        (Mood::Expires, "ExpiredToken"),
    ] {
        world.be(mood);
        says(daemon, named).await;
    }
    world.be(Mood::Serves);
    let before = world.attempts("good").await;
    world.deployment.ok(&["clients", "refresh", "good"]);
    wait_until(SOON, "it goes on", async || world.attempts("good").await > before).await;
}

/// Other tools put secrets where they are not understood.
async fn spoil(world: &World) {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let list = AttributeValue::L(vec![text(SECRET), text(HEADER)]);
    let map = AttributeValue::M([(SECRET.to_owned(), text(ASSERTION))].into());
    for (id, sk, name, value) in [
        ("page", "CONFIG", "client_secret", AttributeValue::B(Blob::new(SECRET))),
        ("page-200", "CONFIG", "client_secret", list.clone()),
        ("scalar", "CONFIG", "params", text(ASSERTION)),
        ("vendor", "CONFIG", "token_url", text(&format!("no url {SECRET}"))),
        ("coded", "CONFIG", "grant", text(SECRET)),
        ("throttled", "TOKEN#ACCESS", "refresh_token", map),
        ("redirected", "TOKEN#ACCESS", "access_token", list),
        ("reset", "TOKEN#ACCESS", "expires_at", text(SECRET)),
    ] {
        let update = DynamoLocal::shared().await.client().update_item();
        let update = update.table_name(world.deployment.table_name());
        let update = update.key("PK", text(&format!("CLIENT#{id}"))).key("SK", text(sk));
        let update = update.update_expression("SET #name = :value").expression_attribute_names("#name", name);
        update.expression_attribute_values(":value", value).send().await.expect("written");
    }
    for id in ["page", "scalar", "vendor", "coded", "reset"] {
        world.run(&["why", id]);
        world.run(&["clients", "show", id]);
    }
}
