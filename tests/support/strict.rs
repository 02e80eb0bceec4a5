//! Our strict provider, `examples/strict-provider.rs`, as a child process.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use super::oauth::{Auth, Reply, fetch, post_form, post_json, token_request, with_query};
use super::{Process, root};

/// A running strict provider.
pub(crate) struct StrictProvider {
    process: Process,
    url: String,
}

/// A fresh grant.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Grant {
    pub(crate) refresh_token: String,
    pub(crate) access_token: String,
    /// Seconds.
    pub(crate) expires_in: u64,
    pub(crate) scope: String,
}

/// What the provider knows of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Standing {
    pub(crate) known: bool,
    pub(crate) live: bool,
    pub(crate) revoked: bool,
}

/// The provider's counts.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Stats {
    pub(crate) token_requests: u64,
    pub(crate) granted: u64,
    pub(crate) refused: u64,
    /// Spent refresh tokens that were presented again: zero for a correct client.
    pub(crate) double_redemptions: u64,
    /// Spent refresh tokens that were presented again within `--grace-secs`, and answered.
    pub(crate) grace_replays: u64,
    pub(crate) faults_met: u64,
    pub(crate) clients: u64,
    /// Clients that have a grant that is not revoked.
    pub(crate) live_clients: u64,
    pub(crate) families: u64,
    pub(crate) families_live: u64,
    pub(crate) families_revoked: u64,
    pub(crate) refused_by_error: BTreeMap<String, u64>,
    pub(crate) by_client: BTreeMap<String, ClientStats>,
}

/// The provider's counts for one client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ClientStats {
    pub(crate) token_requests: u64,
    pub(crate) granted: u64,
    pub(crate) refused: u64,
    pub(crate) double_redemptions: u64,
    pub(crate) grace_replays: u64,
}

impl StrictProvider {
    /// Starts a provider on a free port. `arguments` are its command line, such as `["--lifetime-secs", "30"]`.
    ///
    /// # Panics
    /// When it cannot be built or does not come up within 20 seconds.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let mut process = Process::start(example("strict-provider").await, arguments, |_| {}).await;
        let url = process.ready(Duration::from_secs(20)).await;
        Self { process, url }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn token_url(&self) -> String {
        format!("{}/token", self.url)
    }

    /// The process, for its id and for signals.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// The process, to read its output and to see it end.
    pub(crate) fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Registers a client for both grant types, or replaces its secret.
    pub(crate) async fn register(&self, auth: Auth<'_>) {
        let (method, id, secret) = match auth {
            Auth::Basic(id, secret) => ("basic", id, Some(secret)),
            Auth::Post(id, secret) => ("post", id, Some(secret)),
            Auth::Public(id) => ("none", id, None),
        };
        self.register_with(json!({ "client_id": id, "client_secret": secret, "auth": method })).await;
    }

    /// Registers a client in the provider's own terms, which know `grants` and `scopes` as well.
    pub(crate) async fn register_with(&self, client: Value) {
        self.order("clients", &client).await;
    }

    /// A fresh grant of the scope `read write`.
    pub(crate) async fn seed(&self, client_id: &str) -> Grant {
        self.post("grants", &[("client_id", client_id)]).await.parsed()
    }

    /// Revokes the grant that a refresh token belongs to, as its user would.
    pub(crate) async fn revoke(&self, refresh_token: &str) {
        let reply = self.post("revoke", &[("refresh_token", refresh_token)]).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }

    pub(crate) async fn stats(&self) -> Stats {
        fetch(&self.control("stats")).await.expect("the provider answers").parsed()
    }

    pub(crate) async fn standing(&self, refresh_token: &str) -> Standing {
        self.post("live", &[("refresh_token", refresh_token)]).await.parsed()
    }

    /// Whether a refresh token is the one that its grant can be refreshed with.
    pub(crate) async fn is_live(&self, refresh_token: &str) -> bool {
        self.standing(refresh_token).await.live
    }

    /// Whether the provider's introspection calls a token active.
    pub(crate) async fn is_active(&self, token: &str) -> bool {
        let reply = post_form(&format!("{}/introspect", self.url), &[("token", token)]).await;
        reply.expect("the provider answers").json()["active"] == true
    }

    /// Orders a fault: `{"kind": ..., "times": ..., "client_id": ..., "process": ...}` and the fields of its kind.
    /// Without `times` it lasts until cleared. The kinds are listed in `examples/strict-provider/faults.rs`.
    pub(crate) async fn fault(&self, order: Value) {
        self.order("fault", &order).await;
    }

    pub(crate) async fn clear_faults(&self) {
        self.order("fault/clear", &json!({})).await;
    }

    /// A token request.
    pub(crate) async fn token(&self, auth: Auth<'_>, params: &[(&str, &str)]) -> reqwest::Result<Reply> {
        token_request(&self.token_url(), auth, params).await
    }

    /// Redeems a refresh token.
    pub(crate) async fn refresh(&self, auth: Auth<'_>, refresh_token: &str) -> reqwest::Result<Reply> {
        self.token(auth, &[("grant_type", "refresh_token"), ("refresh_token", refresh_token)]).await
    }

    async fn order(&self, path: &str, body: &Value) {
        let reply = post_json(&self.control(path), body).await.expect("the provider answers");
        assert_eq!(reply.status, 200, "{body} was refused: {}", reply.body);
    }

    async fn post(&self, path: &str, params: &[(&str, &str)]) -> Reply {
        post_form(&with_query(&self.control(path), params), &[]).await.expect("the provider answers")
    }

    fn control(&self, path: &str) -> String {
        format!("{}/control/{path}", self.url)
    }
}

/// The provider's program, built where it is absent or older than its source. `cargo test` builds it on the way;
/// `cargo test --test NAME` does not.
/// A program from `examples/`, built where it is missing or older than its source.
///
/// # Panics
/// When it cannot be built.
pub(crate) async fn example(name: &'static str) -> PathBuf {
    tokio::task::spawn_blocking(move || built(name)).await.expect("the build did not panic")
}

fn built(name: &str) -> PathBuf {
    static BUILD: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILD.lock().unwrap_or_else(PoisonError::into_inner);
    let test = std::env::current_exe().expect("the test knows its own path");
    let profile_folder = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    let program = profile_folder.join("examples").join(name);
    if written(&program) < newest_source(name) {
        build(name, profile_folder);
    }
    assert!(program.exists(), "cargo built no {}: run `make test`", program.display());
    program
}

fn build(name: &str, profile_folder: &Path) {
    let profile = profile_folder.file_name().and_then(|name| name.to_str()).unwrap_or("debug");
    let profile = if profile == "debug" { "dev" } else { profile };
    let target = profile_folder.parent().expect("target/PROFILE lies in target");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", name, "--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(root())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "`cargo build --example {name}` failed");
}

fn newest_source(name: &str) -> Option<SystemTime> {
    let examples = root().join("examples");
    let modules = fs::read_dir(examples.join(name)).into_iter().flatten();
    let modules = modules.filter_map(|entry| written(&entry.ok()?.path()));
    modules.chain(written(&examples.join(name).with_extension("rs"))).max()
}

fn written(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}
