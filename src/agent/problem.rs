//! What went wrong, as `application/problem+json` (RFC 9457): a code that stays, and whether it is worth trying again.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use crate::reader::Refusal;

/// A request that is not answered with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// It came through something that forwards.
    ForwardedRequest(&'static str),
    /// It was meant for another host.
    AnotherHost,
    /// There is no such path.
    NoSuchPath,
    /// The path does not take this method.
    Method(&'static str),
    /// It cannot be understood.
    Malformed(String),
    /// The body is too large.
    TooLarge,
    /// There is no key in it.
    NoKey,
    /// The key is nobody's.
    UnknownKey,
    /// Whose key it is may not do this.
    NotAllowed,
    /// There is no token.
    Refused(Refusal),
    /// The same was asked a moment ago.
    TooSoon(Duration),
    /// The client's state does not allow it.
    Conflict(String),
    /// Too many requests wait already.
    Busy,
}

/// Its parts, as they are answered.
pub(super) struct Told {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) detail: String,
    pub(super) retry_after: Option<Duration>,
}

impl Problem {
    pub(super) fn told(&self) -> Told {
        let (status, code, detail) = self.text();
        let retry_after = match self {
            Self::Refused(refusal) => retry_after(refusal),
            Self::TooSoon(wait) => Some(*wait),
            Self::Busy => Some(Duration::from_secs(1)),
            _ => None,
        };
        Told { status, code, detail, retry_after }
    }

    fn text(&self) -> (StatusCode, &'static str, String) {
        match self {
            Self::ForwardedRequest(trace) => (
                StatusCode::FORBIDDEN,
                "forwarded_request",
                format!(
                    "the request has {trace}: only programs of this machine are answered, without a proxy"
                ),
            ),
            Self::AnotherHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "another_host",
                "the request is for another host: ask 127.0.0.1 or localhost".into(),
            ),
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "no_such_path", "try /v1/token/CLIENT".into()),
            Self::Method(allowed) => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("use {allowed}"))
            }
            Self::Malformed(why) => (StatusCode::BAD_REQUEST, "malformed", why.clone()),
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is limited to 64 KiB".into())
            }
            Self::NoKey => (
                StatusCode::UNAUTHORIZED,
                "key_missing",
                "send the reader's key: `Authorization: Bearer prn_...`".into(),
            ),
            Self::UnknownKey => (
                StatusCode::UNAUTHORIZED,
                "key_unknown",
                "no reader has this key: see agent.keys_file".into(),
            ),
            Self::NotAllowed => (
                StatusCode::FORBIDDEN,
                "not_allowed",
                "the key does not allow this: see the reader's `clients` and `may_reject` in agent.keys_file"
                    .into(),
            ),
            Self::Refused(refusal) => refused(refusal),
            Self::TooSoon(wait) => (
                StatusCode::TOO_MANY_REQUESTS,
                "rejected_too_soon",
                format!("the token is new: a refresh is asked for in {} s at the earliest", seconds(*wait)),
            ),
            Self::Conflict(why) => (StatusCode::CONFLICT, "conflict", why.clone()),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "too many requests are waiting".into()),
        }
    }

    pub(super) fn body(told: &Told) -> serde_json::Value {
        json!({
            "type": "about:blank",
            "title": told.status.canonical_reason(),
            "status": told.status.as_u16(),
            "detail": told.detail,
            "code": told.code,
            "retryable": told.retry_after.is_some(),
        })
    }
}

/// In whole seconds, rounded up, at least one: RFC 9110 section 10.2.3.
pub(super) fn seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

fn retry_after(refusal: &Refusal) -> Option<Duration> {
    match refusal {
        Refusal::Absent | Refusal::Dead(_) | Refusal::Held(_) | Refusal::Paused | Refusal::Forbidden => None,
        Refusal::Pending(wait)
        | Refusal::Expired(wait)
        | Refusal::ShortLived(wait)
        | Refusal::NoNewer(wait)
        | Refusal::Unavailable(wait) => Some(*wait),
    }
}

fn refused(refusal: &Refusal) -> (StatusCode, &'static str, String) {
    const LATER: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match refusal {
        Refusal::Absent => (StatusCode::NOT_FOUND, "unknown_client", "no such client is registered".into()),
        Refusal::Dead(code) => (
            StatusCode::CONFLICT,
            "dead_grant",
            format!("the provider said `{code}`: the customer has to consent again"),
        ),
        Refusal::Held(code) => (
            StatusCode::CONFLICT,
            "held",
            format!("held in doubt after `{code}`: an operator has to decide (`perennial clients resolve`)"),
        ),
        Refusal::Paused => (
            StatusCode::CONFLICT,
            "paused",
            "an operator paused it, and its token has expired: `perennial clients resume`".into(),
        ),
        Refusal::Forbidden => (
            StatusCode::BAD_GATEWAY,
            "forbidden",
            "the table, or the key of its secrets, refuses the agent: its log says why".into(),
        ),
        Refusal::Pending(_) => (LATER, "pending", "its first token is yet to come".into()),
        Refusal::Expired(_) => (LATER, "expired", "its token has expired, and the next is late".into()),
        Refusal::ShortLived(_) => (
            LATER,
            "short_lived",
            "its token lives for less than min_ttl, and the next is yet to come".into(),
        ),
        Refusal::NoNewer(_) => (LATER, "no_newer", "there is no later generation yet".into()),
        Refusal::Unavailable(_) => {
            (LATER, "store_unavailable", "the table gives no answer, and no good token is known".into())
        }
    }
}
