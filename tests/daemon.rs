//! The daemon among its neighbours: health checks, operators, a store that goes away, a second daemon.

mod support;

mod daemon {
    pub(crate) mod besieged;
    pub(crate) mod cut_off;
    pub(crate) mod ecs;
    pub(crate) mod fleet;
    pub(crate) mod health;
    pub(crate) mod healthcheck;
    pub(crate) mod operators;
    pub(crate) mod reload;
    pub(crate) mod spilled;
    pub(crate) mod starts;
}

use std::time::Duration;

use perennial::record::Gen;
use perennial::store::DynamoStore;
use support::{Auth, Deployment, StrictProvider, snapshot};

const SECRET: &str = "canary-client-secret";
/// Anything that is to happen soon: a discovery interval and a refresh, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// A provider that knows one application, and what the configuration says of it.
async fn provider(arguments: &[&str]) -> (StrictProvider, String) {
    let provider = StrictProvider::start(arguments).await;
    provider.register(Auth::Basic("app", SECRET)).await;
    let settings = format!(
        "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
         [refresh]\nspread = \"0s\"\nlifetime_min = \"1s\"\n\
         [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n",
        provider.token_url()
    );
    (provider, settings)
}

async fn register(deployment: &Deployment, provider: &StrictProvider, ids: &[&str]) {
    deployment.register(provider, SECRET, ids.iter().copied()).await;
}

async fn tok_gen(store: &DynamoStore, id: &str) -> Gen {
    snapshot(store, id).await.tok_gen()
}

/// Whether the stored refresh token is the provider's live one.
async fn is_live(store: &DynamoStore, provider: &StrictProvider, id: &str) -> bool {
    let token = snapshot(store, id).await.token.and_then(|token| token.refresh_token);
    provider.is_live(token.expect("a refresh token").expose()).await
}
