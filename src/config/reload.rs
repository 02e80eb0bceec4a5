//! What of a new configuration a running daemon can take, and what has to wait for a restart.
//!
//! Every key is in one of two classes, and `docs/configuration.md` shows which. A new configuration is taken as a whole
//! or not at all: one with an error changes nothing. Of one that is valid, the live keys hold at once; the others keep
//! the value that the process began with, and are named.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{ConfigError, ConfigErrors};
use super::{Config, Health, Loaded, Log, Refresh, Setting};
use crate::plan::Timing;

/// When a changed value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reload {
    /// As soon as it is read.
    Live,
    /// From the next start on, for this reason.
    Restart(&'static str),
}

use Reload::{Live, Restart};

const TIMING: Reload = Restart("the length of a lease is what makes a take-over safe");

/// The class of each key, by its path or by what its path begins with; the longest entry rules.
const CLASSES: &[(&str, Reload)] = &[
    ("profile", Restart("it decides which file is read, and which defaults hold")),
    ("store.", Restart("the table is opened once, at the start")),
    ("refresh.", Live),
    ("refresh.lease", TIMING),
    ("refresh.window", TIMING),
    ("refresh.commit_budget", TIMING),
    ("refresh.salvage_wait", TIMING),
    ("refresh.connect_timeout", Restart("connections are made by one client, built at the start")),
    ("backoff.", Live),
    ("breaker.", Live),
    ("discovery.", Restart("discovery and its health check are paced at the start")),
    ("fleet.", Restart("members judge each other by it: change it task by task")),
    ("health.", Live),
    ("health.enabled", Restart("the address is bound once, at the start")),
    ("health.address", Restart("the address is bound once, at the start")),
    ("log.filter", Live),
    ("log.format", Restart("the log is opened once, at the start")),
    ("metrics.", Restart("what collects them is set up once, at the start")),
    ("shutdown.", Live),
    ("maintenance.", Restart("the calendar is made at the start")),
    ("ecs.", Restart("it is decided at the start")),
    ("spill.", Restart("the spill is opened once, at the start")),
    ("sealing.", Restart("keys are read once, at the start")),
    ("shared_cache.", Restart("it is connected to by what was read at the start")),
    ("agent.", Restart("an agent reads it once, at the start")),
    ("lambda.", Restart("an extension reads it once, at the start")),
    ("secrets.", Restart("what may be followed is settled at the start, with the environment")),
    ("providers.", Live),
];

/// The class of a key. A key that nobody has classified waits for a restart; a test sees to it that there is none.
pub(super) fn class(key: &str) -> Reload {
    let entries =
        CLASSES.iter().filter(|(path, _)| key == *path || path.ends_with('.') && key.starts_with(path));
    let ruling = entries.max_by_key(|(path, _)| path.len());
    ruling.map_or(Restart("it is not known to be safe"), |(_, class)| *class)
}

/// What a new configuration changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys whose new values hold from now on. A provider that has come or gone is one of them, by its name.
    pub live: BTreeSet<String>,
    /// Keys whose new values wait for a restart, and why.
    pub waiting: BTreeMap<String, &'static str>,
}

impl Changes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.waiting.is_empty()
    }

    fn between(running: &Loaded, new: &Loaded) -> Self {
        let mut changes = Self::default();
        for key in differing(&running.settings, &new.settings) {
            match class(&key) {
                Live => drop(changes.live.insert(provider_or_key(key, running, new))),
                Restart(why) => drop(changes.waiting.insert(key, why)),
            }
        }
        // Secrets are not among the settings as they are: these are compared by what was made of them.
        for (name, provider) in &new.config.providers {
            let Some(known) = running.config.providers.get(name) else { continue };
            let parts = [
                ("headers", known.headers != provider.headers),
                ("params", known.params != provider.params),
                ("token_url", known.token_url != provider.token_url),
            ];
            for (part, _) in parts.into_iter().filter(|(_, changed)| *changed) {
                let named = format!("providers.{name}.{part}");
                if !changes.live.iter().any(|key| key.starts_with(&named)) {
                    changes.live.insert(named);
                }
            }
        }
        let (before, after) = (&running.config, &new.config);
        let secrets = [
            ("sealing.key", before.sealing.keys != after.sealing.keys),
            ("shared_cache.password", before.shared_cache.password != after.shared_cache.password),
        ];
        for (key, _) in secrets.into_iter().filter(|(_, changed)| *changed) {
            if let Restart(why) = class(key) {
                changes.waiting.insert(key.to_owned(), why);
            }
        }
        changes
    }
}

fn differing(running: &[Setting], new: &[Setting]) -> BTreeSet<String> {
    let values = |settings: &[Setting]| -> BTreeMap<_, _> {
        settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect()
    };
    let (running, new) = (values(running), values(new));
    let keys = running.keys().chain(new.keys());
    keys.filter(|key| running.get(*key) != new.get(*key)).cloned().collect()
}

/// Of a provider that is new or gone, its name says enough.
fn provider_or_key(key: String, running: &Loaded, new: &Loaded) -> String {
    let name = key.strip_prefix("providers.").and_then(|rest| rest.split('.').next());
    let has = |loaded: &Loaded, name: &str| loaded.config.providers.contains_key(name);
    match name {
        Some(name) if has(running, name) != has(new, name) => format!("providers.{name}"),
        _ => key,
    }
}

impl Loaded {
    /// The configuration that holds once `new` was read: its live keys, and what is running for the others.
    ///
    /// # Errors
    /// Where the live keys do not fit those that wait.
    pub fn take(&self, new: Self) -> Result<(Self, Changes), ConfigErrors> {
        let changes = Changes::between(self, &new);
        let misfits = misfits(&self.config.refresh.timing, &new.config);
        if !misfits.is_empty() {
            return Err(ConfigErrors(misfits));
        }
        let of = |loaded: &Self, live: bool| -> Vec<Setting> {
            let settings = loaded.settings.iter();
            settings.filter(|setting| (class(&setting.key) == Live) == live).cloned().collect()
        };
        let mut settings = of(self, false);
        settings.extend(of(&new, true));
        settings.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((Self { config: merged(&self.config, new.config), settings }, changes))
    }
}

/// Between a key that is live and one that is not there is one rule: a lease outlasts an attempt at the slowest provider.
fn misfits(running: &Timing, new: &Config) -> Vec<ConfigError> {
    let longest = new.providers.values().map(|provider| provider.request_timeout).max();
    let longest = longest.unwrap_or(new.refresh.request_timeout);
    let budget = (running.lease(), running.window(), longest, running.commit_budget(), running.salvage());
    match Timing::try_new(budget.0, budget.1, budget.2, budget.3, budget.4) {
        Ok(_) => Vec::new(),
        Err(problem) => vec![ConfigError {
            key: "refresh.request_timeout".to_owned(),
            problem: format!("does not fit the lease that is running: {problem}"),
            remedy: "restart with the new refresh.lease, or give no provider so long a request_timeout"
                .to_owned(),
            origin: None,
        }],
    }
}

fn merged(running: &Config, new: Config) -> Config {
    Config {
        refresh: Refresh {
            timing: running.refresh.timing,
            connect_timeout: running.refresh.connect_timeout,
            ..new.refresh
        },
        backoff: new.backoff,
        breaker: new.breaker,
        health: Health { enabled: running.health.enabled, address: running.health.address, ..new.health },
        log: Log { format: running.log.format, ..new.log },
        shutdown: new.shutdown,
        providers: new.providers,
        ..running.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Sources, reference};
    use super::*;

    fn load(text: &str) -> Loaded {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("perennial.toml");
        std::fs::write(&file, format!("{text}\n[store]\nkind = \"dynamodb\"\n")).expect("a file");
        Config::load(Sources { path: Some(file), ..Sources::default() }).expect("a configuration")
    }

    fn provider(name: &str, more: &str) -> String {
        format!("[providers.{name}]\ntoken_url = \"https://{name}.test/token\"\n{more}\n")
    }

    fn names(changes: &Changes) -> (Vec<&str>, Vec<&str>) {
        (
            changes.live.iter().map(String::as_str).collect(),
            changes.waiting.keys().map(String::as_str).collect(),
        )
    }

    #[test]
    fn every_key_is_classified_and_every_entry_is_of_use() {
        for row in reference() {
            assert_ne!(class(row.key), Restart("it is not known to be safe"), "{} is in no class", row.key);
        }
        for (path, _) in CLASSES {
            let used = reference()
                .iter()
                .any(|row| row.key == *path || path.ends_with('.') && row.key.starts_with(path));
            assert!(used, "{path} is no key and no section");
        }
    }

    #[test]
    fn nothing_changes_where_nothing_has_changed() {
        let running = load(&provider("acme", "headers = { x-api-key = \"s\" }"));
        let (taken, changes) = running.take(running.clone()).expect("it fits");
        assert!(changes.is_empty(), "{changes:?}");
        assert_eq!(taken, running);
    }

    #[test]
    fn live_keys_are_taken_and_the_others_keep_what_is_running() {
        let running = load("[refresh]\nconcurrency = 8\n[log]\nfilter = \"info\"");
        let new = load(
            "[refresh]\nconcurrency = 9\nlease = \"100s\"\n[log]\nfilter = \"debug\"\nformat = \"json\"\n\
             [fleet]\nbeat = \"5s\"\n[health]\nmax_lag = \"9s\"\naddress = \"127.0.0.1:1\"\n[shutdown]\ntimeout = \"7s\"",
        );
        let (taken, changes) = running.take(new.clone()).expect("it fits");
        let live = vec!["health.max_lag", "log.filter", "refresh.concurrency", "shutdown.timeout"];
        let waiting = vec!["fleet.beat", "health.address", "log.format", "refresh.lease"];
        assert_eq!(names(&changes), (live, waiting.clone()));
        let (config, before) = (&taken.config, &running.config);
        assert_eq!((config.refresh.concurrency, config.log.filter.as_str()), (9, "debug"));
        assert_eq!(
            (config.health.max_lag, config.shutdown.timeout),
            (new.config.health.max_lag, new.config.shutdown.timeout)
        );
        assert_eq!(
            (config.refresh.timing, config.fleet, config.log.format),
            (before.refresh.timing, before.fleet, before.log.format)
        );
        assert_eq!(config.health.address, before.health.address);
        let (_, again) = taken.take(new).expect("it fits");
        assert_eq!(names(&again), (vec![], waiting), "what waits goes on waiting");
    }

    #[test]
    fn providers_come_go_and_change_secrets_included() {
        let running = load(
            &(provider("acme", "")
                + &provider("old", "")
                + &provider("keyed", "headers = { x-api-key = \"one\" }")),
        );
        let new = load(
            &(provider("acme", "burst = 7")
                + &provider("new", "")
                + &provider("keyed", "headers = { x-api-key = \"two\" }")),
        );
        let (taken, changes) = running.take(new.clone()).expect("it fits");
        let live = vec!["providers.acme.burst", "providers.keyed.headers", "providers.new", "providers.old"];
        assert_eq!(names(&changes), (live, vec![]));
        assert_eq!(taken.config.providers, new.config.providers);
        assert!(!format!("{changes:?}").contains("two"));
    }

    #[test]
    fn what_is_not_shown_changes_all_the_same() {
        let secret = |one: &str| {
            let url = format!("token_url = \"https://acme.test/token?api_key={one}\"");
            let headers = format!("headers = {{ x-api-key = \"{one}\" }}");
            format!("[providers.acme]\n{url}\n{headers}\nparams = {{ assertion = \"{one}\" }}\n")
        };
        let (_, changes) = load(&secret("one")).take(load(&secret("two"))).expect("it fits");
        let live = vec!["providers.acme.headers", "providers.acme.params", "providers.acme.token_url"];
        assert_eq!(names(&changes), (live, vec![]));
    }

    #[test]
    fn a_longer_request_waits_for_the_longer_lease_that_it_needs() {
        let running = load("");
        let new = load("[refresh]\nlease = \"300s\"\nrequest_timeout = \"120s\"");
        let errors = running.take(new).expect_err("90 s of lease do not hold 120 s of waiting");
        assert!(errors.to_string().contains("restart with the new refresh.lease"), "{errors}");
    }
}
