//! What an extension has to do with AWS Lambda: it says that it is there, waits for the next event, and says what went wrong.
//!
//! "Using the Lambda Extensions API to create extensions" in the AWS Lambda Developer Guide. The API is plain http on the
//! sandbox's own loopback. Whoever has answered to an event by asking for the next may be frozen with the whole sandbox, for
//! hours: `next` has no time limit, and nothing may depend on running in between.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use crate::time::{Moment, Timestamp, has_passed};

/// For an answer that does not wait for an event. The whole of a function's beginning has ten seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes: an event does not hold what the function is invoked with.
const LONGEST_ANSWER: usize = 64 * 1024;
/// The longest text of an answer that is told, in characters.
const LONGEST_TEXT: usize = 200;
/// Between two events, by either clock: whoever was invoked again sooner was hardly frozen.
const THAW: Duration = Duration::from_secs(5);

const NAME: HeaderName = HeaderName::from_static("lambda-extension-name");
const IDENTIFIER: HeaderName = HeaderName::from_static("lambda-extension-identifier");
const ERROR_TYPE: HeaderName = HeaderName::from_static("lambda-extension-function-error-type");

/// What went wrong between an extension and Lambda.
#[derive(Debug, thiserror::Error)]
pub enum LambdaError {
    /// The address of the environment is none.
    #[error("AWS_LAMBDA_RUNTIME_API: `{0}` is not a host and a port")]
    Address(String),
    /// The name cannot be a file's in `/opt/extensions`.
    #[error("`{0}` is no name of an extension")]
    Name(String),
    /// No HTTP client could be made.
    #[error("setting up HTTP")]
    Client(#[source] reqwest::Error),
    /// There was no answer.
    #[error("Lambda's Extensions API gives no answer to `{0}`")]
    Silent(&'static str, #[source] reqwest::Error),
    /// It refused.
    #[error("Lambda's Extensions API refuses `{call}` with HTTP {status}: {text}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// The status.
        status: u16,
        /// What it said.
        text: String,
    },
    /// Its answer is none that is documented.
    #[error("an answer of Lambda's Extensions API to `{0}` is not understood")]
    Malformed(&'static str),
}

/// Why Lambda calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The function is invoked.
    Invoke,
    /// The sandbox ends.
    Shutdown {
        /// `spindown`, `timeout` or `failure`.
        reason: String,
        /// By then everything has to be over.
        deadline: Timestamp,
    },
}

/// The Extensions API, before it knows us.
#[derive(Debug)]
pub struct Api {
    client: reqwest::Client,
    base: Url,
}

/// The Extensions API, as whom it has registered.
#[derive(Debug)]
pub struct Extension {
    api: Api,
    identifier: HeaderValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    event_type: String,
    #[serde(default)]
    deadline_ms: i64,
    #[serde(default)]
    shutdown_reason: String,
}

impl Api {
    /// At the host and port of `AWS_LAMBDA_RUNTIME_API`. No request is made yet.
    ///
    /// # Errors
    /// Where that is no address, or HTTP cannot be set up.
    pub fn at(address: &str) -> Result<Self, LambdaError> {
        let wrong = || LambdaError::Address(address.to_owned());
        let authority: Authority = address.parse().map_err(|_| wrong())?;
        authority.port_u16().ok_or_else(wrong)?;
        let base = Url::parse(&format!("http://{authority}/2020-01-01/extension/")).map_err(|_| wrong())?;
        let client = reqwest::Client::builder()
            // Neither a proxy of the environment nor the platform's certificates stand between a sandbox and its API.
            .no_proxy()
            .tls_certs_only([])
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            // A connection that was kept through a freeze may be none any more.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(LambdaError::Client)?;
        Ok(Self { client, base })
    }

    /// Registers for both events. `name` is the file's in `/opt/extensions`; from now on Lambda waits for us.
    ///
    /// # Errors
    /// Where Lambda refuses, or gives no answer.
    pub async fn register(self, name: &str) -> Result<Extension, LambdaError> {
        const CALL: &str = "register";
        let name = HeaderValue::from_str(name).map_err(|_| LambdaError::Name(name.to_owned()))?;
        let body = json!({ "events": ["INVOKE", "SHUTDOWN"] }).to_string();
        let request = self.client.post(self.place(CALL)).timeout(PATIENCE).header(NAME, name).body(body);
        let (headers, _) = exchange(CALL, request).await?;
        let identifier = headers.get(IDENTIFIER).cloned().ok_or(LambdaError::Malformed(CALL))?;
        Ok(Extension { api: self, identifier })
    }

    fn place(&self, call: &str) -> Url {
        self.base.join(call).expect("every call is a path")
    }
}

impl Extension {
    /// The next event, whenever it comes. Asked once more where the connection broke.
    ///
    /// # Errors
    /// Where Lambda refuses, or cannot be reached.
    pub async fn next(&self) -> Result<Event, LambdaError> {
        match self.ask_for_next().await {
            Err(LambdaError::Silent(..)) => self.ask_for_next().await,
            answer => answer,
        }
    }

    async fn ask_for_next(&self) -> Result<Event, LambdaError> {
        const CALL: &str = "event/next";
        let request = self.api.client.get(self.api.place(CALL)).header(IDENTIFIER, &self.identifier);
        let (_, body) = exchange(CALL, request).await?;
        event(&body).ok_or(LambdaError::Malformed(CALL))
    }

    /// Says that the beginning has failed: the sandbox is given up. `kind` is of the form `Extension.Reason`.
    ///
    /// # Errors
    /// Where Lambda refuses, or gives no answer.
    pub async fn fail_init(&self, kind: &'static str, message: &str) -> Result<(), LambdaError> {
        self.fail("init/error", kind, message).await
    }

    /// Says why it exits.
    ///
    /// # Errors
    /// Where Lambda refuses, or gives no answer.
    pub async fn fail_exit(&self, kind: &'static str, message: &str) -> Result<(), LambdaError> {
        self.fail("exit/error", kind, message).await
    }

    async fn fail(&self, call: &'static str, kind: &'static str, message: &str) -> Result<(), LambdaError> {
        let body = json!({ "errorMessage": message, "errorType": kind, "stackTrace": [] }).to_string();
        let request = self.api.client.post(self.api.place(call)).timeout(PATIENCE);
        let request = request.header(IDENTIFIER, &self.identifier);
        let request = request.header(ERROR_TYPE, HeaderValue::from_static(kind));
        exchange(call, request.body(body)).await.map(drop)
    }
}

/// Whether the sandbox may have been frozen in between: by steady time, or by the wall clock alone where the machine
/// stood still together with its steady clock.
pub fn was_frozen(before: (Moment, Timestamp), now: (Moment, Timestamp)) -> bool {
    has_passed(THAW, before, now)
}

async fn exchange(call: &'static str, request: RequestBuilder) -> Result<(HeaderMap, Vec<u8>), LambdaError> {
    let silent = |error| LambdaError::Silent(call, error);
    let mut response: Response = request.send().await.map_err(silent)?;
    let (status, headers, mut body) = (response.status(), response.headers().clone(), Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(silent)? {
        if body.len() + chunk.len() > LONGEST_ANSWER {
            return Err(LambdaError::Malformed(call));
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body);
        let text = text.chars().filter(|c| !c.is_control()).take(LONGEST_TEXT).collect();
        return Err(LambdaError::Refused { call, status: status.as_u16(), text });
    }
    Ok((headers, body))
}

fn event(body: &[u8]) -> Option<Event> {
    let told: Told = serde_json::from_slice(body).ok()?;
    match told.event_type.as_str() {
        "INVOKE" => Some(Event::Invoke),
        "SHUTDOWN" => Some(Event::Shutdown {
            reason: told.shutdown_reason,
            deadline: Timestamp::from_millis(told.deadline_ms),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_the_guide_shows_them() {
        let invoke =
            br#"{"eventType":"INVOKE","deadlineMs":676051,"requestId":"3da1f2dc-3222-475e-9205-e2e6c6318895",
            "invokedFunctionArn":"arn:aws:lambda:us-east-1:123456789012:function:ExtensionTest",
            "tracing":{"type":"X-Amzn-Trace-Id","value":"Root=1-5f35ae12"}}"#;
        assert_eq!(event(invoke), Some(Event::Invoke));
        let shutdown = br#"{"eventType":"SHUTDOWN","shutdownReason":"spindown","deadlineMs":1723}"#;
        let deadline = Timestamp::from_millis(1723);
        assert_eq!(event(shutdown), Some(Event::Shutdown { reason: "spindown".into(), deadline }));
        for none in [&b"{}"[..], b"", br#"{"eventType":"OTHER"}"#, b"[]"] {
            assert_eq!(event(none), None);
        }
    }

    #[test]
    fn a_freeze_shows_on_either_clock() {
        let at = |steady: u64, wall: i64| {
            (Moment::from_origin(Duration::from_secs(steady)), Timestamp::from_secs(wall))
        };
        let before = at(100, 1000);
        for frozen in [at(105, 1005), at(100, 1005), at(105, 1000), at(101, 9000)] {
            assert!(was_frozen(before, frozen), "{frozen:?}");
        }
        for awake in [at(104, 1004), at(100, 1000), at(101, 900)] {
            assert!(!was_frozen(before, awake), "{awake:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        assert!(Api::at("127.0.0.1:9001").is_ok());
        for wrong in ["", "a b", "127.0.0.1:x"] {
            assert!(Api::at(wrong).is_err(), "{wrong}");
        }
    }
}
