//! The table of keys: what each takes, what holds where it is not set, and what it is for.

use std::time::Duration;

use super::super::check;
use super::super::kind::Kind;
use super::Fallback::{Follows, Is, Required, Unset};
use super::{Fallback, Key};
use crate::plan::LONGEST_LEASE;

pub(super) const fn key(path: &'static str, kind: Kind, default: Fallback, doc: &'static str) -> Key {
    Key { path, kind, default, doc }
}

pub(super) const fn between(min: Duration, max: Duration) -> Kind {
    Kind::Duration(min..=max)
}

pub(super) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const MINUTE: Duration = secs(60);
const HOUR: Duration = secs(3600);
const DAY: Duration = secs(86_400);

const CRON: Kind = Kind::Text(
    "a cron expression of six fields, seconds first, in UTC, as in \"17 23 * * * *\"",
    check::cron,
);

/// All but those of providers, in the order of the documentation.
pub(in crate::config) static KEYS: &[Key] = &[
    key(
        "profile",
        Kind::Choice(&["development", "production"]),
        Follows("production where ECS is detected, else development"),
        "Which defaults and which refusals hold. `<profile>.toml` is read after `perennial.toml`.",
    ),
    key(
        "store.kind",
        Kind::Choice(&["embedded", "dynamodb"]),
        Follows("dynamodb where table, region or endpoint is set, else embedded; development only"),
        "Where clients and tokens are kept. The embedded store is one file on this machine, for development.",
    ),
    key(
        "store.table",
        Kind::Text("a DynamoDB table name: 3 to 255 characters of A-Z a-z 0-9 _ . -", check::table),
        Is("client-credentials"),
        "The table. Under the production profile either this or `store.kind` must be set.",
    ),
    key(
        "store.region",
        Kind::Text("an AWS region code, as in \"eu-central-1\"", check::region),
        Unset,
        "The table's region; unset, the AWS SDK looks for one as it always does.",
    ),
    key("store.endpoint", Kind::Url, Unset, "Another DynamoDB endpoint, such as DynamoDB Local's."),
    key(
        "store.path",
        Kind::Text("a path", check::line),
        Is(".perennial/perennial.db"),
        "The embedded store's file.",
    ),
    key(
        "store.shards",
        Kind::Integer(1..=4096),
        Is("16"),
        "Virtual shards. Fixed when the table is created; 256 for large fleets.",
    ),
    key(
        "store.kms_key",
        Kind::Text("the id, alias or ARN of a KMS key", check::line),
        Unset,
        "Encrypts the table at rest with this key when it is created; unset, with a key that AWS owns.",
    ),
    key(
        "store.deletion_protection",
        Kind::Flag,
        Follows("true under the production profile, else false"),
        "Whether the table is created with deletion protection.",
    ),
    key(
        "store.point_in_time_recovery",
        Kind::Flag,
        Is("true"),
        "Whether the table is created with point-in-time recovery.",
    ),
    key(
        "refresh.lease",
        between(secs(1), LONGEST_LEASE),
        Is("90s"),
        "How long one attempt may take. More than `window` + the longest `request_timeout` + `commit_budget`.",
    ),
    key(
        "refresh.window",
        between(millis(100), MINUTE),
        Is("5s"),
        "How long after its acquire was begun a request may still be sent.",
    ),
    key(
        "refresh.commit_budget",
        between(millis(100), secs(300)),
        Is("15s"),
        "What a commit may take before a replay is out of the question.",
    ),
    key(
        "refresh.request_timeout",
        between(millis(100), secs(300)),
        Is("20s"),
        "The whole exchange with a token endpoint, at most.",
    ),
    key(
        "refresh.connect_timeout",
        between(millis(50), MINUTE),
        Is("5s"),
        "Connecting to a token endpoint, TLS included, at most. It counts towards the request timeout.",
    ),
    key(
        "refresh.salvage_wait",
        between(Duration::ZERO, secs(600)),
        Is("60s"),
        "How much longer a taker waits, so that a holder that woke late can still store its answer.",
    ),
    key(
        "refresh.concurrency",
        Kind::Integer(1..=10_000),
        Is("64"),
        "Refreshes in flight at once in this process, at most.",
    ),
    key(
        "refresh.lifetime_min",
        between(secs(1), HOUR),
        Is("30s"),
        "No token is refreshed more often than one of this life would be.",
    ),
    key(
        "refresh.lifetime_max",
        between(MINUTE, secs(3650 * 86_400)),
        Is("90d"),
        "No token is refreshed more seldom than one of this life would be.",
    ),
    key(
        "refresh.default_lifetime",
        between(secs(1), secs(90 * 86_400)),
        Is("55m"),
        "An access token's life where the answer does not say.",
    ),
    key(
        "refresh.spread",
        between(Duration::ZERO, secs(600)),
        Is("10s"),
        "What was due before a start is spread over this long.",
    ),
    key("backoff.base", between(millis(10), secs(600)), Is("2s"), "Doubled with every failure of a client."),
    key(
        "backoff.min_interval",
        between(Duration::ZERO, secs(600)),
        Is("5s"),
        "Between two attempts of one client, at least.",
    ),
    key(
        "backoff.cap",
        between(millis(100), DAY),
        Is("10m"),
        "The longest wait while the access token is good, and for a while after its expiry.",
    ),
    key(
        "backoff.cap_expired",
        between(millis(100), secs(7 * 86_400)),
        Is("1h"),
        "The longest wait once the token has been expired for a day.",
    ),
    key("breaker.threshold", Kind::Integer(1..=1000), Is("5"), "Failures in a row that open a breaker."),
    key(
        "breaker.open",
        between(millis(100), HOUR),
        Is("5s"),
        "How long a breaker stays open the first time; doubled with every probe that fails.",
    ),
    key("breaker.open_max", between(millis(100), DAY), Is("1m"), "The longest that a breaker stays open."),
    key(
        "discovery.interval",
        between(secs(1), secs(300)),
        Is("15s"),
        "How often the table is asked for new and changed clients.",
    ),
    key(
        "fleet.beat",
        between(millis(100), MINUTE),
        Is("10s"),
        "How often a task writes its heartbeat and reads those of the others.",
    ),
    key(
        "fleet.silence",
        between(millis(300), secs(600)),
        Is("30s"),
        "A task that has been silent for so long is gone: others take its clients. At least twice `fleet.beat`.",
    ),
    key(
        "fleet.max_lag",
        between(secs(1), HOUR),
        Is("2m"),
        "A task whose scheduler is later than this does not do its work: others take its clients.",
    ),
    key("health.enabled", Kind::Flag, Is("true"), "Whether the health endpoints are served."),
    key("health.address", Kind::Address, Is("127.0.0.1:9464"), "Where they are served."),
    key(
        "health.max_lag",
        between(secs(1), HOUR),
        Is("30s"),
        "How late the scheduler may come to what is due before the process counts as not ready.",
    ),
    key(
        "health.max_skew",
        between(secs(1), HOUR),
        Is("30s"),
        "How far the wall clock may be off the store's before nothing is acquired any more.",
    ),
    key(
        "log.filter",
        Kind::Text("a level or directives, as in \"info\" or \"warn,perennial=debug\"", check::log_filter),
        Is("info,tokio_cron_scheduler=warn"),
        "What is logged: off, error, warn, info, debug or trace, also by target.",
    ),
    key(
        "log.format",
        Kind::Choice(&["auto", "pretty", "json"]),
        Is("auto"),
        "`auto` is pretty on a terminal, and JSON lines otherwise.",
    ),
    key(
        "metrics.emf",
        Kind::Flag,
        Is("false"),
        "Whether metrics are also written to standard output in CloudWatch's Embedded Metric Format.",
    ),
    key("metrics.emf_interval", between(secs(1), HOUR), Is("1m"), "How often that is done."),
    key(
        "metrics.namespace",
        Kind::Text("1 to 255 characters of A-Z, a-z, 0-9, and any of . - _ / # :", check::namespace),
        Is("Perennial"),
        "The namespace in CloudWatch. Fleets that share one add up.",
    ),
    key(
        "shutdown.timeout",
        between(secs(1), secs(120)),
        Is("110s"),
        "How long a drain may take. Less than the orchestrator's stop timeout, which is 120 s on ECS at most.",
    ),
    key(
        "maintenance.reconcile",
        CRON,
        Is("17 23 * * * *"),
        "When every shard is listed in full and compared.",
    ),
    key("maintenance.table_check", CRON, Is("41 7 */6 * * *"), "When the table's settings are checked."),
    key(
        "ecs.protection",
        Kind::Flag,
        Is("true"),
        "On ECS: whether a task asks not to be chosen for scale-in while a refresh is in flight. Elsewhere it means nothing.",
    ),
    key(
        "spill.directory",
        Kind::Text("a path", check::line),
        Unset,
        "New tokens that the table does not take are also kept here, sealed, as files. Outlives the process, not the machine.",
    ),
    key(
        "spill.s3_bucket",
        Kind::Text("the name of an S3 bucket", check::line),
        Unset,
        "... and here, as objects: outlives the task. It should be versioned.",
    ),
    key(
        "spill.s3_prefix",
        Kind::Text("a prefix of object keys", check::line),
        Is("perennial/spill/"),
        "What the keys of the objects begin with.",
    ),
    key(
        "spill.s3_region",
        Kind::Text("an AWS region code, as in \"eu-central-1\"", check::region),
        Unset,
        "The bucket's region; unset, the AWS SDK looks for one as it always does.",
    ),
    key("spill.s3_endpoint", Kind::Url, Unset, "Another S3 endpoint, such as a local server's."),
    key(
        "spill.replay_interval",
        between(secs(1), HOUR),
        Is("1m"),
        "How often a task brings what it finds in the spill into the table.",
    ),
    key(
        "sealing.mode",
        Kind::Choice(&["off", "local", "kms"]),
        Is("off"),
        "What seals new secrets in the table: nothing, the key of this machine (for development), or keys that AWS KMS \
         wraps. Whatever it is, everything opens for which there is a key.",
    ),
    key(
        "sealing.name",
        Kind::Text("a DynamoDB table name: 3 to 255 characters of A-Z a-z 0-9 _ . -", check::table),
        Follows("store.table"),
        "The table's name as it stands in what is sealed and in the keys' names. On a table that was restored under another \
         name: the former one.",
    ),
    key(
        "sealing.key_table",
        Kind::Text("a DynamoDB table name: 3 to 255 characters of A-Z a-z 0-9 _ . -", check::table),
        Follows("sealing.name and `-keys`"),
        "The table of wrapped keys, which `perennial keys init` makes.",
    ),
    key(
        "sealing.kms_key",
        Kind::Text("a key id, alias or ARN", check::line),
        Unset,
        "The customer master key of new wrapped keys.",
    ),
    key(
        "sealing.kms_endpoint",
        Kind::Url,
        Unset,
        "Another KMS endpoint than AWS's own, such as a local server's.",
    ),
    key(
        "sealing.shards",
        Kind::Integer(1..=1024),
        Is("64"),
        "Among so many keys of each family clients are divided. Later changes are for new secrets.",
    ),
    key(
        "sealing.fresh",
        between(secs(10), HOUR),
        Is("30m"),
        "How long an unwrapped key is used before it is asked for again: what revoking a right takes.",
    ),
    key(
        "sealing.stale",
        between(secs(0), DAY),
        Is("12h"),
        "How much longer, while KMS or the table of keys gives no answer. A refusal ends it at once.",
    ),
    key(
        "sealing.key_file",
        Kind::Text("a path", check::line),
        Unset,
        "A file, readable by its owner alone, with the key of this machine, which seals the spill: 32 bytes in \
         hexadecimal or base64, one key a line. The first seals, all of them open.",
    ),
    key(
        "sealing.key",
        Kind::Text("one key or several, separated by commas", check::line),
        Unset,
        "The key itself, meant for the environment: on ECS, from a secret. Never shown.",
    ),
    key(
        "shared_cache.url",
        Kind::Text(
            "a redis or rediss URL without user information, as in \"rediss://cache.example:6379/0\"",
            check::redis_url,
        ),
        Unset,
        "A Redis or Valkey server that daemons publish access tokens to, and that agents ask before the table. Unset, \
         there is none. Plain redis to loopback only, under the production profile.",
    ),
    key(
        "shared_cache.user",
        Kind::Text("a string", check::line),
        Unset,
        "The user there; unset, the server's default user.",
    ),
    key(
        "shared_cache.password_file",
        Kind::Text("a path", check::line),
        Unset,
        "A file with the user's password, readable by its owner alone; read again for each connection.",
    ),
    key(
        "shared_cache.password",
        Kind::Text("a string", check::line),
        Unset,
        "The password itself, meant for the environment: on ECS, from a secret. Never shown.",
    ),
    key(
        "shared_cache.ca_file",
        Kind::Text("a path", check::line),
        Unset,
        "A PEM file with the authorities that are trusted at this server, in place of the platform's.",
    ),
    key(
        "shared_cache.prefix",
        Kind::Text("1 to 200 characters of A-Z a-z 0-9 _ . : @ / { } -", check::cache_prefix),
        Follows("`perennial:`, store.table and `:`"),
        "What the keys there begin with; the client's id follows. Of each table another.",
    ),
    key(
        "shared_cache.patience",
        between(millis(10), secs(5)),
        Is("200ms"),
        "How long an agent waits for the server before it asks the table.",
    ),
    key(
        "agent.address",
        Kind::Address,
        Is("127.0.0.1:2774"),
        "Where `perennial agent` answers: loopback only.",
    ),
    key("agent.socket", Kind::Text("a path", check::line), Unset, "A Unix socket at which it answers, too."),
    key(
        "agent.socket_users",
        Kind::List("numeric user ids", check::user),
        Is(""),
        "Whose processes may use the socket, besides the agent's own user's. With keys, they need one as well.",
    ),
    key(
        "agent.keys_file",
        Kind::Text("a path", check::line),
        Unset,
        "Who may read which tokens: a TOML file, see `perennial agent key`. Under the production profile it must be set.",
    ),
    key(
        "agent.clients",
        Kind::Integer(1..=10_000_000),
        Is("10000"),
        "Clients that are remembered, at most. Others are asked for when they are wanted.",
    ),
    key(
        "agent.max_age",
        between(secs(1), secs(86_400)),
        Is("5m"),
        "A token in use is confirmed with the table at least this often, besides soon after each refresh.",
    ),
    key(
        "agent.idle",
        between(secs(1), secs(30 * 86_400)),
        Is("1h"),
        "A token that nobody has asked for in so long is not kept fresh any more.",
    ),
    key(
        "agent.max_wait",
        between(Duration::ZERO, secs(300)),
        Is("30s"),
        "The longest that a request may wait for a newer token.",
    ),
    key(
        "agent.connections",
        Kind::Integer(1..=100_000),
        Is("1024"),
        "Connections at once. Where there are more, the one that has been idle longest goes.",
    ),
    key(
        "agent.waiting",
        Kind::Integer(1..=100_000),
        Is("1024"),
        "Requests that wait at once, for the table or for a newer token; others are answered with 503.",
    ),
    key(
        "agent.rejections",
        Kind::Flag,
        Is("true"),
        "Whether readers may say that a token was refused, which asks for a refresh.",
    ),
    key(
        "agent.rejection_interval",
        between(secs(10), secs(3600)),
        Is("2m"),
        "How old a token must be for that; doubled while new tokens are refused as well.",
    ),
    key(
        "agent.files.*.client",
        Kind::Text("a client's id: A-Z a-z 0-9 . _ : @ -", check::client),
        Required,
        "Whose access token the file holds.",
    ),
    key(
        "agent.files.*.path",
        Kind::Text("a path", check::line),
        Required,
        "Where the agent keeps it: replaced in one step, so that no program ever reads a part of it, and removed when the token has \
         expired without a successor. Its folder must be there.",
    ),
    key(
        "agent.files.*.format",
        Kind::Choice(&["token", "json", "env"]),
        Is("token"),
        "The access token alone, without a line's end; a JSON object; or variables, a line each.",
    ),
    key(
        "agent.files.*.mode",
        Kind::Text("permissions in octal, from \"0400\" to \"0644\"", check::mode),
        Is("0600"),
        "The file's permissions. Its owner may read, others never write or run it.",
    ),
    key(
        "agent.files.*.world_readable",
        Kind::Flag,
        Is("false"),
        "Whether `mode` may let every user of this machine read the token.",
    ),
    key(
        "agent.files.*.group",
        Kind::Text("a numeric group id", check::group),
        Unset,
        "The file's group, of which the agent's user must be a member; unset, the agent's own.",
    ),
    key(
        "agent.files.*.on_change",
        Kind::List("a program and its arguments", check::line),
        Is(""),
        "What is run after each change of the file, without a shell. It never gets the token: it reads the file.",
    ),
    key(
        "agent.files.*.on_change_timeout",
        between(millis(100), secs(600)),
        Is("30s"),
        "How long that may take before it is killed.",
    ),
    key(
        "agent.drop_in.address",
        Kind::Address,
        Unset,
        "A further port, where it answers as AWS's Secrets Manager Agent and Lambda extension do (theirs is 2773): loopback only.",
    ),
    key(
        "agent.drop_in.names",
        Kind::List("names of secrets with `{client}` in them", check::secret_name),
        Is("{client}"),
        "What secrets are called there, as in \"prod/oauth/{client}\": the first that fits says whose token it is.",
    ),
    key(
        "agent.drop_in.form",
        Kind::Choice(&["json", "plain"]),
        Is("json"),
        "What `SecretString` is there: the token's JSON, or the access token alone.",
    ),
    key(
        "lambda.clients",
        Kind::List("patterns of client ids, with `*` for any characters", check::client_pattern),
        Is("*"),
        "As an extension of AWS Lambda, without agent.keys_file: whose tokens the function may read with its session token.",
    ),
    key(
        "lambda.warm",
        Kind::List("client ids", check::client),
        Is(""),
        "Whose tokens an extension reads before the function begins.",
    ),
    key(
        "secrets.allow",
        Kind::List(
            "references in which `*` stands for anything but `/`, in an ARN also but `:`",
            check::secret_rule,
        ),
        Is(""),
        "The references to client secrets that are followed, as in \"ssm:/oauth/{client}/*\": `{client}` and `{provider}` \
         stand for who uses it. None: a registration with a reference is not refreshed.",
    ),
    key(
        "secrets.fresh",
        between(secs(1), DAY),
        Is("5m"),
        "How long a client secret that was looked up is used before it is looked up again. One that a provider refuses \
         is looked up at once.",
    ),
    key(
        "secrets.stale",
        between(secs(0), secs(7 * 86_400)),
        Is("12h"),
        "How much longer, while there is no answer. A refusal ends it at once.",
    ),
    key(
        "secrets.endpoint",
        Kind::Url,
        Unset,
        "Another endpoint of Secrets Manager and Parameter Store than AWS's own, such as a local server's.",
    ),
];
