//! `/healthz` and `/readyz`.
//!
//! `/healthz` says that this process's own loops turn. It never depends on the store or on a provider: a health check
//! that failed with them would kill a task that holds tokens it could not commit yet. `/readyz` says that the task
//! does its work: the table is reached, lag and clock skew are within limits. It never depends on a provider.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::record::Phase;
use crate::scheduler::Pulse;
use crate::store::Vitals;
use crate::time::{Clock, Moment};

/// A loop that has not turned for so long is stuck: the scheduler turns every few seconds.
const STUCK: Duration = Duration::from_secs(60);

/// What the two answers are made of.
pub struct Health {
    /// Steady and wall time.
    pub clock: Arc<dyn Clock>,
    /// The scheduler's loop.
    pub scheduler: Arc<Pulse>,
    /// The discovery loop.
    pub discovery: Arc<Pulse>,
    /// What the store's answers tell.
    pub vitals: Arc<Vitals>,
    /// The scheduler may be this late.
    pub max_lag: Duration,
    /// The wall clock may be this far from the store's.
    pub max_skew: Duration,
    /// The store must have answered within this: several rounds of discovery.
    pub store_silence: Duration,
    /// Where the task stands: warm and at work, or on its way out.
    pub phase: watch::Receiver<Phase>,
    /// Until when it acquires: its heartbeat moves this on, while it can be written.
    pub permit: watch::Receiver<Moment>,
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
        unless(lag <= self.max_lag, format!("the scheduler is {lag:?} late"));
        let skew = self.vitals.skew_ms();
        let tolerable = Duration::from_millis(skew.unsigned_abs()) <= self.max_skew;
        unless(tolerable, format!("the wall clock is {skew} ms off the store's"));
        complaints
    }
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
    let app = Router::new()
        .route("/healthz", get(|State(health): State<Arc<Health>>| async move { answer(&health.liveness()) }))
        .route("/readyz", get(|State(health): State<Arc<Health>>| async move { answer(&health.readiness()) }))
        .with_state(health);
    axum::serve(listener, app).await
}

fn answer(complaints: &[Complaint]) -> (StatusCode, String) {
    if complaints.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines = complaints.iter().map(|complaint| format!("{complaint}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}
