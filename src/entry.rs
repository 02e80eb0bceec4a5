//! Where the bytes of strangers come in, for the fuzz targets and the tests that play the stranger.
//!
//! Nothing in the program uses this module, and it decides nothing: each function is the door that production goes
//! through, without the socket or the table before it. Configuration and sealed values have public doors already.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::health::{self, Health};
use crate::provider::{HttpEndpoint, HttpSettings, TokenRequest};
use crate::reply::Reply;
use crate::time::Clock;

pub use crate::store::item::{Raw, decode as item_from_table, encode as item_to_table};

/// Reads a token endpoint's answer to this request: status, headers and body, up to what they amount to.
pub async fn token_response(
    answer: http::Response<Vec<u8>>,
    request: &TokenRequest,
    clock: Arc<dyn Clock>,
) -> Reply {
    let settings = HttpSettings { connect_timeout: request.timeout };
    HttpEndpoint::new(settings, clock).answer(answer.into(), request).await
}

/// Answers whatever comes on one connection to the health endpoints; `is_local` where this machine alone can reach them.
pub async fn http_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_local: bool,
    health: Arc<Health>,
) {
    health::answer_stream(stream, is_local, health).await;
}
