//! The endpoint from which a task has the credentials of its role ("Container credential provider" in the AWS SDKs and
//! Tools Reference Guide).

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// It ends with this.
pub(crate) struct Identity {
    url: String,
    issuer: Issuer,
    serving: JoinHandle<()>,
}

/// Who gives credentials, and knows which of them are good.
#[derive(Clone)]
pub(crate) struct Issuer(Arc<Mutex<Issued>>);

struct Issued {
    lifetime: Duration,
    /// Of each access key, by its number.
    expiries: Vec<SystemTime>,
    failing: bool,
}

impl Identity {
    /// Credentials live that long; each call gives new ones.
    pub(crate) async fn start(lifetime: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let url = format!("http://{}/credentials", listener.local_addr().expect("it is bound"));
        let issued = Issued { lifetime, expiries: Vec::new(), failing: false };
        let issuer = Issuer(Arc::new(Mutex::new(issued)));
        let app = Router::new().route("/credentials", get(issue)).with_state(issuer.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { url, issuer, serving }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn issuer(&self) -> Issuer {
        self.issuer.clone()
    }

    /// No new credentials are given from now on, or again.
    pub(crate) fn fail(&self, failing: bool) {
        self.issuer.with(|issued| issued.failing = failing);
    }

    /// How often it gave some.
    pub(crate) fn given(&self) -> usize {
        self.issuer.with(|issued| issued.expiries.len())
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Issuer {
    fn with<T>(&self, change: impl FnOnce(&mut Issued) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a signature (`AWS4-HMAC-SHA256 Credential=KEY/...`) is by credentials that have not expired.
    #[expect(clippy::disallowed_methods, reason = "it lives in real time")]
    pub(crate) fn accepts(&self, authorization: &str) -> bool {
        let key = authorization.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next());
        let number = key.and_then(|key| key.strip_prefix("ASIADRILL")?.parse::<usize>().ok());
        let expiry = number.and_then(|number| self.with(|issued| issued.expiries.get(number).copied()));
        expiry.is_some_and(|expiry| SystemTime::now() < expiry)
    }
}

#[expect(clippy::disallowed_methods, reason = "it lives in real time")]
async fn issue(State(issuer): State<Issuer>) -> Response {
    issuer.with(|issued| {
        if issued.failing {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        let expiry = SystemTime::now() + issued.lifetime;
        let number = issued.expiries.len();
        issued.expiries.push(expiry);
        let body = json!({
            "AccessKeyId": format!("ASIADRILL{number}"),
            "SecretAccessKey": "drill",
            "Token": format!("session-{number}"),
            "Expiration": humantime::format_rfc3339_seconds(expiry).to_string(),
        });
        ([(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    })
}
