//! The drills, one function each: what breaks, for how long, and what the daemon does meanwhile.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use tokio::task::{JoinError, JoinSet, LocalSet, spawn_local};

use crate::identity::Identity;
use crate::report::{End, Outcome, Seen};
use crate::stage::{Length, Play, Stage};
use crate::support::faketime::{self, WallClock};
use crate::support::{EXPIRED_CREDENTIALS, THROTTLED, log_lines, wait_until};

/// This machine, where nothing is wrong with names.
const HERE: &str = "127.0.0.1";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Drill {
    /// The table gives no answer.
    StoreOutage,
    /// The provider answers 503, then not at all.
    ProviderOutage,
    /// No name is resolved: neither the provider's nor the table's.
    DnsFailure,
    /// The wall clock is an hour ahead, then an hour behind.
    ClockStep,
    /// The table takes one write in ten.
    WritesThrottled,
    /// Nobody reads the log.
    LogBlocked,
    /// The credentials of the task's role are renewed, then expire, then are renewed again.
    CredentialsExpired,
}

impl Drill {
    pub(crate) const ALL: [Self; 7] = [
        Self::StoreOutage,
        Self::ProviderOutage,
        Self::DnsFailure,
        Self::ClockStep,
        Self::WritesThrottled,
        Self::LogBlocked,
        Self::CredentialsExpired,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::StoreOutage => "store_outage",
            Self::ProviderOutage => "provider_outage",
            Self::DnsFailure => "dns_failure",
            Self::ClockStep => "clock_step",
            Self::WritesThrottled => "writes_throttled",
            Self::LogBlocked => "log_blocked",
            Self::CredentialsExpired => "credentials_expired",
        }
    }

    /// What this machine lacks for it.
    fn missing(self) -> Option<&'static str> {
        match self {
            Self::ClockStep if faketime::library().is_none() => {
                Some("no libfaketime: scripts/parts.sh fetches it on Debian and Ubuntu")
            }
            Self::DnsFailure if !may_unshare() => Some("`unshare --mount` is not permitted here"),
            _ => None,
        }
    }

    async fn rehearse(self, length: Length) -> End {
        let outcome = match self.missing() {
            Some(missing) => Outcome::NotRun(missing.to_owned()),
            None => {
                let seen = spawn_local(self.run(length)).await;
                seen.map_or_else(|error| Outcome::Failed(why(error)), Outcome::Passed)
            }
        };
        End { drill: self.name(), outcome }
    }

    async fn run(self, length: Length) -> Seen {
        match self {
            Self::StoreOutage => store_outage(length).await,
            Self::ProviderOutage => provider_outage(length).await,
            Self::DnsFailure => dns_failure(length).await,
            Self::ClockStep => clock_step(length).await,
            Self::WritesThrottled => writes_throttled(length).await,
            Self::LogBlocked => log_blocked(length).await,
            Self::CredentialsExpired => credentials_expired(length).await,
        }
    }
}

/// All of these at once; tells each end as it comes.
pub(crate) async fn all(drills: &[Drill], length: Length, mut tell: impl FnMut(&End)) -> Vec<End> {
    let mut ends = Vec::new();
    let running = async {
        let mut running = JoinSet::new();
        for drill in drills.iter().copied() {
            running.spawn_local(async move { drill.rehearse(length).await });
        }
        while let Some(end) = running.join_next().await {
            let end = end.expect("a drill's panic is its failure");
            tell(&end);
            ends.push(end);
        }
    };
    LocalSet::new().run_until(running).await;
    ends
}

fn why(error: JoinError) -> String {
    let panic = error.into_panic();
    let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
    literal.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Answers are on their way when the table goes. They are held and stored once it is back; what comes due meanwhile is
/// not asked for, so no token is in doubt.
async fn store_outage(length: Length) -> Seen {
    let stage = Stage::set(length, HERE, |_| None).await;
    let mut play = stage.begin(&[], &[]).await;
    let before = stage.provider.stats().await.token_requests;
    // Long enough that none is here and stored before the table goes.
    stage.provider.fault(json!({"kind": "slow", "ms": 1000})).await;
    stage.deployment.ok(&["clients", "refresh", "client-0", "client-1", "client-2"]);
    play.until("they are in flight", async || stage.provider.stats().await.token_requests > before).await;
    stage.to_store.close();
    stage.provider.clear_faults().await;
    play.trouble(length.seconds(16, 600)).await;
    let during = stage.provider.stats().await.token_requests;
    assert!(during <= before + 3, "{} requests without a table", during - before);
    assert_eq!(play.status("/readyz").await, 503, "it does not do its work");
    assert_eq!(play.status("/healthz").await, 200, "nobody should kill it");
    let held = play.number("perennial_uncommitted_answers", &[]).await;
    assert!(held > 0, "no answer was held, so the drill has not shown what it is for");
    stage.to_store.mend();
    play.end(vec![("held_answers", held)]).await
}

/// Half of it answers of 503, half refused connections. The breaker lets one probe through at a time, and what waits is
/// caught up with when the provider is back.
async fn provider_outage(length: Length) -> Seen {
    let stage = Stage::set(length, HERE, |_| None).await;
    let mut play = stage.begin(&[], &[]).await;
    let half = length.seconds(30, 900);
    stage.provider.fault(json!({"kind": "status", "code": 503})).await;
    play.trouble(half).await;
    let asked = stage.provider.stats().await.faults_met;
    stage.provider.clear_faults().await;
    stage.to_provider.close();
    play.trouble(half).await;
    assert_eq!(play.status("/readyz").await, 200, "its own work is not the provider's");
    stage.to_provider.mend();
    play.end(vec![("requests_in_first_half", asked)]).await
}

/// The daemon has a view of its own of /etc/hosts, and no name server. A name that is not found is a request that was
/// not sent: nothing is in doubt.
async fn dns_failure(length: Length) -> Seen {
    let stage = Stage::set(length, "localhost", |_| None).await;
    let files = stage.deployment.path().to_owned();
    let (hosts, nameserver) = (files.join("hosts"), files.join("resolv.conf"));
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("the folder is writable");
    // Nobody answers there.
    fs::write(&nameserver, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        .expect("the folder is writable");
    let view = format!(
        "mount --bind {} /etc/hosts && mount --bind {} /etc/resolv.conf && exec \"$@\"",
        hosts.display(),
        nameserver.display()
    );
    let store = format!("http://localhost:{}", stage.to_store.port());
    let by = ["unshare", "--map-root-user", "--mount", "sh", "-c", &view, "view"];
    let mut play = stage.begin(&by, &[("PERENNIAL__STORE__ENDPOINT", &store)]).await;
    // In place: the daemon sees this file, not its name.
    fs::write(&hosts, "\n").expect("the folder is writable");
    play.trouble(length.seconds(16, 600)).await;
    let failures = failures(&play, "dns");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("the folder is writable");
    play.end(vec![("refreshes_without_a_name", failures)]).await
}

/// So many refreshes that failed with this code.
fn failures(play: &Play<'_>, code: &str) -> u64 {
    let log = log_lines(&play.daemon.errors());
    log.iter().filter(|line| line["code"] == code).count() as u64
}

fn may_unshare() -> bool {
    let tried = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).output();
    tried.is_ok_and(|output| output.status.success()) && Path::new("/etc/hosts").exists()
}

/// While the clock is off, nothing is acquired; an hour's step makes no token look due or fresh that is not.
async fn clock_step(length: Length) -> Seen {
    let stage = Stage::set(length, HERE, |_| None).await;
    let clock = WallClock::new(&stage.deployment.path().join("clock")).expect("there is a library");
    let mut play = stage.begin(&[], &clock.variables()).await;
    let half = length.seconds(10, 300);
    for seconds in [3600, -3600] {
        clock.step(seconds);
        play.until("it is not ready", async || play.status("/readyz").await == 503).await;
        let before = stage.provider.stats().await.granted;
        play.trouble(half).await;
        assert_eq!(
            stage.provider.stats().await.granted,
            before,
            "refreshed by a clock that is off by {seconds} s"
        );
        assert_eq!(play.status("/healthz").await, 200, "nobody should kill it");
        clock.step(0);
        play.until("it is ready", async || play.status("/readyz").await == 200).await;
    }
    play.end(Vec::new()).await
}

/// Nine writes of ten are refused. Refreshes come late, and each answer is stored in the end.
async fn writes_throttled(length: Length) -> Seen {
    let throttled = Arc::new(AtomicBool::new(false));
    let on = Arc::clone(&throttled);
    let stage = Stage::set(length, HERE, move |call| {
        (call.writes() && on.load(Ordering::Relaxed) && rand::random_ratio(9, 10)).then_some(THROTTLED)
    })
    .await;
    let mut play = stage.begin(&[], &[]).await;
    throttled.store(true, Ordering::Relaxed);
    play.trouble(length.seconds(20, 600)).await;
    let throttles = play.number("perennial_store_throttles_total", &[]).await;
    assert!(throttles > 0, "nothing was throttled");
    throttled.store(false, Ordering::Relaxed);
    play.end(vec![("throttles", throttles)]).await
}

/// Both streams go into one pipe that is full and stays so, as under a log driver that hangs. Lines are dropped and
/// counted; everything else goes on, a drain, too.
async fn log_blocked(length: Length) -> Seen {
    let stage = Stage::set(length, HERE, |_| None).await;
    let pipe = stage.deployment.path().join("log");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    // Open at both ends, so that neither opening waits, and never read from.
    let _held = OpenOptions::new().read(true).write(true).open(&pipe).expect("our own pipe");
    // What it leaves open tells the drill when it has ended.
    let into = format!("exec 3>&1; exec \"$@\" >{0} 2>{0}", pipe.display());
    let loud = [("PERENNIAL__LOG__FILTER", "debug"), ("PERENNIAL__METRICS__EMF", "true")];
    let loud = [&loud[..], &[("PERENNIAL__METRICS__EMF_INTERVAL", "1s")]].concat();
    let mut play = stage.begin(&["sh", "-c", &into, "into"], &loud).await;
    // Every one says something.
    let bound = length.seconds(60, 120);
    let filling = async || {
        stage.deployment.ok(&["clients", "refresh", "client-0"]);
        play.number("perennial_log_lines_dropped_total", &[]).await > 0
    };
    wait_until(bound, "the pipe is full", filling).await;
    play.trouble(length.seconds(20, 600)).await;
    let dropped = play.number("perennial_log_lines_dropped_total", &[]).await;
    assert_eq!(play.status("/readyz").await, 200, "it does its work");
    play.end(vec![("lines_dropped", dropped)]).await
}

/// Renewals pass unnoticed. Without a new one the table refuses everything; with the next the daemon goes on.
async fn credentials_expired(length: Length) -> Seen {
    let life = length.seconds(20, 360);
    let identity = Identity::start(life).await;
    let (issuer, refused) = (identity.issuer(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&refused);
    let stage = Stage::set(length, HERE, move |call| {
        let expired = !issuer.accepts(call.header("authorization"));
        count.fetch_add(expired.into(), Ordering::Relaxed);
        expired.then_some(EXPIRED_CREDENTIALS)
    })
    .await;
    let mut play = stage.begin(&[], &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", identity.url())]).await;
    play.until("they are renewed", async || identity.given() > 1).await;
    assert_eq!(refused.load(Ordering::Relaxed), 0, "a renewal was noticed");
    let given = identity.given() as u64;
    identity.fail(true);
    play.until("they have expired", async || play.status("/readyz").await == 503).await;
    play.trouble(length.seconds(16, 600)).await;
    assert_eq!(play.status("/healthz").await, 200, "nobody should kill it");
    identity.fail(false);
    play.end(vec![("renewals_before", given)]).await
}
