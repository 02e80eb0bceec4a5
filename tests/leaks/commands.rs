//! Every command that there is, with and without `--json`: but for `get`, whose purpose it is, none shows a token.

use std::collections::BTreeSet;

use super::world::{ASSERTION, FILTERS, Mood, QUERY, SECRET, World};
use crate::support::commands;

/// How each command is run, in an order in which each finds something to do.
const RUNS: &[(&str, &[&str])] = &[
    ("completions", &["bash"]),
    ("man", &[]),
    ("config check", &[]),
    ("config show", &[]),
    ("table create", &[]),
    ("table check", &[]),
    ("run", &["--once", "--max-wait", "1s"]),
    ("get", &["good"]),
    ("agent key", &["reader"]),
    ("lambda-extension", &[]),
    ("status", &[]),
    ("fleet", &[]),
    ("top", &["--once"]),
    ("why", &["grant"]),
    ("healthcheck", &["--timeout", "100ms"]),
    ("clients list", &[]),
    ("clients show", &["huge"]),
    ("clients pause", &["good"]),
    ("clients resume", &["good"]),
    ("clients refresh", &["good"]),
    ("clients resolve", &["lost", "--retry"]),
    ("clients apply", &["clients.toml", "--replace", "good", "--dry-run"]),
    (
        "clients add",
        &[
            "added",
            "--provider",
            "strict",
            "--grant",
            "client_credentials",
            "--client-id",
            "good",
            "--client-secret-env",
            "APP_SECRET",
            "--token-url",
            "https://acme.test/token?api_key=query-canary-4",
        ],
    ),
    ("clients import-token", &["posted", "--refresh-token-env", "APP_SECRET", "--replace"]),
    ("clients secret add", &["posted", "--client-secret-env", "APP_SECRET"]),
    ("clients secret promote", &["posted", "--keep"]),
    ("clients secret drop", &["posted"]),
    ("clients secret check", &[]),
    ("iam print", &["operator", "--account", "123456789012", "--region", "eu-central-1"]),
    ("spill list", &[]),
    ("spill replay", &[]),
    ("seal status", &[]),
    ("seal migrate", &[]),
    ("keys init", &[]),
    ("keys list", &[]),
    ("keys rotate", &[]),
    ("keys retire", &["v1/client-credentials/rt/0/1"]),
    ("keys export", &[]),
    ("clients remove", &["posted", "--yes"]),
];

#[test]
fn every_command_is_listed_here() {
    let (there, here): (BTreeSet<_>, BTreeSet<_>) = (
        commands().into_iter().map(|(name, _)| name).collect(),
        RUNS.iter().map(|(name, _)| (*name).to_owned()).collect(),
    );
    assert_eq!(there, here, "say in RUNS how the new command is run");
}

/// All of them, in their order.
fn run_all(world: &World, more: &[(&str, &str)]) {
    let json: BTreeSet<_> = commands().into_iter().filter_map(|(name, json)| json.then_some(name)).collect();
    for (name, arguments) in RUNS {
        let words: Vec<&str> = name.split(' ').chain(arguments.iter().copied()).collect();
        let output = world.run_with(&words, more);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.contains("Usage:"), "{words:?} is no command any more: {errors}");
        if json.contains(*name) {
            world.run_with(&[words.as_slice(), &["--json"]].concat(), more);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_shows_a_secret_whatever_the_table_does() {
    let mut world = World::new().await;
    let level = [("PERENNIAL__LOG__FILTER", FILTERS[0])];
    world.run_with(&["run", "--once", "--json"], &level);
    world.plant_stored(false).await;
    run_all(&world, &level);
    for mood in [Mood::Denies, Mood::Expires] {
        world.be(mood);
        run_all(&world, &level);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_wrongly_is_not_repeated() {
    let world = World::new().await;
    let add =
        ["clients", "add", "x", "--provider", "strict", "--grant", "refresh_token", "--client-id", "app"];
    for wrong in [
        &["--client-secret", SECRET][..],
        &["--client-secret-env", SECRET],
        &["--client-secret-ref", SECRET],
        &["--second-client-secret-ref", SECRET, "--client-secret-env", "APP_SECRET"],
        &["--refresh-token-env", ASSERTION, "--client-secret-env", "APP_SECRET"],
        &["--token-url", "http://u:query-canary-4@acme.test/"],
        &["--token-url", "ftp://acme.test/?api_key=query-canary-4"],
    ] {
        let output = world.run(&[&add, wrong].concat());
        assert!(!output.status.success(), "{wrong:?}");
    }
    assert!(QUERY.contains("canary-4"), "as it is spelt above");
}
