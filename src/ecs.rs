//! What a task of Amazon ECS has that other processes do not: a name that operators know, and protection from
//! scale-in while it works.
//!
//! Nothing depends on it. An agent that refuses, throttles, or says nothing is complained about once, and tried again
//! later; refreshes never wait for it. Outside ECS none of this runs, and none of it is logged.

mod agent;

use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::agent::{Agent, AgentError, ClockDrift, Identity, Patience};
use crate::entropy::Entropy;
use crate::plan::protection::{Protection, Request, Step};
use crate::time::Clock;

/// How often the agent is asked who this task is. It may come up later than the task's containers.
const TRIES: u32 = 5;
/// After the first try that failed; doubled with each further one.
const PAUSE: Duration = Duration::from_millis(500);
/// How long letting go may take when the process ends: it runs out by itself.
const FAREWELL: Duration = Duration::from_secs(3);

/// Somebody who protects this task from scale-in.
pub trait Guard: Send + Sync + 'static {
    /// Has the task protected, or no longer. An error means "don't know".
    fn ask(&self, request: Request) -> impl Future<Output = Result<(), AgentError>> + Send;
}

/// What a task knows of itself, for whoever asks.
#[derive(Debug, Default)]
pub struct Account {
    identity: OnceLock<Identity>,
    protected: AtomicBool,
}

impl Account {
    /// The task, once the agent has told.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Whether ECS has granted protection, and it holds.
    pub fn is_protected(&self) -> bool {
        self.protected.load(Ordering::Relaxed)
    }

    /// The account as JSON. What the agent has not told is null.
    pub fn describe(&self) -> Value {
        let identity = self.identity();
        let drift = identity.and_then(|identity| identity.clock_drift.as_ref());
        json!({
            "task": identity.map(|identity| &identity.task),
            "family": identity.and_then(|identity| identity.family.as_ref()),
            "revision": identity.and_then(|identity| identity.revision.as_ref()),
            "zone": identity.and_then(|identity| identity.availability_zone.as_ref()),
            "clock_error_bound_ms": drift.and_then(|drift| drift.clock_error_bound),
            "clock_reference": drift.and_then(|drift| drift.reference_timestamp.as_ref()),
            "clock_synchronized": drift.and_then(ClockDrift::is_synchronized),
            "protected": self.is_protected(),
        })
    }
}

/// Asks the agent who this task is, and says so in one line.
pub async fn identify(agent: &Agent, account: &Account, clock: &dyn Clock) {
    for attempt in 0..TRIES {
        match agent.identity().await {
            Ok(identity) => {
                announce(&identity);
                // Nobody else sets it; the first one stays if somebody does.
                account.identity.get_or_init(|| identity);
                return;
            }
            Err(error) if attempt + 1 == TRIES => {
                warn!(
                    error = chain(&error),
                    "the ECS agent does not say which task this is: going on without"
                );
            }
            Err(error) => {
                debug!(error = chain(&error), "the ECS agent does not say yet which task this is");
                clock.sleep(PAUSE * 2_u32.pow(attempt)).await;
            }
        }
    }
}

fn announce(identity: &Identity) {
    let drift = identity.clock_drift.as_ref();
    let synchronized = drift.and_then(ClockDrift::is_synchronized);
    info!(
        task = identity.task,
        family = identity.family,
        revision = identity.revision,
        zone = identity.availability_zone,
        clock_error_bound_ms = drift.and_then(|drift| drift.clock_error_bound),
        clock_synchronized = synchronized,
        "running as an ECS task"
    );
    if synchronized == Some(false) {
        warn!(
            "the clock of this task's host is not synchronized: the table's clock decides whether that matters"
        );
    }
}

/// Keeps the task protected while anything is in flight, until `stop` is cancelled; then lets go, within seconds.
pub async fn protect(
    guard: &impl Guard,
    mut in_flight: watch::Receiver<usize>,
    account: &Account,
    clock: &dyn Clock,
    entropy: &Entropy,
    stop: &CancellationToken,
) {
    let mut protection = Protection::default();
    while !stop.is_cancelled() {
        // What began and ended between two looks is seen by its changes.
        if in_flight.has_changed().unwrap_or(false) || *in_flight.borrow() > 0 {
            in_flight.mark_unchanged();
            protection.busy(clock.moment());
        }
        account.protected.store(protection.holds(clock.moment()), Ordering::Relaxed);
        let pause = match protection.step(clock.moment()) {
            Step::Ask(request) => {
                ask(guard, request, &mut protection, clock, entropy, stop).await;
                continue;
            }
            Step::Wait(pause) => Some(clock.sleep(pause)),
            Step::Idle => None,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Ok(()) = in_flight.changed() => protection.busy(clock.moment()),
            () = optional(pause) => {}
        }
    }
    if protection.may_hold(clock.moment()) {
        farewell(guard, clock).await;
    }
    account.protected.store(false, Ordering::Relaxed);
}

async fn optional(pause: Option<crate::time::Sleep>) {
    match pause {
        Some(pause) => pause.await,
        None => std::future::pending().await,
    }
}

async fn ask(
    guard: &impl Guard,
    request: Request,
    protection: &mut Protection,
    clock: &dyn Clock,
    entropy: &Entropy,
    stop: &CancellationToken,
) {
    let (begun, had, failures) = (clock.moment(), protection.holds(clock.moment()), protection.failures());
    let answer = tokio::select! {
        biased;
        answer = guard.ask(request) => Some(answer),
        () = stop.cancelled() => None,
    };
    let granted = matches!(answer, Some(Ok(())));
    protection.answered(request, granted, begun, clock.moment(), entropy.unit());
    match (request, answer) {
        (_, Some(Err(error))) if failures == 0 => {
            warn!(
                ?request,
                error = chain(&error),
                "scale-in protection was not changed: trying again now and then"
            );
        }
        (_, Some(Err(error))) => {
            debug!(?request, error = chain(&error), "scale-in protection was not changed")
        }
        (_, Some(Ok(()))) if failures > 0 => {
            info!(?request, failures, "scale-in protection is changed at last")
        }
        (Request::Protect, Some(Ok(()))) if had => debug!("scale-in protection is renewed"),
        (Request::Protect, Some(Ok(()))) => info!("protected from scale-in: something is in flight"),
        (Request::Release, Some(Ok(()))) => info!("no longer protected from scale-in"),
        (_, None) => {}
    }
}

async fn farewell(guard: &impl Guard, clock: &dyn Clock) {
    tokio::select! {
        biased;
        answer = guard.ask(Request::Release) => match answer {
            Ok(()) => info!("no longer protected from scale-in"),
            Err(error) => debug!(error = chain(&error), "scale-in protection was not let go of: it runs out"),
        },
        () = clock.sleep(FAREWELL) => debug!("scale-in protection was not let go of in time: it runs out"),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
