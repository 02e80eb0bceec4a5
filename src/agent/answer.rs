//! Answers: a token in its forms, and everything else.
//!
//! Whoever asks gets a token a million times for each time that it changes: what of it does not age is written once, and
//! sent from there.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AGE, ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use serde_json::json;
use zeroize::Zeroizing;

use super::body::{Body, Lent, Piece};
use super::problem::{Problem, seconds};
use crate::client::ClientId;
use crate::reader::{AccessToken, Served, written};
use crate::record::Gen;

/// A client's token in a batch.
pub(super) type Item = Result<(ClientId, Served), Problem>;
/// What hyper sends.
pub(super) type Answer = Response<Body>;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Longer than this nobody else should keep a token without asking ...
const KEPT: Duration = Duration::from_secs(60);
/// ... and so it is told, nearly each time.
const KEEP: HeaderValue = HeaderValue::from_static("private, max-age=60, must-revalidate");

/// Room for what stands before a token, a client's id above all.
const ID: usize = 160;

/// How a token is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Text,
}

/// A token; or, where the asker has it already, the news that it is still good.
pub(super) fn token(
    id: &ClientId,
    served: Served,
    form: Form,
    asked: &HeaderMap,
    waited: Option<Duration>,
) -> Answer {
    let token = served.token();
    let tag = token.written.tag(|| tag(token)).clone();
    let known = asked.get(IF_NONE_MATCH).is_some_and(|tags| names(tags.as_bytes(), tag.as_bytes()));
    let (age, cache_control) = (HeaderValue::from(served.age.as_secs()), cache_control(&served));
    let (body, content_type) = match form {
        _ if known => (Body::default(), None),
        Form::Json => (token_body(id, served).into(), Some(JSON)),
        Form::Text => (Lent::text(served.sighting).into(), Some(TEXT)),
    };
    let mut answer = Response::new(body);
    if known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = answer.headers_mut();
    if let Some(content_type) = content_type {
        headers.insert(CONTENT_TYPE, content_type);
    }
    headers.insert(ETAG, tag);
    headers.insert(AGE, age);
    headers.insert(CACHE_CONTROL, cache_control);
    headers.insert(SERVER_TIMING, timing(waited));
    answer
}

/// A token's JSON: what ages, then what is the same for everybody.
fn token_body(id: &ClientId, served: Served) -> Lent {
    Lent::json(ageing(&served, ID), id, served.sighting)
}

/// The same in one piece.
pub(super) fn token_json(id: &ClientId, served: &Served) -> Zeroizing<String> {
    let steady = written::json(id, served.token());
    let mut whole = Zeroizing::new(ageing(served, steady.len()));
    whole.push_str(&steady[1..]);
    whole
}

/// How an object begins that goes on with what does not age, for which there is room.
fn ageing(served: &Served, room: usize) -> String {
    let mut text = String::with_capacity(64 + room);
    write!(text, "{{\"expires_in\":{},\"stale\":{},", served.remaining.as_secs(), served.stale)
        .expect("a string takes all");
    text
}

/// A generation never comes again, whatever becomes of a client; a table that another tool keeps has none.
fn tag(token: &AccessToken) -> HeaderValue {
    let text = match token.generation {
        Gen::NONE => format!("W/\"0-{}\"", token.expires_at.as_secs()),
        generation => format!("W/\"{generation}\""),
    };
    value(text.into())
}

/// RFC 9110 section 13.1.2: weak comparison, a list, or `*`.
fn names(tags: &[u8], tag: &[u8]) -> bool {
    let opaque = tag.strip_prefix(b"W/").unwrap_or(tag);
    tags.split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|one| one == b"*" || one.strip_prefix(b"W/").unwrap_or(one) == opaque)
}

fn cache_control(served: &Served) -> HeaderValue {
    if !served.stale && served.remaining >= KEPT {
        return KEEP;
    }
    let keep = if served.stale { 0 } else { served.remaining.as_secs() };
    value(format!("private, max-age={keep}, must-revalidate").into())
}

fn timing(waited: Option<Duration>) -> HeaderValue {
    match waited {
        None => HeaderValue::from_static("cache;desc=hit"),
        Some(waited) => value(format!("cache;desc=miss, table;dur={}", waited.as_millis()).into()),
    }
}

fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static(""))
}

/// A problem.
pub(super) fn problem(problem: &Problem) -> Answer {
    let told = problem.told();
    let mut answer = json_answer(told.status, &Problem::body(&told));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, PROBLEM);
    if let Some(wait) = told.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
    }
    match problem {
        Problem::NoKey | Problem::UnknownKey => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"perennial\""));
        }
        Problem::Method(allowed) => {
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        _ => {}
    }
    answer
}

/// Nothing has changed.
pub(super) fn not_modified() -> Answer {
    let mut answer = Response::new(Body::default());
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    answer
}

/// What was rejected is not the stored token any more.
pub(super) fn superseded(generation: Gen) -> Answer {
    json_answer(StatusCode::OK, &json!({ "status": "superseded", "generation": generation.0 }))
}

/// Another token is being obtained: ask for what comes after this generation.
pub(super) fn refreshing(generation: Gen) -> Answer {
    json_answer(StatusCode::ACCEPTED, &json!({ "status": "refreshing", "generation": generation.0 }))
}

/// Many at once, each with a status of its own. What is a secret is sent from where it lies.
pub(super) fn batch(items: Vec<(&str, Item)>) -> Answer {
    let made = |text: String| Piece::Made(text.into());
    let mut pieces = Vec::with_capacity(3 * items.len() + 2);
    pieces.push(made("{\"tokens\":[".to_owned()));
    for (place, (id, item)) in items.into_iter().enumerate() {
        let before = if place == 0 { "" } else { "," };
        match item {
            Ok((client, served)) => {
                pieces.push(made(format!("{before}{{\"client\":{},\"status\":200,\"token\":", json!(id))));
                pieces.push(Piece::Token(token_body(&client, served)));
                pieces.push(made("}".to_owned()));
            }
            Err(problem) => {
                let told = problem.told();
                let (status, problem) = (told.status.as_u16(), Problem::body(&told));
                let item = json!({ "client": id, "status": status, "problem": problem });
                pieces.push(made(format!("{before}{item}")));
            }
        }
    }
    pieces.push(made("]}\n".to_owned()));
    let mut answer = Response::new(Body::from(pieces));
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Any JSON. Nobody keeps it.
pub(super) fn json_answer(status: StatusCode, body: &serde_json::Value) -> Answer {
    let mut answer = Response::new(Body::from(Bytes::from(format!("{body}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, JSON);
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A few words, or numbers.
pub(super) fn text(body: String, content_type: &'static str) -> Answer {
    let mut answer = Response::new(Body::from(Bytes::from(body)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::sync::Arc;

    use bytes::Buf as _;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::reader::written::Written;
    use crate::reader::{Sighting, Standing};
    use crate::record::Gen;
    use crate::secret::Secret;
    use crate::time::{Moment, Timestamp};

    fn served(secret: &str, kind: Option<&str>) -> Served {
        let token = AccessToken {
            secret: Secret::new(secret).into(),
            token_type: kind.map(Into::into),
            scope: Some("a \"b\"".into()),
            expires_at: Timestamp::from_secs(1_700_003_600),
            refresh_at: Some(Timestamp::from_secs(1_700_003_240)),
            stored_at: None,
            generation: Gen(7),
            written: Written::default(),
        };
        let sighting = Sighting {
            token: Some(token),
            standing: Standing::Kept,
            overlap: None,
            seen: Moment::default(),
            seen_at: Timestamp::EPOCH,
        };
        let (remaining, age) = (Duration::from_millis(90_900), Duration::from_secs(3));
        Served { sighting: Arc::new(sighting), remaining, age, stale: false }
    }

    fn id() -> ClientId {
        ClientId::new("acme").expect("an id")
    }

    #[tokio::test]
    async fn a_token_in_json_is_json_whatever_the_provider_writes() {
        for nasty in ["plain", "q\"uo\\te", "new\nline\u{1}", "ü\u{2028}"] {
            let text = token_json(&id(), &served(nasty, Some("bearer")));
            let body = Body::from(token_body(&id(), served(nasty, Some("bearer"))));
            let length = hyper::body::Body::size_hint(&body).exact();
            let sent = body.collect().await.expect("infallible").to_bytes();
            assert_eq!((sent.as_ref(), length), (text.as_bytes(), Some(text.len() as u64)));
            let read: serde_json::Value = serde_json::from_str(&text).expect(&text);
            assert_eq!(read["access_token"], nasty);
            assert_eq!(read["authorization"], format!("Bearer {nasty}"));
            assert_eq!((&read["scope"], &read["token_type"]), (&"a \"b\"".into(), &"Bearer".into()));
            assert_eq!((&read["expires_in"], &read["generation"]), (&90.into(), &7.into()));
            assert_eq!(read["expires_at"], 1_700_003_600);
            assert_eq!(read["refresh_after"], 1_700_003_240);
        }
        let mac: serde_json::Value =
            serde_json::from_str(&token_json(&id(), &served("a", Some("MAC")))).expect("JSON");
        assert_eq!(mac["authorization"], "MAC a");
        let odd = Body::from(token_body(&id(), served("a", Some("\u{0}"))));
        let odd = odd.collect().await.expect("infallible").to_bytes();
        let odd: serde_json::Value = serde_json::from_slice(&odd).expect("JSON");
        assert_eq!((&odd["access_token"], &odd["authorization"]), (&"a".into(), &"\u{0} a".into()));
    }

    #[test]
    fn whoever_has_the_generation_is_told_so() {
        let status = |tags: &'static str| {
            let asked = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(tags))]);
            token(&id(), served("a", None), Form::Json, &asked, None).status()
        };
        for same in ["W/\"7\"", "\"7\"", "\"6\", W/\"7\"", "*"] {
            assert_eq!(status(same), StatusCode::NOT_MODIFIED, "{same}");
        }
        for other in ["\"6\"", "W/\"77\"", "7", ""] {
            assert_eq!(status(other), StatusCode::OK, "{other}");
        }
    }

    #[test]
    fn headers_say_how_old_it_is_and_how_long_to_keep_it() {
        let answer = token(&id(), served("a", None), Form::Text, &HeaderMap::new(), None);
        let header = |name: HeaderName| answer.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(header(AGE), "3");
        assert_eq!(header(CACHE_CONTROL), "private, max-age=60, must-revalidate");
        assert_eq!(header(CONTENT_TYPE), "text/plain; charset=utf-8");
        let stale = Served { stale: true, ..served("a", None) };
        let answer = token(&id(), stale, Form::Text, &HeaderMap::new(), None);
        assert_eq!(answer.headers()[CACHE_CONTROL], "private, max-age=0, must-revalidate");
    }

    fn lent(secret: &str, form: Form) -> (String, Lent) {
        let served = served(secret, None);
        match form {
            Form::Json => (token_json(&id(), &served).to_string(), token_body(&id(), served)),
            Form::Text => (secret.to_owned(), Lent::text(served.sighting)),
        }
    }

    #[test]
    fn a_token_is_sent_whole_however_little_the_other_side_takes_at_a_time() {
        for (secret, form) in [("secret", Form::Json), ("to \"quote\"", Form::Json), ("secret", Form::Text)] {
            for most in 1..=40 {
                let (whole, piece) = lent(secret, form);
                let mut piece = Piece::Token(piece);
                let mut sent = Vec::new();
                while piece.has_remaining() {
                    let mut places = [IoSlice::new(b""); 8];
                    let filled = piece.chunks_vectored(&mut places);
                    let rest: Vec<u8> = places[..filled].iter().flat_map(|place| place.to_vec()).collect();
                    assert_eq!(rest, whole.as_bytes()[sent.len()..]);
                    assert_eq!(rest.len(), piece.remaining());
                    assert!(!piece.chunk().is_empty() && rest.starts_with(piece.chunk()));
                    let taken = most.min(rest.len());
                    sent.extend_from_slice(&rest[..taken]);
                    piece.advance(taken);
                }
                assert_eq!(sent, whole.as_bytes());
                assert_eq!((piece.chunk(), piece.chunks_vectored(&mut [IoSlice::new(b"")])), (&b""[..], 0));
            }
        }
        let mut two = [IoSlice::new(b""); 2];
        assert_eq!(Piece::Token(lent("secret", Form::Json).1).chunks_vectored(&mut two), 2);
    }
}
