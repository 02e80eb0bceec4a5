//! What a token endpoint's answer amounts to: a closed set of replies.
//!
//! What a reply *means* is decided by the planner. What happened is told apart here, once and for all: a request
//! that never left is not one whose answer was lost, since a rotating refresh token may already be spent.

use std::time::Duration;

use crate::secret::Secret;

/// OAuth error codes that end a grant: RFC 6749 section 5.2, OpenID Connect Core section 3.1.2.6, and what vendors
/// send instead.
const GRANT_IS_GONE: [&str; 8] = [
    "invalid_grant",
    "bad_refresh_token",
    "BAD_REFRESH_TOKEN",
    "invalid_refresh_token",
    "invalid_code",
    "interaction_required",
    "login_required",
    "consent_required",
];
/// Codes that speak of the application (its id or secret), and not of one customer's grant.
const APPLICATION_IS_REFUSED: [&str; 3] =
    ["invalid_client", "unauthorized_client", "incorrect_client_credentials"];
/// Codes that speak of the request: RFC 6749 section 5.2, RFC 8707 section 2, RFC 9449 section 5, RFC 6750 section
/// 3.1.
const REQUEST_IS_REFUSED: [&str; 8] = [
    "invalid_request",
    "invalid_scope",
    "unsupported_grant_type",
    "invalid_target",
    "invalid_dpop_proof",
    "use_dpop_nonce",
    "access_denied",
    "insufficient_scope",
];

/// Whether the code ends the grant.
pub fn ends_grants(code: &str) -> bool {
    GRANT_IS_GONE.contains(&code)
}

/// Whether the code speaks of the application, so that all its clients are affected.
pub fn refuses_application(code: &str) -> bool {
    APPLICATION_IS_REFUSED.contains(&code)
}

/// Whether the word is an OAuth error code at all. Proxies put words of their own into JSON.
pub fn is_verdict(code: &str) -> bool {
    ends_grants(code) || refuses_application(code) || REQUEST_IS_REFUSED.contains(&code)
}

/// What the answer says about how long its access token lives (`expires_in`, RFC 6749 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It says so; more than zero.
    Stated(Duration),
    /// It says nothing.
    Missing,
    /// It says something that is no lifetime: negative, zero, not a number.
    Unreadable,
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
    /// What happened, in one word: for logs, metrics and the table.
    pub fn code(&self) -> &str {
        match self {
            Self::NotSent(code) | Self::Blocked(code) | Self::Rejected(code) => code,
            Self::Throttled { code, .. } | Self::Unknown { code, .. } => code,
            Self::Granted(_) => "granted",
        }
    }

    /// How long the endpoint asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { after, .. } | Self::Unknown { after, .. } => *after,
            _ => None,
        }
    }
}
