//! The daemon dies at any moment, and asks for nothing when it comes back: what a kill may cost is the answer that was
//! on its way, and nothing else. Stopped politely, it loses nothing.
//!
//! The moments are drawn from a seed, which is printed; `PERENNIAL_TEST_SEED` runs them again.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perennial::plan::lease::{Standing, standing};
use perennial::record::{Gen, Snapshot};
use perennial::store::DynamoStore;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{
    Auth, Deployment, DynamoLocal, NewClient, Process, StrictProvider, log_lines, snapshot, wait_until,
};

const SECRET: &str = "s";
const CLIENTS: usize = 60;
const KILLS: usize = 12;
/// Lease x 1.01 + request timeout + salvage wait, the last look of the scheduler and a refresh, on a busy machine.
const TAKE_OVER: Duration = Duration::from_secs(60);

/// Timings of the protocol, scaled down; lifetimes of a few seconds.
const SCALED: &str = "[refresh]\nlease = \"6s\"\nwindow = \"500ms\"\nrequest_timeout = \"2s\"\n\
    commit_budget = \"2s\"\nsalvage_wait = \"1s\"\nlifetime_min = \"1s\"\nspread = \"0s\"\n\
    [backoff]\nbase = \"100ms\"\nmin_interval = \"100ms\"\ncap = \"1s\"\ncap_expired = \"1s\"\n\
    [discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n[shutdown]\ntimeout = \"30s\"\n";

fn settings(provider: &StrictProvider, more: &str) -> String {
    let url = provider.token_url();
    format!(
        "{SCALED}[providers.strict]\ntoken_url = \"{url}\"\nrate_per_second = 1000.0\nburst = 1000\n\
         concurrency = 100\n{more}\n"
    )
}

/// Registers clients, each with its own OAuth client, so that the provider counts for each.
async fn register(
    deployment: &Deployment,
    provider: &StrictProvider,
    count: usize,
    rotating: bool,
) -> Vec<String> {
    let ids: Vec<_> = (0..count).map(|n| format!("customer-{n}")).collect();
    let mut clients = Vec::new();
    for id in &ids {
        provider.register(Auth::Basic(id, SECRET)).await;
        let refresh_token = if rotating { Some(provider.seed(id).await.refresh_token) } else { None };
        let client_secret = Some(SECRET);
        clients.push(NewClient {
            id: id.clone(),
            provider: "strict",
            client_id: id,
            client_secret,
            refresh_token,
        });
    }
    deployment.apply(&clients);
    ids
}

async fn snapshots(store: &DynamoStore, ids: &[String]) -> BTreeMap<String, Snapshot> {
    let mut all = BTreeMap::new();
    for id in ids {
        all.insert(id.clone(), snapshot(store, id).await);
    }
    all
}

fn generations(snapshot: &Snapshot) -> (Gen, Gen) {
    (snapshot.lease.as_ref().expect("a lease").generation, snapshot.tok_gen())
}

fn stands(snapshot: &Snapshot) -> Standing {
    standing(snapshot.lease.as_ref().expect("a lease"), snapshot.tok_gen())
}

fn seed() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "how a failing run is run again")]
    let given = std::env::var("PERENNIAL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    #[expect(clippy::print_stdout, reason = "how a failing run is run again")]
    {
        println!("PERENNIAL_TEST_SEED={seed}");
    }
    seed
}

/// What a series of kills left behind.
struct Aftermath {
    /// Clients that a kill has left in doubt, by kill.
    doubted: BTreeMap<String, u64>,
    daemon: Process,
}

/// Kills the daemon at random moments, and looks at the table after each.
async fn kill_often(deployment: &Deployment, store: &DynamoStore, ids: &[String]) -> Aftermath {
    let mut rng = StdRng::seed_from_u64(seed());
    let mut last: BTreeMap<String, (Gen, Gen)> = BTreeMap::new();
    let mut doubted: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..KILLS {
        let mut daemon = deployment.daemon().await;
        let moment = Duration::from_millis(rng.random_range(700..3000));
        #[expect(clippy::disallowed_methods, reason = "a kill comes when it comes")]
        tokio::time::sleep(moment).await;
        daemon.signal("KILL");
        assert_eq!(daemon.exit_code(Duration::from_secs(10)).await, 128 + 9, "{}", daemon.errors());
        for (id, snapshot) in snapshots(store, ids).await {
            let now @ (generation, tok_gen) = generations(&snapshot);
            assert!(tok_gen <= generation, "{id}: tokens of a generation that never was");
            let before = last.insert(id.clone(), now).unwrap_or((Gen::NONE, Gen::NONE));
            assert!(
                before.0 <= generation && before.1 <= tok_gen,
                "{id}: a generation fell: {before:?}, {now:?}"
            );
            if stands(&snapshot) == Standing::InDoubt {
                *doubted.entry(id).or_default() += 1;
            }
        }
    }
    Aftermath { doubted, daemon: deployment.daemon().await }
}

/// Waits until nobody is in doubt any more, and everybody who lives has been refreshed since.
async fn settle(store: &DynamoStore, ids: &[String]) -> BTreeMap<String, Snapshot> {
    let began = snapshots(store, ids).await;
    wait_until(TAKE_OVER, "every client is dead or has been refreshed", async || {
        let now = snapshots(store, ids).await;
        now.iter().all(|(id, snapshot)| {
            let refreshed = snapshot.tok_gen() > began[id].tok_gen();
            stands(snapshot) == Standing::Dead || refreshed
        })
    })
    .await;
    snapshots(store, ids).await
}

async fn stop(daemon: &mut Process) {
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(Duration::from_secs(30)).await, 0, "{}", daemon.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_cost_the_answers_on_their_way_and_nothing_else() {
    let provider = StrictProvider::start(&["--lifetime-secs", "4", "--latency-ms", "80"]).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings(&provider, ""));
    let ids = register(&deployment, &provider, CLIENTS, true).await;
    let store = deployment.store().await;
    let Aftermath { doubted, mut daemon } = kill_often(&deployment, &store, &ids).await;
    settle(&store, &ids).await;
    stop(&mut daemon).await;

    let (end, stats) = (snapshots(&store, &ids).await, provider.stats().await);
    let mut dead = BTreeSet::new();
    for (id, snapshot) in &end {
        let lease = snapshot.lease.as_ref().expect("a lease");
        let counts = &stats.by_client[id];
        let stored = snapshot.token.as_ref().and_then(|token| token.refresh_token.as_ref()).expect("a token");
        match stands(snapshot) {
            Standing::Dead => {
                assert_eq!(lease.error.as_deref(), Some("lost_rotation"), "{id}");
                assert!(doubted.contains_key(id), "{id} is dead, and no kill explains it");
                assert_eq!(counts.double_redemptions, 1, "{id}: dead, so a taker has tried once");
                dead.insert(id.as_str());
            }
            Standing::Free => {
                assert!(provider.is_live(stored.expose()).await, "{id}: stored is not the live token");
                assert_eq!(counts.double_redemptions, 0, "{id}");
            }
            other => panic!("{id} is stuck: {other:?}"),
        }
    }
    let lost = u64::try_from(dead.len()).expect("few");
    assert_eq!((stats.double_redemptions, stats.families_revoked), (lost, lost), "lost grants, and why");
    println!("{KILLS} kills: {} left in doubt, {lost} of {CLIENTS} grants lost", doubted.len());
    assert!(!doubted.is_empty(), "no kill met a refresh in flight: this test has tested nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_cost_nothing_where_tokens_are_minted_from_credentials() {
    let provider = StrictProvider::start(&["--lifetime-secs", "4", "--latency-ms", "150"]).await;
    let deployment = Deployment::embedded(&settings(&provider, ""));
    let ids = register(&deployment, &provider, CLIENTS, false).await;
    let store = deployment.store().await;
    let Aftermath { doubted, mut daemon } = kill_often(&deployment, &store, &ids).await;
    let end = settle(&store, &ids).await;
    stop(&mut daemon).await;
    for (id, snapshot) in &end {
        assert_ne!(stands(snapshot), Standing::Dead, "{id}: {:?}", snapshot.lease);
    }
    println!("{KILLS} kills: {} left in doubt, none lost", doubted.len());
    assert!(!doubted.is_empty(), "no kill met a refresh in flight: this test has tested nothing");
}

/// A provider so slow that every refresh is in flight when a signal comes.
async fn in_flight(
    latency_ms: &str,
    clients: usize,
    at_once: usize,
) -> (StrictProvider, Deployment, Vec<String>, Process) {
    let provider = StrictProvider::start(&["--latency-ms", latency_ms]).await;
    let slow = "request_timeout = \"20s\"\n";
    let settings = settings(&provider, slow).replace("lease = \"6s\"", "lease = \"60s\"");
    let settings = settings.replace("concurrency = 100", &format!("concurrency = {at_once}"));
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    let ids = register(&deployment, &provider, clients, true).await;
    let daemon = deployment.daemon().await;
    wait_until(Duration::from_secs(30), "as many as may are in flight", async || {
        provider.stats().await.token_requests == u64::try_from(at_once).expect("few")
    })
    .await;
    (provider, deployment, ids, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stores_what_is_in_flight_and_begins_nothing_new() {
    const AT_ONCE: usize = 10;
    let (provider, deployment, ids, mut daemon) = in_flight("1500", 30, AT_ONCE).await;
    stop(&mut daemon).await;

    let store = deployment.store().await;
    let mut refreshed = 0;
    for (id, snapshot) in snapshots(&store, &ids).await {
        let stored = snapshot.token.as_ref().and_then(|token| token.refresh_token.as_ref()).expect("a token");
        assert!(provider.is_live(stored.expose()).await, "{id}: an answer was lost");
        assert_ne!(stands(&snapshot), Standing::InDoubt, "{id}");
        let sent = provider.stats().await.by_client[&id].token_requests;
        let (generation, _) = generations(&snapshot);
        assert_eq!(generation.0 > 0, sent > 0, "{id}: acquired, and never sent");
        refreshed += usize::from(sent > 0);
    }
    assert_eq!(refreshed, AT_ONCE, "something new was begun after the signal");
    let log = log_lines(&daemon.errors());
    assert!(log.iter().any(|line| line["message"] == "stopped" && line["refreshed"] == AT_ONCE), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_leaves_at_once_and_says_what_may_be_lost() {
    let (_provider, deployment, ids, mut daemon) = in_flight("15000", 3, 3).await;
    daemon.signal("TERM");
    wait_until(Duration::from_secs(10), "it drains", async || daemon.errors().contains("draining")).await;
    daemon.signal("INT");
    // The provider takes 15 s to answer.
    assert_eq!(daemon.exit_code(Duration::from_secs(10)).await, 1);
    let log = log_lines(&daemon.errors());
    let store = deployment.store().await;
    for (id, snapshot) in snapshots(&store, &ids).await {
        let named = |line: &serde_json::Value| line["alarm"] == "abandoned" && line["client"] == id.as_str();
        assert!(log.iter().any(named), "{id} is not named: {log:#?}");
        assert_eq!(stands(&snapshot), Standing::InDoubt, "{id}: the table says that an answer may be lost");
    }
}
