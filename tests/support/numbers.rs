//! What a daemon counts, as those see it who read it: Prometheus's text, and CloudWatch's lines.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::{Process, fetch};

/// The labels or dimensions of a number.
pub(crate) type Labels = BTreeMap<String, String>;

/// What `labels` are written as: `labels(&[("outcome", "refreshed")])`.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Every sample of a scrape, by name and labels.
///
/// # Panics
/// When a line is none of Prometheus's text format 0.0.4.
pub(crate) async fn scrape(url: &str) -> BTreeMap<(String, Labels), f64> {
    samples(&fetch(&format!("{url}/metrics")).await.expect("the daemon answers").body)
}

fn samples(text: &str) -> BTreeMap<(String, Labels), f64> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(sample).collect()
}

fn sample(line: &str) -> ((String, Labels), f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
    let (name, inside) = series.split_once('{').unwrap_or((series, "}"));
    let inside = inside.strip_suffix('}').unwrap_or_else(|| panic!("no sample: {line}"));
    let pairs = inside.split(',').filter(|pair| !pair.is_empty());
    let labels = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("no label: {line}"));
        (name.to_owned(), value.trim_matches('"').to_owned())
    });
    ((name.to_owned(), labels.collect()), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

/// One value of a metric in CloudWatch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Datapoint {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) dimensions: Labels,
    pub(crate) unit: String,
    /// Each value, and how often it occurred.
    pub(crate) values: Vec<(f64, f64)>,
}

impl Datapoint {
    pub(crate) fn sum(&self) -> f64 {
        self.values.iter().map(|(value, count)| value * count).sum()
    }

    pub(crate) fn count(&self) -> f64 {
        self.values.iter().map(|(_, count)| count).sum()
    }

    pub(crate) fn maximum(&self) -> f64 {
        self.values.iter().map(|(value, _)| *value).fold(f64::NEG_INFINITY, f64::max)
    }

    pub(crate) fn minimum(&self) -> f64 {
        self.values.iter().map(|(value, _)| *value).fold(f64::INFINITY, f64::min)
    }
}

/// What CloudWatch makes of a line ("Embedded metric format specification" in the Amazon CloudWatch User Guide).
///
/// # Panics
/// When the line breaks the specification, where CloudWatch would silently drop it.
pub(crate) fn datapoints(line: &str) -> Vec<Datapoint> {
    // Where Docker's drivers split a line.
    assert!(line.len() < 16 * 1024, "{} bytes", line.len());
    let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert!(line["_aws"]["Timestamp"].as_u64().is_some_and(|at| at > 1_600_000_000_000), "{line}");
    let mut found = Vec::new();
    for directive in line["_aws"]["CloudWatchMetrics"].as_array().expect("an array of directives") {
        let metrics = directive["Metrics"].as_array().expect("an array of metrics");
        assert!(metrics.len() <= 100, "{line}");
        for set in directive["Dimensions"].as_array().expect("an array of sets") {
            let dimensions = set.as_array().expect("a set").iter().map(|name| {
                let name = name.as_str().expect("a name");
                (name.to_owned(), line[name].as_str().expect("a dimension's value is text").to_owned())
            });
            let dimensions: Labels = dimensions.collect();
            for metric in metrics {
                let name = metric["Name"].as_str().expect("a name");
                found.push(Datapoint {
                    namespace: directive["Namespace"].as_str().expect("a namespace").to_owned(),
                    name: name.to_owned(),
                    dimensions: dimensions.clone(),
                    unit: metric["Unit"].as_str().unwrap_or("None").to_owned(),
                    values: values(&line[name]),
                });
            }
        }
    }
    found
}

fn values(value: &Value) -> Vec<(f64, f64)> {
    if let Some(number) = value.as_f64() {
        return vec![(number, 1.0)];
    }
    let numbers = |name: &str| {
        let list = value[name].as_array().unwrap_or_else(|| panic!("no value: {value}"));
        list.iter().map(|number| number.as_f64().expect("a number")).collect::<Vec<_>>()
    };
    let (values, counts) = (numbers("Values"), numbers("Counts"));
    assert!(values.len() == counts.len() && values.len() <= 100, "{value}");
    values.into_iter().zip(counts).collect()
}

/// Reads a daemon's lines until a metric with these dimensions fits, and returns it.
///
/// # Panics
/// When none comes within `bound`.
pub(crate) async fn wait_for_datapoint(
    daemon: &mut Process,
    bound: Duration,
    (name, dimensions): (&str, &Labels),
    mut fits: impl FnMut(&Datapoint) -> bool,
) -> Datapoint {
    let mut last = None;
    let search = async {
        loop {
            let line = daemon.line(bound).await;
            for point in datapoints(&line) {
                if point.name == name && point.dimensions == *dimensions {
                    if fits(&point) {
                        return point;
                    }
                    last = Some(point);
                }
            }
        }
    };
    match tokio::time::timeout(bound, search).await {
        Ok(point) => point,
        Err(_) => panic!("no {name} {dimensions:?} that fits within {bound:?}, the last was {last:?}"),
    }
}
