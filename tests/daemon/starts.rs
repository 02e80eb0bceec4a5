//! Starting: without a configuration, beside another daemon, and for one run only.

use std::fs;

use serde_json::{Value, json};

use super::super::{SOON, provider, register};
use crate::support::{Deployment, log_lines, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn in_an_empty_directory_it_uses_the_embedded_store_and_says_so() {
    let deployment = Deployment::embedded("");
    fs::remove_dir_all(deployment.path().join("config")).expect("it was just made");
    // The default port may be in use on this machine.
    let mut daemon = deployment.daemon_with(&[("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0")]).await;
    wait_until(SOON, "it is warm", async || daemon.errors().contains("all clients are known")).await;
    let log = log_lines(&daemon.errors());
    let says =
        |text: &str| log.iter().any(|line| line["message"].as_str().is_some_and(|it| it.contains(text)));
    assert!(says("using the embedded store") && says("no provider is configured"), "{log:#?}");
    assert!(deployment.path().join(".perennial/perennial.db").exists());
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_file_is_refused_and_commands_are_not() {
    let deployment = Deployment::embedded("");
    let mut first = deployment.daemon().await;
    wait_until(SOON, "the first is warm", async || first.errors().contains("all clients are known")).await;
    for arguments in [["run"].as_slice(), &["run", "--once"]] {
        let output = deployment.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("another daemon is running") && errors.contains("perennial.db"), "{errors}");
    }
    deployment.ok(&["clients", "list"]);
    assert!(!first.has_ended(), "the first goes on");
    first.signal("KILL");
    first.exit_code(SOON).await;
    deployment.ok(&["run", "--once"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_tells_by_its_exit_code_whether_all_went_well() {
    let (provider, settings) = provider(&[]).await;
    let deployment = Deployment::embedded(&settings);
    let run = || {
        let output = deployment.run(&["run", "--once", "--json"]);
        let result: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
        (output.status.code(), result)
    };
    let of = |clients: u32, refreshed: u32, unfinished: Value| {
        let failed = unfinished.as_object().map_or(0, serde_json::Map::len);
        json!({
            "clients": clients,
            "refreshed": refreshed,
            "failed": failed,
            "skipped": 0,
            "interrupted": false,
            "unfinished": unfinished,
        })
    };
    assert_eq!(run(), (Some(0), of(0, 0, json!({}))), "nobody to refresh");
    register(&deployment, &provider, &["acme"]).await;
    assert_eq!(run(), (Some(0), of(1, 1, json!({}))));
    assert_eq!(run(), (Some(0), of(1, 0, json!({}))), "nothing is due");
    provider.fault(json!({ "kind": "status", "code": 429 })).await;
    register(&deployment, &provider, &["acme", "broken"]).await;
    assert_eq!(run(), (Some(1), of(2, 0, json!({ "broken": "failed: http_429" }))));
    provider.clear_faults().await;
    assert_eq!(run().0, Some(0), "a client that backs off is not due");
}
