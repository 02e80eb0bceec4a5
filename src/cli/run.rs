//! `perennial run`: the daemon, and the run that ends.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::{App, output};
use crate::config::{Config, StoreKind};
use crate::entropy::Entropy;
use crate::fleet::{Census, Fleet, ListingError};
use crate::health::{self, Health};
use crate::maintenance::{Calendar, Chore, Maintenance};
use crate::provider::{HttpEndpoint, HttpSettings};
use crate::refresh::{Policy, Refresher};
use crate::scheduler::{Once, Parts, Pulse, Scheduler, Settings, Summary};
use crate::shutdown::Shutdown;
use crate::store::{DynamoStore, TableError, Vitals, table};
use crate::telemetry;
use crate::time::Clock;

/// Between two tries of a store that gives no answer at start.
const START_PAUSE: Duration = Duration::from_secs(2);
/// Rounds of discovery that may fail before the table counts as out of reach.
const SILENT_ROUNDS: u32 = 4;
/// Commands between discovery and the scheduler.
const CHANNEL: usize = 1024;

/// Keep every registered client's token fresh, until SIGTERM or SIGINT.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Refresh all that is due, then end: 0 if all went well, 1 if any client failed. For cron or a scheduled task.
    #[arg(long)]
    once: bool,
    /// With --once: how long to wait for leases that another attempt holds, as in 90s or 5m.
    #[arg(long, requires = "once", default_value = "5m", value_parser = humantime::parse_duration)]
    max_wait: Duration,
    /// With --once: print the result as JSON.
    #[arg(long, requires = "once")]
    json: bool,
}

/// Everything that runs, wired together.
struct Daemon {
    store: Arc<DynamoStore>,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
    scheduler: Scheduler<DynamoStore, HttpEndpoint>,
    fleet: Fleet<DynamoStore>,
    commands: mpsc::Receiver<crate::scheduler::Command>,
}

impl Run {
    pub(crate) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let config = app.config();
        telemetry::init(&config.log)?;
        let shutdown = Shutdown::listen().context("installing signal handlers")?;
        let _lock = app.lock_for_daemon()?;
        announce(config, self.once);
        let store = Arc::new(app.store().await?);
        let daemon = Daemon::assemble(self, config, store, shutdown, app)?;
        if self.once { self.run_once(daemon, config).await } else { daemon.run(config).await }
    }

    async fn run_once(&self, daemon: Daemon, config: &Config) -> anyhow::Result<ExitCode> {
        let Daemon { store, shutdown, scheduler, mut fleet, commands, .. } = daemon;
        table::preflight(&store, config.store.shards).await.context("the table cannot be used")?;
        let (drain, now) = (shutdown.drain.clone(), shutdown.now.clone());
        let patience = config.shutdown.timeout;
        let work = tokio::spawn(async move { scheduler.run(commands, &drain, &now, patience).await });
        let census = fleet.reconcile().await;
        // Without a sender left, the scheduler ends when nothing is due; without the whole list, when nothing is in
        // flight any more: a refresh under way may hold the only copy of its tokens.
        drop(fleet);
        if census.is_err() {
            shutdown.drain.cancel();
        }
        let summary = work.await.context("the scheduler")?;
        let census = census.context("listing the clients")?;
        let interrupted = shutdown.drain.is_cancelled();
        self.print(&summary, &census, interrupted)?;
        let clean = summary.unfinished.is_empty() && census.skipped == 0 && !interrupted;
        Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn print(&self, summary: &Summary, census: &Census, interrupted: bool) -> anyhow::Result<()> {
        let Summary { refreshed, unfinished, .. } = summary;
        let (Census { clients, skipped, .. }, failed) = (census, unfinished.len());
        if self.json {
            let unfinished: BTreeMap<_, _> = unfinished.iter().map(|(id, why)| (id.as_str(), why)).collect();
            return output::line(json!({
                "clients": clients,
                "refreshed": refreshed,
                "failed": failed,
                "skipped": skipped,
                "interrupted": interrupted,
                "unfinished": unfinished,
            }));
        }
        for (id, why) in unfinished {
            output::note(format_args!("{id}: {why}"));
        }
        if interrupted {
            output::note("interrupted: what was in flight is finished, what was due is not begun");
        }
        output::line(format_args!(
            "summary clients={clients} refreshed={refreshed} failed={failed} skipped={skipped}"
        ))
    }
}

/// Says where it runs, before anything can fail.
fn announce(config: &Config, once: bool) {
    info!(version = env!("CARGO_PKG_VERSION"), profile = config.profile.as_str(), once, "starting");
    match config.store.kind {
        StoreKind::Embedded => warn!(
            path = %config.store.path.display(),
            "using the embedded store: good for trying things out, not for production; set store.table for DynamoDB"
        ),
        StoreKind::Dynamodb => info!(table = config.store.table, "using DynamoDB"),
    }
    if config.providers.is_empty() {
        warn!(
            "no provider is configured: nothing can be refreshed; add a [providers.NAME] table to config/perennial.toml"
        );
    }
}

impl Daemon {
    fn assemble(
        run: &Run,
        config: &Config,
        store: Arc<DynamoStore>,
        shutdown: Shutdown,
        app: &App,
    ) -> anyhow::Result<Self> {
        let clock = app.clock();
        let entropy = Arc::new(Entropy::from_system());
        let settings = HttpSettings { connect_timeout: config.refresh.connect_timeout };
        let endpoint = Arc::new(HttpEndpoint::new(settings, Arc::clone(&clock)).context("setting up TLS")?);
        let policy = Policy {
            timing: config.refresh.timing,
            backoff: config.backoff,
            lifetimes: config.refresh.lifetimes,
        };
        let refresher =
            Refresher::new(Arc::clone(&store), endpoint, Arc::clone(&clock), Arc::clone(&entropy), policy);
        info!(incarnation = refresher.incarnation(), "this process's name in the leases that it takes");
        let scheduler = Scheduler::new(Parts {
            refresher: Arc::new(refresher),
            store: Arc::clone(&store),
            vitals: Arc::clone(store.vitals()),
            clock: Arc::clone(&clock),
            entropy,
            providers: config.providers.clone(),
            settings: Settings {
                concurrency: config.refresh.concurrency,
                breaker: config.breaker,
                spread: config.refresh.spread,
                max_skew: config.health.max_skew,
                once: run.once.then_some(Once { max_wait: run.max_wait }),
            },
        });
        let (sender, commands) = mpsc::channel(CHANNEL);
        let fleet = Fleet::new(Arc::clone(&store), Arc::clone(&clock), config.store.shards, sender);
        Ok(Self { store, clock, shutdown, scheduler, fleet, commands })
    }

    async fn run(self, config: &Config) -> anyhow::Result<ExitCode> {
        let Self { store, clock, shutdown, scheduler, mut fleet, commands } = self;
        let health = Arc::new(health(config, &store, &clock, scheduler.pulse(), fleet.pulse()));
        let server = serve(config, &health).await?;
        if !reach_table(&store, config, &shutdown, clock.as_ref()).await? {
            return Ok(ExitCode::SUCCESS);
        }
        let (calendar, chores) = calendar(config).await?;
        let (drain, now, patience) = (shutdown.drain.clone(), shutdown.now.clone(), config.shutdown.timeout);
        let mut work = tokio::spawn(async move { scheduler.run(commands, &drain, &now, patience).await });
        warm_up(&mut fleet, &clock, &shutdown).await;
        health.warm.store(true, Ordering::Relaxed);
        let (ask, asked) = mpsc::channel(1);
        let mut discovery = tokio::spawn(fleet.watch(config.discovery.interval, asked));
        let errands = tokio::spawn(run_errands(chores, ask, Arc::clone(&store), config.store.shards));
        let ended = tokio::select! {
            () = shutdown.drain.cancelled() => None,
            done = &mut work => Some(done),
            _ = &mut discovery => {
                error!(alarm = "panic", "discovery has ended: stopping, so that this task is replaced");
                None
            }
        };
        let asked = shutdown.drain.is_cancelled();
        shutdown.drain.cancel();
        health.draining.store(true, Ordering::Relaxed);
        info!("draining: nothing new is begun, what is in flight is finished and stored");
        let summary = match ended {
            Some(done) => done,
            None => work.await,
        };
        let summary = summary.context("the scheduler has ended by itself")?;
        discovery.abort();
        errands.abort();
        server.inspect(tokio::task::JoinHandle::abort);
        calendar.stop().await;
        report(&summary, store.vitals());
        Ok(if asked && summary.abandoned == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn health(
    config: &Config,
    store: &DynamoStore,
    clock: &Arc<dyn Clock>,
    scheduler: Arc<Pulse>,
    discovery: Arc<Pulse>,
) -> Health {
    Health {
        clock: Arc::clone(clock),
        scheduler,
        discovery,
        vitals: Arc::clone(store.vitals()),
        max_lag: config.health.max_lag,
        max_skew: config.health.max_skew,
        store_silence: config.discovery.interval * SILENT_ROUNDS,
        warm: AtomicBool::new(false),
        draining: AtomicBool::new(false),
    }
}

type Server = tokio::task::JoinHandle<std::io::Result<()>>;

async fn serve(config: &Config, health: &Arc<Health>) -> anyhow::Result<Option<Server>> {
    if !config.health.enabled {
        return Ok(None);
    }
    let address = config.health.address;
    let listener = health::bind(address).await.with_context(|| {
        format!("health.address = \"{address}\" cannot be bound: give another, or set health.enabled = false")
    })?;
    let address = listener.local_addr()?;
    info!(%address, "serving /healthz and /readyz");
    Ok(Some(tokio::spawn(health::serve(listener, Arc::clone(health)))))
}

fn report(summary: &Summary, vitals: &Vitals) {
    info!(
        refreshed = summary.refreshed,
        failed = summary.failed,
        conflicts = summary.conflicts,
        write_units = vitals.write_units(),
        read_units = vitals.read_units(),
        throttles = vitals.throttles(),
        "stopped"
    );
}

/// Checks the table before anything is written to it, for as long as it gives no answer. False: asked to stop.
async fn reach_table(
    store: &DynamoStore,
    config: &Config,
    shutdown: &Shutdown,
    clock: &dyn Clock,
) -> anyhow::Result<bool> {
    loop {
        match table::preflight(store, config.store.shards).await {
            Ok(_) => return Ok(true),
            Err(TableError::Store(problem)) if problem.is_transient() => {
                warn!(%problem, "the table gives no answer: trying again");
            }
            Err(problem) => return Err(problem).context("the table cannot be used"),
        }
        tokio::select! {
            () = shutdown.drain.cancelled() => return Ok(false),
            () = clock.sleep(START_PAUSE) => {}
        }
    }
}

/// Lists every client once; the scheduler works on what it is told meanwhile.
async fn warm_up(fleet: &mut Fleet<DynamoStore>, clock: &Arc<dyn Clock>, shutdown: &Shutdown) {
    loop {
        match fleet.reconcile().await {
            Ok(census) => {
                info!(clients = census.clients, skipped = census.skipped, "warm: all clients are known");
                return;
            }
            Err(ListingError::Stopped(_)) => return,
            Err(ListingError::Store(problem)) => warn!(%problem, "could not list the clients: trying again"),
        }
        tokio::select! {
            () = shutdown.drain.cancelled() => return,
            () = clock.sleep(START_PAUSE) => {}
        }
    }
}

async fn calendar(config: &Config) -> anyhow::Result<(Maintenance, mpsc::Receiver<Chore>)> {
    let (sender, chores) = mpsc::channel(4);
    let calendar = Calendar {
        reconcile: config.maintenance.reconcile.clone(),
        table_check: config.maintenance.table_check.clone(),
    };
    let maintenance = Maintenance::start(&calendar, sender).await.context("maintenance")?;
    Ok((maintenance, chores))
}

async fn run_errands(
    mut chores: mpsc::Receiver<Chore>,
    reconcile: mpsc::Sender<()>,
    store: Arc<DynamoStore>,
    shards: u32,
) {
    while let Some(chore) = chores.recv().await {
        match chore {
            Chore::Reconcile => {
                if reconcile.try_send(()).is_err() {
                    debug!("a reconciliation is under way");
                }
            }
            Chore::TableCheck => match table::preflight(&store, shards).await {
                Ok(_) => debug!("the table is as it should be"),
                Err(problem) => error!(alarm = "table", %problem, "the table is not as it should be"),
            },
        }
    }
}
