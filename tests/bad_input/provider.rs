//! A token endpoint on a bad day. One run meets every fault at once, each with a client of its own; then the faults
//! are cleared, and a second run shows who recovers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use perennial::record::{Lease, Snapshot, State, Token};
use perennial::store::DynamoStore;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    Auth, Canaries, Deployment, DynamoLocal, NewClient, StrictProvider, free_port, snapshot, wait_until,
};

const SECRET: &str = "canary-client-secret";
const TRACE: [(&str, &str); 1] = [("PERENNIAL__LOG__FILTER", "trace")];
/// What the policy allows: one send, and one replay.
const TWICE: u64 = 2;

/// What the stored tokens and the lease look like after a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// New tokens are stored.
    Refreshed,
    /// To be tried again, and the stored refresh token was surely not sent in vain.
    Failed,
    /// To be tried again, after so many sends to which nothing was heard.
    Doubt(u32),
    /// The grant is gone.
    Dead,
    /// An operator decides.
    Held,
}

use End::{Dead, Doubt, Failed, Held, Refreshed};

/// One fault and what has to come of it.
struct Case {
    name: &'static str,
    provider: &'static str,
    fault: Value,
    /// `perennial run --once` says so; and the lease, for all but `Refreshed`.
    code: &'static str,
    end: End,
    /// Requests of the first run, and spent tokens among them.
    sends: (u64, u64),
    /// Whether the stored refresh token is the provider's live one after the first run.
    live: bool,
    /// What a second run makes of it, without the fault.
    then: End,
    /// Least wait in seconds that the lease must keep.
    wait: u64,
}

fn case(name: &'static str, fault: Value, code: &'static str, end: End, sends: (u64, u64)) -> Case {
    let live = matches!(end, Refreshed | Failed | Doubt(_));
    Case { name, provider: "strict", fault, code, end, sends, live, then: Refreshed, wait: 0 }
}

impl Case {
    fn spent(self, then: End) -> Self {
        Self { live: false, then, ..self }
    }
    fn live(self) -> Self {
        Self { live: true, ..self }
    }
    fn at(self, provider: &'static str) -> Self {
        Self { provider, ..self }
    }
    fn waits(self, wait: u64) -> Self {
        Self { wait, ..self }
    }
}

fn status(code: u16, body: &str, headers: Value) -> Value {
    json!({ "kind": "status", "code": code, "body": body, "headers": headers })
}

fn oauth(code: u16, error: &str) -> Value {
    status(code, &json!({ "error": error }).to_string(), json!({}))
}

fn once(mut fault: Value) -> Value {
    fault["times"] = json!(1);
    fault
}

fn processed(mut fault: Value) -> Value {
    fault["process"] = json!(true);
    fault
}

/// Pages and bodies that are no token answer.
fn unreadable() -> Vec<Case> {
    let html = |code: u16| json!({ "kind": "html", "code": code });
    let huge = json!({ "kind": "huge", "bytes": 10 << 20 });
    let empty = json!({ "kind": "empty200" });
    // Of the refusal that a replay meets, the status is enough.
    let truncated = json!({ "kind": "truncated" });
    vec![
        case("html-200", html(200), "unreadable_200", Doubt(2), (TWICE, 0)),
        case("html-403", html(403), "http_403", Failed, (1, 0)),
        case("html-404", html(404), "http_404", Failed, (1, 0)),
        case("html-503", html(503), "http_503", Doubt(1), (TWICE, 0)),
        case("empty-200", empty.clone(), "empty_200", Doubt(2), (TWICE, 0)),
        case("empty-200-spent", processed(once(empty)), "lost_rotation", Dead, (TWICE, 1)).spent(Dead),
        case("truncated", truncated.clone(), "http_400", Doubt(1), (TWICE, 1)).spent(Dead),
        case("truncated-once", once(truncated), "lost_rotation", Dead, (TWICE, 1)).spent(Dead),
        case("huge", huge.clone(), "response_too_large", Doubt(2), (TWICE, 0)),
        case("huge-spent", processed(once(huge)), "lost_rotation", Dead, (TWICE, 1)).spent(Dead),
        case("json-array", status(200, "[1,2]", json!({})), "unreadable_200", Doubt(2), (TWICE, 0)),
        case(
            "not-utf8",
            status(200, "{\"access_token\": 7}", json!({})),
            "unreadable_200",
            Doubt(2),
            (TWICE, 0),
        ),
    ]
}

/// OAuth errors, with every status that some provider puts on them.
fn refusals() -> Vec<Case> {
    let error200 = |error: &str| json!({ "kind": "error200", "error": error });
    vec![
        case("error-200", error200("invalid_grant"), "invalid_grant", Dead, (1, 0)).live(),
        case("fault-200", error200("internal_error"), "internal_error", Doubt(1), (TWICE, 0)),
        case("grant-400", oauth(400, "invalid_grant"), "invalid_grant", Dead, (1, 0)).live(),
        case("grant-401", oauth(401, "invalid_grant"), "invalid_grant", Dead, (1, 0)).live(),
        case("grant-403", oauth(403, "invalid_grant"), "invalid_grant", Dead, (1, 0)).live(),
        case("client-401", oauth(401, "invalid_client"), "invalid_client", Failed, (1, 0)),
        case("client-400", oauth(400, "unauthorized_client"), "unauthorized_client", Failed, (1, 0)),
        case("scope-400", oauth(400, "invalid_scope"), "invalid_scope", Failed, (1, 0)),
        case("slow-down", oauth(400, "slow_down"), "slow_down", Failed, (1, 0)),
    ]
    .into_iter()
    .map(|case| if case.end == Dead { Case { then: Dead, ..case } } else { case })
    .collect()
}

/// Answers that ask for patience, and answers that do not come.
fn silence() -> Vec<Case> {
    let in_six_seconds = httpdate::fmt_http_date(wall_clock() + Duration::from_secs(6));
    let after = |value: &str| json!({ "Retry-After": value });
    let (slow, drip) = (json!({ "kind": "slow", "ms": 6000 }), json!({ "kind": "slow", "drip_ms": 60 }));
    let (lost, reset) = (json!({ "kind": "lose_reply" }), json!({ "kind": "reset_before" }));
    vec![
        case("429", status(429, "", json!({})), "http_429", Failed, (1, 0)),
        case("429-seconds", status(429, "", after("4")), "http_429", Failed, (1, 0)).waits(4),
        case("429-date", status(429, "", after(&in_six_seconds)), "http_429", Failed, (1, 0)).waits(1),
        case("500", status(500, "oops", json!({})), "http_500", Doubt(1), (TWICE, 0)),
        case("502", status(502, "", json!({})), "http_502", Doubt(1), (TWICE, 0)),
        case("503-seconds", status(503, "", after("4")), "http_503", Failed, (1, 0)).at("patient").waits(4),
        case("503-wait", status(503, "", after("4")), "http_503", Doubt(1), (1, 0)).waits(4),
        case("slow", slow.clone(), "timeout", Doubt(2), (TWICE, 1)).spent(Dead),
        case("slow-once", once(slow), "lost_rotation", Dead, (TWICE, 1)).spent(Dead),
        case("slow-body", drip, "http_400", Doubt(1), (TWICE, 1)).spent(Dead),
        case("lost", lost.clone(), "connection_lost", Doubt(2), (TWICE, 1)).spent(Dead),
        case("lost-once", once(lost.clone()), "lost_rotation", Dead, (TWICE, 1)).spent(Dead),
        case("lost-held", once(lost), "connection_lost", Held, (1, 0)).at("careful").spent(Held),
        case("reset", reset.clone(), "connection_lost", Doubt(2), (TWICE, 0)),
        case("reset-once", once(reset), "", Refreshed, (TWICE, 0)),
    ]
}

/// Good answers in bad shape.
fn shapes() -> Vec<Case> {
    let expires_in = |value: Value| json!({ "kind": "expires_in", "value": value });
    let refreshed = |name, fault| case(name, once(fault), "", Refreshed, (1, 0));
    vec![
        refreshed("expires-text", expires_in(json!("3600"))),
        refreshed("expires-float", expires_in(json!(3600.5))),
        refreshed("expires-missing", json!({ "kind": "expires_in" })),
        refreshed("expires-null", expires_in(Value::Null)),
        refreshed("expires-negative", expires_in(json!(-1))),
        refreshed("expires-words", expires_in(json!("soon"))),
        refreshed("expires-huge", expires_in(json!(1e20))),
        // The strict provider rotates all the same: what is kept here is spent, and no fault of ours.
        refreshed("no-refresh-token", json!({ "kind": "omit_refresh_token" })).spent(Refreshed),
        refreshed("no-scope", json!({ "kind": "omit_scope" })),
        refreshed("mac", json!({ "kind": "token_type", "value": "mac" })),
        refreshed("no-type", json!({ "kind": "token_type" })),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_token_endpoint_ends_as_the_protocol_says() {
    let mut cases: Vec<_> = [unreadable(), refusals(), silence(), shapes()].into_iter().flatten().collect();
    let trap = Trap::set().await;
    for (name, code) in [("redirect-302", 302), ("redirect-307", 307)] {
        let fault = json!({ "kind": "redirect", "location": trap.url, "code": code });
        let told = if code == 302 { "redirect_302" } else { "redirect_307" };
        cases.push(case(name, fault, told, Failed, (1, 0)));
    }
    cases.push(case("tls", json!(null), "tls", Failed, (0, 0)).at("tls"));
    cases.push(case("nobody", json!(null), "connect", Failed, (0, 0)).at("nobody"));

    let world = World::new(&cases).await;
    let began = epoch_secs();
    let unfinished = world.run_once();
    for case in &cases {
        world.check(case, began, &unfinished).await;
    }
    assert!(!trap.hit.load(Ordering::Relaxed), "a redirect was followed, with the secrets of the request");

    world.strict.clear_faults().await;
    world.wait_for_backoffs(&cases).await;
    let before = world.strict.stats().await.by_client;
    let unfinished = world.run_once();
    for case in cases.iter().filter(|case| case.provider != "tls" && case.provider != "nobody") {
        world.check_recovery(case, before[case.name].token_requests, &unfinished).await;
    }
}

/// A provider that misbehaves towards each client in its own way, and a table with those clients.
struct World {
    strict: StrictProvider,
    deployment: Deployment,
    store: DynamoStore,
    seeds: BTreeMap<&'static str, String>,
    canaries: Canaries,
}

impl World {
    async fn new(cases: &[Case]) -> Self {
        let strict = StrictProvider::start(&["--lifetime-secs", "7200"]).await;
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings(&strict));
        let (mut seeds, mut canaries, mut clients) = (BTreeMap::new(), Canaries::default(), Vec::new());
        for case in cases {
            strict.register(Auth::Basic(case.name, SECRET)).await;
            canaries.add_basic(case.name, SECRET);
            let refresh_token = strict.seed(case.name).await.refresh_token;
            seeds.insert(case.name, refresh_token.clone());
            clients.push(NewClient {
                id: case.name.to_owned(),
                provider: case.provider,
                client_id: case.name,
                client_secret: Some(SECRET),
                refresh_token: Some(refresh_token),
            });
            if let Value::Object(mut fault) = case.fault.clone() {
                fault.insert("client_id".to_owned(), json!(case.name));
                strict.fault(fault.into()).await;
            }
        }
        deployment.apply(&clients);
        let store = deployment.store().await;
        Self { strict, deployment, store, seeds, canaries }
    }

    /// Runs until nothing is due, with every log line there is. Returns what is said about those who failed.
    fn run_once(&self) -> BTreeMap<String, String> {
        let run = self.deployment.run_with(&["run", "--once", "--json"], &TRACE);
        let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        self.canaries.assert_absent("the output", &stdout);
        self.canaries.assert_absent("the log", &stderr);
        let result: Value = serde_json::from_str(stdout.trim()).expect("one line of JSON");
        assert_eq!(run.status.code(), Some(1), "some have failed: {result}");
        serde_json::from_value(result["unfinished"].clone()).expect("a map of texts")
    }

    async fn check(&self, case: &Case, began: i64, unfinished: &BTreeMap<String, String>) {
        let Case { name, code, end, .. } = *case;
        let Snapshot { lease, token, .. } = snapshot(&self.store, name).await;
        let (lease, token) = (lease.expect("a lease"), token.expect("a token item"));
        let stats = self.strict.stats().await.by_client[name].clone();
        assert_eq!((stats.token_requests, stats.double_redemptions), case.sends, "{name}: sends, reuses");
        self.check_tokens(case, &token).await;
        check_end(name, end, &lease, &token);
        if end == Refreshed {
            assert_eq!(unfinished.get(name), None, "{name}");
            check_shape(name, &token, began);
            return;
        }
        let outcome = match end {
            Dead => "dead",
            Held => "held",
            _ => "failed",
        };
        assert_eq!(unfinished.get(name), Some(&format!("{outcome}: {code}")), "{name}");
        assert_eq!((lease.error.as_deref(), lease.fails), (Some(code), 1), "{name}");
        let waits = lease.next_at.map_or(0, |at| at.as_secs() - began);
        assert!(waits >= i64::try_from(case.wait).expect("small"), "{name} waits {waits} s only");
    }

    async fn check_tokens(&self, case: &Case, token: &Token) {
        let name = case.name;
        let stored = token.refresh_token.as_ref().expect("a refresh token is never erased").expose();
        let kept = stored == self.seeds[name];
        let replaced = case.end == Refreshed && name != "no-refresh-token";
        assert_eq!(kept, !replaced, "{name}: kept");
        assert_eq!(token.access_token.is_some(), case.end == Refreshed, "{name}: access token");
        assert_eq!(self.strict.is_live(stored).await, case.live, "{name}: live");
    }

    /// Each lease says when it may be tried again.
    async fn wait_for_backoffs(&self, cases: &[Case]) {
        for case in cases.iter().filter(|case| case.then == Refreshed && case.end != Refreshed) {
            wait_until(Duration::from_secs(20), case.name, async || {
                let lease = snapshot(&self.store, case.name).await.lease.expect("a lease");
                lease.next_at.is_none_or(|at| at.as_secs() < epoch_secs())
            })
            .await;
        }
    }

    async fn check_recovery(&self, case: &Case, sent: u64, unfinished: &BTreeMap<String, String>) {
        let name = case.name;
        let Snapshot { lease, token, .. } = snapshot(&self.store, name).await;
        let (lease, token) = (lease.expect("a lease"), token.expect("a token item"));
        check_end(name, case.then, &lease, &token);
        let again = self.strict.stats().await.by_client[name].token_requests - sent;
        let due = matches!(case.end, Failed | Doubt(_));
        assert_eq!(again, u64::from(due), "{name}: sends of the second run");
        if case.then == Refreshed {
            assert_eq!(unfinished.get(name), None, "{name}");
            let stored = token.refresh_token.expect("a refresh token");
            let live = self.strict.is_live(stored.expose()).await;
            assert_eq!(live, case.live, "{name}: live after its recovery");
        } else if due {
            assert_eq!(unfinished.get(name).map(String::as_str), Some("dead: lost_rotation"), "{name}");
        }
    }
}

fn check_end(name: &str, end: End, lease: &Lease, token: &Token) {
    // What a lease says of older tokens is void.
    let doubt = lease.doubt_about(token.generation);
    let of = lease.of;
    let told = (&lease.state, doubt, of);
    match end {
        Refreshed => {
            assert_eq!(lease.state, State::InFlight, "{name}");
            assert_eq!(token.generation, lease.generation, "{name}: spent by its commit");
        }
        Failed => assert_eq!(told, (&State::Idle, None, None), "{name}"),
        Doubt(sends) => assert_eq!(told, (&State::Idle, Some(sends), None), "{name}"),
        Dead => assert_eq!(told, (&State::Dead, None, Some(token.generation)), "{name}"),
        Held => assert_eq!(told, (&State::Held, Some(1), Some(token.generation)), "{name}"),
    }
}

/// Lifetimes and what else an answer may leave out.
fn check_shape(name: &str, token: &Token, began: i64) {
    let lives = token.expires_at.as_secs() - began;
    let expected = match name {
        "expires-text" | "expires-float" => 3600,
        "expires-missing" | "expires-null" | "expires-negative" | "expires-words" => 55 * 60,
        "expires-huge" => 90 * 86_400,
        _ => 7200,
    };
    assert!((expected..expected + 60).contains(&lives), "{name} lives {lives} s");
    let refresh_at = token.refresh_at.expect("a plan");
    assert!(refresh_at < token.expires_at, "{name} is refreshed before it expires");
    assert!(refresh_at.as_secs() - began >= expected / 2, "{name} is not refreshed in a tight loop");
    let kind = match name {
        "mac" => Some("mac"),
        "no-type" => None,
        _ => Some("Bearer"),
    };
    assert_eq!(token.token_type.as_deref(), kind, "{name}");
    assert_eq!(token.scope.is_some(), name != "no-scope", "{name}");
    assert_eq!(token.ttl, None, "{name}: an item with a refresh token never expires");
}

fn settings(strict: &StrictProvider) -> String {
    let (url, tls) = (strict.token_url(), strict.token_url().replace("http:", "https:"));
    let nobody = format!("http://127.0.0.1:{}/token", free_port());
    let provider = |name: &str, url: &str, more: &str| {
        format!(
            "[providers.{name}]\ntoken_url = \"{url}\"\nrate_per_second = 1000.0\nburst = 1000\n\
             concurrency = 100\n{more}\n"
        )
    };
    [
        "[refresh]\nrequest_timeout = \"3s\"\ncommit_budget = \"4s\"\nlease = \"20s\"\nspread = \"0s\"\n\
         concurrency = 200\n[backoff]\nbase = \"10ms\"\nmin_interval = \"0s\"\n[breaker]\nthreshold = 1000\n"
            .to_owned(),
        provider("strict", &url, ""),
        provider("careful", &url, "in_doubt = \"hold\""),
        provider("patient", &url, "unavailable_is_unprocessed = true"),
        provider("tls", &tls, ""),
        provider("nobody", &nobody, ""),
    ]
    .concat()
}

/// A server that nobody may ask anything.
struct Trap {
    url: String,
    hit: Arc<AtomicBool>,
}

impl Trap {
    async fn set() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}/token", listener.local_addr().expect("it is bound"));
        let hit = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&hit);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                flag.store(true, Ordering::Relaxed);
            }
        });
        Self { url, hit }
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's own clock, to compare with what is stored")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn epoch_secs() -> i64 {
    let since = wall_clock().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("before the end of time")
}
