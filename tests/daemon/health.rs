//! `/healthz` speaks of the process, `/readyz` of its table, and neither of a provider.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::super::{SOON, is_live, provider, register};
use crate::support::{
    Deployment, DynamoLocal, Process, Proxy, fetch, free_port, health_url, log_lines, wait_until,
};

const SERVED: [(&str, &str); 2] =
    [("PERENNIAL__HEALTH__ENABLED", "true"), ("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0")];

/// Status and body.
async fn ask(url: &str, path: &str) -> (u16, String) {
    let reply = fetch(&format!("{url}{path}")).await.expect("the daemon answers");
    (reply.status, reply.body)
}

async fn becomes(url: &str, path: &str, status: u16) {
    wait_until(SOON, &format!("{path} is {status}"), async || ask(url, path).await.0 == status).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_table_and_liveness_does_not() {
    let (provider, settings) = provider(&[]).await;
    let local = DynamoLocal::shared().await;
    let deployment = Deployment::on_dynamo(local, &settings);
    register(&deployment, &provider, &["acme"]).await;
    let proxy = Proxy::before(local.endpoint()).await;
    let through = [SERVED[0], SERVED[1], ("PERENNIAL__STORE__ENDPOINT", proxy.url())];
    let mut daemon = deployment.daemon_with(&through).await;
    let url = health_url(&daemon).await;
    becomes(&url, "/readyz", 200).await;
    assert_eq!(ask(&url, "/healthz").await.0, 200);

    proxy.cut();
    becomes(&url, "/readyz", 503).await;
    for complaint in ["the heartbeat cannot be written", "the table has not answered lately"] {
        let told = async || ask(&url, "/readyz").await.1.contains(complaint);
        wait_until(SOON, complaint, told).await;
    }
    assert_eq!(ask(&url, "/healthz").await, (200, "ok\n".to_owned()), "a restart would cure nothing");
    assert!(!daemon.has_ended());

    proxy.mend();
    becomes(&url, "/readyz", 200).await;
    println!("resident memory of the daemon: {}", resident(&daemon));
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
    assert!(is_live(&deployment.store().await, &provider, "acme").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_starts_during_an_outage_of_the_table_is_alive_and_waits() {
    let (provider, settings) = provider(&[]).await;
    let local = DynamoLocal::shared().await;
    let deployment = Deployment::on_dynamo(local, &settings);
    register(&deployment, &provider, &["acme"]).await;
    let proxy = Proxy::before(local.endpoint()).await;
    proxy.cut();
    let through = [SERVED[0], SERVED[1], ("PERENNIAL__STORE__ENDPOINT", proxy.url())];
    let mut daemon = deployment.daemon_with(&through).await;
    let url = health_url(&daemon).await;
    assert_eq!(ask(&url, "/healthz").await.0, 200);
    assert_eq!(ask(&url, "/readyz").await.0, 503);

    proxy.mend();
    becomes(&url, "/readyz", 200).await;
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
}

/// As the kernel counts it.
fn resident(daemon: &Process) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap_or("unknown here").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_down_makes_nobody_unready() {
    let (provider, settings) = provider(&[]).await;
    let nobody = format!("http://127.0.0.1:{}/token", free_port());
    let deployment = Deployment::embedded(&settings.replace(&provider.token_url(), &nobody));
    register(&deployment, &provider, &["acme"]).await;
    let daemon = deployment.daemon_with(&SERVED).await;
    let url = health_url(&daemon).await;
    wait_until(SOON, "a refresh has failed", async || {
        log_lines(&daemon.errors()).iter().any(|line| line["code"] == "connect")
    })
    .await;
    becomes(&url, "/readyz", 200).await;
    assert_eq!(ask(&url, "/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_not_ready_and_still_healthy() {
    let (provider, settings) = provider(&["--latency-ms", "3000"]).await;
    let deployment = Deployment::embedded(&settings);
    register(&deployment, &provider, &["acme"]).await;
    let mut daemon = deployment.daemon_with(&SERVED).await;
    let url = health_url(&daemon).await;
    wait_until(SOON, "a refresh is in flight", async || provider.stats().await.token_requests == 1).await;
    daemon.signal("TERM");
    wait_until(Duration::from_secs(2), "it drains", async || daemon.errors().contains("draining")).await;
    let (status, why) = ask(&url, "/readyz").await;
    assert!(status == 503 && why.contains("shutting down"), "{status} {why}");
    assert_eq!(ask(&url, "/healthz").await.0, 200, "it must not be killed while it holds an answer");
    assert_eq!(daemon.exit_code(SOON).await, 0);
    assert!(is_live(&deployment.store().await, &provider, "acme").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_named_with_its_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let deployment = Deployment::embedded("");
    let variables =
        [("PERENNIAL__HEALTH__ENABLED", "true"), ("PERENNIAL__HEALTH__ADDRESS", address.as_str())];
    let output = deployment.run_with(&["run"], &variables);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&address) && errors.contains("health.address"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refresh_is_one_span_with_its_outcome() {
    let (provider, settings) = provider(&[]).await;
    let deployment = Deployment::embedded(&settings);
    register(&deployment, &provider, &["acme", "broken"]).await;
    provider.fault(serde_json::json!({ "kind": "html", "code": 403, "times": 1 })).await;
    let output = deployment.run(&["run", "--once"]);
    let log = log_lines(&String::from_utf8_lossy(&output.stderr));
    let spans: Vec<_> =
        log.iter().map(|line| &line["span"]).filter(|span| span["name"] == "refresh").collect();
    let with =
        |outcome: &str| -> Vec<&&Value> { spans.iter().filter(|span| span["outcome"] == outcome).collect() };
    for outcome in ["refreshed", "failed"] {
        let [span] = with(outcome)[..] else { panic!("one line for each refresh: {log:#?}") };
        assert!(span["client"].is_string() && span["attempt"].is_string(), "{span}");
        assert_eq!((&span["provider"], &span["generation"]), (&"strict".into(), &1.into()), "{span}");
        assert!(span["duration_ms"].is_number(), "{span}");
    }
    let failed = log.iter().find(|line| line["span"]["outcome"] == "failed").expect("seen above");
    assert_eq!((&failed["code"], &failed["level"]), (&"http_403".into(), &"WARN".into()));
}
