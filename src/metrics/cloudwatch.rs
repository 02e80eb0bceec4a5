//! What CloudWatch is sent: the table's names and sets of dimensions instead of Prometheus's.
//!
//! A recorder in front of another one. A metric that appears under several sets of dimensions is counted once for each.

use std::sync::Arc;

use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Label, Metadata, Recorder, SharedString,
    Unit,
};

use super::{ALL, CloudWatch, Kind};

pub(super) struct Renamed<R>(R);

impl<R: Recorder> Renamed<R> {
    pub(super) fn new(inner: R) -> Self {
        for metric in ALL {
            let Some(cloudwatch) = metric.cloudwatch else { continue };
            let (name, help) =
                (KeyName::from_const_str(cloudwatch.name), SharedString::const_str(metric.help));
            match metric.kind {
                Kind::Counter => inner.describe_counter(name, Some(metric.unit), help),
                Kind::Gauge => inner.describe_gauge(name, Some(metric.unit), help),
                Kind::Histogram(_) => inner.describe_histogram(name, Some(Unit::Milliseconds), help),
            }
        }
        Self(inner)
    }

    fn keys(key: &Key) -> Vec<Key> {
        let metric = ALL.iter().find(|metric| metric.name == key.name());
        let Some(CloudWatch { name, sets }) = metric.and_then(|metric| metric.cloudwatch) else {
            return Vec::new();
        };
        let project = |set: &&[&str]| {
            let labels: Vec<Label> =
                key.labels().filter(|label| set.contains(&label.key())).cloned().collect();
            Key::from_parts(name, labels)
        };
        sets.iter().map(project).collect()
    }
}

impl<R: Recorder> Recorder for Renamed<R> {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let keys = Self::keys(key);
        let counters = keys.iter().map(|key| self.0.register_counter(key, metadata)).collect();
        Counter::from_arc(Arc::new(Counters(counters)))
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        // A gauge has one set: all of its labels.
        Self::keys(key).first().map_or_else(Gauge::noop, |key| self.0.register_gauge(key, metadata))
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        let keys = Self::keys(key);
        let histograms = keys.iter().map(|key| self.0.register_histogram(key, metadata)).collect();
        Histogram::from_arc(Arc::new(Histograms(histograms)))
    }
}

struct Counters(Vec<Counter>);

impl CounterFn for Counters {
    fn increment(&self, value: u64) {
        self.0.iter().for_each(|counter| counter.increment(value));
    }

    fn absolute(&self, value: u64) {
        self.0.iter().for_each(|counter| counter.absolute(value));
    }
}

struct Histograms(Vec<Histogram>);

impl HistogramFn for Histograms {
    fn record(&self, seconds: f64) {
        let millis = round(seconds * 1000.0);
        self.0.iter().for_each(|histogram| histogram.record(millis));
    }
}

/// CloudWatch takes 100 different values of a metric in one line: four to an octave, from a millisecond to four hours,
/// are 96.
fn round(millis: f64) -> f64 {
    const LONGEST: f64 = 4.0 * 3_600_000.0;
    if millis < 1.0 {
        return 0.0;
    }
    ((millis.min(LONGEST).log2() * 4.0).round() / 4.0).exp2().round()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::round;

    #[test]
    fn a_line_has_room_for_every_duration_that_there_is() {
        let mut values = BTreeSet::new();
        let mut millis = 0.1_f64;
        while millis < 1e9 {
            let rounded = round(millis);
            let off = (rounded - millis).abs();
            assert!(
                off <= 0.1 * millis + 0.5 || !(1.0..=1.4e7).contains(&millis),
                "{millis} became {rounded}"
            );
            values.insert(rounded.to_bits());
            millis *= 1.01;
        }
        assert!(values.len() <= 100, "{}", values.len());
        assert_eq!([0.0, 0.9, 1.0, 1000.0, 20_000.0].map(round), [0.0, 0.0, 1.0, 1024.0, 19_484.0]);
    }
}
