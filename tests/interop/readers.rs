//! The readers of `examples/readers/`, with real parts: DynamoDB Local, moto's KMS, the daemon that seals.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::Deserialize;
use serde_json::Value;

use super::parties::{node, program, python};
use crate::support::{Auth, Deployment, DynamoLocal, Moto, Process, StrictProvider, wait_until};

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(60);
const IDS: [&str; 3] = ["one", "two", "three"];
const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// What a reader prints.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Token {
    access_token: String,
    expires_at: u64,
    sealed: bool,
}

struct World {
    provider: StrictProvider,
    deployment: Deployment,
    moto: Moto,
}

impl World {
    async fn new(sealing: impl AsyncFnOnce(&Moto) -> String) -> Self {
        let provider = StrictProvider::start(&[]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let moto = Moto::start().await;
        let settings = format!(
            "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
             [refresh]\nspread = \"0s\"\nlifetime_min = \"1s\"\n\
             [backoff]\nmin_interval = \"200ms\"\n\
             [sealing]\n{}\n\
             [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n",
            sealing(&moto).await,
            provider.token_url()
        );
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        Self { provider, deployment, moto }
    }

    /// Registers the clients, starts a daemon, and waits until each has a token.
    async fn run(&self) -> Process {
        self.deployment.register(&self.provider, SECRET, IDS).await;
        let daemon = self.deployment.daemon().await;
        for id in IDS {
            wait_until(SOON, "it has a token", async || self.generation(id).await >= 1).await;
        }
        daemon
    }

    async fn item(&self, id: &str) -> std::collections::HashMap<String, AttributeValue> {
        let get = DynamoLocal::shared().await.client().get_item().table_name(self.deployment.table_name());
        let get = get.key("PK", text(&format!("CLIENT#{id}"))).key("SK", text("TOKEN#ACCESS"));
        get.consistent_read(true).send().await.expect("DynamoDB Local answers").item.unwrap_or_default()
    }

    async fn generation(&self, id: &str) -> u64 {
        let item = self.item(id).await;
        item.get("tok_gen").and_then(|value| value.as_n().ok()?.parse().ok()).unwrap_or_default()
    }

    async fn stored(&self, id: &str) -> String {
        self.item(id).await["access_token"].as_s().expect("a text").clone()
    }

    async fn put(&self, id: &str, access_token: &str) {
        let update =
            DynamoLocal::shared().await.client().update_item().table_name(self.deployment.table_name());
        let update = update.key("PK", text(&format!("CLIENT#{id}"))).key("SK", text("TOKEN#ACCESS"));
        let update = update.update_expression("SET access_token = :token");
        update.expression_attribute_values(":token", text(access_token)).send().await.expect("written");
    }

    /// What each reader prints, or the words in which it refuses.
    async fn read(&self, id: &str, options: &[&str]) -> Vec<(&'static str, Result<Token, String>)> {
        let dynamodb = DynamoLocal::shared().await.endpoint();
        let node = program(node(), "examples/readers/node/read-sealed-token.mjs");
        let python = program(python(), "examples/readers/python/read_sealed_token.py");
        let mut results = Vec::new();
        for (name, mut command) in [("Node.js", node), ("Python", python)] {
            command.env_clear().envs(path()).env("HOME", self.deployment.path());
            command.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]);
            command.env("AWS_REGION", "us-east-1").env("AWS_ENDPOINT_URL_DYNAMODB", dynamodb);
            command.env("AWS_ENDPOINT_URL_KMS", self.moto.endpoint()).env("PYTHONDONTWRITEBYTECODE", "1");
            command.args([id, "--table", self.deployment.table_name()]).args(options);
            let run = tokio::task::spawn_blocking(move || command.output()).await;
            let output = run.expect("the task did not panic").expect("it starts");
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!errors.contains("Traceback") && !errors.contains("    at "), "{name}: {errors}");
            let printed = || serde_json::from_slice(&output.stdout).expect("JSON");
            results.push((name, if output.status.success() { Ok(printed()) } else { Err(errors) }));
        }
        results
    }

    /// Both readers get the provider's token, which the daemon's own `get` prints.
    async fn both_read(&self, id: &str, options: &[&str], sealed: bool) {
        let got: Value = serde_json::from_str(&self.deployment.ok(&["get", id, "--json"])).expect("JSON");
        for (reader, token) in self.read(id, options).await {
            let token = token.unwrap_or_else(|why| panic!("{reader} refuses {id}: {why}"));
            assert_eq!(token.sealed, sealed, "{reader}");
            assert_eq!(got["access_token"], token.access_token.as_str(), "{reader}");
            assert!(
                self.provider.is_active(&token.access_token).await,
                "{reader} reads a dead token of {id}"
            );
        }
    }

    async fn both_refuse(&self, id: &str, options: &[&str], words: &str) {
        for (reader, token) in self.read(id, options).await {
            let why = token.expect_err(reader);
            assert!(why.contains("read-sealed-token: ") && why.contains(words), "{reader}: {why}");
        }
    }

    async fn refresh(&self, id: &str) {
        let before = self.generation(id).await;
        self.deployment.ok(&["clients", "refresh", id]);
        wait_until(SOON, "it is refreshed", async || self.generation(id).await > before).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "the interpreters are found as the tests' own programs are")]
fn path() -> Option<(&'static str, std::ffi::OsString)> {
    Some(("PATH", std::env::var_os("PATH")?))
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_read_what_the_daemon_seals_under_keys_of_kms_and_in_its_place_alone() {
    let world = World::new(async |moto| {
        let key = moto.key().await;
        format!(
            "mode = \"kms\"\nkms_key = \"{key}\"\nkms_endpoint = \"{}\"\nshards = 2\nfresh = \"10s\"",
            moto.endpoint()
        )
    })
    .await;
    assert!(world.deployment.ok(&["keys", "init"]).contains("summary keys=4 created=4"));
    let _daemon = world.run().await;
    for id in IDS {
        world.both_read(id, &["--require-sealed"], true).await;
    }

    let (one, two) = (world.stored("one").await, world.stored("two").await);
    world.put("one", &two).await;
    world.both_refuse("one", &[], "`cid`").await;
    world.put("one", &one).await;
    world.refresh("one").await;
    world.both_read("one", &[], true).await;
    let renewed = world.stored("one").await;
    world.put("one", &one).await;
    world.both_refuse("one", &[], "`ver`").await;
    world.put("one", &renewed).await;
    world.put("two", "a token that stands there as it is").await;
    world.both_refuse("two", &["--require-sealed"], "not sealed").await;

    world.deployment.ok(&["keys", "rotate"]);
    world.both_read("one", &[], true).await;
    wrong_context(&world).await;
}

/// A wrapped key opens under its own name and family alone: KMS itself refuses what was put elsewhere.
async fn wrong_context(world: &World) {
    let dynamodb = DynamoLocal::shared().await.client();
    let table = format!("{}-keys", world.deployment.table_name());
    let scan = async || {
        dynamodb.scan().table_name(&table).send().await.expect("an answer").items.unwrap_or_default()
    };
    let items = scan().await;
    assert_eq!(items.len(), 8, "two families, two shards, two versions");
    let of = |family: &str| {
        let found = items.iter().find(|item| item["PK"].as_s().is_ok_and(|pk| pk.contains(family)));
        found.expect("a key of each family")["wrapped"].clone()
    };
    let (reading, refreshing) = (of("/at/"), of("/rt/"));
    assert_ne!(reading, refreshing);
    for mut item in items.iter().filter(|item| item["PK"].as_s().is_ok_and(|pk| pk.contains("/at/"))).cloned()
    {
        item.insert("wrapped".to_owned(), refreshing.clone());
        dynamodb.put_item().table_name(&table).set_item(Some(item)).send().await.expect("written");
    }
    for id in ["one", "three"] {
        world.both_refuse(id, &[], "InvalidCiphertext").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_read_what_a_key_of_the_machine_seals_and_what_is_not_sealed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sealing.key");
    std::fs::write(&file, format!("{KEY}\n")).expect("written");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("its owner's");
    let file = file.to_str().expect("UTF-8");
    let world = World::new(async |_| format!("mode = \"local\"\nkey_file = \"{file}\"")).await;
    let mut daemon = world.run().await;
    world.both_read("one", &["--key-file", file, "--require-sealed"], true).await;
    world.both_refuse("one", &[], "name its file").await;
    world.both_refuse("nobody", &[], "no valid token").await;

    daemon.signal("TERM");
    daemon.exit_code(SOON).await;
    let _plain = world.deployment.daemon_with(&[("PERENNIAL__SEALING__MODE", "off")]).await;
    world.refresh("two").await;
    world.both_read("two", &[], false).await;
    world.both_refuse("two", &["--require-sealed"], "not sealed").await;
    world.both_read("one", &["--key-file", file], true).await;
}
