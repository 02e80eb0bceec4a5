//! The Extensions API of AWS Lambda, as an extension meets it: by "Using the Lambda Extensions API to create extensions" in
//! the AWS Lambda Developer Guide.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{http_client, wait_until};

const IDENTIFIER: &str = "a1b2c3d4-5678-90ab-cdef-0123456789ab";
const SOON: Duration = Duration::from_secs(60);

/// What an extension said.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// `register`, `init/error` or `exit/error`.
    pub(crate) call: &'static str,
    /// `Lambda-Extension-Name`, or the type of the error.
    pub(crate) header: String,
    pub(crate) body: Value,
    /// Whether what was to answer by then did, with this status.
    pub(crate) answered: Option<u16>,
}

#[derive(Default)]
struct Sandbox {
    reports: Vec<Report>,
    events: Vec<Value>,
    nexts: usize,
    refused: Vec<(&'static str, u16)>,
    /// What has to answer before the extension registers.
    watched: Option<String>,
}

/// Listens until it is dropped.
pub(crate) struct LambdaApi {
    address: String,
    shared: Shared,
    serving: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Shared {
    sandbox: Arc<Mutex<Sandbox>>,
    came: Arc<Notify>,
}

impl LambdaApi {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let shared = Shared::default();
        let app = Router::new()
            .route("/2020-01-01/extension/register", post(register))
            .route("/2020-01-01/extension/event/next", get(next))
            .route("/2020-01-01/extension/init/error", post(init_error))
            .route("/2020-01-01/extension/exit/error", post(exit_error))
            .with_state(shared.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { address, shared, serving }
    }

    /// For `AWS_LAMBDA_RUNTIME_API`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Looks at this when the extension registers.
    pub(crate) fn watch(&self, url: String) {
        self.lock().watched = Some(url);
    }

    /// Answers this call with this status from now on.
    pub(crate) fn refuse(&self, call: &'static str, status: u16) {
        self.lock().refused.push((call, status));
        self.shared.came.notify_waiters();
    }

    pub(crate) fn reports(&self) -> Vec<Report> {
        self.lock().reports.clone()
    }

    /// Waits until the extension has registered and asks for its first event.
    pub(crate) async fn begun(&self) {
        wait_until(SOON, "the extension asks for an event", async || self.lock().nexts > 0).await;
    }

    /// Invokes the function, and waits until the extension asks for the next event.
    pub(crate) async fn invoke(&self) {
        let before = self.lock().nexts;
        self.push(json!({
            "eventType": "INVOKE", "deadlineMs": in_millis(Duration::from_secs(3)),
            "requestId": "3da1f2dc-3222-475e-9205-e2e6c6318895",
            "invokedFunctionArn": "arn:aws:lambda:us-east-1:123456789012:function:ExtensionTest",
            "tracing": { "type": "X-Amzn-Trace-Id", "value": "Root=1-5f35ae12-0c0fec141ab77a00bc047aa2" },
        }));
        wait_until(SOON, "the extension asks for the next event", async || self.lock().nexts > before).await;
    }

    /// Ends the sandbox, by then.
    pub(crate) fn shut_down(&self, within: Duration) {
        self.push(json!({
            "eventType": "SHUTDOWN", "shutdownReason": "spindown", "deadlineMs": in_millis(within),
        }));
    }

    fn push(&self, event: Value) {
        self.lock().events.push(event);
        self.shared.came.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sandbox> {
        self.shared.lock()
    }
}

impl Drop for LambdaApi {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Sandbox> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status with which a call is refused, as it is documented: without an identifier, or as the test wants.
    fn refusal(&self, call: &str, headers: &HeaderMap) -> Option<Response> {
        let wanted =
            self.lock().refused.iter().find(|(refused, _)| *refused == call).map(|(_, status)| *status);
        let unknown = call != "register" && header(headers, "lambda-extension-identifier") != IDENTIFIER;
        let status = wanted.or(unknown.then_some(403))?;
        let told = json!({ "errorMessage": "refused", "errorType": "Extension.UnknownExtensionIdentifier" });
        Some((StatusCode::from_u16(status).expect("a status"), told.to_string()).into_response())
    }
}

fn in_millis(within: Duration) -> u64 {
    let then = SystemTime::now() + within;
    let since = then.duration_since(UNIX_EPOCH).expect("the clock is set");
    u64::try_from(since.as_millis()).expect("a date of this millennium")
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

async fn register(State(shared): State<Shared>, headers: HeaderMap, body: String) -> Response {
    let watched = shared.lock().watched.clone();
    let answered = match watched {
        Some(url) => http_client().get(url).send().await.ok().map(|reply| reply.status().as_u16()),
        None => None,
    };
    shared.lock().reports.push(Report {
        call: "register",
        header: header(&headers, "lambda-extension-name"),
        body: serde_json::from_str(&body).unwrap_or_default(),
        answered,
    });
    if let Some(refusal) = shared.refusal("register", &headers) {
        return refusal;
    }
    let told =
        json!({ "functionName": "helloWorld", "functionVersion": "$LATEST", "handler": "lambda.handler" });
    ([("Lambda-Extension-Identifier", IDENTIFIER)], told.to_string()).into_response()
}

async fn next(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    shared.lock().nexts += 1;
    loop {
        let came = shared.came.notified();
        if let Some(refusal) = shared.refusal("event/next", &headers) {
            return refusal;
        }
        let event = {
            let mut sandbox = shared.lock();
            (!sandbox.events.is_empty()).then(|| sandbox.events.remove(0))
        };
        if let Some(event) = event {
            let id = [("Lambda-Extension-Event-Identifier", "6d4f")];
            return (id, event.to_string()).into_response();
        }
        came.await;
    }
}

async fn init_error(state: State<Shared>, headers: HeaderMap, body: String) -> Response {
    failed(state, "init/error", &headers, &body)
}

async fn exit_error(state: State<Shared>, headers: HeaderMap, body: String) -> Response {
    failed(state, "exit/error", &headers, &body)
}

fn failed(State(shared): State<Shared>, call: &'static str, headers: &HeaderMap, body: &str) -> Response {
    if let Some(refusal) = shared.refusal(call, headers) {
        return refusal;
    }
    shared.lock().reports.push(Report {
        call,
        header: header(headers, "lambda-extension-function-error-type"),
        body: serde_json::from_str(body).unwrap_or_default(),
        answered: None,
    });
    (StatusCode::ACCEPTED, json!({ "status": "OK" }).to_string()).into_response()
}
