//! Each alarm of the template, brought about against a running daemon. CloudWatch's part is played by
//! `support/alarm.rs`, over the lines that the daemon writes; thresholds and periods are the template's, a minute is two
//! seconds.
//!
//! `TableThrottleEvents` is not here: its metric is DynamoDB's own.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use support::alarm::Watch;
use support::{
    ACCESS_DENIED, Auth, Deployment, DynamoLocal, Front, Process, Proxy, Refusal, StrictProvider, THROTTLED,
    snapshot, wait_until,
};

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(30);
const CLIENTS: usize = 8;
const METRICS: [(&str, &str); 2] =
    [("PERENNIAL__METRICS__EMF", "true"), ("PERENNIAL__METRICS__EMF_INTERVAL", "1s")];

/// A daemon that has nothing to complain of, watched.
struct World {
    provider: StrictProvider,
    deployment: Deployment,
    daemon: Process,
    watch: Watch,
}

impl World {
    /// `store` is where the daemon finds its table; `more` is added to the provider's settings.
    async fn quiet(store: &str, arguments: &[&str], more: &str) -> Self {
        let provider = StrictProvider::start(arguments).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let settings = format!(
            "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
             [refresh]\nspread = \"0s\"\nlifetime_min = \"1s\"\n\
             [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n{more}\n",
            provider.token_url()
        );
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        deployment.register(&provider, SECRET, (0..CLIENTS).map(|number| format!("client-{number}"))).await;
        let daemon =
            deployment.daemon_with(&[&METRICS, &[("PERENNIAL__STORE__ENDPOINT", store)][..]].concat()).await;
        let mut world = Self { provider, deployment, daemon, watch: Watch::begin() };
        world.watch.sees_no_alarm(&mut world.daemon).await;
        wait_until(SOON, "all are refreshed", async || {
            world.provider.stats().await.granted >= u64::try_from(CLIENTS).expect("few")
        })
        .await;
        world
    }

    async fn over_dynamo(more: &str) -> Self {
        Self::quiet(DynamoLocal::shared().await.endpoint(), &[], more).await
    }

    /// A daemon before a table that refuses writes in this way from when the switch is on.
    async fn before_refusals(refusal: Refusal) -> (Self, Arc<AtomicBool>, Front) {
        let switch = Arc::new(AtomicBool::new(false));
        let on = Arc::clone(&switch);
        let refuse = move |call: &support::Call| {
            (call.writes() && on.load(Ordering::Relaxed)).then(|| refusal.clone())
        };
        let front = Front::before(DynamoLocal::shared().await.endpoint(), refuse).await;
        (Self::quiet(front.url(), &[], "").await, switch, front)
    }

    async fn until_on(&mut self, id: &str) {
        self.watch.until_on(&mut self.daemon, id).await;
    }

    async fn until_off(&mut self, id: &str) {
        self.watch.until_off(&mut self.daemon, id).await;
    }

    fn order(&self, clients: usize) {
        for number in 0..clients {
            self.deployment.ok(&["clients", "refresh", &format!("client-{number}")]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_throttling() {
    let (mut world, throttled, _front) = World::before_refusals(THROTTLED).await;
    throttled.store(true, Ordering::Relaxed);
    world.until_on("WriteThrottling").await;
    throttled.store(false, Ordering::Relaxed);
    world.until_off("WriteThrottling").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_writes() {
    let (mut world, denied, _front) = World::before_refusals(ACCESS_DENIED).await;
    denied.store(true, Ordering::Relaxed);
    world.until_on("FailedWrites").await;
    denied.store(false, Ordering::Relaxed);
    world.until_off("FailedWrites").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uncommitted_answers() {
    let proxy = Proxy::before(DynamoLocal::shared().await.endpoint()).await;
    let mut world = World::quiet(proxy.url(), &["--latency-ms", "1500"], "").await;
    let before = world.provider.stats().await.token_requests;
    world.order(1);
    wait_until(SOON, "it is in flight", async || world.provider.stats().await.token_requests > before).await;
    proxy.cut();
    world.until_on("UncommittedAnswers").await;
    proxy.mend();
    world.until_off("UncommittedAnswers").await;
    let token = snapshot(&world.deployment.store().await, "client-0").await.token.expect("a token");
    assert!(
        world.provider.is_live(token.refresh_token.expect("it rotates").expose()).await,
        "nothing is lost"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_failures() {
    let mut world = World::over_dynamo("").await;
    world.provider.fault(json!({"kind": "status", "code": 503})).await;
    world.order(CLIENTS);
    world.until_on("RefreshFailures").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_about_to_expire_and_expired() {
    let mut world = World::over_dynamo("").await;
    world.provider.fault(json!({"kind": "expires_in", "value": 30, "times": 1})).await;
    let before = world.provider.stats().await.granted;
    world.order(1);
    wait_until(SOON, "its token lives for seconds", async || world.provider.stats().await.granted > before)
        .await;
    world.provider.fault(json!({"kind": "status", "code": 503})).await;
    world.until_on("TokensAboutToExpire").await;
    world.until_on("TokensExpired").await;
    world.provider.clear_faults().await;
    world.until_off("TokensExpired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_grants() {
    let mut world = World::over_dynamo("").await;
    let token = snapshot(&world.deployment.store().await, "client-0").await.token.expect("a token");
    world.provider.revoke(token.refresh_token.expect("it rotates").expose()).await;
    world.order(1);
    world.until_on("DeadGrants").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_doubt_holds() {
    let mut world = World::over_dynamo("in_doubt = \"hold\"").await;
    world.provider.fault(json!({"kind": "lose_reply", "times": 1})).await;
    world.order(1);
    world.until_on("InDoubtHolds").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_ready_task() {
    let proxy = Proxy::before(DynamoLocal::shared().await.endpoint()).await;
    let mut world = World::quiet(proxy.url(), &[], "").await;
    proxy.cut();
    world.until_on("NoReadyTask").await;
    proxy.mend();
    world.until_off("NoReadyTask").await;
    // A task that is gone tells nothing, and that is an alarm, too.
    world.daemon.signal("KILL");
    world.until_on("NoReadyTask").await;
}

/// While the clock is off, nothing is acquired: lag grows by the second, and the line is a minute of real time away.
#[tokio::test(flavor = "multi_thread")]
async fn clock_skew_and_scheduler_lag() {
    let front = Front::before(DynamoLocal::shared().await.endpoint(), |_| None).await;
    let mut world = World::quiet(front.url(), &[], "").await;
    front.be_ahead(45);
    world.until_on("ClockSkew").await;
    world.until_on("SchedulerLag").await;
    front.be_ahead(0);
    world.until_off("ClockSkew").await;
    world.until_off("SchedulerLag").await;
}

/// Whoever adds an alarm to the template tries it here.
#[test]
fn every_alarm_of_the_template_is_tried() {
    let source = include_str!("alarms.rs");
    for id in Watch::begin().ids() {
        assert!(source.contains(&format!("until_on(\"{id}\")")), "{id} is not tried");
    }
}
