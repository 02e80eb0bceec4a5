//! The numbers of a real daemon, as Prometheus scrapes them and as CloudWatch reads them from standard output, held
//! against the table that `docs/metrics.md` is made of.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use perennial::metrics::{self, Kind};
use support::numbers::{Datapoint, datapoints, labels, scrape, wait_for_datapoint};
use support::{Auth, Deployment, DynamoLocal, StrictProvider, health_url, snapshot, wait_until};

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(30);
const SERVED: [(&str, &str); 5] = [
    ("PERENNIAL__HEALTH__ENABLED", "true"),
    ("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0"),
    ("PERENNIAL__METRICS__EMF", "true"),
    ("PERENNIAL__METRICS__EMF_INTERVAL", "1s"),
    ("PERENNIAL__METRICS__NAMESPACE", "Perennial/test"),
];

async fn deployment(clients: usize) -> (StrictProvider, Deployment) {
    let provider = StrictProvider::start(&[]).await;
    provider.register(Auth::Basic("app", SECRET)).await;
    let settings = format!(
        "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n[refresh]\nspread = \"0s\"\n\
         [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n",
        provider.token_url()
    );
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    deployment.register(&provider, SECRET, (0..clients).map(|number| format!("client-{number}"))).await;
    (provider, deployment)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests look at their own environment")]
fn the_documentation_is_what_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let written = metrics::markdown();
    if std::env::var_os("PERENNIAL_BLESS").is_some() {
        std::fs::write(path, &written).expect("docs/ is writable");
    }
    let stands = std::fs::read_to_string(path).expect("docs/metrics.md");
    assert!(
        stands == written,
        "docs/metrics.md is not what src/metrics.rs says: PERENNIAL_BLESS=1 writes it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_and_cloudwatch_are_told_the_same() {
    let (_provider, deployment) = deployment(3).await;
    let mut daemon = deployment.daemon_with(&SERVED).await;
    let url = health_url(&daemon).await;

    let outcome = labels(&[("outcome", "refreshed")]);
    let mut refreshed = 0.0;
    wait_for_datapoint(&mut daemon, SOON, ("Refreshes", &outcome), |point| {
        refreshed += point.sum();
        refreshed >= 3.0
    })
    .await;
    // The clients are counted every ten seconds.
    let idle = labels(&[("state", "idle")]);
    wait_for_datapoint(&mut daemon, SOON, ("Clients", &idle), |point| point.maximum() >= 3.0).await;

    let samples = scrape(&url).await;
    let value = |name: &str, pairs: &[(&str, &str)]| samples.get(&(name.to_owned(), labels(pairs))).copied();
    let strict = [("provider", "strict")];
    let all = [("outcome", "refreshed"), ("provider", "strict")];
    assert_eq!(value("perennial_refreshes_total", &all), Some(3.0));
    assert_eq!(value("perennial_refresh_duration_seconds_count", &strict), Some(3.0));
    assert_eq!(value("perennial_endpoint_duration_seconds_count", &strict), Some(3.0));
    assert_eq!(value("perennial_clients", &[("state", "idle")]), Some(3.0));
    assert_eq!(value("perennial_clients", &[("state", "expired")]), Some(0.0));
    assert_eq!(value("perennial_ready", &[]), Some(1.0));
    assert_eq!(value("perennial_fleet_members", &[]), Some(1.0));
    assert_eq!(value("perennial_store_failures_total", &[("operation", "write")]), Some(0.0));
    assert_eq!(value("perennial_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    let remaining = value("perennial_least_remaining_lifetime_seconds", &[]).expect("told");
    assert!((3000.0..3600.0).contains(&remaining), "{remaining}");
    // An acquire and a commit each, and heartbeats beside them.
    let write_units = value("perennial_consumed_write_units_total", &[]).expect("told");
    assert!(write_units >= 6.0, "{write_units}");
    assert!(value("perennial_dollars_per_thousand_refreshes", &[]).is_some_and(|dollars| dollars > 0.0));

    assert_known(&samples.into_keys().map(|(name, _)| name).collect());
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
}

/// Each sample is of a metric of the table.
fn assert_known(names: &BTreeSet<String>) {
    for name in names {
        let known = metrics::ALL.iter().any(|metric| match metric.kind {
            Kind::Histogram(_) => {
                ["_bucket", "_sum", "_count"].iter().any(|end| *name == format!("{}{end}", metric.name))
            }
            _ => metric.name == name,
        });
        assert!(known, "{name} is not in the table");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_on_standard_output_is_a_metric_of_the_table() {
    let (_provider, deployment) = deployment(2).await;
    let mut daemon = deployment.daemon_with(&SERVED).await;
    let (mut seen, mut refreshed): (Vec<Datapoint>, f64) = (Vec::new(), 0.0);
    wait_until(SOON, "both are refreshed, and counted", async || {
        let points = datapoints(&daemon.line(SOON).await);
        let of = |name: &str| {
            points.iter().filter(move |point| point.name == name).map(Datapoint::sum).sum::<f64>()
        };
        refreshed += points
            .iter()
            .filter(|p| p.name == "Refreshes" && p.dimensions.len() == 1)
            .map(Datapoint::sum)
            .sum::<f64>();
        let counted = of("Clients") > 0.0 || seen.iter().any(|point| point.name == "Clients");
        seen.extend(points);
        refreshed >= 2.0 && counted
    })
    .await;
    daemon.signal("TERM");
    seen.extend(daemon.last_lines(SOON).await.iter().flat_map(|line| datapoints(line)));
    assert_eq!(daemon.exit_code(SOON).await, 0);
    for point in &seen {
        assert_eq!(point.namespace, "Perennial/test");
        let metric = metrics::ALL.iter().find(|m| m.cloudwatch.is_some_and(|c| c.name == point.name));
        let sets = metric.and_then(|metric| metric.cloudwatch).expect("a metric of the table").sets;
        let given: BTreeSet<&str> = point.dimensions.keys().map(String::as_str).collect();
        assert!(sets.iter().any(|set| set.iter().copied().collect::<BTreeSet<_>>() == given), "{point:?}");
    }
    let durations: Vec<_> = seen.iter().filter(|point| point.name == "RefreshDuration").collect();
    assert!(durations.iter().all(|point| point.unit == "Milliseconds"), "{durations:?}");
    let alone: f64 = durations.iter().filter(|p| p.dimensions.is_empty()).map(|p| p.count()).sum();
    assert_eq!(alone, 2.0, "one for each refresh, not for each set: {durations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_writes_its_metrics_before_its_summary() {
    let (_provider, deployment) = deployment(2).await;
    let output = deployment.run_with(&["run", "--once"], &SERVED[2..]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    let (lines, summary) = text.trim_end().rsplit_once('\n').expect("metrics and a summary");
    assert_eq!(summary, "summary clients=2 refreshed=2 failed=0 skipped=0");
    let points: Vec<_> = lines.lines().flat_map(datapoints).collect();
    let outcome = labels(&[("outcome", "refreshed")]);
    let refreshed =
        points.iter().filter(|p| p.name == "Refreshes" && p.dimensions == outcome).map(Datapoint::sum);
    assert_eq!(refreshed.sum::<f64>(), 2.0);
}

/// The clients are counted at its end, not as it found them.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_tells_how_it_leaves_the_clients() {
    let (provider, deployment) = deployment(2).await;
    let spent =
        snapshot(&deployment.store().await, "client-0").await.token.and_then(|token| token.refresh_token);
    provider.revoke(spent.expect("it was imported").expose()).await;
    let output = deployment.run_with(&["run", "--once"], &SERVED[2..]);
    assert_eq!(output.status.code(), Some(1), "one failed");
    let text = String::from_utf8(output.stdout).expect("text");
    let (lines, _) = text.trim_end().rsplit_once('\n').expect("metrics and a summary");
    let points: Vec<_> = lines.lines().flat_map(datapoints).collect();
    let last = |state: &str| {
        let mut of_state =
            points.iter().filter(|p| p.name == "Clients" && p.dimensions == labels(&[("state", state)]));
        of_state.next_back().map(Datapoint::maximum)
    };
    assert_eq!((last("dead"), last("idle"), last("in_doubt")), (Some(1.0), Some(1.0), Some(0.0)));
    assert!(points.iter().any(|point| point.name == "ClockSkew"));
}
