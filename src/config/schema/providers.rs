//! The keys of a provider.

use std::time::Duration;

use super::super::check;
use super::super::kind::Kind;
use super::Fallback::{Follows, Is, Required, Unset};
use super::Key;
use super::keys::{between, key, millis, secs};

/// In the order of the documentation.
pub(in crate::config) static PROVIDERS: &[Key] = &[
    key(
        "providers.*.token_url",
        Kind::Url,
        Required,
        "The token endpoint. Plain http to loopback only, except with `allow_http`.",
    ),
    key(
        "providers.*.auth",
        Kind::Choice(&["client_secret_basic", "client_secret_post", "none"]),
        Is("client_secret_basic"),
        "How clients authenticate there.",
    ),
    key(
        "providers.*.scopes",
        Kind::List("scopes (RFC 6749 section 3.3), one an element", check::scope),
        Is(""),
        "Scopes for clients that name none.",
    ),
    key(
        "providers.*.audience",
        Kind::Text("a string", check::line),
        Unset,
        "`audience` for clients that name none.",
    ),
    key(
        "providers.*.resource",
        Kind::List("absolute URIs without fragment (RFC 8707)", check::resource),
        Is(""),
        "Resource indicators for clients that name none.",
    ),
    key(
        "providers.*.params.*",
        Kind::Text("a string", |_| Ok(())),
        Unset,
        "A further parameter of the token request; a client's own of the same name wins.",
    ),
    key(
        "providers.*.headers.*",
        Kind::Text("a header value of visible ASCII characters", check::header_value),
        Unset,
        "A further request header. Its value is a secret: never shown.",
    ),
    key(
        "providers.*.rotates",
        Kind::Flag,
        Is("true"),
        "Whether a refresh may return a new refresh token that kills the old one.",
    ),
    key(
        "providers.*.in_doubt",
        Kind::Choice(&["reusable", "grace", "retry-once", "hold"]),
        Follows("retry-once where rotates, else reusable"),
        "What to do when an answer was lost. `grace` needs `grace_window`; `reusable` needs `rotates = false`.",
    ),
    key(
        "providers.*.grace_window",
        between(Duration::ZERO, secs(30 * 86_400)),
        Is("0s"),
        "How long a rotated refresh token is still accepted.",
    ),
    key(
        "providers.*.unavailable_is_unprocessed",
        Kind::Flag,
        Is("false"),
        "Whether 503 with Retry-After means that the request was not processed.",
    ),
    key(
        "providers.*.allow_http",
        Kind::Flag,
        Is("false"),
        "Allows plain http to a host that is not loopback.",
    ),
    key(
        "providers.*.allow_networks",
        Kind::List("networks in CIDR notation, no wider than a /8 (IPv6: /7)", check::network),
        Is(""),
        "Networks that token requests may go to though they are not public. Loopback is allowed under the development \
         profile.",
    ),
    key(
        "providers.*.ca_file",
        Kind::Text("a path", check::line),
        Unset,
        "A PEM file with the authorities that are trusted at this provider, in place of the platform's.",
    ),
    key(
        "providers.*.pin_sha256",
        Kind::List("base64 of the SHA-256 of a public key (SubjectPublicKeyInfo)", check::pin),
        Is(""),
        "The server must have one of these keys, besides a certificate that is trusted.",
    ),
    key(
        "providers.*.request_timeout",
        between(millis(100), secs(300)),
        Follows("refresh.request_timeout"),
        "The whole exchange with this token endpoint, at most.",
    ),
    key(
        "providers.*.concurrency",
        Kind::Integer(1..=10_000),
        Is("16"),
        "Refreshes in flight at once at this provider, at most.",
    ),
    key(
        "providers.*.rate_per_second",
        Kind::Float(0.01..=10_000.0),
        Is("20"),
        "Token requests a second, sustained, from this process.",
    ),
    key("providers.*.burst", Kind::Integer(1..=100_000), Is("20"), "Token requests at once after a rest."),
    key(
        "providers.*.default_lifetime",
        between(secs(1), secs(90 * 86_400)),
        Follows("refresh.default_lifetime"),
        "An access token's life where this provider does not say.",
    ),
    key(
        "providers.*.overlap",
        between(secs(1), secs(30 * 86_400)),
        Unset,
        "How long an access token still works after it was replaced, for readers; unset, for as long as it lives.",
    ),
    key(
        "providers.*.max_response",
        Kind::Integer(1024..=4_194_304),
        Is("262144"),
        "The largest response body that is read, in bytes.",
    ),
];
