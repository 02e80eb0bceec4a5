//! What is registered: a client, the provider that it is refreshed at, and the names of both.
//!
//! A [`Client`] is the operator's part of the table (its `CONFIG` item); a [`Provider`] is a profile in the
//! configuration. Together they say how a token request is built; neither says anything of state.

pub mod allowance;
pub mod credentials;
pub mod outbound;
pub mod reference;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use sha2::{Digest, Sha256};
use url::{Host, Url};

use crate::secret::Secret;
use crate::time::Timestamp;

use credentials::Credentials;
use outbound::Outbound;

/// Names a client: 1 to 128 characters of `[A-Za-z0-9._:@-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(String);

/// A client id that cannot be one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a client id: use 1 to 128 characters of A-Z a-z 0-9 . _ : @ -")]
pub struct InvalidClientId(String);

impl ClientId {
    /// The longest id, in bytes: it keeps a `LEASE` item under 1 KB, which is one write unit.
    pub const MAX_LEN: usize = 128;

    /// Checks the alphabet and the length.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidClientId> {
        let id = id.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte);
        if (1..=Self::MAX_LEN).contains(&id.len()) && id.bytes().all(allowed) {
            Ok(Self(id))
        } else {
            Err(InvalidClientId(id.chars().take(Self::MAX_LEN + 1).collect()))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ClientId {
    type Err = InvalidClientId;
    fn from_str(id: &str) -> Result<Self, InvalidClientId> {
        Self::new(id)
    }
}

/// How tokens are obtained (RFC 6749).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// Section 4.4: minted from the client's own credentials, again whenever needed.
    ClientCredentials,
    /// Section 6: each refresh needs the refresh token that the last one left.
    RefreshToken,
}

impl Grant {
    /// As the table and the `grant_type` parameter spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
        }
    }

    /// Whether losing the stored tokens loses the customer's consent.
    pub fn needs_refresh_token(self) -> bool {
        self == Self::RefreshToken
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Grant {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::ClientCredentials, Self::RefreshToken]
            .into_iter()
            .find(|grant| grant.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a grant: use client_credentials or refresh_token"))
    }
}

/// How the client authenticates at the token endpoint (RFC 6749 section 2.3.1, OpenID Connect Core section 9).
/// Pinned per provider: guessing would send a rotating refresh token twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// HTTP Basic, id and secret form-encoded first.
    #[default]
    ClientSecretBasic,
    /// Both in the request body.
    ClientSecretPost,
    /// A public client: the id alone, in the body.
    None,
}

/// What to do when a refresh token may have been redeemed and the answer was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InDoubt {
    /// Send again at once: the provider does not rotate.
    Reusable,
    /// The holder replays inside the provider's documented grace window.
    Grace,
    /// The holder replays once, promptly; a taker sends once, after its wait. For unknown providers: if the first
    /// send was processed, the new token exists nowhere else and nothing more can be lost.
    #[default]
    RetryOnce,
    /// Nobody replays; an operator decides. For providers where reuse locks an account.
    Hold,
}

/// The most that a provider is asked: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Token requests a second, sustained.
    pub per_second: f64,
    /// Token requests at once after a rest.
    pub burst: u32,
}

/// A provider profile: everything that the clients of one token endpoint have in common.
#[derive(Clone, PartialEq)]
pub struct Provider {
    /// Its name in the configuration: `[a-z][a-z0-9_]*`.
    pub name: String,
    /// The token endpoint (RFC 6749 section 3.2).
    pub token_url: Url,
    /// Client authentication.
    pub auth: ClientAuth,
    /// Scopes for clients that name none.
    pub scopes: Vec<String>,
    /// `audience` for clients that name none.
    pub audience: Option<String>,
    /// RFC 8707 resource indicators for clients that name none.
    pub resource: Vec<String>,
    /// Further parameters, which may be credentials; a client's own parameter of the same name wins.
    pub params: BTreeMap<String, Secret>,
    /// Further request headers.
    pub headers: BTreeMap<String, Secret>,
    /// Whether a refresh may return a new refresh token that kills the old one.
    pub rotates: bool,
    /// What to do when an answer was lost.
    pub in_doubt: InDoubt,
    /// How long a rotated refresh token is still accepted, for [`InDoubt::Grace`].
    pub grace_window: Duration,
    /// Whether 503 with Retry-After means that the request was not processed.
    pub unavailable_is_unprocessed: bool,
    /// Allows plain http to a host that is not loopback.
    pub allow_http: bool,
    /// Where its requests may go, and whom they trust there.
    pub outbound: Arc<Outbound>,
    /// The whole HTTP exchange, at most: H of the lease protocol.
    pub request_timeout: Duration,
    /// Refreshes in flight at once, at most.
    pub concurrency: usize,
    /// The rate budget.
    pub rate: RateLimit,
    /// The access token's life where the provider does not say.
    pub default_lifetime: Duration,
    /// The largest response body that is read, in bytes.
    pub max_response: usize,
    /// How long an access token still works after it was replaced; `None` for as long as it lives. Readers mind it.
    pub overlap: Option<Duration>,
}

impl Provider {
    /// A profile that sets nothing but its name and its token endpoint: every default of the configuration.
    pub fn new(name: impl Into<String>, token_url: Url) -> Self {
        Self {
            name: name.into(),
            token_url,
            auth: ClientAuth::default(),
            scopes: Vec::new(),
            audience: None,
            resource: Vec::new(),
            params: BTreeMap::new(),
            headers: BTreeMap::new(),
            rotates: true,
            in_doubt: InDoubt::default(),
            grace_window: Duration::ZERO,
            unavailable_is_unprocessed: false,
            allow_http: false,
            outbound: Arc::default(),
            request_timeout: Duration::from_secs(20),
            concurrency: 16,
            rate: RateLimit { per_second: 20.0, burst: 20 },
            default_lifetime: Duration::from_secs(55 * 60),
            max_response: 256 * 1024,
            overlap: None,
        }
    }
}

/// A registered client: the `CONFIG` item of a live one.
#[derive(Clone, PartialEq)]
pub struct Client {
    /// Who.
    pub id: ClientId,
    /// Name of the provider profile.
    pub provider: String,
    /// How tokens are obtained.
    pub grant: Grant,
    /// OAuth client id.
    pub client_id: String,
    /// OAuth client secrets, or where they are.
    pub credentials: Credentials,
    /// Requested scopes; empty means the provider's.
    pub scopes: Vec<String>,
    /// `audience` parameter.
    pub audience: Option<String>,
    /// RFC 8707 resource indicators.
    pub resource: Vec<String>,
    /// Further parameters of the token request, which may be credentials.
    pub params: BTreeMap<String, Secret>,
    /// Token endpoint, where it is not the provider's.
    pub token_url: Option<Url>,
    /// No refreshes while true.
    pub paused: bool,
    /// "Refresh now": the generation that is to be replaced.
    pub refresh_now: Option<crate::record::Gen>,
    /// When an operator last changed it.
    pub joined: Timestamp,
}

impl Client {
    /// The token endpoint that this client is refreshed at.
    pub fn endpoint<'a>(&'a self, provider: &'a Provider) -> &'a Url {
        self.token_url.as_ref().unwrap_or(&provider.token_url)
    }

    /// What binds tokens to the registration that obtained them: provider, token endpoint, OAuth client id. A
    /// refresh token sent under another client id may be revoked (RFC 6749 section 10.4).
    pub fn binding(&self, provider: &Provider) -> Binding {
        Binding::of(&self.provider, self.endpoint(provider), &self.client_id)
    }
}

/// Of its endpoint and its parameters only what may be shown.
impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, auth, rotates, in_doubt, .. } = self;
        let mut shown = f.debug_struct("Provider");
        shown.field("name", name).field("token_url", &without_query(&self.token_url)).field("auth", auth);
        shown.field("rotates", rotates).field("in_doubt", in_doubt).finish_non_exhaustive()
    }
}

/// Of its endpoint only what may be shown.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, provider, grant, client_id, paused, refresh_now, joined, .. } = self;
        let mut shown = f.debug_struct("Client");
        shown.field("id", id).field("provider", provider).field("grant", grant).field("client_id", client_id);
        shown
            .field("scopes", &self.scopes)
            .field("audience", &self.audience)
            .field("resource", &self.resource);
        shown.field("params", &self.params).field("token_url", &self.token_url.as_ref().map(without_query));
        shown.field("paused", paused).field("refresh_now", refresh_now).field("joined", joined);
        shown.finish_non_exhaustive()
    }
}

/// A URL as it may be shown: a query may carry a key.
pub(crate) fn without_query(url: &Url) -> String {
    let mut shown = url.clone();
    if shown.query().is_some() {
        shown.set_query(Some("..."));
    }
    shown.into()
}

/// Whether the URL's host is this machine, by its spelling: `localhost`, 127.0.0.0/8 or `[::1]`.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The same of the authority of a request (RFC 9110 section 7.2): whom it was meant for.
pub fn is_this_machine(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// See [`Client::binding`]. 32 hexadecimal digits in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding(pub String);

impl Binding {
    fn of(provider: &str, endpoint: &Url, client_id: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [provider, endpoint.as_str(), client_id] {
            // Lengths first: no two triples run into the same bytes.
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        Self(hex::encode(&hash.finalize()[..16]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_keep_to_their_alphabet_and_length() {
        for good in ["a", "1234", "acme.eu:crm@7_x-Y", &"x".repeat(128)] {
            assert!(ClientId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a#b", "é", "a/b", "a\n", &"x".repeat(129)] {
            assert!(ClientId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_is_told_by_its_spelling() {
        let loopback = |text| is_loopback(&Url::parse(text).expect("a url"));
        assert!(loopback("http://127.9.9.9") && loopback("http://[::1]:1") && loopback("http://localhost"));
        assert!(!loopback("http://10.0.0.1") && !loopback("http://localhost.test"));
    }

    #[test]
    fn a_binding_depends_on_each_of_its_three_parts() {
        let url = |text| Url::parse(text).expect("a url");
        let base = Binding::of("acme", &url("https://a.test/token"), "app");
        assert_eq!(base.0.len(), 32);
        assert_ne!(base, Binding::of("acm", &url("https://a.test/token"), "app"));
        assert_ne!(base, Binding::of("acme", &url("https://b.test/token"), "app"));
        assert_ne!(base, Binding::of("acme", &url("https://a.test/token"), "app2"));
    }
}
