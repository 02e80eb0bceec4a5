//! Least privilege, both ways: every command runs behind gates that know its role's policy and refuse what it does not
//! allow, as IAM does. What a command lacks fails, and so does what a policy grants and no command uses.
//!
//! The gates stand before DynamoDB Local and moto's KMS, S3, Secrets Manager and Parameter Store, and see each request as the SDK
//! sends it.

mod support;

mod iam {
    pub(crate) mod documents;
    pub(crate) mod gate;
    pub(crate) mod world;
}

use std::collections::BTreeSet;
use std::time::Duration;

use iam::gate::Gate;
use iam::world::{COMMANDS, World, leaves};
use perennial::iam::Role;
use support::iam::{Need, Policy};
use support::{LambdaApi, TASK, fetch, http_client, post_json, wait_until};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn every_command_has_its_roles() {
    let known: BTreeSet<_> = COMMANDS.iter().map(|(command, _)| (*command).to_owned()).collect();
    assert_eq!(leaves(), known, "tests/iam/world.rs says whose a command is, and this file runs it");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_suffices_for_its_commands_and_grants_nothing_more() {
    let world = World::new().await;
    let [daemon, reader, agent, operator, keys] = world.gates().await;

    tables_and_keys_are_made(&world, &operator, &keys).await;
    clients_are_registered(&world, &operator);
    a_run_that_ends(&world, &daemon).await;
    a_daemon_and_its_spill(&world, &daemon, &operator).await;
    operators_look_and_change(&world, &operator).await;
    readers_read(&world, &reader).await;
    an_agent_reads_and_asks(&world, &agent).await;
    keys_are_renewed(&world, [&daemon, &operator, &keys]).await;
    what_needs_no_right(&world).await;

    world.has_run_every_command();
    for gate in [&daemon, &reader, &agent, &operator, &keys] {
        assert_eq!(gate.refused(), BTreeSet::new(), "the {} lacks these", gate.name());
        assert_eq!(
            gate.used(),
            gate.granted(),
            "the {} is granted what nobody uses, or too little runs",
            gate.name()
        );
    }
}

async fn tables_and_keys_are_made(world: &World, operator: &Gate, keys: &Gate) {
    world.ok(operator, &["table", "create"]);
    world.ok(operator, &["table", "check"]);
    // DynamoDB Local has no backups to switch on.
    let backed_up = operator.before_a_table_with_backups(world).await;
    world.ok_with(operator, &["table", "create"], &[("PERENNIAL__STORE__ENDPOINT", backed_up.url())]);
    world.ok(keys, &["keys", "init"]);
    world.ok(keys, &["keys", "list"]);
    world.ok(keys, &["keys", "export"]);
}

fn clients_are_registered(world: &World, operator: &Gate) {
    world.ok(operator, &["clients", "apply", "clients.toml"]);
    let app = ["--provider", "strict", "--client-id", "app", "--client-secret-file", "app.secret"];
    let add = ["clients", "add", "mail", "--grant", "client_credentials"];
    world.ok(operator, &[&add[..], &app].concat());
}

async fn a_run_that_ends(world: &World, daemon: &Gate) {
    // As the task's first container.
    world.ok(daemon, &["table", "create"]);
    // TTL may take the token item of a grant that can be minted again; then the commit checks the lease beside it.
    world.delete("mail", "TOKEN#ACCESS").await;
    world.ok(daemon, &["run", "--once"]);
    for id in ["noted", "kept"] {
        assert!(world.generation(id).await > 0, "{id} has its secret elsewhere, and is refreshed");
    }
}

/// Three daemons: two die with answers that the table did not take, of which an operator brings in one, the third the other.
async fn a_daemon_and_its_spill(world: &World, daemon: &Gate, operator: &Gate) {
    for brought_in_by_hand in [true, false] {
        daemon.take_no_tokens(true);
        let mut running = world.daemon(daemon).await;
        world.ok(operator, &["clients", "refresh", "crm"]);
        wait_until(SOON, "the answer is in the spill", async || world.spilled().await == 1).await;
        running.signal("KILL");
        assert_eq!(running.exit_code(SOON).await, 137);
        daemon.take_no_tokens(false);
        if brought_in_by_hand {
            world.ok(operator, &["spill", "list"]);
            world.ok(operator, &["spill", "replay"]);
            assert_eq!(world.spilled().await, 0);
        }
    }
    let mut heir = world.daemon(daemon).await;
    wait_until(SOON, "the spill is empty", async || world.spilled().await == 0).await;
    let before = world.generation("crm").await;
    world.ok(operator, &["clients", "refresh", "crm"]);
    wait_until(SOON, "it is refreshed", async || world.generation("crm").await > before).await;
    wait_until(SOON, "the task was protected", async || !world.agent.asked().is_empty()).await;
    // The agent asks ECS for the task, by the task's role.
    daemon.judge(&[Need::new("ecs:UpdateTaskProtection", TASK)]);
    world.ok(operator, &["fleet"]);
    heir.signal("TERM");
    assert_eq!(heir.exit_code(SOON).await, 0, "{}", heir.errors());
}

async fn operators_look_and_change(world: &World, operator: &Gate) {
    for command in
        [&["clients", "list"][..], &["clients", "show", "crm"], &["why", "crm"], &["top", "--once"]]
    {
        world.ok(operator, command);
    }
    // No task is running: `broken` is its verdict, and not that it lacks a right.
    let told = world.perform(operator, &["status", "--json"], &[]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("\"status\""), "{told:?}");
    world.ok(operator, &["clients", "pause", "crm"]);
    world.ok(operator, &["clients", "resume", "crm"]);
    world.ok(operator, &["clients", "secret", "add", "crm", "--client-secret-file", "app.secret"]);
    world.ok(operator, &["clients", "secret", "promote", "crm", "--keep"]);
    world.ok(operator, &["clients", "secret", "drop", "crm"]);
    let checked = world.ok(operator, &["clients", "secret", "check"]);
    assert!(checked.ends_with("summary found=2 missing=0\n"), "{checked}");
    world.hold("old").await;
    world.ok(operator, &["clients", "resolve", "old", "--retry"]);
    world.consent("old.token").await;
    world.ok(operator, &["clients", "import-token", "old", "--refresh-token-file", "old.token", "--replace"]);
    world.ok(operator, &["clients", "remove", "old", "--yes"]);
}

async fn readers_read(world: &World, reader: &Gate) {
    let got = world.ok(reader, &["get", "crm"]);
    for told in world.examples(reader, "crm").await {
        assert!(told.contains(got.trim()), "{told}");
    }
}

async fn an_agent_reads_and_asks(world: &World, gate: &Gate) {
    let (mut agent, url) = world.token_agent(gate).await;
    let token = fetch(&format!("{url}/v1/token/crm")).await.expect("it answers").json();
    assert!(token["access_token"].is_string(), "{token}");
    let body = serde_json::json!({ "generation": token["generation"] });
    wait_until(SOON, "the token is old enough to be replaced", async || {
        let reply = post_json(&format!("{url}/v1/token/crm/rejected"), &body).await.expect("it answers");
        assert!([202, 429].contains(&reply.status), "{}", reply.body);
        reply.status == 202
    })
    .await;
    agent.signal("TERM");
    assert_eq!(agent.exit_code(SOON).await, 0, "{}", agent.errors());

    let lambda = LambdaApi::start().await;
    let (mut extension, url) = world.extension(gate, &lambda).await;
    let read = http_client().get(format!("{url}/v1/token/crm")).bearer_auth("session").send().await;
    assert_eq!(read.expect("it answers").status(), 200);
    lambda.shut_down(SOON);
    assert_eq!(extension.exit_code(SOON).await, 0, "{}", extension.errors());
}

async fn keys_are_renewed(world: &World, [daemon, operator, keys]: [&Gate; 3]) {
    let old = format!("{}/rt/s0/v1", world.table());
    world.ok(operator, &["seal", "status"]);
    world.ok(keys, &["keys", "rotate"]);
    assert!(!world.perform(operator, &["seal", "status"], &[]).status.success(), "all is under the old ones");
    // What is under an old key is opened by its name.
    world.ok(operator, &["clients", "refresh", "crm"]);
    world.ok(daemon, &["run", "--once"]);
    world.ok(operator, &["seal", "migrate"]);
    world.ok(operator, &["seal", "status"]);
    wait_until(SOON, "no daemon seals with the old one any more", async || {
        world.perform(keys, &["keys", "retire", &old, "--destroy", "--yes"], &[]).status.success()
    })
    .await;
}

async fn what_needs_no_right(world: &World) {
    let nobody = Gate::before(world, "nobody", Policy::none()).await;
    let print = ["iam", "print", "operator", "--region", "eu-central-1", "--account", "111122223333"];
    for command in [
        &["config", "check"][..],
        &["config", "show"],
        &["completions", "bash"],
        &["man"],
        &["agent", "key", "crm"],
        &print,
    ] {
        world.ok(&nobody, command);
    }
    // No daemon listens, which is its answer.
    world.perform(&nobody, &["healthcheck"], &[]);
    assert_eq!(nobody.refused(), BTreeSet::new(), "they ask nothing of AWS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_access_tokens_and_nothing_else() {
    let world = World::new().await;
    let [daemon, reader, _, operator, keys] = world.gates().await;
    tables_and_keys_are_made(&world, &operator, &keys).await;
    clients_are_registered(&world, &operator);
    world.ok(&daemon, &["run", "--once"]);
    world.ok(&reader, &["get", "crm"]);
    let projected = async |sort: &str, names: &str| world.read_by(&reader, "crm", sort, Some(names)).await;
    assert_eq!(projected("TOKEN#ACCESS", "access_token, expires_at").await, Ok(2));
    for (sort, names) in [
        ("TOKEN#ACCESS", "refresh_token"),
        ("TOKEN#ACCESS", "access_token, refresh_token"),
        ("CONFIG", "client_secret"),
    ] {
        let refused = projected(sort, names).await.expect_err(names);
        assert!(refused.contains("dynamodb:GetItem"), "{refused}");
    }
    assert!(
        world.read_by(&reader, "crm", "TOKEN#ACCESS", None).await.is_err(),
        "a whole item has all of them"
    );
    let whole = Gate::of(&world, Role::Reader, &["--whole-items"]).await;
    assert!(world.read_by(&whole, "crm", "TOKEN#ACCESS", None).await.is_ok());

    let own = Gate::of(&world, Role::Reader, &["--client", "mail"]).await;
    world.ok(&own, &["get", "mail"]);
    for told in world.examples(&own, "mail").await {
        assert!(told.contains("access_token"), "{told}");
    }
    let refused = world.perform(&own, &["get", "crm"], &[]);
    assert!(!refused.status.success(), "it is another's");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_refresh_tokens_are_no_readers_and_nobody_elses_table_opens() {
    let world = World::new().await;
    let decrypt = |family: &str, table: &str| {
        Need::new("kms:Decrypt", &world.key)
            .with("kms:EncryptionContext:purpose", ["perennial"])
            .with("kms:EncryptionContext:table", [table])
            .with("kms:EncryptionContext:family", [family])
            .with("kms:EncryptionContext:kid", [format!("{table}/{family}/s0/v1")])
    };
    let own = world.table();
    let may =
        |role, family: &str, table: &str| world.policy(role, &[]).allows(&decrypt(family, table)).is_some();
    assert_eq!((may(Role::Reader, "at", own), may(Role::Reader, "rt", own)), (true, false));
    assert_eq!((may(Role::Daemon, "at", own), may(Role::Daemon, "rt", own)), (true, true));
    for role in Role::ALL {
        assert!(!may(role, "at", "another"), "{role:?}");
        assert!(world.policy(role, &[]).allows(&Need::new("kms:Decrypt", &world.key)).is_none(), "{role:?}");
    }
    assert!(!may(Role::KeyAdministrator, "at", own), "who makes keys opens nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_lacks_a_right_names_it() {
    let world = World::new().await;
    let [daemon, reader, _, operator, keys] = world.gates().await;
    tables_and_keys_are_made(&world, &operator, &keys).await;
    clients_are_registered(&world, &operator);
    world.ok(&daemon, &["run", "--once"]);
    let nobody = Gate::before(&world, "nobody", Policy::none()).await;
    let without =
        async |sid| Gate::before(&world, "reader", world.policy(Role::Reader, &[]).without(sid)).await;
    let (no_keys, no_kms) = (without("TheTableOfKeys").await, without("OpensAccessTokens").await);
    for (gate, command, action) in [
        (&nobody, &["get", "crm"][..], "dynamodb:BatchGetItem"),
        (&no_keys, &["get", "crm"], "dynamodb:GetItem"),
        (&no_kms, &["get", "crm"], "kms:Decrypt"),
        (&reader, &["clients", "list"], "dynamodb:Query"),
        (&reader, &["clients", "pause", "crm"], "dynamodb:Query"),
        (&reader, &["keys", "init"], "dynamodb:CreateTable"),
        (&reader, &["spill", "list"], "s3:ListBucket"),
        (&operator, &["keys", "rotate"], "dynamodb:Scan"),
        (&keys, &["clients", "list"], "dynamodb:Query"),
        (&nobody, &["table", "check"], "dynamodb:DescribeTable"),
    ] {
        let told = world.perform(gate, command, &[]);
        let errors = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(1), "{command:?}: {errors}");
        assert!(errors.contains(&format!("not authorized to perform: {action} on")), "{command:?}: {errors}");
        assert!(errors.contains("`perennial iam print`"), "{command:?} has no remedy: {errors}");
    }
}

/// Each kind of place by itself: what one statement allows, the other does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_that_lacks_a_right_names_it() {
    let world = World::new().await;
    let [daemon, _, _, operator, keys] = world.gates().await;
    tables_and_keys_are_made(&world, &operator, &keys).await;
    clients_are_registered(&world, &operator);
    let references = world.references();
    let references = references.each_ref().map(String::as_str);
    for (sid, action, found) in [
        ("ClientSecrets", "secretsmanager:GetSecretValue", "ssm:"),
        ("ClientSecretsInParameters", "ssm:GetParameter", "secretsmanager:"),
    ] {
        let lacks = |role| world.policy(role, &references).without(sid);
        let gate = Gate::before(&world, "operator", lacks(Role::Operator)).await;
        let told = world.perform(&gate, &["clients", "secret", "check"], &[]);
        let out = String::from_utf8_lossy(&told.stdout);
        let of = |kind: &str| out.lines().find(|line| line.contains(&format!(" {kind}"))).unwrap_or_default();
        assert_eq!(told.status.code(), Some(1), "{out}");
        assert!(out.contains(&format!("not authorized to perform: {action} on")), "{out}");
        assert!(of(found).ends_with(": found") && out.contains("`perennial iam print`"), "{out}");

        world.ok(&operator, &["clients", "refresh", "noted", "kept"]);
        let gate = Gate::before(&world, "daemon", lacks(Role::Daemon)).await;
        let told = world.perform(&gate, &["run", "--once"], &[]);
        let errors = String::from_utf8_lossy(&told.stderr);
        assert!(
            !told.status.success() && errors.contains(action) && errors.contains("secret_refused"),
            "{errors}"
        );
    }
    world.ok(&daemon, &["run", "--once"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spill_is_listed_below_its_prefix_and_nowhere_else() {
    let world = World::new().await;
    let list =
        |prefix: Option<&str>| Need::new("s3:ListBucket", "arn:aws:s3:::spilled").with("s3:prefix", prefix);
    for role in [Role::Daemon, Role::Operator] {
        let policy = world.policy(role, &[]);
        let may = |prefix| policy.allows(&list(prefix)).is_some();
        let asked =
            [Some("perennial/spill/"), Some("perennial/spill/crm/"), Some("perennial/"), Some(""), None];
        assert_eq!(asked.map(may), [true, true, false, false, false], "{role:?}");
    }
}
