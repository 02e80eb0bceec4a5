//! `docs/metrics.md`, from the table.

use super::{ALL, Kind, Metric};

const HEAD: &str = "\
# Metrics

<!-- Written by a test from src/metrics.rs: PERENNIAL_BLESS=1 cargo test --test metrics -->

Prometheus scrapes them at `GET /metrics` on `health.address`. CloudWatch gets them as Embedded Metric Format: JSON lines on
standard output, every `metrics.emf_interval`, where `metrics.emf = true`; the logs are on standard error. In ECS the `awslogs`
driver carries both to CloudWatch Logs, which makes metrics of the former, in the namespace `metrics.namespace`.

- Each task tells its own share. Over a fleet, counters and the gauges that count clients add up (`Sum` over a period as long as
  `metrics.emf_interval`); of the others take `Maximum` or `Minimum`. There is no dimension for a task.
- In CloudWatch, durations of histograms are in milliseconds, rounded to a fifth. A counter to which nothing was added is not
  sent: there, missing data means that nothing happened. Gauges are always sent.
- CloudWatch bills each combination of dimension values: about 40 of them for a fleet with one provider, and 15 more for each
  further one, at $0.30 a month for the first 10,000. `docs/runbook.md` has the alarms on them.

";

/// The page `docs/metrics.md`.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    page.push_str("| Prometheus | kind | labels | CloudWatch | by | meaning |\n|---|---|---|---|---|---|\n");
    for metric in ALL {
        let (cloudwatch, by) = cloudwatch(metric);
        let labels = metric.labels.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let (name, kind, help) = (metric.name, kind(metric.kind), metric.help);
        page += &format!("| `{name}` | {kind} | {labels} | {cloudwatch} | {by} | {help} |\n");
    }
    page.push_str("\nThe values of the labels:\n\n");
    let mut told: Vec<(&str, &str)> = ALL.iter().flat_map(|metric| metric.labels).copied().collect();
    told.sort_unstable();
    told.dedup();
    for (name, values) in told {
        page += &format!("- `{name}`: {values}\n");
    }
    page
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    }
}

fn cloudwatch(metric: &Metric) -> (String, String) {
    let Some(cloudwatch) = metric.cloudwatch else { return ("not sent".to_owned(), String::new()) };
    let set = |set: &&[&str]| if set.is_empty() { "nothing".to_owned() } else { set.join(" and ") };
    let sets: Vec<_> = cloudwatch.sets.iter().map(set).collect();
    (format!("`{}`", cloudwatch.name), sets.join("; "))
}
