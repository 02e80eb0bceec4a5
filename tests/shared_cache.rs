//! Tokens beside the table: the shipped program and a real Redis server, with users and TLS, which is also killed.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use perennial::client::ClientId;
use perennial::item::{self, Change, Item, Key, attr};
use perennial::record::Partition;
use perennial::shared_cache::{Link, Password, Publisher, Queue, Settings};
use perennial::store::{Applied, Herald as _, MemoryStore, News, Page, ShardQuery, Store, StoreError, View};
use perennial::time::{Clock, Moment, Sleep, SystemClock, Timestamp};
use serde_json::Value;
use support::redis::{READER, WRITER};
use support::{
    Auth, Deployment, DynamoLocal, Front, Process, Proxy, Redis, StrictProvider, agent_url, health_url,
    http_client, log_lines, quick_settings, wait_for, wait_until,
};

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(60);
const UNUSABLE: &str = "an entry of the shared cache cannot be used: asking the table";
const AWAY: &str = "the shared cache is not used: going on without it";
const BACK: &str = "the shared cache answers";

/// A provider, a table behind a network that can be cut, a server, a daemon that publishes, and an agent that reads.
struct World {
    provider: StrictProvider,
    redis: Redis,
    table: Proxy,
    deployment: Deployment,
    daemon: Process,
    agent: Process,
    url: String,
}

impl World {
    async fn new(lifetime_secs: &str, more: &str, ids: &[&str]) -> Self {
        let provider = StrictProvider::start(&["--lifetime-secs", lifetime_secs]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let redis = Redis::start().await;
        let own = format!("[agent]\naddress = \"127.0.0.1:0\"\n{more}\n{}", redis.settings());
        let settings = quick_settings(&provider, &own);
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        let file = deployment.secret_file("sealing.key", &"5e".repeat(32));
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("its owner may");
        deployment.register(&provider, SECRET, ids.iter().copied()).await;
        let daemon = daemon(&deployment, WRITER).await;
        let table = Proxy::before(DynamoLocal::shared().await.endpoint()).await;
        let (agent, url) = agent(&deployment, &table, READER).await;
        Self { provider, redis, table, deployment, daemon, agent, url }
    }

    fn key(&self, id: &str) -> String {
        format!("perennial:{}:{id}", self.deployment.table_name())
    }

    async fn get(&self, target: &str) -> (u16, Value) {
        let reply = http_client().get(format!("{}/v1/token/{target}", self.url)).send().await;
        let reply = reply.expect("the agent answers");
        let status = reply.status().as_u16();
        (status, serde_json::from_str(&reply.text().await.expect("a body")).unwrap_or(Value::Null))
    }

    /// The agent's number of this name.
    async fn number(&self, name: &str) -> f64 {
        number(&self.url, name).await
    }

    /// The token item as it stands in the table, when its first token is there.
    async fn item(&self, id: &str) -> std::collections::HashMap<String, AttributeValue> {
        let client = DynamoLocal::shared().await.client();
        wait_for(SOON, "a token in the table", async || {
            let get = client.get_item().table_name(self.deployment.table_name());
            let key = |text: String| AttributeValue::S(text);
            let get = get.key("PK", key(format!("CLIENT#{id}"))).key("SK", key("TOKEN#ACCESS".into()));
            let item = get.consistent_read(true).send().await.ok()?.item?;
            item.contains_key("access_token").then_some(item)
        })
        .await
    }

    /// Whether daemon and agent have said something at least so often.
    fn both_said(&self, message: &str, times: usize) -> bool {
        [&self.daemon, &self.agent].iter().all(|process| said(process, message) >= times)
    }

    /// Orders a refresh of each client, and waits until the agent has what came of it.
    async fn refresh_all(&self, ids: &[&str]) {
        for id in ids {
            let generation = self.get(id).await.1["generation"].as_i64().expect("a number");
            let mut order = self.deployment.command(&["clients", "refresh", id]);
            let ordered = tokio::task::spawn_blocking(move || order.output()).await.expect("no panic");
            assert!(ordered.expect("the binary is built").status.success(), "{id}");
            let (status, next) = self.get(&format!("{id}?after={generation}&wait=30s")).await;
            assert_eq!(status, 200, "{id}: {next}");
        }
    }

    /// Gives a client an access token, as an operator does.
    async fn import(&self, id: &str, access: &str) {
        let given = self.provider.seed("app").await.refresh_token;
        let (refresh, access) = (
            self.deployment.secret_file("imported", &given),
            self.deployment.secret_file("imported.access", access),
        );
        let (refresh, access) = (refresh.display().to_string(), access.display().to_string());
        let what = ["clients", "import-token", id, "--replace", "--expires-in", "1h"];
        let files = ["--refresh-token-file", &refresh, "--access-token-file", &access];
        self.deployment.ok(&[&what[..], &files].concat());
    }

    /// Reads all clients over and over: no answer is an error, and no token dead.
    async fn read_all(&self, ids: &[&str], rounds: usize) {
        for id in ids.iter().cycle().take(rounds * ids.len()) {
            let (status, token) = self.get(id).await;
            assert_eq!(status, 200, "{token}");
            assert!(token["expires_in"].as_i64() >= Some(0), "{token}");
            assert!(
                self.provider.is_active(token["access_token"].as_str().expect("a token")).await,
                "{token}"
            );
        }
    }

    /// The entry, once it is of a later generation than this.
    async fn published(&self, id: &str, after: i64) -> Value {
        wait_for(SOON, "a published token", async || {
            let text = self.redis.value(&self.key(id))?;
            let entry: Value = serde_json::from_str(text.split_once(' ')?.1).ok()?;
            (entry["tok_gen"].as_i64()? > after).then_some(entry)
        })
        .await
    }
}

async fn daemon(deployment: &Deployment, user: (&'static str, &'static str)) -> Process {
    daemon_with(deployment, user, &[]).await
}

async fn daemon_with(
    deployment: &Deployment,
    user: (&'static str, &'static str),
    more: &[(&str, &str)],
) -> Process {
    let health = [("PERENNIAL__HEALTH__ENABLED", "true"), ("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0")];
    deployment.daemon_with(&[&Redis::login(user)[..], &health, more].concat()).await
}

async fn agent(
    deployment: &Deployment,
    table: &Proxy,
    user: (&'static str, &'static str),
) -> (Process, String) {
    let variables = [&Redis::login(user)[..], &[("PERENNIAL__STORE__ENDPOINT", table.url())]].concat();
    let agent = deployment.start(&["agent"], &variables).await;
    let url = agent_url(&agent).await;
    (agent, url)
}

async fn number(url: &str, name: &str) -> f64 {
    let reply = http_client().get(format!("{url}/metrics")).send().await.expect("an answer");
    let text = reply.text().await.expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.map_or(0.0, |number| number.parse().expect("a number"))
}

fn said(process: &Process, message: &str) -> usize {
    log_lines(&process.errors()).iter().filter(|line| line["message"] == message).count()
}

#[tokio::test]
async fn what_is_published_is_what_stands_in_the_table_and_ends_with_its_token() {
    let sealed = "[sealing]\nmode = \"local\"\nkey_file = \"sealing.key\"\n";
    let world = World::new("600", sealed, &["acme-crm"]).await;
    let (item, entry) = (world.item("acme-crm").await, world.published("acme-crm", -1).await);
    for name in ["access_token", "token_type", "scope", "last_updated"] {
        let stands = item.get(name).and_then(|value| value.as_s().ok()).map(String::as_str);
        assert_eq!(entry[name].as_str(), stands, "{name}");
    }
    for name in ["expires_at", "refresh_at", "tok_gen"] {
        assert_eq!(entry[name].to_string(), *item[name].as_n().expect("a number"), "{name}");
    }
    let expires_at = entry["expires_at"].as_i64().expect("seconds");
    assert_eq!(world.redis.ends_at(&world.key("acme-crm")), expires_at * 1000);

    let (status, token) = world.get("acme-crm").await;
    let access = token["access_token"].as_str().expect("a token").to_owned();
    assert!(status == 200 && world.provider.is_active(&access).await);
    assert_eq!(world.number("perennial_shared_cache_lookups_total{result=\"hit\"}").await, 1.0);
    let held = world.redis.everything();
    assert_eq!(held.len(), 1, "{:?}", held.keys());
    assert!(held.values().all(|value| !value.contains(&access) && !value.contains("refresh_token")));
    for log in [world.daemon.errors(), world.agent.errors()] {
        assert!([WRITER.1, READER.1, &access].iter().all(|secret| !log.contains(secret)));
    }
}

#[tokio::test]
async fn a_token_that_nobody_had_asked_for_is_read_while_the_table_is_cut_off_and_so_is_the_next() {
    let world = World::new("600", "", &["acme-crm", "other"]).await;
    let generation = world.published("acme-crm", -1).await["tok_gen"].as_i64().expect("a number");
    world.table.cut();
    let (status, token) = world.get("acme-crm").await;
    assert_eq!((status, &token["stale"]), (200, &Value::Bool(false)), "{token}");
    assert!(world.provider.is_active(token["access_token"].as_str().expect("a token")).await);

    world.deployment.ok(&["clients", "refresh", "acme-crm"]);
    let (status, next) = world.get(&format!("acme-crm?after={generation}&wait=30s")).await;
    assert_eq!(status, 200, "{next}");
    assert!(next["generation"].as_i64() > Some(generation));
    assert!(world.provider.is_active(next["access_token"].as_str().expect("a token")).await);
}

#[tokio::test]
async fn an_operators_tokens_are_published_and_a_removed_clients_are_gone() {
    let world = World::new("600", "", &["acme-crm", "other"]).await;
    let before = world.published("acme-crm", -1).await["tok_gen"].as_i64().expect("a number");
    world.published("other", -1).await;
    world.import("acme-crm", "canary-imported").await;
    let imported = world.published("acme-crm", before).await;
    assert_eq!(imported["access_token"], "canary-imported");
    world.deployment.ok(&["clients", "remove", "other", "--yes"]);
    wait_until(SOON, "the key of a removed client goes", async || {
        world.redis.value(&world.key("other")).is_none()
    })
    .await;
    assert!(world.redis.value(&world.key("acme-crm")).is_some());
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::disallowed_methods, reason = "the table is slow, and nobody waits for luck")]
async fn a_slow_table_is_not_taken_for_a_server_that_is_away() {
    let mut world = World::new("600", "", &["acme-crm"]).await;
    world.published("acme-crm", -1).await;
    world.daemon.signal("TERM");
    assert_eq!(world.daemon.exit_code(SOON).await, 0);
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = Arc::clone(&is_slow);
    let front = Front::before(DynamoLocal::shared().await.endpoint(), move |call| {
        // Whoever refreshes asks for whole items, or for less.
        let body = String::from_utf8_lossy(&call.body);
        let asks = body.contains("TOKEN#ACCESS") && body.contains("\"access_token\"");
        if asks && call.operation().contains("Get") && slow.load(Ordering::Relaxed) {
            // For longer than the publisher waits for anybody.
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_secs(4)));
        }
        None
    })
    .await;
    let endpoint = [("PERENNIAL__STORE__ENDPOINT", front.url())];
    world.daemon = daemon_with(&world.deployment, WRITER, &endpoint).await;
    wait_until(SOON, "it is connected", async || said(&world.daemon, BACK) == 1).await;
    world.refresh_all(&["acme-crm"]).await;
    is_slow.store(true, Ordering::Relaxed);
    world.import("acme-crm", "canary-first").await;
    let health = health_url(&world.daemon).await;
    wait_until(SOON, "it is not published", async || {
        number(&health, "perennial_shared_cache_publications_total{outcome=\"failed\"}").await >= 1.0
    })
    .await;
    is_slow.store(false, Ordering::Relaxed);
    world.import("acme-crm", "canary-second").await;
    wait_until(SOON, "the next is", async || {
        world.redis.value(&world.key("acme-crm")).is_some_and(|entry| entry.contains("canary-second"))
    })
    .await;
    assert_eq!((said(&world.daemon, BACK), said(&world.daemon, AWAY)), (1, 0), "one connection all the time");
}

#[tokio::test]
async fn what_an_operator_changed_while_no_daemon_ran_is_published_by_the_next() {
    let mut world = World::new("600", "", &["acme-crm", "other"]).await;
    let before = world.published("acme-crm", -1).await["tok_gen"].as_i64().expect("a number");
    world.published("other", -1).await;
    world.daemon.signal("TERM");
    assert_eq!(world.daemon.exit_code(SOON).await, 0);
    world.import("acme-crm", "canary-imported").await;
    world.deployment.ok(&["clients", "remove", "other", "--yes"]);
    world.daemon = daemon(&world.deployment, WRITER).await;
    assert_eq!(world.published("acme-crm", before).await["access_token"], "canary-imported");
    wait_until(SOON, "the key of a removed client goes", async || {
        world.redis.value(&world.key("other")).is_none()
    })
    .await;
}

/// A table that never answers about one client.
struct Hung(MemoryStore, ClientId);

impl Store for Hung {
    async fn read(&self, id: &ClientId) -> Result<Partition, StoreError> {
        self.0.read(id).await
    }
    async fn apply(&self, change: &Change) -> Result<Applied, StoreError> {
        self.0.apply(change).await
    }
    async fn query(&self, query: &ShardQuery) -> Result<Page, StoreError> {
        self.0.query(query).await
    }
    async fn load(&self, keys: &[Key], view: View) -> Result<Vec<(Key, Item)>, StoreError> {
        if keys.contains(&Key::Token(self.1.clone())) {
            std::future::pending::<()>().await;
        }
        self.0.load(keys, view).await
    }
}

/// No pause of it ends: nobody gives up waiting.
struct Patient;

impl Clock for Patient {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }
    fn moment(&self) -> Moment {
        SystemClock.moment()
    }
    fn sleep(&self, _: Duration) -> Sleep {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_client_with_whom_the_table_is_slow_keeps_no_other_from_being_published() {
    let (redis, clock) = (Redis::start().await, Arc::new(Patient));
    let settings = Settings {
        url: redis.url().parse().expect("a URL"),
        user: Some(WRITER.0.to_owned()),
        password: Some(Password::Given(WRITER.1.into())),
        ca_file: None,
        prefix: "perennial:".to_owned(),
        patience: SOON,
    };
    let link = Arc::new(Link::new(settings, Arc::clone(&clock) as _).expect("no TLS"));
    let [slow, quick] = ["slow", "quick"].map(|id| ClientId::new(id).expect("an id"));
    let (queue, store) = (Arc::new(Queue::default()), MemoryStore::new());
    let token = Item::default()
        .with(attr::ACCESS_TOKEN, item::Value::Secret("canary-quick".into()))
        .with(attr::EXPIRES_AT, item::Value::N(clock.now().plus(SOON * 10).as_secs()))
        .with(attr::TOK_GEN, item::Value::N(1));
    store.put_raw(&Key::partition(&quick), "TOKEN#ACCESS", token);
    let table = Hung(store, slow.clone());
    let publisher = Publisher::new(Arc::clone(&queue), Arc::clone(&link), table, clock);
    queue.tell(&slow, News::Changed);
    queue.tell(&quick, News::Changed);
    let published = wait_for(SOON, "the other is published", async || redis.value("perennial:quick"));
    let published = tokio::select! {
        published = published => published,
        () = link.keep() => unreachable!("it does so for ever"),
        () = publisher.run() => unreachable!("it does so for ever"),
    };
    assert!(published.starts_with("1 ") && published.contains("canary-quick"), "{published}");
}

#[tokio::test]
async fn an_older_generation_does_not_take_the_place_of_a_newer_one_and_anything_else_gives_way() {
    let world = World::new("600", "", &["acme-crm", "other"]).await;
    let (mut acme, mut other) = (0, 0);
    for (id, generation) in [("acme-crm", &mut acme), ("other", &mut other)] {
        *generation = world.published(id, -1).await["tok_gen"].as_i64().expect("a number");
    }
    let newer = format!("{} {{}}", acme + 1000);
    world.redis.ask::<()>(&["SET", &world.key("acme-crm"), &newer, "EX", "600"]);
    world.redis.ask::<()>(&["DEL", &world.key("other")]);
    world.redis.ask::<()>(&["LPUSH", &world.key("other"), "a list"]);
    world.deployment.ok(&["clients", "refresh", "acme-crm"]);
    world.deployment.ok(&["clients", "refresh", "other"]);
    world.published("other", other).await;
    let health = health_url(&world.daemon).await;
    let superseded = "perennial_shared_cache_publications_total{outcome=\"superseded\"}";
    wait_until(SOON, "the older one is refused", async || number(&health, superseded).await > 0.0).await;
    assert_eq!(world.redis.value(&world.key("acme-crm")), Some(newer));
}

#[tokio::test]
async fn what_strangers_put_there_is_not_believed() {
    let ids = ["wrong-type", "huge", "garbage", "eternal", "expired", "moved"];
    let sealed = "[sealing]\nmode = \"local\"\nkey_file = \"sealing.key\"\n";
    let world = World::new("600", sealed, &ids).await;
    for id in ids {
        world.published(id, -1).await;
    }
    let own = |id: &str| world.redis.value(&world.key(id)).expect("published");
    let (eternal, moved) = (own("eternal"), own("garbage"));
    let expired = own("expired");
    let at = expired.split_once("\"expires_at\":").expect("it has one").1;
    let at = &at[..at.find(',').expect("more follows")];
    let expired = expired.replace(at, "1700000000");
    let put = |id: &str, value: &str| {
        world.redis.ask::<()>(&["SET", &world.key(id), value, "EX", "600"]);
    };
    world.redis.ask::<()>(&["DEL", &world.key("wrong-type")]);
    world.redis.ask::<()>(&["LPUSH", &world.key("wrong-type"), "a list"]);
    put("huge", &format!("9 {}", "x".repeat(1 << 20)));
    put("garbage", "9 {\"access_token\":\"canary-forged\"}");
    world.redis.ask::<()>(&["SET", &world.key("eternal"), &eternal]);
    put("expired", &expired);
    put("moved", &moved);
    for id in ids {
        let (status, token) = world.get(id).await;
        assert_eq!(status, 200, "{id}: {token}");
        let access = token["access_token"].as_str().expect("a token");
        assert!(world.provider.is_active(access).await, "{id}: {access}");
    }
    let told: Vec<_> = log_lines(&world.agent.errors())
        .into_iter()
        .filter(|line| line["message"] == UNUSABLE)
        .filter_map(|line| line["client"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(told, ["wrong-type", "huge", "garbage", "eternal", "moved"]);
    assert!(!world.agent.errors().contains("canary-forged"));
}

#[tokio::test]
async fn a_wrong_password_is_told_once_and_the_table_serves() {
    let mut world = World::new("600", "", &["acme-crm"]).await;
    world.published("acme-crm", -1).await;
    let (reader, writer) = ((READER.0, "canary-wrong-password"), (WRITER.0, "canary-wrong-password"));
    (world.agent, world.url) = agent(&world.deployment, &world.table, reader).await;
    assert_eq!(world.get("acme-crm").await.0, 200);
    // A user who may not read is another who is told so.
    let (powerless, url) = agent(&world.deployment, &world.table, WRITER).await;
    let reply = http_client().get(format!("{url}/v1/token/acme-crm")).send().await.expect("an answer");
    assert_eq!(reply.status(), 200);
    assert_eq!(said(&powerless, "the shared cache could not be read: asking the table"), 1);
    world.daemon.signal("TERM");
    assert_eq!(world.daemon.exit_code(SOON).await, 0);
    world.daemon = daemon(&world.deployment, writer).await;
    world.refresh_all(&["acme-crm"]).await;
    assert_eq!(world.get("acme-crm").await.0, 200);
    for process in [&world.agent, &world.daemon] {
        let log = process.errors();
        assert_eq!(said(process, AWAY), 1, "{log}");
        assert!(log.contains("refuses") && !log.contains("canary-wrong-password"), "{log}");
    }
    assert_eq!(said(&world.agent, "the table gives no answer about a token"), 0);
}

#[tokio::test]
async fn a_server_that_is_killed_hangs_and_comes_back_under_load_is_missed_by_nobody() {
    let ids = ["a", "b", "c", "d", "e", "f"];
    let mut world = World::new("30", "", &ids).await;
    for id in ids {
        world.published(id, -1).await;
    }
    for fault in ["KILL", "STOP"] {
        match fault {
            "KILL" => world.redis.kill().await,
            _ => world.redis.signal("STOP"),
        }
        for _ in 0..2 {
            // All are refreshed and read while the server is away.
            tokio::join!(world.refresh_all(&ids), world.read_all(&ids, 50));
        }
        let outages = if fault == "KILL" { 1 } else { 2 };
        wait_until(SOON, "both have missed it", async || world.both_said(AWAY, outages)).await;
        match fault {
            "KILL" => world.redis.restart().await,
            _ => world.redis.signal("CONT"),
        }
        for id in ids {
            world.published(id, -1).await;
        }
        wait_until(SOON, "both are back", async || world.both_said(BACK, outages + 1)).await;
        tokio::join!(world.refresh_all(&ids), world.read_all(&ids, 50));
        for id in ids {
            let generation = world.get(id).await.1["generation"].as_i64().expect("a number");
            world.published(id, generation - 1).await;
        }
    }
    assert_eq!(world.provider.stats().await.double_redemptions, 0);
    let (daemon, agent) = (&world.daemon, &world.agent);
    for process in [daemon, agent] {
        let told_once = said(process, AWAY) < said(process, BACK);
        assert!(told_once, "at most once an outage: {}", process.errors());
    }
    assert_eq!(said(daemon, "failed: will be tried again"), 0, "{}", daemon.errors());
    let health = health_url(daemon).await;
    assert_eq!(number(&health, "perennial_shared_cache_publications_total{outcome=\"failed\"}").await, 0.0);
    assert!(world.number("perennial_shared_cache_lookups_total{result=\"failed\"}").await > 0.0);
    assert!(world.number("perennial_least_lifetime_served_seconds").await > 0.0);
}
