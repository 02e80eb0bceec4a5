//! What there is before a siege: a daemon that keeps tokens of two kinds, and an agent whose way to the table can be cut.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perennial::agent::make_room_for;
use perennial::store::DynamoStore;
use perennial::time::{Clock as _, SystemClock, Timestamp};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::siege::Size;
use crate::support::{
    Auth, Call, Canaries, Deployment, DynamoLocal, Front, NewClient, Process, Proxy, StrictProvider,
    agent_url, binary, fetch, snapshot, wait_until,
};

pub(crate) const SECRET: &str = "siege-client-secret";
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// An agent looks for an overdue token once in a second or two.
const LOOK: Duration = Duration::from_secs(3);
/// An agent is often started so. It has to see to it that there are enough.
const FEW_DESCRIPTORS: &str = "ulimit -Sn 256 && exec \"$0\" agent";
/// Nobody asks for them before a crowd does: the first crowd's, and the second's.
pub(crate) const UNSEEN: [&str; 2] = ["rehearsed", "unseen"];

/// The place, and what is in it.
pub(crate) struct Camp {
    pub(crate) agent: Process,
    pub(crate) address: String,
    pub(crate) key: String,
    pub(crate) lasting: Vec<String>,
    pub(crate) brief: Vec<String>,
    pub(crate) to_store: Proxy,
    pub(crate) table: DynamoLocal,
    store: DynamoStore,
    /// Questions about the second [`UNSEEN`] client's token that reached the table.
    pub(crate) upstream: Arc<AtomicU64>,
    pub(crate) canaries: Canaries,
    _front: Front,
    _daemon: Process,
    _deployment: Deployment,
    _providers: [StrictProvider; 2],
}

impl Camp {
    pub(crate) async fn pitch(size: &Size, program: Option<&Path>) -> Self {
        make_room_for(size.idle + size.misses + size.slow);
        let lasting_life = "3600";
        let brief_life = size.brief_life.as_secs().to_string();
        let providers = [provider(lasting_life).await, provider(&brief_life).await];
        let table = DynamoLocal::start().await;
        let deployment = Deployment::on_dynamo(&table, &settings(size, &providers));
        let (lasting, brief) = register(&deployment, size.clients, &providers).await;
        let upstream = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&upstream);
        let front = Front::before(table.endpoint(), move |call| {
            if is_about_unseen(call) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            None
        })
        .await;
        let to_store = Proxy::before(front.url()).await;
        let (key, entry) = new_key(&deployment);
        std::fs::write(deployment.path().join("keys.toml"), entry).unwrap();
        let daemon = deployment.daemon().await;
        let variables = [("PERENNIAL__STORE__ENDPOINT", to_store.url())];
        let program = program.map_or_else(binary, |path| path.canonicalize().unwrap());
        let arguments = ["-c", FEW_DESCRIPTORS, program.to_str().unwrap()];
        let agent = deployment.start_of(Path::new("sh"), &arguments, &variables).await;
        let address = agent_url(&agent).await.trim_start_matches("http://").to_owned();
        let mut canaries = Canaries::default();
        [SECRET, &key].into_iter().for_each(|secret| canaries.add(secret));
        let camp = Self {
            agent,
            address,
            key,
            lasting,
            brief,
            to_store,
            table,
            store: deployment.store().await,
            upstream,
            canaries,
            _front: front,
            _daemon: daemon,
            _deployment: deployment,
            _providers: providers,
        };
        for id in camp.lasting.iter().chain(&camp.brief) {
            wait_until(SOON, "each client's first token", async || camp.read(id).await.0 == 200).await;
        }
        camp
    }

    /// A request with the key, as its bytes.
    pub(crate) fn request(&self, target: &str) -> String {
        let (host, key) = (&self.address, &self.key);
        format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        )
    }

    /// A client's token, or the problem with it.
    pub(crate) async fn read(&self, id: &str) -> (u16, Value) {
        parsed(&exchange(&self.address, self.request(&format!("/v1/token/{id}")).as_bytes()).await)
    }

    /// Whether the table had no good token for it when it was asked for: its refresh was late, or has just come.
    pub(crate) async fn is_late(&self, id: &str, begun: Timestamp) -> bool {
        let Some(token) = snapshot(&self.store, id).await.token else { return true };
        let stored = humantime::parse_rfc3339(&token.last_updated.unwrap_or_default());
        let stored = stored.ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let just_now = stored.is_some_and(|at| Timestamp::EPOCH.plus(at + LOOK) >= begun);
        token.expires_at <= SystemClock.now() || just_now
    }

    /// One of the agent's counts.
    pub(crate) async fn number(&self, name: &str) -> usize {
        let text = fetch(&format!("http://{}/metrics", self.address)).await.unwrap().body;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split('.').next()?.parse().ok());
        value.unwrap_or_default()
    }

    /// The agent's open descriptors; none for whoever is not root, to whom it does not show them.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.agent.pid())).map_or(0, Iterator::count)
    }
}

fn is_about_unseen(call: &Call) -> bool {
    let body = String::from_utf8_lossy(&call.body);
    body.contains("CLIENT#unseen\"") && body.contains("TOKEN#ACCESS")
}

/// Clients of both kinds, and those that nobody asks for yet.
async fn register(
    deployment: &Deployment,
    number: usize,
    providers: &[StrictProvider; 2],
) -> (Vec<String>, Vec<String>) {
    let names = |kind: &str| (0..number).map(|number| format!("{kind}-{number}")).collect::<Vec<_>>();
    let (lasting, brief) = (names("lasting"), names("brief"));
    let mut clients = Vec::new();
    for id in UNSEEN.into_iter().chain(lasting.iter().map(String::as_str)) {
        clients.push(client(id, "strict", &providers[0]).await);
    }
    for id in &brief {
        clients.push(client(id, "brief", &providers[1]).await);
    }
    deployment.apply(&clients);
    (lasting, brief)
}

fn settings(size: &Size, providers: &[StrictProvider; 2]) -> String {
    let (connections, max_age) = (size.idle + size.misses + 1024, size.max_age.as_secs());
    let [strict, brief] = providers.each_ref().map(StrictProvider::token_url);
    format!(
        "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
         [refresh]\nspread = \"0s\"\nlifetime_min = \"1s\"\n\
         [backoff]\nbase = \"200ms\"\nmin_interval = \"200ms\"\ncap = \"1s\"\n\
         [agent]\naddress = \"127.0.0.1:0\"\nkeys_file = \"keys.toml\"\nmax_age = \"{max_age}s\"\n\
         connections = {connections}\nwaiting = {connections}\n\
         [providers.strict]\ntoken_url = \"{strict}\"\nrate_per_second = 1000.0\nburst = 1000\n\
         [providers.brief]\ntoken_url = \"{brief}\"\nrate_per_second = 1000.0\nburst = 1000\n"
    )
}

async fn provider(life: &str) -> StrictProvider {
    let provider = StrictProvider::start(&["--lifetime-secs", life]).await;
    provider.register(Auth::Basic("app", SECRET)).await;
    provider
}

async fn client(id: &str, name: &'static str, at: &StrictProvider) -> NewClient<'static> {
    let refresh_token = Some(at.seed("app").await.refresh_token);
    NewClient {
        id: id.to_owned(),
        provider: name,
        client_id: "app",
        client_secret: Some(SECRET),
        refresh_token,
    }
}

fn new_key(deployment: &Deployment) -> (String, String) {
    let made: Value = serde_json::from_str(&deployment.ok(&["agent", "key", "siege", "--json"])).unwrap();
    let entry = format!("[readers.siege]\nkey_sha256 = [{}]\nclients = [\"*\"]\n", made["key_sha256"]);
    (made["key"].as_str().unwrap().to_owned(), entry)
}

/// Sends bytes as they are, and reads until the other side closes; what is read before an error is kept.
pub(crate) async fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(address).await {
        // Who refuses a request need not read all of it.
        stream.write_all(bytes).await.ok();
        stream.read_to_end(&mut answer).await.ok();
    }
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) fn status(answer: &str) -> u16 {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or_default()
}

pub(crate) fn parsed(answer: &str) -> (u16, Value) {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status(answer), serde_json::from_str(body).unwrap_or(Value::Null))
}
