//! Secrets that are sealed, with real parts: keys wrapped by moto's KMS, a table in DynamoDB Local, the shipped program.

mod support;

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use perennial::seal::{KeyAddress, KmsKeys};
use serde_json::{Value, json};
use support::{Auth, Deployment, DynamoLocal, Moto, Process, Proxy, StrictProvider, log_lines, wait_until};

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(60);
const IDS: [&str; 3] = ["one", "two", "three"];

/// Clients at a provider, and a KMS that can be cut off.
struct World {
    provider: StrictProvider,
    kms: Proxy,
    deployment: Deployment,
    _moto: Moto,
}

impl World {
    /// `mode` is what seals at first; the environment overrides it.
    async fn new(mode: &str) -> Self {
        let provider = StrictProvider::start(&[]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let moto = Moto::start().await;
        let kms = Proxy::before(moto.endpoint()).await;
        let key = moto.key().await;
        let settings = format!(
            "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
             [refresh]\nspread = \"0s\"\nlifetime_min = \"1s\"\nlease = \"8s\"\nwindow = \"3s\"\n\
             request_timeout = \"2s\"\ncommit_budget = \"2s\"\nsalvage_wait = \"2s\"\n\
             [backoff]\nbase = \"200ms\"\nmin_interval = \"200ms\"\ncap = \"1s\"\n\
             [sealing]\nmode = \"{mode}\"\nkms_key = \"{key}\"\nkms_endpoint = \"{}\"\nshards = 2\nfresh = \"10s\"\nstale = \"20s\"\n\
             [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n",
            kms.url(),
            provider.token_url()
        );
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        assert_eq!(last(&deployment.ok(&["keys", "init"])), "summary keys=4 created=4");
        Self { provider, kms, deployment, _moto: moto }
    }

    async fn register(&self) {
        self.deployment.register(&self.provider, SECRET, IDS).await;
    }

    /// An attribute as it stands in the table; empty where there is none.
    async fn stored(&self, id: &str, sk: &str, name: &str) -> String {
        let key = |text: String| AttributeValue::S(text);
        let get = DynamoLocal::shared().await.client().get_item().table_name(self.deployment.table_name());
        let got =
            get.key("PK", key(format!("CLIENT#{id}"))).key("SK", key(sk.to_owned())).consistent_read(true);
        let item = got.send().await.expect("DynamoDB Local answers").item.unwrap_or_default();
        item.get(name).and_then(|value| value.as_s().ok()).cloned().unwrap_or_default()
    }

    async fn put(&self, id: &str, name: &str, value: String) {
        let key = |text: String| AttributeValue::S(text);
        let update =
            DynamoLocal::shared().await.client().update_item().table_name(self.deployment.table_name());
        let update = update.key("PK", key(format!("CLIENT#{id}"))).key("SK", key("TOKEN#ACCESS".to_owned()));
        let update = update.update_expression("SET #name = :value").expression_attribute_names("#name", name);
        update.expression_attribute_values(":value", key(value)).send().await.expect("written");
    }

    /// Orders a refresh of each client and waits until all are granted.
    async fn refresh_all(&self) {
        let before = self.provider.stats().await.granted;
        for id in IDS {
            self.deployment.ok(&["clients", "refresh", id]);
        }
        wait_until(SOON, "all are refreshed", async || self.provider.stats().await.granted >= before + 3)
            .await;
        wait_until(SOON, "and stored", async || self.all_are_live().await).await;
    }

    /// Whether each access token, as a reader gets it, is the provider's.
    async fn all_are_live(&self) -> bool {
        for id in IDS {
            let got = self.deployment.run(&["get", id]);
            let token = String::from_utf8(got.stdout).expect("text");
            if !got.status.success() || !self.provider.is_active(token.trim()).await {
                return false;
            }
        }
        true
    }

    fn status(&self) -> Value {
        let output = self.deployment.run(&["seal", "status", "--json"]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

fn last(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or_default()
}

fn key_of(sealed: &str) -> String {
    use base64::Engine as _;
    let header = sealed.split('.').next().expect("a header");
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).expect("base64url");
    let header: Value = serde_json::from_slice(&header).expect("JSON");
    header["kid"].as_str().expect("a key's name").to_owned()
}

fn stop(daemon: &Process) {
    daemon.signal("TERM");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_stands_in_the_table_as_it_is_and_each_family_has_keys_of_its_own() {
    let world = World::new("kms").await;
    assert_eq!(
        last(&world.deployment.ok(&["keys", "init"])),
        "summary keys=4 created=0",
        "it may be run again"
    );
    world.register().await;
    let mut daemon = world.deployment.daemon().await;
    wait_until(SOON, "all have a token", async || world.all_are_live().await).await;
    let table = world.deployment.table_name();
    for id in IDS {
        for (sk, name, family) in [
            ("TOKEN#ACCESS", "access_token", "at"),
            ("TOKEN#ACCESS", "refresh_token", "rt"),
            ("CONFIG", "client_secret", "rt"),
        ] {
            let sealed = world.stored(id, sk, name).await;
            assert!(sealed.starts_with("eyJ") && sealed.split('.').count() == 5, "{id} {name}: {sealed}");
            assert!(key_of(&sealed).starts_with(&format!("{table}/{family}/s")), "{id} {name}");
        }
    }
    let status = world.status();
    assert_eq!((&status["clients"], &status["sealed"], &status["plain"]), (&3.into(), &9.into(), &0.into()));
    world.refresh_all().await;
    assert_eq!(world.provider.stats().await.double_redemptions, 0);
    stop(&daemon);
    assert_eq!(daemon.exit_code(SOON).await, 0, "{}", daemon.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_is_turned_on_and_off_while_a_daemon_refreshes() {
    let world = World::new("off").await;
    world.register().await;
    let off = world.deployment.daemon().await;
    wait_until(SOON, "all have a token", async || world.all_are_live().await).await;
    assert!(!world.stored("one", "TOKEN#ACCESS", "refresh_token").await.starts_with("eyJ"));

    // On: with one daemon that does not seal yet and one that does.
    let kms = [("PERENNIAL__SEALING__MODE", "kms")];
    let on = world.deployment.daemon_with(&kms).await;
    let migrated = world.deployment.run_with(&["seal", "migrate"], &kms);
    let told = String::from_utf8(migrated.stdout).expect("text");
    assert!(migrated.status.success() && last(&told).ends_with("failed=0"), "{told}");
    assert!(world.all_are_live().await, "both forms are readable");
    world.refresh_all().await;
    stop(&off);
    world.deployment.run_with(&["seal", "migrate"], &kms);
    let again = world.deployment.run_with(&["seal", "migrate"], &kms);
    let told = String::from_utf8(again.stdout).expect("text");
    assert_eq!(last(&told), "summary changed=0 kept=9 raced=0 failed=0", "nothing is left to do");
    assert!(world.deployment.run_with(&["seal", "status"], &kms).status.success());
    world.refresh_all().await;

    // Off again.
    stop(&on);
    let mut off = world.deployment.daemon().await;
    assert_eq!(last(&world.deployment.ok(&["seal", "migrate"])), "summary changed=9 kept=0 raced=0 failed=0");
    assert_eq!(world.stored("one", "CONFIG", "client_secret").await, SECRET);
    world.refresh_all().await;
    assert_eq!(world.provider.stats().await.double_redemptions, 0);
    stop(&off);
    assert_eq!(off.exit_code(SOON).await, 0, "{}", off.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_and_an_old_one_is_destroyed_when_nothing_is_sealed_with_it() {
    let world = World::new("kms").await;
    world.register().await;
    let daemon = world.deployment.daemon().await;
    wait_until(SOON, "all have a token", async || world.all_are_live().await).await;
    let old = key_of(&world.stored("one", "CONFIG", "client_secret").await);
    assert!(old.ends_with("/v1"), "{old}");
    let refused = world.deployment.run(&["keys", "retire", &old, "--destroy", "--yes"]);
    assert_eq!(refused.status.code(), Some(2), "it is the only one that seals");

    assert_eq!(last(&world.deployment.ok(&["keys", "rotate"])), "summary created=4 retired=4");
    assert!(!world.deployment.run(&["seal", "status"]).status.success(), "secrets are under the old keys");
    let refused = world.deployment.run(&["keys", "retire", &old, "--destroy", "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "daemons may still seal with it");
    let migrated = world.deployment.ok(&["seal", "migrate"]);
    assert!(last(&migrated).ends_with("failed=0"), "{migrated}");
    wait_until(SOON, "the daemon seals with the new ones", async || {
        world.refresh_all().await;
        world.deployment.run(&["seal", "status"]).status.success()
    })
    .await;
    wait_until(SOON, "no daemon seals with the old one any more", async || {
        world.deployment.run(&["keys", "retire", &old, "--destroy", "--yes"]).status.success()
    })
    .await;
    let listed = world.deployment.ok(&["keys", "list"]);
    assert!(!listed.contains(&format!("{old} ")) && listed.contains("DECRYPT_ONLY"), "{listed}");
    let exported = world.deployment.ok(&["keys", "export"]);
    assert_eq!(exported.lines().count(), 7);
    assert!(exported.lines().all(|line| line.contains("\"wrapped\"")), "{exported}");
    world.refresh_all().await;
    stop(&daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_key_for_the_answer_no_request_is_sent() {
    let world = World::new("kms").await;
    world.register().await;
    // Tokens that live for seconds: there is always one to be refreshed.
    world.provider.fault(json!({"kind": "expires_in", "value": 8})).await;
    world.kms.cut();
    let daemon = world.deployment.daemon().await;
    wait_until(SOON, "the daemon says why", async || {
        let log = log_lines(&daemon.errors());
        log.iter().any(|line| line.to_string().contains("no answer about the keys"))
    })
    .await;
    assert_eq!(world.provider.stats().await.token_requests, 0, "an answer could not be sealed");
    world.kms.mend();
    wait_until(SOON, "all have a token", async || world.all_are_live().await).await;
    assert_eq!(world.provider.stats().await.double_redemptions, 0);

    // Once it has the keys, it goes on without KMS, and beyond the ten seconds for which they are fresh.
    world.kms.cut();
    let before = world.provider.stats().await.granted;
    wait_until(SOON, "all are refreshed again and again", async || {
        world.provider.stats().await.granted >= before + 12
    })
    .await;
    assert!(daemon.errors().contains("no answer about keys"), "it has asked");
    stop(&daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_moved_or_put_back_is_refused_and_named() {
    let world = World::new("kms").await;
    world.register().await;
    let daemon = world.deployment.daemon().await;
    wait_until(SOON, "all have a token", async || world.all_are_live().await).await;
    let of_two = world.stored("two", "TOKEN#ACCESS", "access_token").await;
    let old_of_three = world.stored("three", "TOKEN#ACCESS", "access_token").await;
    let old_refresh = world.stored("one", "TOKEN#ACCESS", "refresh_token").await;
    world.refresh_all().await;
    stop(&daemon);

    for (value, why) in [(of_two, "cid"), (old_of_three.clone(), "cid"), (old_refresh, "att")] {
        world.put("one", "access_token", value).await;
        let got = world.deployment.run(&["get", "one"]);
        let said = String::from_utf8_lossy(&got.stderr).into_owned();
        assert!(!got.status.success() && got.stdout.is_empty(), "{said}");
        assert!(
            said.contains("CLIENT#one/TOKEN#ACCESS, access_token") && said.contains(&format!("`{why}`")),
            "{said}"
        );
        assert!(!said.contains("eyJ"), "{said}");
    }
    world.put("three", "access_token", old_of_three).await;
    let said = String::from_utf8_lossy(&world.deployment.run(&["get", "three"]).stderr).into_owned();
    assert!(said.contains("`ver`"), "one that was put back: {said}");
}

/// A first try's answer was lost, or somebody else made the table: it is there, and has no backups.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_keys_that_is_there_already_gets_its_backups() {
    let moto = Moto::start().await;
    let endpoint: Option<url::Url> = moto.endpoint().parse().ok();
    let address = KeyAddress {
        table: "keys".into(),
        region: Some("us-east-1".into()),
        endpoint: endpoint.clone(),
        kms_endpoint: endpoint,
    };
    let keys = KmsKeys::new(address);
    keys.create_table(false, false).await.expect("made");
    assert_eq!(keys.create_table(false, true).await, Ok(false), "it was there");
    let client = moto.dynamodb();
    let asked = client.describe_continuous_backups().table_name("keys").send().await.expect("an answer");
    let found =
        asked.continuous_backups_description.and_then(|found| found.point_in_time_recovery_description);
    let status = found.and_then(|found| found.point_in_time_recovery_status).expect("a status");
    assert_eq!(status.as_str(), "ENABLED");
}

/// A backup is restored under another name; what is sealed speaks of the former one.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_restored_under_another_name_opens_under_its_former_one() {
    let world = World::new("kms").await;
    world.register().await;
    let daemon = world.deployment.daemon().await;
    wait_until(SOON, "all have a token", async || world.all_are_live().await).await;
    stop(&daemon);
    let (client, former) = (DynamoLocal::shared().await.client(), world.deployment.table_name());
    let restored = DynamoLocal::fresh_table_name();
    let elsewhere = [("PERENNIAL__STORE__TABLE", restored.as_str()), ("PERENNIAL__SEALING__MODE", "kms")];
    world.deployment.ok_with(&["table", "create"], &elsewhere);
    let items = client.scan().table_name(former).send().await.expect("a scan").items.unwrap_or_default();
    for item in items.into_iter().filter(|item| item["PK"].as_s().is_ok_and(|pk| pk.starts_with("CLIENT#"))) {
        client.put_item().table_name(&restored).set_item(Some(item)).send().await.expect("copied");
    }
    let lost = world.deployment.run_with(&["get", "one"], &elsewhere);
    assert!(String::from_utf8_lossy(&lost.stderr).contains("`tbl`"), "{lost:?}");
    let named = [&elsewhere[..], &[("PERENNIAL__SEALING__NAME", former)]].concat();
    let token = world.deployment.ok_with(&["get", "one"], &named);
    assert!(world.provider.is_active(token.trim()).await);
    world.deployment.ok_with(&["clients", "pause", "--all"], &elsewhere);
}
