//! The configuration: from files and environment to typed values, and the only reader of the environment.
//!
//! Sources are laid over one another as a raw tree, the tree is checked leaf by leaf against one table of keys, and
//! [`Config`] is built from what fits. Every error is reported at once, each with its key, its remedy and its origin;
//! serde would stop at the first one and print the value, which may be a secret.

mod build;
pub(crate) mod check;
mod error;
mod kind;
mod reader;
mod reload;
mod schema;
mod sources;
mod spelling;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::config::{Map, Value};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::client::allowance::Rules as SecretRules;
use crate::client::{ClientId, Provider};
use crate::plan::membership::Rules;
use crate::plan::{Backoff, BreakerPolicy, Lifetimes, Timing};
use crate::secret::Secret;

pub use error::{ConfigError, ConfigErrors, Origin};
pub use reload::Changes;
pub use schema::{Reference, reference};
pub use sources::{Fingerprint, Sources};

use reader::Reader;
use sources::Layer;

/// Which defaults and which refusals hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Works without any configuration, on the embedded store.
    #[default]
    Development,
    /// Names its store, which is DynamoDB. Implied on ECS.
    Production,
}

impl Profile {
    /// As the configuration spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Production => "production",
        }
    }
}

/// The usable configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The profile in force.
    pub profile: Profile,
    /// Where clients and tokens are kept.
    pub store: Store,
    /// How refreshes are timed.
    pub refresh: Refresh,
    /// How long to wait after failures.
    pub backoff: Backoff,
    /// When a token endpoint is left alone.
    pub breaker: BreakerPolicy,
    /// How new clients are found.
    pub discovery: Discovery,
    /// Heartbeats, and when a task counts as gone.
    pub fleet: Rules,
    /// The health endpoints.
    pub health: Health,
    /// Logs.
    pub log: Log,
    /// What CloudWatch gets.
    pub metrics: Metrics,
    /// The drain.
    pub shutdown: Shutdown,
    /// Calendar jobs.
    pub maintenance: Maintenance,
    /// What is peculiar to Amazon ECS.
    pub ecs: Ecs,
    /// Where new tokens go that the table does not take.
    pub spill: Spill,
    /// How secrets are sealed.
    pub sealing: Sealing,
    /// Access tokens beside the table.
    pub shared_cache: SharedCache,
    /// Tokens for the programs of this machine.
    pub agent: Agent,
    /// As an extension of AWS Lambda.
    pub lambda: Lambda,
    /// Where client secrets may be that are not in the table.
    pub secrets: Secrets,
    /// Provider profiles by name.
    pub providers: BTreeMap<String, Arc<Provider>>,
}

/// Which store there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// One file on this machine, for development. Never under the production profile.
    Embedded,
    /// One DynamoDB table.
    Dynamodb,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Which store.
    pub kind: StoreKind,
    /// The table's name: 3 to 255 characters of `[A-Za-z0-9_.-]`.
    pub table: String,
    /// The table's region; none leaves it to the AWS SDK.
    pub region: Option<String>,
    /// Another DynamoDB endpoint than AWS's own.
    pub endpoint: Option<Url>,
    /// The embedded store's file.
    pub path: PathBuf,
    /// Virtual shards, 1 to 4096; fixed when the table is created.
    pub shards: u32,
    /// The KMS key that a new table is encrypted with; none for one that AWS owns.
    pub kms_key: Option<String>,
    /// Whether a new table is protected from deletion.
    pub deletion_protection: bool,
    /// Whether a new table has point-in-time recovery.
    pub point_in_time_recovery: bool,
}

/// `[refresh]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// Lease, send window, commit budget and salvage wait; they fit the slowest provider.
    pub timing: Timing,
    /// The whole exchange with a token endpoint, where a provider says nothing else: 100 ms to 5 min.
    pub request_timeout: Duration,
    /// Connecting to a token endpoint: 50 ms to 1 min.
    pub connect_timeout: Duration,
    /// Refreshes in flight at once in this process: 1 to 10000.
    pub concurrency: usize,
    /// What lifetimes are clamped to; `min` is not more than `max`.
    pub lifetimes: Lifetimes,
    /// An access token's life where nobody says: 1 s to 90 d.
    pub default_lifetime: Duration,
    /// What was due before a start is spread over this: 0 s to 10 min.
    pub spread: Duration,
}

/// `[discovery]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// How often the table is asked for new and changed clients: 1 s to 5 min.
    pub interval: Duration,
}

/// `[health]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the endpoints are served.
    pub enabled: bool,
    /// Where they are served.
    pub address: SocketAddr,
    /// How late the scheduler may come to what is due: 1 s to 1 h.
    pub max_lag: Duration,
    /// How far the wall clock may be off the store's before nothing is acquired: 1 s to 1 h.
    pub max_skew: Duration,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Directives of `tracing_subscriber::EnvFilter`, known to parse.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

/// `[metrics]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Whether CloudWatch gets lines on standard output.
    pub emf: bool,
    /// How often: 1 s to 1 h.
    pub emf_interval: Duration,
    /// The namespace there.
    pub namespace: String,
}

/// `[shutdown]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// How long a drain may take: 1 s to 2 min, the longest `stopTimeout` on ECS.
    pub timeout: Duration,
}

/// `[maintenance]`: cron expressions of six fields (seconds first, UTC), known to parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// When every shard is listed in full and compared.
    pub reconcile: String,
    /// When the table's settings are checked.
    pub table_check: String,
}

/// `[ecs]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ecs {
    /// Whether a task protects itself from scale-in while it works.
    pub protection: bool,
}

/// `[spill]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spill {
    /// A directory on this machine.
    pub directory: Option<PathBuf>,
    /// An S3 bucket.
    pub bucket: Option<String>,
    /// What the keys of its objects begin with.
    pub prefix: String,
    /// Its region; none leaves it to the AWS SDK.
    pub region: Option<String>,
    /// Another S3 endpoint than AWS's own.
    pub endpoint: Option<Url>,
    /// How often it is replayed: 1 s to 1 h.
    pub replay_interval: Duration,
}

/// `[sealing]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealing {
    /// What seals new secrets in the table.
    pub mode: SealingMode,
    /// The table's name in what is sealed.
    pub name: String,
    /// The table of wrapped keys.
    pub key_table: String,
    /// The customer master key of new ones.
    pub kms_key: Option<String>,
    /// Another KMS endpoint than AWS's own.
    pub kms_endpoint: Option<Url>,
    /// How many keys of each family there are: 1 to 1024.
    pub shards: u32,
    /// How long an unwrapped key is used before it is asked for again: 10 s to 1 h.
    pub fresh: Duration,
    /// How much longer while there is no answer: 0 s to 1 d.
    pub stale: Duration,
    /// The file with the keys of this machine.
    pub key_file: Option<PathBuf>,
    /// Those keys themselves, known to be keys.
    pub keys: Option<Secret>,
}

/// `[shared_cache]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedCache {
    /// The server; none where there is no shared cache.
    pub url: Option<Url>,
    /// The user there.
    pub user: Option<String>,
    /// The file with its password.
    pub password_file: Option<PathBuf>,
    /// That password itself.
    pub password: Option<Secret>,
    /// The authorities that are trusted there, in place of the platform's.
    pub ca_file: Option<PathBuf>,
    /// What keys begin with: 1 to 200 characters.
    pub prefix: String,
    /// How long an agent waits for it: 10 ms to 5 s.
    pub patience: Duration,
}

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Where it answers: loopback.
    pub address: SocketAddr,
    /// A Unix socket at which it answers, too.
    pub socket: Option<PathBuf>,
    /// Whose processes may use the socket, besides the agent's own user's.
    pub socket_users: Vec<u32>,
    /// Who may read which tokens.
    pub keys_file: Option<PathBuf>,
    /// Clients that are remembered: 1 to 10 million.
    pub clients: usize,
    /// A token in use is confirmed at least this often: 1 s to 1 d.
    pub max_age: Duration,
    /// A token that nobody has asked for in so long is not kept fresh: 1 s to 30 d.
    pub idle: Duration,
    /// The longest that a request may wait: up to 5 min.
    pub max_wait: Duration,
    /// Connections at once: 1 to 100 000.
    pub connections: usize,
    /// Requests that wait at once: 1 to 100 000.
    pub waiting: usize,
    /// Whether readers may say that a token was refused.
    pub rejections: bool,
    /// How old a token must be for that: 10 s to 1 h.
    pub rejection_interval: Duration,
    /// Where it answers as AWS's own, and how.
    pub drop_in: DropIn,
    /// Files that it keeps, by name.
    pub files: BTreeMap<String, AgentFile>,
}

/// `[agent.files.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentFile {
    /// Whose access token.
    pub client: ClientId,
    /// Where it is written.
    pub path: PathBuf,
    /// What is written there.
    pub format: FileFormat,
    /// Its permissions, as in `0o640`; others than owner and group may read only where that was said.
    pub mode: u32,
    /// Its group; none for the agent's own.
    pub group: Option<u32>,
    /// A program and its arguments, to be run after each change; empty for none.
    pub on_change: Vec<String>,
    /// How long that may take: 100 ms to 10 min.
    pub on_change_timeout: Duration,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// The access token and nothing else.
    Token,
    /// A JSON object.
    Json,
    /// Variables, a line each.
    Env,
}

/// `[agent.drop_in]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropIn {
    /// Where: loopback; none where it is not spoken.
    pub address: Option<SocketAddr>,
    /// What secrets are called, each with `{client}` in it.
    pub names: Vec<String>,
    /// What a secret's string is.
    pub form: SecretForm,
}

/// What a secret's string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretForm {
    /// The token's JSON.
    Json,
    /// The access token alone.
    Plain,
}

/// `[lambda]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lambda {
    /// Patterns of the clients whose tokens the function may read with its session token.
    pub clients: Vec<String>,
    /// Whose tokens are read before the function begins.
    pub warm: Vec<ClientId>,
}

/// `[secrets]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// The references that are followed.
    pub allow: SecretRules,
    /// How long what was looked up is used: 1 s to 1 d.
    pub fresh: Duration,
    /// How much longer while there is no answer: 0 s to 7 d.
    pub stale: Duration,
    /// Another endpoint of AWS's services.
    pub endpoint: Option<Url>,
}

/// What seals new secrets in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealingMode {
    /// Nothing.
    Off,
    /// The key of this machine: for development. Never under the production profile.
    Local,
    /// Keys that KMS wraps.
    Kms,
}

impl Sealing {
    /// Whether this machine has a key of its own.
    pub fn has_own_key(&self) -> bool {
        self.key_file.is_some() || self.keys.is_some()
    }
}

impl Spill {
    /// Whether there is one.
    pub fn is_configured(&self) -> bool {
        self.directory.is_some() || self.bucket.is_some()
    }
}

/// What stands for the value of a secret.
const REDACTED: &str = "(redacted)";

/// One setting as `config show` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// Its value; `"(redacted)"` for a secret, null where nothing is set and there is no default.
    pub value: serde_json::Value,
    /// Where the value came from.
    pub origin: Origin,
}

/// A configuration, and where each of its settings came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting, sorted by key.
    pub settings: Vec<Setting>,
}

impl Loaded {
    /// The files that hold secrets and that every user of this machine may read.
    pub fn exposed_files(&self) -> BTreeSet<PathBuf> {
        let secret = self.settings.iter().filter(|setting| setting.value == REDACTED);
        let own = secret.filter_map(|setting| match &setting.origin {
            Origin::File(path) => Some(PathBuf::from(path)),
            _ => None,
        });
        let named = [&self.config.sealing.key_file, &self.config.shared_cache.password_file];
        let files = own.chain(named.into_iter().flatten().cloned());
        let is_open = |file: &PathBuf| std::fs::metadata(file).is_ok_and(|found| found.mode() & 0o004 != 0);
        files.filter(is_open).collect()
    }
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// All that is wrong at once: files that cannot be read, keys and variables that there are not, values that do
    /// not fit, and values that do not fit together.
    pub fn load(sources: Sources) -> Result<Loaded, ConfigErrors> {
        Self::load_under(sources, None)
    }

    /// The same, by the files and the rules of the profile that is running, whatever the sources say: that they say
    /// otherwise stands among the settings, and waits for a restart.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_again(sources: Sources, running: Profile) -> Result<Loaded, ConfigErrors> {
        Self::load_under(sources, Some(running))
    }

    fn load_under(sources: Sources, running: Option<Profile>) -> Result<Loaded, ConfigErrors> {
        let on_ecs = sources.on_ecs();
        let implied = if on_ecs { Profile::Production } else { Profile::Development };
        let mut errors = Vec::new();
        let tree = collect(sources, implied, running, &mut errors);
        let mut reader = Reader::new(&tree);
        let config = build::config(&mut reader, implied, running, on_ecs);
        errors.append(&mut reader.errors);
        errors.sort();
        errors.dedup();
        let mut settings = reader.settings;
        settings.sort_by(|a, b| a.key.cmp(&b.key));
        match config {
            Some(config) if errors.is_empty() => Ok(Loaded { config, settings }),
            _ => Err(ConfigErrors(errors)),
        }
    }
}

/// Files first, the profile's own over the common one, and the environment over both.
fn collect(
    sources: Sources,
    implied: Profile,
    running: Option<Profile>,
    errors: &mut Vec<ConfigError>,
) -> Map<String, Value> {
    let path = sources.path();
    let environment = sources.into_layer(errors);
    let Some(path) = path else { return sources::merge(&[&environment]) };
    if !path.is_dir() {
        return sources::merge(&[&Layer::from_file(&path, errors), &environment]);
    }
    let optional = |name: &str, errors: &mut Vec<ConfigError>| match path.join(name) {
        file if file.exists() => Layer::from_file(&file, errors),
        _ => Layer::default(),
    };
    let common = optional("perennial.toml", errors);
    let profile = match sources::merge(&[&common, &environment]).get("profile").map(ToString::to_string) {
        Some(name) if name == "production" => Profile::Production,
        Some(name) if name == "development" => Profile::Development,
        _ => implied,
    };
    let profile = running.unwrap_or(profile);
    let mut own = optional(&format!("{}.toml", profile.as_str()), errors);
    if let Some(value) = own.remove("profile") {
        errors.push(ConfigError {
            key: "profile".to_owned(),
            problem: "is set in a file that is only read once the profile is known".to_owned(),
            remedy: "set it in perennial.toml or in PERENNIAL__PROFILE".to_owned(),
            origin: Origin::of(&value),
        });
    }
    sources::merge(&[&common, &own, &environment])
}
