//! A daemon under the production profile keeps away from its own machine.

use crate::support::{Auth, Deployment, DynamoLocal, StrictProvider};
use crate::{codes, once, with_client};

async fn provider() -> StrictProvider {
    let provider = StrictProvider::start(&[]).await;
    provider.register(Auth::Basic("app", "s")).await;
    provider
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_on_loopback_is_not_asked_under_the_production_profile() {
    let provider = provider().await;
    let by_address = provider.token_url();
    // Both by their spelling. A name that gives nothing away is in the tests of `provider`.
    let by_name = by_address.replace("127.0.0.1", "localhost");
    let local = DynamoLocal::shared().await;
    let settings = format!("[providers.near]\ntoken_url = \"{by_address}\"\n");
    let deployment = Deployment::on_dynamo(local, &settings);
    with_client(&deployment, "near");
    for url in [&by_address, &by_name] {
        let output = once(&deployment, &[("PERENNIAL__PROVIDERS__NEAR__TOKEN_URL", url)]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(codes(&output), ["forbidden_address"], "{url}: {output:?}");
        assert_eq!(provider.stats().await.token_requests, 0, "{url}");
    }
    let output =
        once(&deployment, &[("PERENNIAL__PROVIDERS__NEAR__ALLOW_NETWORKS", "10.0.0.0/8,127.0.0.0/8")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(provider.stats().await.granted, 1);
}

/// The profile's own endpoint is fine; what the table says of one client is not.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_from_the_table_is_held_to_the_same() {
    let provider = provider().await;
    let settings = "[providers.far]\ntoken_url = \"https://auth.acme.example/token\"\n";
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, settings);
    let client = [
        "clients",
        "add",
        "billing",
        "--provider",
        "far",
        "--grant",
        "client_credentials",
        "--client-id",
        "app",
        "--client-secret-file",
    ];
    let secret = deployment.secret_file("secret", "s");
    let url = provider.token_url();
    let more = [secret.to_str().expect("text"), "--token-url", url.as_str()];
    deployment.ok(&[&client[..], &more].concat());
    let output = once(&deployment, &[]);
    assert_eq!(codes(&output), ["forbidden_address"], "{output:?}");
    assert_eq!(provider.stats().await.token_requests, 0);
}
