//! The engine behind the SDK, without a socket: requests are dispatched by their `X-Amz-Target`, on a blocking
//! thread, since SQLite blocks.

use std::fmt;
use std::path::Path;

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use dynoxide::{DynoxideError, NativeDatabase};
use serde::Serialize;
use serde::de::DeserializeOwned;

const UNKNOWN_OPERATION: &str = r#"{"__type":"com.amazon.coral.service#UnknownOperationException"}"#;

/// An HTTP client for the SDK that answers from the file.
pub(super) async fn open(path: &Path) -> Result<SharedHttpClient, String> {
    let path = path.to_str().ok_or("its path is not UTF-8")?.to_owned();
    let opened = tokio::task::spawn_blocking(move || NativeDatabase::new(&path)).await;
    let database = opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let connector = SharedHttpConnector::new(Engine(database));
    Ok(http_client_fn(move |_, _| connector.clone()))
}

struct Engine(NativeDatabase);

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl HttpConnector for Engine {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let database = self.0.clone();
        HttpConnectorFuture::new(async move {
            let answered = tokio::task::spawn_blocking(move || answer(&database, &request)).await;
            answered.map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

fn answer(database: &NativeDatabase, request: &HttpRequest) -> HttpResponse {
    let target = request.headers().get("x-amz-target").unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default();
    let body = request.body().bytes().unwrap_or_default();
    let (status, body) = match dispatch(database, operation, body) {
        Some(Ok(body)) => (200, body),
        Some(Err(error)) => (error.status_code(), error.to_json()),
        None => (400, UNKNOWN_OPERATION.to_owned()),
    };
    let status =
        StatusCode::try_from(status).unwrap_or_else(|_| StatusCode::from(http::StatusCode::BAD_GATEWAY));
    let mut response = HttpResponse::new(status, SdkBody::from(body));
    response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
    response
}

/// `None` where the engine does not know the operation, or nothing here asks for it.
fn dispatch(
    database: &NativeDatabase,
    operation: &str,
    body: &[u8],
) -> Option<Result<String, DynoxideError>> {
    Some(match operation {
        "CreateTable" => run(body, |request| database.create_table(request)),
        "DescribeTable" => run(body, |request| database.describe_table(request)),
        "UpdateTimeToLive" => run(body, |request| database.update_time_to_live(request)),
        "DescribeTimeToLive" => run(body, |request| database.describe_time_to_live(request)),
        "PutItem" => run(body, |request| database.put_item(request)),
        "GetItem" => run(body, |request| database.get_item(request)),
        "UpdateItem" => run(body, |request| database.update_item(request)),
        "DeleteItem" => run(body, |request| database.delete_item(request)),
        "Query" => run(body, |request| database.query(request)),
        "Scan" => run(body, |request| database.scan(request)),
        "BatchGetItem" => run(body, |request| database.batch_get_item(request)),
        "BatchWriteItem" => run(body, |request| database.batch_write_item(request)),
        "TransactWriteItems" => run(body, |request| database.transact_write_items(request)),
        "TransactGetItems" => run(body, |request| database.transact_get_items(request)),
        _ => return None,
    })
}

fn run<Q: DeserializeOwned, A: Serialize>(
    body: &[u8],
    operation: impl FnOnce(Q) -> Result<A, DynoxideError>,
) -> Result<String, DynoxideError> {
    let request = serde_json::from_slice(body)
        .map_err(|error| DynoxideError::SerializationException(error.to_string()))?;
    let answer = operation(request)?;
    serde_json::to_string(&answer).map_err(|error| DynoxideError::InternalServerError(error.to_string()))
}
