//! The configuration as an operator meets it: sources and their order, errors all at once, and no secret in any.
//! Without the embedded store nothing works by default, and `src/config/build.rs` tests that.
#![cfg(feature = "embedded")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use perennial::client::outbound::{Outbound, Pin};
use perennial::client::{ClientAuth, InDoubt, Provider};
use perennial::config::{
    Config, ConfigError, ConfigErrors, Loaded, Origin, Profile, Reference, Setting, Sources, StoreKind,
    reference,
};
use perennial::plan::{Backoff, BreakerPolicy, Lifetimes};
use perennial::secret::Secret;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const CANARY: &str = "hunter2-canary";

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, Secret> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), Secret::from(*value))).collect()
}

fn load_environment(variables: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    Config::load(Sources { path: None, environment: environment(variables) })
}

fn load_toml(text: &str) -> Result<Loaded, ConfigErrors> {
    let directory = files(&[("perennial.toml", text)]);
    load_from(directory.path(), &[])
}

fn load_from(path: &Path, variables: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    Config::load(Sources { path: Some(path.to_owned()), environment: environment(variables) })
}

fn files(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("a file");
    }
    directory
}

fn errors(result: Result<Loaded, ConfigErrors>) -> Vec<ConfigError> {
    result.expect_err("errors").0
}

fn only(result: Result<Loaded, ConfigErrors>) -> ConfigError {
    let mut errors = errors(result);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors.remove(0)
}

fn keys(errors: &[ConfigError]) -> Vec<&str> {
    errors.iter().map(|error| error.key.as_str()).collect()
}

fn setting<'a>(loaded: &'a Loaded, key: &str) -> (&'a Value, String) {
    let found = loaded.settings.iter().find(|setting| setting.key == key).expect("a setting");
    (&found.value, found.origin.to_string())
}

/// A provider with nothing but what is required, and more keys of it.
fn acme(more: &str) -> String {
    format!("[providers.acme]\ntoken_url = \"https://acme.test/token\"\n{more}")
}

#[test]
fn a_provider_that_sets_nothing_has_the_defaults_of_its_type() {
    let config = load_toml(&acme("")).expect("a configuration").config;
    let url = "https://acme.test/token".parse().expect("a url");
    // But for what the profile says.
    let outbound = Arc::new(Outbound { loopback: true, ..Outbound::default() });
    assert_eq!(*config.providers["acme"], Provider { outbound, ..Provider::new("acme", url) });
    let production = load_toml(&format!("profile = \"production\"\nstore.table = \"abc\"\n{}", acme("")));
    assert_eq!(*production.expect("valid").config.providers["acme"].outbound, Outbound::default());
}

#[test]
fn where_requests_go_and_whom_they_trust_is_a_providers_own_affair() {
    let pin = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let more =
        format!("allow_networks = [\"10.1.2.3/16\"]\nca_file = \"ca.pem\"\npin_sha256 = [\"{pin}\"]\n");
    let config = load_toml(&format!("{}[providers.other]\ntoken_url = \"https://b.test\"\n", acme(&more)))
        .expect("fits")
        .config;
    let acme_goes = &config.providers["acme"].outbound;
    assert_eq!(acme_goes.networks, ["10.1.0.0/16".parse().expect("a network")]);
    assert_eq!(
        (acme_goes.ca_file.as_deref(), acme_goes.pins.as_slice()),
        (Some(Path::new("ca.pem")), &[Pin([0; 32])][..])
    );
    assert_eq!(*config.providers["other"].outbound, Outbound { loopback: true, ..Outbound::default() });
    for (wrong, problem) in [
        ("allow_networks = [\"0.0.0.0/0\"]", "wider than any private network"),
        ("allow_networks = [\"10.0.0.1\"]", "CIDR"),
        ("pin_sha256 = [\"AAAA\"]", "SHA-256"),
    ] {
        let error = only(load_toml(&acme(wrong)));
        assert!(error.to_string().contains(problem), "{error}");
    }
}

// Sources and their order.

#[test]
fn without_any_configuration_it_is_development_on_the_embedded_store() {
    let config = load_environment(&[]).expect("defaults").config;
    assert_eq!(config.profile, Profile::Development);
    assert_eq!(config.store.kind, StoreKind::Embedded);
    assert_eq!(config.store.path, PathBuf::from(".perennial/perennial.db"));
    assert!(!config.store.deletion_protection && config.store.point_in_time_recovery);
    assert_eq!(config.backoff, Backoff::default());
    assert_eq!(config.breaker, BreakerPolicy::default());
    assert_eq!(config.refresh.lifetimes, Lifetimes::default());
    assert_eq!(config.refresh.timing.lease(), Duration::from_secs(90));
    assert!(config.providers.is_empty());
}

#[test]
fn the_environment_wins_over_the_profiles_file_over_the_common_one_over_defaults() {
    let directory = files(&[
        ("perennial.toml", "[refresh]\nlease = \"91s\"\nwindow = \"4s\"\nspread = \"1s\""),
        ("development.toml", "[refresh]\nlease = \"92s\"\nwindow = \"3s\""),
        ("production.toml", "[refresh]\nlease = \"99s\""),
    ]);
    let loaded =
        load_from(directory.path(), &[("PERENNIAL__REFRESH__LEASE", "93s")]).expect("a configuration");
    let file = |name: &str| format!("file {}", directory.path().join(name).display());
    assert_eq!(
        setting(&loaded, "refresh.lease"),
        (&json!("1m 33s"), "environment PERENNIAL__REFRESH__LEASE".to_owned())
    );
    assert_eq!(setting(&loaded, "refresh.window"), (&json!("3s"), file("development.toml")));
    assert_eq!(setting(&loaded, "refresh.spread"), (&json!("1s"), file("perennial.toml")));
    assert_eq!(setting(&loaded, "refresh.concurrency"), (&json!(64), "default".to_owned()));
    assert_eq!(loaded.config.refresh.timing.lease(), Duration::from_secs(93));
}

#[test]
fn the_profile_chooses_its_file_wherever_it_is_set() {
    let directory = files(&[
        ("perennial.toml", "profile = \"development\"\n[store]\ntable = \"common\""),
        ("production.toml", "[store]\ntable = \"live\""),
    ]);
    let table = |variables: &[(&str, &str)]| {
        load_from(directory.path(), variables).expect("a configuration").config.store.table
    };
    assert_eq!(table(&[]), "common");
    assert_eq!(table(&[("PERENNIAL__PROFILE", "production")]), "live");
}

#[test]
fn a_profiles_own_file_does_not_set_the_profile() {
    let directory = files(&[("development.toml", "profile = \"production\"")]);
    let error = only(load_from(directory.path(), &[]));
    assert_eq!(error.key, "profile");
    assert!(error.remedy.contains("perennial.toml"), "{error}");
}

#[test]
fn the_path_is_a_directory_or_a_file_and_may_come_from_the_environment() {
    let directory = files(&[("other.toml", "[store]\ntable = \"other\""), ("development.toml", "broken")]);
    let file = directory.path().join("other.toml");
    assert_eq!(load_from(&file, &[]).expect("one file").config.store.table, "other");
    let named = load_environment(&[("PERENNIAL_CONFIG", &file.display().to_string())]);
    assert_eq!(named.expect("one file").config.store.table, "other");

    let missing = directory.path().join("missing.toml");
    let error = only(load_from(&missing, &[]));
    assert_eq!(error.key, missing.display().to_string());
    assert!(error.problem.contains("cannot be read"), "{error}");
}

#[test]
fn the_environment_is_read_by_kind() {
    let variables = [
        ("PERENNIAL__STORE__SHARDS", "256"),
        ("PERENNIAL__HEALTH__ENABLED", "false"),
        ("PERENNIAL__LOG__FORMAT", ""),
        ("PERENNIAL__PROVIDERS__ACME__TOKEN_URL", "https://acme.test/token"),
        ("PERENNIAL__PROVIDERS__ACME__SCOPES", "read, write,"),
        ("PERENNIAL__PROVIDERS__ACME__RATE_PER_SECOND", "0.5"),
        ("PERENNIAL__PROVIDERS__ACME__PARAMS__TENANT", "1"),
        ("PERENNIAL__PROVIDERS__ACME__HEADERS__X_API_KEY", CANARY),
    ];
    let config = load_environment(&variables).expect("a configuration").config;
    let acme = &config.providers["acme"];
    assert_eq!((config.store.shards, config.health.enabled), (256, false));
    assert_eq!(acme.scopes, ["read", "write"]);
    assert!((acme.rate.per_second - 0.5).abs() < f64::EPSILON);
    assert_eq!(acme.params["tenant"].expose(), "1");
    assert_eq!(acme.headers["x-api-key"].expose(), CANARY);
}

#[test]
fn a_header_from_the_environment_replaces_the_files_in_any_case() {
    let directory = files(&[("perennial.toml", &acme("headers = { X-Api-Key = \"old\" }"))]);
    let name = "PERENNIAL__PROVIDERS__ACME__HEADERS__X_API_KEY";
    let config = load_from(directory.path(), &[(name, "new")]).expect("a configuration").config;
    assert_eq!(config.providers["acme"].headers.len(), 1);
    assert_eq!(config.providers["acme"].headers["x-api-key"].expose(), "new");

    let twice = only(load_toml(&acme("headers = { X-Api-Key = \"a\", x-api-key = \"b\" }")));
    assert!(twice.problem.contains("twice"), "{twice}");
}

#[test]
fn an_operators_variable_is_handed_out_as_a_secret() {
    let sources = Sources { path: None, environment: environment(&[("ACME_SECRET", CANARY), ("EMPTY", "")]) };
    assert_eq!(sources.variable("ACME_SECRET").expect("a secret").expose(), CANARY);
    assert!(sources.variable("EMPTY").is_none() && sources.variable("OTHER").is_none());
    assert!(!format!("{sources:?}").contains(CANARY));
}

#[test]
fn the_process_is_a_source() {
    let sources = Sources::from_process(Some(PathBuf::from("elsewhere")));
    assert_eq!(sources.path, Some(PathBuf::from("elsewhere")));
    assert!(sources.environment.contains_key("PATH"));
    let sources = Sources::from_process(None);
    let named = sources.environment.contains_key("PERENNIAL_CONFIG");
    assert!(named || sources.path == Some(PathBuf::from("config")), "{sources:?}");
}

// Errors.

#[test]
fn every_error_is_reported_at_once_with_its_key_and_its_remedy() {
    let directory = files(&[(
        "perennial.toml",
        r#"
        profile = "prod"
        [store]
        table = "x"
        shards = 0
        colour = "red"
        [refresh]
        lease = 90
        window = "soon"
        [health]
        enabled = "yes"
        address = "localhost"
        [providers.acme]
        scopes = ["a b"]
        params = { scope = "x" }
        headers = { Authorization = "x" }
        [providers.Bad]
        token_url = "https://bad.test"
        "#,
    )]);
    let variables = [
        ("PERENNIAL__REFRESH__CONCURRENCY", "many"),
        ("PERENNIAL__NOPE", "1"),
        ("PERENNIAL_STORE_TABLE", "t"),
    ];
    let errors = errors(load_from(directory.path(), &variables));
    assert_eq!(
        keys(&errors),
        [
            "PERENNIAL_STORE_TABLE",
            "PERENNIAL__NOPE",
            "health.address",
            "health.enabled",
            "profile",
            "providers.Bad",
            "providers.acme.headers.authorization",
            "providers.acme.params.scope",
            "providers.acme.scopes",
            "providers.acme.token_url",
            "refresh.concurrency",
            "refresh.lease",
            "refresh.window",
            "store.colour",
            "store.shards",
            "store.table",
        ]
    );
    assert!(errors.iter().all(|error| !error.problem.is_empty() && !error.remedy.is_empty()));
    let printed = ConfigErrors(errors).to_string();
    assert_eq!(printed.lines().count(), 17, "{printed}");
    let file = directory.path().join("perennial.toml");
    let line = format!(
        "  refresh.window: \"soon\" is not a duration with its unit (file {}): write a duration from 100ms to 1m, as \
         in \"90s\" or \"1h 30m\"",
        file.display()
    );
    assert!(printed.lines().any(|printed| printed == line), "{printed}");
}

#[test]
fn values_of_a_wrong_type_are_refused_and_long_ones_cut() {
    for (text, problem) in [
        ("[store]\nshards = \"16\"", "\"16\" is a string"),
        ("[store]\nshards = 16.0", "\"16\" is a number"),
        ("[store]\nshards = -1", "\"-1\" is negative"),
        ("[store]\ntable = 5", "\"5\" is a whole number"),
        ("[store]\ntable = [\"x\"]", "the value is a list"),
        ("store = true", "the value is a boolean, not a table"),
        ("[providers]\nacme = 1", "the value is a whole number, not a table"),
        ("[health]\nenabled = 1", "\"1\" is a whole number"),
        ("[refresh]\nlease = \"16h\"", "\"16h\" is out of range"),
        ("[store]\nendpoint = \"ftp://x\"", "\"ftp://x\" is neither http nor https"),
    ] {
        assert_eq!(only(load_toml(text)).problem, problem, "{text}");
    }
    let long = only(load_toml(&format!("[store]\nregion = \"{}\"", "X".repeat(500))));
    assert!(long.problem.len() < 120, "{long}");
}

#[test]
fn unknown_keys_and_variables_name_their_nearest() {
    let remedy = |text: &str| only(load_toml(text)).remedy;
    assert!(remedy("[store]\ntabel = \"abc\"").contains("did you mean table?"));
    assert!(remedy("[stroe]\ntable = \"abc\"").contains("did you mean store?"));
    assert_eq!(remedy("[fruit]\nx = 1"), "remove it");
    assert!(only(load_toml(&acme("rotate = true"))).remedy.contains("did you mean rotates?"));

    let remedy = |name: &str| only(load_environment(&[(name, "x")])).remedy;
    assert_eq!(remedy("PERENNIAL_STORE_TABLE"), "did you mean PERENNIAL__STORE__TABLE?");
    assert_eq!(remedy("PERENNIAL__STORE__TABEL"), "did you mean PERENNIAL__STORE__TABLE?");
    assert_eq!(remedy("PERENNIAL__store__table"), "did you mean PERENNIAL__STORE__TABLE?");
    assert_eq!(
        remedy("PERENNIAL__PROVIDERS__ACME__ROTATE"),
        "did you mean PERENNIAL__PROVIDERS__ACME__ROTATES?"
    );
    for name in ["PERENNIAL_SERVICE_HOST", "PERENNIAL__STORE", "PERENNIAL__", "PERENNIAL__PROVIDERS__ACME"] {
        assert!(remedy(name).contains("PERENNIAL__SECTION__KEY"), "{name}");
    }
}

#[test]
fn broken_toml_names_file_line_and_reason_and_the_other_files_are_still_checked() {
    let directory = files(&[
        (
            "perennial.toml",
            &format!("[store]\ntable = \"abc\"\n\n[providers.acme.headers]\nx-api-key = {CANARY}\n"),
        ),
        ("development.toml", "[store]\nshards = 0"),
    ]);
    let errors = errors(load_from(directory.path(), &[]));
    assert_eq!(
        keys(&errors),
        [&directory.path().join("perennial.toml").display().to_string(), "store.shards"]
    );
    assert!(errors[0].problem.starts_with("is not TOML in line 5: "), "{}", errors[0]);
    assert!(!errors[0].to_string().contains(CANARY), "{}", errors[0]);

    let twice = only(load_toml("[log]\nfilter = \"info\"\nfilter = \"warn\""));
    assert!(twice.problem.contains("line 3"), "{twice}");
    let huge = only(load_toml("[store]\nshards = 99999999999999999999"));
    assert!(huge.key.ends_with("perennial.toml"), "{huge}");
}

#[test]
fn a_lease_that_is_too_short_names_the_keys_involved() {
    let error = only(load_toml("[refresh]\nlease = \"40s\""));
    assert_eq!(error.key, "refresh.lease");
    for key in ["refresh.window", "refresh.request_timeout", "refresh.commit_budget", "40s"] {
        assert!(error.to_string().contains(key), "{error}");
    }
    let error = only(load_toml(&acme("request_timeout = \"70s\"")));
    assert!(error.problem.contains("providers.acme.request_timeout 1m 10s"), "{error}");
    assert!(load_toml(&format!("{}\n[refresh]\nlease = \"40s\"", acme("request_timeout = \"19s\""))).is_ok());
}

#[test]
fn values_are_compared_in_pairs_and_not_where_one_is_wrong_already() {
    let first = |text: &str| only(load_toml(text)).key;
    assert_eq!(first("[refresh]\nlifetime_min = \"1h\"\nlifetime_max = \"1m\""), "refresh.lifetime_min");
    assert_eq!(first("[backoff]\nbase = \"10m\"\ncap = \"1m\""), "backoff.base");
    assert_eq!(first("[backoff]\ncap = \"2h\""), "backoff.cap");
    assert_eq!(first("[breaker]\nopen = \"10m\""), "breaker.open");
    assert_eq!(first("[refresh]\nlease = \"bad\"\nrequest_timeout = \"2m\""), "refresh.lease");
}

#[test]
fn cron_expressions_are_checked() {
    let errors =
        errors(load_toml("[maintenance]\nreconcile = \"23 * * * *\"\ntable_check = \"99 7 * * * *\""));
    assert_eq!(keys(&errors), ["maintenance.reconcile", "maintenance.table_check"]);
    assert!(errors[0].problem.contains("has 5 fields") && errors[0].remedy.contains("seconds first"));
}

// Profiles and stores.

#[test]
fn on_ecs_the_profile_is_production_and_the_embedded_store_is_refused() {
    let markers = [
        ("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/x"),
        ("ECS_CONTAINER_METADATA_URI", "http://169.254.170.2/v3/x"),
        ("AWS_EXECUTION_ENV", "AWS_ECS_FARGATE"),
    ];
    for marker in markers {
        let config =
            load_environment(&[marker, ("PERENNIAL__STORE__TABLE", "live")]).expect("a store").config;
        assert_eq!((config.profile, config.store.kind), (Profile::Production, StoreKind::Dynamodb));
        assert!(config.store.deletion_protection);

        let none = only(load_environment(&[marker]));
        assert!(
            none.problem.contains("no store is configured") && none.remedy.contains("store.table"),
            "{none}"
        );
        let embedded = only(load_environment(&[marker, ("PERENNIAL__STORE__KIND", "embedded")]));
        assert!(embedded.key == "store.kind" && embedded.remedy.contains("dynamodb"), "{embedded}");
        let development = only(load_environment(&[
            marker,
            ("PERENNIAL__PROFILE", "development"),
            ("PERENNIAL__STORE__TABLE", "live"),
        ]));
        assert!(development.key == "profile" && development.problem.contains("ECS"), "{development}");
    }
    assert_eq!(
        load_environment(&[("AWS_EXECUTION_ENV", "AWS_Lambda_x")]).unwrap().config.profile,
        Profile::Development
    );
}

#[test]
fn the_store_follows_from_what_is_set() {
    let kind =
        |variables: &[(&str, &str)]| load_environment(variables).map(|loaded| loaded.config.store.kind);
    let dynamodb = Ok(StoreKind::Dynamodb);
    assert_eq!(kind(&[("PERENNIAL__STORE__TABLE", "live")]), dynamodb);
    assert_eq!(kind(&[("PERENNIAL__STORE__REGION", "eu-central-1")]), dynamodb);
    assert_eq!(kind(&[("PERENNIAL__STORE__ENDPOINT", "http://dynamodb:8000")]), dynamodb);
    let production = ("PERENNIAL__PROFILE", "production");
    assert_eq!(kind(&[production, ("PERENNIAL__STORE__KIND", "dynamodb")]), dynamodb);
    assert!(kind(&[production]).is_err());
    assert!(kind(&[production, ("PERENNIAL__STORE__REGION", "eu-central-1")]).is_err());
    assert!(kind(&[production, ("PERENNIAL__STORE__KIND", "embedded")]).is_err());
}

// Providers.

#[test]
fn a_providers_profile_is_built_with_its_defaults() {
    let loaded =
        load_toml(&acme("auth = \"none\"\nrate_per_second = 3\n[refresh]\nrequest_timeout = \"9s\""));
    let config = loaded.expect("a provider").config;
    let acme = &config.providers["acme"];
    assert_eq!(
        (acme.name.as_str(), acme.auth, acme.in_doubt),
        ("acme", ClientAuth::None, InDoubt::RetryOnce)
    );
    assert_eq!(acme.request_timeout, Duration::from_secs(9));
    assert_eq!(acme.default_lifetime, Duration::from_secs(55 * 60));
    assert!((acme.rate.per_second - 3.0).abs() < f64::EPSILON);
    assert_eq!((acme.rate.burst, acme.concurrency, acme.max_response), (20, 16, 262_144));
}

#[test]
fn the_in_doubt_policy_fits_the_rotation() {
    let policy = |more: &str| load_toml(&acme(more)).map(|loaded| loaded.config.providers["acme"].in_doubt);
    assert_eq!(policy("rotates = false"), Ok(InDoubt::Reusable));
    assert_eq!(policy("in_doubt = \"hold\""), Ok(InDoubt::Hold));
    assert_eq!(policy("in_doubt = \"grace\"\ngrace_window = \"10m\""), Ok(InDoubt::Grace));
    let refused = |more: &str| only(load_toml(&acme(more))).to_string();
    assert!(refused("in_doubt = \"reusable\"").contains("providers.acme.rotates"));
    assert!(refused("in_doubt = \"grace\"").contains("providers.acme.grace_window"));
}

#[test]
fn a_token_endpoint_is_https_except_on_loopback_or_where_allowed() {
    let load = |url: &str, more: &str| load_toml(&format!("[providers.acme]\ntoken_url = \"{url}\"\n{more}"));
    for good in
        ["https://acme.test/token", "http://127.0.0.1:4000/token", "http://[::1]/t", "http://localhost/t"]
    {
        assert!(load(good, "").is_ok(), "{good}");
    }
    assert!(load("http://idp:4000/token", "allow_http = true").is_ok());
    let error = only(load("http://idp:4000/token", ""));
    assert!(error.remedy.contains("providers.acme.allow_http"), "{error}");
    let user = only(load(&format!("https://user:{CANARY}@acme.test"), ""));
    assert!(user.problem.contains("user information") && !user.to_string().contains(CANARY), "{user}");
}

// Secrets.

#[test]
fn secrets_are_in_no_error_and_in_no_setting() {
    let bad = [
        acme(&format!("headers = {{ x-api-key = \"{CANARY}\\n\" }}")),
        acme(&format!("headers = {{ host = \"{CANARY}\" }}")),
        acme(&format!("headers = {{ x = [\"{CANARY}\"] }}")),
        acme(&format!("headers = \"{CANARY}\"")),
        acme(&format!("header = {{ x-api-key = \"{CANARY}\" }}")),
        acme(&format!("params = {{ client_secret = \"{CANARY}\" }}")),
        format!("password = \"{CANARY}\""),
    ];
    for text in bad {
        let errors = load_toml(&text).expect_err("an error");
        assert!(!format!("{errors}{errors:?}").contains(CANARY), "{errors}");
    }
    let misspelt =
        load_environment(&[("PERENNIAL__PROVIDERS__ACME__HEADER__X", CANARY)]).expect_err("an error");
    assert!(!format!("{misspelt:?}").contains(CANARY));

    let text = format!(
        "headers = {{ X-Api-Key = \"{CANARY}\" }}\nparams = {{ api_key = \"{CANARY}\", tenant = \"t\" }}"
    );
    let loaded = load_toml(&acme(&text)).expect("a provider");
    assert_eq!(*setting(&loaded, "providers.acme.headers.x-api-key").0, json!("(redacted)"));
    assert_eq!(*setting(&loaded, "providers.acme.params.api_key").0, json!("(redacted)"));
    assert_eq!(*setting(&loaded, "providers.acme.params.tenant").0, json!("t"));
    assert!(!serde_json::to_string(&loaded.settings).unwrap().contains(CANARY));
}

#[test]
fn a_token_endpoints_query_is_not_shown() {
    let loaded = load_toml(&format!("[providers.acme]\ntoken_url = \"https://acme.test/t?code={CANARY}\""));
    assert_eq!(*setting(&loaded.unwrap(), "providers.acme.token_url").0, json!("https://acme.test/t?..."));
}

// The sample and the documentation.

fn sample() -> String {
    fs::read_to_string("config/perennial.sample.toml").expect("the sample")
}

#[test]
fn the_sample_is_valid_and_is_not_read_by_default() {
    let loaded = load_from(Path::new("config/perennial.sample.toml"), &[]).expect("a valid sample");
    assert_eq!(loaded.config.providers.len(), 2);
    let directory = files(&[("perennial.sample.toml", "nonsense")]);
    assert!(load_from(directory.path(), &[]).is_ok());
}

#[test]
fn the_sample_has_every_key_at_its_default() {
    const EXCLUDED: [(&str, &str); 2] =
        [("key_file", "sealing.key_file"), ("password_file", "shared_cache.password_file")];
    let uncommented: Vec<String> = sample()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            // One of two that exclude each other.
            Some(setting) if EXCLUDED.iter().any(|(name, _)| setting.starts_with(name)) => String::new(),
            Some(setting) if setting.starts_with(|first: char| first.is_ascii_lowercase()) => {
                setting.to_owned()
            }
            _ => line.to_owned(),
        })
        .collect();
    assert!(EXCLUDED.iter().all(|(name, _)| sample().contains(&format!("\n#{name} = "))));
    let full = load_toml(&uncommented.join("\n")).expect("every setting of the sample");
    let plain = load_toml(&acme("")).expect("defaults");
    for Setting { key, value, origin } in &plain.settings {
        let (sampled, from) = setting(&full, key);
        let excluded = EXCLUDED.iter().any(|(_, path)| path == key);
        assert!(from.starts_with("file ") || excluded, "{key} is not in the sample");
        if *origin == Origin::Default && !value.is_null() {
            assert_eq!(sampled, value, "{key} is not at its default");
        }
    }
    for map in ["providers.acme.params.", "providers.acme.headers."] {
        assert!(full.settings.iter().any(|setting| setting.key.starts_with(map)), "{map}");
    }
}

#[test]
fn the_key_of_the_spill_is_never_shown() {
    let key = "5ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4";
    let loaded = load_toml(&format!(
        "{}\n[spill]\ndirectory = \"/tmp/spill\"\n[sealing]\nkey = \"{key}\"\n",
        acme("")
    ))
    .expect("a key");
    let (shown, _) = setting(&loaded, "sealing.key");
    assert_eq!(shown, "(redacted)");
    assert!(!format!("{:?} {:?}", loaded.config, loaded.settings).contains(key));
}

#[test]
fn the_password_of_the_shared_cache_is_never_shown_and_travels_encrypted() {
    let cache = |more: &str| format!("{}\n[shared_cache]\n{more}\n", acme(""));
    let loaded =
        load_toml(&cache(&format!("url = \"redis://a.test\"\npassword = \"{CANARY}\""))).expect("valid");
    assert_eq!(setting(&loaded, "shared_cache.password").0, "(redacted)");
    assert_eq!(setting(&loaded, "shared_cache.prefix").0, "perennial:client-credentials:");
    assert!(!format!("{:?} {:?}", loaded.config, loaded.settings).contains(CANARY));
    let wrong = [
        format!("url = \"redis://u:{CANARY}@a.test\""),
        format!("url = \"redis://a.test\"\npassword_file = \"f\"\npassword = \"{CANARY}\""),
        format!("url = \"redis://a.test\"\npassword = [\"{CANARY}\"]"),
        "user = \"u\"".to_owned(),
    ];
    for text in wrong {
        let error = only(load_toml(&cache(&text)));
        assert!(error.key.starts_with("shared_cache.") && !format!("{error:?}").contains(CANARY), "{error}");
    }
    let production = |url: &str| {
        let text =
            format!("profile = \"production\"\n[store]\ntable = \"t-1\"\n[shared_cache]\nurl = \"{url}\"");
        load_toml(&text)
    };
    assert_eq!(only(production("redis://cache.test")).key, "shared_cache.url");
    for url in ["rediss://cache.test", "redis://127.0.0.1:6379", "redis://[::1]", "redis://localhost/1"] {
        assert!(production(url).is_ok(), "{url}");
    }
}

#[test]
fn every_key_is_read() {
    let loaded =
        load_toml(&acme("params = { tenant = \"t\" }\nheaders = { x = \"h\" }")).expect("a provider");
    for row in reference() {
        let key = row
            .key
            .replace("params.*", "params.tenant")
            .replace("headers.*", "headers.x")
            .replace('*', "acme");
        assert!(loaded.settings.iter().any(|setting| setting.key == key), "{key} is not read");
    }
}

#[test]
fn the_documentation_has_a_row_for_every_key_and_no_other() {
    let documentation = fs::read_to_string("docs/configuration.md").expect("the documentation");
    let rows = documentation.lines().filter(|line| line.starts_with("| `")).collect::<Vec<_>>().join("\n");
    let row = |row: &Reference| {
        let takes = row.takes.replace('|', "\\|");
        let reload = row.waits.map_or("at once".to_owned(), |why| format!("restart: {why}"));
        format!("| `{}` | {takes} | {} | {} | {reload} |", row.key, row.default, row.meaning)
    };
    let expected = reference().iter().map(row).collect::<Vec<_>>().join("\n");
    assert!(rows == expected, "the table of docs/configuration.md must be:\n{expected}\n");
}

// Anything at all.

fn word() -> impl Strategy<Value = String> {
    let mut words: Vec<String> =
        reference().iter().flat_map(|row| row.key.split('.')).map(str::to_owned).collect();
    words.extend(
        ["acme", "x-api-key", "", "a.b", "a[99999999999999]", "a__b", "é", "client_secret"]
            .map(str::to_owned),
    );
    prop_oneof![4 => proptest::sample::select(words), 1 => "[ -~é]{0,8}"]
}

fn scalar() -> impl Strategy<Value = toml::Value> {
    let texts =
        ["90s", "true", "16", "* * * * * *", "+0 1 L 1 1 7#9", "info", "https://a.test/x", "production", "é"];
    prop_oneof![
        any::<i64>().prop_map(toml::Value::from),
        any::<f64>().prop_map(toml::Value::from),
        any::<bool>().prop_map(toml::Value::from),
        proptest::sample::select(texts.to_vec()).prop_map(toml::Value::from),
        "[ -~é]{0,20}".prop_map(toml::Value::from),
    ]
}

fn tree() -> impl Strategy<Value = toml::Value> {
    scalar().prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(toml::Value::from),
            6 => prop::collection::btree_map(word(), inner, 0..6)
                .prop_map(|table| toml::Value::Table(table.into_iter().collect())),
        ]
    })
}

/// A scalar of every kind at a key that there is: deeper than random trees get by themselves.
fn placed() -> impl Strategy<Value = String> {
    let keys: Vec<String> = reference().iter().map(|row| row.key.replace('*', "acme")).collect();
    prop::collection::vec((proptest::sample::select(keys), scalar()), 0..8).prop_map(|pairs| {
        let distinct: BTreeMap<String, toml::Value> = pairs.into_iter().collect();
        distinct.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_tree_makes_it_panic_or_tell_a_secret(tree in tree(), name in word(), broken in any::<bool>()) {
        let hidden = format!("{CANARY}{}", if broken { "\n" } else { "" });
        let mut table = match tree { toml::Value::Table(table) => table, other => toml::Table::from_iter([(name.clone(), other)]) };
        let headers = toml::Table::from_iter([(name, toml::Value::from(hidden))]);
        let acme = toml::Table::from_iter([("headers".to_owned(), toml::Value::Table(headers))]);
        table.insert("providers".to_owned(), toml::Value::Table(toml::Table::from_iter([("acme".to_owned(), toml::Value::Table(acme))])));
        let result = load_toml(&toml::to_string(&table).expect("TOML"));
        let shown = match &result {
            Ok(loaded) => serde_json::to_string(&loaded.settings).expect("settings"),
            Err(errors) => format!("{errors}{errors:?}"),
        };
        prop_assert!(!shown.contains(CANARY), "{shown}");
    }

    #[test]
    fn no_value_at_a_known_key_makes_it_panic(text in placed(), variable in "PERENNIAL_[A-Z_]{0,24}", value in "[ -~é]{0,16}") {
        let directory = files(&[("perennial.toml", &text)]);
        let result = load_from(directory.path(), &[(variable.as_str(), value.as_str())]);
        if let Err(errors) = result {
            prop_assert!(errors.0.iter().all(|error| !error.remedy.is_empty()), "{errors}");
        }
    }

    #[test]
    fn no_text_at_all_makes_it_panic(text in "[\\[\\]a-z\"=.\n #é']{0,80}") {
        let directory = files(&[("perennial.toml", &format!("{text}\nx-api-key = {CANARY}"))]);
        let errors = load_from(directory.path(), &[]).expect_err("never valid");
        prop_assert!(!errors.to_string().contains(CANARY), "{errors}");
    }
}
