//! What a token endpoint's answer amounts to: a closed set of replies.
//!
//! What a reply *means* is decided by the planner. What happened is told apart here, once and for all: a request
//! that never left is not one whose answer was lost, since a rotating refresh token may already be spent.

use std::time::Duration;

use crate::secret::Secret;

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
