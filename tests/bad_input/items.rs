//! Items that other tools wrote: named in the log, left as they are, and no harm to their neighbours.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;

use crate::support::{
    Auth, Canaries, Deployment, DynamoLocal, StrictProvider, log_lines, snapshot, wait_until,
};

const SECRET: &str = "canary-client-secret";

type Raw = HashMap<String, AttributeValue>;

/// What another tool makes of an attribute.
#[derive(Clone, Copy)]
enum Wrong {
    Missing,
    Text(&'static str),
    Number,
    Binary,
    Null,
}

/// An attribute that is spoilt, and whether the item can still be understood.
struct Spoilt {
    id: String,
    sk: &'static str,
    attribute: &'static str,
    wrong: Wrong,
}

fn spoilt() -> Vec<Spoilt> {
    use Wrong::{Binary, Missing, Null, Number, Text};
    let lease = [
        ("gen", vec![Missing, Text("7"), Binary]),
        ("st", vec![Missing, Number, Binary]),
        ("next_at", vec![Text("soon")]),
        ("of", vec![Binary]),
    ];
    let token = [
        ("expires_at", vec![Text("2030-01-01T00:00:00Z"), Binary, Null]),
        ("tok_gen", vec![Text("seven"), Binary, Null]),
        ("refresh_token", vec![Number, Binary]),
        ("refresh_at", vec![Text("soon")]),
        ("ttl", vec![Text("never")]),
    ];
    let config = [
        ("provider", vec![Missing, Number, Binary]),
        ("grant", vec![Missing, Number, Text("password")]),
        ("client_id", vec![Missing, Null]),
        ("client_secret", vec![Binary]),
        ("second_client_secret", vec![Binary]),
        ("client_secret_ref", vec![Binary, Text("vault:x"), Text("ssm:/beside")]),
        ("token_url", vec![Text("no url")]),
        ("paused", vec![Text("false")]),
        ("params", vec![Text("a=b")]),
    ];
    let rows = [("LEASE", lease.to_vec()), ("TOKEN#ACCESS", token.to_vec()), ("CONFIG", config.to_vec())];
    let mut all = Vec::new();
    for (sk, attributes) in rows {
        for (attribute, wrongs) in attributes {
            for wrong in wrongs {
                let id = format!("spoilt-{}", all.len());
                all.push(Spoilt { id, sk, attribute, wrong });
            }
        }
    }
    all
}

pub(super) struct World {
    pub(super) local: &'static DynamoLocal,
    strict: StrictProvider,
    pub(super) deployment: Deployment,
    pub(super) canaries: Canaries,
}

impl World {
    pub(super) async fn new(ids: impl IntoIterator<Item = String>) -> Self {
        Self::with("", ids).await
    }

    /// With these settings beside its own.
    pub(super) async fn with(settings: &str, ids: impl IntoIterator<Item = String>) -> Self {
        let local = DynamoLocal::shared().await;
        let strict = StrictProvider::start(&["--lifetime-secs", "7200"]).await;
        strict.register(Auth::Basic("app", SECRET)).await;
        let settings = format!(
            "{settings}[discovery]\ninterval = \"1s\"\n[refresh]\nspread = \"0s\"\n[providers.strict]\ntoken_url = \"{}\"\n\
             rate_per_second = 1000.0\nburst = 1000\n",
            strict.token_url()
        );
        let deployment = Deployment::on_dynamo(local, &settings);
        let mut canaries = Canaries::default();
        canaries.add_basic("app", SECRET);
        deployment.register(&strict, SECRET, ids).await;
        Self { local, strict, deployment, canaries }
    }

    pub(super) fn key(id: &str, sk: &str) -> Raw {
        let text = |text: String| AttributeValue::S(text);
        HashMap::from([
            ("PK".to_owned(), text(format!("CLIENT#{id}"))),
            ("SK".to_owned(), text(sk.to_owned())),
        ])
    }

    pub(super) async fn raw(&self, id: &str, sk: &str) -> Option<Raw> {
        self.raw_at(&format!("CLIENT#{id}"), sk).await
    }

    pub(super) async fn raw_at(&self, pk: &str, sk: &str) -> Option<Raw> {
        let request = self.local.client().get_item().table_name(self.deployment.table_name());
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let key = Some(HashMap::from([("PK".to_owned(), text(pk)), ("SK".to_owned(), text(sk))]));
        request.set_key(key).consistent_read(true).send().await.expect("a read").item
    }

    pub(super) async fn put(&self, item: Raw) {
        let request = self.local.client().put_item().table_name(self.deployment.table_name());
        request.set_item(Some(item)).send().await.expect("a write");
    }

    async fn partition(&self, id: &str) -> Vec<Option<Raw>> {
        let mut items = Vec::new();
        for sk in ["CONFIG", "LEASE", "TOKEN#ACCESS"] {
            items.push(self.raw(id, sk).await);
        }
        items
    }

    async fn spoil(&self, spoilt: &Spoilt) {
        let mut item = self.raw(&spoilt.id, spoilt.sk).await.expect("it was registered");
        let value = match spoilt.wrong {
            Wrong::Missing => None,
            Wrong::Text(text) => Some(AttributeValue::S(text.to_owned())),
            Wrong::Number => Some(AttributeValue::N("7".to_owned())),
            Wrong::Binary => Some(AttributeValue::B(Blob::new([0, 159, 146, 150]))),
            Wrong::Null => Some(AttributeValue::Null(true)),
        };
        match value {
            Some(value) => drop(item.insert(spoilt.attribute.to_owned(), value)),
            None => drop(item.remove(spoilt.attribute)),
        }
        self.put(item).await;
    }

    /// Runs until nothing is due; returns the log, which shows no secret.
    pub(super) fn run_once(&self) -> Vec<Value> {
        let run = self.deployment.run_with(&["run", "--once"], &[("PERENNIAL__LOG__FILTER", "trace")]);
        let log = String::from_utf8_lossy(&run.stderr);
        self.canaries.assert_absent("the log", &log);
        self.canaries.assert_absent("the output", &String::from_utf8_lossy(&run.stdout));
        log_lines(&log)
    }

    pub(super) async fn is_refreshed(&self, id: &str) -> bool {
        let store = self.deployment.store().await;
        let token = snapshot(&store, id).await.token.expect("a token item");
        let stored = token.refresh_token.expect("a refresh token");
        token.access_token.is_some() && self.strict.is_live(stored.expose()).await
    }
}

pub(super) fn told<'a>(log: &'a [Value], id: &str, level: &str) -> Vec<&'a Value> {
    let about = |line: &&Value| line["client"] == id || line["span"]["client"] == id;
    log.iter().filter(|line| about(line) && line["level"] == level).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_item_is_named_and_skipped_and_never_overwritten() {
    let spoilt = spoilt();
    let ids = spoilt.iter().map(|spoilt| spoilt.id.clone());
    let world = World::new(ids.chain(["healthy".to_owned()])).await;
    let mut before = Vec::new();
    for case in &spoilt {
        world.spoil(case).await;
        before.push(world.partition(&case.id).await);
    }
    let log = world.run_once();
    assert!(world.is_refreshed("healthy").await, "a neighbour's items are no reason to neglect a client");
    for (case, before) in spoilt.iter().zip(before) {
        let Spoilt { id, sk, attribute, .. } = case;
        let named = told(&log, id, "ERROR").into_iter().any(|line| {
            let problem = line["malformed"].as_str().unwrap_or_default();
            problem.contains(&format!("CLIENT#{id}/{sk}")) && problem.contains(&format!("`{attribute}`"))
        });
        assert!(named, "{id}: nobody says that `{attribute}` of {sk} is malformed");
        let after = world.partition(id).await;
        let beside = matches!(case.wrong, Wrong::Text("ssm:/beside"));
        if beside || ["client_secret", "second_client_secret", "refresh_token"].contains(attribute) {
            // Secrets are read under the lease only.
            assert!(after[0] == before[0] && after[2] == before[2], "{id}: something was overwritten");
            let error = after[1].as_ref().and_then(|lease| lease.get("err"));
            assert_eq!(error, Some(&AttributeValue::S("malformed_item".to_owned())), "{id}");
        } else {
            assert!(after == before, "{id}: something was written");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_another_tool_wrote_without_our_attributes_are_refreshed() {
    let world = World::new(["foreign".to_owned()]).await;
    let mut item = world.raw("foreign", "TOKEN#ACCESS").await.expect("it was registered");
    item.retain(|name, _| ["PK", "SK", "refresh_token"].contains(&name.as_str()));
    world.put(item).await;
    world.run_once();
    assert!(world.is_refreshed("foreign").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_no_clients_of_ours_are_named_and_left_alone() {
    let world = World::new(["healthy".to_owned()]).await;
    let config = world.raw("healthy", "CONFIG").await.expect("it was registered");
    let strangers = [
        ("no id\nlevel=ERROR", "CONFIG"),
        ("", "CONFIG"),
        ("é", "CONFIG"),
        ("healthy", "NOTES"),
        ("half", "CONFIG"),
    ];
    let mut before = Vec::new();
    for (id, sk) in strangers {
        let mut stranger = config.clone();
        stranger.extend(World::key(id, sk));
        world.put(stranger.clone()).await;
        before.push(stranger);
    }
    let log = world.run_once();
    assert!(world.is_refreshed("healthy").await);
    for ((id, sk), before) in strangers.into_iter().zip(before) {
        let item = format!("CLIENT#{id}/{sk}");
        let named = log.iter().any(|line| {
            let says = line["message"].as_str().is_some_and(|text| text.starts_with("skipped"));
            says && (line["item"] == item.as_str() || line["client"] == id)
        });
        assert!(named, "{item} is not named");
        assert!(world.raw(id, sk).await == Some(before), "{item} was written");
        assert!(world.raw(id, "LEASE").await.is_some() == (id == "healthy"), "{item} got a lease");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_a_newer_version_is_never_acquired() {
    let world = World::new(["newer".to_owned(), "healthy".to_owned()]).await;
    let wrong = Wrong::Text("Z");
    world.spoil(&Spoilt { id: "newer".into(), sk: "LEASE", attribute: "st", wrong }).await;
    let before = world.partition("newer").await;
    world.run_once();
    assert!(world.is_refreshed("healthy").await);
    assert!(world.partition("newer").await == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_attributes_survive_a_refresh() {
    let world = World::new(["extended".to_owned()]).await;
    let note = AttributeValue::S("of another tool".to_owned());
    for sk in ["CONFIG", "LEASE", "TOKEN#ACCESS"] {
        let mut item = world.raw("extended", sk).await.expect("it was registered");
        item.insert("note".to_owned(), note.clone());
        world.put(item).await;
    }
    world.run_once();
    assert!(world.is_refreshed("extended").await);
    for item in world.partition("extended").await {
        assert_eq!(item.expect("it is still there").get("note"), Some(&note));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_on_a_refresh_token_is_removed_and_told() {
    let world = World::new(["doomed".to_owned()]).await;
    world.run_once();
    let mut item = world.raw("doomed", "TOKEN#ACCESS").await.expect("it was registered");
    item.insert("ttl".to_owned(), item["expires_at"].clone());
    world.put(item).await;
    let daemon = world.deployment.daemon().await;
    wait_until(Duration::from_secs(30), "the ttl is taken off", async || {
        world.raw("doomed", "TOKEN#ACCESS").await.is_some_and(|item| !item.contains_key("ttl"))
    })
    .await;
    wait_until(Duration::from_secs(10), "it is told", async || {
        let log = log_lines(&daemon.errors());
        told(&log, "doomed", "ERROR").iter().any(|line| line["alarm"] == "ttl_on_refresh_token")
    })
    .await;
    assert!(world.is_refreshed("doomed").await, "the grant itself is untouched");
}
