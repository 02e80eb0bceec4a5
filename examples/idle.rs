//! What a fleet costs that has nothing to do: heartbeats, discovery, reconciliation and the table check.
//!
//! Measured and not computed: the daemon's own fleet code runs on simulated time over the table in memory, which
//! charges by DynamoDB's documented rules (`tests/store_suite/idle.rs` holds them against what DynamoDB Local says). An
//! hour passes until everybody is at work; what the following hours consume is scaled to a month. No client comes due.
//!
//! It ends with one line for programs for each number of tasks:
//!
//! ```text
//! summary tasks=2 clients=130 write_units=.. read_units=.. dollars=..
//! ```
//!
//! Units and dollars are those of the whole fleet in a month of 30 days. Not counted: storage, backups, and the refreshes
//! themselves, which `README.md` prices.

#![allow(clippy::print_stdout, reason = "a measurement prints")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use perennial::client::credentials::Credentials;
use perennial::client::{Client, ClientId, Grant, Provider};
use perennial::entropy::Entropy;
use perennial::fleet::{self, Phase, Rules, Task};
use perennial::item::{Item, Key, Value, attr};
use perennial::plan::registry::{self, Imported};
use perennial::plan::{Backoff, BreakerPolicy, Lifetimes, Timing};
use perennial::provider::{TokenEndpoint, TokenRequest};
use perennial::record::Partition;
use perennial::refresh::{Policy, Refresher};
use perennial::reply::Reply;
use perennial::scheduler::{Parts, Settings};
use perennial::secret::Secret;
use perennial::store::{MemoryStore, Store as _, View};
use perennial::time::{Clock, Moment, Sleep, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

/// Dollars for a million units of on-demand throughput in us-east-1, Standard table class:
/// <https://aws.amazon.com/dynamodb/pricing/on-demand/>, as since 1 November 2024.
const DOLLARS_PER_MILLION_WRITES: f64 = 0.625;
const DOLLARS_PER_MILLION_READS: f64 = 0.125;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const MONTH_IN_HOURS: f64 = 30.0 * 24.0;
/// The default of `maintenance.table_check`, in hours.
const TABLE_CHECK: u32 = 6;

/// Measures what an idle fleet consumes, in capacity units and dollars a month.
#[derive(Parser)]
struct Options {
    /// Numbers of tasks to measure.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 10, 50])]
    tasks: Vec<u32>,
    /// Registered clients, none of which comes due.
    #[arg(long, default_value_t = 130)]
    clients: u32,
    /// Virtual shards of the table (`store.shards`).
    #[arg(long, default_value_t = 16)]
    shards: u32,
    /// Simulated hours to measure; a multiple of 6 has a whole number of table checks.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    hours: u32,
    /// Print one JSON object for each number of tasks instead of the table and the summary.
    #[arg(long)]
    json: bool,
}

/// What a fleet consumes in a month.
struct Bill {
    tasks: u32,
    writes: f64,
    reads: f64,
}

impl Bill {
    fn dollars(&self) -> f64 {
        (self.writes * DOLLARS_PER_MILLION_WRITES + self.reads * DOLLARS_PER_MILLION_READS) / 1e6
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let bills: Vec<_> = options.tasks.iter().map(|tasks| measure(*tasks, &options)).collect();
    if options.json {
        bills.iter().for_each(|bill| println!("{}", object(bill, &options)));
        return ExitCode::SUCCESS;
    }
    println!(
        "{:>6}  {:>16}  {:>16}  {:>10}  {:>14}",
        "TASKS", "WRITE UNITS", "READ UNITS", "$ A MONTH", "$ EACH TASK"
    );
    for bill in &bills {
        let Bill { tasks, writes, reads } = bill;
        let (all, each) = (bill.dollars(), bill.dollars() / f64::from(*tasks));
        println!("{tasks:>6}  {writes:>16.0}  {reads:>16.0}  {all:>10.2}  {each:>14.3}");
    }
    println!();
    for bill in &bills {
        let (Bill { tasks, writes, reads }, clients) = (bill, options.clients);
        println!(
            "summary tasks={tasks} clients={clients} write_units={writes:.0} read_units={reads:.0} dollars={:.2}",
            bill.dollars()
        );
    }
    ExitCode::SUCCESS
}

fn object(bill: &Bill, options: &Options) -> serde_json::Value {
    serde_json::json!({
        "tasks": bill.tasks,
        "clients": options.clients,
        "shards": options.shards,
        "write_units": bill.writes.round(),
        "read_units": bill.reads.round(),
        "dollars": (bill.dollars() * 100.0).round() / 100.0,
    })
}

fn measure(tasks: u32, options: &Options) -> Bill {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O").block_on(month(tasks, options))
}

async fn month(tasks: u32, options: &Options) -> Bill {
    let (store, clock) = (Arc::new(MemoryStore::new()), Arc::new(Simulated(tokio::time::Instant::now())));
    prepare(&store, options).await;
    let mut fleet = Vec::new();
    for seed in 0..tasks {
        fleet.push(start(&store, &clock, seed, options.shards).await);
        // Deployments start tasks one after the other; beats in step would not be life either.
        clock.sleep(Duration::from_millis(1700)).await;
    }
    clock.sleep(HOUR).await;
    let before = (store.vitals().write_units(), store.vitals().read_units());
    for hour in 1..=options.hours {
        clock.sleep(HOUR).await;
        for reconcile in &fleet {
            reconcile.send(()).await.expect("the task is at work");
            if hour % TABLE_CHECK == 0 {
                // What `store::table` reads of the table's items; descriptions of the table cost nothing.
                store.load(&[Key::Schema], View::Whole).await.expect("memory answers");
            }
        }
    }
    clock.sleep(Duration::from_secs(1)).await;
    let scale = MONTH_IN_HOURS / f64::from(options.hours);
    let consumed = |now: f64, before: f64| (now - before) * scale;
    Bill {
        tasks,
        writes: consumed(store.vitals().write_units(), before.0),
        reads: consumed(store.vitals().read_units(), before.1),
    }
}

/// A table with clients whose tokens are good for longer than anybody measures.
async fn prepare(store: &MemoryStore, options: &Options) {
    let schema = [(attr::V, i64::from(options.shards)), (attr::SCHEMA, 1), (attr::MIN_READER, 1)];
    let schema =
        schema.into_iter().fold(Item::default(), |item, (name, number)| item.with(name, Value::N(number)));
    store.put_raw("META", "SCHEMA", schema);
    let provider = provider();
    let far = START.plus(Duration::from_secs(3600 * 24 * 365));
    for n in 0..options.clients {
        let client = Client {
            id: ClientId::new(format!("customer-{n:06}")).expect("a valid id"),
            provider: provider.name.clone(),
            grant: Grant::RefreshToken,
            client_id: "app".into(),
            credentials: Credentials::stored("0123456789abcdef0123456789abcdef"),
            scopes: vec!["read".into(), "write".into()],
            audience: None,
            resource: Vec::new(),
            params: BTreeMap::new(),
            token_url: None,
            paused: false,
            refresh_now: None,
            joined: START,
        };
        let tokens = Imported {
            access_token: Some(Secret::new("a".repeat(800))),
            refresh_token: Some(Secret::new("r".repeat(80))),
            expires_at: far,
            refresh_at: Some(far),
            ..Imported::nothing()
        };
        let binding = client.binding(&provider);
        let nothing = Partition::default().decode(&client.id).expect("nothing is well formed");
        let change = registry::register(&client, &nothing, &tokens, &binding, options.shards, START);
        store.apply(&change.expect("nothing stands there")).await.expect("memory answers");
    }
}

fn provider() -> Provider {
    Provider::new("acme", Url::parse("https://idp.test/token").expect("a URL"))
}

/// Starts a task and waits until it works. What is returned asks it for a reconciliation, as the calendar does.
async fn start(store: &Arc<MemoryStore>, clock: &Arc<Simulated>, seed: u32, shards: u32) -> mpsc::Sender<()> {
    let secs = Duration::from_secs;
    let entropy = Arc::new(Entropy::from_seed(u64::from(seed)));
    let timing = Timing::try_new(secs(90), secs(5), secs(20), secs(15), secs(60)).expect("the defaults fit");
    let policy = Policy { timing, backoff: Backoff::default(), lifetimes: Lifetimes::default() };
    let (clock, endpoint) = (Arc::clone(clock) as Arc<dyn Clock>, Arc::new(Nobody));
    let refresher =
        Refresher::new(Arc::clone(store), endpoint, Arc::clone(&clock), Arc::clone(&entropy), policy);
    let parts = Parts {
        refresher: Arc::new(refresher),
        store: Arc::clone(store),
        vitals: Arc::clone(store.vitals()),
        clock,
        entropy,
        providers: BTreeMap::from([("acme".to_owned(), Arc::new(provider()))]),
        settings: Settings {
            concurrency: 64,
            breaker: BreakerPolicy::default(),
            spread: secs(60),
            max_skew: secs(30),
            census: None,
            once: None,
        },
    };
    let rules = Rules { beat: secs(10), silence: secs(30), max_lag: secs(120) };
    let task = Task::new(parts, fleet::Settings { shards, discovery: secs(15), rules, replay: secs(60) });
    let mut phase = task.phase();
    let (reconcile, asked) = mpsc::channel(1);
    tokio::spawn(async move {
        let never = CancellationToken::new();
        task.run(asked, &never, &never, secs(1)).await
    });
    phase.wait_for(|phase| *phase == Phase::Active).await.expect("it comes to work");
    reconcile
}

/// A provider to which nothing is ever sent.
struct Nobody;

impl TokenEndpoint for Nobody {
    async fn send(&self, _: &TokenRequest) -> Reply {
        panic!("a client came due: the fleet is not idle")
    }
}

/// Time that passes as fast as everybody sleeps.
struct Simulated(tokio::time::Instant);

impl Clock for Simulated {
    fn now(&self) -> Timestamp {
        START.plus(self.0.elapsed())
    }

    fn moment(&self) -> Moment {
        Moment::from_origin(self.0.elapsed())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the injected clock")]
    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_fleet_of_two_stays_within_its_price() {
        let options = Options { tasks: vec![2], clients: 20, shards: 16, hours: 6, json: false };
        let bill = measure(2, &options);
        // A beat every ten seconds is one write unit, and nothing else writes.
        assert!((bill.writes - 518_400.0).abs() < 0.5, "{}", bill.writes);
        assert!(bill.dollars() > 0.5 && bill.dollars() < 0.6, "{}", bill.dollars());
    }
}
