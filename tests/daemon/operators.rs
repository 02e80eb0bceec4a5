//! What operators do beside a running daemon reaches it within its discovery interval.

use perennial::record::{Gen, State};
use perennial::store::DynamoStore;

use super::super::{SECRET, SOON, is_live, provider, register, tok_gen};
use crate::support::{Canaries, Deployment, DynamoLocal, log_lines, snapshot, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_added_beside_the_daemon_gets_its_token() {
    let (provider, settings) = provider(&[]).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    let daemon = deployment.daemon_with(&[("PERENNIAL__LOG__FILTER", "trace")]).await;
    wait_until(SOON, "the daemon is warm", async || daemon.errors().contains("all clients are known")).await;

    let grant = provider.seed("app").await;
    let secret = deployment.secret_file("secret", SECRET);
    let token = deployment.secret_file("token", &grant.refresh_token);
    let added = deployment.ok(&[
        "clients",
        "add",
        "acme",
        "--provider",
        "strict",
        "--grant",
        "refresh_token",
        "--client-id",
        "app",
        "--client-secret-file",
        &secret.to_string_lossy(),
        "--refresh-token-file",
        &token.to_string_lossy(),
    ]);
    let store = deployment.store().await;
    wait_until(SOON, "it has its first token", async || tok_gen(&store, "acme").await == Gen(1)).await;
    let token = deployment.ok(&["get", "acme", "--min-ttl", "60s"]);
    assert!(provider.is_active(token.trim()).await, "`get` prints a working token");

    let mut canaries = Canaries::default();
    canaries.add_basic("app", SECRET);
    let why = deployment.ok(&["why", "acme"]);
    for (what, text) in [("add", &added), ("why", &why), ("the daemon's log", &daemon.errors())] {
        canaries.assert_absent(what, text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_now_is_obeyed_once() {
    let (provider, settings) = provider(&[]).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    register(&deployment, &provider, &["acme", "other"]).await;
    let _daemon = deployment.daemon().await;
    let store = deployment.store().await;
    reaches(&store, "acme", 1).await;
    deployment.ok(&["clients", "refresh", "acme"]);
    deployment.ok(&["clients", "refresh", "acme"]);
    reaches(&store, "acme", 2).await;
    // Whoever has seen this later request has seen the two before it.
    deployment.ok(&["clients", "refresh", "other"]);
    reaches(&store, "other", 2).await;
    let stats = provider.stats().await;
    assert_eq!((stats.granted, stats.double_redemptions), (4, 0), "asked for twice is refreshed once");
    assert!(is_live(&store, &provider, "acme").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_client_rests_until_it_is_resumed() {
    let (provider, settings) = provider(&["--lifetime-secs", "3"]).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    register(&deployment, &provider, &["resting", "other"]).await;
    let _daemon = deployment.daemon().await;
    let store = deployment.store().await;
    reaches(&store, "resting", 1).await;
    deployment.ok(&["clients", "pause", "resting"]);
    // A refresh may have been under way.
    reaches(&store, "other", tok_gen(&store, "other").await.0 + 1).await;
    let paused = tok_gen(&store, "resting").await;
    reaches(&store, "other", tok_gen(&store, "other").await.0 + 3).await;
    assert_eq!(tok_gen(&store, "resting").await, paused, "refreshed all the same");
    deployment.ok(&["clients", "resume", "resting"]);
    reaches(&store, "resting", paused.0 + 1).await;
    assert!(is_live(&store, &provider, "resting").await);
}

async fn reaches(store: &DynamoStore, id: &str, generation: i64) {
    let what = format!("{id} has generation {generation}");
    wait_until(SOON, &what, async || tok_gen(store, id).await >= Gen(generation)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_removed_is_let_go_and_comes_back_above_its_past() {
    let (provider, settings) = provider(&["--lifetime-secs", "3"]).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    register(&deployment, &provider, &["leaving", "staying"]).await;
    let daemon = deployment.daemon().await;
    let store = deployment.store().await;
    wait_until(SOON, "both are refreshed", async || {
        tok_gen(&store, "leaving").await > Gen(0) && tok_gen(&store, "staying").await > Gen(0)
    })
    .await;
    deployment.ok(&["clients", "remove", "leaving", "--yes"]);
    let removed = snapshot(&store, "leaving").await;
    let tombstone = removed.lease.expect("a tombstone");
    assert_eq!((&tombstone.state, removed.token.is_none()), (&State::Removed, true));

    let rounds = tok_gen(&store, "staying").await.0 + 3;
    wait_until(SOON, "life goes on", async || tok_gen(&store, "staying").await >= Gen(rounds)).await;
    let after = snapshot(&store, "leaving").await;
    assert_eq!((after.lease, after.token), (Some(tombstone.clone()), None), "something came back");
    wait_until(SOON, "the daemon says so", async || {
        let news = |line: &serde_json::Value| line["message"] == "new, changed or removed clients";
        log_lines(&daemon.errors()).iter().any(news)
    })
    .await;

    register(&deployment, &provider, &["leaving"]).await;
    wait_until(SOON, "it is refreshed again", async || {
        snapshot(&store, "leaving").await.token.is_some_and(|token| token.access_token.is_some())
    })
    .await;
    assert!(tok_gen(&store, "leaving").await > tombstone.generation, "generations never restart");
    assert!(is_live(&store, &provider, "staying").await);
    assert_eq!(provider.stats().await.double_redemptions, 0);
}
