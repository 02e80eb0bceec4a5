//! The two addresses at which the agent of Amazon ECS answers a task.
//!
//! "Task metadata endpoint version 4" and "Task scale-in protection endpoint" of the Amazon ECS Developer Guide. Both are
//! plain http on the task's own host. The second calls ECS for the task, with the task's role: `ecs:UpdateTaskProtection`.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::Guard;
use crate::plan::protection::{Request, TERM};

/// The largest answer that is read, in bytes: metadata lists every container of the task.
const LONGEST_ANSWER: usize = 256 * 1024;
/// The longest text of an answer that is logged, in characters.
const LONGEST_TEXT: usize = 300;

/// How long the agent may take. It asks ECS itself, and tries that again.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For an answer about the task.
    pub metadata: Duration,
    /// For an answer about its protection.
    pub protection: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { metadata: Duration::from_secs(2), protection: Duration::from_secs(10) }
    }
}

/// Why the agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The address of the environment is none.
    #[error("`{0}` is not an http address")]
    Address(String),
    /// No HTTP client could be made.
    #[error("setting up HTTP")]
    Client(#[source] reqwest::Error),
    /// It gave no answer, or none in time.
    #[error("no answer")]
    Silent(#[source] reqwest::Error),
    /// It answered with a status that is none of success.
    #[error("it answers with HTTP {0}")]
    Status(u16),
    /// It says why not.
    #[error("{0}")]
    Refused(String),
    /// Its answer is none that is documented.
    #[error("its answer is not understood: {0}")]
    Malformed(&'static str),
}

/// The agent, as this task reaches it.
#[derive(Debug)]
pub struct Agent {
    client: reqwest::Client,
    metadata: Option<Url>,
    protection: Option<Url>,
    patience: Patience,
}

/// This task, as ECS knows it. An agent of an older version leaves some of it out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Identity {
    /// The task's ARN.
    #[serde(rename = "TaskARN")]
    pub task: String,
    /// The family of its task definition.
    pub family: Option<String>,
    /// The revision of its task definition.
    pub revision: Option<String>,
    /// Where it runs.
    pub availability_zone: Option<String>,
    /// On Fargate: how good its clock is.
    pub clock_drift: Option<ClockDrift>,
}

/// How far the task's clock may be off, as its host sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClockDrift {
    /// In milliseconds.
    pub clock_error_bound: Option<f64>,
    /// When that was found, in RFC 3339.
    pub reference_timestamp: Option<String>,
    /// `SYNCHRONIZED` or `NOT_SYNCHRONIZED`.
    pub clock_synchronization_status: Option<String>,
}

impl Identity {
    /// The last part of the ARN.
    pub fn id(&self) -> &str {
        self.task.rsplit('/').next().unwrap_or_default()
    }
}

impl ClockDrift {
    /// Whether the host's clock follows a better one; none where the agent does not say.
    pub fn is_synchronized(&self) -> Option<bool> {
        self.clock_synchronization_status.as_deref().map(|status| status == "SYNCHRONIZED")
    }
}

impl Agent {
    /// Reached at what the environment says: `ECS_CONTAINER_METADATA_URI_V4` and `ECS_AGENT_URI`. No request is made yet.
    ///
    /// # Errors
    /// Where an address is none, or HTTP cannot be set up.
    pub fn at(metadata: Option<&str>, agent: Option<&str>, patience: Patience) -> Result<Self, AgentError> {
        let client = reqwest::Client::builder()
            // Neither a proxy of the environment nor the platform's certificates stand between a task and its agent.
            .no_proxy()
            .tls_certs_only([])
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .map_err(AgentError::Client)?;
        let metadata = metadata.map(|uri| below(uri, "task")).transpose()?;
        let protection = agent.map(|uri| below(uri, "task-protection/v1/state")).transpose()?;
        Ok(Self { client, metadata, protection, patience })
    }

    /// Whether this agent says who the task is.
    pub fn identifies(&self) -> bool {
        self.metadata.is_some()
    }

    /// Whether this agent protects the task.
    pub fn protects(&self) -> bool {
        self.protection.is_some()
    }

    /// Who this task is.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn identity(&self) -> Result<Identity, AgentError> {
        let address = self.metadata.clone().ok_or(AgentError::Malformed("there is no metadata address"))?;
        let (status, body) = self.exchange(self.client.get(address).timeout(self.patience.metadata)).await?;
        if !status.is_success() {
            return Err(AgentError::Status(status.as_u16()));
        }
        serde_json::from_slice(&body).map_err(|_| AgentError::Malformed("it is no description of a task"))
    }

    async fn exchange(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<(http::StatusCode, Vec<u8>), AgentError> {
        let mut response = request.send().await.map_err(AgentError::Silent)?;
        let (status, mut body) = (response.status(), Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(AgentError::Silent)? {
            if body.len() + chunk.len() > LONGEST_ANSWER {
                return Err(AgentError::Malformed("it is endless"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, body))
    }
}

impl Guard for Agent {
    async fn ask(&self, request: Request) -> Result<(), AgentError> {
        let address =
            self.protection.clone().ok_or(AgentError::Malformed("there is no protection address"))?;
        let wanted = request == Request::Protect;
        let mut body = serde_json::json!({ "ProtectionEnabled": wanted });
        if wanted {
            body["ExpiresInMinutes"] = (TERM.as_secs() / 60).into();
        }
        let put = self.client.put(address).timeout(self.patience.protection);
        let put = put.header(http::header::CONTENT_TYPE, "application/json").body(body.to_string());
        let (status, body) = self.exchange(put).await?;
        judge(status, &body, wanted)
    }
}

/// `{"protection": {...}}` where it was done. A failure is told in the body, with the status 200 as well.
fn judge(status: http::StatusCode, body: &[u8], wanted: bool) -> Result<(), AgentError> {
    let answer = serde_json::from_slice::<Answer>(body).unwrap_or_default();
    if let Some(failure) = answer.failure {
        return Err(refused(failure.reason, failure.detail));
    }
    if let Some(error) = answer.error {
        return Err(refused(error.code, error.message));
    }
    if !status.is_success() {
        return Err(AgentError::Status(status.as_u16()));
    }
    match answer.protection.and_then(|protection| protection.protection_enabled) {
        Some(enabled) if enabled == wanted => Ok(()),
        Some(_) => Err(AgentError::Malformed("it did not change the protection")),
        None => Err(AgentError::Malformed("it does not say whether the task is protected")),
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    protection: Option<Enabled>,
    failure: Option<Failure>,
    error: Option<Fault>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Enabled {
    protection_enabled: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Failure {
    reason: Option<String>,
    detail: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Fault {
    code: Option<String>,
    message: Option<String>,
}

fn refused(code: Option<String>, more: Option<String>) -> AgentError {
    let text = match (code, more) {
        (Some(code), Some(more)) => format!("{code}: {more}"),
        (Some(text), None) | (None, Some(text)) => text,
        (None, None) => "it refuses, and does not say why".to_owned(),
    };
    let printable = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    AgentError::Refused(printable.take(LONGEST_TEXT).collect())
}

/// The environment names an address without a slash at its end, as in `http://169.254.170.2/v4/0123`.
fn below(uri: &str, path: &str) -> Result<Url, AgentError> {
    let base = Url::parse(uri).ok().filter(|base| base.scheme() == "http" && base.has_host());
    let url =
        base.and_then(|base| Url::parse(&format!("{}/{path}", base.as_str().trim_end_matches('/'))).ok());
    url.ok_or_else(|| AgentError::Address(uri.chars().take(LONGEST_TEXT).collect()))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn an_answer_of_the_documentation_is_read_whole() {
        // From "Amazon ECS task metadata V4 JSON response for tasks on Fargate", shortened.
        let body = r#"{
            "Cluster": "arn:aws:ecs:us-east-1:123456789012:cluster/clusterName",
            "TaskARN": "arn:aws:ecs:us-east-1:123456789012:task/MyEmptyCluster/bfa2636268144d039771334145e490c5",
            "Family": "sample-fargate", "Revision": "5", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
            "Limits": { "CPU": 0.25, "Memory": 512 }, "AvailabilityZone": "us-east-1d", "Containers": [],
            "LaunchType": "FARGATE",
            "ClockDrift": {
                "ClockErrorBound": 0.5458234999999999, "ReferenceTimestamp": "2021-09-07T16:57:44Z",
                "ClockSynchronizationStatus": "SYNCHRONIZED"
            }
        }"#;
        let identity: Identity = serde_json::from_str(body).expect("it is understood");
        assert_eq!(identity.id(), "bfa2636268144d039771334145e490c5");
        assert_eq!(
            (identity.family.as_deref(), identity.revision.as_deref()),
            (Some("sample-fargate"), Some("5"))
        );
        assert_eq!(identity.availability_zone.as_deref(), Some("us-east-1d"));
        let drift = identity.clock_drift.expect("Fargate tells");
        assert!(drift.clock_error_bound.is_some_and(|bound| (0.5..0.6).contains(&bound)));
        assert_eq!(drift.is_synchronized(), Some(true));
    }

    #[test]
    fn what_an_agent_leaves_out_is_not_missed() {
        let identity: Identity =
            serde_json::from_str(r#"{"TaskARN": "arn:aws:ecs:x:1:task/c/7"}"#).expect("an ARN");
        assert_eq!((identity.id(), &identity.clock_drift), ("7", &None));
        assert!(serde_json::from_str::<Identity>(r#"{"Family": "x"}"#).is_err(), "a task has an ARN");
    }

    #[test]
    fn only_what_says_that_it_was_done_was_done() {
        let done = r#"{"protection": {"ExpirationDate": "2022-10-06T02:29:16Z", "ProtectionEnabled": true, "TaskArn": "a"}}"#;
        let judged = |status: u16, body: &str, wanted| {
            let status = StatusCode::from_u16(status).expect("a status");
            judge(status, body.as_bytes(), wanted).map_err(|error| error.to_string())
        };
        assert_eq!(judged(200, done, true), Ok(()));
        for (status, body, why) in [
            (
                200,
                r#"{"failure": {"Arn": "a", "Detail": null, "Reason": "TASK_NOT_VALID"}}"#,
                "TASK_NOT_VALID",
            ),
            (200, r#"{"failure": {}}"#, "does not say why"),
            (
                400,
                r#"{"requestID": "1", "error": {"Code": "AccessDeniedException", "Message": "no"}}"#,
                "AccessDeniedException: no",
            ),
            (
                429,
                r#"{"error": {"Code": "ThrottlingException", "Message": "Rate\nexceeded"}}"#,
                "Rate exceeded",
            ),
            (429, "slow down", "HTTP 429"),
            (500, "", "HTTP 500"),
            (500, done, "HTTP 500"),
            (200, "", "not understood"),
            (200, "<html>", "not understood"),
            (200, "[]", "not understood"),
            (200, r#"{"protection": null}"#, "not understood"),
            (200, r#"{"protection": {"ProtectionEnabled": false}}"#, "did not change"),
        ] {
            let error = judged(status, body, true).expect_err(body);
            assert!(error.contains(why), "{status} {body}: {error}");
        }
    }

    #[test]
    fn addresses_are_those_of_the_documentation_and_nothing_else_is_taken() {
        let url = |uri| below(uri, "task").map(|url| url.to_string()).ok();
        assert_eq!(
            url("http://169.254.170.2/v4/01-23"),
            Some("http://169.254.170.2/v4/01-23/task".to_owned())
        );
        assert_eq!(url("http://169.254.170.2/api/01/"), Some("http://169.254.170.2/api/01/task".to_owned()));
        for none in ["", "169.254.170.2/v4", "https://169.254.170.2", "file:///etc/passwd", "http://"] {
            assert_eq!(url(none), None, "{none}");
        }
    }
}
