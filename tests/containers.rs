//! The images and docker-compose.yml, as far as they can be judged without an engine: what they call is what the programs
//! take, what they copy is there, and the sample clients are ones that the daemon can keep fresh.
//!
//! `make image` and `make compose-test` run them.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use support::{Deployment, StrictProvider, example, part};
use tempfile::TempDir;

fn read(path: &str) -> String {
    fs::read_to_string(part(path)).expect("readable")
}

/// docker-compose.yml with its anchors resolved, and each variable at its default.
fn composition() -> Value {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(open('docker-compose.yml')), sys.stdout, default=str)";
    let output = Command::new(part(".parts/moto/bin/python"))
        .args(["-c", program])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&defaults(&String::from_utf8(output.stdout).expect("text"))).expect("JSON")
}

/// `${NAME:-default}` is `default`.
fn defaults(text: &str) -> String {
    let mut parts = text.split("${");
    let mut resolved = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (variable, rest) = part.split_once('}').expect("a variable ends");
        let (_, default) = variable.split_once(":-").expect("every variable has a default");
        resolved.push_str(default);
        resolved.push_str(rest);
    }
    resolved
}

/// The services that run this image, by name.
fn services<'a>(composition: &'a Value, image: &str) -> BTreeMap<&'a str, &'a Value> {
    let all = composition["services"].as_object().expect("services").iter();
    let found: BTreeMap<_, _> = all
        .filter(|(_, service)| service["image"] == image)
        .map(|(name, service)| (name.as_str(), service))
        .collect();
    assert!(!found.is_empty(), "no service runs {image}");
    found
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|word| word.as_str().expect("a word")).collect()
}

fn help(program: &Path, arguments: &[&str]) -> Output {
    // Whatever is no argument of the program is refused before help is printed.
    Command::new(program).args(arguments).arg("--help").output().expect("it runs")
}

#[test]
fn every_command_of_the_composition_is_one_of_the_program() {
    let composition = composition();
    let program = Path::new(env!("CARGO_BIN_EXE_perennial"));
    for (name, service) in services(&composition, "perennial:latest") {
        let command = words(&service["command"]);
        let output = help(program, &command);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {command:?}: {errors}");
    }
    assert!(!help(program, &["table", "make"]).status.success(), "an unknown command is told apart");
}

#[tokio::test]
async fn the_composition_calls_the_provider_as_it_can_be_called() {
    let composition = composition();
    let program = example("strict-provider").await;
    for (name, service) in services(&composition, "perennial-sample-provider:latest") {
        let command = words(&service["command"]);
        let output = help(&program, &command);
        assert!(output.status.success(), "{name}: {command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(!help(&program, &["--lifetime=120"]).status.success(), "an unknown option is told apart");
}

#[test]
fn the_composed_daemons_are_locked_down_and_have_time_to_drain() {
    let composition = composition();
    let ours = services(&composition, "perennial:latest");
    for (name, service) in &ours {
        assert_eq!(
            (&service["read_only"], words(&service["cap_drop"])),
            (&true.into(), vec!["ALL"]),
            "{name}"
        );
        for volume in words(&service["volumes"]) {
            let source = volume.split(':').next().expect("a source");
            if source.starts_with('.') {
                part(source);
            }
        }
    }
    let daemons: Vec<_> = ours.iter().filter(|(name, _)| name.starts_with("daemon-")).collect();
    assert_eq!(daemons.len(), 2, "one is to be killed");
    let patience = Configuration::of_the_composition().duration("shutdown.timeout");
    for (name, daemon) in daemons {
        let granted = daemon["stop_grace_period"].as_str().expect("a grace period");
        assert!(humantime::parse_duration(granted).expect("a duration") > patience, "{name}");
        let dependencies = daemon["depends_on"].as_object().expect("dependencies").values();
        assert!(
            dependencies.into_iter().all(|needed| needed["condition"] != "service_started"),
            "{name} waits for whatever it needs to work"
        );
    }
}

/// deploy/compose/perennial.toml, as the program reads it.
struct Configuration(Vec<Value>);

impl Configuration {
    fn of_the_composition() -> Self {
        let config = part("deploy/compose/perennial.toml");
        let with = ["--config", config.to_str().expect("text"), "config"];
        let deployment = Deployment::embedded("");
        let checked = deployment.ok(&[&with[..], &["check"]].concat());
        assert!(checked.starts_with("OK: "), "{checked}");
        Self(serde_json::from_str(&deployment.ok(&[&with[..], &["show", "--json"]].concat())).expect("JSON"))
    }

    fn text(&self, key: &str) -> &str {
        let found = self.0.iter().find(|setting| setting["key"] == key);
        found.and_then(|setting| setting["value"].as_str()).unwrap_or_else(|| panic!("{key} is not set"))
    }

    fn duration(&self, key: &str) -> Duration {
        humantime::parse_duration(self.text(key)).expect("a duration")
    }
}

#[test]
fn the_configuration_of_the_composition_holds_and_names_its_services() {
    let (composition, configuration) = (composition(), Configuration::of_the_composition());
    for (key, service) in [("store.endpoint", "dynamodb"), ("providers.sample.token_url", "provider")] {
        let url = configuration.text(key);
        assert!(url.starts_with(&format!("http://{service}:")), "{key}: {url}");
        assert!(!composition["services"][service].is_null(), "{service}");
    }
    let address = configuration.text("health.address");
    let (_, port) = address.split_once("0.0.0.0:").expect("it is reached from outside");
    for daemon in ["daemon-1", "daemon-2"] {
        let published = words(&composition["services"][daemon]["ports"]);
        assert!(published[0].ends_with(&format!(":{port}")), "{daemon}: {published:?}");
    }
}

/// What a Dockerfile copies from the checkout.
fn copied(dockerfile: &str) -> BTreeSet<String> {
    let text = read(dockerfile);
    let copies = text.lines().filter_map(|line| line.strip_prefix("COPY "));
    let copies = copies.filter(|copy| !copy.starts_with("--from"));
    let sources = copies.flat_map(|copy| {
        let words: Vec<_> = copy.split_whitespace().collect();
        words[..words.len() - 1].iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()
    });
    sources.collect()
}

#[test]
fn the_images_copy_what_is_there_and_nothing_else_is_sent_to_the_engine() {
    let ignored = read(".dockerignore");
    let sent: BTreeSet<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let copied: BTreeSet<_> =
        ["Dockerfile", "deploy/compose/provider.Dockerfile"].into_iter().flat_map(copied).collect();
    assert!(copied.contains("src"), "{copied:?}");
    assert!(ignored.lines().any(|line| line == "*"), "all but these is ignored");
    assert_eq!(sent, copied.iter().map(String::as_str).collect());
    for source in copied {
        part(&source);
    }
}

/// The dependencies are built over empty sources, where cargo asks for each target that the manifest names.
#[test]
fn the_layer_of_dependencies_has_a_source_for_every_target_of_the_manifest() {
    let manifest: toml::Table = toml::from_str(&read("Cargo.toml")).expect("TOML");
    let dockerfile = read("Dockerfile");
    let mut targets = 0;
    for (kind, folder) in
        [("example", "examples"), ("bench", "benches"), ("test", "tests"), ("bin", "src/bin")]
    {
        for target in manifest.get(kind).and_then(toml::Value::as_array).into_iter().flatten() {
            let name = target["name"].as_str().expect("a name");
            assert!(
                dockerfile.contains(&format!("{folder}/{name}.rs")),
                "the Dockerfile makes no {folder}/{name}.rs"
            );
            targets += 1;
        }
    }
    assert!(targets > 0, "the manifest names targets");
}

/// The provider's image builds it as a package of its own.
#[test]
fn the_sample_provider_is_built_of_the_projects_own_versions() {
    let table = |path: &str| -> toml::Table { toml::from_str(&read(path)).expect("TOML") };
    let (project, sample) = (table("Cargo.toml"), table("deploy/compose/provider.toml"));
    let version = |dependency: &toml::Value| {
        let version = dependency.as_str().or_else(|| dependency.get("version")?.as_str());
        version.expect("a version").to_owned()
    };
    let dependencies = sample["dependencies"].as_table().expect("dependencies");
    for (name, dependency) in dependencies {
        let known = ["dependencies", "dev-dependencies"].iter().find_map(|kind| project[*kind].get(name));
        let known = known.unwrap_or_else(|| panic!("{name} is no dependency of the project"));
        assert_eq!(version(dependency), version(known), "{name}");
    }
    let built: BTreeSet<_> = dependencies.keys().map(|name| name.replace('-', "_")).collect();
    let missing: Vec<_> = crates_of_the_provider().difference(&built).cloned().collect();
    assert!(missing.is_empty(), "its image lacks {missing:?}");
}

/// What the provider's sources use of others.
fn crates_of_the_provider() -> BTreeSet<String> {
    let folder = fs::read_dir(part("examples/strict-provider")).expect("a folder");
    let files = folder.map(|entry| entry.expect("an entry").path());
    let mut sources = String::new();
    for file in files.chain([part("examples/strict-provider.rs")]) {
        sources.push_str(&fs::read_to_string(file).expect("readable"));
    }
    let own: BTreeSet<_> = sources
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'))
        .chain(["std", "crate", "super"])
        .collect();
    let paths = sources.lines().filter_map(|line| line.strip_prefix("use "));
    let crates = paths.filter_map(|path| path.split(&[':', ';'][..]).next());
    let others: BTreeSet<_> = crates.filter(|used| !own.contains(used)).map(str::to_owned).collect();
    assert!(others.contains("axum"), "{others:?}");
    others
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_clients_can_be_applied_and_kept_fresh() {
    let folder = TempDir::new().expect("a folder");
    let samples = folder.path().to_str().expect("text");
    // The second time over what the first has left, as when containers are started again.
    for _ in 0..2 {
        let provider = StrictProvider::start(&["--sample-clients", "6", "--sample-folder", samples]).await;
        let settings =
            format!("[providers.sample]\ntoken_url = \"{}\"\nrotates = true\n", provider.token_url());
        let deployment = Deployment::embedded(&settings);
        let applied = deployment.ok(&["clients", "apply", &format!("{samples}/clients.toml")]);
        assert!(applied.contains("create=6 "), "{applied}");
        deployment.ok(&["run", "--once"]);
        let listed = deployment.ok(&["clients", "list", "--json"]);
        let clients: Vec<Value> =
            listed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert!(
            clients.len() == 6 && clients.iter().all(|client| client["expires_at"].is_string()),
            "{listed}"
        );
        let kinds: BTreeSet<_> = clients.iter().filter_map(|client| client["grant"].as_str()).collect();
        assert_eq!(kinds, BTreeSet::from(["client_credentials", "refresh_token"]));
        let stats = provider.stats().await;
        assert_eq!((stats.granted, stats.refused, stats.double_redemptions), (6, 0, 0));
    }
}

#[test]
fn a_default_stands_for_its_variable() {
    assert_eq!(defaults("a ${NAME:-b:c} d ${OTHER:-} e"), "a b:c d  e");
}
