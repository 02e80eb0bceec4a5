//! `perennial run`: the daemon, and the run that ends.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use super::ecs::Ecs;
use super::meter::Meter;
use super::reload::Reloads;
use super::{App, output, secret, shared_cache, spill};
use crate::config::{Config, StoreKind};
use crate::ecs::Account;
use crate::entropy::Entropy;
use crate::fleet::{self, Census, Listing, Task};
use crate::health::{self, Health, Limits};
use crate::maintenance::{Calendar, Chore, Maintenance, Overdue};
use crate::metrics;
use crate::provider::{HttpEndpoint, HttpSettings};
use crate::record::Tally;
use crate::refresh::{Policy, Refresher};
use crate::reload::hangups;
use crate::scheduler::{Once, Parts, Scheduler, Settings, Summary};
use crate::seclusion;
use crate::shutdown::Shutdown;
use crate::spill::{Spill, replay_all};
use crate::store::{DynamoVault, Role, TableError, Vitals, table};
use crate::telemetry::{self, Logs};
use crate::time::{Clock, Moment};

/// Between two tries of a store that gives no answer at start.
const START_PAUSE: Duration = Duration::from_secs(2);
/// Rounds of discovery that may fail before the table counts as out of reach.
const SILENT_ROUNDS: u32 = 4;
/// How often the calendar is asked what it forgot.
const OVERDUE_CHECK: Duration = Duration::from_secs(30);
/// How often the clients are counted for the metrics.
const CENSUS: Duration = Duration::from_secs(10);
/// Commands between discovery and the scheduler of a run that ends.
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

impl Run {
    pub(crate) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let config = app.config();
        let Logs { lines, filter } = telemetry::init(&config.log)?;
        if let Err(error) = seclusion::seclude() {
            warn!(%error, "core dumps and /proc/PID/environ stay open: the operating system refuses to close them");
        }
        let meter = Meter::install(&config.metrics, lines)?;
        let shutdown = Shutdown::listen().context("installing signal handlers")?;
        // Of a run that ends nothing is read again, but it must not be ended by a terminal that goes away.
        let hangups = hangups().context("installing the handler of SIGHUP")?;
        let _lock = app.lock_for_daemon()?;
        announce(config, self.once);
        for file in app.loaded.exposed_files() {
            warn!(file = %file.display(), "it holds a secret, and every user of this machine may read it: chmod o-r");
        }
        let ecs = Ecs::detect(app);
        let (store, publishing) = shared_cache::published(app, app.store_for(Role::Daemon).await?)?;
        let spill = spill::configured(app).await?;
        spill::check(&spill).await;
        let parts = self.parts(config, Arc::new(store), Arc::new(spill), app)?;
        let ended = if self.once {
            self.run_once(parts, config, shutdown, meter).await
        } else {
            let reloads = Reloads::new(app, filter, hangups);
            Box::pin(daemon(parts, config, shutdown, meter, ecs, reloads)).await
        };
        if let Some(publishing) = publishing {
            publishing.finish().await;
        }
        ended
    }

    fn parts(
        &self,
        config: &Config,
        store: Arc<DynamoVault>,
        spill: Arc<Spill>,
        app: &App,
    ) -> anyhow::Result<Parts<DynamoVault, HttpEndpoint>> {
        let clock = app.clock();
        let entropy = Arc::new(Entropy::from_system());
        let settings = HttpSettings { connect_timeout: config.refresh.connect_timeout };
        for provider in config.providers.values() {
            HttpEndpoint::check(provider).with_context(|| format!("providers.{}", provider.name))?;
        }
        let endpoint = Arc::new(HttpEndpoint::new(settings, Arc::clone(&clock)));
        let policy = Policy {
            timing: config.refresh.timing,
            backoff: config.backoff,
            lifetimes: config.refresh.lifetimes,
        };
        let secrets = secret::follower(app, Arc::clone(&entropy));
        let refresher =
            Refresher::new(Arc::clone(&store), endpoint, Arc::clone(&clock), Arc::clone(&entropy), policy);
        info!(incarnation = refresher.incarnation(), "this process's name in the leases that it takes");
        Ok(Parts {
            refresher: Arc::new(refresher.with_spill(spill).with_secrets(Arc::new(secrets))),
            vitals: Arc::clone(store.vitals()),
            store,
            clock,
            entropy,
            providers: config.providers.clone(),
            settings: Settings {
                concurrency: config.refresh.concurrency,
                breaker: config.breaker,
                spread: config.refresh.spread,
                max_skew: config.health.max_skew,
                census: Some(CENSUS),
                once: self.once.then_some(Once { max_wait: self.max_wait }),
            },
        })
    }

    /// No member of the fleet: it takes whatever is due of all shards, whoever else may be at work.
    async fn run_once(
        &self,
        parts: Parts<DynamoVault, HttpEndpoint>,
        config: &Config,
        shutdown: Shutdown,
        meter: Meter,
    ) -> anyhow::Result<ExitCode> {
        let shards = config.store.shards;
        table::preflight(parts.store.raw(), shards).await.context("the table cannot be used")?;
        if let (_, Some(error)) = replay_all(parts.refresher.spill(), parts.store.as_ref()).await {
            error!(alarm = "spill_unreadable", %error, "the spill does not answer");
        }
        let (sender, commands) = mpsc::channel(CHANNEL);
        let mut listing = Listing::new(Arc::clone(&parts.store), Arc::clone(&parts.clock), sender);
        let (_, permit) = watch::channel(Moment::MAX);
        let (store, clock) = (Arc::clone(&parts.store), Arc::clone(&parts.clock));
        let metering = meter.start(Arc::clone(&clock), || {});
        let scheduler = Scheduler::new(parts, permit);
        let (drain, now) = (shutdown.drain.clone(), shutdown.now.clone());
        let patience = config.shutdown.timeout;
        let work = tokio::spawn(async move { scheduler.run(commands, &drain, &now, patience).await });
        let census = listing.care_for(&(0..shards).collect()).await;
        // Without a sender left, the scheduler ends when nothing is due; without the whole list, when nothing is in
        // flight any more: a refresh under way may hold the only copy of its tokens.
        drop(listing);
        if census.is_err() {
            shutdown.drain.cancel();
        }
        let summary = work.await.context("the scheduler")?;
        let census = census.context("listing the clients")?;
        let interrupted = shutdown.drain.is_cancelled();
        metering.abort();
        let skew = Duration::from_millis(store.vitals().skew_ms(clock.as_ref()).unsigned_abs());
        metrics::CLOCK_SKEW.set(&[], skew.as_secs_f64());
        meter.finish();
        self.print(&summary, &census, interrupted)?;
        let clean = summary.unfinished.is_empty() && census.skipped == 0 && !interrupted;
        Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn print(&self, summary: &Summary, census: &Census, interrupted: bool) -> anyhow::Result<()> {
        let Summary { tally: Tally { refreshed, .. }, unfinished, .. } = summary;
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

async fn daemon(
    parts: Parts<DynamoVault, HttpEndpoint>,
    config: &Config,
    shutdown: Shutdown,
    meter: Meter,
    ecs: Option<Ecs>,
    reloads: Reloads,
) -> anyhow::Result<ExitCode> {
    let (store, clock) = (Arc::clone(&parts.store), Arc::clone(&parts.clock));
    let settings = fleet::Settings {
        shards: config.store.shards,
        discovery: config.discovery.interval,
        rules: config.fleet,
        replay: config.spill.replay_interval,
    };
    let task = Task::new(parts, settings);
    let account = ecs.as_ref().map(Ecs::account);
    let health = Arc::new(health(config, &store, &clock, &task, &meter, account, reloads.limits()));
    let server = serve(config, &health).await?;
    let metering = meter.start(Arc::clone(&clock), move || health.measure());
    if !reach_table(&store, config, &shutdown, clock.as_ref()).await? {
        return Ok(ExitCode::SUCCESS);
    }
    let (reconcile, asked) = mpsc::channel(1);
    let (calendar, chores, overdue) = calendar(config, clock.as_ref()).await?;
    let errands =
        Errands { chores, overdue, reconcile, store: Arc::clone(&store), shards: config.store.shards };
    let reloading = reloads.start(task.ordering(), Arc::clone(&clock));
    let errands = tokio::spawn(errands.run(clock));
    let protection = ecs.and_then(|ecs| ecs.protect(&task.scheduler()));
    let ending = task.run(asked, &shutdown.drain, &shutdown.now, config.shutdown.timeout).await;
    reloading.abort();
    if let Some(protection) = protection {
        protection.release().await;
    }
    errands.abort();
    metering.abort();
    server.inspect(tokio::task::JoinHandle::abort);
    calendar.stop().await;
    let summary = ending.summary.context("the scheduler has ended by itself")?;
    report(&summary, store.vitals());
    meter.finish();
    Ok(if ending.asked && summary.abandoned == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn health(
    config: &Config,
    store: &DynamoVault,
    clock: &Arc<dyn Clock>,
    task: &Task<DynamoVault, HttpEndpoint>,
    meter: &Meter,
    ecs: Option<Arc<Account>>,
    limits: watch::Receiver<Limits>,
) -> Health {
    Health {
        incarnation: task.incarnation().to_owned(),
        clock: Arc::clone(clock),
        scheduler: task.scheduler(),
        discovery: task.discovery(),
        vitals: Arc::clone(store.vitals()),
        limits,
        store_silence: config.discovery.interval * SILENT_ROUNDS,
        phase: task.phase(),
        permit: task.permit(),
        ecs,
        exporter: meter.exporter(),
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
        refreshed = summary.tally.refreshed,
        failed = summary.tally.failed,
        conflicts = summary.tally.conflicts,
        takeovers = summary.tally.takeovers,
        write_units = vitals.write_units(),
        read_units = vitals.read_units(),
        throttles = vitals.throttles(),
        "stopped"
    );
}

/// Checks the table before anything is written to it, for as long as it gives no answer. False: asked to stop.
async fn reach_table(
    store: &DynamoVault,
    config: &Config,
    shutdown: &Shutdown,
    clock: &dyn Clock,
) -> anyhow::Result<bool> {
    loop {
        match table::preflight(store.raw(), config.store.shards).await {
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

async fn calendar(
    config: &Config,
    clock: &dyn Clock,
) -> anyhow::Result<(Maintenance, mpsc::Receiver<Chore>, Overdue)> {
    let (sender, chores) = mpsc::channel(4);
    let calendar = Calendar {
        reconcile: config.maintenance.reconcile.clone(),
        table_check: config.maintenance.table_check.clone(),
    };
    let overdue = Overdue::new(&calendar, clock.now(), clock.moment());
    let maintenance = Maintenance::start(&calendar, sender).await.context("maintenance")?;
    Ok((maintenance, chores, overdue))
}

/// What the calendar announces, done; and what it should have announced.
struct Errands {
    chores: mpsc::Receiver<Chore>,
    overdue: Overdue,
    reconcile: mpsc::Sender<()>,
    store: Arc<DynamoVault>,
    shards: u32,
}

impl Errands {
    async fn run(mut self, clock: Arc<dyn Clock>) {
        loop {
            let announced = tokio::select! {
                biased;
                Some(chore) = self.chores.recv() => Some(chore),
                () = clock.sleep(OVERDUE_CHECK) => None,
            };
            let missed = self.overdue.missed(clock.moment());
            for chore in announced.into_iter().chain(missed) {
                self.overdue.done(chore, clock.moment());
                self.run_one(chore).await;
            }
        }
    }

    async fn run_one(&self, chore: Chore) {
        match chore {
            Chore::Reconcile => {
                if self.reconcile.try_send(()).is_err() {
                    debug!("a reconciliation is under way");
                }
            }
            Chore::TableCheck => match table::preflight(self.store.raw(), self.shards).await {
                Ok(_) => debug!("the table is as it should be"),
                Err(problem) => error!(alarm = "table", %problem, "the table is not as it should be"),
            },
        }
    }
}
