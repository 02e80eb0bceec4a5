//! One task of the fleet, from joining to leaving.
//!
//! `membership` tells the others that this task lives and learns which shards are its own; `listing` finds the
//! clients of those shards and tells the scheduler; the [scheduler](crate::scheduler) refreshes them. A task is
//! JOINING until it knows the clients of the shards that will be its own, ACTIVE while it works, and LEAVING from the
//! moment it is asked to stop: the others take its shards at their next look, while it finishes and stores what it
//! has begun.
//!
//! The daemon and the simulated fleet of the tests run this same code.

mod listing;
mod membership;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

pub use self::listing::{Census, Listing, ListingError, Stopped};
use self::membership::Membership;
pub use crate::plan::membership::Rules;
use crate::provider::TokenEndpoint;
pub use crate::record::Phase;
use crate::scheduler::{Command, Parts, Pulse, Scheduler, Summary, Tuning};
use crate::spill::{self, Spill};
use crate::store::{Roster, Store};
use crate::time::{Clock, Moment};

/// Commands between discovery and the scheduler.
const CHANNEL: usize = 1024;
/// How long taking leave may take: the others have known for a while, and the item goes by itself.
const FAREWELL: Duration = Duration::from_secs(3);

/// How a task takes its part.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Virtual shards of the table.
    pub shards: u32,
    /// How often the table is asked for new, changed and removed clients.
    pub discovery: Duration,
    /// Heartbeats.
    pub rules: Rules,
    /// How often the spill is replayed, where there is one.
    pub replay: Duration,
}

/// One task.
pub struct Task<S, E> {
    scheduler: Scheduler<S, E>,
    commands: mpsc::Receiver<Command>,
    listing: Listing<S>,
    membership: Membership<S>,
    phase: Arc<watch::Sender<Phase>>,
    permit: watch::Receiver<Moment>,
    share: watch::Receiver<Option<BTreeSet<u32>>>,
    spill: Arc<Spill>,
    settings: Settings,
}

/// How a task ended.
#[derive(Debug)]
pub struct Ending {
    /// What it has done; an error where its scheduler panicked.
    pub summary: Result<Summary, JoinError>,
    /// Whether it was asked to stop. If not, a part of it has failed.
    pub asked: bool,
}

impl<S: Store + Roster, E: TokenEndpoint> Task<S, E> {
    /// Wires a task. Nothing runs yet.
    pub fn new(parts: Parts<S, E>, settings: Settings) -> Self {
        let (store, clock) = (Arc::clone(&parts.store), Arc::clone(&parts.clock));
        let spill = Arc::clone(parts.refresher.spill());
        let (incarnation, vitals) = (parts.refresher.incarnation().to_owned(), Arc::clone(&parts.vitals));
        let (phase, _) = watch::channel(Phase::Joining);
        let (permit, permitted) = watch::channel(Moment::default());
        let (share, shared) = watch::channel(None);
        let (sender, commands) = mpsc::channel(CHANNEL);
        let scheduler = Scheduler::new(parts, permitted.clone());
        let membership = Membership {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            incarnation,
            rules: settings.rules,
            shards: settings.shards,
            pulse: scheduler.pulse(),
            vitals,
            share,
            permit,
        };
        Self {
            scheduler,
            commands,
            listing: Listing::new(store, clock, sender),
            membership,
            phase: Arc::new(phase),
            permit: permitted,
            share: shared,
            spill,
            settings,
        }
    }

    /// The name of this task among the members, and in the leases that it takes.
    pub fn incarnation(&self) -> &str {
        &self.membership.incarnation
    }

    /// Where the task stands, for health checks.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Until when the task acquires, for health checks.
    pub fn permit(&self) -> watch::Receiver<Moment> {
        self.permit.clone()
    }

    /// The scheduler's account of itself.
    pub fn scheduler(&self) -> Arc<Pulse> {
        self.scheduler.pulse()
    }

    /// Where the scheduler takes orders while it runs.
    pub fn ordering(&self) -> Arc<watch::Sender<Option<Arc<Tuning>>>> {
        self.scheduler.ordering()
    }

    /// Discovery's account of itself.
    pub fn discovery(&self) -> Arc<Pulse> {
        self.listing.pulse()
    }

    /// Takes part until `drain` is cancelled; then leaves: what is in flight is waited for, at most for `patience` and
    /// not beyond `now`. A message in `reconcile` asks for a full listing. Dropped, it stops at once, as a crash does.
    pub async fn run(
        self,
        reconcile: mpsc::Receiver<()>,
        drain: &CancellationToken,
        now: &CancellationToken,
        patience: Duration,
    ) -> Ending {
        let Self { scheduler, commands, listing, membership, phase, share, spill, settings, .. } = self;
        let (store, clock) = (Arc::clone(&membership.store), Arc::clone(&membership.clock));
        let incarnation = membership.incarnation.clone();
        let mut jobs = JoinSet::new();
        let (standing, joined) = (phase.subscribe(), Arc::clone(&phase));
        let leave = CancellationToken::new();
        let leaving = leave.clone();
        jobs.spawn(async move {
            membership.run(standing, &leaving).await;
            None
        });
        let discovery = jobs.spawn(async move {
            listing.watch(settings.discovery, share, reconcile, || activate(&joined)).await;
            None
        });
        let replays = spill.is_configured().then(|| {
            let (store, clock) = (Arc::clone(&store), Arc::clone(&clock));
            jobs.spawn(async move {
                replay_now_and_then(&spill, store.as_ref(), clock.as_ref(), settings.replay).await;
                None
            })
        });
        let (draining, at_once) = (drain.clone(), now.clone());
        let work =
            jobs.spawn(async move { Some(scheduler.run(commands, &draining, &at_once, patience).await) });
        let work = work.id();
        let ended = tokio::select! {
            biased;
            () = drain.cancelled() => None,
            ended = jobs.join_next_with_id() => ended,
        };
        let asked = drain.is_cancelled();
        if !asked {
            error!(alarm = "panic", "a part of this task has ended: stopping, so that the task is replaced");
        }
        phase.send_replace(Phase::Leaving);
        drain.cancel();
        discovery.abort();
        info!("draining: nothing new is begun, what is in flight is finished and stored");
        let summary = last_word(&mut jobs, work, ended).await;
        replays.inspect(AbortHandle::abort);
        leave.cancel();
        let farewell = async {
            // The last beat is written to its end: cut off, it might land after the farewell.
            while jobs.join_next().await.is_some() {}
            store.apply(&membership::farewell(&incarnation)).await
        };
        tokio::select! {
            biased;
            () = now.cancelled() => {}
            () = clock.sleep(FAREWELL) => debug!("left without a farewell: the table gives no answer"),
            said = farewell => debug!(?said, "left the fleet"),
        }
        Ending { summary, asked }
    }
}

/// Joining is over once the clients are known; leaving stays leaving.
fn activate(phase: &watch::Sender<Phase>) {
    let changed = phase.send_if_modified(|phase| {
        *phase == Phase::Joining && std::mem::replace(phase, Phase::Active) == Phase::Joining
    });
    if changed {
        info!("warm: all clients are known of the shards that are this task's");
    }
}

/// Brings what other tasks, or this one before its restart, could not store. Whoever cares for the client finds it at
/// its next look.
async fn replay_now_and_then<S: Store>(spill: &Spill, store: &S, clock: &dyn Clock, interval: Duration) {
    loop {
        if let (_, Some(error)) = spill::replay_all(spill, store).await {
            error!(alarm = "spill_unreadable", %error, "the spill does not answer: trying again");
        }
        clock.sleep(interval).await;
    }
}

/// Waits for the scheduler, whatever else ends before it.
async fn last_word(
    jobs: &mut JoinSet<Option<Summary>>,
    work: Id,
    first: Option<Result<(Id, Option<Summary>), JoinError>>,
) -> Result<Summary, JoinError> {
    let mut ended = first;
    loop {
        match ended {
            Some(Ok((_, Some(summary)))) => return Ok(summary),
            Some(Err(error)) if error.id() == work => return Err(error),
            _ => ended = jobs.join_next_with_id().await,
        }
    }
}
