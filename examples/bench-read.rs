//! What a read costs, beside a floor: the shipped agent with authentication and freshness, and a bare hyper 1 server with
//! a constant body of the same size.
//!
//! ```text
//! make bench-read
//! ```
//!
//! Both are built alike, run at the same time, and take turns under `wrk` in an order that rotates, on processors that are
//! kept awake. The stable figure on a busy machine is the processor time for a request (schedstat of each thread:
//! nanoseconds); ratios are the median of the pairs'. For each number of connections one line; then memory and processor
//! time for a rising number of clients, and a read through the Rust module:
//!
//! ```text
//! summary conns=16 mode=keep-alive agent_per_s=.. floor_per_s=.. ratio=.. cpu_us_agent=.. cpu_us_floor=.. cpu_ratio=.. rss_mb=.. ...
//! curve clients=1000000 rss_mb=.. per_s=.. cpu_us=.. hot_read_ns=..
//! summary clients=1000 worst_cpu_ratio=.. rss_mb=.. hot_read_ns=.. failed=0
//! ```
//!
//! It ends with code 1 where a request failed.

#![allow(clippy::print_stdout, reason = "it prints what it measures")]
#![allow(clippy::unwrap_used, reason = "a helper that fails ends the run")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt as _;
use perennial::client::ClientId;
use perennial::item::{Action, Change, Condition, Item, Key, Value, attr};
use perennial::secret::Secret;
use perennial::store::Store as _;
use perennial::time::{Clock as _, SystemClock};
use serde_json::json;

#[path = "bench-read/awake.rs"]
mod awake;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "bench-read/wrk.rs"]
mod wrk;

use awake::Awake;
use support::{Deployment, DynamoLocal, Process, agent_url, http_client};
use wrk::{Load, Run};

/// As long as a JWT of a few claims is.
const TOKEN_BYTES: usize = 800;
const SOON: Duration = Duration::from_secs(60);
/// Connections, and whether each is closed after one request.
const MODES: [(u32, bool); 6] = [(1, false), (16, false), (64, false), (1, true), (16, true), (64, true)];

/// Compares the agent with a floor.
#[derive(Parser)]
struct Options {
    /// The program to be measured.
    #[arg(long, default_value = "target/release/perennial")]
    agent: PathBuf,
    /// The floor's program, built alike.
    #[arg(long, default_value = "target/release/examples/read-server")]
    server: PathBuf,
    /// Clients that the agent knows.
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// Numbers of clients for the curve.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,1000000")]
    curve: Vec<usize>,
    /// Pairs of runs for each number of connections.
    #[arg(long, default_value_t = 6)]
    pairs: u32,
    /// How long a run lasts, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Print results as JSON, one object a line.
    #[arg(long)]
    json: bool,
}

impl Options {
    /// One line, for programs of either kind.
    fn print(&self, kind: &str, fields: &Fields) {
        if self.json {
            let fields: serde_json::Map<_, _> =
                fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            return println!("{}", json!({ "kind": kind, "fields": fields }));
        }
        let pairs: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        println!("{kind} {}", pairs.join(" ").replace('"', ""));
    }
}

/// Names and numbers, in the order in which they are told.
type Fields = [(&'static str, serde_json::Value)];

/// One server, and what it is asked.
struct Side {
    process: Process,
    url: String,
    runs: Vec<Run>,
}

impl Side {
    fn under(&self, load: &Load<'_>) -> Run {
        let before = self.process.cpu_time();
        let mut run = load.run(&self.url);
        run.cpu = self.process.cpu_time().saturating_sub(before);
        run
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let deployment = Deployment::on_dynamo(
        DynamoLocal::shared().await,
        "[agent]\naddress = \"127.0.0.1:0\"\nkeys_file = \"keys.toml\"\n",
    );
    put_tokens(&deployment, options.clients).await;
    let key = new_key(&deployment);
    let program = std::fs::canonicalize(&options.agent).expect("--agent is a program");
    let agent = deployment.start_of(&program, &["agent"], &[]).await;
    let url = agent_url(&agent).await;
    let bytes = warm(&url, &key, options.clients).await;
    let mut agent = Side { process: agent, url, runs: Vec::new() };
    let mut floor = serve(&options.server, &["floor", "--bytes", &bytes.to_string()]).await;

    let mut awake = Awake::all();
    let (mut failed, mut worst) = (0, 0.0_f64);
    for (connections, closes) in MODES {
        let load =
            Load { connections, closes, seconds: options.seconds, clients: options.clients, key: &key };
        compare(&options, &load, &mut agent, &mut floor);
        failed += agent.runs.iter().chain(&floor.runs).map(|run| run.failed).sum::<u64>();
        worst = worst.max(ratio(&agent, &floor, Run::cpu_us));
        options.print("summary", &told(&load, &agent, &floor));
    }
    let rss = rounded(agent.process.rss_mb());
    drop((agent, floor));
    let mut hot = None;
    for clients in &options.curve {
        let point = point(&options, *clients, &key).await;
        failed += point.run.failed;
        hot = hot.or(Some(point.hot_read_ns));
        options.print("curve", &point.told());
    }
    assert!(
        awake.still(),
        "a loop that keeps a processor awake has ended: chrt and setpriv must be those of util-linux"
    );
    let clients = options.clients;
    options.print(
        "summary",
        &[
            ("clients", json!(clients)),
            ("worst_cpu_ratio", json!(rounded(worst))),
            ("rss_mb", json!(rss)),
            ("hot_read_ns", json!(hot)),
            ("failed", json!(failed)),
        ],
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// As a table has them that another tool keeps: tokens alone.
async fn put_tokens(deployment: &Deployment, clients: usize) {
    let store = deployment.store().await;
    let expiry = SystemClock.now().plus(Duration::from_secs(24 * 3600));
    for number in 0..clients {
        let item = Item::default()
            .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new("t".repeat(TOKEN_BYTES))))
            .with(attr::EXPIRES_AT, Value::N(expiry.as_secs()))
            .with(attr::TOK_GEN, Value::N(1));
        let id = ClientId::new(format!("client-{number}")).unwrap();
        let change = Change::one(Key::Token(id), Condition::Absent, Action::Put(item));
        store.apply(&change).await.expect("DynamoDB Local takes an item");
    }
}

fn new_key(deployment: &Deployment) -> String {
    let made = deployment.ok(&["agent", "key", "bench", "--clients", "client-*", "--json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let entry = format!("[readers.bench]\nkey_sha256 = [{}]\nclients = [\"client-*\"]\n", made["key_sha256"]);
    std::fs::write(deployment.path().join("keys.toml"), entry).unwrap();
    made["key"].as_str().unwrap().to_owned()
}

/// Has the agent know every client, many of them at once, and returns how long its answers are.
async fn warm(url: &str, key: &str, clients: usize) -> usize {
    let reads = futures_util::stream::iter(0..clients).map(|number| async move {
        let asked =
            http_client().get(format!("{url}/v1/token/client-{number}")).bearer_auth(key).send().await;
        asked.unwrap().error_for_status().unwrap().bytes().await.unwrap().len()
    });
    reads.buffer_unordered(64).fold(0, |longest, bytes| async move { longest.max(bytes) }).await
}

async fn serve(program: &Path, arguments: &[&str]) -> Side {
    let mut process = Process::start(program, arguments, |_| ()).await;
    let url = process.ready(10 * SOON).await;
    Side { process, url, runs: Vec::new() }
}

/// Pairs of runs, each time begun by the other.
fn compare(options: &Options, load: &Load<'_>, agent: &mut Side, floor: &mut Side) {
    agent.runs.clear();
    floor.runs.clear();
    for pair in 0..options.pairs {
        let order = if pair % 2 == 0 { [&mut *agent, &mut *floor] } else { [&mut *floor, &mut *agent] };
        for side in order {
            let run = side.under(load);
            side.runs.push(run);
        }
    }
}

/// The median of the pairs'.
fn ratio(agent: &Side, floor: &Side, of: fn(&Run) -> f64) -> f64 {
    median(agent.runs.iter().zip(&floor.runs).map(|(agent, floor)| of(agent) / of(floor)).collect())
}

fn told(load: &Load<'_>, agent: &Side, floor: &Side) -> [(&'static str, serde_json::Value); 13] {
    let each = |side: &Side, of: fn(&Run) -> f64| json!(rounded(median(side.runs.iter().map(of).collect())));
    let rate = |side: &Side| json!(median(side.runs.iter().map(Run::per_second).collect()).round());
    [
        ("conns", json!(load.connections)),
        ("mode", json!(if load.closes { "close" } else { "keep-alive" })),
        ("agent_per_s", rate(agent)),
        ("floor_per_s", rate(floor)),
        ("ratio", json!(rounded(ratio(agent, floor, Run::per_second)))),
        ("cpu_us_agent", each(agent, Run::cpu_us)),
        ("cpu_us_floor", each(floor, Run::cpu_us)),
        ("cpu_ratio", json!(rounded(ratio(agent, floor, Run::cpu_us)))),
        ("rss_mb", json!(rounded(agent.process.rss_mb()))),
        ("agent_p50_us", each(agent, |run| run.p50_us)),
        ("agent_p99_us", each(agent, |run| run.p99_us)),
        ("floor_p50_us", each(floor, |run| run.p50_us)),
        ("floor_p99_us", each(floor, |run| run.p99_us)),
    ]
}

/// The agent's own code, with so many clients known.
struct Point {
    clients: usize,
    rss_mb: f64,
    run: Run,
    hot_read_ns: f64,
}

impl Point {
    fn told(&self) -> [(&'static str, serde_json::Value); 5] {
        [
            ("clients", json!(self.clients)),
            ("rss_mb", json!(rounded(self.rss_mb))),
            ("per_s", json!(self.run.per_second().round())),
            ("cpu_us", json!(rounded(self.run.cpu_us()))),
            ("hot_read_ns", json!(self.hot_read_ns)),
        ]
    }
}

async fn point(options: &Options, clients: usize, key: &str) -> Point {
    let number = clients.to_string();
    let side = serve(&options.server, &["agent", "--clients", &number, "--key", key]).await;
    let load = Load { connections: 16, closes: false, seconds: options.seconds, clients, key };
    let run = side.under(&load);
    let rss_mb = side.process.rss_mb();
    drop(side);
    let mut reads = Process::start(&options.server, ["hot", "--clients", &number], |_| ()).await;
    let hot: serde_json::Value = serde_json::from_str(&reads.line(10 * SOON).await).unwrap();
    Point { clients, rss_mb, run, hot_read_ns: hot["ns"].as_f64().unwrap().round() }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
