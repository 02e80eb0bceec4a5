//! The reader that customers have: `tests/parts/read-token.mjs` with AWS's own SDK.

use std::process::Command;

use serde::Deserialize;

use super::part;

/// What a Node.js reader gets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ReaderToken {
    pub(crate) access_token: String,
    /// Seconds since the epoch.
    pub(crate) expires_at: u64,
}

/// Reads a client's token; `None` where there is none.
///
/// # Panics
/// When the reader is not installed or fails, with what it wrote.
pub(crate) async fn node_reader(endpoint: &str, table: &str, id: &str) -> Option<ReaderToken> {
    part("tests/parts/node_modules/@aws-sdk/client-dynamodb");
    let mut command = Command::new("node");
    command.arg(part("tests/parts/read-token.mjs")).args([endpoint, table, id]);
    command.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]);
    let run = tokio::task::spawn_blocking(move || command.output()).await.expect("the task did not panic");
    let output = run.expect("tests need `node` 20 or newer: see `scripts/parts.sh`");
    assert!(output.status.success(), "the reader failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the reader prints JSON")
}
