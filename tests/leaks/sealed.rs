//! Sealing, where keys are wrong, away or changed: neither keys nor what they seal show.

use aws_sdk_dynamodb::types::AttributeValue;

use super::world::{CASES, FILTERS, KEY, World};
use crate::support::{DynamoLocal, Proxy};

const OTHER: &str = "c0ffee08c0ffee09c0ffee0ac0ffee0bc0ffee0cc0ffee0dc0ffee0ec0ffee0f";
const LOOKS: &[&[&str]] = &[
    &["run", "--once", "--json"],
    &["seal", "status", "--json"],
    &["clients", "show", "good", "--json"],
    &["why", "good", "--json"],
    &["get", "good", "--json"],
    &["seal", "migrate", "--json"],
    &["clients", "apply", "clients.toml"],
    &["spill", "list", "--json"],
    &["spill", "replay"],
];

fn look(world: &World, variables: &[(&str, &str)]) {
    let variables = [variables, &[("PERENNIAL__LOG__FILTER", FILTERS[0])]].concat();
    for arguments in LOOKS {
        world.run_with(arguments, &variables);
    }
    for case in CASES {
        world.run_with(&["clients", "refresh", case.id], &variables);
    }
}

/// Exchanges characters in the middle of what is sealed.
async fn tamper(world: &World, id: &str) {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let client = DynamoLocal::shared().await.client();
    let key = [("PK", text(&format!("CLIENT#{id}"))), ("SK", text("TOKEN#ACCESS"))];
    let get = client.get_item().table_name(world.deployment.table_name());
    let [(pk, id), (sk, token)] = key.clone();
    let item = get.key(pk, id).key(sk, token).send().await.expect("it answers").item.expect("an item");
    let sealed = item["refresh_token"].as_s().expect("text").clone();
    assert!(sealed.starts_with("eyJ"), "it is sealed");
    let (head, tail) = sealed.rsplit_once('.').expect("parts");
    let changed = format!("{head}.{}", tail.chars().rev().collect::<String>());
    let [(pk, id), (sk, token)] = key;
    let update = client.update_item().table_name(world.deployment.table_name()).key(pk, id).key(sk, token);
    let update = update.update_expression("SET refresh_token = :value");
    update.expression_attribute_values(":value", text(&changed)).send().await.expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_this_machine_and_what_it_seals_never_show() {
    let mut world = World::new().await;
    world.canaries.add(OTHER);
    let local = ("PERENNIAL__SEALING__MODE", "local");
    world.run_with(&["seal", "migrate", "--json"], &[local]);
    look(&world, &[local]);
    look(&world, &[local, ("PERENNIAL__SEALING__KEY", OTHER)]);
    tamper(&world, "nobody").await;
    look(&world, &[local]);
    let file = world.deployment.secret_file("key", KEY);
    let file = file.to_str().expect("UTF-8");
    look(&world, &[local, ("PERENNIAL__SEALING__KEY", ""), ("PERENNIAL__SEALING__KEY_FILE", file)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_kms_and_what_they_seal_never_show() {
    let world = World::new().await;
    let (kms, key) = (Proxy::before(world.moto.endpoint()).await, world.moto.key().await);
    let variables = [
        ("PERENNIAL__SEALING__MODE", "kms"),
        ("PERENNIAL__SEALING__KMS_KEY", key.as_str()),
        ("PERENNIAL__SEALING__KMS_ENDPOINT", kms.url()),
        ("PERENNIAL__SEALING__SHARDS", "1"),
    ];
    let keys = || {
        for verb in ["init", "list", "rotate", "export"] {
            world.run_with(&["keys", verb], &variables);
        }
    };
    assert!(world.run_with(&["keys", "init"], &variables).status.success());
    world.run_with(&["seal", "migrate", "--json"], &variables);
    look(&world, &variables);
    keys();
    tamper(&world, "nobody").await;
    look(&world, &variables);
    kms.cut();
    look(&world, &variables);
    keys();
}
