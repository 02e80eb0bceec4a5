//! Clients files: the fleet's registrations as TOML or JSON, without a secret in them.
//!
//! A file is read leaf by leaf, so that everything that is wrong with it is reported at once, each with its client,
//! its key and its remedy. A syntax error is reported by its place alone: the line may hold a secret that should not
//! be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};
use url::Url;

use super::source::{Expiry, Source, only_one_stdin};
use crate::client::allowance::Rules;
use crate::client::credentials::{Credential, Credentials};
use crate::client::reference::SecretRef;
use crate::client::{Client, ClientAuth, ClientId, Grant, Provider, is_loopback};
use crate::registrar::Wanted;
use crate::secret::Secret;
use crate::time::Timestamp;

/// How a clients file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// TOML.
    Toml,
    /// JSON.
    Json,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Which client, or which entry of the file.
    pub(super) at: String,
    /// Which key.
    pub(super) key: String,
    /// What is wrong with it, and what to do about it.
    pub(super) problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.at, self.key, self.problem)
    }
}

/// One client of a file. Its secrets are named, not read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) wanted: Wanted,
    pub(super) client_secret: Option<Source>,
    pub(super) second_client_secret: Option<Source>,
    pub(super) refresh_token: Option<Source>,
    pub(super) access_token: Option<Source>,
    pub(super) expiry: Expiry,
}

impl Entry {
    /// Where its secrets come from.
    pub(super) fn sources(&self) -> [&Option<Source>; 4] {
        [&self.client_secret, &self.second_client_secret, &self.refresh_token, &self.access_token]
    }

    fn has(&self) -> Has {
        let of = Has::of(&self.wanted.client.credentials, self.refresh_token.is_some());
        Has {
            secret: of.secret || self.client_secret.is_some(),
            second: of.second || self.second_client_secret.is_some(),
            ..of
        }
    }
}

/// Which secrets a client has, or is about to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Has {
    secret: bool,
    second: bool,
    refresh_token: bool,
}

impl Has {
    pub(super) fn of(credentials: &Credentials, refresh_token: bool) -> Self {
        Self { secret: credentials.first.is_some(), second: credentials.second.is_some(), refresh_token }
    }
}

type Providers = BTreeMap<String, Arc<Provider>>;

const KEYS: [&str; 16] = [
    "id",
    "provider",
    "grant",
    "client_id",
    "client_secret",
    "second_client_secret",
    "refresh_token",
    "access_token",
    "expires_in",
    "expires_at",
    "scopes",
    "audience",
    "resource",
    "params",
    "token_url",
    "paused",
];

/// Reads a file: what can be understood of it, and everything that is wrong with it.
pub(super) fn parse(
    text: &str,
    format: Format,
    providers: &Providers,
    rules: &Rules,
) -> (Vec<Entry>, Vec<Problem>) {
    let mut problems = Vec::new();
    let values = tree(text, format).map(|tree| clients(tree, &mut problems)).unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    let twice = duplicates(&values);
    let read = values.into_iter().enumerate();
    let entries: Vec<Entry> =
        read.filter_map(|(n, value)| entry(n, value, providers, rules, &mut problems)).collect();
    problems.extend(twice);
    let sources = entries.iter().flat_map(Entry::sources);
    if let Err(problem) = only_one_stdin(sources) {
        problems.push(Problem { at: "the file".into(), key: "names stdin twice:".into(), problem });
    }
    (entries, problems)
}

fn in_file(key: &str, problem: impl Into<String>) -> Problem {
    Problem { at: "the file".into(), key: key.into(), problem: problem.into() }
}

fn tree(text: &str, format: Format) -> Result<Value, Problem> {
    match format {
        Format::Json => serde_json::from_str(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            in_file("is no JSON", format!("at line {line}, column {column}: correct the syntax there"))
        }),
        Format::Toml => text.parse::<toml::Table>().map(|table| from_toml(table.into())).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            in_file("is no TOML", format!("at line {line} ({}): correct the syntax there", error.message()))
        }),
    }
}

fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(list) => list.into_iter().map(from_toml).collect(),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(key, value)| (key, from_toml(value))).collect())
        }
    }
}

fn clients(tree: Value, problems: &mut Vec<Problem>) -> Vec<Value> {
    let Value::Object(mut root) = tree else {
        problems.push(in_file("is no table", "with the key `clients`: write [[clients]] entries"));
        return Vec::new();
    };
    let list = root.remove("clients");
    for key in root.keys() {
        let problem = "is no key of a clients file: all there is are [[clients]] entries";
        problems.push(in_file(&format!("`{key}`"), problem));
    }
    let mut entries = Vec::new();
    match list {
        Some(Value::Array(list)) => entries = list,
        Some(_) => problems.push(in_file("`clients`", "is no list: write [[clients]] entries")),
        // A misspelt key is what is missing.
        None if !root.is_empty() => {}
        None => {
            let problem = "is missing: write [[clients]] entries, or `clients = []` for none";
            problems.push(in_file("`clients`", problem));
        }
    }
    // What stands under a misspelt key is looked at all the same.
    if let Some(Value::Array(list)) = root.remove("client") {
        entries.extend(list);
    }
    entries
}

/// Ids that stand there more than once, whatever else is wrong with their entries.
fn duplicates(entries: &[Value]) -> Vec<Problem> {
    let ids = entries.iter().filter_map(|entry| ClientId::new(entry.get("id")?.as_str()?).ok());
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<ClientId> = ids.filter(|id| !seen.insert(id.clone())).collect();
    let problem = |id: &ClientId| Problem {
        at: at(id),
        key: "`id`".into(),
        problem: "stands in the file more than once: keep one of the entries".into(),
    };
    twice.iter().map(problem).collect()
}

fn at(id: &ClientId) -> String {
    format!("client `{id}`")
}

fn entry(
    n: usize,
    value: Value,
    providers: &Providers,
    rules: &Rules,
    problems: &mut Vec<Problem>,
) -> Option<Entry> {
    let at_entry = format!("clients[{n}]");
    let Value::Object(map) = value else {
        problems.push(Problem { at: at_entry, key: "the entry".into(), problem: "is no table".into() });
        return None;
    };
    let at = match map.get("id").and_then(Value::as_str).map(ClientId::new) {
        Some(Ok(id)) => at(&id),
        _ => at_entry,
    };
    let before = problems.len();
    let mut fields = Fields { at, map, problems };
    let entry = fields.entry();
    fields.refuse_the_rest();
    let named = fields.map.get("provider").and_then(Value::as_str).unwrap_or_default().to_owned();
    match providers.get(&named) {
        Some(provider) => {
            let wrong =
                entry.iter().flat_map(|entry| check(&entry.wanted.client, provider, entry.has(), rules));
            wrong.for_each(|(key, problem)| fields.wrong(key, problem));
        }
        // Missing, empty, or no string: that has been said.
        None if named.is_empty() => {}
        None => fields.wrong("provider", unknown_provider(&named, providers)),
    }
    entry.filter(|_| problems.len() == before)
}

fn unknown_provider(name: &str, providers: &Providers) -> String {
    format!(
        "names `{name}`, which is not in the configuration: add [providers.{name}] with its token_url, or use one of: \
         {}",
        names(providers)
    )
}

/// The names of the providers that there are.
pub(super) fn names(providers: &Providers) -> String {
    match providers.keys().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => "(none is configured)".into(),
        names => names.join(", "),
    }
}

/// What a client must fit beyond the type of its fields: the key, and what is wrong with it.
pub(super) fn check(
    client: &Client,
    provider: &Provider,
    has: Has,
    rules: &Rules,
) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let name = &provider.name;
    match (provider.auth, has.secret) {
        (ClientAuth::None, true) => wrong.push((
            "client_secret",
            format!("is never sent, since provider `{name}` has auth = \"none\": leave it out, or change auth"),
        )),
        (ClientAuth::ClientSecretBasic | ClientAuth::ClientSecretPost, false) => wrong.push((
            "client_secret",
            format!("is missing, and provider `{name}` authenticates by it: give it from the environment or a file"),
        )),
        _ => {}
    }
    if has.second && !has.secret {
        wrong.push(("second_client_secret", "stands without a first: write it as client_secret".into()));
    }
    for (key, credential) in
        [("client_secret", &client.credentials.first), ("second_client_secret", &client.credentials.second)]
    {
        let reference = credential.as_ref().and_then(Credential::reference);
        let refused = reference.and_then(|reference| rules.admit(reference, &client.id, name).err());
        wrong.extend(refused.map(|why| (key, format!("cannot be looked up: {why}"))));
    }
    if client.client_id.trim().is_empty() {
        wrong.push(("client_id", "is empty: write the OAuth client id".into()));
    }
    if client.scopes.iter().any(|scope| scope.is_empty() || scope.contains(char::is_whitespace)) {
        wrong.push(("scopes", "holds an element that is no single scope: write one scope an element".into()));
    }
    for resource in &client.resource {
        if Url::parse(resource).is_err() || resource.contains('#') {
            wrong.push((
                "resource",
                format!("holds {resource:?}, which is no absolute URI without fragment (RFC 8707)"),
            ));
        }
    }
    let own = ["scope", "audience", "resource", "grant_type", "refresh_token", "client_id", "client_secret"];
    for param in client.params.keys().filter(|param| own.contains(&param.as_str())) {
        wrong.push(("params", format!("holds `{param}`, which the request sets itself: use the key for it")));
    }
    if has.refresh_token && !client.grant.needs_refresh_token() {
        let remedy = "cannot be: the grant client_credentials has no refresh token: leave it out, or use the grant \
                      refresh_token";
        wrong.push(("refresh_token", remedy.into()));
    }
    wrong.extend(client.token_url.as_ref().and_then(|url| check_url(url, provider)));
    wrong
}

fn check_url(url: &Url, provider: &Provider) -> Option<(&'static str, String)> {
    let loopback = is_loopback(url);
    match url.scheme() {
        _ if !url.username().is_empty() || url.password().is_some() => {
            Some(("token_url", "carries a user name or password: remove it".into()))
        }
        "http" if !loopback && !provider.allow_http => Some((
            "token_url",
            "is not https: tokens would travel in the open, and every refresh would fail with plain_http_refused; write \
             an https URL"
                .into(),
        )),
        "https" | "http" if !provider.outbound.admits_spelling(url) => Some((
            "token_url",
            format!(
                "leads to an address that is not public: every refresh would fail with forbidden_address; if it is meant, \
                 name its network in providers.{}.allow_networks",
                provider.name
            ),
        )),
        "https" | "http" => None,
        _ => Some(("token_url", "is not https: tokens would travel in the open; write an https URL".into())),
    }
}

/// The fields of one entry, taken out one by one.
struct Fields<'a> {
    at: String,
    map: Map<String, Value>,
    problems: &'a mut Vec<Problem>,
}

impl Fields<'_> {
    /// All fields are looked at before the first missing one ends it.
    fn entry(&mut self) -> Option<Entry> {
        let id = self.parsed("id", |text| ClientId::new(text));
        let provider = self.required("provider");
        let grant = self.parsed("grant", |text| text.parse::<Grant>());
        let client_id = self.required("client_id");
        let (client_secret, first) = self.secret("client_secret");
        let (second_client_secret, second) = self.secret("second_client_secret");
        let (refresh_token, access_token) = (self.source("refresh_token"), self.source("access_token"));
        let expiry = self.expiry(access_token.is_some());
        let (scopes, resource) = (self.strings("scopes"), self.strings("resource"));
        let (audience, params) = (self.string("audience"), self.params());
        let token_url = self.string("token_url").and_then(|text| self.url(&text));
        let paused = self.flag("paused");
        let client = Client {
            id: id?,
            provider: provider?,
            grant: grant?,
            client_id: client_id?,
            credentials: Credentials { first, second },
            scopes,
            audience,
            resource,
            params,
            token_url,
            paused: false,
            refresh_now: None,
            joined: Timestamp::EPOCH,
        };
        let wanted = Wanted { client, paused };
        Some(Entry { wanted, client_secret, second_client_secret, refresh_token, access_token, expiry })
    }

    fn wrong(&mut self, key: &str, problem: impl Into<String>) {
        let (at, key) = (self.at.clone(), format!("`{key}`"));
        self.problems.push(Problem { at, key, problem: problem.into() });
    }

    fn refuse_the_rest(&mut self) {
        for key in self.map.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let problem = format!("is no key of a client: use {}", KEYS.join(", "));
            self.problems.push(Problem { at: self.at.clone(), key: format!("`{key}`"), problem });
        }
    }

    fn string(&mut self, key: &str) -> Option<String> {
        match self.map.get(key)?.clone() {
            Value::String(text) if !text.is_empty() => Some(text),
            Value::String(_) => {
                self.wrong(key, "is empty: write a value, or leave the key out");
                None
            }
            _ => {
                self.wrong(key, "is no string: write it in quotes");
                None
            }
        }
    }

    fn required(&mut self, key: &str) -> Option<String> {
        if !self.map.contains_key(key) {
            self.wrong(key, "is missing: every client has one");
        }
        self.string(key)
    }

    fn parsed<T, E: fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.required(key)?;
        parse(&text).map_err(|error| self.wrong(key, format!("is wrong: {error}"))).ok()
    }

    fn url(&mut self, text: &str) -> Option<Url> {
        Url::parse(text)
            .map_err(|error| self.wrong("token_url", format!("is no URL ({error}): write an https URL")))
            .ok()
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.map.get(key)?.as_bool();
        if value.is_none() {
            self.wrong(key, "is neither true nor false: write one of them without quotes");
        }
        value
    }

    fn strings(&mut self, key: &str) -> Vec<String> {
        let Some(value) = self.map.get(key) else { return Vec::new() };
        let list = value.as_array().map(|list| list.iter().map(|text| text.as_str().map(str::to_owned)));
        match list.and_then(Iterator::collect::<Option<Vec<_>>>) {
            Some(list) => list,
            None => {
                self.wrong(key, "is no list of strings: write it as [\"one\", \"two\"]");
                Vec::new()
            }
        }
    }

    fn params(&mut self) -> BTreeMap<String, Secret> {
        let Some(value) = self.map.get("params") else { return BTreeMap::new() };
        let text = |(name, value): (&String, &Value)| Some((name.clone(), Secret::from(value.as_str()?)));
        let params = value.as_object().map(|map| map.iter().map(text));
        match params.and_then(Iterator::collect::<Option<BTreeMap<_, _>>>) {
            Some(params) => params,
            None => {
                self.wrong("params", "is no table of strings: write it as { name = \"value\" }");
                BTreeMap::new()
            }
        }
    }

    /// A client secret's place, or the reference that the daemon is to follow.
    fn secret(&mut self, key: &str) -> (Option<Source>, Option<Credential>) {
        let alone = self.map.get(key).and_then(Value::as_object).filter(|map| map.len() == 1);
        let Some(text) = alone.and_then(|map| map.get("ref")).cloned() else {
            return (self.source(key), None);
        };
        match text.as_str().map(SecretRef::new) {
            Some(Ok(reference)) => (None, Some(Credential::At(reference))),
            Some(Err(error)) => {
                self.wrong(key, format!("has a ref that {error}"));
                (None, None)
            }
            None => {
                self.wrong(key, "has a ref that is no string: write it as { ref = \"ssm:/oauth/acme\" }");
                (None, None)
            }
        }
    }

    /// A secret's place; a secret itself is refused, and not repeated.
    fn source(&mut self, key: &str) -> Option<Source> {
        let (source, what) = match self.map.get(key)? {
            Value::Object(map) if map.len() > 1 => (None, "names more than one place: keep"),
            Value::Object(map) => (place(map), "names no place that there is: write"),
            _ => (None, "must not stand in the file: name its place,"),
        };
        if source.is_none() {
            let places = "{ env = \"NAME\" }, { file = \"path\" }, { stdin = true }";
            let by_reference = if key.ends_with("client_secret") { ", { ref = \"ssm:/...\" }" } else { "" };
            self.wrong(key, format!("{what} one of {places}{by_reference}"));
        }
        source
    }

    fn expiry(&mut self, has_access_token: bool) -> Expiry {
        let (lasts, until) = (self.map.get("expires_in").cloned(), self.map.get("expires_at").cloned());
        if (lasts.is_some() || until.is_some()) && !has_access_token {
            let key = if lasts.is_some() { "expires_in" } else { "expires_at" };
            self.wrong(
                key,
                "speaks of an access token, and there is none: give access_token, or leave it out",
            );
        }
        let expiry = match (&lasts, &until) {
            (None, None) => Some(Expiry::Unknown),
            (Some(value), None) => lifetime(value).map(Expiry::In),
            (None, Some(value)) => time(value).map(Expiry::At),
            (Some(_), Some(_)) => {
                self.wrong("expires_at", "stands beside expires_in: keep one of them");
                Some(Expiry::Unknown)
            }
        };
        expiry.unwrap_or_else(|| {
            match lasts {
                Some(_) => self.wrong("expires_in", "is no duration: write seconds, or text as in \"55m\""),
                None => self.wrong(
                    "expires_at",
                    "is no time in UTC: write epoch seconds, or text that ends in Z, as in \"2030-01-31T12:00:00Z\"",
                ),
            }
            Expiry::Unknown
        })
    }
}

fn place(map: &Map<String, Value>) -> Option<Source> {
    let (key, value) = map.iter().next().filter(|_| map.len() == 1)?;
    match (key.as_str(), value) {
        ("env", Value::String(name)) if !name.is_empty() => Some(Source::Env(name.clone())),
        ("file", Value::String(path)) if !path.is_empty() => Some(Source::File(PathBuf::from(path))),
        ("stdin", Value::Bool(true)) => Some(Source::Stdin),
        _ => None,
    }
}

fn lifetime(value: &Value) -> Option<std::time::Duration> {
    match value {
        Value::Number(secs) => secs.as_u64().map(std::time::Duration::from_secs),
        Value::String(text) => humantime::parse_duration(text).ok(),
        _ => None,
    }
}

fn time(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Number(secs) => secs.as_i64().filter(|secs| *secs >= 0).map(Timestamp::from_secs),
        Value::String(text) => {
            let time = humantime::parse_rfc3339_weak(text).ok()?;
            let since_epoch = time.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some(Timestamp::EPOCH.plus(since_epoch))
        }
        _ => None,
    }
}
