//! Everything that a run consists of: the table, the provider, the proxies, the daemons, and an operator with a
//! command line.

#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perennial::plan::lease::{Standing, standing};
use perennial::record::Snapshot;
use perennial::store::DynamoStore;
use tempfile::TempDir;

use crate::journal::{Journal, Task};
use crate::network::{Door, Network, TASK};
use crate::provider::{Kind, Provider};
use crate::support::faketime::WallClock;
use crate::support::{Deployment, DynamoLocal, NewClient, Process, snapshot, wait_until};
use crate::timings::{PROMPT, Timings};

/// The operator's command line, among the tasks.
pub(crate) const OPERATOR: Task = 0;

/// What kind of run it is to be.
pub(crate) struct Setup {
    pub(crate) clients: usize,
    pub(crate) provider: Kind,
    pub(crate) timings: Timings,
    /// Whether the tasks share a spill.
    pub(crate) spill: bool,
    /// Further settings of the provider, such as `in_doubt = "hold"`.
    pub(crate) policy: &'static str,
    /// Further arguments of the strict provider.
    pub(crate) arguments: &'static [&'static str],
    /// Print what happens.
    pub(crate) aloud: bool,
    /// Show how far it is.
    pub(crate) progress: bool,
}

impl Setup {
    pub(crate) fn of(timings: Timings, clients: usize) -> Self {
        let provider = Kind::Strict;
        Self {
            clients,
            provider,
            timings,
            spill: false,
            policy: "",
            arguments: &[],
            aloud: false,
            progress: false,
        }
    }
}

/// A daemon, running or ended.
pub(crate) struct Run {
    pub(crate) task: Task,
    pub(crate) process: Process,
    _door: Door,
    clock: Option<WallClock>,
}

/// A run's parts.
pub(crate) struct Fleet {
    pub(crate) journal: Arc<Journal>,
    pub(crate) network: Arc<Network>,
    pub(crate) provider: Provider,
    pub(crate) timings: Timings,
    pub(crate) ids: Vec<String>,
    pub(crate) store: DynamoStore,
    /// Daemons by task, from 1 on; those that ended keep their logs.
    pub(crate) runs: Vec<Run>,
    deployment: Deployment,
    operator: Door,
    _provider_door: Door,
    folder: TempDir,
    imports: usize,
}

impl Fleet {
    /// Everything but the daemons.
    pub(crate) async fn prepare(setup: &Setup) -> Self {
        let journal = Arc::new(Journal::new(setup.aloud));
        let local = DynamoLocal::shared().await;
        let provider = Provider::start(setup.provider, &setup.timings, setup.arguments).await;
        let patience = setup.timings.request_timeout;
        let network = Network::new(Arc::clone(&journal), local.endpoint(), provider.url(), patience);
        let network = Arc::new(network);
        let provider_door = network.provider_door().await;
        let folder = tempfile::tempdir().expect("the system's folder for temporary files is writable");
        let settings = settings(setup, provider_door.url(), folder.path());
        let deployment = Deployment::on_dynamo(local, &settings);
        let operator = network.store_door(OPERATOR).await;
        let store = deployment.store().await;
        let ids = (0..setup.clients).map(|n| format!("customer-{n}")).collect();
        let timings = setup.timings.clone();
        let fleet = Self {
            journal,
            network,
            provider,
            timings,
            ids,
            store,
            runs: Vec::new(),
            deployment,
            operator,
            _provider_door: provider_door,
            folder,
            imports: 0,
        };
        fleet.register().await;
        fleet
    }

    async fn register(&self) {
        let mut clients = Vec::new();
        for id in &self.ids {
            self.provider.register(id).await;
            let refresh_token = Some(self.provider.consent(id, &self.journal).await);
            let (client_id, secret) = self.provider.credentials(id);
            let client_secret = Some(secret);
            clients.push(NewClient {
                id: id.clone(),
                provider: "chaos",
                client_id,
                client_secret,
                refresh_token,
            });
        }
        tokio::task::block_in_place(|| self.deployment.apply(&clients));
    }

    /// Starts another daemon.
    pub(crate) async fn start(&mut self) -> Task {
        let task = Task::try_from(self.runs.len() + 1).expect("few");
        let door = self.network.store_door(task).await;
        let clock = WallClock::new(&self.folder.path().join(format!("skew-{task}")));
        let (name, header) = (task.to_string(), header_variable());
        let mut variables = vec![("PERENNIAL__STORE__ENDPOINT", door.url()), (&header, &name)];
        variables.extend(clock.iter().flat_map(WallClock::variables));
        let process = self.deployment.daemon_with(&variables).await;
        self.journal.logs_to(task, process.log().to_owned());
        // Before its first words a signal would find no handler.
        wait_until(PROMPT, "the daemon begins", async || process.errors().contains("starting")).await;
        self.runs.push(Run { task, process, _door: door, clock });
        task
    }

    pub(crate) fn run(&mut self, task: Task) -> &mut Run {
        let number = usize::try_from(task).expect("few");
        &mut self.runs[number - 1]
    }

    /// A daemon's incarnation, as its log tells it.
    pub(crate) fn incarnation(&mut self, task: Task) -> Option<String> {
        let log = crate::support::log_lines(&self.run(task).process.errors());
        log.iter().find_map(|line| line["incarnation"].as_str().map(str::to_owned))
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, task: Task) {
        self.journal.killed(task);
        let process = &mut self.run(task).process;
        process.signal("KILL");
        process.exit_code(PROMPT).await;
    }

    /// SIGTERM, and the end.
    pub(crate) async fn terminate(&mut self, task: Task) -> i32 {
        let bound = self.timings.drain + PROMPT;
        let process = &mut self.run(task).process;
        process.signal("TERM");
        process.exit_code(bound).await
    }

    /// Steps a daemon's wall clock, in seconds off the true time.
    pub(crate) fn skew(&mut self, task: Task, seconds: i32) {
        self.run(task).clock.as_ref().expect("clocks are stepped where they can be").step(seconds);
    }

    pub(crate) async fn snapshot(&self, id: &str) -> Snapshot {
        snapshot(&self.store, id).await
    }

    pub(crate) async fn stands(&self, id: &str) -> Standing {
        stands(&self.snapshot(id).await)
    }

    /// The customer consents again, and the operator imports what comes of it.
    pub(crate) async fn consent_again(&mut self, id: &str) {
        let token = self.provider.consent(id, &self.journal).await;
        self.imports += 1;
        let file = self.deployment.secret_file(&format!("import-{}", self.imports), &token);
        let file = file.to_string_lossy().into_owned();
        self.operate(&["clients", "import-token", id, "--refresh-token-file", &file]);
    }

    /// The operator lets a held client be tried again.
    pub(crate) fn retry(&self, id: &str) {
        self.operate(&["clients", "resolve", id, "--retry"]);
    }

    /// Commands of the operator fail where the client has changed meanwhile: the next round sees how it stands then.
    pub(crate) fn operate(&self, arguments: &[&str]) -> bool {
        let variables = [("PERENNIAL__STORE__ENDPOINT", self.operator.url())];
        tokio::task::block_in_place(|| self.deployment.run_with(arguments, &variables)).status.success()
    }

    /// How many records are in the spill.
    pub(crate) fn spilled(&self) -> usize {
        let folders = fs::read_dir(self.folder.path().join("spill")).into_iter().flatten().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
        files.filter(|file| file.path().extension().is_some_and(|extension| extension == "jwe")).count()
    }
}

/// How a client stands.
pub(crate) fn stands(snapshot: &Snapshot) -> Standing {
    standing(snapshot.lease.as_ref().expect("a registered client has a lease"), snapshot.tok_gen())
}

fn header_variable() -> String {
    format!("PERENNIAL__PROVIDERS__CHAOS__HEADERS__{}", TASK.to_uppercase().replace('-', "_"))
}

fn settings(setup: &Setup, provider: &str, folder: &Path) -> String {
    let Setup { timings, policy, .. } = setup;
    let mut settings = format!(
        "{}[log]\nfilter = \"info,perennial::refresh=debug,tokio_cron_scheduler=warn\"\n\
         [providers.chaos]\ntoken_url = \"{provider}/token\"\nrate_per_second = 1000.0\nburst = 1000\n\
         concurrency = 100\n{policy}\n",
        timings.settings
    );
    if setup.spill {
        let (spill, key) = (folder.join("spill"), folder.join("sealing.key"));
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key).expect("a new file");
        writeln!(file, "{:064x}", rand::random::<u128>()).expect("the folder is writable");
        settings.push_str(&format!(
            "[spill]\ndirectory = {spill:?}\nreplay_interval = \"2s\"\n[sealing]\nkey_file = {key:?}\n"
        ));
    }
    settings
}

/// How long a fleet may take to come to rest: a take-over at its latest, and a refresh or two after it.
pub(crate) fn rest(timings: &Timings) -> Duration {
    timings.take_over * 2 + timings.lifetime.min(Duration::from_secs(60)) + PROMPT
}
