//! Alarms of the template, judged as CloudWatch judges them ("Evaluating an alarm" and "Using metric math" in the Amazon
//! CloudWatch User Guide), over what a running daemon writes.
//!
//! Time is scaled: what the template calls a minute is a [`MINUTE`] here. Thresholds are the template's own.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::numbers::{Datapoint, Labels, datapoints};
use super::stack::{Stack, text};
use super::{Process, part};

/// What passes for a minute. The daemon writes its metrics twice in it.
pub(crate) const MINUTE: Duration = Duration::from_secs(2);

/// A metric that an alarm looks at.
struct Input {
    /// Its name in the alarm's expression; empty where it is the alarm's only metric.
    id: String,
    name: String,
    dimensions: Labels,
    statistic: String,
    /// Minutes.
    period: usize,
}

/// An alarm of the template.
pub(crate) struct Alarm {
    pub(crate) id: String,
    inputs: Vec<Input>,
    /// Metric math over the inputs.
    expression: Option<String>,
    /// So many of the last periods...
    evaluated: usize,
    /// ... and so many of them beyond the threshold.
    needed: usize,
    threshold: f64,
    comparison: String,
    missing_breaches: bool,
}

impl Alarm {
    /// Every alarm whose metrics are the program's own.
    pub(crate) fn all(stack: &Stack) -> Vec<Self> {
        let ours = |alarm: &Value| alarm["Namespace"] != "AWS/DynamoDB";
        let alarms = stack.of_type("AWS::CloudWatch::Alarm").into_iter();
        alarms.filter(|(_, alarm)| ours(alarm)).map(|(id, alarm)| Self::of(id, alarm)).collect()
    }

    fn of(id: &str, alarm: &Value) -> Self {
        let metrics = alarm["Metrics"].as_array().map(Vec::as_slice).unwrap_or_default();
        let expression = metrics.iter().find_map(|metric| metric["Expression"].as_str());
        let parts = metrics.iter().filter(|metric| metric.get("MetricStat").is_some());
        let mut inputs: Vec<_> = parts
            .map(|part| {
                let stat = &part["MetricStat"];
                input(text(&part["Id"]), &stat["Metric"], &stat["Stat"], &stat["Period"])
            })
            .collect();
        if inputs.is_empty() {
            inputs.push(input("", alarm, &alarm["Statistic"], &alarm["Period"]));
        }
        Self {
            id: id.to_owned(),
            inputs,
            expression: expression.map(str::to_owned),
            evaluated: count(&alarm["EvaluationPeriods"]),
            needed: count(&alarm["DatapointsToAlarm"]),
            threshold: number(&alarm["Threshold"]),
            comparison: text(&alarm["ComparisonOperator"]).to_owned(),
            missing_breaches: alarm["TreatMissingData"] == "breaching",
        }
    }

    /// Whether it is on after these minutes.
    pub(crate) fn is_on(&self, minutes: &[Vec<Datapoint>]) -> bool {
        let period = self.inputs[0].period;
        let periods: Vec<_> = minutes.rchunks(period).take(self.evaluated).collect();
        let judged = periods.len() == self.evaluated && periods.iter().all(|chunk| chunk.len() == period);
        let beyond = periods.iter().filter(|chunk| match self.value(chunk) {
            Some(value) => self.is_beyond(value),
            None => self.missing_breaches,
        });
        judged && beyond.count() >= self.needed
    }

    /// What it looks at in one period; none where nothing was sent.
    pub(crate) fn value(&self, minutes: &[Vec<Datapoint>]) -> Option<f64> {
        let values = self.inputs.iter().map(|input| (input.id.as_str(), input.value(minutes)));
        match &self.expression {
            None => values.map(|(_, value)| value).next().flatten(),
            Some(expression) => calculate(expression, &values.collect::<Vec<_>>()),
        }
    }

    fn is_beyond(&self, value: f64) -> bool {
        match self.comparison.as_str() {
            "GreaterThanOrEqualToThreshold" => value >= self.threshold,
            "GreaterThanThreshold" => value > self.threshold,
            "LessThanThreshold" => value < self.threshold,
            other => panic!("{}: {other} is not known here", self.id),
        }
    }
}

fn input(id: &str, metric: &Value, statistic: &Value, period: &Value) -> Input {
    let dimensions = metric["Dimensions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let dimensions =
        dimensions.iter().map(|one| (text(&one["Name"]).to_owned(), text(&one["Value"]).to_owned()));
    Input {
        id: id.to_owned(),
        name: text(&metric["MetricName"]).to_owned(),
        dimensions: dimensions.collect(),
        statistic: text(statistic).to_owned(),
        period: count(period) / 60,
    }
}

impl Input {
    fn value(&self, minutes: &[Vec<Datapoint>]) -> Option<f64> {
        let points =
            minutes.iter().flatten().filter(|p| p.name == self.name && p.dimensions == self.dimensions);
        let values = points.map(|point| match self.statistic.as_str() {
            "Sum" => point.sum(),
            "Maximum" => point.maximum(),
            "Minimum" => point.minimum(),
            other => panic!("{other} is not known here"),
        });
        values.reduce(match self.statistic.as_str() {
            "Sum" => |one, other| one + other,
            "Maximum" => f64::max,
            _ => f64::min,
        })
    }
}

/// A parameter of type Number is a number here or text.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| text(value).parse().expect("a number"))
}

fn count(value: &Value) -> usize {
    let whole = value.as_u64().unwrap_or_else(|| text(value).parse().expect("a whole number"));
    usize::try_from(whole).expect("a small number")
}

/// CloudWatch's functions in Python. It also leaves out what cannot be calculated.
const MATH: &str = "
import json, sys
functions = {'IF': lambda c, a, b: a if c else b, 'FILL': lambda value, other: other if value is None else value}
try:
    print(json.dumps(eval(sys.argv[1], functions, json.loads(sys.argv[2]))))
except ZeroDivisionError:
    print('null')
";

fn calculate(expression: &str, values: &[(&str, Option<f64>)]) -> Option<f64> {
    let values: serde_json::Map<_, _> =
        values.iter().map(|(id, value)| ((*id).to_owned(), (*value).into())).collect();
    let mut python = Command::new(part(".parts/moto/bin/python"));
    let output = python.args(["-c", MATH, expression]).arg(Value::from(values).to_string()).output();
    let output = output.expect("Python runs");
    assert!(output.status.success(), "{expression}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a number or null")
}

/// A daemon and CloudWatch's view of it.
pub(crate) struct Watch {
    alarms: Vec<Alarm>,
    minutes: Vec<Vec<Datapoint>>,
}

impl Watch {
    pub(crate) fn begin() -> Self {
        let stack = Stack::emulate(&[]);
        Self { alarms: Alarm::all(&stack), minutes: Vec::new() }
    }

    pub(crate) fn ids(&self) -> Vec<&str> {
        self.alarms.iter().map(|alarm| alarm.id.as_str()).collect()
    }

    /// Alarms that are on.
    pub(crate) fn on(&self) -> Vec<&str> {
        let on = self.alarms.iter().filter(|alarm| alarm.is_on(&self.minutes));
        on.map(|alarm| alarm.id.as_str()).collect()
    }

    async fn minute(&mut self, daemon: &mut Process) {
        let lines = daemon.lines_until(Instant::now() + MINUTE).await;
        self.minutes.push(lines.iter().flat_map(|line| datapoints(line)).collect());
    }

    /// Watches for so many minutes, in which no alarm may be on; the first ones, of the start, do not count.
    pub(crate) async fn sees_no_alarm(&mut self, daemon: &mut Process) {
        self.until(daemon, "all is quiet for a while", |watch| {
            let last = watch.minutes.iter().rev().take(3);
            watch.on().is_empty() && last.filter(|minute| !minute.is_empty()).count() == 3
        })
        .await;
    }

    /// Watches until this alarm is on.
    pub(crate) async fn until_on(&mut self, daemon: &mut Process, id: &str) {
        assert!(self.ids().contains(&id), "{id} is no alarm of the template");
        self.until(daemon, id, |watch| watch.on().contains(&id)).await;
    }

    /// Watches until this alarm is off again.
    pub(crate) async fn until_off(&mut self, daemon: &mut Process, id: &str) {
        self.until(daemon, &format!("{id} is off"), |watch| !watch.on().contains(&id)).await;
    }

    async fn until(&mut self, daemon: &mut Process, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(
                begun.elapsed() < Duration::from_secs(180),
                "in vain: {what}\n{}\n{}",
                self.tell(),
                daemon.errors()
            );
            self.minute(daemon).await;
        }
    }

    /// What each alarm has looked at in the last minutes.
    fn tell(&self) -> String {
        let last = self.minutes.iter().rev().take(6).rev();
        let last: Vec<_> = last.map(std::slice::from_ref).collect();
        let lines = self.alarms.iter().map(|alarm| {
            let values: Vec<_> = last.iter().map(|minute| alarm.value(minute)).collect();
            format!("{}: {values:?}, threshold {}", alarm.id, alarm.threshold)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}
