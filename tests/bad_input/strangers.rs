//! A table that others write to as they please: every attribute of every type, items as large as they come, keys that
//! look like ours, members that say anything. What is sound is refreshed all the same, what is not is named and left as
//! it is, and operators' commands neither stop nor print what a terminal would obey.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use perennial::time::{Clock as _, SystemClock};
use serde_json::Value;

use super::items::{World, told};
use crate::support::{log_lines, wait_until};

/// The attributes of each item that anything depends on, but for those that are keys of the index.
const ATTRIBUTES: [(&str, &[&str]); 3] = [
    (
        "CONFIG",
        &[
            "provider",
            "grant",
            "client_id",
            "client_secret",
            "client_secret_ref",
            "second_client_secret",
            "second_client_secret_ref",
            "scopes",
            "audience",
            "resource",
            "params",
            "token_url",
            "paused",
            "rf",
            "gone",
        ],
    ),
    ("LEASE", &["gen", "st", "own", "lease_ms", "int_at", "next_at", "fails", "err", "of", "dbt", "dbt_n"]),
    (
        "TOKEN#ACCESS",
        &[
            "access_token",
            "refresh_token",
            "token_type",
            "scope",
            "expires_at",
            "last_updated",
            "refresh_at",
            "tok_gen",
            "bnd",
            "ttl",
        ],
    ),
];

fn values() -> Vec<(&'static str, AttributeValue)> {
    let (text, number) = (|text: &str| AttributeValue::S(text.into()), |n: &str| AttributeValue::N(n.into()));
    let blob = || Blob::new([0, 159, 146, 150]);
    vec![
        ("S", text("\u{1b}[2J\u{202e}x\nforged\u{200b}")),
        ("N", number("7")),
        ("N", number("1e40")),
        ("N", number("-9223372036854775808")),
        ("N", number("9223372036854775807")),
        ("BOOL", AttributeValue::Bool(true)),
        ("NULL", AttributeValue::Null(true)),
        ("B", AttributeValue::B(blob())),
        ("SS", AttributeValue::Ss(vec!["a".into()])),
        ("NS", AttributeValue::Ns(vec!["1".into()])),
        ("BS", AttributeValue::Bs(vec![blob()])),
        ("L", AttributeValue::L(vec![number("1")])),
        ("M", AttributeValue::M(HashMap::from([("a".to_owned(), number("1"))]))),
    ]
}

/// Attributes that may hold this without a word: what they say then is another thing, and not nonsense.
fn speaks(attribute: &str, kind: &str) -> bool {
    match attribute {
        // Whatever it holds, it marks a tombstone.
        "gone" => true,
        "paused" => kind == "BOOL",
        // A state of a newer version.
        "st" => kind == "S",
        // A number is a number: a time that has not come, a doubt, a count.
        "next_at" | "dbt" | "dbt_n" | "of" | "tok_gen" | "refresh_at" | "expires_at" => kind == "N",
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attribute_of_every_type_is_refreshed_or_named_once_and_harms_no_neighbour() {
    let mut cases = Vec::new();
    for (sk, attributes) in ATTRIBUTES {
        for attribute in attributes {
            for (kind, value) in values() {
                cases.push((format!("c-{}", cases.len()), sk, *attribute, kind, value));
            }
        }
    }
    let ids = cases.iter().map(|(id, ..)| id.clone());
    let world = World::new(ids.chain(["healthy".to_owned()])).await;
    for (id, sk, attribute, _, value) in &cases {
        let mut item = world.raw(id, sk).await.expect("it was registered");
        item.insert((*attribute).to_owned(), value.clone());
        world.put(item).await;
    }
    let log = world.run_once();
    assert!(world.is_refreshed("healthy").await, "a neighbour's items are no reason to neglect a client");
    for (id, sk, attribute, kind, _) in &cases {
        let about = told(&log, id, "ERROR").into_iter().chain(told(&log, id, "WARN"));
        let about: Vec<&Value> = about.collect();
        let (item, name) = (format!("CLIENT#{id}/{sk}:"), format!("`{attribute}`"));
        let named = about.iter().filter(|line| {
            let problem = line["malformed"].as_str().unwrap_or_default();
            problem.starts_with(&item) && problem.contains(&name)
        });
        let named = named.count();
        assert!(named <= 1, "{item} {name} as {kind} is named {named} times");
        let refreshed = world.raw(id, "TOKEN#ACCESS").await.is_some_and(|token| {
            let text = token.get("access_token").and_then(|value| value.as_s().ok());
            text.is_some_and(|text| !text.contains('\u{1b}'))
        });
        let said = named == 1 || refreshed || !about.is_empty() || speaks(attribute, kind);
        assert!(said, "{item} {name} as {kind}: neither refreshed nor named");
    }
    commands_survive(&world, "healthy");
    // These are sound but for a text that people are shown.
    let shown = ["scope", "token_type", "last_updated", "err", "own", "audience"];
    for (id, ..) in cases.iter().filter(|(.., attribute, kind, _)| *kind == "S" && shown.contains(attribute))
    {
        for command in [["clients", "show", id].as_slice(), &["clients", "show", id, "--json"], &["why", id]]
        {
            survives(&world, command);
        }
    }
}

/// Whatever stands in the table, these end by themselves, and print no character that a terminal obeys or hides.
fn commands_survive(world: &World, sound: &str) {
    let commands: [&[&str]; 14] = [
        &["clients", "list"],
        &["clients", "list", "--json"],
        &["clients", "list", "--sort", "expiry"],
        &["clients", "show", sound],
        &["clients", "show", sound, "--json"],
        &["why", sound],
        &["status"],
        &["status", "--json"],
        &["fleet"],
        &["fleet", "--json"],
        &["top", "--once"],
        &["top", "--once", "--json"],
        &["table", "check"],
        &["get", sound],
    ];
    for command in commands {
        survives(world, command);
    }
}

fn survives(world: &World, command: &[&str]) {
    let output = world.deployment.run(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // `status` says by its code how the fleet fares.
    let codes = if command[0] == "status" { 0..=2 } else { 0..=0 };
    assert!(output.status.code().is_some_and(|code| codes.contains(&code)), "{command:?}: {out}{err}");
    assert!(!err.contains("panicked"), "{command:?}: {err}");
    for text in [&out, &err] {
        let bad = text.chars().find(|char| *char != '\n' && !perennial::shown::is_plain(*char));
        assert_eq!(bad, None, "{command:?} prints it as it is");
        assert!(!text.lines().any(|line| line.starts_with("forged")), "{command:?}: {text}");
    }
    world.canaries.assert_absent("what a command prints", &err);
}

/// Keys that people, and careless programs, take for ours.
const LOOKALIKES: [(&str, &str); 23] = [
    ("client#crm", "CONFIG"),
    ("Client#crm", "CONFIG"),
    (" CLIENT#crm", "CONFIG"),
    ("CLIENT#crm ", "CONFIG"),
    ("CLIENT##crm", "CONFIG"),
    ("CLIENT#crm#b", "CONFIG"),
    ("CLIENT#crm\0", "CONFIG"),
    ("CLIENT#crm\nforged line", "CONFIG"),
    ("CLIENT#\u{1b}[2Jcrm", "CONFIG"),
    ("CLIENT#\u{202e}mrc", "CONFIG"),
    ("CLIENT#cr\u{200b}m", "CONFIG"),
    ("CLIENT#\u{441}rm", "CONFIG"),
    ("CLIENT#ｃrm", "CONFIG"),
    ("CLIENT#cre\u{301}", "CONFIG"),
    ("CLIENT＃crm", "CONFIG"),
    ("CLIENT#crm", "config"),
    ("CLIENT#crm", "CONFIG "),
    ("CLIENT#crm", "CONFIG#1"),
    ("CLIENT#crm", "TOKEN#ACCESS#2"),
    ("CLIENT#crm", "LEASE\0"),
    ("META", "CONFIG"),
    ("META", "schema"),
    ("MEMBERS", "a1"),
];

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_look_like_ours_get_nothing_and_take_nothing() {
    // Two that differ in their capitals alone are two, and so are two of which one has the other's key in its name.
    let ours = ["crm", "CRM", "crm:LEASE", "a-b"];
    let world = World::new(ours.map(str::to_owned)).await;
    let config = world.raw("crm", "CONFIG").await.expect("it was registered");
    let mut before = Vec::new();
    for (pk, sk) in LOOKALIKES {
        let mut stranger = config.clone();
        stranger.insert("PK".to_owned(), AttributeValue::S(pk.to_owned()));
        stranger.insert("SK".to_owned(), AttributeValue::S(sk.to_owned()));
        world.put(stranger.clone()).await;
        before.push(stranger);
    }
    // In shards that there are not.
    for (id, shard) in [("lost", "99999"), ("below", "-1"), ("half", "0.5")] {
        let mut stranger = config.clone();
        stranger.extend(World::key(id, "CONFIG"));
        stranger.insert("vs".to_owned(), AttributeValue::N(shard.to_owned()));
        world.put(stranger).await;
    }
    let log = world.run_once();
    for id in ours {
        assert!(world.is_refreshed(id).await, "{id}");
    }
    for ((pk, sk), before) in LOOKALIKES.into_iter().zip(before) {
        let item = format!("{pk}/{sk}");
        let skips = |line: &&Value| line["item"] == item.as_str() && line["level"] == "WARN";
        assert_eq!(log.iter().filter(skips).count(), 1, "{item:?} is named once");
        assert!(world.raw_at(pk, sk).await == Some(before), "{item:?} was written");
        let own = match pk {
            "CLIENT#crm" => 3,
            "META" => 1,
            _ => 0,
        };
        let others = LOOKALIKES.iter().filter(|(other, _)| *other == pk).count();
        assert_eq!(world.count(pk).await, own + others, "{item:?}: something was written beside it");
    }
    let listed = world.deployment.run(&["clients", "list"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 1 + ours.len(), "one row each");
    commands_survive(&world, "crm");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_say_anything_neither_take_shards_nor_stop_a_command() {
    let world = World::with("[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n", ["healthy".to_owned()]).await;
    let (text, number) =
        (|text: &str| AttributeValue::S(text.into()), |n: i64| AttributeValue::N(n.to_string()));
    let now = SystemClock.now().as_millis();
    let names = ["a\nforged member", "\u{1b}[2J", "\u{202e}", &"x".repeat(1000), "m4", "m5", "m6"];
    for (at, name) in names.iter().enumerate() {
        let absurd = if at % 2 == 0 { i64::MAX } else { i64::MIN };
        let mut item = HashMap::from([
            ("PK".to_owned(), text("MEMBER")),
            ("SK".to_owned(), text(name)),
            ("beat".to_owned(), number(absurd)),
            ("state".to_owned(), text("ACTIVE")),
            ("version".to_owned(), text("1\nforged\u{9b}2J")),
            ("at".to_owned(), number(if at < 3 { now } else { absurd })),
        ]);
        for count in ["lag_ms", "skew_ms", "clients", "refreshed", "failed", "conflicts", "takeovers"] {
            item.insert(count.to_owned(), number(absurd));
        }
        if at == 4 {
            item.insert("state".to_owned(), text(&"RESTING\n".repeat(40_000)));
        }
        world.put(item).await;
    }
    let daemon = world.deployment.daemon().await;
    wait_until(Duration::from_secs(60), "its shards come to the one that beats", async || {
        world.is_refreshed("healthy").await
    })
    .await;
    commands_survive(&world, "healthy");
    let beats = || log_lines(&daemon.errors());
    let skipped = |lines: &[Value]| {
        lines
            .iter()
            .filter(|line| line["malformed"].as_str().is_some_and(|text| text.contains("/m4")))
            .count()
    };
    wait_until(Duration::from_secs(30), "the stranger among them is named", async || skipped(&beats()) > 0)
        .await;
    let beat = world.beat().await;
    wait_until(Duration::from_secs(30), "more beats", async || world.beat().await > beat + 3).await;
    assert_eq!(skipped(&beats()), 1, "with every beat it would fill the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn items_as_large_as_they_come_stop_nobody_else_and_lose_no_answer() {
    const LARGEST: usize = 400 * 1024;
    let spoilt = ["config", "lease", "token"];
    let world = World::new(spoilt.into_iter().chain(["healthy"]).map(str::to_owned)).await;
    for (id, sk) in spoilt.into_iter().zip(["CONFIG", "LEASE", "TOKEN#ACCESS"]) {
        let mut item = world.raw(id, sk).await.expect("it was registered");
        let used: usize = item.iter().map(|(name, value)| name.len() + size(value)).sum();
        let filler = "x".repeat(LARGEST - used - "note".len() - 8);
        item.insert("note".to_owned(), AttributeValue::S(filler));
        world.put(item).await;
    }
    let daemon = world.deployment.daemon().await;
    for id in ["healthy", "config"] {
        wait_until(Duration::from_secs(60), id, async || world.is_refreshed(id).await).await;
    }
    let log = || log_lines(&daemon.errors());
    wait_until(Duration::from_secs(60), "the answer that does not fit is told of", async || {
        told(&log(), "token", "ERROR").iter().any(|line| line["alarm"] == "uncommitted_tokens")
    })
    .await;
    wait_until(Duration::from_secs(60), "so is the lease", async || {
        let lines = log();
        let about =
            lines.iter().filter(|line| line["client"] == "lease" || line["span"]["client"] == "lease");
        about.into_iter().any(|line| ["WARN", "ERROR"].contains(&line["level"].as_str().unwrap_or_default()))
    })
    .await;
    commands_survive(&world, "healthy");
    // Whoever made it too large makes room again, and the answer lands that the daemon has kept.
    for (id, sk) in [("token", "TOKEN#ACCESS"), ("lease", "LEASE")] {
        world.remove_attribute(id, sk, "note").await;
        wait_until(Duration::from_secs(120), id, async || world.is_refreshed(id).await).await;
    }
}

fn size(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) => text.len(),
        AttributeValue::N(digits) => digits.len() + 2,
        _ => 8,
    }
}

impl World {
    async fn count(&self, pk: &str) -> usize {
        let request = self.local.client().query().table_name(self.deployment.table_name());
        let request = request.key_condition_expression("PK = :pk");
        let request = request.expression_attribute_values(":pk", AttributeValue::S(pk.to_owned()));
        request.consistent_read(true).send().await.expect("a query").items().len()
    }

    async fn remove_attribute(&self, id: &str, sk: &str, name: &str) {
        let request = self.local.client().update_item().table_name(self.deployment.table_name());
        let request = request.set_key(Some(Self::key(id, sk))).update_expression("REMOVE #name");
        request.expression_attribute_names("#name", name).send().await.expect("a write");
    }

    /// The highest beat of a member whose name is one of ours: hexadecimal digits.
    async fn beat(&self) -> i64 {
        let request = self.local.client().query().table_name(self.deployment.table_name());
        let request = request.key_condition_expression("PK = :pk");
        let request = request.expression_attribute_values(":pk", AttributeValue::S("MEMBER".to_owned()));
        let members = request.consistent_read(true).send().await.expect("a query");
        let own = |item: &&HashMap<String, AttributeValue>| {
            let name = item["SK"].as_s().expect("a string");
            name.len() >= 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let beat = |item: &HashMap<String, AttributeValue>| item["beat"].as_n().ok()?.parse().ok();
        members.items().iter().filter(own).filter_map(beat).max().unwrap_or(0)
    }
}
