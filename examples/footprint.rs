//! What a small task needs: a production build over DynamoDB Local, with 130 clients that are refreshed once an hour.
//!
//! ```text
//! make footprint
//! ```
//!
//! The clients have their first tokens before the measuring begins. Then their refreshes are ordered one by one, evenly
//! spread, as many as an hour's schedule puts into the time measured; the rest is heartbeats, discovery and idling. It
//! ends with one line for programs:
//!
//! ```text
//! summary clients=130 seconds=600 refreshes=.. rss_mb=.. peak_rss_mb=.. cpu_percent=.. write_units=.. read_units=..
//! ```
//!
//! Memory and processor time are the kernel's (proc_pid_status(5), proc_pid_stat(5)), capacity units what the table
//! charged. `cpu_percent` is of one core: a quarter of a virtual CPU is 25.

#![allow(clippy::print_stdout, reason = "it prints what it measures")]
#![allow(clippy::unwrap_used, reason = "a helper that fails ends the run")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

#[path = "../tests/support/mod.rs"]
mod support;

use support::numbers::{labels, scrape};
use support::{Auth, Deployment, DynamoLocal, Process, StrictProvider, health_url, wait_until};

const SECRET: &str = "footprint-client-secret";
/// Ticks of proc_pid_stat(5) in a second: 100 on every Linux that there is.
const TICKS: f64 = 100.0;

/// Measures a daemon that has little to do.
#[derive(Parser)]
struct Options {
    /// The program to be measured.
    #[arg(long, default_value = "target/release/perennial")]
    daemon: PathBuf,
    /// How many clients.
    #[arg(long, default_value_t = 130)]
    clients: u32,
    /// How long to measure.
    #[arg(long = "for", default_value = "10m", value_parser = humantime::parse_duration)]
    length: Duration,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// What a process has used so far.
struct Usage {
    rss_mb: f64,
    peak_rss_mb: f64,
    cpu_seconds: f64,
    refreshes: f64,
    write_units: f64,
    read_units: f64,
}

impl Usage {
    async fn of(daemon: &Process, url: &str) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
        let samples = scrape(url).await;
        let value = |name: &str, pairs: &[(&str, &str)]| {
            samples.get(&(name.to_owned(), labels(pairs))).copied().unwrap_or_default()
        };
        let refreshed = [("outcome", "refreshed"), ("provider", "strict")];
        Self {
            rss_mb: daemon.rss_mb(),
            peak_rss_mb: daemon.peak_rss_mb(),
            cpu_seconds: (ticks(11) + ticks(12)) / TICKS,
            refreshes: value("perennial_refreshes_total", &refreshed),
            write_units: value("perennial_consumed_write_units_total", &[]),
            read_units: value("perennial_consumed_read_units_total", &[]),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let provider = StrictProvider::start(&[]).await;
    provider.register(Auth::Basic("app", SECRET)).await;
    let settings = format!("[providers.strict]\ntoken_url = \"{}\"\n", provider.token_url());
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    deployment
        .register(&provider, SECRET, (0..options.clients).map(|number| format!("client-{number}")))
        .await;
    let variables = [
        ("PERENNIAL__HEALTH__ENABLED", "true"),
        ("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0"),
        ("PERENNIAL__METRICS__EMF", "true"),
    ];
    // The daemon runs in a folder of its own.
    let program = std::fs::canonicalize(&options.daemon).expect("--daemon is a program");
    let mut daemon = deployment.daemon_of(&program, &variables).await;
    let url = health_url(&daemon).await;
    wait_until(Duration::from_secs(300), "every client has its first token", async || {
        Usage::of(&daemon, &url).await.refreshes >= f64::from(options.clients)
    })
    .await;

    let before = Usage::of(&daemon, &url).await;
    let due = (f64::from(options.clients) * options.length.as_secs_f64() / 3600.0).round();
    order(&deployment, due, options.length).await;
    let after = Usage::of(&daemon, &url).await;
    daemon.signal("TERM");
    let clean = daemon.exit_code(Duration::from_secs(30)).await == 0
        && provider.stats().await.double_redemptions == 0
        && after.refreshes - before.refreshes >= due;
    report(&options, &before, &after);
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Orders so many refreshes, evenly over that time, of the first clients.
async fn order(deployment: &Deployment, refreshes: f64, length: Duration) {
    let pause = length.div_f64(refreshes.max(1.0));
    let mut ordered = 0.0;
    while ordered < refreshes {
        deployment.ok(&["clients", "refresh", &format!("client-{ordered}")]);
        ordered += 1.0;
        pass(pause).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "it measures real time")]
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

fn report(options: &Options, before: &Usage, after: &Usage) {
    let seconds = options.length.as_secs();
    let refreshes = after.refreshes - before.refreshes;
    let cpu = (after.cpu_seconds - before.cpu_seconds) / options.length.as_secs_f64() * 100.0;
    let (writes, reads) = (after.write_units - before.write_units, after.read_units - before.read_units);
    let (rss, peak, clients) = (after.rss_mb, after.peak_rss_mb, options.clients);
    if options.json {
        let object = serde_json::json!({
            "clients": clients, "seconds": seconds, "refreshes": refreshes, "rss_mb": rss, "peak_rss_mb": peak,
            "cpu_percent": cpu, "write_units": writes, "read_units": reads,
        });
        return println!("{object}");
    }
    println!(
        "summary clients={clients} seconds={seconds} refreshes={refreshes} rss_mb={rss:.1} peak_rss_mb={peak:.1} \
         cpu_percent={cpu:.2} write_units={writes} read_units={reads}"
    );
}
