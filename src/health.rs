//! `/healthz`, `/readyz`, `/status` and `/metrics`.
//!
//! `/healthz` says that this process's own loops turn. It never depends on the store or on a provider: a health check
//! that failed with them would kill a task that holds tokens it could not commit yet. `/readyz` says that the task
//! does its work: the table is reached, lag and clock skew are within limits. It never depends on a provider.
//! `/status` has the numbers behind both, as JSON; `/metrics` has all of them, for Prometheus.

mod server;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ecs;
use crate::metrics::{self, Exporter};
use crate::record::{Phase, Tally};
use crate::scheduler::Pulse;
use crate::store::Vitals;
use crate::time::{Clock, Moment};

/// A loop that has not turned for so long is stuck: the scheduler turns every few seconds.
const STUCK: Duration = Duration::from_secs(60);

/// What the two answers are made of.
pub struct Health {
    /// The task's name among the members.
    pub incarnation: String,
    /// Steady and wall time.
    pub clock: Arc<dyn Clock>,
    /// The scheduler's loop.
    pub scheduler: Arc<Pulse>,
    /// The discovery loop.
    pub discovery: Arc<Pulse>,
    /// What the store's answers tell.
    pub vitals: Arc<Vitals>,
    /// How much is tolerated, by now.
    pub limits: watch::Receiver<Limits>,
    /// The store must have answered within this: several rounds of discovery.
    pub store_silence: Duration,
    /// Where the task stands: warm and at work, or on its way out.
    pub phase: watch::Receiver<Phase>,
    /// Until when it acquires: its heartbeat moves this on, while it can be written.
    pub permit: watch::Receiver<Moment>,
    /// The task's account of itself, on ECS.
    pub ecs: Option<Arc<ecs::Account>>,
    /// The metrics of this process.
    pub exporter: Arc<Exporter>,
}

/// What a task that does its work may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The scheduler may be this late.
    pub max_lag: Duration,
    /// The wall clock may be this far from the store's.
    pub max_skew: Duration,
}

/// A reason for not being ready, or not healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint(String);

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Health {
    /// What is wrong with this process itself.
    pub fn liveness(&self) -> Vec<Complaint> {
        let now = self.clock.moment();
        let active = *self.phase.borrow() == Phase::Active;
        let loops = [
            ("scheduler", &self.scheduler, STUCK),
            ("discovery", &self.discovery, self.store_silence + STUCK),
        ];
        loops
            .into_iter()
            .filter(|(_, pulse, limit)| active && pulse.since_turn(now) > *limit)
            .map(|(name, ..)| Complaint(format!("the {name} loop has not turned for over a minute")))
            .collect()
    }

    /// What keeps this task from doing its work.
    pub fn readiness(&self) -> Vec<Complaint> {
        let mut complaints = self.liveness();
        let mut unless = |fine: bool, complaint: String| {
            if !fine {
                complaints.push(Complaint(complaint));
            }
        };
        let phase = *self.phase.borrow();
        unless(phase != Phase::Leaving, "shutting down".into());
        unless(phase != Phase::Joining, "the clients have not been listed yet".into());
        let heard = phase != Phase::Active || self.clock.moment() < *self.permit.borrow();
        unless(heard, "the heartbeat cannot be written: nothing is acquired".into());
        let silence = self.vitals.answered_at().map(|at| self.clock.now().since(at));
        let reached = silence.is_some_and(|silence| silence <= self.store_silence);
        unless(reached, "the table has not answered lately".into());
        let lag = self.scheduler.lag();
        unless(lag <= self.limits.borrow().max_lag, format!("the scheduler is {lag:?} late"));
        let skew = self.skew_ms();
        unless(
            self.is_skew_tolerable(),
            format!("the wall clock is {skew} ms off the store's: nothing is acquired"),
        );
        complaints
    }

    /// Sets the gauges that tell of this task as a whole.
    pub fn measure(&self) {
        let seconds = |millis: u64| Duration::from_millis(millis).as_secs_f64();
        metrics::READY.set_count(&[], usize::from(self.readiness().is_empty()));
        metrics::CLOCK_SKEW.set(&[], seconds(self.skew_ms().unsigned_abs()));
        metrics::SCHEDULER_LAG.set(&[], self.scheduler.lateness(self.clock.moment()).as_secs_f64());
        if let Some(dollars) = self.dollars_per_thousand() {
            metrics::DOLLARS_PER_THOUSAND.set(&[], dollars);
        }
    }

    fn dollars_per_thousand(&self) -> Option<f64> {
        let refreshed = u32::try_from(self.scheduler.tally().refreshed).unwrap_or(u32::MAX);
        (refreshed > 0).then(|| self.vitals.dollars() * 1000.0 / f64::from(refreshed))
    }

    /// The numbers, for people and for collectors.
    pub fn status(&self) -> serde_json::Value {
        let (now, moment) = (self.clock.now(), self.clock.moment());
        let Tally { clients, refreshed, failed, conflicts, takeovers } = self.scheduler.tally();
        let silence = self.vitals.answered_at().map(|at| millis(now.since(at)));
        let complaints: Vec<_> = self.readiness().iter().map(ToString::to_string).collect();
        serde_json::json!({
            "member": self.incarnation,
            "phase": self.phase.borrow().as_str(),
            "ready": complaints.is_empty(),
            "complaints": complaints,
            "may_acquire": self.may_acquire(moment),
            "lag_ms": millis(self.scheduler.lateness(moment)),
            "skew_ms": self.skew_ms(),
            "max_skew_ms": millis(self.limits.borrow().max_skew),
            "table_silent_ms": silence,
            "ecs": self.ecs.as_ref().map(|account| account.describe()),
            "in_flight": *self.scheduler.in_flight().borrow(),
            "clients": clients,
            "refreshed": refreshed,
            "failed": failed,
            "conflicts": conflicts,
            "takeovers": takeovers,
            "write_units": self.vitals.write_units(),
            "read_units": self.vitals.read_units(),
            "throttles": self.vitals.throttles(),
            "dollars_per_thousand_refreshes": self.dollars_per_thousand(),
        })
    }

    fn may_acquire(&self, moment: Moment) -> bool {
        moment < *self.permit.borrow() && self.is_skew_tolerable()
    }

    fn skew_ms(&self) -> i64 {
        self.vitals.skew_ms(self.clock.as_ref())
    }

    fn is_skew_tolerable(&self) -> bool {
        Duration::from_millis(self.skew_ms().unsigned_abs()) <= self.limits.borrow().max_skew
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Binds the address.
///
/// # Errors
/// Where the operating system refuses it: in use, or not an address of this machine.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers health checks until it is dropped.
///
/// # Errors
/// None in practice: accepting is tried again.
pub async fn serve(listener: TcpListener, health: Arc<Health>) -> io::Result<()> {
    let clock = Arc::clone(&health.clock);
    server::serve(listener, router(health), clock).await
}

/// Answers one connection as [`serve`] does; `is_local` where this machine alone can reach it.
pub(crate) async fn answer_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_local: bool,
    health: Arc<Health>,
) {
    let clock = Arc::clone(&health.clock);
    server::connection(stream, server::guarded(router(health), is_local), clock).await;
}

fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/healthz", get(|State(health): State<Arc<Health>>| async move { answer(&health.liveness()) }))
        .route("/readyz", get(|State(health): State<Arc<Health>>| async move { answer(&health.readiness()) }))
        .route("/metrics", get(|State(health): State<Arc<Health>>| async move { scrape(&health) }))
        .route("/status", get(|State(health): State<Arc<Health>>| async move { status(&health) }))
        .with_state(health)
}

/// Prometheus's text format: "Text-based format" in its documentation of exposition formats.
fn scrape(health: &Health) -> ([(HeaderName, &'static str); 1], String) {
    health.measure();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], health.exporter.render())
}

fn status(health: &Health) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, "application/json")], format!("{}\n", health.status()))
}

fn answer(complaints: &[Complaint]) -> (StatusCode, String) {
    if complaints.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines = complaints.iter().map(|complaint| format!("{complaint}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}
