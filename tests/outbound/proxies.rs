//! The proxies that the environment names.

use std::fs;

use super::server::{Authority, ConnectProxy};
use crate::support::{Deployment, DynamoLocal};
use crate::{codes, once, with_client};

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_carries_requests_to_names_and_to_no_forbidden_address() {
    let authority = Authority::new();
    let endpoint = authority.endpoint(&["auth.acme.example"], 2100);
    let proxy = ConnectProxy::to(endpoint.address);
    let url = format!("https://auth.acme.example:{}/token", endpoint.address.port());
    let ca = authority.file();
    let settings = format!("[providers.acme]\ntoken_url = \"{url}\"\nca_file = {ca:?}\n");
    let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
    with_client(&deployment, "acme");
    let through = ("HTTPS_PROXY", proxy.url.as_str());

    // Before the name is allowed by anybody's resolver, which does not know it.
    let direct = once(&deployment, &[through, ("NO_PROXY", "acme.example")]);
    assert_eq!(codes(&direct), ["dns"], "{direct:?}");
    let metadata = ("PERENNIAL__PROVIDERS__ACME__TOKEN_URL", "https://169.254.169.254/token");
    let forbidden = once(&deployment, &[through, metadata]);
    assert_eq!(codes(&forbidden), ["forbidden_address"], "{forbidden:?}");
    assert_eq!((proxy.asked().len(), endpoint.requests()), (0, 0));

    // The proxy itself is on loopback, under the production profile: it is the operator's.
    let proxied = once(&deployment, &[through, ("NO_PROXY", "elsewhere.example")]);
    assert_eq!(proxied.status.code(), Some(0), "{proxied:?}");
    let port = endpoint.address.port();
    assert_eq!(proxy.asked(), [format!("CONNECT auth.acme.example:{port} HTTP/1.1")]);
    assert_eq!(endpoint.requests(), 1);

    // The proxy is not trusted with the tokens: without the authority nothing is sent.
    let other = Authority::new();
    fs::write(&ca, fs::read(other.file()).expect("readable")).expect("writable");
    deployment.ok(&["clients", "refresh", "billing"]);
    let untrusted = once(&deployment, &[through]);
    assert_eq!(codes(&untrusted), ["certificate_untrusted"], "{untrusted:?}");
    assert_eq!(endpoint.requests(), 1);
}
