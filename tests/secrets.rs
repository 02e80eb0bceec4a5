//! Client secrets by reference, and a second one beside the first, with real parts: the shipped program, DynamoDB Local, the
//! strict provider, moto's Secrets Manager and Parameter Store.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use perennial::time::{Clock as _, SystemClock};
use support::{
    Auth, Deployment, DynamoLocal, Moto, Process, Proxy, StrictProvider, log_lines, snapshot, wait_until,
};

const OLD: &str = "canary-old-secret";
const NEW: &str = "canary-new-secret";
const SOON: Duration = Duration::from_secs(60);

/// A provider, AWS's services behind a line that can be cut, and a table.
struct World {
    provider: StrictProvider,
    moto: Moto,
    line: Proxy,
    deployment: Deployment,
}

impl World {
    /// `secrets` is the rest of `[secrets]`; `FOLDER` stands for a folder of secrets.
    async fn new(secrets: &str) -> Self {
        let provider = StrictProvider::start(&[]).await;
        provider.register(Auth::Basic("app", OLD)).await;
        let moto = Moto::start().await;
        let line = Proxy::before(moto.endpoint()).await;
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, "");
        let folder = deployment.path().join("secrets");
        fs::create_dir(&folder).expect("a folder");
        let before = fs::read_to_string(deployment.path().join("config/perennial.toml")).expect("written");
        let secrets = secrets.replace("FOLDER", folder.to_str().expect("UTF-8"));
        let settings = format!(
            "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
             [refresh]\nspread = \"0s\"\nlifetime_min = \"1s\"\n\
             [backoff]\nbase = \"200ms\"\nmin_interval = \"200ms\"\ncap = \"1s\"\n\
             [sealing]\nmode = \"local\"\nkey = \"{}\"\n\
             [secrets]\nendpoint = \"{}\"\n{secrets}\n\
             [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n{before}",
            "07".repeat(32),
            line.url(),
            provider.token_url()
        );
        deployment.configure(&settings);
        Self { provider, moto, line, deployment }
    }

    /// Registers clients whose secrets are elsewhere, each with a consent of its own.
    async fn register(&self, references: &[(&str, &str)], variables: &[(&str, &str)]) {
        let mut text = String::new();
        for (id, reference) in references {
            let token = self.provider.seed("app").await.refresh_token;
            let file = self.deployment.secret_file(&format!("{id}.token"), &token);
            write!(
                text,
                "[[clients]]\nid = \"{id}\"\nprovider = \"strict\"\ngrant = \"refresh_token\"\nclient_id = \"app\"\n\
                 client_secret = {{ ref = \"{reference}\" }}\nrefresh_token = {{ file = {file:?} }}\n"
            )
            .expect("a string takes everything");
        }
        fs::write(self.deployment.path().join("clients.toml"), text).expect("writable");
        self.deployment.ok_with(&["clients", "apply", "clients.toml"], variables);
    }

    async fn granted(&self) -> u64 {
        self.provider.stats().await.granted
    }

    async fn invalid_clients(&self) -> u64 {
        self.provider.stats().await.refused_by_error.get("invalid_client").copied().unwrap_or(0)
    }

    /// Orders a refresh, and waits until it is granted and stored.
    async fn refresh(&self, id: &str) {
        let store = self.deployment.store().await;
        let before = snapshot(&store, id).await.tok_gen();
        self.deployment.ok(&["clients", "refresh", id]);
        wait_until(SOON, "a refreshed token is stored", async || {
            snapshot(&store, id).await.tok_gen() > before
        })
        .await;
    }

    /// What the last failure's code is, once there is one.
    async fn fails_with(&self, id: &str, code: &str) {
        let store = self.deployment.store().await;
        wait_until(SOON, code, async || {
            snapshot(&store, id).await.lease.and_then(|lease| lease.error).as_deref() == Some(code)
        })
        .await;
    }

    /// An attribute of `CONFIG` as it stands in the table.
    async fn stored(&self, id: &str, name: &str) -> Option<String> {
        let (client, key) = (DynamoLocal::shared().await.client(), AttributeValue::S);
        let get = client.get_item().table_name(self.deployment.table_name()).consistent_read(true);
        let got = get.key("PK", key(format!("CLIENT#{id}"))).key("SK", key("CONFIG".into())).send().await;
        got.expect("DynamoDB Local answers").item?.get(name)?.as_s().ok().cloned()
    }

    /// As somebody who can write to the table and asks nobody.
    async fn plant(&self, id: &str, reference: &str) {
        let (client, key) = (DynamoLocal::shared().await.client(), AttributeValue::S);
        let update = client.update_item().table_name(self.deployment.table_name());
        let update = update.key("PK", key(format!("CLIENT#{id}"))).key("SK", key("CONFIG".into()));
        let update = update.update_expression("REMOVE client_secret SET client_secret_ref = :ref");
        update.expression_attribute_values(":ref", key(reference.into())).send().await.expect("written");
    }
}

fn alarms(daemon: &Process, name: &str) -> usize {
    log_lines(&daemon.errors()).iter().filter(|line| line["alarm"] == name).count()
}

async fn end(mut daemon: Process) {
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0, "{}", daemon.errors());
    assert!(!daemon.errors().contains("canary"), "a secret is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_reference_refreshes_and_no_secret_stands_in_the_table() {
    let world = World::new(
        "allow = [\"ssm:/oauth/*\", \"secretsmanager:oauth/{provider}\", \"env:OAUTH_*\", \"file:FOLDER/*\"]",
    )
    .await;
    world.moto.put_parameter("/oauth/acme", OLD).await;
    let _arn = world.moto.make_secret("oauth/strict", &format!("{{\"client_secret\": \"{OLD}\"}}")).await;
    let folder = world.deployment.path().join("secrets");
    fs::write(folder.join("acme"), format!("{OLD}\n")).expect("writable");
    let file = format!("file:{}", folder.join("acme").display());
    let references = [
        ("parameter", "ssm:/oauth/acme"),
        ("secret", "secretsmanager:oauth/strict#client_secret"),
        ("variable", "env:OAUTH_ACME"),
        ("file", file.as_str()),
    ];
    let variables = [("OAUTH_ACME", OLD)];
    world.register(&references, &variables).await;
    for (id, reference) in references {
        assert_eq!(world.stored(id, "client_secret_ref").await.as_deref(), Some(reference));
        assert_eq!(world.stored(id, "client_secret").await, None);
        assert!(world.deployment.ok(&["clients", "show", id]).contains(reference));
    }
    let daemon = world.deployment.daemon_with(&variables).await;
    wait_until(SOON, "all four are refreshed", async || world.granted().await == 4).await;
    let checked = world.deployment.ok_with(&["clients", "secret", "check"], &variables);
    assert!(checked.ends_with("summary found=4 missing=0\n") && !checked.contains("canary"), "{checked}");
    let without = world.deployment.run(&["clients", "secret", "check"]);
    let told = String::from_utf8_lossy(&without.stdout).into_owned();
    assert!(!without.status.success() && told.contains("env:OAUTH_ACME: is not set"), "{told}");
    assert_eq!(world.invalid_clients().await, 0);
    end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_goes_over_to_another_secret_without_a_gap() {
    let world = World::new("").await;
    world.deployment.register(&world.provider, OLD, ["one"]).await;
    let daemon = world.deployment.daemon().await;
    wait_until(SOON, "a first refresh", async || world.granted().await == 1).await;

    let file = world.deployment.secret_file("new", NEW);
    let add = ["clients", "secret", "add", "one", "--client-secret-file", file.to_str().expect("UTF-8")];
    world.deployment.ok(&add);
    assert!(world.deployment.ok(&add).contains("already"));
    world.refresh("one").await;
    assert_eq!(world.invalid_clients().await, 0, "the second is not tried as long as the first is taken");

    let second = async || world.stored("one", "second_client_secret").await.expect("a second secret");
    let off = [("PERENNIAL__SEALING__MODE", "off")];
    assert!(second().await.starts_with("eyJ"), "sealed as the first");
    assert!(
        world.deployment.ok_with(&["seal", "migrate"], &off).ends_with("changed=4 kept=0 raced=0 failed=0\n")
    );
    assert_eq!(second().await, NEW);
    world.deployment.ok(&["seal", "migrate"]);
    assert!(second().await.starts_with("eyJ"), "and back");

    world.provider.register(Auth::Basic("app", NEW)).await;
    world.refresh("one").await;
    assert_eq!(world.invalid_clients().await, 1, "the first is refused, and then the second is taken");
    assert!(daemon.errors().contains("took the second"), "{}", daemon.errors());
    let why = world.deployment.ok(&["why", "one"]);
    assert!(why.contains("clients secret promote one") && !why.contains("canary"), "{why}");

    // Whoever lacks the key must not put what does not open where it would never open again.
    let other = [("PERENNIAL__SEALING__KEY", "08".repeat(32))];
    let other = other.each_ref().map(|(name, key)| (*name, key.as_str()));
    let blind = world.deployment.run_with(&["clients", "secret", "promote", "one"], &other);
    let told = String::from_utf8_lossy(&blind.stderr).into_owned();
    assert!(!blind.status.success() && told.contains("belongs to something else"), "{told}");
    assert!(second().await.starts_with("eyJ"), "nothing was written");

    world.deployment.ok(&["clients", "secret", "promote", "one"]);
    assert!(
        !world.deployment.run(&["clients", "secret", "promote", "one"]).status.success(),
        "there is none left"
    );
    let sealed = world.stored("one", "client_secret").await.expect("a first secret");
    assert!(sealed.starts_with("eyJ"), "sealed for its new place");
    assert_eq!(world.stored("one", "second_client_secret").await, None);
    world.refresh("one").await;
    assert_eq!(world.invalid_clients().await, 1, "and is sent at once from now on");

    world.deployment.ok(&add);
    assert!(world.deployment.run(&add).status.success());
    world.deployment.ok(&["clients", "secret", "drop", "one"]);
    assert_eq!(world.stored("one", "second_client_secret").await, None);
    assert_eq!(world.provider.stats().await.double_redemptions, 0);
    let store = world.deployment.store().await;
    assert_eq!(snapshot(&store, "one").await.lease.map(|lease| lease.fails), Some(0), "there was no failure");
    end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_secret_is_tried_for_invalid_client_alone() {
    let world = World::new("").await;
    world.deployment.register(&world.provider, OLD, ["one"]).await;
    let daemon = world.deployment.daemon().await;
    wait_until(SOON, "a first refresh", async || world.granted().await == 1).await;
    let file = world.deployment.secret_file("new", NEW);
    let file = file.to_str().expect("UTF-8");
    world.deployment.ok(&["clients", "secret", "add", "one", "--client-secret-file", file]);
    let before = world.provider.stats().await.token_requests;
    let body = "{\"error\": \"unauthorized_client\"}";
    let fault = serde_json::json!({"kind": "status", "code": 400, "body": body, "times": 1});
    world.provider.fault(fault).await;
    world.refresh("one").await;
    let requests = world.provider.stats().await.token_requests - before;
    assert_eq!(requests, 2, "one that failed and its successor, a backoff later");
    assert!(!daemon.errors().contains("trying the second"), "{}", daemon.errors());
    end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_changed_is_picked_up_in_the_attempt_that_was_refused() {
    let world = World::new("allow = [\"ssm:/oauth/*\"]\nfresh = \"1h\"").await;
    world.moto.put_parameter("/oauth/acme", OLD).await;
    world.register(&[("one", "ssm:/oauth/acme")], &[]).await;
    let daemon = world.deployment.daemon().await;
    wait_until(SOON, "a first refresh", async || world.granted().await == 1).await;
    let looked_up = SystemClock.moment();
    world.moto.put_parameter("/oauth/acme", NEW).await;
    world.provider.register(Auth::Basic("app", NEW)).await;
    wait_until(SOON, "it may be looked up again", async || {
        SystemClock.moment().since(looked_up) > Duration::from_secs(2)
    })
    .await;
    world.refresh("one").await;
    assert_eq!(world.invalid_clients().await, 1);
    let store = world.deployment.store().await;
    assert_eq!(snapshot(&store, "one").await.lease.map(|lease| lease.fails), Some(0), "there was no failure");
    end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_looked_up_is_used_while_its_keeper_is_silent() {
    let world = World::new("allow = [\"ssm:/oauth/*\"]\nfresh = \"1s\"\nstale = \"1h\"").await;
    world.moto.put_parameter("/oauth/acme", OLD).await;
    world.register(&[("one", "ssm:/oauth/acme")], &[]).await;
    let daemon = world.deployment.daemon().await;
    wait_until(SOON, "a first refresh", async || world.granted().await == 1).await;
    let looked_up = SystemClock.moment();
    world.line.cut();
    wait_until(SOON, "it is no longer fresh", async || {
        SystemClock.moment().since(looked_up) > Duration::from_secs(2)
    })
    .await;
    world.refresh("one").await;
    assert!(daemon.errors().contains("going on with what is kept"), "{}", daemon.errors());
    end(daemon).await;

    // One that has never looked it up sends nothing, and refreshes when there is an answer.
    let before = world.provider.stats().await.token_requests;
    world.deployment.ok(&["clients", "refresh", "one"]);
    let daemon = world.deployment.daemon().await;
    world.fails_with("one", "secret_unavailable").await;
    assert!(alarms(&daemon, "secret_unavailable") > 0, "{}", daemon.errors());
    assert_eq!(world.provider.stats().await.token_requests, before, "nothing was sent");
    world.line.mend();
    wait_until(SOON, "it is refreshed", async || world.granted().await == 3).await;
    end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_that_is_not_allowed_is_not_followed_whoever_wrote_it() {
    let world = World::new("allow = [\"file:FOLDER/*\", \"ssm:/oauth/{client}\"]").await;
    let folder = world.deployment.path().join("secrets");
    let outside = world.deployment.secret_file("outside", OLD);
    std::os::unix::fs::symlink(&outside, folder.join("link")).expect("a link");
    world.moto.put_parameter("/oauth/two", OLD).await;

    let add = |reference: &str| {
        let arguments = [
            "clients",
            "add",
            "x",
            "--provider",
            "strict",
            "--grant",
            "client_credentials",
            "--client-id",
            "app",
        ];
        world.deployment.run(&[&arguments[..], &["--client-secret-ref", reference]].concat())
    };
    for reference in
        ["ssm:/oauth/two", "env:HOME", "file:/etc/passwd", "env:PERENNIAL__SEALING__KEY", "canary"]
    {
        let refused = add(reference);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{told}");
        let named = told.contains("secrets.allow")
            || told.contains("the reference names a variable")
            || told.contains("the reference is no reference");
        assert!(named && !told.contains("canary"), "{told}");
    }

    world.deployment.register(&world.provider, OLD, ["one", "three"]).await;
    let outside = format!("file:{}", folder.join("link").display());
    for (id, reference) in [("one", "ssm:/oauth/two"), ("three", outside.as_str())] {
        world.plant(id, reference).await;
    }
    let daemon = world.deployment.daemon().await;
    for id in ["one", "three"] {
        world.fails_with(id, "secret_refused").await;
    }
    assert!(alarms(&daemon, "secret_refused") >= 2, "{}", daemon.errors());
    assert!(daemon.errors().contains("secrets.allow has no rule for ssm:/oauth/two"), "{}", daemon.errors());
    assert!(daemon.errors().contains("a link that leads out"), "{}", daemon.errors());
    assert_eq!(world.provider.stats().await.token_requests, 0, "nothing was sent");
    end(daemon).await;
}
