//! Amazon DynamoDB Local as a child process: the referee for everything that the store promises.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use tokio::sync::OnceCell;

use super::oauth::fetch;
use super::{Process, free_port, part, wait_for};

/// A running DynamoDB Local with an empty memory.
pub(crate) struct DynamoLocal {
    process: Process,
    endpoint: String,
}

impl DynamoLocal {
    /// The DynamoDB Local that all tests of this binary share, started at first use. Starting takes many seconds on a
    /// loaded machine: tests keep apart by [`DynamoLocal::fresh_table_name`].
    ///
    /// # Panics
    /// As [`DynamoLocal::start`].
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<DynamoLocal> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Starts one of its own, for a test that stops or stalls it.
    ///
    /// # Panics
    /// When it is not installed or does not answer within 60 seconds.
    pub(crate) async fn start() -> Self {
        part(".parts/dynamodb-local/.complete");
        // Another process may take the port before this one binds it; then the program ends, and another port is due.
        for _ in 0..3 {
            if let Some(started) = Self::attempt().await {
                return started;
            }
        }
        panic!("DynamoDB Local ended at once, three times: does `java -version` say 17 or newer?");
    }

    async fn attempt() -> Option<Self> {
        let port = free_port().to_string();
        let endpoint = format!("http://127.0.0.1:{port}");
        let arguments = [
            "-Xmx256m",
            "-Djava.library.path=./DynamoDBLocal_lib",
            "-jar",
            "DynamoDBLocal.jar",
            "-inMemory",
            "-sharedDb",
            "-disableTelemetry",
            "-port",
            &port,
        ];
        let mut process = Process::start("java", arguments, |command| {
            command.current_dir(part(".parts/dynamodb-local"));
        })
        .await;
        let answers = wait_for(Duration::from_secs(60), "DynamoDB Local answers", async || {
            if process.has_ended() {
                return Some(false);
            }
            fetch(&endpoint).await.is_ok().then_some(true)
        })
        .await;
        answers.then_some(Self { process, endpoint })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The process, for its id and for signals.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// A client as an application would make it, with made-up credentials.
    pub(crate) fn client(&self) -> Client {
        let credentials = Credentials::new("test", "test", None, None, "tests");
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&self.endpoint)
            .credentials_provider(credentials)
            .build();
        Client::from_conf(config)
    }

    /// A name that no other test uses.
    pub(crate) fn fresh_table_name() -> String {
        format!("clients-{:016x}", rand::random::<u64>())
    }
}
