//! The agent, as the shipped program: a daemon keeps the table in DynamoDB Local, readers ask over HTTP.

mod support;

mod agent {
    pub(crate) mod drop_in;
}

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::{
    Auth, Deployment, DynamoLocal, Process, Proxy, StrictProvider, agent_url, binary, http_client, log_lines,
    quick_settings, wait_until,
};

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(60);

/// A provider, a kept table, and an agent.
struct World {
    provider: StrictProvider,
    deployment: Deployment,
    agent: Process,
    url: String,
    key: String,
    _daemon: Process,
}

impl World {
    async fn new(lifetime_secs: &str, more: &str) -> Self {
        Self::with(lifetime_secs, more, &[]).await
    }

    async fn with(lifetime_secs: &str, more: &str, variables: &[(&str, &str)]) -> Self {
        let provider = StrictProvider::start(&["--lifetime-secs", lifetime_secs]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let own = format!(
            "[agent]\naddress = \"127.0.0.1:0\"\nkeys_file = \"keys.toml\"\nsocket = \"agent.sock\"\n{more}"
        );
        let settings = quick_settings(&provider, &own);
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        deployment.register(&provider, SECRET, ["acme-crm", "other"]).await;
        let key = new_key(&deployment, &["acme-*"]);
        let daemon = deployment.daemon().await;
        let agent = deployment.start(&["agent"], variables).await;
        let url = agent_url(&agent).await;
        let world = Self { provider, deployment, agent, url, key, _daemon: daemon };
        wait_until(SOON, "the first token", async || world.get("acme-crm").await.0 == 200).await;
        world
    }

    async fn get(&self, target: &str) -> (u16, Value) {
        let reply = self.ask(reqwest::Method::GET, &format!("/v1/token/{target}"), &[]).await;
        let status = reply.status().as_u16();
        (status, serde_json::from_str(&reply.text().await.expect("a body")).unwrap_or(Value::Null))
    }

    async fn ask(&self, method: reqwest::Method, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let request = http_client().request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.expect("the agent answers")
    }

    async fn reject(&self, generation: &Value) -> u16 {
        let url = format!("{}/v1/token/acme-crm/rejected", self.url);
        let body = json!({ "generation": generation }).to_string();
        let sent = http_client().post(url).bearer_auth(&self.key).body(body).send().await;
        sent.expect("the agent answers").status().as_u16()
    }
}

/// Makes a key and writes its entry, as the command says.
fn new_key(deployment: &Deployment, patterns: &[&str]) -> String {
    let mut arguments = vec!["agent", "key", "billing", "--json"];
    patterns.iter().for_each(|pattern| arguments.extend(["--clients", *pattern]));
    let made: Value = serde_json::from_str(&deployment.ok(&arguments)).expect("JSON");
    let entry =
        format!("[readers.billing]\nkey_sha256 = [{}]\nclients = {}\n", made["key_sha256"], made["clients"]);
    std::fs::write(deployment.path().join("keys.toml"), entry).expect("a fresh folder is writable");
    made["key"].as_str().expect("a key").to_owned()
}

/// Sends bytes as they are, and reads until the other side closes.
fn raw(url: &str, bytes: &str) -> String {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.write_all(bytes.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers and closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_reader_gets_what_its_key_allows() {
    let world = World::new("600", "").await;
    let (_, token) = world.get("acme-crm").await;
    let access = token["access_token"].as_str().expect("a token");
    assert!(world.provider.is_active(access).await);
    assert_eq!(token["authorization"], format!("Bearer {access}"));
    assert!(token["expires_in"].as_u64().is_some_and(|left| left > 500 && left <= 600), "{token}");
    assert_eq!((&token["stale"], &token["client"]), (&json!(false), &json!("acme-crm")));

    let text = world.ask(reqwest::Method::GET, "/v1/token/acme-crm", &[("accept", "text/plain")]).await;
    let tag = text.headers()["etag"].to_str().expect("a tag").to_owned();
    assert_eq!(text.text().await.expect("a body"), access);
    let known = world.ask(reqwest::Method::GET, "/v1/token/acme-crm", &[("if-none-match", &tag)]).await;
    assert_eq!(known.status(), 304);
    let head = world.ask(reqwest::Method::HEAD, "/v1/token/acme-crm", &[]).await;
    assert_eq!((head.status().as_u16(), head.text().await.expect("no body").len()), (200, 0));

    let problem = async |target: &str| {
        let (status, told) = world.get(target).await;
        (status, told["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(problem("other").await, (403, "not_allowed".into()));
    assert_eq!(problem("acme-nobody").await, (404, "unknown_client".into()));
    assert_eq!(problem("acme-%zz").await, (400, "malformed".into()));
    assert_eq!(problem("acme-crm?min_ttl=2h&max_wait=0s").await, (503, "short_lived".into()));

    let batch = json!({ "clients": ["acme-crm", "other", "acme-nobody", "?"] }).to_string();
    let url = format!("{}/v1/tokens", world.url);
    let many = http_client().post(url).bearer_auth(&world.key).body(batch).send().await.expect("an answer");
    let many: Value = serde_json::from_str(&many.text().await.expect("a body")).expect("JSON");
    let statuses: Vec<_> =
        many["tokens"].as_array().expect("a list").iter().map(|one| one["status"].clone()).collect();
    assert_eq!(statuses, [200, 403, 404, 400]);
    assert_eq!(many["tokens"][0]["token"]["access_token"], access);
    let refused = |line: &Value| line["code"] == "not_allowed" && line["path"] == "other";
    assert!(
        log_lines(&world.agent.errors()).iter().any(refused),
        "a refusal in a batch is told as any other"
    );
    let twice = json!({ "clients": ["acme-crm", "acme-crm"] }).to_string();
    let url = format!("{}/v1/tokens", world.url);
    let twice = http_client().post(url).bearer_auth(&world.key).body(twice).send().await.expect("an answer");
    assert_eq!(twice.status(), 400);

    let metrics = world.ask(reqwest::Method::GET, "/metrics", &[]).await.text().await.expect("text");
    assert!(metrics.contains("perennial_agent_refusals_total{code=\"not_allowed\"}"), "{metrics}");
    let log = world.agent.errors();
    for secret in [access, &world.key, SECRET] {
        assert!(!log.contains(secret) && !metrics.contains(secret));
    }
}

#[tokio::test]
async fn what_came_another_way_is_refused_and_told() {
    let world = World::new("600", "").await;
    let host = world.url.trim_start_matches("http://").to_owned();
    let ask = |target: &str, headers: &str| {
        let key = &world.key;
        raw(
            &world.url,
            &format!(
                "GET {target} HTTP/1.1\r\n{headers}Authorization: Bearer {key}\r\nConnection: close\r\n\r\n"
            ),
        )
    };
    let own = format!("Host: {host}\r\n");
    assert!(ask("/v1/token/acme-crm", &own).starts_with("HTTP/1.1 200"));
    for trace in [
        "X-Forwarded-For: 10.0.0.1",
        "Forwarded: for=x",
        "Via: 1.1 x",
        "Origin: null",
        "Sec-Fetch-Site: none",
    ] {
        let answer = ask("/v1/token/acme-crm", &format!("{own}{trace}\r\n"));
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("forwarded_request"),
            "{trace}: {answer}"
        );
    }
    assert!(ask("/v1/token/acme-crm", "Host: evil.example\r\n").starts_with("HTTP/1.1 421"));
    assert!(ask(&format!("http://{host}/v1/token/acme-crm"), &own).starts_with("HTTP/1.1 403"));
    let no_key =
        http_client().get(format!("{}/v1/token/acme-crm", world.url)).send().await.expect("an answer");
    assert_eq!((no_key.status().as_u16(), no_key.headers().contains_key("www-authenticate")), (401, true));
    let huge = format!("{own}X-Huge: {}\r\n", "x".repeat(20_000));
    assert!(ask("/v1/token/acme-crm", &huge).starts_with("HTTP/1.1 431"));
    let refusals: Vec<_> = log_lines(&world.agent.errors())
        .into_iter()
        .filter(|line| line["message"] == "a request was refused")
        .filter_map(|line| line["code"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(refusals.iter().filter(|code| *code == "forwarded_request").count(), 6, "{refusals:?}");
    assert!(refusals.contains(&"another_host".to_owned()) && refusals.contains(&"key_missing".to_owned()));
}

#[tokio::test]
async fn every_token_is_good_across_refreshes_and_the_next_can_be_waited_for() {
    let world = World::new("6", "").await;
    let (_, first) = world.get("acme-crm").await;
    let mut last = first["generation"].as_i64().expect("a number");
    for _ in 0..3 {
        let (status, next) = world.get(&format!("acme-crm?after={last}&wait=20s")).await;
        assert_eq!(status, 200);
        assert!(next["generation"].as_i64() > Some(last));
        last = next["generation"].as_i64().expect("a number");
        for _ in 0..20 {
            let (status, token) = world.get("acme-crm").await;
            assert_eq!(status, 200);
            assert!(token["expires_in"].as_i64() >= Some(0), "{token}");
            assert!(world.provider.is_active(token["access_token"].as_str().expect("a token")).await);
        }
    }
    let (status, _) = world.get(&format!("acme-crm?after={}&wait=1ms", last + 100)).await;
    assert_eq!(status, 304);
}

#[tokio::test]
async fn a_flood_of_rejections_is_one_refresh() {
    let world = World::new("600", "rejection_interval = \"10s\"").await;
    let (_, token) = world.get("acme-crm").await;
    assert_eq!(world.reject(&json!(-5)).await, 200, "that one is gone already");
    wait_until(SOON, "the token to be old enough", async || {
        let statuses =
            futures_util::future::join_all((0..50).map(|_| world.reject(&token["generation"]))).await;
        assert!(statuses.iter().all(|status| [202, 429].contains(status)), "{statuses:?}");
        statuses.contains(&202)
    })
    .await;
    let target = format!("acme-crm?after={}&wait=20s", token["generation"]);
    let (status, next) = world.get(&target).await;
    assert_eq!(status, 200);
    assert_ne!(next["access_token"], token["access_token"]);
    assert_eq!(world.reject(&token["generation"]).await, 200, "superseded");
    assert_eq!(world.reject(&next["generation"]).await, 429, "it is new");
    let granted = world.provider.stats().await.granted;
    assert_eq!(granted, 3, "the first of each client, and one more");
}

#[tokio::test]
async fn good_tokens_outlive_the_table() {
    let proxy = Proxy::before(DynamoLocal::shared().await.endpoint()).await;
    let world = World::with("60", "max_age = \"1s\"", &[("PERENNIAL__STORE__ENDPOINT", proxy.url())]).await;
    proxy.cut();
    wait_until(SOON, "a stale token", async || {
        let (status, token) = world.get("acme-crm").await;
        assert_eq!(status, 200, "{token}");
        token["stale"] == true
    })
    .await;
    let (status, told) = world.get("acme-unseen").await;
    assert_eq!((status, &told["code"], &told["retryable"]), (503, &json!("store_unavailable"), &json!(true)));
    proxy.mend();
    wait_until(SOON, "a fresh token", async || world.get("acme-crm").await.1["stale"] == false).await;
}

#[tokio::test]
async fn keys_are_taken_up_and_withdrawn_while_it_runs() {
    let mut world = World::new("600", "").await;
    let old = world.key.clone();
    world.key = new_key(&world.deployment, &["*"]);
    wait_until(SOON, "the new key", async || world.get("other").await.0 == 200).await;
    let withdrawn =
        http_client().get(format!("{}/v1/token/acme-crm", world.url)).bearer_auth(&old).send().await;
    assert_eq!(withdrawn.expect("an answer").status(), 401);
    std::fs::write(world.deployment.path().join("keys.toml"), "canary-broken").expect("writable");
    wait_until(SOON, "the complaint", async || {
        world.agent.errors().contains("readers' keys stay as they were")
    })
    .await;
    assert_eq!(world.get("other").await.0, 200);
    assert!(!world.agent.errors().contains("canary-broken"));
    std::fs::remove_file(world.deployment.path().join("keys.toml")).expect("it is there");
    wait_until(SOON, "the complaint about a file that is gone", async || {
        let lines = log_lines(&world.agent.errors());
        lines.iter().any(|line| {
            line["alarm"] == "reload"
                && line["message"].as_str().is_some_and(|text| text.contains("cannot be read"))
        })
    })
    .await;
    assert_eq!(world.get("other").await.0, 200);
}

#[tokio::test]
async fn an_agent_begins_without_the_table_and_ends_if_it_is_another() {
    let proxy = Proxy::before(DynamoLocal::shared().await.endpoint()).await;
    let world = World::new("600", "").await;
    proxy.close();
    let variables =
        [("PERENNIAL__STORE__ENDPOINT", proxy.url()), ("PERENNIAL__AGENT__SOCKET", "second.sock")];
    let second = world.deployment.start(&["agent"], &variables).await;
    let url = agent_url(&second).await;
    let ask = async || {
        let asked =
            http_client().get(format!("{url}/v1/token/acme-crm")).bearer_auth(&world.key).send().await;
        asked.expect("the agent answers").status().as_u16()
    };
    assert_eq!(ask().await, 503);
    proxy.mend();
    wait_until(SOON, "a token", async || ask().await == 200).await;
    proxy.close();
    let variables = [&variables[..], &[("PERENNIAL__STORE__SHARDS", "32")]].concat();
    drop(second);
    let mut third = world.deployment.start(&["agent"], &variables).await;
    agent_url(&third).await;
    proxy.mend();
    assert_eq!(third.exit_code(SOON).await, 1);
    assert!(third.errors().contains("shards"), "{}", third.errors());
}

#[tokio::test]
async fn a_socket_says_who_knocks_and_goes_with_the_agent() {
    let mut world = World::new("600", "").await;
    let path = world.deployment.path().join("agent.sock");
    let mut stream = UnixStream::connect(&path).expect("it listens");
    let key = &world.key;
    let request = format!(
        "GET /v1/token/acme-crm HTTP/1.1\r\nHost: agent\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    world.agent.signal("TERM");
    assert_eq!(world.agent.exit_code(SOON).await, 0);
    assert!(!path.exists());
}

#[tokio::test]
async fn idle_connections_stay_and_slow_ones_go_and_none_is_in_the_way() {
    let world = World::new("600", "connections = 16").await;
    let place = world.url.trim_start_matches("http://").to_owned();
    let connect = || {
        let stream = TcpStream::connect(&place).expect("it listens");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream
    };
    // Half a header is given up on ...
    let mut slow = connect();
    slow.write_all(b"GET /v1/token/acme-crm HTTP/1.1\r\nHost: local").expect("it reads");
    let mut kept = connect();
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {place}\r\n\r\n");
    let ask = |stream: &mut TcpStream| {
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer).expect("it answers");
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    };
    ask(&mut kept);
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).expect("it closes");
    // ... and a connection that waits for its next request is not, in the same time.
    ask(&mut kept);
    let idle: Vec<_> = (0..200).map(|_| connect()).collect();
    for _ in 0..20 {
        assert_eq!(world.get("acme-crm").await.0, 200);
    }
    drop(idle);
    wait_until(SOON, "few connections", async || {
        let metrics = world.ask(reqwest::Method::GET, "/metrics", &[]).await.text().await.expect("text");
        metrics.lines().any(|line| {
            let open = line.strip_prefix("perennial_agent_connections ").and_then(|n| n.parse::<f64>().ok());
            open.is_some_and(|open| open <= 16.0)
        })
    })
    .await;
}

#[tokio::test]
async fn idle_connections_leave_descriptors_for_whoever_reads() {
    let world = World::new("600", "").await;
    let program = binary();
    let few = ["-c", "ulimit -n 300 && exec \"$0\" agent", program.to_str().expect("a path of UTF-8")];
    let variables = [("PERENNIAL__AGENT__SOCKET", "second.sock")];
    let second = world.deployment.start_of(std::path::Path::new("sh"), &few, &variables).await;
    let url = agent_url(&second).await;
    let place = url.trim_start_matches("http://");
    let idle: Vec<_> = (0..400).map(|_| TcpStream::connect(place).expect("it listens")).collect();
    let asked = http_client().get(format!("{url}/v1/token/acme-crm")).bearer_auth(&world.key).send().await;
    assert_eq!(asked.expect("the agent answers").status(), 200);
    assert!(!second.errors().contains("Too many open files"), "{}", second.errors());
    drop(idle);
}

#[tokio::test]
async fn what_is_under_way_is_finished_before_the_end() {
    let mut world = World::new("6", "").await;
    let (_, token) = world.get("acme-crm").await;
    let target = format!("{}/v1/token/acme-crm?after={}&wait=9s", world.url, token["generation"]);
    let key = world.key.clone();
    let waiting = tokio::spawn(async move { http_client().get(target).bearer_auth(key).send().await });
    wait_until(SOON, "a request under way", async || {
        let metrics = world.ask(reqwest::Method::GET, "/metrics", &[]).await.text().await.expect("text");
        metrics.lines().any(|line| line == "perennial_agent_waiting 1")
    })
    .await;
    world.agent.signal("TERM");
    assert_eq!(waiting.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(world.agent.exit_code(SOON).await, 0);
}

#[tokio::test]
async fn without_keys_it_does_not_serve_in_production() {
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, "[agent]\naddress = \"127.0.0.1:0\"");
    let refused = deployment.run_with(&["agent"], &[("PERENNIAL__PROFILE", "production")]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("agent.keys_file") && told.contains("perennial agent key"), "{told}");
    let open = deployment.run_with(&["agent"], &[("PERENNIAL__AGENT__ADDRESS", "0.0.0.0:0")]);
    assert_eq!(open.status.code(), Some(2));
}
