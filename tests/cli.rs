//! Drives the real binary on an embedded store: exit codes, output, and what ends up in the table.
//!
//! Every command's output is searched for the canaries that stand for secrets: none may be seen but the access token
//! that `get` was asked for.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use aws_sdk_dynamodb::types::AttributeValue;
use perennial::client::ClientId;
use perennial::client::credentials::Credentials;
use perennial::item::{Action, Assignment, Change, Condition, Item, Key, Value, attr};
use perennial::record::{Partition, Snapshot};
use perennial::secret::Secret;
use perennial::store::{Embedded, Store as _};
use perennial::time::{Clock as _, SystemClock};
use serde_json::Value as Json;
use tempfile::TempDir;

const CONFIGURATION: &str = r#"
[store]
kind = "embedded"

[providers.acme]
token_url = "http://127.0.0.1:9/token"

[providers.other]
token_url = "http://127.0.0.1:9/other"

[providers.open]
token_url = "http://127.0.0.1:9/open"
auth = "none"
"#;

const MACHINE: &str = r#"
[[clients]]
id = "billing"
provider = "acme"
grant = "client_credentials"
client_id = "app-1"
client_secret = { env = "APP_SECRET" }
"#;

const CUSTOMER: &str = r#"
[[clients]]
id = "crm-7"
provider = "acme"
grant = "refresh_token"
client_id = "app-1"
client_secret = { env = "APP_SECRET" }
refresh_token = { env = "CRM_TOKEN" }
"#;

/// A directory with a configuration and an embedded store.
struct World {
    directory: TempDir,
}

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    fn fails(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in:\n{}", self.err);
        }
        self
    }
}

impl World {
    fn new() -> Self {
        let world = Self { directory: TempDir::new().expect("a temporary directory") };
        world.write("perennial.toml", CONFIGURATION);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("writable");
        path.display().to_string()
    }

    /// Runs a command, and looks for secrets in what it says.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "")
    }

    #[track_caller]
    fn run_with(&self, arguments: &[&str], stdin: &str) -> Ran {
        let ran = self.run_unseen(arguments, stdin);
        let said = format!("{}{}", ran.out, ran.err);
        assert!(!said.contains("canary"), "a secret in the output of {arguments:?}:\n{said}");
        ran
    }

    fn run_unseen(&self, arguments: &[&str], stdin: &str) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_perennial"))
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .env("PERENNIAL_CONFIG", self.path("perennial.toml"))
            .env("PERENNIAL__STORE__PATH", self.path("store.db"))
            .env("APP_SECRET", "canary-app-secret")
            .env("CRM_TOKEN", "canary-crm-token")
            .env("EMPTY", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        // A command that does not read its standard input may be gone already.
        drop(child.stdin.take().map(|mut pipe| pipe.write_all(stdin.as_bytes())));
        let output = child.wait_with_output().expect("the binary ends");
        Ran {
            code: output.status.code().expect("no signal"),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }

    #[track_caller]
    fn apply(&self, text: &str, more: &[&str]) -> Ran {
        let file = self.write("clients.toml", text);
        self.run(&[&["clients", "apply", &file], more].concat())
    }

    async fn store(&self) -> Embedded {
        let open =
            Embedded::open(self.path("store.db"), "client-credentials", 16, Arc::new(SystemClock)).await;
        open.expect("the store opens")
    }

    async fn partition(&self, client: &str) -> Partition {
        self.store().await.store().read(&id(client)).await.expect("an answer")
    }

    async fn read(&self, client: &str) -> Snapshot {
        self.partition(client).await.decode(&id(client)).expect("well-formed")
    }

    async fn refresh_token(&self, client: &str) -> Option<String> {
        let token = self.read(client).await.token?.refresh_token?;
        Some(token.expose().to_owned())
    }

    /// Writes an item as another tool would.
    async fn write_item(&self, key: Key, item: Item) {
        let any = Condition::Any(vec![Condition::Exists, Condition::Absent]);
        let change = Change::one(key, any, Action::Put(item));
        self.store().await.store().apply(&change).await.expect("applied");
    }

    async fn assign(&self, key: Key, assignments: Vec<Assignment>) {
        let change = Change::one(key, Condition::Exists, Action::Update(assignments));
        self.store().await.store().apply(&change).await.expect("applied");
    }

    /// The provider said that the grant is gone.
    async fn bury(&self, client: &str) {
        let of = self.read(client).await.tok_gen().0;
        let assignments = vec![
            Assignment::Set(attr::ST, Value::S("D".into())),
            Assignment::Set(attr::GEN, Value::N(of + 1)),
            Assignment::Set(attr::OF, Value::N(of)),
            Assignment::Set(attr::FAILS, Value::N(1)),
            Assignment::Set(attr::ERR, Value::S("invalid_grant".into())),
        ];
        self.assign(Key::Lease(id(client)), assignments).await;
    }

    fn add_customer(&self) {
        self.apply(CUSTOMER, &[]).ok();
    }
}

fn id(text: &str) -> ClientId {
    ClientId::new(text).expect("a valid id")
}

fn json_lines(text: &str) -> Vec<Json> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn in_an_hour() -> i64 {
    SystemClock.now().as_secs() + 3600
}

/// A token item in the single-item form of other tools.
fn foreign_token() -> Item {
    Item::default()
        .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new("canary-foreign-access")))
        .with(attr::REFRESH_TOKEN, Value::Secret(Secret::new("canary-foreign-refresh")))
        .with(attr::EXPIRES_AT, Value::N(in_an_hour()))
        .with(attr::TTL, Value::N(in_an_hour()))
        .with("tenant", Value::S("t-1".into()))
}

#[test]
fn usage_and_configuration_errors_have_exit_code_2() {
    let world = World::new();
    world.run(&["nonsense"]).fails(2, &["nonsense"]);
    assert!(world.run(&["config", "check"]).ok().starts_with("OK: profile development, embedded store "));
    world.write("perennial.toml", "[stor]\nkind = \"embedded\"\n[log]\nformat = \"xml\"\n");
    world.run(&["config", "check"]).fails(2, &["the configuration has", "stor", "log.format"]);
    world.run(&["clients", "list"]).fails(2, &["log.format"]);
    assert!(world.run(&["--help"]).ok().contains("Exit codes:"));
}

#[test]
fn config_show_says_where_each_value_comes_from_and_hides_secrets() {
    let world = World::new();
    let headers = format!("{CONFIGURATION}\n[providers.acme.headers]\nx-api-key = \"canary-key\"\n");
    world.write("perennial.toml", &headers);
    let shown = world.run(&["config", "show"]).ok();
    assert!(
        shown.contains("store.path = ") && shown.contains("(environment PERENNIAL__STORE__PATH)"),
        "{shown}"
    );
    let shown = world.run(&["config", "show", "--json"]).ok();
    let settings: Vec<Json> = serde_json::from_str(&shown).expect("one array");
    assert!(settings.iter().any(|setting| setting["key"] == "store.kind" && setting["value"] == "embedded"));
}

#[test]
fn the_table_is_made_and_checked() {
    let world = World::new();
    assert!(world.run(&["table", "create"]).ok().contains("is ready"));
    let checked = world.run(&["table", "check", "--json"]).ok();
    assert!(json_lines(&checked).iter().all(|finding| finding["verdict"] != "differs"), "{checked}");
}

#[test]
fn apply_is_idempotent_and_a_rehearsal_writes_nothing() {
    let world = World::new();
    let both = format!("{MACHINE}{CUSTOMER}");
    let rehearsal = world.apply(&both, &["--dry-run"]).ok();
    assert!(rehearsal.contains("create=2") && rehearsal.contains("nothing was written"), "{rehearsal}");
    assert_eq!(world.run(&["clients", "list"]).ok(), "");
    assert!(world.apply(&both, &[]).ok().contains("create=2"));
    let listed = world.run(&["clients", "list", "--json"]).ok();
    let again = world.apply(&both, &[]).ok();
    assert!(again.contains("unchanged crm-7") && again.contains("unchanged=2"), "{again}");
    assert_eq!(world.run(&["clients", "list", "--json"]).ok(), listed);
}

#[tokio::test]
async fn a_second_apply_writes_nothing_at_all() {
    let world = World::new();
    world.add_customer();
    let before = world.partition("crm-7").await;
    world.apply(CUSTOMER, &[]).ok();
    assert_eq!(world.partition("crm-7").await, before);
}

#[tokio::test]
async fn apply_changes_field_by_field_and_shows_no_secret() {
    let world = World::new();
    world.apply(MACHINE, &[]).ok();
    let secret = world.write("secret", "canary-new-secret\n");
    let changed = MACHINE
        .replace("{ env = \"APP_SECRET\" }", &format!("{{ file = \"{secret}\" }}\nscopes = [\"a\", \"b\"]"));
    let told = world.apply(&changed, &["--json"]).ok();
    let told = &json_lines(&told)[0];
    assert_eq!((&told["client"], &told["action"]), (&"billing".into(), &"update".into()));
    let fields = told["fields"].to_string();
    assert!(fields.contains("none -> a b") && fields.contains("client_secret"), "{fields}");
    let client = world.read("billing").await.client().cloned().expect("registered");
    assert_eq!(client.credentials, Credentials::stored("canary-new-secret"), "the newline is gone");
    assert_eq!(client.refresh_now.map(|generation| generation.0), Some(0), "a new token is asked for");
}

#[tokio::test]
async fn a_file_names_places_of_client_secrets_and_second_ones() {
    let world = World::new();
    world.write(
        "perennial.toml",
        &format!("{CONFIGURATION}\n[secrets]\nallow = [\"ssm:/oauth/{{client}}/*\"]\n"),
    );
    let by_reference = |more: &str| {
        MACHINE
            .replace("{ env = \"APP_SECRET\" }", &format!("{{ ref = \"ssm:/oauth/billing/one\" }}\n{more}"))
    };
    world.apply(&by_reference(""), &[]).ok();
    let told = world.apply(&by_reference("second_client_secret = { env = \"APP_SECRET\" }"), &[]).ok();
    assert!(told.contains("second_client_secret: none -> stored"), "{told}");
    let shown = world.run(&["clients", "show", "billing"]).ok();
    assert!(shown.contains("ssm:/oauth/billing/one") && shown.contains("stored"), "{shown}");
    let story = world.run(&["why", "billing"]).ok();
    assert!(story.contains("is looked up at ssm:/oauth/billing/one"), "{story}");
    // The secret itself in the table, and no second any more: the file rules.
    let told = world.apply(MACHINE, &[]).ok();
    assert!(told.contains("client_secret: ssm:/oauth/billing/one -> stored"), "{told}");
    assert!(told.contains("second_client_secret: stored -> none"), "{told}");
    let client = world.read("billing").await.client().cloned().expect("registered");
    assert_eq!(client.credentials, Credentials::stored("canary-app-secret"));

    let others = by_reference("second_client_secret = { ref = \"ssm:/oauth/others/two\" }");
    world.apply(&others, &[]).fails(2, &["`second_client_secret` cannot be looked up", "secrets.allow"]);
    let wrong = by_reference("second_client_secret = { ref = \"canary\" }");
    world.apply(&wrong, &[]).fails(2, &["`second_client_secret` has a ref that is no reference"]);
    let alone = MACHINE.replace("client_secret", "second_client_secret");
    world.apply(&alone, &[]).fails(2, &["`client_secret` is missing", "stands without a first"]);
}

#[tokio::test]
async fn a_token_url_that_no_request_would_be_sent_to_is_not_registered() {
    let world = World::new();
    for (url, code) in [
        ("https://169.254.169.254/token", "forbidden_address"),
        ("https://[::ffff:10.0.0.1]/token", "forbidden_address"),
        ("http://acme.test/token", "plain_http_refused"),
    ] {
        let text = format!("{MACHINE}token_url = \"{url}\"\n");
        world.apply(&text, &[]).fails(2, &["`token_url`", code]);
        let add = [
            "clients",
            "add",
            "x",
            "--provider",
            "acme",
            "--grant",
            "client_credentials",
            "--client-id",
            "a",
        ];
        let more = ["--client-secret-env", "APP_SECRET", "--token-url", url];
        world.run(&[&add[..], &more].concat()).fails(2, &["token_url", code]);
    }
    assert_eq!(world.run(&["clients", "list"]).ok(), "");
}

/// A file with everything wrong that there may be.
const WRONG: &str = r#"
[[clients]]
id = "one"
provider = "nobody"
grant = "password"
client_secret = "canary-literal"
colour = "red"
[[clients]]
id = "two"
provider = "open"
grant = "client_credentials"
client_id = "app"
client_secret = { env = "APP_SECRET" }
expires_in = "5m"
[[clients]]
id = "three"
provider = "acme"
grant = "refresh_token"
client_id = "app"
client_secret = { env = "UNSET" }
[[clients]]
id = "four"
provider = "acme"
grant = "refresh_token"
client_id = "app"
client_secret = { env = "APP_SECRET" }
[[clients]]
id = "four"
provider = "acme"
grant = "client_credentials"
client_id = "app"
scopes = "a b"
token_url = "http://example.test/token"
[[clients]]
id = "no good"
provider = "acme"
grant = "client_credentials"
client_id = ""
client_secret = { env = "EMPTY", file = "x" }
refresh_token = { vault = "x" }
[[client]]
id = "seven"
provider = "acme"
grant = "client_credentials"
client_id = "app"
"#;

#[test]
fn everything_that_is_wrong_with_a_file_is_reported_at_once() {
    let world = World::new();
    let parts = [
        "`one`: `provider` names `nobody`",
        "`one`: `grant`",
        "`one`: `client_id` is missing",
        "`one`: `client_secret` must not stand in the file",
        "`one`: `colour` is no key",
        "`two`: `client_secret` is never sent",
        "`two`: `expires_in` speaks of an access token",
        "`three`: `client_secret` has no value: environment variable UNSET",
        "`four`: the grant refresh_token needs a refresh token",
        "`four`: `scopes` is no list",
        "`four`: `client_secret` is missing",
        "`four`: `token_url` is not https",
        "clients[5]: `id` is wrong",
        "clients[5]: `client_id` is empty",
        "clients[5]: `client_secret` names more than one place",
        "clients[5]: `refresh_token` names no place that there is",
        "`four`: `id` stands in the file more than once",
        "`client` is no key of a clients file",
        "`seven`: `client_secret` is missing",
        "nothing was written",
    ];
    world.apply(WRONG, &[]).fails(2, &parts);
    assert_eq!(world.run(&["clients", "list"]).ok(), "");
}

#[test]
fn a_syntax_error_does_not_print_the_line_with_the_secret() {
    let world = World::new();
    world.apply("[[clients]]\nclient_secret = \"canary\n", &[]).fails(2, &["is no TOML at line 2"]);
    let json = world.write("clients.json", "{\"clients\": [{\"client_secret\": \"canary\" oops]}");
    world.run(&["clients", "apply", &json]).fails(2, &["is no JSON at line 1"]);
    world
        .apply(&format!("{MACHINE}{MACHINE}"), &[])
        .fails(2, &["`billing`: `id` stands in the file more than once"]);
    world.apply("clients = []\nother = 1", &[]).fails(2, &["`other` is no key of a clients file"]);
}

#[test]
fn a_file_may_be_json_and_come_from_standard_input() {
    let world = World::new();
    let json = r#"{"clients": [{"id": "j", "provider": "open", "grant": "client_credentials", "client_id": "app",
        "params": {"tenant": "t"}, "paused": true}]}"#;
    assert!(
        world.run_with(&["clients", "apply", "-", "--format", "json"], json).ok().contains("create    j")
    );
    world.run_with(&["clients", "apply", "-"], json).fails(2, &["--format"]);
    assert!(world.run(&["clients", "show", "j"]).ok().contains("paused             yes"));
    let twice = MACHINE.replace("{ env = \"APP_SECRET\" }", "{ stdin = true }");
    world.run_with(&["clients", "apply", "-", "--format", "toml"], &twice).fails(2, &["name a file or env"]);
}

#[test]
fn prune_removes_what_the_file_lacks_and_asks_first() {
    let world = World::new();
    world.apply(&format!("{MACHINE}{CUSTOMER}"), &[]).ok();
    let rehearsal = world.apply(MACHINE, &["--prune", "--dry-run"]).ok();
    assert!(rehearsal.contains("prune     crm-7"), "{rehearsal}");
    world.apply(MACHINE, &["--prune"]).fails(1, &["crm-7", "--yes"]);
    assert!(world.run(&["clients", "show", "crm-7"]).code == 0);
    assert!(world.apply(MACHINE, &["--prune", "--yes"]).ok().contains("prune=1"));
    let again = world.apply(MACHINE, &["--prune", "--yes"]).ok();
    assert!(again.contains("prune=0"), "its tombstone is no client: {again}");
    world.run(&["clients", "show", "crm-7"]).fails(1, &["is not registered"]);
    assert!(world.run(&["clients", "show", "billing"]).code == 0);
}

#[tokio::test]
async fn the_files_refresh_token_does_not_overwrite_a_live_grant() {
    let world = World::new();
    world.add_customer();
    let newer = world.write("newer", "canary-newer-token");
    let file = CUSTOMER.replace("{ env = \"CRM_TOKEN\" }", &format!("{{ file = \"{newer}\" }}"));
    assert!(world.apply(&file, &[]).ok().contains("unchanged crm-7"));
    assert_eq!(world.refresh_token("crm-7").await.as_deref(), Some("canary-crm-token"));
    assert!(world.apply(&file, &["--replace", "crm-7"]).ok().contains("replace   crm-7"));
    assert_eq!(world.refresh_token("crm-7").await.as_deref(), Some("canary-newer-token"));
    world.apply(&file, &["--replace", "nobody"]).fails(2, &["no such client"]);
    let gone = file.replace("app-1", "app-2");
    world.apply(&gone, &[]).fails(1, &["client_id changes", "--replace crm-7", "nothing was written"]);
    assert!(world.apply(&gone, &["--replace", "crm-7"]).ok().contains("app-1 -> app-2"));
}

#[test]
fn the_one_time_token_may_be_gone_at_the_second_run() {
    let world = World::new();
    world.add_customer();
    let file = CUSTOMER.replace("CRM_TOKEN", "UNSET");
    assert!(world.apply(&file, &[]).ok().contains("unchanged crm-7"));
    world.apply(&file, &["--replace", "crm-7"]).fails(1, &["`refresh_token` has no value"]);
}

const ADD: [&str; 9] =
    ["clients", "add", "crm-7", "--provider", "acme", "--grant", "refresh_token", "--client-id", "app-1"];

fn add(more: &[&'static str]) -> Vec<&'static str> {
    [&ADD, more].concat()
}

#[tokio::test]
async fn add_takes_secrets_from_stdin_environment_and_files() {
    let world = World::new();
    world.write("token", "canary-file-token\r\n");
    let from_all = add(&[
        "--client-secret-stdin",
        "--refresh-token-file",
        "token",
        "--access-token-env",
        "CRM_TOKEN",
        "--expires-in",
        "5m",
        "--param",
        "tenant=t",
    ]);
    let ran = world.run_with(&from_all, "canary-stdin-secret\n");
    assert!(ran.err.contains("not promised"), "{ran:?}");
    assert_eq!(ran.ok(), "crm-7 registered\n");
    let read = world.read("crm-7").await;
    let client = read.client().expect("registered");
    assert_eq!(client.credentials, Credentials::stored("canary-stdin-secret"));
    let token = read.token.clone().expect("a token");
    assert_eq!(token.refresh_token, Some(Secret::new("canary-file-token")));
    assert_eq!(token.access_token, Some(Secret::new("canary-crm-token")));
    assert!(token.refresh_at.is_some_and(|at| at < token.expires_at));
    world
        .run_with(&from_all, "canary-x")
        .fails(1, &["registered already", "clients apply", "import-token crm-7", "show crm-7"]);
}

#[test]
fn add_refuses_what_cannot_work() {
    let world = World::new();
    let secret = "--client-secret-env";
    world.run(&add(&[secret, "APP_SECRET"])).fails(1, &["needs a refresh token"]);
    world.run(&add(&["--refresh-token-env", "CRM_TOKEN"])).fails(2, &["client_secret is missing"]);
    world.run(&add(&[secret, "EMPTY"])).fails(2, &["EMPTY is not set, or empty"]);
    world.run(&add(&["--client-secret-stdin", "--refresh-token-stdin"])).fails(2, &["standard input"]);
    world.run(&add(&["--client-secret-stdin"])).fails(2, &["standard input is empty"]);
    world.run(&add(&["--client-secret-file", "nowhere"])).fails(2, &["nowhere cannot be read"]);
    world.run(&add(&[secret, "A", "--client-secret-stdin"])).fails(2, &["cannot be used with"]);
    world.run(&add(&[secret, "APP_SECRET", "--expires-in", "5m"])).fails(2, &["access-token"]);
    let machine =
        ["clients", "add", "x", "--provider", "open", "--grant", "client_credentials", "--client-id", "a"];
    let needless = [&machine[..], &["--refresh-token-env", "CRM_TOKEN"]].concat();
    world
        .run(&needless)
        .fails(2, &["grant client_credentials has no refresh token", "use the grant refresh_token"]);
    let nobody =
        ["clients", "add", "x", "--provider", "nobody", "--grant", "client_credentials", "--client-id", "a"];
    world.run(&nobody).fails(2, &["provider `nobody`", "acme, open, other"]);
    assert_eq!(world.run(&["clients", "list"]).ok(), "");
}

#[tokio::test]
async fn a_clients_life_from_registration_to_registration() {
    let world = World::new();
    world.add_customer();
    assert!(world.run(&["clients", "pause", "crm-7"]).ok().contains("crm-7 paused"));
    assert!(world.run(&["clients", "pause", "crm-7"]).ok().contains("paused already"));
    let paused = json_lines(&world.run(&["clients", "list", "--state", "paused", "--json"]).ok());
    assert_eq!(paused[0]["client"], "crm-7");
    world.run(&["clients", "refresh", "crm-7"]).fails(1, &["it is paused"]);
    assert!(world.run(&["clients", "resume", "crm-7"]).ok().contains("resumed"));
    assert!(world.run(&["clients", "refresh", "crm-7"]).ok().contains("will be refreshed"));
    assert_eq!(world.read("crm-7").await.client().and_then(|c| c.refresh_now).map(|g| g.0), Some(0));
    world.run(&["clients", "pause", "nobody", "crm-7"]).fails(1, &["`nobody` is not registered"]);
    assert!(world.read("crm-7").await.client().expect("registered").paused, "the others are done");

    world.run(&["clients", "remove", "crm-7"]).fails(1, &["no terminal", "--yes"]);
    assert!(world.run(&["clients", "remove", "crm-7", "--yes"]).ok().contains("removed"));
    world.run(&["clients", "remove", "crm-7", "--yes"]).fails(1, &["not registered"]);
    world.run(&["clients", "show", "crm-7"]).fails(1, &["not registered"]);
    assert!(world.run(&["why", "crm-7"]).fails(1, &[]).out.contains("removed"));
    assert!(world.apply(CUSTOMER, &[]).ok().contains("create    crm-7"));
    let read = world.read("crm-7").await;
    assert_eq!((read.tok_gen().0, read.lease.map(|lease| lease.generation.0)), (2, Some(2)), "it goes on");
}

#[tokio::test]
async fn an_import_replaces_a_live_grant_only_when_told_to() {
    let world = World::new();
    world.add_customer();
    let import = ["clients", "import-token", "crm-7", "--refresh-token-stdin"];
    let replace = ["clients", "import-token", "crm-7", "--refresh-token-stdin", "--replace"];
    world.run_with(&import, "canary-r2").fails(1, &["live refresh token", "--replace"]);
    assert_eq!(world.refresh_token("crm-7").await.as_deref(), Some("canary-crm-token"));
    world.run_with(&replace, "canary-r2").ok();
    assert_eq!(world.refresh_token("crm-7").await.as_deref(), Some("canary-r2"));
    world.bury("crm-7").await;
    assert!(world.run(&["why", "crm-7"]).ok().contains("the provider said invalid_grant"));
    world.run(&["clients", "refresh", "crm-7"]).fails(1, &["import-token"]);
    world.run_with(&import, "canary-r3").ok();
    let read = world.read("crm-7").await;
    assert_eq!(read.lease.map(|lease| lease.state.as_str().to_owned()).as_deref(), Some("I"));
    assert_eq!(world.refresh_token("crm-7").await.as_deref(), Some("canary-r3"));
    world.run(&["clients", "import-token", "crm-7"]).fails(2, &["no token to import"]);
    world
        .run_with(&["clients", "import-token", "crm-7", "--access-token-stdin", "--replace"], "canary")
        .fails(1, &["needs a refresh token"]);
    world
        .run_with(&["clients", "import-token", "nobody", "--refresh-token-stdin"], "canary")
        .fails(1, &["not registered"]);
}

#[tokio::test]
async fn a_hold_is_resolved() {
    let world = World::new();
    world.add_customer();
    world.run(&["clients", "resolve", "crm-7", "--retry"]).fails(1, &["not held in doubt"]);
    world.run(&["clients", "resolve", "crm-7"]).fails(2, &["--retry"]);
    let hold = vec![
        Assignment::Set(attr::ST, Value::S("Q".into())),
        Assignment::Set(attr::OF, Value::N(0)),
        Assignment::Set(attr::GEN, Value::N(1)),
    ];
    world.assign(Key::Lease(id("crm-7")), hold).await;
    assert!(world.run(&["why", "crm-7"]).ok().contains("resolve crm-7 --retry"));
    assert!(world.run(&["clients", "resolve", "crm-7", "--retry"]).ok().contains("once more"));
    let lease = world.read("crm-7").await.lease.expect("a lease");
    assert_eq!((lease.state.as_str(), lease.doubt.map(|(of, sends)| (of.0, sends))), ("I", Some((0, 0))));
}

#[tokio::test]
async fn get_prints_a_good_token_and_nothing_else() {
    let world = World::new();
    world.run(&["get", "crm-7"]).fails(1, &["no such client"]);
    world.add_customer();
    assert_eq!(world.run(&["get", "crm-7"]).fails(1, &["first token is yet to come"]).out, "");
    let expires = |at| Assignment::Set(attr::EXPIRES_AT, Value::N(at));
    let access = Assignment::Set(attr::ACCESS_TOKEN, Value::Secret(Secret::new("canary-at")));
    world.assign(Key::Token(id("crm-7")), vec![access, expires(in_an_hour())]).await;
    let got = world.run_unseen(&["get", "crm-7"], "");
    assert_eq!((got.code, got.out.as_str(), got.err.as_str()), (0, "canary-at\n", ""));
    let got = world.run_unseen(&["get", "crm-7", "--min-ttl", "50m", "--json"], "").ok();
    let got = &json_lines(&got)[0];
    assert_eq!((&got["access_token"], &got["generation"]), (&"canary-at".into(), &0.into()));
    assert!(got["expires_in"].as_i64().is_some_and(|left| (3500..=3600).contains(&left)), "{got}");
    assert_eq!(world.run(&["get", "crm-7", "--min-ttl", "2h"]).fails(1, &["less than --min-ttl"]).out, "");
    world.assign(Key::Token(id("crm-7")), vec![expires(in_an_hour() - 3601)]).await;
    assert_eq!(world.run(&["get", "crm-7"]).fails(1, &["expired at", "perennial why crm-7"]).out, "");
}

#[tokio::test]
async fn get_needs_nothing_of_a_registration() {
    let world = World::new();
    world.write_item(Key::Token(id("alien")), foreign_token()).await;
    world.write_item(Key::Config(id("alien")), Item::default().with("grant", Value::N(1))).await;
    assert_eq!(world.run_unseen(&["get", "alien"], "").ok(), "canary-foreign-access\n");
}

#[tokio::test]
async fn tokens_of_another_tool_are_adopted_as_they_are() {
    let world = World::new();
    world.write_item(Key::Token(id("crm-7")), foreign_token()).await;
    assert!(world.run(&["why", "crm-7"]).fails(1, &[]).out.contains("another tool wrote"));
    world.apply(CUSTOMER, &[]).fails(1, &["live refresh token"]);
    let silent = CUSTOMER.replace("refresh_token = { env = \"CRM_TOKEN\" }", "");
    assert!(world.apply(&silent, &[]).ok().contains("adopts the tokens"));
    let read = world.read("crm-7").await;
    let token = read.token.clone().expect("a token");
    assert_eq!((read.tok_gen().0, token.ttl), (0, None));
    assert_eq!(world.refresh_token("crm-7").await.as_deref(), Some("canary-foreign-refresh"));
    let item = world.partition("crm-7").await.token.expect("a token");
    assert_eq!(item.get("tenant"), Some(&Value::S("t-1".into())));
    assert_eq!(world.run_unseen(&["get", "crm-7"], "").ok(), "canary-foreign-access\n");
    assert!(world.run(&["clients", "show", "crm-7"]).ok().contains("idle"));
}

#[tokio::test]
async fn malformed_items_are_named_skipped_and_left_alone() {
    let world = World::new();
    world.apply(&format!("{MACHINE}{CUSTOMER}"), &[]).ok();
    world.assign(Key::Lease(id("crm-7")), vec![Assignment::Set(attr::GEN, Value::S("seven".into()))]).await;
    world.write_foreign_row().await;
    let before = world.partition("crm-7").await;
    let named = "CLIENT#crm-7/LEASE: attribute `gen` has type S, needs N";
    for listing in [&["clients", "list"][..], &["clients", "list", "--sort", "expiry"]] {
        let listed = world.run(listing);
        assert!(listed.err.contains(named) && listed.err.contains("USER#1/PROFILE"), "{listed:?}");
        assert_eq!(listed.err.matches(named).count(), 1, "{listed:?}");
        let out = listed.ok();
        assert!(out.contains("billing") && !out.contains("crm-7"), "{out}");
    }
    world.run(&["clients", "show", "crm-7"]).fails(1, &[named]);
    world.run(&["clients", "resolve", "nosuch", "--retry"]).fails(1, &["`nosuch` is not registered"]);
    assert!(world.run(&["why", "crm-7"]).ok().contains(named));
    for command in [&["pause", "crm-7"][..], &["refresh", "crm-7"], &["remove", "crm-7", "--yes"]] {
        world.run(&[&["clients"], command].concat()).fails(1, &[named]);
    }
    let more = MACHINE.replace("billing", "fresh");
    for (options, listed) in [(&["--dry-run"][..], 1), (&["--prune", "--yes"], 1), (&[], 1)] {
        let ran = world.apply(&format!("{}{more}", CUSTOMER.replace("app-1", "app-2")), options);
        let ran = ran.fails(1, &[named, "; correct or delete that item by hand"]);
        assert_eq!(ran.err.matches("by hand").count(), 1, "{ran:?}");
        assert!(
            ran.out.contains("failed    crm-7  left as it was") && ran.out.contains(" failed=1"),
            "{ran:?}"
        );
        assert_eq!(world.run(&["clients", "list", "--json"]).ok().lines().count(), listed);
    }
    world.run(&["clients", "show", "fresh"]).ok();
    assert_eq!(world.partition("crm-7").await, before);
}

impl World {
    /// A row of the index that is no client.
    async fn write_foreign_row(&self) {
        let embedded = self.store().await;
        let text = |text: &str| AttributeValue::S(text.into());
        let number = |number: &str| AttributeValue::N(number.into());
        let put = embedded.store().client().put_item().table_name("client-credentials");
        let put = put.item("PK", text("USER#1")).item("SK", text("PROFILE"));
        put.item("vs", number("3")).item("jn", number("1")).send().await.expect("written");
    }
}

#[tokio::test]
async fn list_filters_sorts_and_limits() {
    let world = World::new();
    let mut file = String::new();
    for n in 0..60 {
        file += &MACHINE.replace("billing", &format!("m-{n:02}"));
    }
    file += &MACHINE.replace("billing", "z").replace("acme", "other");
    world.apply(&file, &[]).ok();
    assert_eq!(world.run(&["clients", "list"]).ok().lines().count(), 62, "a header and each once");
    assert_eq!(world.run(&["clients", "list", "--limit", "5", "--json"]).ok().lines().count(), 5);
    let ids = |arguments: &[&str]| -> Vec<String> {
        let listed = world.run(&[&["clients", "list", "--json"], arguments].concat()).ok();
        json_lines(&listed).iter().map(|row| row["client"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids(&["--provider", "other"]), ["z"]);
    assert_eq!(ids(&["--sort", "id", "--limit", "3"]), ["m-00", "m-01", "m-02"]);
    let fails = |count| vec![Assignment::Set(attr::FAILS, Value::N(count))];
    world.assign(Key::Lease(id("m-07")), fails(2)).await;
    world.assign(Key::Lease(id("m-41")), fails(9)).await;
    assert_eq!(ids(&["--failing", "--sort", "failures"]), ["m-41", "m-07"]);
    world.assign(Key::Token(id("m-33")), vec![Assignment::Set(attr::EXPIRES_AT, Value::N(5))]).await;
    assert_eq!(ids(&["--state", "expired"]), ["m-33"]);
    assert_eq!(ids(&["--state", "pending"]).len(), 60);
    assert_eq!(ids(&["--sort", "expiry"]).last().map(String::as_str), Some("m-33"));
    assert_eq!(ids(&["--state", "dead"]), Vec::<String>::new());
}

#[test]
fn why_tells_the_same_story_as_json() {
    let world = World::new();
    world.apply(MACHINE, &[]).ok();
    let story = &json_lines(&world.run(&["why", "billing", "--json"]).ok())[0];
    assert_eq!((&story["client"], &story["state"]), (&"billing".into(), &"pending".into()));
    assert!(story["next"][0].as_str().is_some_and(|next| next.contains("It is due")), "{story}");
    world.write("perennial.toml", "[store]\nkind = \"embedded\"\n");
    let told = world.run(&["why", "billing"]).ok();
    assert!(told.contains("`acme` is not in this configuration"), "{told}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let world = World::new();
    world.apply(MACHINE, &[]).ok();
    let mut child = Command::new(env!("CARGO_BIN_EXE_perennial"))
        .args(["clients", "list"])
        .env_clear()
        .env("PERENNIAL_CONFIG", world.path("perennial.toml"))
        .env("PERENNIAL__STORE__PATH", world.path("store.db"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the binary ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Ends with the test, however that ends.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn commands_work_beside_a_running_daemon() {
    let world = World::new();
    world.apply(MACHINE, &[]).ok();
    let log = std::fs::File::create(world.path("daemon.log")).expect("writable");
    let daemon = Command::new(env!("CARGO_BIN_EXE_perennial"))
        .arg("run")
        .env_clear()
        .env("PERENNIAL_CONFIG", world.path("perennial.toml"))
        .env("PERENNIAL__STORE__PATH", world.path("store.db"))
        .env("PERENNIAL__HEALTH__ENABLED", "false")
        .env("PERENNIAL__DISCOVERY__INTERVAL", "1s")
        .stdout(log.try_clone().expect("a handle"))
        .stderr(log)
        .spawn()
        .expect("the binary runs");
    let _daemon = Daemon(daemon);
    // Its token endpoint is a closed port: the attempt fails, and the table tells of it.
    let failing = |client: &str| {
        let listed = world.run(&["clients", "list", "--failing", "--json"]).ok();
        json_lines(&listed).iter().any(|row| row["client"] == client)
    };
    let eventually = |what: &str, condition: &dyn Fn() -> bool| {
        let held = (0..200).any(|_| condition());
        let log = std::fs::read_to_string(world.path("daemon.log")).unwrap_or_default();
        assert!(held, "{what}: in vain\n{log}");
    };
    eventually("the daemon tries billing", &|| failing("billing"));
    assert!(world.run(&["why", "billing"]).ok().contains("It failed"));
    // Registered beside it, found by it, paused and removed beside it.
    world.run(&add(&["--client-secret-env", "APP_SECRET", "--refresh-token-env", "CRM_TOKEN"])).ok();
    eventually("the daemon finds crm-7", &|| failing("crm-7"));
    world.run(&["clients", "pause", "crm-7"]).ok();
    world.run(&["clients", "remove", "crm-7", "--yes"]).ok();
    let log = std::fs::read_to_string(world.path("daemon.log")).expect("a log");
    assert!(!log.contains("canary"), "{log}");
}

/// Runs a command whose output nobody reads.
fn run_unread(world: &World, arguments: &[&str]) -> i32 {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_perennial"))
        .args(arguments)
        .env_clear()
        .env("PERENNIAL_CONFIG", world.path("perennial.toml"))
        .env("PERENNIAL__STORE__PATH", world.path("store.db"))
        .env("APP_SECRET", "canary-app-secret")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::null())
        .status();
    status.expect("the binary runs").code().expect("no signal")
}

#[tokio::test]
async fn writes_go_on_when_nobody_reads_the_output() {
    let world = World::new();
    let ids: Vec<String> = (0..40).map(|n| format!("m-{n}")).collect();
    let text: String = ids.iter().map(|id| MACHINE.replace("billing", id)).collect();
    let file = world.write("clients.toml", &text);
    assert_eq!(run_unread(&world, &["clients", "apply", &file]), 0);
    assert_eq!(world.run(&["clients", "list", "--json"]).ok().lines().count(), 40);
    assert_eq!(
        run_unread(&world, &["clients", "pause", "m-0", "nosuch", "m-1"]),
        1,
        "what fails still counts"
    );
    assert!(world.read("m-1").await.client().expect("registered").paused);
    let less = world.write("less.toml", MACHINE);
    assert_eq!(run_unread(&world, &["clients", "apply", &less, "--prune", "--yes"]), 0);
    assert_eq!(world.run(&["clients", "list", "--json"]).ok().lines().count(), 1);
    assert_eq!(run_unread(&world, &["clients", "list"]), 0, "a reader ends quietly");
}

#[tokio::test]
async fn a_machine_client_takes_no_refresh_token() {
    let world = World::new();
    let good =
        MACHINE.replace("id = \"b", "access_token = { env = \"CRM_TOKEN\" }\nexpires_in = \"1h\"\nid = \"b");
    world.apply(&good, &[]).ok();
    let before = world.partition("billing").await;
    let no = "grant client_credentials has no refresh token";
    let import = ["clients", "import-token", "billing", "--refresh-token-env", "CRM_TOKEN", "--replace"];
    world.run(&import).fails(1, &[no, "use the grant refresh_token"]);
    let file = format!("{MACHINE}refresh_token = {{ env = \"CRM_TOKEN\" }}\n");
    world.apply(&file, &["--replace", "billing"]).fails(2, &[no]);
    assert!(world.apply(MACHINE, &["--replace", "billing"]).ok().contains("unchanged billing"));
    assert_eq!(world.partition("billing").await, before);
}

#[test]
fn a_time_with_an_offset_is_refused_with_its_remedy() {
    let world = World::new();
    for time in ["\"2030-01-31T12:00:00+02:00\"", "2030-01-31T12:00:00+02:00"] {
        let file = format!("{MACHINE}access_token = {{ env = \"CRM_TOKEN\" }}\nexpires_at = {time}\n");
        world.apply(&file, &[]).fails(2, &["`expires_at` is no time in UTC", "ends in Z"]);
    }
}

#[test]
fn standard_input_is_not_read_for_a_file_that_is_wrong() {
    let world = World::new();
    let stdin =
        CUSTOMER.replace("client_secret = { env = \"APP_SECRET\" }", "client_secret = { stdin = true }");
    let wrong = MACHINE.replace("APP_SECRET", "UNSET");
    // Empty, which would be an error of its own.
    let ran =
        world.apply(&format!("{stdin}{wrong}"), &[]).fails(2, &["environment variable UNSET is not set"]);
    assert!(!ran.err.contains("standard input"), "{ran:?}");
    world.apply(&stdin, &[]).fails(2, &["standard input is empty"]);
}

#[test]
fn what_is_no_secret_is_refused_by_its_place() {
    let world = World::new();
    let refused = |bytes: &str, parts: &[&str]| {
        let file = world.write("secret", bytes);
        let from_file = add(&["--refresh-token-env", "CRM_TOKEN", "--client-secret-file", "secret"]);
        world.run(&from_file).fails(2, &[&["file secret holds"], parts].concat());
        let clients = MACHINE.replace("{ env = \"APP_SECRET\" }", &format!("{{ file = \"{file}\" }}"));
        world.apply(&clients, &[]).fails(2, parts);
    };
    refused(&"x".repeat(65_537), &["more than 65536 bytes"]);
    refused(&"\u{e9}".repeat(40_000), &["more than 65536 bytes"]);
    refused("a\0b", &["a NUL byte"]);
    world
        .run(&add(&["--client-secret-env", "canary-secret/itself"]))
        .fails(2, &["write the name, not the secret"]);
    let literal = MACHINE.replace("APP_SECRET", "canary+literal");
    world.apply(&literal, &[]).fails(2, &["write the name, not the secret"]);
    world.write("secret", &"x".repeat(65_536));
    world.run(&add(&["--refresh-token-env", "CRM_TOKEN", "--client-secret-file", "secret"])).ok();
}

#[tokio::test]
async fn a_whole_table_is_paused_before_a_daemon_looks_at_it() {
    let world = World::new();
    let machines = ["a", "b", "c", "d", "e"].map(|id| MACHINE.replace("billing", id)).concat();
    world.apply(&format!("{CUSTOMER}{machines}"), &[]).ok();
    world.run(&["clients", "pause"]).fails(2, &["<ID>"]);
    world.run(&["clients", "pause", "--all", "crm-7"]).fails(2, &["--all"]);
    world.run(&["clients", "pause", "b"]).ok();
    world.run(&["clients", "pause", "--all"]).ok();
    let listed = json_lines(&world.run(&["clients", "list", "--json"]).ok());
    assert_eq!(listed.len(), 6);
    assert!(listed.iter().all(|row| row["paused"] == true), "{listed:#?}");
    // What cannot be understood is told, and does not keep the others from being paused.
    world.run(&["clients", "resume", "b", "crm-7"]).ok();
    world.assign(Key::Config(id("c")), vec![Assignment::Set(attr::CLIENT_ID, Value::N(7))]).await;
    world.run(&["clients", "pause", "--all"]).fails(1, &["error: "]);
    for client in ["b", "crm-7"] {
        assert!(world.read(client).await.client().is_some_and(|client| client.paused), "{client}");
    }
}

#[tokio::test]
async fn a_pause_beside_another_state_is_told() {
    let world = World::new();
    world.add_customer();
    world.run(&["clients", "pause", "crm-7"]).ok();
    world.bury("crm-7").await;
    assert!(world.run(&["clients", "list"]).ok().contains("dead,paused"));
    let told = world.run(&["why", "crm-7"]).ok();
    assert!(told.contains("paused by an operator, too") && told.contains("clients resume crm-7"), "{told}");
}

#[tokio::test]
async fn get_points_to_why_at_an_item_that_cannot_be_understood() {
    let world = World::new();
    world.add_customer();
    world.assign(Key::Token(id("crm-7")), vec![Assignment::Set(attr::TOK_GEN, Value::S("x".into()))]).await;
    world.run(&["get", "crm-7"]).fails(1, &["attribute `tok_gen`", "see `perennial why crm-7`"]);
}
