//! Hands the numbers out: to whoever scrapes, and as lines on standard output.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use metrics::{KeyName, Recorder, SharedString};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use metrics_util::layers::FanoutBuilder;
use metrique_metricsrs::MetricRecorder;
use metrique_writer::EntryIoStream as _;
use metrique_writer::format::FormatExt as _;
use metrique_writer_format_emf::Emf;
use tracing::warn;

use super::cloudwatch::Renamed;
use super::{ALL, Kind};
use crate::time::Clock;

/// How often histograms are drained and gauges are read; lines are written on the first of these after their time.
const TICK: Duration = Duration::from_secs(5);

type EmfRecorder = MetricRecorder<dyn Recorder>;

/// Where the numbers go beside `/metrics`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Between two rounds of lines.
    pub interval: Duration,
    /// The namespace in CloudWatch.
    pub namespace: String,
}

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// A histogram of the table has no buckets.
    #[error("the metrics cannot be set up")]
    Build(#[from] BuildError),
    /// Somebody has installed a recorder in this process before.
    #[error("metrics are set up already")]
    AlreadySet,
}

/// Has all metrics of this process recorded from now on; with `cloudwatch`, for that as well.
///
/// # Errors
/// See [`ExporterError`].
pub fn install(cloudwatch: Option<Settings>) -> Result<Exporter, ExporterError> {
    let prometheus = prometheus()?;
    let handle = prometheus.handle();
    let mut recorders = FanoutBuilder::default().add_recorder(prometheus);
    let emf = cloudwatch.map(|settings| (EmfRecorder::new(), settings));
    if let Some((recorder, _)) = &emf {
        recorders = recorders.add_recorder(Renamed::new(recorder.clone()));
    }
    metrics::set_global_recorder(recorders.build()).map_err(|_| ExporterError::AlreadySet)?;
    begin();
    Ok(Exporter { handle, emf })
}

/// What has not happened yet is told as zero.
fn begin() {
    for metric in ALL.iter().filter(|metric| metric.kind == Kind::Counter && metric.labels.is_empty()) {
        metric.add(&[], 0);
    }
    for operation in ["read", "write"] {
        super::STORE_FAILURES.add(&[operation], 0);
    }
    super::UNCOMMITTED_ANSWERS.set(&[], 0.0);
}

fn prometheus() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    let recorder = builder.build_recorder();
    for metric in ALL {
        let (name, help) = (KeyName::from_const_str(metric.name), SharedString::const_str(metric.help));
        match metric.kind {
            Kind::Counter => recorder.describe_counter(name, Some(metric.unit), help),
            Kind::Gauge => recorder.describe_gauge(name, Some(metric.unit), help),
            Kind::Histogram(_) => recorder.describe_histogram(name, Some(metric.unit), help),
        }
    }
    Ok(recorder)
}

/// The numbers of this process.
pub struct Exporter {
    handle: PrometheusHandle,
    emf: Option<(EmfRecorder, Settings)>,
}

impl Exporter {
    /// What a scrape is answered with, in Prometheus's text format 0.0.4.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Reads the gauges now and then by `measure`, and writes to `lines` where that was asked for, for as long as it is
    /// polled. `lines` must not block.
    pub async fn run(&self, clock: Arc<dyn Clock>, mut lines: impl Write, mut measure: impl FnMut()) {
        let mut written = clock.moment();
        loop {
            measure();
            self.handle.run_upkeep();
            if let Some((recorder, settings)) = &self.emf
                && clock.moment().since(written) >= settings.interval
            {
                written = clock.moment();
                write(recorder, settings, &mut lines);
            }
            let interval = self.emf.as_ref().map_or(TICK, |(_, settings)| settings.interval);
            clock.sleep(TICK.min(interval)).await;
        }
    }

    /// What has come together since the last lines: for the end of a process.
    pub fn flush(&self, mut lines: impl Write) {
        if let Some((recorder, settings)) = &self.emf {
            write(recorder, settings, &mut lines);
        }
    }
}

fn write(recorder: &EmfRecorder, settings: &Settings, lines: &mut impl Write) {
    let mut text = Vec::new();
    let emf = Emf::all_validations(settings.namespace.clone(), vec![vec![]]);
    let formatted = emf.output_to(&mut text).next(&recorder.readout());
    // Whole lines at once: what reads them is told apart by its line ends.
    let written = formatted.map_err(|error| error.to_string()).and_then(|()| {
        text.split_inclusive(|byte| *byte == b'\n')
            .try_for_each(|line| lines.write_all(line))
            .map_err(|error| error.to_string())
    });
    if let Err(error) = written {
        warn!(error, "metrics could not be written to standard output");
    }
}
