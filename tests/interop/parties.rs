//! Who seals and opens: this crate over real keys, and a helper program for each other language.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::primitives::Blob;
use perennial::seal::{self, Keeping, KeyAddress, KeyName, Keys, KmsKeys, LocalKeys, Mode, Ring};
use perennial::secret::Secret;
use perennial::time::{SystemClock, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::cases::{self, Good};
use crate::support::{DynamoLocal, Moto, part, wait_until};

/// Where a secret stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) table: String,
    pub(crate) client: String,
    pub(crate) attribute: String,
    pub(crate) version: i64,
}

impl Place {
    pub(crate) fn access(table: &str, client: &str, version: i64) -> Self {
        let (table, client, attribute) = (table.to_owned(), client.to_owned(), "access_token".to_owned());
        Self { table, client, attribute, version }
    }

    fn borrowed(&self) -> seal::Place<'_> {
        let Self { table, client, attribute, version } = self;
        seal::Place { table, client, attribute, version: *version }
    }
}

/// To be sealed, under whatever header.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sealing {
    pub(crate) header: Value,
    pub(crate) plaintext: String,
    /// In hexadecimal.
    pub(crate) key: String,
}

/// To be opened.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Opening {
    pub(crate) place: Place,
    pub(crate) sealed: String,
}

/// What came of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Plaintext(String),
    Refused(String),
}

#[derive(Serialize)]
struct Order<'a> {
    keys: &'a BTreeMap<String, String>,
    seal: &'a [Sealing],
    open: &'a [Opening],
}

#[derive(Deserialize)]
pub(crate) struct Answer {
    pub(crate) sealed: Vec<String>,
    pub(crate) opened: Vec<Outcome>,
    /// Which of them are taken for sealed by this program.
    pub(crate) ours: Vec<bool>,
}

/// All of them, with the keys of [`cases::keys`].
pub(crate) struct Parties {
    keys: BTreeMap<String, String>,
    kms: Keys,
    local: Keys,
}

impl Parties {
    pub(crate) const NAMES: [&str; 3] = ["perennial", "jose", "joserfc"];

    pub(crate) async fn new() -> Self {
        let keys = cases::keys();
        let local = &keys[&cases::local_kid()];
        let own = || Some(LocalKeys::parse(local).expect("a key"));
        let of = async |mode| Keys { mode, local: own(), kms: Some(ring().await) };
        Self { kms: of(Mode::Kms).await, local: of(Mode::Local).await, keys }
    }

    /// What each party makes of the same, by its name.
    pub(crate) async fn seal(&self, goods: &[Good]) -> BTreeMap<&'static str, Vec<String>> {
        let mut own = Vec::new();
        for good in goods {
            own.push(self.seal_here(good).await);
        }
        let orders: Vec<_> = goods.iter().map(|good| good.sealing(&self.keys)).collect();
        let (jose, joserfc) = (self.seal_by("jose", &orders).await, self.seal_by("joserfc", &orders).await);
        [("perennial", own), ("jose", jose), ("joserfc", joserfc)].into()
    }

    async fn seal_here(&self, good: &Good) -> String {
        let keys = if good.kid.starts_with("local/") { &self.local } else { &self.kms };
        let place = good.place.borrowed();
        let now = Timestamp::from_secs(cases::SEALED_AT);
        let sealed = keys.seal(&Secret::new(good.plaintext.as_str()), &place, now).await;
        let sealed = sealed.expect("there is a key").expect("something seals");
        assert_eq!(Keys::name_of(&sealed), Some(good.kid.clone()), "it chose the key that the others use");
        sealed
    }

    /// Sealed by another language's library, whatever the header says.
    pub(crate) async fn seal_by(&self, party: &str, seal: &[Sealing]) -> Vec<String> {
        self.ask(party, seal, &[]).await.sealed
    }

    /// What each party says of them, by its name.
    pub(crate) async fn open(&self, orders: &[Opening]) -> BTreeMap<&'static str, Answer> {
        let (mut opened, mut ours) = (Vec::new(), Vec::new());
        for order in orders {
            let outcome = match self.kms.open(&order.sealed, &order.place.borrowed()).await {
                Ok(opened) => Outcome::Plaintext(opened.secret.expose().to_owned()),
                Err(error) => {
                    assert!(!error.is_transient(), "that is no refusal: {error}");
                    Outcome::Refused(error.to_string())
                }
            };
            opened.push(outcome);
            ours.push(Keys::is_sealed(&order.sealed));
        }
        let own = Answer { sealed: Vec::new(), opened, ours };
        let (jose, joserfc) = (self.ask("jose", &[], orders).await, self.ask("joserfc", &[], orders).await);
        [("perennial", own), ("jose", jose), ("joserfc", joserfc)].into()
    }

    async fn ask(&self, party: &str, seal: &[Sealing], open: &[Opening]) -> Answer {
        let order = serde_json::to_vec(&Order { keys: &self.keys, seal, open }).expect("JSON");
        let command = match party {
            "jose" => program(node(), "tests/interop/seal-and-open.mjs"),
            "joserfc" => program(python(), "tests/interop/seal_and_open.py"),
            other => panic!("no party is called {other}"),
        };
        let answer: Answer = serde_json::from_slice(&talk(command, order).await).expect("it prints JSON");
        assert_eq!((answer.sealed.len(), answer.opened.len()), (seal.len(), open.len()), "{party}");
        answer
    }
}

/// Node.js, with the packages of the reader.
pub(crate) fn node() -> PathBuf {
    part("examples/readers/node/node_modules/.complete");
    "node".into()
}

/// Python, with the packages of the reader.
pub(crate) fn python() -> PathBuf {
    part(".parts/moto/.complete");
    part(".parts/moto/bin/python")
}

pub(crate) fn program(interpreter: PathBuf, script: &str) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(part(script)).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn talk(mut command: Command, input: Vec<u8>) -> Vec<u8> {
    let run = move || {
        let mut child = command.stdin(Stdio::piped()).spawn().expect("run `scripts/parts.sh` once");
        // It reads everything before it writes.
        child.stdin.take().expect("piped").write_all(&input).expect("it reads its input");
        child.wait_with_output().expect("it is a child of this process")
    };
    let output = tokio::task::spawn_blocking(run).await.expect("the task did not panic");
    assert!(output.status.success(), "a helper failed: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The keys of [`cases::keys`], wrapped by moto's KMS, in a table of keys in DynamoDB Local.
async fn ring() -> Ring<KmsKeys> {
    static TABLE: OnceCell<(Moto, String)> = OnceCell::const_new();
    let (moto, table) = TABLE
        .get_or_init(async || {
            let moto = Moto::start().await;
            let table = DynamoLocal::fresh_table_name();
            let keys = connect(&moto, &table).await;
            // A server that has just begun may be slower than the 2 s that readers give it.
            wait_until(Duration::from_secs(60), "a table of keys", async || {
                keys.create_table(false, false).await.is_ok()
            })
            .await;
            fill(&moto, &table).await;
            (moto, table)
        })
        .await;
    let keeping = Keeping { fresh: Duration::from_secs(600), stale: Duration::ZERO };
    Ring::new(connect(moto, table).await, 1, keeping, Arc::new(SystemClock))
}

async fn connect(moto: &Moto, table: &str) -> KmsKeys {
    let url = |text: &str| Some(text.parse().expect("a URL"));
    let address = KeyAddress {
        table: table.to_owned(),
        region: Some("us-east-1".into()),
        endpoint: url(DynamoLocal::shared().await.endpoint()),
        kms_endpoint: url(moto.endpoint()),
    };
    KmsKeys::new(address)
}

async fn fill(moto: &Moto, table: &str) {
    let kms = kms(moto);
    let cmk = moto.key().await;
    let dynamodb = DynamoLocal::shared().await.client();
    let text = |value: &str| AttributeValue::S(value.to_owned());
    for (kid, key) in cases::keys() {
        let Some(name) = KeyName::parse(&kid) else { continue };
        let mut encrypt = kms.encrypt().key_id(&cmk).plaintext(Blob::new(cases::bytes(&key)));
        let family = name.series.family.as_str();
        for (key, value) in
            [("purpose", "perennial"), ("table", &name.series.table), ("family", family), ("kid", &kid)]
        {
            encrypt = encrypt.encryption_context(key, value);
        }
        let wrapped = encrypt.send().await.expect("moto wraps").ciphertext_blob.expect("a wrapped key");
        let (series, version) = kid.rsplit_once('/').expect("a version");
        let put = dynamodb.put_item().table_name(table).item("PK", text(series)).item("SK", text(version));
        let put = put.item("kid", text(&kid)).item("wrapped", AttributeValue::B(wrapped));
        let put = put.item("cmk", text(&cmk)).item("state", text("ACTIVE"));
        put.item("created", AttributeValue::N("0".into())).send().await.expect("a key is put");
    }
}

fn kms(moto: &Moto) -> aws_sdk_kms::Client {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .endpoint_url(moto.endpoint())
        .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
        .build();
    aws_sdk_kms::Client::from_conf(config)
}
