//! The store goes away between a provider's answer and its commit, and then the daemon dies: the answer is in the spill,
//! and another daemon brings it into the table without asking the provider again.

use std::time::Duration;

use serde_json::Value;

use super::super::{is_live, provider};
use super::cut_off::{IDS, World};
use crate::support::{Deployment, DynamoLocal, Moto, log_lines, wait_until};

/// Ten seconds until the spill, or one minute until the replay, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const KEY: (&str, &str) =
    ("PERENNIAL__SEALING__KEY", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");

fn records(world: &World, variables: &[(&str, &str)]) -> Vec<Value> {
    let listed = world.deployment.run_with(&["spill", "list", "--json"], variables);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    log_lines(&String::from_utf8_lossy(&listed.stdout))
}

/// Cuts, kills, mends, and sees another daemon store everything.
async fn survives(variables: &[(&str, &str)]) -> World {
    let world = World::cut_off_with(variables).await;
    wait_until(PATIENCE, "all answers are in the spill", async || records(&world, variables).len() == 3)
        .await;
    let told = records(&world, variables);
    assert!(told.iter().all(|record| record["generation"] == 1 && record["problem"].is_null()), "{told:?}");
    assert!(!format!("{told:?}").contains("refresh_token"));
    world.daemon.signal("KILL");
    world.proxy.mend();
    let heir = world.deployment.daemon_with(variables).await;
    wait_until(PATIENCE, "the heir has stored all of them", async || {
        let mut live = 0;
        for id in IDS {
            live += usize::from(is_live(&world.store, &world.provider, id).await);
        }
        live == IDS.len()
    })
    .await;
    wait_until(PATIENCE, "the spill is empty", async || records(&world, variables).is_empty()).await;
    assert_eq!(world.provider.stats().await.token_requests, 3, "nothing was sent again:\n{}", heir.errors());
    world.has_lost_nothing().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_directory_another_daemon_stores_what_a_dead_one_could_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let spill = folder.path().join("spill");
    let spill = spill.to_str().expect("UTF-8");
    survives(&[KEY, ("PERENNIAL__SPILL__DIRECTORY", spill)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_versioned_bucket_another_daemon_stores_what_a_dead_one_could_not() {
    let moto = Moto::start().await;
    let s3 = moto.bucket("spilled").await;
    let variables =
        [KEY, ("PERENNIAL__SPILL__S3_BUCKET", "spilled"), ("PERENNIAL__SPILL__S3_ENDPOINT", moto.endpoint())];
    let world = survives(&variables).await;
    let kept = s3.list_object_versions().bucket("spilled").send().await.expect("moto keeps versions");
    assert_eq!((kept.versions().len(), kept.delete_markers().len()), (3, 3), "no removal is final");
    for version in kept.versions() {
        let key = version.key().expect("an object has a key");
        let object =
            s3.get_object().bucket("spilled").key(key).version_id(version.version_id().expect("an id"));
        let body = object.send().await.expect("the version is kept").body.collect().await.expect("a body");
        let text = String::from_utf8(body.to_vec()).expect("a JWE is text");
        assert!(text.starts_with("eyJ") && text.split('.').count() == 5, "not sealed: {text}");
    }
    assert!(!world.daemon.errors().contains("not versioned"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_named_and_is_no_reason_not_to_start() {
    let moto = Moto::start().await;
    let (_provider, settings) = provider(&[]).await;
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    let variables =
        [KEY, ("PERENNIAL__SPILL__S3_BUCKET", "absent"), ("PERENNIAL__SPILL__S3_ENDPOINT", moto.endpoint())];
    let daemon = deployment.daemon_with(&variables).await;
    wait_until(PATIENCE, "it is up", async || daemon.errors().contains("warm: all clients")).await;
    let log = log_lines(&daemon.errors());
    let alarm = log.iter().find(|line| line["alarm"] == "spill_unreadable").expect("an alarm");
    let error = alarm["error"].as_str().expect("a text");
    assert!(error.starts_with("spill.s3_bucket = \"absent\": ") && error.contains("NoSuchBucket"), "{error}");
}
