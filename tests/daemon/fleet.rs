//! Several daemons over one table: who does what, as `perennial fleet` tells it, and operators' orders on their way.

use std::collections::BTreeSet;

use perennial::record::{Gen, State};
use serde_json::Value;

use super::super::{SECRET, SOON, is_live, provider, register, tok_gen};
use crate::support::{
    Deployment, DynamoLocal, Front, NewClient, Process, fetch, log_lines, snapshot, wait_until,
};

/// Fewer than open a breaker.
const HELD: [&str; 4] = ["a", "d", "g", "k"];
const IDS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

fn members(deployment: &Deployment) -> Vec<Value> {
    log_lines(&deployment.ok(&["fleet", "--json"]))
}

fn incarnation(daemon: &Process) -> String {
    let log = log_lines(&daemon.errors());
    let named = log.iter().find_map(|line| line["incarnation"].as_str());
    named.expect("it says its name at once").to_owned()
}

fn sum(members: &[Value], name: &str) -> u64 {
    members.iter().map(|member| member[name].as_u64().expect("a number")).sum()
}

/// Two are at work and share all clients and shards.
async fn divided(deployment: &Deployment, clients: u64) -> Vec<Value> {
    let mut last = Vec::new();
    wait_until(SOON, "two share the work", async || {
        last = members(deployment);
        last.len() == 2
            && last.iter().all(|member| member["state"] == "active")
            && sum(&last, "clients") == clients
    })
    .await;
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tasks_share_the_work_and_the_fleet_command_tells_who_does_what() {
    let (provider, settings) = provider(&[]).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    register(&deployment, &provider, &IDS).await;
    let nobody = deployment.run(&["fleet"]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no task is running"));

    let (mut one, mut other) = (deployment.daemon().await, deployment.daemon().await);
    let both = divided(&deployment, 12).await;
    let shards: Vec<_> =
        both.iter().flat_map(|member| member["shards"].as_array().expect("a list")).collect();
    let distinct: BTreeSet<_> = shards.iter().map(|shard| shard.as_u64()).collect();
    assert_eq!((shards.len(), distinct.len()), (16, 16), "each shard has one owner");
    let names: BTreeSet<_> = both.iter().map(|member| member["member"].as_str().expect("a name")).collect();
    let (first, second) = (incarnation(&one), incarnation(&other));
    assert_eq!(names, BTreeSet::from([first.as_str(), second.as_str()]));
    for name in ["lag_ms", "skew_ms", "conflicts", "takeovers", "refreshed", "failed"] {
        assert!(both.iter().all(|member| member[name].is_number()), "{name}");
    }
    let shown = deployment.ok(&["fleet"]);
    println!("{shown}");
    assert!(shown.ends_with(&format!(
        "summary members=2 active=2 silent=0 shards=16 unowned=0 clients=12 conflicts={}\n",
        sum(&both, "conflicts")
    )));

    other.signal("KILL");
    wait_until(SOON, "its shards are with the other", async || {
        let members = members(&deployment);
        let of =
            |name: &str| members.iter().find(|member| member["member"] == name).cloned().expect("listed");
        of(&second)["state"] == "silent"
            && of(&second)["shards"].as_array().is_some_and(Vec::is_empty)
            && of(&first)["shards"].as_array().is_some_and(|shards| shards.len() == 16)
            && of(&first)["clients"] == 12
    })
    .await;
    let output = deployment.run(&["fleet"]);
    let (shown, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{shown}{told}");
    assert!(told.contains(&format!("{second} fell silent")), "{told}");
    assert!(shown.contains("members=2 active=1 silent=1 shards=16 unowned=0 clients=12"), "{shown}");
    other.exit_code(SOON).await;

    one.signal("TERM");
    assert_eq!(one.exit_code(SOON).await, 0);
    let left = members(&deployment);
    assert!(left.iter().all(|member| member["member"] != first.as_str()), "it took its leave: {left:?}");
    assert_eq!(provider.stats().await.double_redemptions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_reach_the_task_that_cares_whoever_it_is() {
    let (provider, settings) = provider(&[]).await;
    let settings = format!("{settings}in_doubt = \"hold\"\n");
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    register(&deployment, &provider, &IDS).await;
    let store = deployment.store().await;
    let (_one, _other) = (deployment.daemon().await, deployment.daemon().await);
    divided(&deployment, 12).await;
    for id in IDS {
        wait_until(SOON, "it has a first token", async || tok_gen(&store, id).await >= Gen(1)).await;
    }
    // Clients of both: whoever is asked here, its owner does it.
    for id in IDS {
        deployment.ok(&["clients", "refresh", id]);
    }
    for id in IDS {
        wait_until(SOON, "it is refreshed", async || tok_gen(&store, id).await == Gen(2)).await;
    }

    // The connection ends before anything was processed, and the policy is to hold.
    provider.fault(serde_json::json!({ "kind": "reset_before", "times": 4 })).await;
    for id in HELD {
        deployment.ok(&["clients", "refresh", id]);
    }
    let state = async |id: &str| snapshot(&store, id).await.lease.expect("a lease").state;
    for id in HELD {
        wait_until(SOON, &format!("{id} is held"), async || state(id).await == State::Held).await;
    }
    provider.clear_faults().await;
    for id in HELD {
        deployment.ok(&["clients", "resolve", id, "--retry"]);
    }
    for id in HELD {
        wait_until(SOON, &format!("{id} is live again"), async || tok_gen(&store, id).await > Gen(2)).await;
        assert!(is_live(&store, &provider, id).await, "{id}");
    }
    assert_eq!(provider.stats().await.double_redemptions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_is_off_is_told_and_stops_acquiring_and_not_committing() {
    let (provider, settings) = provider(&["--latency-ms", "3000"]).await;
    let local = DynamoLocal::shared().await;
    let deployment = Deployment::on_dynamo(local, &settings);
    register(&deployment, &provider, &["in-flight"]).await;
    let proxy = Front::before(local.endpoint(), |_| None).await;
    let variables = [
        ("PERENNIAL__STORE__ENDPOINT", proxy.url()),
        ("PERENNIAL__HEALTH__ENABLED", "true"),
        ("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0"),
    ];
    let mut daemon = deployment.daemon_with(&variables).await;
    wait_until(SOON, "a refresh is in flight", async || provider.stats().await.token_requests == 1).await;
    proxy.be_ahead(45);
    let store = deployment.store().await;
    wait_until(SOON, "what was in flight is stored", async || tok_gen(&store, "in-flight").await == Gen(1))
        .await;
    assert!(is_live(&store, &provider, "in-flight").await);

    let address =
        log_lines(&daemon.errors()).iter().find_map(|line| line["address"].as_str().map(str::to_owned));
    let url = format!("http://{}", address.expect("it says where it serves"));
    let status = async || -> Value {
        let answer = fetch(&format!("{url}/status")).await.expect("it answers");
        serde_json::from_str(&answer.body).expect("JSON")
    };
    wait_until(SOON, "it says that it is not ready", async || {
        let status = status().await;
        status["ready"] == false
            && status["may_acquire"] == false
            && status["skew_ms"].as_i64() < Some(-40_000)
    })
    .await;
    let not_ready = fetch(&format!("{url}/readyz")).await.expect("it answers");
    assert!(not_ready.status == 503 && not_ready.body.contains("off the store's"), "{}", not_ready.body);
    assert_eq!(fetch(&format!("{url}/healthz")).await.expect("it answers").status, 200);
    wait_until(SOON, "the fleet command tells it", async || {
        let output = deployment.run(&["fleet"]);
        let (shown, told) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        shown.contains(" skewed ") && told.contains("its wall clock is -4")
    })
    .await;
    assert!(log_lines(&daemon.errors()).iter().any(|line| line["alarm"] == "clock_skew"));

    let refresh_token = Some(provider.seed("app").await.refresh_token);
    deployment.apply(&[NewClient {
        id: "waiting".into(),
        provider: "strict",
        client_id: "app",
        client_secret: Some(SECRET),
        refresh_token,
    }]);
    wait_until(SOON, "it is known", async || status().await["clients"] == 2).await;
    // How late it is is told at each turn of the scheduler.
    let lag = async || status().await["lag_ms"].as_u64().expect("a number");
    let then = lag().await;
    wait_until(SOON, "the scheduler turns", async || lag().await > then + 5_000).await;
    assert_eq!(provider.stats().await.token_requests, 1, "acquired on a wrong clock");
    proxy.be_ahead(0);
    wait_until(SOON, "it acquires again", async || tok_gen(&store, "waiting").await == Gen(1)).await;
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
}
