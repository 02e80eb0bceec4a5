//! Reading a token endpoint's answer: RFC 6749 sections 5.1 and 5.2, and what vendors make of them.
//!
//! The body is judged first and the status second, since some vendors answer errors with 200 and others put 403 on
//! an RFC error. Only a *parsed OAuth error code* is a verdict on a grant: a firewall's 403 page is not. Nothing of
//! a body survives here but tokens and that code.

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use zeroize::Zeroize as _;

use crate::reply::{Lifetime, Reply, Tokens, is_verdict};
use crate::secret::Secret;
use crate::time::Timestamp;

/// The longest that Retry-After is believed.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// The longest error code that is taken for one.
const CODE_LEN: usize = 64;

/// Codes that say "later", whatever the status: the request was turned away.
const LATER: [&str; 6] = [
    "slow_down",
    "temporarily_unavailable",
    "rate_limited",
    "ratelimited",
    "rate_limit_exceeded",
    "too_many_requests",
];
/// Codes that are a server's word that it failed half-way.
const FAULT: [&str; 3] = ["server_error", "internal_error", "internal_server_error"];

/// An answer with its body read.
pub(crate) struct Answer<'a> {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: &'a [u8],
    pub(crate) unavailable_is_unprocessed: bool,
}

/// What the answer amounts to.
pub(crate) fn classify(answer: &Answer<'_>) -> Reply {
    let read = Read(serde_json::from_slice(answer.body).unwrap_or_default());
    let body = &read.0;
    let status = answer.status;
    if status.is_redirection() {
        return Reply::Blocked(format!("redirect_{}", status.as_u16()));
    }
    if status.is_success()
        && let Some(tokens) = tokens(body)
    {
        return Reply::Granted(Box::new(tokens));
    }
    match error_code(body) {
        // A server that failed has given no verdict, whatever its gateway says in JSON.
        Some(code) if !status.is_server_error() => explained(code, answer),
        _ => unexplained(answer),
    }
}

/// A body as it was read: its texts are zeroized when it is dropped.
struct Read(Value);

impl Drop for Read {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(list) => list.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn explained(code: String, answer: &Answer<'_>) -> Reply {
    let after = answer.retry_after;
    if answer.status == StatusCode::TOO_MANY_REQUESTS || LATER.contains(&code.as_str()) {
        return Reply::Throttled { code, after };
    }
    if is_verdict(&code) {
        return Reply::Rejected(code);
    }
    if FAULT.contains(&code.as_str()) {
        return Reply::Unknown { code, server_fault: true, after };
    }
    unexplained(answer)
}

/// An answer without tokens and without an OAuth error.
fn unexplained(answer: &Answer<'_>) -> Reply {
    let (status, after) = (answer.status, answer.retry_after);
    let code = format!("http_{}", status.as_u16());
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Reply::Throttled { code, after };
    }
    if status == StatusCode::SERVICE_UNAVAILABLE && after.is_some() && answer.unavailable_is_unprocessed {
        return Reply::Throttled { code, after };
    }
    if status.is_success() {
        let code = if answer.body.is_empty() { "empty_200" } else { "unreadable_200" };
        return Reply::Unknown { code: code.to_owned(), server_fault: false, after };
    }
    if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        return Reply::Unknown { code, server_fault: true, after };
    }
    Reply::Blocked(code)
}

fn tokens(body: &Value) -> Option<Tokens> {
    let text = |name: &str| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    Some(Tokens {
        access_token: Secret::from(text("access_token")?),
        refresh_token: text("refresh_token").map(Secret::from),
        token_type: text("token_type").map(str::to_owned),
        scope: scope(body.get("scope")),
        lifetime: lifetime(body.get("expires_in")),
    })
}

/// A string as the RFC has it, or the array that some vendors send.
fn scope(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Array(list) => {
            let words: Vec<_> = list.iter().filter_map(Value::as_str).collect();
            (!words.is_empty()).then(|| words.join(" "))
        }
        _ => None,
    }
}

/// `expires_in` as a number, a float, or either in a string.
fn lifetime(value: Option<&Value>) -> Lifetime {
    let seconds = match value {
        None | Some(Value::Null) => return Lifetime::Missing,
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    match seconds {
        Some(seconds) if seconds > 0.0 => {
            Lifetime::Stated(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        }
        _ => Lifetime::Unreadable,
    }
}

/// The error code: `error` by RFC 6749, or `status` where one vendor's older endpoint puts it. Free text ("Bad
/// Request") is none.
fn error_code(body: &Value) -> Option<String> {
    let text = |name: &str| body.get(name).and_then(Value::as_str).filter(|text| is_code(text));
    text("error").or_else(|| text("status").filter(|code| is_verdict(code))).map(str::to_owned)
}

fn is_code(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    let only_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (1..=CODE_LEN).contains(&text.len()) && text.bytes().all(allowed) && !only_digits
}

/// Retry-After (RFC 9110 section 10.2.3): seconds, or a date; an hour at most.
pub(crate) fn retry_after(header: Option<&str>, now: Timestamp) -> Option<Duration> {
    let text = header?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            let since_epoch = date.duration_since(std::time::UNIX_EPOCH).ok()?;
            Timestamp::EPOCH.plus(since_epoch).since(now)
        }
    };
    Some(wait.min(MOST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        classify(&Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            retry_after: None,
            body: body.as_bytes(),
            unavailable_is_unprocessed: false,
        })
    }

    fn granted(body: &str) -> Tokens {
        match reply(200, body) {
            Reply::Granted(tokens) => *tokens,
            other => panic!("{other:?}"),
        }
    }

    fn stated(expires_in: &str) -> Lifetime {
        granted(&format!(r#"{{"access_token":"a","expires_in":{expires_in}}}"#)).lifetime
    }

    #[test]
    fn an_ordinary_answer_is_read_whole() {
        let tokens = granted(
            r#"{"access_token":"a","token_type":"mac","expires_in":3600,"refresh_token":"r","scope":"x y"}"#,
        );
        assert_eq!(tokens.refresh_token, Some(Secret::new("r")));
        assert_eq!(tokens.token_type.as_deref(), Some("mac"), "types other than Bearer are kept");
        assert_eq!(tokens.scope.as_deref(), Some("x y"));
        assert_eq!(tokens.lifetime, Lifetime::Stated(Duration::from_secs(3600)));
    }

    #[test]
    fn what_an_answer_omits_is_none_and_so_stays_as_stored() {
        let tokens = granted(r#"{"access_token":"a","refresh_token":"","scope":null}"#);
        assert_eq!((tokens.refresh_token, tokens.scope, tokens.token_type), (None, None, None));
        assert_eq!(tokens.lifetime, Lifetime::Missing);
    }

    #[test]
    fn expires_in_is_read_leniently() {
        let hour = Lifetime::Stated(Duration::from_secs(3600));
        for text in ["3600", "3600.0", "\"3600\"", "\" 3600.0 \""] {
            assert_eq!(stated(text), hour, "{text}");
        }
        for text in ["-1", "0", "\"NaN\"", "\"soon\"", "true", "[]", "\"-5\""] {
            assert_eq!(stated(text), Lifetime::Unreadable, "{text}");
        }
        assert_eq!(stated("1e300"), Lifetime::Stated(Duration::MAX));
        assert_eq!(stated("null"), Lifetime::Missing);
    }

    #[test]
    fn an_array_of_scopes_is_joined() {
        assert_eq!(granted(r#"{"access_token":"a","scope":["x","y"]}"#).scope.as_deref(), Some("x y"));
    }

    #[test]
    fn an_oauth_error_is_one_whatever_the_status() {
        for status in [200, 400, 401, 403] {
            assert_eq!(
                reply(status, r#"{"error":"invalid_grant"}"#),
                Reply::Rejected("invalid_grant".into())
            );
        }
        assert_eq!(
            reply(400, r#"{"status":"BAD_REFRESH_TOKEN","message":"..."}"#),
            Reply::Rejected("BAD_REFRESH_TOKEN".into())
        );
    }

    #[test]
    fn a_firewalls_page_is_no_verdict_on_a_grant() {
        for body in ["<html>Forbidden</html>", "", r#"{"error":"Bad Request","status":400}"#] {
            assert_eq!(reply(403, body), Reply::Blocked("http_403".into()));
        }
        assert_eq!(reply(302, ""), Reply::Blocked("redirect_302".into()));
    }

    #[test]
    fn a_200_that_cannot_be_read_may_have_been_processed() {
        for (body, code) in
            [("", "empty_200"), ("<html>", "unreadable_200"), (r#"{"access_token":"#, "unreadable_200")]
        {
            let unknown = Reply::Unknown { code: code.into(), server_fault: false, after: None };
            assert_eq!(reply(200, body), unknown);
        }
    }

    #[test]
    fn server_faults_may_have_been_processed_and_429_was_not() {
        assert!(matches!(reply(500, "oops"), Reply::Unknown { server_fault: true, .. }));
        assert!(matches!(reply(200, r#"{"ok":false,"error":"internal_error"}"#), Reply::Unknown { .. }));
        assert!(matches!(reply(503, r#"{"error":"temporarily_unavailable"}"#), Reply::Unknown { .. }));
        assert!(matches!(reply(429, ""), Reply::Throttled { .. }));
        assert!(matches!(reply(400, r#"{"error":"slow_down"}"#), Reply::Throttled { .. }));
    }

    #[test]
    fn a_gateways_words_in_json_are_no_verdict() {
        for (status, body) in [
            (502, r#"{"error":"bad_gateway"}"#),
            (503, r#"{"status":"DOWN"}"#),
            (500, r#"{"error":"invalid_grant"}"#),
        ] {
            assert!(matches!(reply(status, body), Reply::Unknown { server_fault: true, .. }), "{body}");
        }
        assert_eq!(reply(403, r#"{"error":"forbidden"}"#), Reply::Blocked("http_403".into()));
        let wrapped = r#"{"status":"success","data":{"access_token":"a"}}"#;
        assert!(matches!(reply(200, wrapped), Reply::Unknown { server_fault: false, .. }));
    }

    #[test]
    fn service_unavailable_counts_as_unprocessed_only_where_the_provider_says_so() {
        let answer = |unavailable_is_unprocessed| Answer {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: Some(Duration::from_secs(7)),
            body: b"",
            unavailable_is_unprocessed,
        };
        assert!(matches!(classify(&answer(true)), Reply::Throttled { .. }));
        assert!(matches!(classify(&answer(false)), Reply::Unknown { after: Some(_), .. }));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Timestamp::from_secs(784_111_777);
        assert_eq!(retry_after(Some("120"), now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(Some("Sun, 06 Nov 1994 08:50:37 GMT"), now), Some(Duration::from_secs(60)));
        assert_eq!(retry_after(Some("Sun, 06 Nov 1994 08:00:00 GMT"), now), Some(Duration::ZERO));
        assert_eq!(retry_after(Some("999999999"), now), Some(MOST_RETRY_AFTER));
        assert_eq!(retry_after(Some("tomorrow"), now), None);
    }

    proptest! {
        #[test]
        fn no_body_panics_or_gets_into_a_code(status in 100_u16..600, body in ".{0,200}") {
            let reply = reply(status, &body);
            prop_assert!(reply.code().len() <= CODE_LEN);
            prop_assert!(!reply.code().contains(char::is_whitespace));
        }
    }
}
