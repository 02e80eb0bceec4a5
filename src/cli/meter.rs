//! Where the metrics of a process that works go: to whoever scrapes, and to CloudWatch by lines on standard output.

use std::io::{self, Stderr, Stdout};
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::config;
use crate::metrics::{self, Exporter, Settings};
use crate::telemetry::Lines;
use crate::time::Clock;

/// The metrics of this process, and what writes them and its logs.
pub(super) struct Meter {
    exporter: Arc<Exporter>,
    lines: Lines<Stdout>,
    logs: Lines<Stderr>,
}

impl Meter {
    pub(super) fn install(config: &config::Metrics, logs: Lines<Stderr>) -> anyhow::Result<Self> {
        let cloudwatch = config
            .emf
            .then(|| Settings { interval: config.emf_interval, namespace: config.namespace.clone() });
        let exporter = Arc::new(metrics::install(cloudwatch)?);
        metrics::BUILD_INFO.set(&[env!("CARGO_PKG_VERSION")], 1.0);
        Ok(Self { exporter, lines: Lines::to(io::stdout()), logs })
    }

    pub(super) fn exporter(&self) -> Arc<Exporter> {
        Arc::clone(&self.exporter)
    }

    /// Reads the gauges by `measure`, and writes lines where that is configured, until it is aborted.
    pub(super) fn start(&self, clock: Arc<dyn Clock>, measure: impl Fn() + Send + 'static) -> JoinHandle<()> {
        let (exporter, writer) = (self.exporter(), self.lines.clone());
        let mut dropped = Dropped { logs: self.logs.clone(), lines: self.lines.clone(), told: 0 };
        tokio::spawn(async move {
            let measure = move || {
                measure();
                dropped.tell();
            };
            exporter.run(clock, writer, measure).await;
        })
    }

    /// The last lines of all.
    pub(super) fn finish(self) {
        self.exporter.flush(self.lines);
    }
}

/// Lines that nobody read in time.
struct Dropped {
    logs: Lines<Stderr>,
    lines: Lines<Stdout>,
    told: u64,
}

impl Dropped {
    fn tell(&mut self) {
        let dropped = self.logs.dropped() + self.lines.dropped();
        metrics::LOG_LINES_DROPPED.add(&[], dropped - self.told);
        self.told = dropped;
    }
}
