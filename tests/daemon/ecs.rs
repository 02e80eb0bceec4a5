//! As a task of Amazon ECS: the daemon says which one it is, protects itself while it works, and does its work whatever
//! the agent answers.

use std::time::Duration;

use perennial::ecs::{Account, Agent, Guard as _, Patience, identify};
use perennial::plan::protection::Request;
use perennial::time::SystemClock;
use serde_json::{Value, json};

use super::super::{SOON, is_live, provider, register, tok_gen};
use crate::support::{
    Deployment, DynamoLocal, EcsAgent, Mood, Process, TASK, fetch, health_url, log_lines, wait_until,
};

/// Tokens of two seconds' life: a refresh every second.
const BUSY: [&str; 2] = ["--lifetime-secs", "2"];

/// A table with clients, and a daemon in a task's environment.
async fn daemon(deployment: &Deployment, agent: &EcsAgent, more: &[(&str, &str)]) -> Process {
    let ecs = agent.variables();
    let mut variables = vec![
        ("PERENNIAL__HEALTH__ENABLED", "true"),
        ("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_REGION", "us-east-1"),
        // The profile is production there.
        ("PERENNIAL__PROVIDERS__STRICT__ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    variables.extend(ecs.iter().map(|(name, value)| (*name, value.as_str())));
    variables.extend(more);
    deployment.daemon_with(&variables).await
}

async fn status(url: &str) -> Value {
    let reply = fetch(&format!("{url}/status")).await.expect("the daemon answers");
    serde_json::from_str(&reply.body).expect("JSON")
}

fn complaints(daemon: &Process) -> Vec<Value> {
    let log = log_lines(&daemon.errors()).into_iter();
    log.filter(|line| line["level"] == "WARN" && line["message"].to_string().contains("protection")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_refreshes_is_one_request_for_protection_and_the_drain_lets_go() {
    let (provider, settings) = provider(&BUSY).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    let ids: Vec<_> = (0..20).map(|number| format!("acme-{number}")).collect();
    register(&deployment, &provider, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let agent = EcsAgent::start().await;
    let mut daemon = daemon(&deployment, &agent, &[]).await;
    let url = health_url(&daemon).await;
    wait_until(SOON, "a hundred refreshes", async || status(&url).await["refreshed"].as_u64() >= Some(100))
        .await;

    let protect = json!({ "ProtectionEnabled": true, "ExpiresInMinutes": 20 });
    assert_eq!(agent.asked(), std::slice::from_ref(&protect));
    assert_eq!(agent.identified(), 1);
    let ecs = status(&url).await["ecs"].clone();
    let expected = json!({
        "task": TASK, "family": "perennial", "revision": "7", "zone": "eu-central-1b", "protected": true,
        "clock_error_bound_ms": 0.5458, "clock_reference": "2026-01-31T12:00:00Z", "clock_synchronized": true,
    });
    assert_eq!(ecs, expected);
    let told: Vec<_> = log_lines(&daemon.errors())
        .into_iter()
        .filter(|line| line["message"] == "running as an ECS task")
        .collect();
    assert!(
        matches!(&told[..], [line] if line["task"] == TASK && line["zone"] == "eu-central-1b"),
        "{told:?}"
    );

    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
    assert_eq!(agent.asked(), [protect, json!({ "ProtectionEnabled": false })]);
    assert!(is_live(&deployment.store().await, &provider, "acme-0").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_fails_in_any_way_costs_no_refresh_and_one_warning() {
    let throttled =
        json!({ "requestID": "1", "error": { "Code": "ThrottlingException", "Message": "Rate exceeded" } });
    let lonely = json!({ "failure": { "Arn": TASK, "Detail": null, "Reason": "TASK_NOT_VALID" } });
    let cases = [
        (Mood::With(429, throttled.to_string()), "ThrottlingException: Rate exceeded"),
        (Mood::With(200, lonely.to_string()), "TASK_NOT_VALID"),
        (Mood::With(500, String::new()), "HTTP 500"),
        (Mood::With(200, "\u{0}garbage".to_owned()), "not understood"),
        (Mood::Silent, ""),
    ];
    let (provider, settings) = provider(&BUSY).await;
    for (mood, why) in cases {
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        register(&deployment, &provider, &["acme"]).await;
        let agent = EcsAgent::start().await;
        agent.answer_protection(mood.clone());
        agent.answer_metadata(mood.clone());
        let mut daemon = daemon(&deployment, &agent, &[]).await;
        let store = deployment.store().await;
        wait_until(SOON, "three refreshes", async || tok_gen(&store, "acme").await.0 >= 3).await;
        if !why.is_empty() {
            wait_until(SOON, "a complaint", async || !complaints(&daemon).is_empty()).await;
        }
        daemon.signal("TERM");
        assert_eq!(daemon.exit_code(SOON).await, 0, "{mood:?}");
        assert!(is_live(&store, &provider, "acme").await);
        let complaints = complaints(&daemon);
        assert_eq!(
            complaints.len(),
            usize::from(!why.is_empty()),
            "once for all that follow: {complaints:?}"
        );
        assert!(complaints.iter().all(|line| line["error"].to_string().contains(why)), "{complaints:?}");
        let asked = agent.asked().len();
        assert!((1..=3).contains(&asked), "{asked} requests, {mood:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn protection_can_be_turned_off_and_outside_ecs_nothing_is_said() {
    let (provider, settings) = provider(&BUSY).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    register(&deployment, &provider, &["acme"]).await;
    let store = deployment.store().await;
    let agent = EcsAgent::start().await;
    let mut off = daemon(&deployment, &agent, &[("PERENNIAL__ECS__PROTECTION", "false")]).await;
    wait_until(SOON, "a refresh", async || tok_gen(&store, "acme").await.0 >= 1).await;
    wait_until(SOON, "it is known which task this is", async || agent.identified() == 1).await;
    off.signal("TERM");
    assert_eq!(off.exit_code(SOON).await, 0);
    assert_eq!(agent.asked(), Vec::<Value>::new());

    let before = tok_gen(&store, "acme").await;
    let mut elsewhere = deployment.daemon().await;
    wait_until(SOON, "a refresh", async || tok_gen(&store, "acme").await > before).await;
    elsewhere.signal("TERM");
    assert_eq!(elsewhere.exit_code(SOON).await, 0);
    let log = elsewhere.errors();
    assert!(!log.contains("ECS") && !log.contains("scale-in"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_up_late_or_never_is_asked_a_few_times_within_bounds() {
    let agent = EcsAgent::start().await;
    let (metadata, protection) = (agent.metadata_uri(), agent.agent_uri());
    let patience = Patience { metadata: Duration::from_millis(200), protection: Duration::from_millis(200) };
    let asker = Agent::at(Some(&metadata), Some(&protection), patience).expect("addresses");

    let (late, come_up) = (Account::default(), async {
        wait_until(SOON, "it is asked", async || agent.identified() >= 1).await;
        agent.answer_metadata(Mood::Well);
    });
    agent.answer_metadata(Mood::With(503, "not yet".to_owned()));
    tokio::join!(identify(&asker, &late, &SystemClock), come_up);
    assert_eq!(late.identity().map(|identity| identity.id()), Some("1234567890abcdef0"));

    let never = Account::default();
    for mood in [Mood::Silent, Mood::With(200, "x".repeat(300_000)), Mood::With(200, "{}".to_owned())] {
        agent.answer_metadata(mood.clone());
        let asked = agent.identified();
        let bounded = tokio::time::timeout(SOON, identify(&asker, &never, &SystemClock)).await;
        assert!(bounded.is_ok(), "{mood:?}");
        assert_eq!(agent.identified() - asked, 5, "{mood:?}");
    }
    assert_eq!(never.identity(), None);

    agent.answer_protection(Mood::Silent);
    let error = asker.ask(Request::Protect).await.expect_err("no answer");
    assert!(error.to_string().contains("no answer"), "{error}");
}
