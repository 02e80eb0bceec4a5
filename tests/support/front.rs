//! What stands before a service of AWS's and is not the network: who may call, how much it takes, and what time it thinks it is.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::http_client;

/// A request to DynamoDB, KMS, S3, Secrets Manager or Systems Manager.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Call {
    /// As in `PutItem`; empty for S3, whose operations are methods and paths.
    pub(crate) fn operation(&self) -> &str {
        self.header("x-amz-target").rsplit('.').next().unwrap_or_default()
    }

    /// Empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether it is charged write capacity.
    pub(crate) fn writes(&self) -> bool {
        ["PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems"].contains(&self.operation())
    }
}

/// An error of DynamoDB's ("Error handling with DynamoDB" in its developer guide).
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    status: u16,
    kind: &'static str,
    message: Cow<'static, str>,
}

impl Refusal {
    const fn new(status: u16, kind: &'static str) -> Self {
        Self { status, kind, message: Cow::Borrowed("refused by the test") }
    }

    /// The caller's role lacks a right, in AWS's words.
    pub(crate) fn of_access(message: String) -> Self {
        Self { message: message.into(), ..ACCESS_DENIED }
    }

    /// As DynamoDB and KMS say it, or S3 (Amazon S3 API Reference, "REST error responses").
    fn response(&self, by_s3: bool) -> Response {
        let Self { status, kind, message } = self;
        let (status, media, body) = if by_s3 {
            let body = format!("<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>");
            (403, "application/xml", body)
        } else {
            let body = serde_json::json!({ "__type": kind, "message": message });
            (*status, "application/x-amz-json-1.0", body.to_string())
        };
        let response = Response::builder().status(status).header("content-type", media);
        response.body(Body::from(body)).expect("a response")
    }
}

/// The table takes no more for now. The SDK tries again.
pub(crate) const THROTTLED: Refusal =
    Refusal::new(400, "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException");
/// The caller's role lacks a right.
pub(crate) const ACCESS_DENIED: Refusal = Refusal::new(400, "com.amazon.coral.service#AccessDeniedException");
/// The caller's credentials were good once.
pub(crate) const EXPIRED_CREDENTIALS: Refusal =
    Refusal::new(400, "com.amazon.coral.service#ExpiredTokenException");

type Rule = Arc<dyn Fn(&Call) -> Option<Refusal> + Send + Sync>;

/// Stands before a server, as DynamoDB Local: refuses what its rule says, passes on the rest, and shifts the `Date` of the answers. It
/// ends with this.
pub(crate) struct Front {
    url: String,
    ahead: Arc<AtomicI64>,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
struct Way {
    server: String,
    rule: Rule,
    ahead: Arc<AtomicI64>,
}

impl Front {
    /// Listens on a free port, in front of a server such as `http://127.0.0.1:8000`.
    ///
    /// # Panics
    /// When no port can be bound.
    pub(crate) async fn before(
        server: &str,
        rule: impl Fn(&Call) -> Option<Refusal> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let ahead = Arc::new(AtomicI64::new(0));
        let way = Way {
            server: server.trim_end_matches('/').to_owned(),
            rule: Arc::new(rule),
            ahead: Arc::clone(&ahead),
        };
        let app = Router::new().fallback(pass).with_state(way);
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { url, ahead, serving }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The server's clock is so many seconds ahead from now on.
    pub(crate) fn be_ahead(&self, seconds: i64) {
        self.ahead.store(seconds, Ordering::Relaxed);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn pass(State(way): State<Way>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 16 << 20).await.expect("a body");
    let call = Call { method: head.method, uri: head.uri, headers: head.headers, body };
    if let Some(refusal) = (way.rule)(&call) {
        return refusal.response(call.operation().is_empty());
    }
    let sent = http_client().request(call.method, format!("{}{}", way.server, call.uri));
    let Ok(answer) = sent.headers(call.headers).body(call.body).send().await else {
        return Response::builder().status(502).body(Body::empty()).expect("a response");
    };
    let mut response = Response::builder().status(answer.status());
    for (name, value) in
        answer.headers().iter().filter(|(name, _)| *name != "date" && *name != "transfer-encoding")
    {
        response = response.header(name, value);
    }
    let ahead = way.ahead.load(Ordering::Relaxed);
    let shift = Duration::from_secs(ahead.unsigned_abs());
    let now = SystemTime::now();
    let date = if ahead < 0 { now - shift } else { now + shift };
    let response = response.header("date", httpdate::fmt_http_date(date));
    response.body(Body::from(answer.bytes().await.unwrap_or_default())).expect("a response")
}
