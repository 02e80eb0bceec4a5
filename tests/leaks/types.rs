//! `Debug` shows no secret: of the types that hold them by looking at what they print, of all others by their source.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use perennial::client::credentials::Credentials;
use perennial::client::{Client, ClientId, Grant, Provider};
use perennial::config::{Config, Sources};
use perennial::item::{Item, Value, attr};
use perennial::provider::TokenRequest;
use perennial::reply::{Lifetime, Reply, Tokens};
use perennial::seal::LocalKeys;
use perennial::secret::Secret;
use perennial::shared_cache::Password;
use perennial::time::Timestamp;

use super::world::{ASSERTION, CACHE_PASSWORD, HEADER, KEY, QUERY, SECRET};
use crate::support::Canaries;

fn looks(value: &impl Debug) -> String {
    format!("{value:?}\n{value:#?}\n")
}

fn provider() -> Provider {
    let url = format!("https://acme.test/token?api_key={QUERY}").parse().expect("a URL");
    let named = |secret: &str| BTreeMap::from([("assertion".to_owned(), Secret::from(secret))]);
    Provider { headers: named(HEADER), params: named(ASSERTION), ..Provider::new("acme", url) }
}

fn client() -> Client {
    Client {
        id: ClientId::new("one").expect("a valid id"),
        provider: "acme".into(),
        grant: Grant::RefreshToken,
        client_id: "app".into(),
        credentials: Credentials { second: Some(Secret::from(SECRET).into()), ..Credentials::stored(SECRET) },
        scopes: Vec::new(),
        audience: None,
        resource: Vec::new(),
        params: provider().params,
        token_url: Some(provider().token_url),
        paused: false,
        refresh_now: None,
        joined: Timestamp::EPOCH,
    }
}

fn tokens() -> Tokens {
    Tokens {
        access_token: SECRET.into(),
        refresh_token: Some(SECRET.into()),
        token_type: None,
        scope: None,
        lifetime: Lifetime::Stated(Duration::from_secs(60)),
    }
}

#[test]
fn what_holds_a_secret_does_not_show_it() {
    let mut canaries = Canaries::default();
    [SECRET, HEADER, ASSERTION, QUERY, KEY, CACHE_PASSWORD]
        .into_iter()
        .for_each(|secret| canaries.add(secret));
    let (provider, client) = (provider(), client());
    let variables = [
        ("PERENNIAL__SEALING__KEY", KEY.to_owned()),
        ("PERENNIAL__PROVIDERS__ACME__TOKEN_URL", provider.token_url.to_string()),
        ("PERENNIAL__PROVIDERS__ACME__HEADERS__X_API_KEY", HEADER.to_owned()),
        ("PERENNIAL__PROVIDERS__ACME__PARAMS__ASSERTION", ASSERTION.to_owned()),
        ("PERENNIAL__SHARED_CACHE__PASSWORD", CACHE_PASSWORD.to_owned()),
        ("PERENNIAL__STORE__TABLE", "clients".to_owned()),
    ];
    let environment = variables.map(|(name, value)| (name.to_owned(), Secret::new(value))).into();
    let sources = Sources { path: None, environment };
    let loaded = Config::load(sources.clone()).expect("a configuration");
    let item = [attr::ACCESS_TOKEN, attr::REFRESH_TOKEN, attr::CLIENT_SECRET]
        .into_iter()
        .fold(Item::default(), |item, name| item.with(name, Value::text(name, SECRET)));
    let request = TokenRequest::new(&client, &provider, Some(SECRET.into()), Some(SECRET.into()));
    let shown = [
        looks(&provider),
        looks(&client),
        looks(&request),
        looks(&sources),
        looks(&loaded),
        serde_json::to_string(&loaded.settings).expect("JSON"),
        looks(&Reply::Granted(Box::new(tokens()))),
        looks(&item),
        looks(&LocalKeys::parse(KEY).expect("a key")),
        looks(&Password::Given(CACHE_PASSWORD.into())),
    ];
    for text in shown {
        canaries.assert_absent("a Debug", &text);
    }
}

/// Whether a field's name says that it holds what must not be shown.
fn sounds_secret(name: &str) -> bool {
    let exact = ["body", "bytes", "sealed", "plaintext", "content", "headers", "params", "environment"];
    ["secret", "token", "password", "assertion"].iter().any(|word| name.contains(word))
        || exact.contains(&name)
}

/// Those that do not: names of places, kinds, times and numbers.
const HARMLESS: &[&str] = &[
    "token_url",
    "token_type",
    "tokens",
    // Names of variables, as arguments have them.
    "client_secret_env",
    "second_client_secret_env",
    "refresh_token_env",
    "access_token_env",
    // ARNs of them, in a policy.
    "secrets",
];

/// Fields of types that derive `Debug` (public or not), as `file: field: type`, that are text and sound secret.
fn shown_fields(file: &Path, text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let (mut found, mut derives, mut inside) = (Vec::new(), false, false);
    for line in text.lines() {
        let word = line.trim();
        if word.starts_with("#[derive(") {
            derives = word.contains("Debug");
        } else if word.contains("struct ") || word.contains("enum ") {
            inside = derives && word.ends_with('{');
            derives = false;
        } else if line == "}" {
            inside = false;
        } else if let (true, Some((name, kind))) = (inside, word.split_once(": ")) {
            let name = name.rsplit(' ').next().unwrap_or_default();
            let is_text =
                ["String", "str", "u8", "Cow", "Bytes"].iter().any(|kind_of| kind.contains(kind_of));
            if is_text
                && !kind.contains("Secret")
                && sounds_secret(name)
                && !HARMLESS.contains(&name)
                && !word.starts_with("//")
            {
                found.push(format!("{}: {name}: {kind}", file.display()));
            }
        }
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_type_that_derives_debug_has_a_secret_as_text() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 100, "{} files", files.len());
    let read = |file: &PathBuf| fs::read_to_string(file).expect("a source");
    let found: Vec<_> = files.iter().flat_map(|file| shown_fields(file, &read(file))).collect();
    assert!(found.is_empty(), "a Secret, or a Debug of its own:\n{}", found.join("\n"));

    let wrong = "#[derive(Clone, Debug)]\nstruct Wrong {\n    refresh_token: Option<String>,\n}\n";
    assert_eq!(shown_fields(Path::new("x"), wrong).len(), 1, "such a field is found");
}
