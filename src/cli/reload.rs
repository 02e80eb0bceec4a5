//! What of a daemon follows its configuration while it runs, wired to whatever reads that again.

use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::error;

use super::App;
use crate::config::{Config, ConfigError, ConfigErrors, Loaded, Sources};
use crate::health::Limits;
use crate::provider::HttpEndpoint;
use crate::reload::{Reloader, watch};
use crate::scheduler::Tuning;
use crate::telemetry::Filter;
use crate::time::Clock;

/// Where a scheduler takes orders.
type Ordering = Arc<watch::Sender<Option<Arc<Tuning>>>>;

/// What reads the configuration again, and who hears of it.
pub(super) struct Reloads {
    sources: Sources,
    running: Loaded,
    hangups: Signal,
    filter: Filter,
    limits: watch::Sender<Limits>,
}

impl Reloads {
    /// Nothing is read yet.
    pub(super) fn new(app: &App, filter: Filter, hangups: Signal) -> Self {
        Self {
            sources: app.sources().clone(),
            running: app.loaded.clone(),
            hangups,
            filter,
            limits: watch::channel(limits(app.config())).0,
        }
    }

    /// For health checks.
    pub(super) fn limits(&self) -> watch::Receiver<Limits> {
        self.limits.subscribe()
    }

    /// Reads the configuration at every signal and every change, until it is aborted.
    pub(super) fn start(self, ordering: Ordering, clock: Arc<dyn Clock>) -> JoinHandle<()> {
        let Self { sources, running, hangups, filter, limits: limited } = self;
        let reloader = Reloader::new(sources, running);
        tokio::spawn(async move {
            let apply = |config: &Config| {
                if let Err(error) = filter.replace(&config.log.filter) {
                    error!(alarm = "reload", %error, "the log filter stays as it was");
                }
                limited.send_replace(limits(config));
                ordering.send_replace(Some(Arc::new(tuning(config))));
            };
            watch(reloader, hangups, clock.as_ref(), check, apply).await;
        })
    }
}

/// As at the start: a provider to which no connection can be secured is refused, before anything is to be sent there.
fn check(config: &Config) -> Result<(), ConfigErrors> {
    let checked = config.providers.values().map(|provider| (provider, HttpEndpoint::check(provider)));
    let wrong = checked.filter_map(|(provider, checked)| {
        Some(ConfigError {
            key: format!("providers.{}", provider.name),
            problem: format!("{:#}", anyhow::Error::from(checked.err()?)),
            remedy: "correct it, or remove it".to_owned(),
            origin: None,
        })
    });
    let wrong: Vec<_> = wrong.collect();
    if wrong.is_empty() { Ok(()) } else { Err(ConfigErrors(wrong)) }
}

fn limits(config: &Config) -> Limits {
    Limits { max_lag: config.health.max_lag, max_skew: config.health.max_skew }
}

fn tuning(config: &Config) -> Tuning {
    Tuning {
        providers: config.providers.clone(),
        concurrency: config.refresh.concurrency,
        breaker: config.breaker,
        spread: config.refresh.spread,
        max_skew: config.health.max_skew,
        backoff: config.backoff,
        lifetimes: config.refresh.lifetimes,
        patience: config.shutdown.timeout,
    }
}
