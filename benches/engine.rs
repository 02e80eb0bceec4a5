//! How close the engine comes to a floor that only does what no crash-safe refresh can do without: one durable write
//! before the send, one read, one POST, one durable write after the answer.
//!
//! Engine and floor take turns in the same run, over the same store, against the same provider process, at the same
//! concurrency, each on clients of its own; the ratio is the median of the pairs'. For each store one line:
//!
//! ```text
//! summary store=.. engine_per_s=.. floor_per_s=.. ratio=.. wru_per_refresh=.. rru_per_refresh=..
//! ```

#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::cast_precision_loss, reason = "counts are small")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run may stop there")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt;
use futures_util::stream;
use perennial::client::credentials::Credentials;
use perennial::client::outbound::Outbound;
use perennial::client::{Client, ClientId, Grant, Provider, RateLimit};
use perennial::entropy::Entropy;
use perennial::plan::lease::{self, Commit, Intent};
use perennial::plan::registry::{Imported, register};
use perennial::plan::{Backoff, BreakerPolicy, Lifetimes, Timing};
use perennial::provider::{HttpEndpoint, HttpSettings};
use perennial::record::{Partition, Snapshot};
use perennial::refresh::{Known, Policy, Refresher};
use perennial::reply::{Lifetime, Tokens};
use perennial::scheduler::{Command, Once, Parts, Scheduler, Settings};
use perennial::secret::Secret;
use perennial::store::{Applied, Connection, MemoryStore, Store, TableSpec, Vitals, table};
use perennial::time::{Clock, Moment, SystemClock, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use url::Url;

#[path = "../tests/support/mod.rs"]
mod support;

use support::{Auth, DynamoLocal, StrictProvider};

const APP: &str = "bench-app";
const SECRET: &str = "bench-secret";

/// Compares the engine with a floor.
#[derive(Parser)]
struct Options {
    /// Clients of each side in each pair.
    #[arg(long, default_value_t = 600)]
    clients: u32,
    /// Pairs of an engine run and a floor run.
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Refreshes in flight at once, on either side.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// Which store: memory, dynamodb (DynamoDB Local), or both.
    #[arg(long, default_value = "both")]
    store: String,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let provider = StrictProvider::start(&["--lifetime-secs", "3600"]).await;
    provider.register(Auth::Basic(APP, SECRET)).await;
    let mut clean = true;
    if options.store != "dynamodb" {
        let store = MemoryStore::new();
        let vitals = Arc::clone(store.vitals());
        clean &= Bench::new("memory", &options, store, vitals, &provider).run().await;
    }
    if options.store != "memory" {
        let local = DynamoLocal::start().await;
        let store = connect(&local).await;
        let vitals = Arc::clone(store.vitals());
        clean &= Bench::new("dynamodb-local", &options, store, vitals, &provider).run().await;
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn connect(local: &DynamoLocal) -> perennial::store::DynamoStore {
    let connection = Connection {
        table: DynamoLocal::fresh_table_name(),
        region: Some("us-east-1".into()),
        endpoint: Some(Url::parse(local.endpoint()).unwrap()),
    };
    let store = connection.connect(Arc::new(SystemClock)).await.unwrap();
    let spec =
        TableSpec { kms_key: None, shards: 16, deletion_protection: false, point_in_time_recovery: false };
    table::create(&store, &spec).await.unwrap();
    store
}

struct Bench<'a, S> {
    name: &'static str,
    options: &'a Options,
    store: Arc<S>,
    vitals: Arc<Vitals>,
    strict: &'a StrictProvider,
    provider: Arc<Provider>,
    endpoint: Arc<HttpEndpoint>,
    clock: Arc<dyn Clock>,
}

/// Refreshes per second of one side in one pair.
type Rate = f64;

impl<'a, S: Store> Bench<'a, S> {
    fn new(
        name: &'static str,
        options: &'a Options,
        store: S,
        vitals: Arc<Vitals>,
        strict: &'a StrictProvider,
    ) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let settings = HttpSettings { connect_timeout: Duration::from_secs(5) };
        Self {
            name,
            options,
            store: Arc::new(store),
            vitals,
            strict,
            provider: Arc::new(profile(strict, options.concurrency)),
            endpoint: Arc::new(HttpEndpoint::new(settings, Arc::clone(&clock))),
            clock,
        }
    }

    async fn run(&self) -> bool {
        let (mut engines, mut floors, mut units) = (Vec::new(), Vec::new(), (0.0, 0.0));
        for pair in 0..=self.options.pairs {
            let before = (self.vitals.write_units(), self.vitals.read_units());
            let known = self.clients(&format!("e{pair}")).await;
            let registered = (self.vitals.write_units(), self.vitals.read_units());
            let engine = self.engine(known).await;
            let after = (self.vitals.write_units(), self.vitals.read_units());
            let known = self.clients(&format!("f{pair}")).await;
            let floor = self.floor(known).await;
            if pair == 0 {
                continue; // connections and code warm up
            }
            assert!(before.0 <= registered.0);
            units = (units.0 + after.0 - registered.0, units.1 + after.1 - registered.1);
            engines.push(engine);
            floors.push(floor);
        }
        self.report(&engines, &floors, units).await
    }

    async fn report(&self, engines: &[Rate], floors: &[Rate], (wru, rru): (f64, f64)) -> bool {
        let refreshes = f64::from(self.options.clients) * f64::from(self.options.pairs);
        let ratios: Vec<_> = engines.iter().zip(floors).map(|(engine, floor)| engine / floor).collect();
        let double = self.strict.stats().await.double_redemptions;
        println!(
            "summary store={} engine_per_s={:.0} floor_per_s={:.0} ratio={:.2} wru_per_refresh={:.2} rru_per_refresh={:.2}",
            self.name,
            median(engines),
            median(floors),
            median(&ratios),
            wru / refreshes,
            rru / refreshes,
        );
        double == 0
    }

    /// Registers clients with a refresh token each, due at once.
    async fn clients(&self, prefix: &str) -> Vec<Known> {
        let numbers = stream::iter(0..self.options.clients);
        numbers
            .map(|n| async move {
                let grant = self.strict.seed(APP).await;
                let client = client(&format!("{prefix}-{n}"));
                let read = self.read(&client.id).await;
                let tokens =
                    Imported { refresh_token: Some(Secret::new(grant.refresh_token)), ..Imported::nothing() };
                let binding = client.binding(&self.provider);
                let change = register(&client, &read, &tokens, &binding, 16, self.clock.now()).unwrap();
                assert_eq!(self.store.apply(&change).await, Ok(Applied::Committed));
                Known::of(self.read(&client.id).await).unwrap()
            })
            .buffer_unordered(self.options.concurrency)
            .collect()
            .await
    }

    async fn read(&self, id: &ClientId) -> Snapshot {
        let partition: Partition = self.store.read(id).await.unwrap();
        partition.decode(id).unwrap()
    }

    /// The scheduler, with everything that it does.
    async fn engine(&self, known: Vec<Known>) -> Rate {
        let entropy = Arc::new(Entropy::from_seed(1));
        let secs = Duration::from_secs;
        let timing = Timing::try_new(secs(90), secs(5), secs(20), secs(15), secs(60)).unwrap();
        let policy = Policy { timing, backoff: Backoff::default(), lifetimes: Lifetimes::default() };
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        let refresher =
            Refresher::new(store, Arc::clone(&self.endpoint), clock, Arc::clone(&entropy), policy);
        let parts = Parts {
            refresher: Arc::new(refresher),
            store: Arc::clone(&self.store),
            vitals: Arc::clone(&self.vitals),
            clock: Arc::clone(&self.clock),
            entropy,
            providers: BTreeMap::from([("strict".to_owned(), Arc::clone(&self.provider))]),
            settings: Settings {
                concurrency: self.options.concurrency,
                breaker: BreakerPolicy::default(),
                spread: Duration::ZERO,
                max_skew: secs(30),
                census: None,
                once: Some(Once { max_wait: secs(60) }),
            },
        };
        let (_, permit) = watch::channel(Moment::MAX);
        let scheduler = Scheduler::new(parts, permit);
        let expected = known.len() as u64;
        let (sender, commands) = mpsc::channel(known.len());
        for known in known {
            sender.send(Command::Learn(Box::new(known))).await.unwrap();
        }
        drop(sender);
        let never = CancellationToken::new();
        let began = self.clock.moment();
        let summary = scheduler.run(commands, &never, &never, secs(60)).await;
        let elapsed = self.clock.moment().since(began);
        assert_eq!(summary.tally.refreshed, expected, "{:?}", summary.unfinished);
        expected as f64 / elapsed.as_secs_f64()
    }

    /// The same four requests in a loop.
    async fn floor(&self, known: Vec<Known>) -> Rate {
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let count = known.len() as f64;
        let began = self.clock.moment();
        stream::iter(known)
            .map(|known| self.bare_refresh(&http, known))
            .buffer_unordered(self.options.concurrency)
            .collect::<Vec<()>>()
            .await;
        count / self.clock.moment().since(began).as_secs_f64()
    }

    async fn bare_refresh(&self, http: &reqwest::Client, known: Known) {
        let id = &known.client.id;
        let intent = Intent { owner: "floor".into(), lease: Duration::from_secs(90), now: self.clock.now() };
        let (change, lease) = lease::acquire(id, &known.lease, known.token.generation, &intent).unwrap();
        assert_eq!(self.store.apply(&change).await, Ok(Applied::Committed));
        let read = self.read(id).await;
        let refresh_token = read.token.and_then(|token| token.refresh_token).unwrap();
        let tokens = self.post(http, refresh_token.expose()).await;
        let now = self.clock.now();
        let commit = Commit {
            generation: lease.generation,
            tokens,
            expires_at: now.plus(Duration::from_secs(3600)),
            refresh_at: now.plus(Duration::from_secs(2700)),
            now,
            binding: known.client.binding(&self.provider),
            grant: Grant::RefreshToken,
            item_exists: true,
        };
        assert_eq!(self.store.apply(&lease::commit(id, &commit)).await, Ok(Applied::Committed));
    }

    async fn post(&self, http: &reqwest::Client, refresh_token: &str) -> Tokens {
        let pairs = [("grant_type", "refresh_token"), ("refresh_token", refresh_token)];
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        let request = http
            .post(self.provider.token_url.clone())
            .basic_auth(APP, Some(SECRET))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        let text = request.send().await.unwrap().text().await.unwrap();
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        Tokens {
            access_token: Secret::from(answer["access_token"].as_str().unwrap()),
            refresh_token: answer["refresh_token"].as_str().map(Secret::from),
            token_type: answer["token_type"].as_str().map(str::to_owned),
            scope: answer["scope"].as_str().map(str::to_owned),
            lifetime: Lifetime::Missing,
        }
    }
}

fn client(id: &str) -> Client {
    Client {
        id: ClientId::new(id).unwrap(),
        provider: "strict".into(),
        grant: Grant::RefreshToken,
        client_id: APP.into(),
        credentials: Credentials::stored(SECRET),
        scopes: Vec::new(),
        audience: None,
        resource: Vec::new(),
        params: BTreeMap::new(),
        token_url: None,
        paused: false,
        refresh_now: None,
        joined: Timestamp::from_millis(1),
    }
}

fn profile(strict: &StrictProvider, concurrency: usize) -> Provider {
    let rate = RateLimit { per_second: 1e6, burst: 1_000_000 };
    let outbound = Arc::new(Outbound { loopback: true, ..Outbound::default() });
    Provider {
        concurrency,
        rate,
        outbound,
        ..Provider::new("strict", Url::parse(&strict.token_url()).unwrap())
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
