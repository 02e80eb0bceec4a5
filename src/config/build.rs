//! From single values to the configuration: what must hold between keys is checked here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use url::Url;

use super::kind::human;
use super::reader::Reader;
use super::{
    Agent, AgentFile, Config, Discovery, DropIn, Ecs, Health, Lambda, Log, Maintenance, Metrics, Profile,
    Refresh, Sealing, SealingMode, Secrets, SharedCache, Shutdown, Spill, Store, StoreKind,
};
use crate::client::allowance::Rules as SecretRules;
use crate::client::outbound::{Outbound, network};
use crate::client::{ClientId, InDoubt, Provider, RateLimit, is_loopback, is_this_machine};
use crate::plan::membership::Rules;
use crate::plan::{Backoff, BreakerPolicy, Lifetimes, Timing};
use crate::seal::LocalKeys;
use crate::secret::Secret;

/// Builds the configuration, by the rules of the profile that is running where there is one; none if a value is missing
/// that has no default. Errors are left with the reader, and void what is returned.
pub(super) fn config(
    r: &mut Reader,
    implied: Profile,
    running: Option<Profile>,
    on_ecs: bool,
) -> Option<Config> {
    let said = profile(r, implied, on_ecs);
    let profile = running.unwrap_or(said);
    let store = store(r, profile);
    let request_timeout = r.duration("refresh.request_timeout");
    let default_lifetime = r.duration("refresh.default_lifetime");
    let providers = providers(r, profile, request_timeout, default_lifetime);
    let timing = timing(r, request_timeout, &providers);
    let refresh = refresh(r, timing, request_timeout, default_lifetime);
    let backoff = backoff(r);
    let breaker = breaker(r);
    let discovery = Discovery { interval: r.duration("discovery.interval") };
    let fleet = fleet(r);
    let health = health(r);
    let metrics = metrics(r);
    let log = Log { filter: r.text("log.filter"), format: r.choice("log.format") };
    let shutdown = Shutdown { timeout: r.duration("shutdown.timeout") };
    let maintenance = Maintenance {
        reconcile: r.text("maintenance.reconcile"),
        table_check: r.text("maintenance.table_check"),
    };
    let ecs = Ecs { protection: r.flag("ecs.protection") };
    let sealing = sealing(r, &store, profile);
    let spill = spill(r, &sealing);
    let shared_cache = shared_cache(r, &store, profile);
    let agent = agent(r);
    let lambda = lambda(r);
    let secrets = secrets(r, profile);
    let refresh = refresh?;
    Some(Config {
        profile,
        store,
        refresh,
        backoff,
        breaker,
        discovery,
        fleet,
        health,
        log,
        metrics,
        shutdown,
        maintenance,
        ecs,
        spill,
        sealing,
        shared_cache,
        agent,
        lambda,
        secrets,
        providers,
    })
}

fn profile(r: &mut Reader, implied: Profile, on_ecs: bool) -> Profile {
    let profile = r.choice_or("profile", implied.as_str());
    if on_ecs && profile == Profile::Development {
        r.refuse(&["profile"], "is \"development\" on ECS", "remove it, or set \"production\"");
    }
    profile
}

fn store(r: &mut Reader, profile: Profile) -> Store {
    let production = profile == Profile::Production;
    let named = ["store.table", "store.region", "store.endpoint"].iter().any(|key| r.is_set(key));
    if production && !r.is_set("store.kind") && !r.is_set("store.table") {
        r.refuse(
            &["store.table", "profile"],
            "no store is configured, and the production profile assumes none",
            "set store.table to the DynamoDB table's name",
        );
    }
    let implied = if named || production { "dynamodb" } else { "embedded" };
    let kind = r.choice_or("store.kind", implied);
    if kind == StoreKind::Embedded {
        refuse_embedded(r, production);
    }
    Store {
        kind,
        table: r.text("store.table"),
        region: r.optional_text("store.region"),
        endpoint: r.optional_url("store.endpoint"),
        path: r.text("store.path").into(),
        shards: r.integer("store.shards"),
        kms_key: r.optional_text("store.kms_key"),
        deletion_protection: r.flag_or("store.deletion_protection", production),
        point_in_time_recovery: r.flag("store.point_in_time_recovery"),
    }
}

fn refuse_embedded(r: &mut Reader, production: bool) {
    const REMEDY: &str = "set store.kind to \"dynamodb\" and store.table to the table's name";
    if production {
        r.refuse(&["store.kind", "profile"], "the embedded store is for development only", REMEDY);
    } else if !cfg!(feature = "embedded") {
        r.refuse(&["store.kind"], "this program was built without the embedded store", REMEDY);
    }
}

/// The lease must outlast an attempt at the slowest provider.
fn timing(r: &mut Reader, request: Duration, providers: &BTreeMap<String, Arc<Provider>>) -> Option<Timing> {
    let slowest = providers.values().max_by_key(|provider| provider.request_timeout);
    let longest = slowest.map_or(request, |provider| provider.request_timeout);
    let own = slowest.map(|provider| format!("providers.{}.request_timeout", provider.name));
    let request_key = own.filter(|key| r.is_set(key)).unwrap_or("refresh.request_timeout".to_owned());
    let lease = r.duration("refresh.lease");
    let window = r.duration("refresh.window");
    let budget = r.duration("refresh.commit_budget");
    let salvage = r.duration("refresh.salvage_wait");
    let timing = Timing::try_new(lease, window, longest, budget, salvage);
    if timing.is_err() {
        let least = human(window.saturating_add(longest).saturating_add(budget));
        r.refuse(
            &["refresh.lease", "refresh.window", "refresh.commit_budget", &request_key],
            format!(
                "{} is too short: refresh.window {} + {request_key} {} + refresh.commit_budget {} must be less",
                human(lease),
                human(window),
                human(longest),
                human(budget)
            ),
            format!("set refresh.lease to more than {least}, or shorten one of the others"),
        );
    }
    timing.ok()
}

fn refresh(
    r: &mut Reader,
    timing: Option<Timing>,
    request_timeout: Duration,
    default_lifetime: Duration,
) -> Option<Refresh> {
    let connect_timeout = r.duration("refresh.connect_timeout");
    let concurrency = r.integer("refresh.concurrency");
    let lifetimes =
        Lifetimes { min: r.duration("refresh.lifetime_min"), max: r.duration("refresh.lifetime_max") };
    let spread = r.duration("refresh.spread");
    in_order(r, ("refresh.lifetime_min", lifetimes.min), ("refresh.lifetime_max", lifetimes.max));
    Some(Refresh {
        timing: timing?,
        request_timeout,
        connect_timeout,
        concurrency,
        lifetimes,
        default_lifetime,
        spread,
    })
}

fn backoff(r: &mut Reader) -> Backoff {
    let backoff = Backoff {
        base: r.duration("backoff.base"),
        min_interval: r.duration("backoff.min_interval"),
        cap: r.duration("backoff.cap"),
        cap_expired: r.duration("backoff.cap_expired"),
    };
    in_order(r, ("backoff.base", backoff.base), ("backoff.cap", backoff.cap));
    in_order(r, ("backoff.cap", backoff.cap), ("backoff.cap_expired", backoff.cap_expired));
    backoff
}

fn breaker(r: &mut Reader) -> BreakerPolicy {
    let breaker = BreakerPolicy {
        threshold: r.integer("breaker.threshold"),
        open: r.duration("breaker.open"),
        open_max: r.duration("breaker.open_max"),
    };
    in_order(r, ("breaker.open", breaker.open), ("breaker.open_max", breaker.open_max));
    breaker
}

fn in_order(r: &mut Reader, (low, least): (&str, Duration), (high, most): (&str, Duration)) {
    if least > most {
        let problem = format!("{} is more than {high}, {}", human(least), human(most));
        r.refuse(&[low, high], problem, format!("lower {low}, or raise {high}"));
    }
}

/// One beat may be lost.
fn fleet(r: &mut Reader) -> Rules {
    let (beat, silence) = (r.duration("fleet.beat"), r.duration("fleet.silence"));
    if silence < beat * 2 {
        let problem = format!("{} is less than two beats of {}", human(silence), human(beat));
        r.refuse(
            &["fleet.silence", "fleet.beat"],
            problem,
            "set fleet.silence to at least twice fleet.beat: three times is usual",
        );
    }
    Rules { beat, silence, max_lag: r.duration("fleet.max_lag") }
}

/// Tokens never lie anywhere unsealed but in the table: a spill needs a key.
fn spill(r: &mut Reader, sealing: &Sealing) -> Spill {
    let spill = Spill {
        directory: r.optional_text("spill.directory").map(Into::into),
        bucket: r.optional_text("spill.s3_bucket"),
        prefix: r.text("spill.s3_prefix"),
        region: r.optional_text("spill.s3_region"),
        endpoint: r.optional_url("spill.s3_endpoint"),
        replay_interval: r.duration("spill.replay_interval"),
    };
    if spill.is_configured() && !sealing.has_own_key() {
        r.refuse(
            &["sealing.key_file", "spill.directory", "spill.s3_bucket"],
            "there is a spill and no key to seal it with",
            "make one with `openssl rand -hex 32`, and name its file here or set PERENNIAL__SEALING__KEY",
        );
    }
    spill
}

fn sealing(r: &mut Reader, store: &Store, profile: Profile) -> Sealing {
    let name = r.text_or("sealing.name", &store.table);
    let sealing = Sealing {
        mode: r.choice("sealing.mode"),
        key_table: r.text_or("sealing.key_table", &format!("{name}-keys")),
        name,
        kms_key: r.optional_text("sealing.kms_key"),
        kms_endpoint: r.optional_url("sealing.kms_endpoint"),
        shards: r.integer("sealing.shards"),
        fresh: r.duration("sealing.fresh"),
        stale: r.duration("sealing.stale"),
        key_file: r.optional_text("sealing.key_file").map(Into::into),
        keys: r.optional_text("sealing.key").map(Secret::new),
    };
    if sealing.key_file.is_some() && sealing.keys.is_some() {
        r.refuse(&["sealing.key_file", "sealing.key"], "are both set", "set one of them");
    }
    if sealing.keys.as_ref().is_some_and(|keys| LocalKeys::parse(keys.expose()).is_err()) {
        let form = "32 bytes in hexadecimal or base64, as `openssl rand -hex 32` prints them";
        r.refuse(&["sealing.key"], "is no key", format!("give {form}"));
    }
    match sealing.mode {
        SealingMode::Local if profile == Profile::Production => {
            let problem = "a key that lies on one machine is for development only";
            r.refuse(&["sealing.mode", "profile"], problem, "set sealing.mode to \"kms\", or to \"off\"");
        }
        SealingMode::Local if !sealing.has_own_key() => r.refuse(
            &["sealing.mode", "sealing.key_file"],
            "there is no key of this machine's",
            "make one with `openssl rand -hex 32`, and name its file or set PERENNIAL__SEALING__KEY",
        ),
        SealingMode::Kms if store.kind == StoreKind::Embedded => r.refuse(
            &["sealing.mode", "store.kind"],
            "an embedded store has no table of keys beside it",
            "set sealing.mode to \"local\", or name a DynamoDB table",
        ),
        _ => {}
    }
    sealing
}

/// Whoever listens on the way would have the password and every token; sealed, the password and who has which client.
fn shared_cache(r: &mut Reader, store: &Store, profile: Profile) -> SharedCache {
    let cache = SharedCache {
        // What is no URL has been refused.
        url: r.optional_text("shared_cache.url").and_then(|text| Url::parse(&text).ok()),
        user: r.optional_text("shared_cache.user"),
        password_file: r.optional_text("shared_cache.password_file").map(Into::into),
        password: r.optional_text("shared_cache.password").map(Secret::new),
        ca_file: r.optional_text("shared_cache.ca_file").map(Into::into),
        prefix: r.text_or("shared_cache.prefix", &format!("perennial:{}:", store.table)),
        patience: r.duration("shared_cache.patience"),
    };
    if cache.password.is_some() && cache.password_file.is_some() {
        let both = ["shared_cache.password_file", "shared_cache.password"];
        r.refuse(&both, "are both set", "set one of them");
    }
    if cache.user.is_some() && cache.password.is_none() && cache.password_file.is_none() {
        let problem = "there is a user and no password";
        r.refuse(
            &["shared_cache.user"],
            problem,
            "set shared_cache.password_file or its environment variable",
        );
    }
    let is_local = |url: &Url| {
        let host = url.host_str().and_then(|host| host.parse::<Authority>().ok());
        host.is_some_and(|host| is_this_machine(&host))
    };
    if profile == Profile::Production
        && cache.url.as_ref().is_some_and(|url| url.scheme() == "redis" && !is_local(url))
    {
        r.refuse(
            &["shared_cache.url", "profile"],
            "is plain redis, and the password and tokens would travel unencrypted",
            "use rediss",
        );
    }
    cache
}

fn agent(r: &mut Reader) -> Agent {
    let address = r.address("agent.address");
    let drop_in = DropIn {
        address: r.optional_address("agent.drop_in.address"),
        names: r.list("agent.drop_in.names"),
        form: r.choice("agent.drop_in.form"),
    };
    for (key, address) in [("agent.address", Some(address)), ("agent.drop_in.address", drop_in.address)] {
        if address.is_some_and(|address| !address.ip().is_loopback()) {
            r.refuse(
                &[key],
                "tokens would leave this machine, unencrypted",
                "use an address of 127.0.0.0/8 or ::1; other machines run an agent of their own",
            );
        }
    }
    Agent {
        address,
        socket: r.optional_text("agent.socket").map(Into::into),
        // Elements that do not fit have been refused.
        socket_users: r.list("agent.socket_users").iter().filter_map(|id| id.parse().ok()).collect(),
        keys_file: r.optional_text("agent.keys_file").map(Into::into),
        clients: r.integer("agent.clients"),
        max_age: r.duration("agent.max_age"),
        idle: r.duration("agent.idle"),
        max_wait: r.duration("agent.max_wait"),
        connections: r.integer("agent.connections"),
        waiting: r.integer("agent.waiting"),
        rejections: r.flag("agent.rejections"),
        rejection_interval: r.duration("agent.rejection_interval"),
        drop_in,
        files: agent_files(r),
    }
}

fn agent_files(r: &mut Reader) -> BTreeMap<String, AgentFile> {
    let mut files: BTreeMap<String, AgentFile> = BTreeMap::new();
    for name in r.names("agent.files") {
        let Some(file) = agent_file(r, &name) else { continue };
        if let Some((other, _)) = files.iter().find(|(_, known)| known.path == file.path) {
            let key = |name: &str| format!("agent.files.{name}.path");
            let keys = [&*key(&name), &*key(other)];
            r.refuse(&keys, format!("is the path of agent.files.{other} as well"), "give each file a path");
        }
        files.insert(name, file);
    }
    files
}

fn agent_file(r: &mut Reader, name: &str) -> Option<AgentFile> {
    let key = |key: &str| format!("agent.files.{name}.{key}");
    let client = r.optional_text(&key("client"));
    let path = r.optional_text(&key("path"));
    for (key, value, remedy) in
        [("client", &client, "name the client"), ("path", &path, "say where the file is to be")]
            .map(|(part, value, remedy)| (key(part), value, remedy))
    {
        if value.is_none() {
            r.refuse(&[&key], "is missing", remedy);
        }
    }
    // What does not fit has been refused.
    let mode = u32::from_str_radix(&r.text(&key("mode")), 8).unwrap_or(0o600);
    let world_readable = r.flag(&key("world_readable"));
    if mode & 0o004 != 0 && !world_readable {
        r.refuse(
            &[&key("mode"), &key("world_readable")],
            "lets every user of this machine read the token",
            format!("use \"0640\" with a group, or set {} to true", key("world_readable")),
        );
    }
    let group = r.optional_text(&key("group")).and_then(|id| id.parse().ok());
    let format = r.choice(&key("format"));
    let (on_change, on_change_timeout) = (r.list(&key("on_change")), r.duration(&key("on_change_timeout")));
    let (client, path) = (ClientId::new(&client?).ok()?, path?.into());
    Some(AgentFile { client, path, format, mode, group, on_change, on_change_timeout })
}

fn lambda(r: &mut Reader) -> Lambda {
    // Elements that do not fit have been refused.
    let warm = r.list("lambda.warm").into_iter().filter_map(|id| ClientId::new(id).ok()).collect();
    Lambda { clients: r.list("lambda.clients"), warm }
}

fn secrets(r: &mut Reader, profile: Profile) -> Secrets {
    let endpoint = r.optional_url("secrets.endpoint");
    if let Some(url) = &endpoint
        && profile == Profile::Production
        && url.scheme() == "http"
        && !is_loopback(url)
    {
        r.refuse(
            &["secrets.endpoint", "profile"],
            "is plain http, and secrets would travel unencrypted",
            "use https",
        );
    }
    // Elements that do not fit have been refused.
    let rules = r.list("secrets.allow").iter().filter_map(|text| text.parse().ok()).collect();
    Secrets {
        allow: SecretRules(rules),
        fresh: r.duration("secrets.fresh"),
        stale: r.duration("secrets.stale"),
        endpoint,
    }
}

fn health(r: &mut Reader) -> Health {
    Health {
        enabled: r.flag("health.enabled"),
        address: r.address("health.address"),
        max_lag: r.duration("health.max_lag"),
        max_skew: r.duration("health.max_skew"),
    }
}

fn metrics(r: &mut Reader) -> Metrics {
    Metrics {
        emf: r.flag("metrics.emf"),
        emf_interval: r.duration("metrics.emf_interval"),
        namespace: r.text("metrics.namespace"),
    }
}

fn providers(
    r: &mut Reader,
    profile: Profile,
    request: Duration,
    lifetime: Duration,
) -> BTreeMap<String, Arc<Provider>> {
    let names = r.names("providers").into_iter();
    let mut provider = |name: String| {
        let outbound = Arc::new(outbound(r, profile, &name));
        let provider = provider(r, &name, outbound, request, lifetime)?;
        Some((name, Arc::new(provider)))
    };
    names.filter_map(&mut provider).collect()
}

fn provider(
    r: &mut Reader,
    name: &str,
    outbound: Arc<Outbound>,
    request: Duration,
    lifetime: Duration,
) -> Option<Provider> {
    let key = |key: &str| format!("providers.{name}.{key}");
    let token_url = r.optional_url(&key("token_url"));
    let allow_http = r.flag(&key("allow_http"));
    match &token_url {
        None => r.refuse(&[&key("token_url")], "is missing", "set the provider's token endpoint"),
        Some(url) if url.scheme() == "http" && !is_loopback(url) && !allow_http => r.refuse(
            &[&key("token_url"), &key("allow_http")],
            "is plain http, and tokens would travel unencrypted",
            format!("use https; inside a trusted network set {} to true", key("allow_http")),
        ),
        Some(_) => {}
    }
    let rotates = r.flag(&key("rotates"));
    let (in_doubt, grace_window) = in_doubt(r, name, rotates);
    let rate = RateLimit { per_second: r.float(&key("rate_per_second")), burst: r.integer(&key("burst")) };
    let secret = |(name, value)| (name, Secret::new(value));
    let provider = Provider {
        name: name.to_owned(),
        auth: r.choice(&key("auth")),
        scopes: r.list(&key("scopes")),
        audience: r.optional_text(&key("audience")),
        resource: r.list(&key("resource")),
        params: r.map(&key("params")).into_iter().map(secret).collect(),
        headers: r.map(&key("headers")).into_iter().map(secret).collect(),
        rotates,
        in_doubt,
        grace_window,
        unavailable_is_unprocessed: r.flag(&key("unavailable_is_unprocessed")),
        allow_http,
        outbound,
        request_timeout: r.duration_or(&key("request_timeout"), request),
        concurrency: r.integer(&key("concurrency")),
        rate,
        default_lifetime: r.duration_or(&key("default_lifetime"), lifetime),
        max_response: r.integer(&key("max_response")),
        overlap: r.optional_duration(&key("overlap")),
        token_url: token_url?,
    };
    Some(provider)
}

fn outbound(r: &mut Reader, profile: Profile, name: &str) -> Outbound {
    let key = |key: &str| format!("providers.{name}.{key}");
    Outbound {
        // Elements that do not fit have been refused.
        networks: r.list(&key("allow_networks")).iter().filter_map(|text| network(text).ok()).collect(),
        loopback: profile == Profile::Development,
        ca_file: r.optional_text(&key("ca_file")).map(Into::into),
        pins: r.list(&key("pin_sha256")).iter().filter_map(|text| text.parse().ok()).collect(),
    }
}

fn in_doubt(r: &mut Reader, name: &str, rotates: bool) -> (InDoubt, Duration) {
    let key = |key: &str| format!("providers.{name}.{key}");
    let implied = if rotates { "retry-once" } else { "reusable" };
    let in_doubt = r.choice_or(&key("in_doubt"), implied);
    let grace_window = r.duration(&key("grace_window"));
    if in_doubt == InDoubt::Reusable && rotates {
        r.refuse(
            &[&key("in_doubt"), &key("rotates")],
            "is \"reusable\" at a provider that rotates: sending a refresh token again may revoke the grant",
            format!("set {} to false if it never rotates; else use \"retry-once\"", key("rotates")),
        );
    }
    if in_doubt == InDoubt::Grace && grace_window.is_zero() {
        r.refuse(
            &[&key("in_doubt"), &key("grace_window")],
            "is \"grace\" without a grace window",
            format!("set {} to the time that the provider documents", key("grace_window")),
        );
    }
    (in_doubt, grace_window)
}

#[cfg(all(test, not(feature = "embedded")))]
mod tests {
    use crate::config::{Config, Sources};

    #[test]
    fn without_the_embedded_store_one_must_be_named() {
        let errors = Config::load(Sources::default()).expect_err("no store").0;
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].key, "store.kind");
        assert!(errors[0].remedy.contains("store.table"), "{}", errors[0]);
    }
}
