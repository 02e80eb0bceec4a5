//! The agent as an extension of AWS Lambda: the shipped program under the Extensions API, started as Lambda starts it, frozen
//! and thawed, over a table that a daemon keeps in DynamoDB Local.

#![allow(clippy::disallowed_methods, reason = "tests look at their own environment, and wait for real time")]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use perennial::store::DynamoStore;
use serde_json::{Value, json};
use support::faketime::WallClock;
use support::{
    Auth, Deployment, DynamoLocal, Front, LambdaApi, Process, Proxy, StrictProvider, free_port, http_client,
    quick_settings, snapshot, wait_until,
};

const SECRET: &str = "canary-client-secret";
const TOKEN: &str = "canary-session-token";
const NAME: &str = "perennial-lambda-extension";
const SOON: Duration = Duration::from_secs(60);

/// A kept table, and a sandbox that is yet to begin.
struct World {
    provider: StrictProvider,
    deployment: Deployment,
    store: DynamoStore,
    lambda: LambdaApi,
    port: u16,
    drop_in: u16,
    program: PathBuf,
}

impl World {
    async fn new(lifetime_secs: &str, more: &str) -> Self {
        let provider = StrictProvider::start(&["--lifetime-secs", lifetime_secs]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let (port, drop_in) = (free_port(), free_port());
        let own = format!(
            "[agent]\naddress = \"127.0.0.1:{port}\"\nmax_wait = \"5m\"\n\
             [agent.drop_in]\naddress = \"127.0.0.1:{drop_in}\"\n\
             [lambda]\nclients = [\"acme-*\"]\n{more}"
        );
        let settings = quick_settings(&provider, &own);
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        deployment.register(&provider, SECRET, ["acme-crm", "other"]).await;
        let program = layer(deployment.path());
        let (store, lambda) = (deployment.store().await, LambdaApi::start().await);
        Self { provider, deployment, store, lambda, port, drop_in, program }
    }

    /// A daemon that has obtained the first token.
    async fn daemon(&self, variables: &[(&str, &str)]) -> Process {
        let daemon = self.deployment.daemon_with(variables).await;
        wait_until(SOON, "the first token", async || self.generation().await > 0).await;
        daemon
    }

    /// As Lambda starts what is in /opt/extensions.
    async fn extension(&self, variables: &[(&str, &str)]) -> Process {
        let own = [("AWS_LAMBDA_RUNTIME_API", self.lambda.address()), ("AWS_SESSION_TOKEN", TOKEN)];
        let keys = [("AWS_ACCESS_KEY_ID", "local"), ("AWS_SECRET_ACCESS_KEY", "local")];
        self.deployment.start_of(&self.program, &[], &[&own[..], &keys, variables].concat()).await
    }

    async fn get(&self, target: &str) -> (u16, Value) {
        let url = format!("http://127.0.0.1:{}/v1/token/{target}", self.port);
        self.ask(http_client().get(url).bearer_auth(TOKEN)).await
    }

    /// As a reader of AWS's extension does.
    async fn secret(&self, query: &str) -> (u16, Value) {
        let url = format!("http://localhost:{}/secretsmanager/get?secretId={query}", self.drop_in);
        self.ask(http_client().get(url).header("X-Aws-Parameters-Secrets-Token", TOKEN)).await
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let reply = request.send().await.expect("the extension answers");
        let status = reply.status().as_u16();
        (status, serde_json::from_str(&reply.text().await.expect("a body")).unwrap_or(Value::Null))
    }

    /// Waits for a later token than this one, which nobody is given any more.
    async fn next_token(&self, held: &Value) {
        wait_until(SOON, "the next token", async || {
            let (status, token) = self.get("acme-crm").await;
            assert!(status == 503 || token["generation"].as_i64() > held["generation"].as_i64(), "{token}");
            status == 200
        })
        .await;
    }

    async fn generation(&self) -> i64 {
        snapshot(&self.store, "acme-crm").await.token.map_or(0, |token| token.generation.0)
    }

    async fn expires_at(&self) -> i64 {
        snapshot(&self.store, "acme-crm").await.token.map_or(0, |token| token.expires_at.as_secs())
    }
}

/// The program by the name that it has in a layer; or that of the unpacked layer that `scripts/lambda-layer.sh` names.
fn layer(folder: &Path) -> PathBuf {
    if let Some(unpacked) = std::env::var_os("PERENNIAL_LAYER") {
        return Path::new(&unpacked).join("extensions").join(NAME);
    }
    let extensions = folder.join("extensions");
    std::fs::create_dir(&extensions).expect("a fresh folder is writable");
    let program = extensions.join(NAME);
    symlink(env!("CARGO_BIN_EXE_perennial"), &program).expect("a fresh folder is writable");
    program
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set");
    i64::try_from(since.as_secs()).expect("a date of this millennium")
}

fn calls(lambda: &LambdaApi) -> Vec<&'static str> {
    lambda.reports().iter().map(|report| report.call).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_there_before_lambda_knows_of_us() {
    let world = World::new("600", "warm = [\"acme-crm\"]").await;
    let _daemon = world.daemon(&[]).await;
    world.lambda.watch(format!("http://127.0.0.1:{}/metrics", world.port));
    let mut extension = world.extension(&[]).await;
    world.lambda.begun().await;
    let [registered] = &world.lambda.reports()[..] else { panic!("{:?}", world.lambda.reports()) };
    assert_eq!((registered.call, registered.answered), ("register", Some(200)), "the port was open");
    assert_eq!(registered.header, NAME);
    assert_eq!(registered.body["events"], json!(["INVOKE", "SHUTDOWN"]));

    world.lambda.invoke().await;
    let (status, token) = world.get("acme-crm").await;
    assert_eq!(status, 200, "{token}");
    assert!(world.provider.is_active(token["access_token"].as_str().expect("a token")).await);
    let (status, secret) = world.secret("acme-crm").await;
    assert_eq!(status, 200, "{secret}");
    let string: Value = serde_json::from_str(secret["SecretString"].as_str().expect("text")).expect("JSON");
    assert_eq!(string["access_token"], token["access_token"]);
    assert_eq!(world.get("other").await.0, 403, "lambda.clients says whose tokens the function may read");
    let wrong = http_client().get(format!("http://127.0.0.1:{}/v1/token/acme-crm", world.port));
    assert_eq!(world.ask(wrong.bearer_auth("canary")).await.0, 401);
    let metrics = http_client().get(format!("http://127.0.0.1:{}/metrics", world.port)).send().await;
    let metrics = metrics.expect("an answer").text().await.expect("text");
    let misses = "perennial_agent_reads_total{result=\"miss\"} 1";
    assert!(metrics.lines().any(|line| line == misses), "only the reading at the start waited: {metrics}");

    world.lambda.shut_down(Duration::from_secs(2));
    assert_eq!(extension.exit_code(SOON).await, 0);
    let log = extension.errors();
    assert!(log.contains("AWS Lambda ends the sandbox") && !log.contains(TOKEN), "{log}");
    assert_eq!(calls(&world.lambda), ["register"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_ends_with_the_sandbox_at_the_latest() {
    let world = World::new("6", "").await;
    let _daemon = world.daemon(&[]).await;
    let mut extension = world.extension(&[]).await;
    world.lambda.begun().await;
    let (_, token) = world.get("acme-crm").await;
    let waiting = |target: String| {
        let url = format!("http://127.0.0.1:{}/v1/token/{target}", world.port);
        tokio::spawn(async move { http_client().get(url).bearer_auth(TOKEN).send().await })
    };
    let next = waiting(format!("acme-crm?after={}&wait=1m", token["generation"]));
    let never = waiting("acme-crm?after=1000000&wait=5m".to_owned());
    wait_until(SOON, "two requests under way", async || {
        let metrics = http_client().get(format!("http://127.0.0.1:{}/metrics", world.port)).send().await;
        let metrics = metrics.expect("an answer").text().await.expect("text");
        metrics.lines().any(|line| line == "perennial_agent_waiting 2")
    })
    .await;
    world.lambda.shut_down(Duration::from_secs(20));
    assert_eq!(next.await.expect("no panic").expect("an answer").status(), 200, "there was time for it");
    assert_eq!(extension.exit_code(SOON).await, 0);
    assert!(never.await.expect("no panic").is_err(), "there was none for this one");
    assert!(extension.errors().contains("requests are under way still"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beginning_that_fails_is_told_to_lambda() {
    let world = World::new("600", "").await;
    let failed = async |variables: &[(&str, &str)]| {
        let lambda = LambdaApi::start().await;
        let own = [("AWS_LAMBDA_RUNTIME_API", lambda.address())];
        let mut extension = world.extension(&[&own, variables].concat()).await;
        let code = extension.exit_code(SOON).await;
        let last = lambda.reports().pop().expect("it said something");
        assert_eq!(calls(&lambda), ["register", "init/error"], "{}", extension.errors());
        assert!(!last.body.to_string().contains("canary"), "{}", last.body);
        let message = last.body["errorMessage"].as_str().expect("a message").to_owned();
        assert_eq!(last.body["errorType"], last.header.as_str());
        (code, last.header, message)
    };
    let (code, kind, message) = failed(&[("PERENNIAL__AGENT__MAX_AGE", "soon")]).await;
    assert_eq!((code, kind.as_str()), (2, "Extension.ConfigInvalid"));
    assert!(message.contains("agent.max_age"), "{message}");
    let (code, kind, _) = failed(&[("AWS_SESSION_TOKEN", "")]).await;
    assert_eq!((code, kind.as_str()), (2, "Extension.ConfigInvalid"), "nobody could read");
    let (code, kind, message) = failed(&[("PERENNIAL__STORE__TABLE", "none-such")]).await;
    assert_eq!((code, kind.as_str()), (1, "Extension.InitFailed"));
    assert!(message.contains("none-such"), "{message}");
    let taken = std::net::TcpListener::bind(("127.0.0.1", world.port)).expect("nobody is there");
    let (code, kind, _) = failed(&[]).await;
    assert_eq!((code, kind.as_str()), (1, "Extension.InitFailed"), "the port is taken");
    drop(taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_lambda_it_ends_and_says_why() {
    let world = World::new("600", "").await;
    let alone = world.deployment.run(&["lambda-extension"]);
    let told = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert_eq!(alone.status.code(), Some(2), "{told}");
    assert!(told.contains("AWS_LAMBDA_RUNTIME_API"), "{told}");

    // It may not register: there is nobody to report to.
    world.lambda.refuse("register", 403);
    let mut extension = world.extension(&[]).await;
    assert_eq!(extension.exit_code(SOON).await, 1);
    assert_eq!(calls(&world.lambda), ["register"]);
    assert!(extension.errors().contains("403"), "{}", extension.errors());

    let lost = LambdaApi::start().await;
    let mut extension = world.extension(&[("AWS_LAMBDA_RUNTIME_API", lost.address())]).await;
    lost.begun().await;
    lost.refuse("event/next", 500);
    assert_eq!(extension.exit_code(SOON).await, 1);
    assert_eq!(calls(&lost), ["register", "exit/error"]);
    assert_eq!(lost.reports()[1].header, "Extension.Failed");
}

/// The clocks go on while the sandbox stands still.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_thaw_no_expired_token_is_served() {
    let world = World::new("6", "").await;
    let mut daemon = world.daemon(&[]).await;
    let extension = world.extension(&[]).await;
    world.lambda.begun().await;
    world.lambda.invoke().await;
    let (status, held) = world.get("acme-crm").await;
    assert_eq!(status, 200, "{held}");
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
    extension.signal("STOP");
    wait_until(SOON, "the stored token has expired", async || world.expires_at().await < now()).await;
    extension.signal("CONT");
    world.lambda.invoke().await;
    let (status, told) = world.get("acme-crm").await;
    assert_eq!((status, &told["code"]), (503, &json!("expired")), "{told}");
    let (status, told) = world.secret("acme-crm").await;
    assert_eq!((status, &told["__type"]), (503, &json!("ServiceUnavailable")), "{told}");
    let _next = world.deployment.daemon().await;
    world.next_token(&held).await;
}

/// A sandbox that was taken out of memory and put back: its steady clock stood still, the time of day did not.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_snapshot_the_time_of_day_counts() {
    const HOUR: i32 = 3600;
    let world = World::new("600", "").await;
    let Some(clock) = WallClock::new(&world.deployment.path().join("clock")) else {
        println!("libfaketime is not to be had: no wall clock was stepped");
        return;
    };
    let front = Front::before(DynamoLocal::shared().await.endpoint(), |_| None).await;
    let variables = [&clock.variables()[..], &[("PERENNIAL__STORE__ENDPOINT", front.url())]].concat();
    let daemon = world.daemon(&variables).await;
    let extension = world.extension(&variables).await;
    world.lambda.begun().await;
    world.lambda.invoke().await;
    let (status, held) = world.get("acme-crm").await;
    assert_eq!(status, 200, "{held}");
    extension.signal("STOP");
    daemon.signal("STOP");
    clock.step(HOUR);
    front.be_ahead(HOUR.into());
    extension.signal("CONT");
    // The function may be quicker than the event.
    assert_eq!(world.get("acme-crm").await.0, 503);
    world.lambda.invoke().await;
    assert_eq!(world.secret("acme-crm").await.0, 503);
    daemon.signal("CONT");
    world.next_token(&held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_were_lost_in_a_freeze_cost_a_reader_nothing() {
    let world = World::new("600", "").await;
    let _daemon = world.daemon(&[]).await;
    let proxy = Proxy::before(DynamoLocal::shared().await.endpoint()).await;
    let extension = world.extension(&[("PERENNIAL__STORE__ENDPOINT", proxy.url())]).await;
    world.lambda.begun().await;
    world.lambda.invoke().await;
    let confirmed = "acme-crm&refreshNow=true";
    assert_eq!(world.secret(confirmed).await.0, 200);

    // Forgotten on the way: what would be sent there, nobody would answer.
    extension.signal("STOP");
    proxy.forget();
    frozen().await;
    extension.signal("CONT");
    world.lambda.invoke().await;
    assert_eq!(world.secret(confirmed).await.0, 200);
    assert_eq!(proxy.swallowed(), 0, "something was sent into a connection from before the freeze");

    // Gone at the other side, which says so to whoever sends something: whoever asks is not told.
    extension.signal("STOP");
    proxy.break_all();
    extension.signal("CONT");
    // A confirmation of a moment ago is not asked for again.
    wait_until(SOON, "something is sent into a connection that was lost", async || {
        assert_eq!(world.secret(confirmed).await.0, 200);
        proxy.broken() > 0
    })
    .await;
    assert!(!extension.errors().contains("gives no answer"), "{}", extension.errors());
}

/// For longer than an awake sandbox is without an event.
async fn frozen() {
    tokio::time::sleep(Duration::from_secs(6)).await;
}
