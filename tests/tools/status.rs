//! `perennial status` against a real daemon: fine, degraded, broken, and what it says of each.

use serde_json::Value;

use crate::support::{Auth, Deployment, DynamoLocal, NewClient, StrictProvider, snapshot, wait_until};
use crate::{SECRET, SOON};

/// Exit code and findings.
fn judged(deployment: &Deployment) -> (i32, Vec<String>, Value) {
    let output = deployment.run(&["status", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let findings = report["findings"].as_array().expect("a list");
    let codes = findings.iter().map(|finding| finding["code"].as_str().expect("a code").to_owned()).collect();
    (output.status.code().expect("it ends by itself"), codes, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_fine_then_degraded_then_broken() {
    let provider = StrictProvider::start(&[]).await;
    provider.register(Auth::Basic("app", SECRET)).await;
    let settings = format!(
        "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n[refresh]\nspread = \"0s\"\n\
         [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n",
        provider.token_url()
    );
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    let mut grants = Vec::new();
    for id in ["good", "revoked"] {
        let refresh_token = provider.seed("app").await.refresh_token;
        grants.push(NewClient {
            id: id.to_owned(),
            provider: "strict",
            client_id: "app",
            client_secret: Some(SECRET),
            refresh_token: Some(refresh_token),
        });
    }
    deployment.apply(&grants);
    assert_eq!(judged(&deployment).1.first().map(String::as_str), Some("no-task"), "nobody runs yet");

    let mut daemon = deployment.daemon().await;
    wait_until(SOON, "all is well", async || judged(&deployment).0 == 0).await;
    let fine = deployment.ok(&["status"]);
    assert!(fine.lines().last().is_some_and(|line| line.starts_with("summary status=fine ")), "{fine}");

    let stored =
        snapshot(&deployment.store().await, "revoked").await.token.and_then(|token| token.refresh_token);
    provider.revoke(stored.expect("a refresh token").expose()).await;
    deployment.ok(&["clients", "refresh", "revoked"]);
    wait_until(SOON, "a dead grant degrades it", async || judged(&deployment).0 == 1).await;
    let (_, codes, report) = judged(&deployment);
    assert_eq!(codes, ["dead"]);
    assert!(report["findings"][0].to_string().contains("docs/runbook.md#dead-grants"), "{report}");
    let told = deployment.run(&["status"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(text.contains("revoked") && text.contains("import-token") && !text.contains("good,"), "{text}");

    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
    let (code, codes, _) = judged(&deployment);
    assert_eq!((code, codes), (2, vec!["no-task".to_owned(), "dead".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_there_is_broken_and_still_one_object() {
    let deployment = Deployment::without_table(DynamoLocal::shared().await, "");
    let (code, codes, report) = judged(&deployment);
    assert_eq!((code, codes), (2, vec!["table".to_owned()]), "{report}");
}
