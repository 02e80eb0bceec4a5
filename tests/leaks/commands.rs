//! Every command that there is, with and without `--json`: but for `get`, whose purpose it is, none shows a token.

use std::collections::BTreeSet;

use super::world::{ASSERTION, FILTERS, Mood, QUERY, SECRET, SOON, World};
use crate::support::{commands, wait_until};

/// How a command is run, and what it says by its exit code where the table serves: the first time, and the second, with `--json`.
struct Run {
    name: &'static str,
    arguments: &'static [&'static str],
    codes: [i32; 2],
    /// Whether it fails, with 1, where the table refuses.
    asks: bool,
}

const fn run(name: &'static str, arguments: &'static [&'static str]) -> Run {
    Run { name, arguments, codes: [0, 0], asks: true }
}

impl Run {
    /// Says the same whatever the table does.
    const fn alone(self) -> Self {
        Self { asks: false, ..self }
    }

    const fn says(self, first: i32, second: i32) -> Self {
        Self { codes: [first, second], ..self }
    }
}

/// All of them, in an order in which each finds something to do. `TABLE` stands for the table's name.
const RUNS: &[Run] = &[
    run("completions", &["bash"]).alone(),
    run("man", &[]).alone(),
    run("config check", &[]).alone(),
    run("config show", &[]).alone(),
    run("table create", &[]),
    run("table check", &[]),
    run("keys init", &[]),
    run("keys list", &[]),
    run("seal migrate", &[]),
    // Most clients cannot be refreshed, and no task is running.
    run("run", &["--once", "--max-wait", "1s"]).says(1, 1),
    run("get", &["good"]),
    run("agent key", &["reader"]).alone(),
    // Only AWS Lambda starts it.
    run("lambda-extension", &[]).alone().says(2, 2),
    run("status", &[]).alone().says(2, 2),
    run("fleet", &[]),
    run("top", &["--once"]),
    run("why", &["grant"]),
    run("healthcheck", &["--timeout", "100ms"]).alone().says(1, 1),
    run("clients list", &[]),
    run("clients show", &["huge"]),
    run("clients pause", &["good"]),
    run("clients resume", &["good"]),
    run("clients refresh", &["good"]),
    run("clients resolve", &["lost", "--retry"]),
    run("clients apply", &["clients.toml", "--replace", "good", "--dry-run"]),
    run(
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
    run("clients import-token", &["posted", "--refresh-token-env", "APP_SECRET", "--replace"]),
    run("clients secret add", &["posted", "--client-secret-env", "APP_SECRET"]),
    run("clients secret promote", &["posted", "--keep"]),
    run("clients secret drop", &["posted"]),
    run("clients secret check", &[]),
    run("iam print", &["operator", "--account", "123456789012", "--region", "eu-central-1"]).alone(),
    run("spill list", &[]).alone(),
    run("spill replay", &[]),
    run("keys rotate", &[]),
    // All is under the older keys.
    run("seal status", &[]).says(1, 1),
    run("keys retire", &["TABLE/rt/s0/v1"]),
    run("keys export", &[]),
    run("seal migrate", &[]),
    run("seal status", &[]),
    run("clients remove", &["posted", "--yes"]),
];

#[test]
fn every_command_is_listed_here() {
    let (there, here): (BTreeSet<_>, BTreeSet<_>) = (
        commands().into_iter().map(|(name, _)| name).collect(),
        RUNS.iter().map(|run| run.name.to_owned()).collect(),
    );
    assert_eq!(there, here, "say in RUNS how the new command is run");
}

/// All of them, in their order; `serves` where the table does.
fn run_all(world: &World, serves: bool, more: &[(&str, &str)]) {
    let json: BTreeSet<_> = commands().into_iter().filter_map(|(name, json)| json.then_some(name)).collect();
    let mut wrong = Vec::new();
    for Run { name, arguments, codes, asks } in RUNS {
        let retired = arguments.iter().map(|word| word.replace("TABLE", world.deployment.table_name()));
        let retired: Vec<_> = retired.collect();
        let words: Vec<&str> = name.split(' ').chain(retired.iter().map(String::as_str)).collect();
        let again = [words.as_slice(), &["--json"]].concat();
        let tries = [Some(&words), json.contains(*name).then_some(&again)];
        for (words, code) in tries.into_iter().zip(codes).filter_map(|(words, code)| Some((words?, *code))) {
            let output = world.run_with(words, more);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(!errors.contains("Usage:"), "{words:?} is no command any more: {errors}");
            let told = output.status.code();
            let fits = if serves || !asks { told == Some(code) } else { told == Some(1) };
            if !fits {
                let last: Vec<_> = errors.lines().rev().take(3).collect();
                wrong.push(format!("{words:?} ends with {told:?}: {last:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "where the table serves: {serves}:\n{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_shows_a_secret_whatever_the_table_does() {
    let mut world = World::new().await;
    let key = world.moto.key().await;
    let endpoint = world.moto.endpoint().to_owned();
    let variables = [
        ("PERENNIAL__LOG__FILTER", FILTERS[0]),
        ("PERENNIAL__SEALING__MODE", "kms"),
        ("PERENNIAL__SEALING__KMS_KEY", key.as_str()),
        ("PERENNIAL__SEALING__KMS_ENDPOINT", endpoint.as_str()),
        ("PERENNIAL__SEALING__SHARDS", "1"),
        ("PERENNIAL__SEALING__FRESH", "10s"),
        ("PERENNIAL__SEALING__STALE", "0s"),
    ];
    world.run_with(&["run", "--once", "--json"], &variables[..1]);
    world.plant_stored(false).await;
    run_all(&world, true, &variables);
    let old = format!("{}/rt/s0/v1", world.deployment.table_name());
    wait_until(SOON, "no daemon seals with the retired key any more, and it is destroyed", async || {
        world.run_with(&["keys", "retire", &old, "--destroy", "--yes"], &variables).status.success()
    })
    .await;
    let keys = world.run_with(&["keys", "list", "--json"], &variables);
    let keys = String::from_utf8_lossy(&keys.stdout).into_owned();
    assert!(keys.contains("/rt/s0/v2") && !keys.contains(&old), "a real key was there, and went: {keys}");
    for mood in [Mood::Denies, Mood::Expires] {
        world.be(mood);
        run_all(&world, false, &variables);
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
