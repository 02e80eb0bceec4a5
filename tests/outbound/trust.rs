//! Authorities and pins of a provider's own.

use std::sync::Arc;
use std::time::Duration;

use perennial::client::outbound::Outbound;
use perennial::client::{Grant, Provider};
use perennial::provider::{HttpEndpoint, HttpSettings, TokenEndpoint as _, TokenRequest};
use perennial::reply::Reply;
use perennial::time::SystemClock;
use perennial::tls::TlsError;
use url::Url;

use super::server::{Authority, Endpoint};

const FAR: i32 = 2100;

/// Asks the endpoint by this name for a token.
async fn ask(endpoint: &Endpoint, host: &str, outbound: Outbound) -> Reply {
    let url = format!("https://{host}:{}/token", endpoint.address.port());
    let provider = Provider {
        outbound: Arc::new(Outbound { loopback: true, ..outbound }),
        ..Provider::new("acme", Url::parse(&url).expect("a url"))
    };
    let client = perennial::client::Client {
        id: perennial::client::ClientId::new("billing").expect("an id"),
        provider: "acme".into(),
        grant: Grant::ClientCredentials,
        client_id: "app".into(),
        credentials: perennial::client::credentials::Credentials::default(),
        scopes: Vec::new(),
        audience: None,
        resource: Vec::new(),
        params: std::collections::BTreeMap::new(),
        token_url: None,
        paused: false,
        refresh_now: None,
        joined: perennial::time::Timestamp::from_millis(1),
    };
    let settings = HttpSettings { connect_timeout: Duration::from_secs(10) };
    let request = TokenRequest::new(&client, &provider, Some(perennial::secret::Secret::new("s")), None);
    HttpEndpoint::new(settings, Arc::new(SystemClock)).send(&request).await
}

fn unsent(code: &str) -> Reply {
    Reply::NotSent(code.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_trusted_by_the_providers_own_authority_and_by_no_other() {
    let (own, other) = (Authority::new(), Authority::new());
    let endpoint = own.endpoint(&["localhost"], FAR);
    let trusting =
        |authority: &Authority| Outbound { ca_file: Some(authority.file()), ..Outbound::default() };
    assert_eq!(ask(&endpoint, "localhost", Outbound::default()).await, unsent("certificate_untrusted"));
    assert_eq!(ask(&endpoint, "localhost", trusting(&other)).await, unsent("certificate_untrusted"));
    assert_eq!(ask(&endpoint, "127.0.0.1", trusting(&own)).await, unsent("certificate_of_another"));
    let expired = own.endpoint(&["localhost"], 2000);
    assert_eq!(ask(&expired, "localhost", trusting(&own)).await, unsent("certificate_expired"));
    assert_eq!(endpoint.requests() + expired.requests(), 0, "nothing was sent to whom it does not trust");
    assert!(matches!(ask(&endpoint, "localhost", trusting(&own)).await, Reply::Granted(_)));
    assert_eq!(endpoint.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_asked_for_beside_the_authority() {
    let authority = Authority::new();
    let (endpoint, neighbour) =
        (authority.endpoint(&["localhost"], FAR), authority.endpoint(&["localhost"], FAR));
    let pinned = |pins: &[&str]| Outbound {
        ca_file: Some(authority.file()),
        pins: pins.iter().map(|pin| pin.parse().expect("a pin")).collect(),
        ..Outbound::default()
    };
    let wrong = unsent("certificate_not_pinned");
    assert_eq!(ask(&endpoint, "localhost", pinned(&[&neighbour.pin])).await, wrong);
    // The server sends the authority's certificate along. That proves nothing of its own key.
    assert_eq!(ask(&endpoint, "localhost", pinned(&[&authority.pin()])).await, wrong);
    assert_eq!(endpoint.requests(), 0);
    let renewed = pinned(&[&neighbour.pin, &endpoint.pin]);
    assert!(matches!(ask(&endpoint, "localhost", renewed).await, Reply::Granted(_)));
    // A pin does not stand in for the authority.
    let unsigned = Outbound { ca_file: None, ..pinned(&[&endpoint.pin]) };
    assert_eq!(ask(&endpoint, "localhost", unsigned).await, unsent("certificate_untrusted"));
}

#[test]
fn authorities_that_cannot_be_had_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").expect("writable");
    for (file, problem) in [(folder.path().join("missing.pem"), "cannot be read"), (empty, "no certificate")]
    {
        let outbound = Arc::new(Outbound { ca_file: Some(file.clone()), ..Outbound::default() });
        let url = Url::parse("https://acme.test/token").expect("a url");
        let error = HttpEndpoint::check(&Provider { outbound, ..Provider::new("acme", url) })
            .expect_err("no authority");
        assert!(matches!(&error, TlsError::Authorities { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(problem) && text.contains(file.to_str().expect("text")), "{text}");
    }
}
