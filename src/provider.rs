//! The other side: a provider's token endpoint, seen as one question and a closed set of replies.

mod clients;
mod http;
mod tls;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

pub use http::{HttpEndpoint, HttpSettings};

use crate::client::outbound::Outbound;
use crate::client::{Client, ClientAuth, Grant, Provider};
use crate::reply::Reply;
use crate::secret::Secret;

/// A token request (RFC 6749 sections 4.4.2 and 6), complete.
#[derive(Clone)]
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
    /// Further parameters, which may be credentials.
    pub params: BTreeMap<String, Secret>,
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
    /// Where it may go, and whom it trusts there.
    pub outbound: Arc<Outbound>,
    /// Whether the provider may rotate: a connection of its own for each request, since a request on a pooled
    /// connection that had died would be sent twice.
    pub rotates: bool,
}

impl TokenRequest {
    /// The request that this client makes at this provider with this secret and this refresh token.
    pub fn new(
        client: &Client,
        provider: &Provider,
        client_secret: Option<Secret>,
        refresh_token: Option<Secret>,
    ) -> Self {
        let or =
            |own: &[String], common: &[String]| if own.is_empty() { common.to_vec() } else { own.to_vec() };
        let mut params = provider.params.clone();
        params.extend(client.params.clone());
        Self {
            provider: provider.name.clone(),
            url: client.endpoint(provider).clone(),
            grant: client.grant,
            auth: provider.auth,
            client_id: client.client_id.clone(),
            client_secret,
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
            outbound: Arc::clone(&provider.outbound),
            rotates: provider.rotates,
        }
    }
}

/// Says whose it is, and nothing of what it carries.
impl fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, grant, client_id, .. } = self;
        let mut shown = f.debug_struct("TokenRequest");
        shown.field("provider", provider).field("grant", grant).field("client_id", client_id);
        shown.finish_non_exhaustive()
    }
}

/// Somebody who answers token requests.
pub trait TokenEndpoint: Send + Sync + 'static {
    /// Sends the request once, and only once.
    fn send(&self, request: &TokenRequest) -> impl Future<Output = Reply> + Send;
}
