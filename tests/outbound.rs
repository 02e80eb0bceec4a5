//! Where token requests go, and whom they trust there: over real TLS, through a real proxy, and from a daemon under the
//! production profile.

mod support;

mod outbound {
    pub(crate) mod addresses;
    pub(crate) mod proxies;
    pub(crate) mod server;
    pub(crate) mod trust;
}

use std::process::Output;

use support::{Deployment, NewClient, log_lines};

/// Registers one client that needs no refresh token, in a deployment that runs under the production profile.
fn with_client(deployment: &Deployment, provider: &'static str) {
    let (id, client_id) = ("billing".to_owned(), "app");
    let client = NewClient { id, provider, client_id, client_secret: Some("s"), refresh_token: None };
    deployment.apply(&[client]);
}

/// One round under the production profile. What has failed is due again at once.
fn once(deployment: &Deployment, variables: &[(&str, &str)]) -> Output {
    let production = [
        ("PERENNIAL__PROFILE", "production"),
        ("PERENNIAL__LOG__FORMAT", "json"),
        ("PERENNIAL__BACKOFF__BASE", "10ms"),
        ("PERENNIAL__BACKOFF__MIN_INTERVAL", "0s"),
    ];
    deployment.run_with(&["run", "--once"], &[&production, variables].concat())
}

/// The codes of the refreshes that failed.
fn codes(output: &Output) -> Vec<String> {
    let log = log_lines(&String::from_utf8_lossy(&output.stderr));
    let mut codes: Vec<_> = log.iter().filter_map(|line| line["code"].as_str()).map(str::to_owned).collect();
    codes.dedup();
    codes
}
