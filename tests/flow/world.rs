//! A world in which time is simulated: clock, table, provider, and processes that come and go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial::client::allowance::Rules as SecretRules;
use perennial::client::credentials::Credentials;
use perennial::client::{Client, ClientId, Grant, Provider};
use perennial::entropy::Entropy;
use perennial::fleet::{self, Ending, Listing, Phase, Rules, Task};
use perennial::item::{Action, Assignment, Change, Condition, Item, Key, MEMBERS, Value, Write, attr};
use perennial::plan::registry::{self, Imported};
use perennial::plan::{Backoff, BreakerPolicy, Lifetimes, Timing};
use perennial::record::{Lease, Member, Snapshot, Token, decode_member};
use perennial::refresh::{Known, Policy, Refresher, Report};
use perennial::scheduler::{Command, Once, Parts, Scheduler, Settings, Summary};
use perennial::seal::LocalKeys;
use perennial::secret::Secret;
use perennial::secrets::{Keeping, Secrets, Source};
use perennial::spill::{Place, Spill};
use perennial::store::memory::{Fault, Operation};
use perennial::store::{Applied, MemoryStore, Store as _, StoreError, Vitals};
use perennial::time::{Clock, Moment, Sleep, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::endpoint::Endpoint;

/// When every simulation begins.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const SHARDS: u32 = 4;

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn id(id: &str) -> ClientId {
    ClientId::new(id).unwrap()
}

/// Runs on tokio's paused time. Its wall clock can be stepped, and the machine can be suspended.
pub(crate) struct SimClock {
    origin: Instant,
    step_ms: AtomicI64,
    suspended_ms: AtomicU64,
    /// Waits that were begun: how often a loop turned.
    pub(crate) waits: AtomicU64,
}

impl SimClock {
    fn new() -> Self {
        Self {
            origin: Instant::now(),
            step_ms: AtomicI64::new(0),
            suspended_ms: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        }
    }

    /// Since the simulation began, suspended time included.
    pub(crate) fn elapsed(&self) -> Duration {
        self.origin.elapsed() + Duration::from_millis(self.suspended_ms.load(Ordering::Relaxed))
    }

    /// The wall clock's time.
    pub(crate) fn wall(&self) -> Timestamp {
        self.now()
    }

    /// Steps the wall clock, as an operator or NTP does.
    pub(crate) fn step(&self, seconds: i64) {
        self.step_ms.fetch_add(seconds * 1000, Ordering::Relaxed);
    }

    /// Time passes in which this machine stands still: no timer of its own notices.
    pub(crate) fn suspend(&self, time: Duration) {
        self.suspended_ms.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.elapsed().as_millis()).unwrap();
        Timestamp::from_millis(START.as_millis() + elapsed + self.step_ms.load(Ordering::Relaxed))
    }

    fn moment(&self) -> Moment {
        Moment::from_origin(secs(1000) + self.elapsed())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the injected clock")]
    fn sleep(&self, duration: Duration) -> Sleep {
        self.waits.fetch_add(1, Ordering::Relaxed);
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Operations that reached the store.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
}

impl Counts {
    pub(crate) fn all(&self) -> u64 {
        self.reads.load(Ordering::Relaxed) + self.writes.load(Ordering::Relaxed)
    }
}

type Faults = dyn FnMut(Operation<'_>) -> Fault + Send;

pub(crate) struct World {
    pub(crate) clock: Arc<SimClock>,
    pub(crate) store: MemoryStore,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) provider: Provider,
    pub(crate) others: Vec<Provider>,
    pub(crate) breaker: BreakerPolicy,
    pub(crate) settings: Settings,
    pub(crate) counts: Arc<Counts>,
    /// Where answers go that the table does not take.
    pub(crate) spill: Option<perennial::spill::Memory>,
    /// Who follows references to client secrets.
    pub(crate) secrets: Option<Arc<dyn Source>>,
    faults: Arc<Mutex<Option<Box<Faults>>>>,
    heartbeat_faults: Arc<Mutex<Option<Box<Faults>>>>,
    seed: AtomicU64,
}

/// A client to be registered.
pub(crate) struct Spec {
    pub(crate) client: Client,
    pub(crate) tokens: Imported,
}

impl Spec {
    /// How long the first access token is good.
    pub(crate) fn expires_in(mut self, life: Duration) -> Self {
        self.tokens.expires_at = START.plus(life);
        self.tokens.access_token = Some(Secret::new("a0"));
        self
    }

    pub(crate) fn refresh_in(mut self, wait: Duration) -> Self {
        self.tokens.refresh_at = Some(START.plus(wait));
        self
    }

    pub(crate) fn app(mut self, app: &str) -> Self {
        self.client.client_id = app.into();
        self
    }

    pub(crate) fn provider(mut self, provider: &str) -> Self {
        self.client.provider = provider.into();
        self
    }

    /// Minted from credentials, with nothing to lose.
    pub(crate) fn mintable(mut self) -> Self {
        self.client.grant = Grant::ClientCredentials;
        self.tokens.refresh_token = None;
        self
    }
}

pub(crate) fn profile(name: &str) -> Provider {
    Provider::new(name, Url::parse(&format!("https://idp.test/{name}")).unwrap())
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(SimClock::new());
        let (counts, faults) = (Arc::new(Counts::default()), Arc::new(Mutex::new(None::<Box<Faults>>)));
        let store = MemoryStore::new();
        let heartbeat_faults = Arc::new(Mutex::new(None::<Box<Faults>>));
        let (count, fault, beat) = (Arc::clone(&counts), Arc::clone(&faults), Arc::clone(&heartbeat_faults));
        store.on_operation(move |operation| {
            // Heartbeats have stories of their own: elsewhere they always get through, and are not counted.
            if is_heartbeat(operation) {
                return beat.lock().unwrap().as_mut().map_or(Fault::None, |decide| decide(operation));
            }
            let counter = if let Operation::Apply(_) = operation { &count.writes } else { &count.reads };
            counter.fetch_add(1, Ordering::Relaxed);
            // Taken out while it runs: what it does to the table itself is not asked about.
            let Some(mut decide) = fault.lock().unwrap().take() else { return Fault::None };
            let verdict = decide(operation);
            fault.lock().unwrap().get_or_insert(decide);
            verdict
        });
        let breaker = BreakerPolicy::default();
        let settings = Settings {
            concurrency: 64,
            breaker,
            spread: secs(60),
            max_skew: secs(30),
            census: None,
            once: None,
        };
        Self {
            endpoint: Arc::new(Endpoint::new(Arc::clone(&clock))),
            clock,
            store,
            provider: profile("acme"),
            others: Vec::new(),
            breaker,
            settings,
            counts,
            spill: None,
            secrets: None,
            faults,
            heartbeat_faults,
            seed: AtomicU64::new(1),
        }
    }

    /// Decides on the failure of every operation of the store from now on.
    pub(crate) fn faults(&self, decide: impl FnMut(Operation<'_>) -> Fault + Send + 'static) {
        *self.faults.lock().unwrap() = Some(Box::new(decide));
    }

    /// Decides on the failure of every heartbeat, and of every look at the members, from now on.
    pub(crate) fn heartbeat_faults(&self, decide: impl FnMut(Operation<'_>) -> Fault + Send + 'static) {
        *self.heartbeat_faults.lock().unwrap() = Some(Box::new(decide));
    }

    /// The members as they describe themselves.
    pub(crate) fn members(&self) -> Vec<Member> {
        let items = self.store.items().into_iter().filter(|((pk, _), _)| pk == MEMBERS);
        items.map(|((_, sk), item)| decode_member(&sk, &item).unwrap()).collect()
    }

    pub(crate) fn no_faults(&self) {
        self.faults(|_| Fault::None);
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        self.clock.sleep(time).await;
    }

    /// A refresh-token client, due at once.
    pub(crate) fn spec(&self, name: &str) -> Spec {
        let client = Client {
            id: id(name),
            provider: "acme".into(),
            grant: Grant::RefreshToken,
            client_id: "app".into(),
            credentials: Credentials::stored("s1"),
            scopes: Vec::new(),
            audience: None,
            resource: Vec::new(),
            params: BTreeMap::new(),
            token_url: None,
            paused: false,
            refresh_now: None,
            joined: self.clock.now(),
        };
        let refresh_token = Some(self.endpoint.consent(name));
        let scope = Some("first".into());
        Spec { client, tokens: Imported { refresh_token, scope, ..Imported::nothing() } }
    }

    pub(crate) fn profile_of(&self, client: &Client) -> &Provider {
        let mut all = std::iter::once(&self.provider).chain(&self.others);
        all.find(|provider| provider.name == client.provider).unwrap_or(&self.provider)
    }

    pub(crate) async fn add(&self, spec: Spec) -> ClientId {
        let Spec { client, tokens } = spec;
        let read = self.snapshot(&client.id);
        let binding = client.binding(self.profile_of(&client));
        let change = registry::register(&client, &read, &tokens, &binding, SHARDS, self.clock.now()).unwrap();
        assert_eq!(self.store.apply(&change).await, Ok(Applied::Committed));
        client.id
    }

    /// A client that is due at once, by name.
    pub(crate) async fn due(&self, name: &str) -> ClientId {
        self.add(self.spec(name)).await
    }

    pub(crate) async fn apply(&self, change: &Change) {
        assert_eq!(self.store.apply(change).await, Ok(Applied::Committed));
    }

    pub(crate) fn snapshot(&self, id: &ClientId) -> Snapshot {
        let mut partition = perennial::record::Partition::default();
        for key in [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id.clone())] {
            if let Some(item) = self.raw(&key) {
                partition.insert(&key, item);
            }
        }
        partition.decode(id).unwrap()
    }

    pub(crate) fn raw(&self, key: &Key) -> Option<Item> {
        self.store.raw(&key.pk(), key.sk())
    }

    pub(crate) fn put(&self, key: &Key, item: Item) {
        self.store.put_raw(&key.pk(), key.sk(), item);
    }

    /// What DynamoDB's TTL leaves of a mintable client.
    pub(crate) fn store_without_token(&self, id: &ClientId) {
        let key = Key::Token(id.clone());
        let change = Change::one(key, Condition::Exists, Action::Delete);
        assert_eq!(at_once(self.store.apply(&change)), Ok(Applied::Committed));
    }

    /// Changes one attribute as another tool would.
    pub(crate) fn edit(&self, key: &Key, name: &str, value: Value) {
        let item = self.raw(key).unwrap().with(name, value);
        self.put(key, item);
    }

    pub(crate) fn known(&self, id: &ClientId) -> Known {
        Known::of(self.snapshot(id)).unwrap()
    }

    pub(crate) fn lease(&self, id: &ClientId) -> Lease {
        self.snapshot(id).lease.unwrap()
    }

    pub(crate) fn token(&self, id: &ClientId) -> Token {
        self.snapshot(id).token.unwrap()
    }

    /// The refresh token in the table.
    pub(crate) fn stored(&self, id: &ClientId) -> Option<String> {
        Some(self.token(id).refresh_token?.expose().to_owned())
    }

    /// At rest the stored refresh token is the provider's live one.
    pub(crate) fn assert_whole(&self, id: &ClientId) {
        assert_eq!(self.stored(id), self.endpoint.live(id.as_str()), "{id}");
    }

    pub(crate) fn entropy(&self) -> Arc<Entropy> {
        Arc::new(Entropy::from_seed(self.seed.fetch_add(1, Ordering::Relaxed)))
    }

    /// Another process.
    pub(crate) fn refresher(&self) -> Arc<Refresher<MemoryStore, Endpoint>> {
        self.refresher_on(Arc::clone(&self.clock) as _)
    }

    fn refresher_on(&self, clock: Arc<dyn Clock>) -> Arc<Refresher<MemoryStore, Endpoint>> {
        let policy =
            Policy { timing: timing(), backoff: Backoff::default(), lifetimes: Lifetimes::default() };
        let store = Arc::new(self.store.clone());
        let spill = match &self.spill {
            Some(memory) => Spill::new(vec![Place::Memory(memory.clone())], keys(), "t", Arc::clone(&clock)),
            None => Spill::none(),
        };
        let endpoint = Arc::clone(&self.endpoint);
        let refresher = Refresher::new(store, endpoint, Arc::clone(&clock), self.entropy(), policy);
        let refresher = refresher.with_spill(Arc::new(spill));
        let Some(source) = &self.secrets else { return Arc::new(refresher) };
        let rules = SecretRules(vec!["ssm:/*".parse().unwrap()]);
        let keeping = Keeping { fresh: secs(300), stale: secs(3600) };
        let secrets = Secrets::new(rules, keeping, Arc::clone(source), clock, self.entropy());
        Arc::new(refresher.with_secrets(Arc::new(secrets)))
    }

    /// Refreshes a client once, by a process of its own.
    pub(crate) async fn refresh(&self, id: &ClientId) -> Report {
        let (refresher, known) = (self.refresher(), self.known(id));
        refresher.warm(&known, &self.provider).await;
        refresher.refresh(&known, &self.provider).await
    }

    /// The same in the background.
    pub(crate) fn begin(&self, id: &ClientId) -> JoinHandle<Report> {
        let (refresher, known, provider) = (self.refresher(), self.known(id), self.provider.clone());
        tokio::spawn(async move { refresher.refresh(&known, &provider).await })
    }

    fn parts(&self, clock: Arc<dyn Clock>, vitals: Arc<Vitals>) -> Parts<MemoryStore, Endpoint> {
        let profiles = self.others.iter().chain([&self.provider]);
        Parts {
            refresher: self.refresher_on(Arc::clone(&clock)),
            store: Arc::new(self.store.clone()),
            vitals,
            clock,
            entropy: self.entropy(),
            providers: profiles.map(|p| (p.name.clone(), Arc::new(p.clone()))).collect(),
            settings: Settings { breaker: self.breaker, ..self.settings.clone() },
        }
    }

    pub(crate) fn scheduler(&self) -> Scheduler<MemoryStore, Endpoint> {
        self.scheduler_within(watch::channel(Moment::MAX).1)
    }

    /// One that acquires nobody from the moment on that this names.
    pub(crate) fn scheduler_within(
        &self,
        permit: watch::Receiver<Moment>,
    ) -> Scheduler<MemoryStore, Endpoint> {
        let vitals = Arc::clone(self.store.vitals());
        Scheduler::new(self.parts(Arc::clone(&self.clock) as _, vitals), permit)
    }

    /// Starts a daemon, and waits until it has listed its clients.
    pub(crate) async fn daemon(&self) -> Daemon {
        self.daemon_on(Arc::clone(&self.clock) as _, Arc::clone(self.store.vitals())).await
    }

    /// The same on a machine with a clock of its own, and what the store's answers tell of it.
    pub(crate) async fn daemon_on(&self, clock: Arc<dyn Clock>, vitals: Arc<Vitals>) -> Daemon {
        let rules = Rules { beat: secs(10), silence: secs(30), max_lag: secs(120) };
        let task = Task::new(
            self.parts(clock, vitals),
            fleet::Settings { shards: SHARDS, discovery: secs(15), rules, replay: secs(60) },
        );
        let ordering = task.ordering();
        let (pulse, mut phase, name) = (task.scheduler(), task.phase(), task.incarnation().to_owned());
        let (drain, now) = (CancellationToken::new(), CancellationToken::new());
        let (draining, at_once) = (drain.clone(), now.clone());
        let (reconcile, asked) = mpsc::channel(1);
        let work = tokio::spawn(async move { task.run(asked, &draining, &at_once, secs(110)).await });
        phase.wait_for(|phase| *phase == Phase::Active).await.unwrap();
        Daemon { work, drain, now, reconcile, pulse, ordering, name }
    }

    /// A run that ends.
    pub(crate) async fn once(&mut self, max_wait: Duration) -> Summary {
        self.settings.once = Some(Once { max_wait });
        let scheduler = self.scheduler();
        let (sender, commands) = mpsc::channel(1024);
        let (drain, now) = (CancellationToken::new(), CancellationToken::new());
        let work = tokio::spawn(async move { scheduler.run(commands, &drain, &now, secs(110)).await });
        drop(self.list(sender).await);
        tokio::time::timeout(secs(7200), work).await.expect("a run that ends does end").unwrap()
    }

    /// Tells a scheduler of all clients; it may learn of more until this is dropped.
    pub(crate) async fn list(&self, sender: mpsc::Sender<Command>) -> Listing<MemoryStore> {
        let (store, clock) = (Arc::new(self.store.clone()), Arc::clone(&self.clock) as Arc<dyn Clock>);
        let mut listing = Listing::new(store, clock, sender);
        listing.care_for(&(0..SHARDS).collect()).await.unwrap();
        listing
    }

    /// New tokens from outside, as after another consent.
    pub(crate) fn new_consent(&self, id: &ClientId) -> Change {
        let tokens = Imported {
            refresh_token: Some(self.endpoint.consent(id.as_str())),
            expires_at: self.clock.now().plus(secs(3600)),
            ..Imported::nothing()
        };
        let read = self.snapshot(id);
        let binding = read.client().unwrap().binding(&self.provider);
        registry::outside_write(id, &read, &tokens, &binding, None, self.clock.now()).unwrap()
    }

    pub(crate) fn removal(&self, id: &ClientId) -> Change {
        registry::remove(id, &self.snapshot(id), SHARDS, self.clock.now()).unwrap()
    }
}

fn keys() -> LocalKeys {
    LocalKeys::parse(&"07".repeat(32)).unwrap()
}

pub(crate) fn timing() -> Timing {
    Timing::try_new(secs(90), secs(5), secs(20), secs(15), secs(60)).unwrap()
}

/// A process.
pub(crate) struct Daemon {
    pub(crate) work: JoinHandle<Ending>,
    pub(crate) drain: CancellationToken,
    pub(crate) now: CancellationToken,
    pub(crate) reconcile: mpsc::Sender<()>,
    pub(crate) pulse: Arc<perennial::scheduler::Pulse>,
    pub(crate) ordering: Arc<watch::Sender<Option<Arc<perennial::scheduler::Tuning>>>>,
    /// Its incarnation.
    pub(crate) name: String,
}

impl Daemon {
    /// SIGTERM, and what it did in its life.
    pub(crate) async fn stop(self) -> Summary {
        self.drain.cancel();
        self.work.await.unwrap().summary.unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(self) {
        self.work.abort();
    }
}

/// An answer that never came.
pub(crate) fn lost() -> StoreError {
    StoreError::Unavailable("cut".into())
}

/// Whether a task tells of itself, or looks at the others.
pub(crate) fn is_heartbeat(operation: Operation<'_>) -> bool {
    match operation {
        Operation::Members => true,
        Operation::Apply(change) => matches!(change.0.first(), Some(Write { key: Key::Member(_), .. })),
        _ => false,
    }
}

/// Whether the change is the acquire of a lease: it sets `own`.
pub(crate) fn is_acquire(change: &Change) -> bool {
    sets(change, attr::OWN)
}

/// Whether the change stores new tokens.
pub(crate) fn is_commit(change: &Change) -> bool {
    sets(change, attr::ACCESS_TOKEN)
}

fn sets(change: &Change, name: &str) -> bool {
    change.0.iter().any(|write| match &write.action {
        Action::Update(list) => {
            list.iter().any(|it| matches!(it, Assignment::Set(found, _) if *found == name))
        }
        _ => false,
    })
}

/// Runs a future of the table in memory, which never waits: for use inside a fault.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).expect("the table in memory never waits")
}
