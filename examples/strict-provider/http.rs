//! The endpoints: turns HTTP into questions to the authority, and its answers and the ordered faults into HTTP.
//!
//! A token request takes effect first and waits afterwards. So a client that gives up early finds its refresh token
//! spent, which is the worst order that a real provider can choose.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::{Body, to_bytes};
use futures_util::{Stream, StreamExt, stream};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, PRAGMA, WWW_AUTHENTICATE,
};
use hyper::http::{HeaderMap, HeaderName, Method, Request, Response, response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::authority::{Authority, Client, Granted, Policy};
use crate::faults::{Fault, Faults, Kind};
use crate::request::{Params, Refusal, TokenRequest};

/// More than any honest request has.
const REQUEST_LIMIT: usize = 1 << 20;
/// What a user consents to where nothing else is said.
const SCOPE: &str = "read write";

/// The running provider.
pub(crate) struct Provider {
    latency: Duration,
    state: Mutex<State>,
    event_log: Option<Mutex<File>>,
}

struct State {
    authority: Authority,
    faults: Faults,
    faults_met: u64,
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("hung up without an answer")]
pub(crate) struct HangUp;

type Answer = Result<Response<Body>, HangUp>;

/// What became of a token request, before latency and delays.
struct Outcome {
    /// `None` where the request was not processed.
    decision: Option<Result<Granted, Refusal>>,
    fault: Option<Fault>,
}

impl Provider {
    pub(crate) fn new(policy: Policy, latency: Duration, event_log: Option<&Path>) -> io::Result<Self> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        let event_log = event_log.map(open).transpose()?.map(Mutex::new);
        let state = State { authority: Authority::new(policy), faults: Faults::default(), faults_met: 0 };
        Ok(Self { latency, state: Mutex::new(state), event_log })
    }

    /// Registers a client, as `/control/clients` does.
    pub(crate) fn register(&self, client: Client) {
        self.state().authority.register(client);
    }

    /// Makes a fresh grant, as `/control/grants` does. `None` where the client is unknown.
    pub(crate) fn consent(&self, client_id: &str) -> Option<Granted> {
        self.state().authority.mint(client_id, SCOPE, now())
    }

    /// Answers one request, or says that the connection is to be closed without an answer.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let Ok(body) = to_bytes(Body::new(body), REQUEST_LIMIT).await else { return Err(HangUp) };
        match (head.uri.path(), &head.method) {
            ("/token", &Method::POST) => self.token(&head.headers, &body).await,
            ("/introspect", &Method::POST) => Ok(self.introspect(&body)),
            ("/token" | "/introspect", _) => Ok(json_response(405, &json!({ "error": "use POST" }))),
            (path, method) => Ok(self.control(path, method, head.uri.query().unwrap_or_default(), &body)),
        }
    }

    async fn token(&self, headers: &HeaderMap, body: &[u8]) -> Answer {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let request = TokenRequest::parse(text(CONTENT_TYPE), text(AUTHORIZATION), body);
        let outcome = self.process(&request);
        self.record(&request, text(HeaderName::from_static("x-request-id")), body, &outcome);
        let delay = outcome.fault.as_ref().map_or(Duration::ZERO, |fault| fault.kind.delay());
        tokio::time::sleep(self.latency + delay).await;
        respond(outcome)
    }

    fn process(&self, request: &Result<TokenRequest, Refusal>) -> Outcome {
        let mut state = self.state();
        let client_id = request.as_ref().ok().map(|request| request.credentials.client_id());
        let fault = state.faults.take(client_id);
        state.faults_met += u64::from(fault.is_some());
        if fault.as_ref().is_some_and(|fault| !fault.processes()) {
            state.authority.count_unprocessed(client_id);
            return Outcome { decision: None, fault };
        }
        let decision = match request {
            Ok(request) => state.authority.token(request, now()),
            Err(refusal) => {
                state.authority.count_refusal(None, *refusal);
                Err(*refusal)
            }
        };
        Outcome { decision: Some(decision), fault }
    }

    fn introspect(&self, body: &[u8]) -> Response<Body> {
        let params = Params::lenient(body);
        match params.value("token") {
            Some(token) => json_response(200, &self.state().authority.introspect(token, now())),
            None => refused(&Refusal::invalid_request("token is missing")).whole(),
        }
    }

    fn control(&self, path: &str, method: &Method, query: &str, body: &[u8]) -> Response<Body> {
        let (query, form) = (Params::lenient(query.as_bytes()), Params::lenient(body));
        let param = |name| query.value(name).or_else(|| form.value(name));
        let mut state = self.state();
        match (path, method) {
            ("/control/clients", &Method::POST) => {
                ordered(body, |client: Client| state.authority.register(client))
            }
            ("/control/fault", &Method::POST) => ordered(body, |fault| state.faults.order(fault)),
            ("/control/fault/clear", &Method::POST) => {
                state.faults.clear();
                json_response(200, &json!({}))
            }
            ("/control/grants", &Method::POST) => {
                let client_id = param("client_id").unwrap_or_default();
                let scope = param("scope").unwrap_or(SCOPE);
                match state.authority.mint(client_id, scope, now()) {
                    Some(granted) => json_response(200, &grant_body(&granted)),
                    None => json_response(404, &json!({ "error": "no such client" })),
                }
            }
            ("/control/revoke", &Method::POST) => {
                let revoked = state.authority.revoke(param("refresh_token").unwrap_or_default());
                json_response(if revoked { 200 } else { 404 }, &json!({ "revoked": revoked }))
            }
            ("/control/live", _) => json_response(
                200,
                &json!(state.authority.standing(param("refresh_token").unwrap_or_default())),
            ),
            ("/control/stats", &Method::GET) => {
                let mut stats = state.authority.stats();
                stats["faults_met"] = json!(state.faults_met);
                json_response(200, &stats)
            }
            _ => json_response(404, &json!({ "error": "no such endpoint" })),
        }
    }

    /// Appends a line to the event log. A full disk must not change how the provider behaves: it is ignored.
    fn record(
        &self,
        request: &Result<TokenRequest, Refusal>,
        request_id: Option<&str>,
        body: &[u8],
        outcome: &Outcome,
    ) {
        let Some(log) = &self.event_log else { return };
        let client_id = request.as_ref().ok().map(|request| request.credentials.client_id());
        let (result, origin, reuse) = match &outcome.decision {
            None => ("unprocessed", None, false),
            Some(Ok(granted)) => ("granted", granted.origin, false),
            Some(Err(refusal)) => (refusal.error, None, refusal.double_redemption),
        };
        let line = json!({
            "at_ms": now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis(),
            "request_id": request_id,
            "client_id": client_id,
            "grant_type": Params::lenient(body).value("grant_type"),
            "outcome": result,
            "family": origin.map(|(family, _)| family),
            "generation": origin.map(|(_, generation)| generation),
            "double_redemption": reuse,
            "fault": outcome.fault.as_ref().map(|fault| fault.kind.name()),
        });
        log.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{line}\n").as_bytes()).ok();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[allow(clippy::disallowed_methods, reason = "the provider is a program of its own with the system's clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn respond(outcome: Outcome) -> Answer {
    let Outcome { decision, fault } = outcome;
    let Some(Fault { kind, .. }) = fault else { return Ok(honest(decision, None).whole()) };
    Ok(match kind {
        Kind::LoseReply | Kind::ResetBefore => return Err(HangUp),
        Kind::Status { code, body, content_type, headers } => {
            let plain = head(code, content_type.as_deref().unwrap_or("application/json"));
            let head = headers.into_iter().fold(plain, |head, (name, value)| head.header(name, value));
            finish(head, body)
        }
        Kind::Html { code } => {
            let page = "<!doctype html><title>Sorry</title><h1>We will be back soon</h1>";
            finish(head(code, "text/html; charset=utf-8"), page)
        }
        Kind::Empty200 => finish(head(200, "application/json"), Body::empty()),
        Kind::Error200 { error } => json_response(200, &json!({ "ok": false, "error": error })),
        Kind::Huge { bytes } => finish(head(200, "application/json"), Body::from_stream(huge(bytes))),
        Kind::Redirect { location, code } => {
            finish(head(code, "text/plain").header(LOCATION, location), Body::empty())
        }
        Kind::Truncated => honest(decision, None).streamed(cut),
        Kind::Slow { drip_ms: Some(ms), .. } => {
            honest(decision, None).streamed(|text| drip(text, Duration::from_millis(ms)))
        }
        reshaping => honest(decision, Some(&reshaping)).whole(),
    })
}

/// The answer that RFC 6749 sections 5.1 and 5.2 ask for, before its body is sent in one way or another.
struct Honest {
    head: response::Builder,
    body: String,
}

impl Honest {
    fn whole(self) -> Response<Body> {
        finish(self.head, self.body)
    }

    /// Announces the whole body and leaves its delivery to a stream.
    fn streamed<S>(self, delivery: impl FnOnce(String) -> S) -> Response<Body>
    where
        S: Stream<Item = io::Result<Vec<u8>>> + Send + 'static,
    {
        let head = self.head.header(CONTENT_LENGTH, self.body.len());
        finish(head, Body::from_stream(delivery(self.body)))
    }
}

fn honest(decision: Option<Result<Granted, Refusal>>, reshaping: Option<&Kind>) -> Honest {
    match decision.expect("only faults that withhold the real answer leave a request unprocessed") {
        Ok(granted) => {
            let mut body = grant_body(&granted);
            if let (Some(kind), Value::Object(fields)) = (reshaping, &mut body) {
                kind.reshape(fields);
            }
            Honest { head: head(200, "application/json"), body: body.to_string() }
        }
        Err(refusal) => refused(&refusal),
    }
}

fn refused(refusal: &Refusal) -> Honest {
    let body = json!({ "error": refusal.error, "error_description": refusal.description });
    let head = head(refusal.status(), "application/json");
    let head = match refusal.status() {
        401 => head.header(WWW_AUTHENTICATE, "Basic realm=\"strict-provider\""),
        _ => head,
    };
    Honest { head, body: body.to_string() }
}

fn grant_body(granted: &Granted) -> Value {
    let mut body = json!({
        "access_token": granted.access_token,
        "token_type": "Bearer",
        "expires_in": granted.lifetime.as_secs(),
    });
    if let Some(refresh_token) = &granted.refresh_token {
        body["refresh_token"] = json!(refresh_token);
    }
    if let Some(scope) = &granted.scope {
        body["scope"] = json!(scope);
    }
    body
}

/// Half of the text, and then the end of the connection. The pause lets the first half leave before it.
fn cut(text: String) -> impl Stream<Item = io::Result<Vec<u8>>> + Send {
    let half = text.as_bytes()[..text.len() / 2].to_vec();
    stream::once(async { Ok(half) }).chain(stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(io::Error::other("cut by order of a fault"))
    }))
}

/// One byte per pause.
fn drip(text: String, pause: Duration) -> impl Stream<Item = io::Result<Vec<u8>>> + Send {
    stream::iter(text.into_bytes()).then(move |byte| async move {
        tokio::time::sleep(pause).await;
        Ok(vec![byte])
    })
}

/// A JSON object with one overlong token, made while it is sent.
fn huge(bytes: usize) -> impl Stream<Item = io::Result<Vec<u8>>> + Send {
    const BLOCK: usize = 1 << 16;
    let blocks = (0..bytes).step_by(BLOCK).map(move |sent| vec![b'a'; BLOCK.min(bytes - sent)]);
    let opening = std::iter::once(b"{\"token_type\":\"Bearer\",\"access_token\":\"".to_vec());
    stream::iter(opening.chain(blocks).chain(std::iter::once(b"\"}".to_vec())).map(Ok))
}

/// Does what a JSON body orders, or says what is wrong with it.
fn ordered<T: for<'de> Deserialize<'de>>(body: &[u8], act: impl FnOnce(T)) -> Response<Body> {
    match serde_json::from_slice(body) {
        Ok(order) => {
            act(order);
            json_response(200, &json!({}))
        }
        Err(error) => json_response(400, &json!({ "error": error.to_string() })),
    }
}

fn json_response(code: u16, body: &Value) -> Response<Body> {
    finish(head(code, "application/json"), body.to_string())
}

fn head(code: u16, content_type: &str) -> response::Builder {
    Response::builder()
        .status(code)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-store")
        .header(PRAGMA, "no-cache")
}

/// An order may ask for a status or a header that HTTP does not know: that is answered as 500, with the reason.
fn finish(head: response::Builder, body: impl Into<Body>) -> Response<Body> {
    head.body(body.into()).unwrap_or_else(|error| {
        let mut response = Response::new(Body::from(format!("the fault asks for the impossible: {error}")));
        *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}
