//! The certified provider, `tests/parts/oidc-server.mjs`, as a child process.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::oauth::{Auth, Reply, fetch, post_form, token_request, with_query};
use super::{Process, part};

/// A running certified provider.
pub(crate) struct OidcServer {
    process: Process,
    url: String,
}

/// A first refresh token.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct OidcGrant {
    pub(crate) refresh_token: String,
    pub(crate) grant_id: String,
    pub(crate) client_id: String,
    pub(crate) scope: String,
}

/// The provider's counts.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct OidcStats {
    pub(crate) granted: u64,
    pub(crate) refused: u64,
    /// Redemptions of a spent refresh token whose grant was alive until then.
    pub(crate) reuses: u64,
    pub(crate) grants_revoked: u64,
    pub(crate) by_client: BTreeMap<String, Value>,
}

impl OidcServer {
    /// A client with `client_secret_basic` and a secret that needs the form encoding.
    pub(crate) const BASIC: Auth<'static> = Auth::Basic("basic", "basic-s3cr3t+/=&:%");
    /// A client with `client_secret_post`.
    pub(crate) const POST: Auth<'static> = Auth::Post("post", "post-s3cr3t");
    /// A public client.
    pub(crate) const PUBLIC: Auth<'static> = Auth::Public("public");

    /// Starts the provider on a free port, with access tokens of 30 seconds.
    ///
    /// # Panics
    /// When it is not installed or does not come up within 30 seconds.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts the provider with variables in its environment, such as `("ACCESS_TOKEN_SECONDS", "5")`.
    ///
    /// # Panics
    /// As [`OidcServer::start`].
    pub(crate) async fn start_with(environment: &[(&str, &str)]) -> Self {
        part("tests/parts/node_modules/oidc-provider");
        let script = part("tests/parts/oidc-server.mjs");
        let mut process = Process::start("node", [script], |command| {
            command.env_remove("PORT").envs(environment.iter().copied());
        })
        .await;
        let url = process.ready(Duration::from_secs(30)).await;
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

    /// A first refresh token for `basic`, `post` or `public`.
    pub(crate) async fn seed(&self, client_id: &str) -> OidcGrant {
        let url = with_query(&self.control("grants"), &[("client_id", client_id)]);
        post_form(&url, &[]).await.expect("the provider answers").parsed()
    }

    pub(crate) async fn stats(&self) -> OidcStats {
        fetch(&self.control("stats")).await.expect("the provider answers").parsed()
    }

    /// What the provider reported, oldest first.
    pub(crate) async fn events(&self) -> Vec<Value> {
        fetch(&self.control("events")).await.expect("the provider answers").parsed()
    }

    /// Whether a refresh token can still be redeemed.
    pub(crate) async fn is_live(&self, refresh_token: &str) -> bool {
        self.ask("live", "refresh_token", refresh_token).await["live"] == true
    }

    /// Whether an access token is active.
    pub(crate) async fn is_active(&self, access_token: &str) -> bool {
        self.ask("introspect", "token", access_token).await["active"] == true
    }

    /// A token request.
    pub(crate) async fn token(&self, auth: Auth<'_>, params: &[(&str, &str)]) -> reqwest::Result<Reply> {
        token_request(&self.token_url(), auth, params).await
    }

    /// Redeems a refresh token.
    pub(crate) async fn refresh(&self, auth: Auth<'_>, refresh_token: &str) -> reqwest::Result<Reply> {
        self.token(auth, &[("grant_type", "refresh_token"), ("refresh_token", refresh_token)]).await
    }

    async fn ask(&self, path: &str, name: &str, value: &str) -> Value {
        post_form(&self.control(path), &[(name, value)]).await.expect("the provider answers").parsed()
    }

    fn control(&self, path: &str) -> String {
        format!("{}/control/{path}", self.url)
    }
}
