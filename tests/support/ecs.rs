//! The agent of Amazon ECS as a task meets it: who the task is, and its protection from scale-in.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, put};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The ARN of the task.
pub(crate) const TASK: &str = "arn:aws:ecs:eu-central-1:111122223333:task/fleet/1234567890abcdef0";

/// How the agent answers.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mood {
    /// As it is documented.
    #[default]
    Well,
    /// With this status and body.
    With(u16, String),
    /// Not at all.
    Silent,
}

/// Listens until it is dropped.
pub(crate) struct EcsAgent {
    url: String,
    state: Arc<Mutex<Agent>>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Agent {
    metadata: Mood,
    protection: Mood,
    identified: usize,
    asked: Vec<Value>,
}

type Shared = State<Arc<Mutex<Agent>>>;
type Answer = (StatusCode, String);

impl EcsAgent {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let state = Arc::<Mutex<Agent>>::default();
        let app = Router::new()
            .route("/v4/0123/task", get(metadata))
            .route("/api/0123/task-protection/v1/state", put(protection))
            .with_state(Arc::clone(&state));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { url, state, serving }
    }

    /// What the environment of a task has.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [("ECS_CONTAINER_METADATA_URI_V4", self.metadata_uri()), ("ECS_AGENT_URI", self.agent_uri())]
    }

    pub(crate) fn metadata_uri(&self) -> String {
        format!("{}/v4/0123", self.url)
    }

    pub(crate) fn agent_uri(&self) -> String {
        format!("{}/api/0123", self.url)
    }

    pub(crate) fn answer_metadata(&self, mood: Mood) {
        self.state().metadata = mood;
    }

    pub(crate) fn answer_protection(&self, mood: Mood) {
        self.state().protection = mood;
    }

    /// How often it was asked who the task is.
    pub(crate) fn identified(&self) -> usize {
        self.state().identified
    }

    /// The bodies of the requests about protection.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.state().asked.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Agent> {
        lock(&self.state)
    }
}

impl Drop for EcsAgent {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock(state: &Mutex<Agent>) -> std::sync::MutexGuard<'_, Agent> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn metadata(State(state): Shared) -> Answer {
    let mood = {
        let mut state = lock(&state);
        state.identified += 1;
        state.metadata.clone()
    };
    let task = json!({
        "Cluster": "fleet", "TaskARN": TASK, "Family": "perennial", "Revision": "7", "AvailabilityZone": "eu-central-1b",
        "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING", "Containers": [], "LaunchType": "FARGATE",
        "ClockDrift": {
            "ClockErrorBound": 0.5458, "ReferenceTimestamp": "2026-01-31T12:00:00Z",
            "ClockSynchronizationStatus": "SYNCHRONIZED",
        },
    });
    answer(mood, task).await
}

async fn protection(State(state): Shared, body: String) -> Answer {
    let body: Value = serde_json::from_str(&body).unwrap_or(Value::String(body));
    let mood = {
        let mut state = lock(&state);
        state.asked.push(body.clone());
        state.protection.clone()
    };
    let enabled = body["ProtectionEnabled"].as_bool();
    let expires = enabled.filter(|enabled| *enabled).map(|_| "2026-01-31T12:20:00Z");
    let done = json!({
        "protection": { "ExpirationDate": expires, "ProtectionEnabled": enabled, "TaskArn": TASK },
    });
    answer(mood, done).await
}

async fn answer(mood: Mood, well: Value) -> Answer {
    match mood {
        Mood::Well => (StatusCode::OK, well.to_string()),
        Mood::With(status, body) => (StatusCode::from_u16(status).expect("a status"), body),
        Mood::Silent => std::future::pending().await,
    }
}
