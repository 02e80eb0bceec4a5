//! The promise itself, on real parts: fifty clients live through twenty rotations each and no refresh token is ever
//! redeemed twice. The same suite runs on an OpenID-certified server and on our own strict provider, over Amazon
//! DynamoDB Local; a deliberate reuse at its end shows that either provider would have told.

mod support;

use std::time::Duration;

use perennial::client::ClientId;
use perennial::item::Key;
use perennial::store::{DynamoStore, Store, View};
use support::{
    Auth, Deployment, DynamoLocal, NewClient, OidcServer, Reply, StrictProvider, node_reader, snapshot,
    wait_until,
};

const CLIENTS: usize = 50;
const ROTATIONS: i64 = 20;

/// A provider that rotates and detects reuse.
trait Rotating {
    fn token_url(&self) -> String;
    async fn seed(&self) -> String;
    async fn reuses(&self) -> u64;
    async fn refresh(&self, refresh_token: &str) -> Reply;
    async fn is_active(&self, access_token: &str) -> bool;
    async fn is_live(&self, refresh_token: &str) -> bool;
}

struct Certified(OidcServer);
struct Ours(StrictProvider);

const APP: Auth<'static> = OidcServer::BASIC;

impl Rotating for Certified {
    fn token_url(&self) -> String {
        self.0.token_url()
    }
    async fn seed(&self) -> String {
        self.0.seed(credentials().0).await.refresh_token
    }
    async fn reuses(&self) -> u64 {
        self.0.stats().await.reuses
    }
    async fn refresh(&self, refresh_token: &str) -> Reply {
        self.0.refresh(APP, refresh_token).await.expect("an answer")
    }
    async fn is_active(&self, access_token: &str) -> bool {
        self.0.is_active(access_token).await
    }
    async fn is_live(&self, refresh_token: &str) -> bool {
        self.0.is_live(refresh_token).await
    }
}

impl Rotating for Ours {
    fn token_url(&self) -> String {
        self.0.token_url()
    }
    async fn seed(&self) -> String {
        self.0.seed(credentials().0).await.refresh_token
    }
    async fn reuses(&self) -> u64 {
        self.0.stats().await.double_redemptions
    }
    async fn refresh(&self, refresh_token: &str) -> Reply {
        self.0.refresh(APP, refresh_token).await.expect("an answer")
    }
    async fn is_active(&self, access_token: &str) -> bool {
        self.0.is_active(access_token).await
    }
    async fn is_live(&self, refresh_token: &str) -> bool {
        self.0.is_live(refresh_token).await
    }
}

fn credentials() -> (&'static str, &'static str) {
    match APP {
        Auth::Basic(id, secret) => (id, secret),
        _ => unreachable!("the suite uses client_secret_basic"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_live_through_twenty_rotations_on_a_certified_server() {
    let server = OidcServer::start_with(&[("ACCESS_TOKEN_SECONDS", "3")]).await;
    live_through_rotations(&Certified(server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_live_through_twenty_rotations_on_our_strict_provider() {
    let provider = StrictProvider::start(&["--lifetime-secs", "3"]).await;
    provider.register(APP).await;
    live_through_rotations(&Ours(provider)).await;
}

async fn live_through_rotations(provider: &impl Rotating) {
    let local = DynamoLocal::shared().await;
    let deployment = Deployment::on_dynamo(local, &settings(&provider.token_url()));
    let ids = register(&deployment, provider).await;
    let daemon = deployment.daemon().await;
    let store = deployment.store().await;
    wait_until(Duration::from_secs(150), "every client has been refreshed twenty times", async || {
        least_generation(&store, &ids).await >= ROTATIONS
    })
    .await;

    let first = &ids[0];
    read_as_existing_readers_do(local, &deployment, first, provider).await;
    daemon.signal("TERM");
    wait_until(Duration::from_secs(30), "the daemon drains", async || deployment_is_quiet(&daemon)).await;
    assert_eq!(provider.reuses().await, 0, "the provider saw a refresh token twice");
    for id in &ids {
        let stored = snapshot(&store, id).await.token.and_then(|token| token.refresh_token).expect("a token");
        assert!(
            provider.is_live(stored.expose()).await,
            "{id}: the stored refresh token is not the live one"
        );
    }
    reuse_is_told(provider, &store, first).await;
}

fn settings(token_url: &str) -> String {
    format!(
        "[refresh]\nlifetime_min = \"1s\"\nspread = \"0s\"\n\n[providers.strict]\ntoken_url = \"{token_url}\"\n\
         rotates = true\nrate_per_second = 1000.0\nburst = 1000\n"
    )
}

async fn register(deployment: &Deployment, provider: &impl Rotating) -> Vec<String> {
    let (client_id, client_secret) = credentials();
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(NewClient {
            id: format!("customer-{n}"),
            provider: "strict",
            client_id,
            client_secret: Some(client_secret),
            refresh_token: Some(provider.seed().await),
        });
    }
    deployment.apply(&clients);
    clients.into_iter().map(|client| client.id).collect()
}

async fn least_generation(store: &DynamoStore, ids: &[String]) -> i64 {
    let keys: Vec<_> = ids.iter().map(|id| Key::Token(ClientId::new(id).expect("a valid id"))).collect();
    let items = store.load(&keys, View::WithoutSecrets).await.expect("the table answers");
    assert_eq!(items.len(), ids.len());
    let generation = |item: &perennial::item::Item| match item.get("tok_gen") {
        Some(perennial::item::Value::N(generation)) => *generation,
        other => panic!("tok_gen is {other:?}"),
    };
    items.iter().map(|(_, item)| generation(item)).min().expect("there are clients")
}

/// `GetItem({PK: "CLIENT#...", SK: "TOKEN#ACCESS"})` with the AWS SDK for JavaScript.
async fn read_as_existing_readers_do(
    local: &DynamoLocal,
    deployment: &Deployment,
    id: &str,
    provider: &impl Rotating,
) {
    wait_until(
        Duration::from_secs(20),
        "the Node.js reader gets a working token",
        async || match node_reader(local.endpoint(), deployment.table_name(), id).await {
            Some(token) => provider.is_active(&token.access_token).await,
            None => false,
        },
    )
    .await;
}

fn deployment_is_quiet(daemon: &support::Process) -> bool {
    daemon.errors().contains("\"message\":\"stopped\"")
}

async fn reuse_is_told(provider: &impl Rotating, store: &DynamoStore, id: &str) {
    let stored = snapshot(store, id).await.token.and_then(|token| token.refresh_token).expect("a token");
    assert_eq!(provider.refresh(stored.expose()).await.status, 200, "the live token is redeemed once");
    assert_eq!(provider.refresh(stored.expose()).await.status, 400, "and not twice");
    assert_eq!(provider.reuses().await, 1, "a reuse is told, so this suite could have failed");
}
