//! A daemon whose configuration changes under it: what is live holds at once, what is broken changes nothing, and what
//! needs a restart is named.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use super::super::{SECRET, SOON, is_live, provider, register, tok_gen};
use crate::support::{Deployment, DynamoLocal, NewClient, Process, log_lines, wait_until};

/// Tokens of two seconds' life: a refresh every second.
const BUSY: [&str; 2] = ["--lifetime-secs", "2"];

fn text(deployment: &Deployment) -> String {
    fs::read_to_string(deployment.path().join("config/perennial.toml")).expect("a configuration")
}

fn lines(daemon: &Process, message: &str) -> Vec<Value> {
    log_lines(&daemon.errors()).into_iter().filter(|line| line["message"] == message).collect()
}

async fn says(daemon: &Process, message: &str, times: usize) -> Value {
    wait_until(SOON, message, async || lines(daemon, message).len() >= times).await;
    lines(daemon, message).swap_remove(times - 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_and_a_filter_come_while_it_runs_and_what_is_broken_or_unsafe_does_not() {
    let (provider, settings) = provider(&BUSY).await;
    let late = format!("[providers.late]\ntoken_url = \"{}\"\n", provider.token_url());
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    let without = text(&deployment);
    let with = format!("{late}{without}");
    deployment.configure(&with);
    register(&deployment, &provider, &["acme"]).await;
    let refresh_token = Some(provider.seed("app").await.refresh_token);
    let (id, client_secret) = ("latecomer".to_owned(), Some(SECRET));
    deployment.apply(&[NewClient { id, provider: "late", client_id: "app", client_secret, refresh_token }]);
    deployment.configure(&without);
    let store = deployment.store().await;
    let mut daemon = deployment.daemon().await;
    says(&daemon, "skipped: its provider is not in this task's configuration", 1).await;
    assert_eq!(tok_gen(&store, "latecomer").await.0, 0);
    assert!(log_lines(&daemon.errors()).iter().all(|line| line["level"] != "DEBUG"));

    // By the change of its file alone.
    deployment.configure(&format!("{with}[log]\nfilter = \"info,perennial=debug\"\n"));
    let reloaded = says(&daemon, "reloaded", 1).await;
    assert_eq!(reloaded["changed"], "[\"log.filter\", \"providers.late\"]");
    wait_until(SOON, "its refresh", async || tok_gen(&store, "latecomer").await.0 >= 2).await;
    wait_until(SOON, "a line at debug", async || {
        log_lines(&daemon.errors()).iter().any(|line| line["level"] == "DEBUG")
    })
    .await;

    // Broken: nothing of it is taken, and it is said as `config check` says it.
    deployment.configure(&format!("{with}[refresh]\nconcurrency = 0\n[log]\nfilter = \"error\"\n"));
    daemon.signal("HUP");
    let refused = says(&daemon, "the new configuration is refused: the old one stays", 1).await;
    assert_eq!((&refused["alarm"], &refused["level"]), (&"reload".into(), &"ERROR".into()));
    // So is a file of authorities that is not there: seen before anything is sent to its provider.
    deployment.configure(&with.replacen("token_url", "ca_file = \"nowhere.pem\"\ntoken_url", 1));
    daemon.signal("HUP");
    let refused = says(&daemon, "the new configuration is refused: the old one stays", 2).await;
    assert!(refused["errors"].as_str().is_some_and(|text| text.contains("nowhere.pem")), "{refused}");
    let before = tok_gen(&store, "acme").await;
    wait_until(SOON, "it goes on", async || tok_gen(&store, "acme").await > before).await;

    // A key that waits for a restart is named; the others of the same file hold.
    deployment.configure(&format!("{with}[shutdown]\ntimeout = \"20s\"\n[metrics]\nnamespace = \"Other\"\n"));
    daemon.signal("HUP");
    let reloaded = says(&daemon, "reloaded", 2).await;
    assert_eq!(reloaded["changed"], "[\"log.filter\", \"shutdown.timeout\"]");
    let waiting = says(&daemon, "changed, and waits for a restart", 1).await;
    assert_eq!(waiting["key"], "metrics.namespace");
    assert!(waiting["why"].as_str().is_some_and(|why| !why.is_empty()));

    // The provider is taken away: its client rests, the other goes on.
    deployment.configure(&without);
    daemon.signal("HUP");
    says(&daemon, "skipped: its provider is not in this task's configuration", 2).await;
    let (rests, before) = (tok_gen(&store, "latecomer").await, tok_gen(&store, "acme").await.0);
    wait_until(SOON, "the other goes on", async || tok_gen(&store, "acme").await.0 >= before + 3).await;
    assert_eq!(tok_gen(&store, "latecomer").await, rests);
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
    for id in ["acme", "latecomer"] {
        assert!(is_live(&store, &provider, id).await, "{id}");
    }
    assert_eq!(provider.stats().await.double_redemptions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_a_hangup_ends_nothing_and_says_so() {
    let deployment = Deployment::embedded("");
    fs::remove_dir_all(deployment.path().join("config")).expect("the folder is ours");
    let mut daemon = deployment.daemon_with(&[("PERENNIAL__HEALTH__ENABLED", "false")]).await;
    wait_until(SOON, "it runs", async || daemon.errors().contains("warm")).await;
    daemon.signal("HUP");
    wait_until(SOON, "it says so", async || daemon.errors().contains("there is no configuration file")).await;
    assert!(!daemon.has_ended());
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
}

/// A terminal that goes away sends SIGHUP: what is in flight may hold the only copy of a grant.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_is_not_ended_by_a_hangup() {
    let (provider, settings) = provider(&["--latency-ms", "1500"]).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    register(&deployment, &provider, &["acme", "beta"]).await;
    let child = deployment.command(&["run", "--once"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let child = child.expect("the binary is built");
    wait_until(SOON, "they are in flight", async || provider.stats().await.token_requests == 2).await;
    let sent = std::process::Command::new("kill").args(["-HUP", &child.id().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()));
    let output = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .expect("no panic")
        .expect("it ends");
    let told = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success() && told.ends_with("refreshed=2 failed=0 skipped=0\n"),
        "{:?}: {told}",
        output.status
    );
    let store = deployment.store().await;
    for id in ["acme", "beta"] {
        assert!(is_live(&store, &provider, id).await, "{id}");
    }
}
