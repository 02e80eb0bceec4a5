//! A simulated world: one table, its providers, processes that come and go, and operators.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial::client::credentials::Credentials;
use perennial::client::{Client, ClientId, Grant, InDoubt, Provider};
use perennial::entropy::Entropy;
use perennial::fleet::{Ending, Rules, Settings as FleetSettings, Task};
use perennial::item::Change;
use perennial::plan::registry::{self, Imported, Resolution};
use perennial::plan::{Backoff, BreakerPolicy, Lifetimes, Timing};
use perennial::refresh::{Policy, Refresher};
use perennial::scheduler::{Parts, Settings};
use perennial::seal::LocalKeys;
use perennial::secret::Secret;
use perennial::spill::{Memory, Place, Spill};
use perennial::store::{Applied, Vitals};
use perennial::time::{Clock, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::clock::{Machine, Origin};
use super::link::{Link, Road};
use super::provider::{Providers, Wire};
use super::table::{Table, Writer};
use super::witness::Witness;

/// Virtual shards of the simulated table.
const SHARDS: u32 = 8;
/// How long a process that is asked to stop may take.
const PATIENCE: Duration = Duration::from_secs(110);

/// A running process.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) machine: Machine,
    pub(crate) road: Arc<Road>,
    /// Cut off from the providers.
    pub(crate) cut: Arc<AtomicBool>,
    drain: CancellationToken,
    work: JoinHandle<Ending>,
}

impl Process {
    /// Everything works again.
    pub(crate) fn mend(&self) {
        self.machine.resume();
        self.machine.skew(0);
        self.cut.store(false, Ordering::Relaxed);
        self.road.cut.store(false, Ordering::Relaxed);
        for share in [&self.road.throttled, &self.road.lost, &self.road.doubled] {
            share.store(0, Ordering::Relaxed);
        }
    }
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) origin: Origin,
    pub(crate) table: Table,
    pub(crate) providers: Providers,
    pub(crate) witness: Witness,
    pub(crate) dice: Entropy,
    pub(crate) processes: Vec<Process>,
    /// Processes that died with whatever they held.
    pub(crate) crashed: Arc<Mutex<BTreeSet<String>>>,
    /// When something was wrong that may cost freshness.
    pub(crate) trouble: Vec<(Duration, Duration)>,
    /// Clients that an operator or a lost grant has kept from being refreshed for a while.
    pub(crate) touched: BTreeSet<ClientId>,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    /// Half of the worlds have a spill, which outlives every process.
    pub(crate) spill: Option<Memory>,
    profiles: BTreeMap<String, Arc<Provider>>,
    seeds: u64,
    pub(crate) takeovers: u64,
    pub(crate) conflicts: u64,
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The provider profiles: each as an operator would describe what it is.
fn profiles() -> BTreeMap<String, Arc<Provider>> {
    let profile = |name: &str, rotates, in_doubt, grace| {
        let url = Url::parse(&format!("https://{name}.test/token")).expect("a URL");
        let grace_window = secs(grace);
        let profile = Provider { rotates, in_doubt, grace_window, ..Provider::new(name, url) };
        (name.to_owned(), Arc::new(profile))
    };
    BTreeMap::from([
        profile("strict", true, InDoubt::RetryOnce, 0),
        profile("grace", true, InDoubt::Grace, 120),
        profile("fixed", false, InDoubt::Reusable, 0),
        profile("hold", true, InDoubt::Hold, 0),
    ])
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let (origin, providers) = (Origin::now(), Providers::default());
        let witness = Witness::new(origin);
        Self {
            origin,
            table: Table::new(origin, providers.clone(), witness.clone()),
            providers,
            witness,
            dice: Entropy::from_seed(seed),
            processes: Vec::new(),
            crashed: Arc::default(),
            trouble: Vec::new(),
            touched: BTreeSet::new(),
            clients: BTreeMap::new(),
            spill: seed.is_multiple_of(2).then(Memory::default),
            profiles: profiles(),
            seeds: seed.wrapping_mul(1_000_003),
            takeovers: 0,
            conflicts: 0,
        }
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        Machine::new(self.origin).sleep(time).await;
    }

    pub(crate) fn unit(&self) -> f64 {
        self.dice.unit()
    }

    /// One of so many.
    pub(crate) fn pick(&self, of: usize) -> usize {
        ((self.unit() * of as f64) as usize).min(of.saturating_sub(1))
    }

    pub(crate) fn wall(&self) -> Timestamp {
        self.origin.wall()
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        let at = self.origin.elapsed();
        self.witness.say(|| format!("{:>9.3}s {}", at.as_secs_f64(), what()));
    }

    fn seed(&mut self) -> u64 {
        self.seeds = self.seeds.wrapping_add(1);
        self.seeds
    }

    /// Something is wrong from now on, for so long.
    pub(crate) fn trouble_for(&mut self, time: Duration) {
        let now = self.origin.elapsed();
        self.trouble.push((now, now + time));
    }

    /// Starts a process.
    pub(crate) fn start(&mut self) {
        let machine = Machine::new(self.origin);
        let (road, cut, vitals) =
            (Arc::new(Road::default()), Arc::new(AtomicBool::new(false)), Arc::default());
        let link = Arc::new(Link {
            table: self.table.clone(),
            machine: machine.clone(),
            road: Arc::clone(&road),
            dice: Arc::new(Entropy::from_seed(self.seed())),
            vitals: Arc::clone(&vitals),
        });
        let entropy = Arc::new(Entropy::from_seed(self.seed()));
        let clock: Arc<dyn Clock> = Arc::new(machine.clone());
        let mut wire = Wire {
            machine: machine.clone(),
            providers: self.providers.clone(),
            dice: Arc::new(Entropy::from_seed(self.seed())),
            witness: self.witness.clone(),
            by: String::new(),
            cut: Arc::clone(&cut),
        };
        // The incarnation is the refresher's first draw.
        wire.by = Entropy::from_seed(self.seeds - 1).nonce();
        let refresher = Refresher::new(
            Arc::clone(&link),
            Arc::new(wire),
            Arc::clone(&clock),
            Arc::clone(&entropy),
            policy(),
        );
        let refresher = match &self.spill {
            Some(memory) => {
                let places = vec![Place::Memory(memory.clone())];
                refresher.with_spill(Arc::new(Spill::new(places, keys(), "simulated", Arc::clone(&clock))))
            }
            None => refresher,
        };
        let task = Task::new(self.parts(refresher, link, vitals, clock, entropy), fleet_settings());
        let name = task.incarnation().to_owned();
        let drain = CancellationToken::new();
        let asked = drain.clone();
        let work = tokio::spawn(async move {
            let (_never, reconcile) = mpsc::channel(1);
            task.run(reconcile, &asked, &CancellationToken::new(), PATIENCE).await
        });
        self.say(|| format!("{name} starts"));
        self.processes.push(Process { name, machine, road, cut, drain, work });
    }

    fn parts(
        &self,
        refresher: Refresher<Link, Wire>,
        store: Arc<Link>,
        vitals: Arc<Vitals>,
        clock: Arc<dyn Clock>,
        entropy: Arc<Entropy>,
    ) -> Parts<Link, Wire> {
        Parts {
            refresher: Arc::new(refresher),
            store,
            vitals,
            clock,
            entropy,
            providers: self.profiles.clone(),
            settings: Settings {
                concurrency: 64,
                breaker: BreakerPolicy::default(),
                spread: secs(10),
                max_skew: secs(30),
                census: None,
                once: None,
            },
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, which: usize) {
        let process = self.processes.remove(which);
        self.say(|| format!("{} is killed", process.name));
        self.crashed.lock().expect("no panic under the lock").insert(process.name.clone());
        process.work.abort();
    }

    /// SIGTERM, and its end.
    pub(crate) async fn stop(&mut self, which: usize) {
        let process = self.processes.remove(which);
        self.say(|| format!("{} is asked to stop", process.name));
        process.drain.cancel();
        let Ok(Ending { summary: Ok(summary), asked: true }) = process.work.await else {
            return self.table.object(format!("{} did not end well", process.name));
        };
        self.takeovers += summary.tally.takeovers;
        self.conflicts += summary.tally.conflicts;
        if summary.abandoned > 0 {
            self.crashed.lock().expect("no panic under the lock").insert(process.name);
        }
    }

    fn profile(&self, client: &Client) -> &Provider {
        &self.profiles[&client.provider]
    }

    /// An operator's change, tried again while somebody is quicker.
    pub(crate) fn operate(
        &self,
        id: &ClientId,
        plan: impl Fn(&perennial::record::Snapshot) -> Option<Change>,
    ) -> bool {
        for _ in 0..8 {
            let Some(change) = plan(&self.table.snapshot(id)) else { return false };
            if self.table.apply(&change, Writer::Operator) == Ok(Applied::Committed) {
                return true;
            }
        }
        false
    }

    /// Registers a client whose access token was granted a while ago.
    pub(crate) fn register(&mut self, name: &str, provider: &str, lifetime: Duration, mintable: bool) {
        let id = ClientId::new(name).expect("a valid id");
        self.providers.lifetime(name, lifetime);
        let client = Client {
            id: id.clone(),
            provider: provider.into(),
            grant: if mintable { Grant::ClientCredentials } else { Grant::RefreshToken },
            client_id: format!("app-{}", name.len() % 3),
            credentials: Credentials::stored("canary-s"),
            scopes: Vec::new(),
            audience: None,
            resource: Vec::new(),
            params: BTreeMap::from([("customer".to_owned(), name.into())]),
            token_url: None,
            paused: false,
            refresh_now: None,
            joined: self.wall(),
        };
        let left = lifetime.mul_f64(0.35 + 0.6 * self.unit());
        let tokens = Imported {
            access_token: Some(Secret::new("canary-a")),
            refresh_token: (!mintable).then(|| self.providers.consent(name)),
            expires_at: self.wall().plus(left),
            // Of a life that has begun: refreshed between 70 % and 85 % of it.
            refresh_at: Some(
                self.wall().plus(left.saturating_sub(lifetime.mul_f64(0.15 + 0.15 * self.unit()))),
            ),
            ..Imported::nothing()
        };
        let binding = client.binding(self.profile(&client));
        let now = self.wall();
        let done =
            self.operate(&id, |read| registry::register(&client, read, &tokens, &binding, SHARDS, now).ok());
        self.say(|| format!("operator: registers {name}: {done}"));
        if done {
            self.clients.insert(id, client);
        }
    }

    pub(crate) fn remove(&mut self, id: &ClientId) {
        let now = self.wall();
        if self.operate(id, |read| registry::remove(id, read, SHARDS, now).ok()) {
            self.say(|| format!("operator: removes {id}"));
            self.clients.remove(id);
            self.touched.insert(id.clone());
        }
    }

    /// The customer has consented anew.
    pub(crate) fn import(&mut self, id: &ClientId) {
        let Some(client) = self.clients.get(id).filter(|client| client.grant.needs_refresh_token()) else {
            return;
        };
        let binding = client.binding(self.profile(client));
        let now = self.wall();
        let tokens = Imported {
            access_token: Some(Secret::new("canary-a")),
            refresh_token: Some(self.providers.consent(id.as_str())),
            expires_at: now.plus(secs(900)),
            ..Imported::nothing()
        };
        let done =
            self.operate(id, |read| registry::outside_write(id, read, &tokens, &binding, None, now).ok());
        self.say(|| format!("operator: imports new tokens of {id}: {done}"));
        self.touched.insert(id.clone());
    }

    pub(crate) fn pause(&mut self, id: &ClientId, paused: bool) {
        let now = self.wall();
        self.operate(id, |read| Some(registry::pause(read.client()?, paused, now)));
        self.say(|| format!("operator: {} {id}", if paused { "pauses" } else { "resumes" }));
        self.touched.insert(id.clone());
    }

    pub(crate) fn refresh_now(&mut self, id: &ClientId) {
        let now = self.wall();
        self.operate(id, |read| Some(registry::refresh_now(read.client()?, read.tok_gen(), now)));
        self.say(|| format!("operator: asks for a refresh of {id}"));
    }

    /// Decides about a client that is held.
    pub(crate) fn resolve(&mut self, id: &ClientId) {
        let now = self.wall();
        if self.operate(id, |read| registry::resolve(id, read, Resolution::Retry, now).ok()) {
            self.say(|| format!("operator: has {id} tried again"));
            self.touched.insert(id.clone());
        }
    }
}

fn keys() -> LocalKeys {
    LocalKeys::parse(&"07".repeat(32)).expect("a key")
}

pub(crate) fn policy() -> Policy {
    let timing = Timing::try_new(secs(90), secs(5), secs(20), secs(15), secs(60)).expect("the defaults");
    Policy { timing, backoff: Backoff::default(), lifetimes: Lifetimes::default() }
}

fn fleet_settings() -> FleetSettings {
    let rules = Rules { beat: secs(10), silence: secs(30), max_lag: secs(120) };
    FleetSettings { shards: SHARDS, discovery: secs(15), rules, replay: secs(60) }
}
