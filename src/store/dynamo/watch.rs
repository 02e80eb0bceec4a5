//! What every answer tells beside its content: noted by an SDK interceptor, so that retried attempts count too.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    AfterDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::{ConfigBag, Storable, StoreReplace};

use super::super::Vitals;
use super::error::is_throttle;
use crate::time::{Clock, Moment, Timestamp, has_passed};

/// An answer that took longer, by either clock, tells a time that is over: the machine stood still meanwhile. Attempts
/// are given up sooner.
const CURRENT: Duration = Duration::from_secs(10);

pub(super) struct Watch {
    vitals: Arc<Vitals>,
    clock: Arc<dyn Clock>,
}

impl Watch {
    pub(super) fn new(vitals: Arc<Vitals>, clock: Arc<dyn Clock>) -> Self {
        Self { vitals, clock }
    }
}

/// When an attempt began, by both clocks.
#[derive(Debug)]
struct Begun(Moment, Timestamp);

impl Storable for Begun {
    type Storer = StoreReplace<Self>;
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(Begun(self.clock.moment(), self.clock.now()));
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let now = (self.clock.moment(), self.clock.now());
        let is_current = config.load::<Begun>().is_none_or(|begun| is_current(begun, now));
        self.vitals.answered(self.clock.as_ref(), date(response).filter(|_| is_current));
        if throttles(response) {
            self.vitals.throttled();
        }
        Ok(())
    }
}

fn is_current(begun: &Begun, now: (Moment, Timestamp)) -> bool {
    !has_passed(CURRENT, (begun.0, begun.1), now)
}

/// RFC 9110 section 6.6.1.
fn date(response: &HttpResponse) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(response.headers().get("date")?).ok()?;
    Some(Timestamp::EPOCH.plus(date.duration_since(UNIX_EPOCH).ok()?))
}

/// The operation's own error type is erased here; the body names it, as `prefix#Name`.
fn throttles(response: &HttpResponse) -> bool {
    if response.status().is_success() {
        return false;
    }
    let body =
        response.body().bytes().and_then(|body| serde_json::from_slice::<serde_json::Value>(body).ok());
    let name = body.as_ref().and_then(|body| body.get("__type")?.as_str());
    name.is_some_and(|name| is_throttle(name.rsplit('#').next().unwrap_or(name)))
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::body::SdkBody;

    use super::*;

    fn response(status: u16, body: &'static str) -> HttpResponse {
        let status = StatusCode::try_from(status).expect("a status");
        let mut response = HttpResponse::new(status, SdkBody::from(body));
        response.headers_mut().insert("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        response
    }

    #[test]
    fn a_throttle_is_known_by_its_name() {
        let throttled =
            r#"{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"}"#;
        assert!(throttles(&response(400, throttled)));
        assert!(throttles(&response(400, r#"{"__type":"ThrottlingException"}"#)));
        assert!(!throttles(&response(400, r#"{"__type":"x#ConditionalCheckFailedException"}"#)));
        assert!(!throttles(&response(500, "<html>")));
    }

    #[test]
    fn an_answer_from_before_a_freeze_tells_no_time() {
        let at = |steady: u64, wall: i64| {
            (Moment::from_origin(Duration::from_secs(steady)), Timestamp::from_secs(wall))
        };
        let begun = Begun(at(100, 1000).0, at(100, 1000).1);
        assert!(is_current(&begun, at(102, 1002)) && is_current(&begun, at(101, 900)));
        assert!(!is_current(&begun, at(101, 4600)) && !is_current(&begun, at(3700, 1001)));
    }

    #[test]
    fn the_servers_date_is_read() {
        assert_eq!(date(&response(200, "{}")), Some(Timestamp::from_secs(784_111_777)));
    }
}
