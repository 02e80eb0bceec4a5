//! The other side: a provider's token endpoint, seen as one question and a closed set of replies.
//!
//! What a reply *means* is not decided here. But what happened is told apart here, once and for all: a request
//! that never left is not one whose answer was lost, since a rotating refresh token may already be spent.

mod http;
mod wire;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use url::Url;

pub use http::{HttpProvider, HttpSettings, TransportError};
pub use wire::Lifetime;

use crate::client::{Client, ClientAuth, Grant, Provider};
use crate::secret::Secret;

/// A token request (RFC 6749 sections 4.4.2 and 6), complete.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// Name of the provider profile.
    pub provider: String,
    /// Token endpoint.
    pub url: Url,
    /// Grant type.
    pub grant: Grant,
    /// Client authentication.
    pub auth: ClientAuth,
    /// OAuth client id.
    pub client_id: String,
    /// OAuth client secret.
    pub client_secret: Option<Secret>,
    /// The refresh token, for [`Grant::RefreshToken`].
    pub refresh_token: Option<Secret>,
    /// Scopes.
    pub scopes: Vec<String>,
    /// `audience`.
    pub audience: Option<String>,
    /// RFC 8707 resource indicators.
    pub resource: Vec<String>,
    /// Further parameters.
    pub params: BTreeMap<String, String>,
    /// Further headers.
    pub headers: BTreeMap<String, Secret>,
    /// The whole exchange, at most.
    pub timeout: Duration,
    /// The largest body that is read, in bytes.
    pub max_response: usize,
    /// Whether 503 with Retry-After means that the request was not processed.
    pub unavailable_is_unprocessed: bool,
    /// Whether plain http to a host that is not loopback is allowed.
    pub allow_http: bool,
    /// Whether the provider may rotate: a connection of its own for each request, since a request on a pooled
    /// connection that had died would be sent twice.
    pub rotates: bool,
}

impl TokenRequest {
    /// The request that this client makes at this provider with this refresh token.
    pub fn new(client: &Client, provider: &Provider, refresh_token: Option<Secret>) -> Self {
        let or = |own: &[String], common: &[String]| if own.is_empty() { common.to_vec() } else { own.to_vec() };
        let mut params = provider.params.clone();
        params.extend(client.params.clone());
        Self {
            provider: provider.name.clone(),
            url: client.endpoint(provider).clone(),
            grant: client.grant,
            auth: provider.auth,
            client_id: client.client_id.clone(),
            client_secret: client.client_secret.clone(),
            refresh_token,
            scopes: or(&client.scopes, &provider.scopes),
            audience: client.audience.clone().or_else(|| provider.audience.clone()),
            resource: or(&client.resource, &provider.resource),
            params,
            headers: provider.headers.clone(),
            timeout: provider.request_timeout,
            max_response: provider.max_response,
            unavailable_is_unprocessed: provider.unavailable_is_unprocessed,
            allow_http: provider.allow_http,
            rotates: provider.rotates,
        }
    }
}

/// The tokens of a successful answer (RFC 6749 section 5.1). What the answer omits is `None` and stays as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The access token.
    pub access_token: Secret,
    /// A new refresh token.
    pub refresh_token: Option<Secret>,
    /// The type, as spelt.
    pub token_type: Option<String>,
    /// The granted scope, space separated.
    pub scope: Option<String>,
    /// How long the access token lives.
    pub lifetime: Lifetime,
}

/// What became of a token request. Texts are codes of at most 64 bytes, fit for a log and for `LEASE.err`; nothing
/// of a body is in them but a parsed OAuth error code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing reached the token endpoint: DNS, connect, TLS, a refused URL.
    NotSent(String),
    /// The endpoint asks for less (429; per provider 503 with Retry-After); it did not process the request.
    Throttled {
        /// Which answer.
        code: String,
        /// Retry-After (RFC 9110 section 10.2.3), where there was one.
        after: Option<Duration>,
    },
    /// Something other than the token endpoint's logic answered: a redirect, a firewall's page, a 4xx without an
    /// OAuth error. Not processed, and no verdict on the grant.
    Blocked(String),
    /// A parsed OAuth error code (RFC 6749 section 5.2): the only thing that can end a grant.
    Rejected(String),
    /// The request may have been processed: a lost or unreadable answer, or a server's fault.
    Unknown {
        /// What happened.
        code: String,
        /// Whether the server itself said that it failed (5xx), rather than nothing readable being heard.
        server_fault: bool,
        /// Retry-After, where there was one.
        after: Option<Duration>,
    },
    /// Tokens.
    Granted(Box<Tokens>),
}

impl Reply {
    /// What happened, in one word: for logs and metrics.
    pub fn code(&self) -> &str {
        match self {
            Self::NotSent(code) | Self::Blocked(code) | Self::Rejected(code) => code,
            Self::Throttled { code, .. } | Self::Unknown { code, .. } => code,
            Self::Granted(_) => "granted",
        }
    }
}

/// Somebody who answers token requests.
pub trait TokenEndpoint: Send + Sync + 'static {
    /// Sends the request once, and only once.
    fn send(&self, request: &TokenRequest) -> impl Future<Output = Reply> + Send;
}
