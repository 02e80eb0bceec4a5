//! The connections behind the health endpoints, and what is let through to them.
//!
//! Whoever reaches the port may be a stranger: connections are few, short, and answer one small question each. None waits
//! for another: where too many are open, the oldest goes, so that idle ones cannot keep a health check out.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use crate::client::is_this_machine;
use crate::time::Clock;

/// Connections at once.
const AT_ONCE: usize = 64;
/// A connection, from its first byte to the last of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A request's line and headers, in bytes.
const HEADER_BYTES: usize = 8192;
/// A request's headers, by number.
const HEADERS: usize = 64;
/// After a connection could not be accepted: descriptors may have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until it is dropped, and ends every connection then.
pub(super) async fn serve(listener: TcpListener, app: Router, clock: Arc<dyn Clock>) -> io::Result<()> {
    let app = guarded(app, listener.local_addr()?.ip().is_loopback());
    let mut open = Open::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => open.add(connection(stream, app.clone(), Arc::clone(&clock))),
            Err(_) => clock.sleep(PAUSE).await,
        }
    }
}

/// With a guard before it, who knows whether this machine alone can reach it.
pub(super) fn guarded(app: Router, is_local: bool) -> Router {
    app.layer(from_fn(move |request, next| admit(is_local, request, next)))
}

/// The connections that are open, the oldest first.
#[derive(Default)]
struct Open {
    /// Ends them when it is dropped.
    tasks: JoinSet<()>,
    by_age: VecDeque<AbortHandle>,
}

impl Open {
    fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.by_age.retain(|task| !task.is_finished());
        if self.by_age.len() >= AT_ONCE {
            self.by_age.pop_front().inspect(AbortHandle::abort);
        }
        self.by_age.push_back(self.tasks.spawn(connection));
    }
}

/// Answers one request, or gives up: whatever comes, it ends within [`PATIENCE`].
pub(super) async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    clock: Arc<dyn Clock>,
) {
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_headers(HEADERS).max_header_size(HEADER_BYTES);
    let answered = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::select! {
        // What went wrong is the other side's affair.
        _ = answered => {}
        () = clock.sleep(PATIENCE) => {}
    }
}

/// Only questions, without a body; and on loopback only those that were meant for this machine.
async fn admit(is_local: bool, request: Request, next: Next) -> Response {
    if is_local && !is_meant_for_this_machine(&request) {
        return refusal(StatusCode::MISDIRECTED_REQUEST, "this is another host\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
    }
    if !request.body().is_end_stream() {
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, "no body is taken\n");
    }
    next.run(request).await
}

fn refusal(status: StatusCode, why: &'static str) -> Response {
    (status, why).into_response()
}

/// A page of somebody else's may have its own name lead here, and then a browser of this machine asks for it (DNS
/// rebinding). The name still stands in the request.
fn is_meant_for_this_machine(request: &Request) -> bool {
    let named = request.headers().get_all(HOST).iter().map(|host| host.to_str().ok()?.parse().ok());
    let target = request.uri().authority().cloned().map(Some);
    named.chain(target).all(|host| host.is_some_and(|host| is_this_machine(&host)))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn a_request_for_another_host_is_told_from_one_for_this_machine() {
        let request = |target: &str, hosts: &[&str]| {
            let request = Request::builder().uri(target);
            let request = hosts.iter().fold(request, |request, host| request.header(HOST, *host));
            is_meant_for_this_machine(&request.body(Body::empty()).expect("a request"))
        };
        for own in ["127.0.0.1:9464", "127.0.0.2", "[::1]:9464", "localhost:1", "LocalHost"] {
            assert!(request("/healthz", &[own]), "{own}");
        }
        for foreign in
            ["acme.test:9464", "localhost.acme.test", "10.0.0.1", "0.0.0.0", "127.0.0.1@acme.test", "", " "]
        {
            assert!(!request("/healthz", &[foreign]), "{foreign}");
        }
        assert!(request("/healthz", &[]), "HTTP/1.0 names no host");
        assert!(!request("http://acme.test/healthz", &["127.0.0.1"]));
        assert!(!request("/healthz", &["127.0.0.1", "acme.test"]));
    }
}
