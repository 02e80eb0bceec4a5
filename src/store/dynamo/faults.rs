//! What local stores never do, played by a fake endpoint: throttling, lost answers, keys left unread, silence.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;

use super::*;
use crate::item::{Assignment, Condition, Value};
use crate::time::{Moment, Sleep};

/// Answers with a script, then never again.
#[derive(Clone, Debug, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    answers: VecDeque<(u16, String)>,
    requests: Vec<String>,
}

impl Script {
    fn of<const N: usize>(answers: [(u16, &str); N]) -> Self {
        let script = Self::default();
        script.state().answers = answers.map(|(status, body)| (status, body.to_owned())).into();
        script
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    fn store(&self) -> DynamoStore {
        let connector = SharedHttpConnector::new(self.clone());
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new("k", "s", None, None, "test"))
            .endpoint_url("http://fake.invalid")
            .http_client(http_client_fn(move |_, _| connector.clone()));
        DynamoStore::new(config, "clients", Arc::new(Stopped))
    }
}

impl HttpConnector for Script {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut state = self.state();
        let body = request.body().bytes().unwrap_or_default();
        state.requests.push(String::from_utf8_lossy(body).into_owned());
        let Some((status, body)) = state.answers.pop_front() else {
            return HttpConnectorFuture::new(std::future::pending());
        };
        let mut response =
            HttpResponse::new(StatusCode::try_from(status).expect("a status"), SdkBody::from(body));
        response.headers_mut().insert("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        HttpConnectorFuture::ready(Ok(response))
    }
}

/// Ten seconds ahead of the endpoint's `Date`; its sleeps end at once.
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(784_111_787_999)
    }
    fn moment(&self) -> Moment {
        Moment::default()
    }
    fn sleep(&self, _: Duration) -> Sleep {
        Box::pin(std::future::ready(()))
    }
}

const THROTTLED: (u16, &str) = (
    400,
    r#"{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"m"}"#,
);
const CRASHED: (u16, &str) = (500, r#"{"__type":"com.amazonaws.dynamodb.v20120810#InternalServerError"}"#);
const WRITTEN: (u16, &str) = (200, r#"{"ConsumedCapacity":{"TableName":"clients","CapacityUnits":1.5}}"#);

fn key(name: &str) -> Key {
    Key::Lease(ClientId::new(name).expect("a valid id"))
}

fn acquire() -> Change {
    let own = Value::S("me#1".into());
    Change::one(key("c"), Condition::Lacks("own"), Action::Update(vec![Assignment::Set("own", own)]))
}

#[tokio::test]
async fn every_throttled_attempt_is_counted_even_where_a_retry_succeeds() {
    let script = Script::of([THROTTLED, THROTTLED, WRITTEN]);
    let store = script.store();
    assert_eq!(store.apply(&acquire()).await, Ok(Applied::Committed));
    assert_eq!((store.vitals().throttles(), store.vitals().write_units()), (2, 1.5));

    let store = Script::of([THROTTLED, THROTTLED, THROTTLED]).store();
    assert!(matches!(store.apply(&acquire()).await, Err(StoreError::Throttled(_))));
    assert_eq!(store.vitals().throttles(), 3);
}

/// The first attempt was applied and its answer lost: the retry meets its own write, and the caller sees its nonce.
#[tokio::test]
async fn a_retry_that_meets_its_own_write_shows_it() {
    let lost = r#"{"__type":"x#ConditionalCheckFailedException","Item":{"PK":{"S":"p"},"own":{"S":"me#1"}}}"#;
    let script = Script::of([CRASHED, (400, lost)]);
    let mine = Item::default().with("own", Value::S("me#1".into()));
    assert_eq!(script.store().apply(&acquire()).await, Ok(Applied::Lost(vec![Some(mine)])));
    assert_eq!(script.requests().len(), 2);
}

#[tokio::test]
async fn a_server_that_fails_or_is_silent_leaves_it_unknown() {
    let failed = Script::of([CRASHED, CRASHED, CRASHED]).store().apply(&acquire()).await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    let (script, start) = (Script::of([]), tokio::time::Instant::now());
    let silent = script.store().apply(&acquire()).await;
    assert!(matches!(silent, Err(StoreError::Unavailable(_))), "{silent:?}");
    assert!(start.elapsed() <= OPERATION_TIMEOUT && script.requests().len() > 1, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_conflicting_transaction_is_a_conflict_and_not_a_lost_condition() {
    let conflict = r#"{"__type":"x#TransactionConflictException","message":"m"}"#;
    let outcome = Script::of([(400, conflict); 3]).store().apply(&acquire()).await;
    assert!(matches!(outcome, Err(StoreError::Conflict(_))), "{outcome:?}");
    let cancelled = r#"{"__type":"x#TransactionCanceledException","Message":"m","CancellationReasons":[
        {"Code":"ConditionalCheckFailed","Message":"m","Item":{"PK":{"S":"p"}}},{"Code":"TransactionConflict"}]}"#;
    let both = acquire().and(key("d"), Condition::Exists, Action::Delete);
    let outcome = Script::of([(400, cancelled); 3]).store().apply(&both).await;
    assert!(matches!(outcome, Err(StoreError::Conflict(_))), "{outcome:?}");
}

#[tokio::test]
async fn keys_left_unread_are_asked_for_again_and_not_for_ever() {
    let left = r#"{"Responses":{"clients":[{"PK":{"S":"CLIENT#a"},"SK":{"S":"LEASE"}}]},
        "UnprocessedKeys":{"clients":{"Keys":[{"PK":{"S":"CLIENT#b"},"SK":{"S":"LEASE"}}],"ConsistentRead":true}}}"#;
    let rest =
        r#"{"Responses":{"clients":[{"PK":{"S":"CLIENT#b"},"SK":{"S":"LEASE"}}]},"UnprocessedKeys":{}}"#;
    let script = Script::of([(200, left), (200, rest)]);
    let store = script.store();
    let found = store.load(&[key("a"), key("b")], View::Whole).await.expect("loads");
    assert_eq!(found.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), [key("a"), key("b")]);
    assert_eq!(store.vitals().throttles(), 1);
    let second = &script.requests()[1];
    assert!(second.contains("CLIENT#b") && !second.contains("CLIENT#a") && second.contains("ConsistentRead"));

    let endless = Script::of([(200, left); 10]).store().load(&[key("a")], View::Whole).await;
    assert!(matches!(endless, Err(StoreError::Throttled(_))), "{endless:?}");
}

#[tokio::test]
async fn the_servers_date_tells_how_far_our_clock_is_off() {
    let store = Script::of([WRITTEN]).store();
    assert_eq!(store.vitals().answered_at(), None);
    store.apply(&acquire()).await.expect("written");
    assert_eq!(store.vitals().answered_at(), Some(Stopped.now()));
    assert_eq!(store.vitals().skew_ms(&Stopped), 10_000);
}

#[tokio::test]
async fn no_error_shows_a_value() {
    let quoting =
        r#"{"__type":"com.amazon.coral.validate#ValidationException","message":"Value 'me#1' is bad"}"#;
    let error = Script::of([(400, quoting)]).store().apply(&acquire()).await.expect_err("refused");
    assert!(matches!(&error, StoreError::Refused(text) if !text.contains("me#1")), "{error}");
}
