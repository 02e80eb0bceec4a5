//! A server whose clock is wrong: it passes requests on, and shifts the `Date` of the answers.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Stands before a server such as DynamoDB Local. It ends with this.
pub(crate) struct DatedProxy {
    url: String,
    ahead: Arc<AtomicI64>,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
struct Way {
    server: String,
    client: reqwest::Client,
    ahead: Arc<AtomicI64>,
}

impl DatedProxy {
    /// Listens on a free port, in front of a server such as `http://127.0.0.1:8000`.
    ///
    /// # Panics
    /// When no port can be bound.
    pub(crate) async fn before(server: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let ahead = Arc::new(AtomicI64::new(0));
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let way = Way { server: server.trim_end_matches('/').to_owned(), client, ahead: Arc::clone(&ahead) };
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

impl Drop for DatedProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn pass(State(way): State<Way>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 16 << 20).await.expect("a body");
    let sent = way.client.request(head.method, format!("{}{}", way.server, head.uri));
    let answer = match sent.headers(head.headers).body(body).send().await {
        Ok(answer) => answer,
        Err(_) => return Response::builder().status(502).body(Body::empty()).expect("a response"),
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
