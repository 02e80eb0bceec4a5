//! Reading without the agent: the programs of `examples/`, each against a table that the daemon keeps in DynamoDB Local, with
//! moto's KMS where tokens are sealed; and the snippets of `docs/readers.md`, as they stand there.
#![allow(clippy::disallowed_methods, reason = "tests look at their own clock and environment")]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use support::{
    ACCESS_DENIED, Auth, Deployment, DynamoLocal, Front, Moto, Process, StrictProvider, agent_url, example,
    part, quick_settings, snapshot, wait_for, wait_until,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const SECRET: &str = "canary-client-secret";
const SOON: Duration = Duration::from_secs(60);
/// Seconds that a token lives.
const LIFETIME: &str = "12";
/// Seconds that it must live for a service to take it, rounded up.
const LEAST: u64 = 2;

struct World {
    provider: StrictProvider,
    deployment: Deployment,
    moto: Moto,
}

impl World {
    async fn new(is_sealed: bool, more: &str) -> Self {
        let provider = StrictProvider::start(&["--lifetime-secs", LIFETIME]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let moto = Moto::start().await;
        let sealing = match is_sealed {
            true => {
                let (key, kms) = (moto.key().await, moto.endpoint());
                format!(
                    "[sealing]\nmode = \"kms\"\nkms_key = \"{key}\"\nkms_endpoint = \"{kms}\"\nshards = 2\n"
                )
            }
            false => String::new(),
        };
        let settings = quick_settings(&provider, &format!("{sealing}{more}"));
        let deployment = Deployment::on_dynamo(DynamoLocal::shared().await, &settings);
        if is_sealed {
            deployment.ok(&["keys", "init"]);
        }
        deployment.register(&provider, SECRET, ["acme-crm"]).await;
        Self { provider, deployment, moto }
    }

    /// Starts the daemon, and waits for the first token.
    async fn daemon(&self) -> Process {
        let (daemon, store) = (self.deployment.daemon().await, self.deployment.store().await);
        wait_until(SOON, "the first token", async || {
            snapshot(&store, "acme-crm").await.token.is_some_and(|token| token.generation.0 >= 1)
        })
        .await;
        daemon
    }

    /// A program of `examples/`, with nothing in its environment but where AWS is.
    async fn example(&self, party: &str, dynamodb: &str) -> Command {
        part("examples/readers/node/node_modules/.complete");
        part(".parts/moto/.complete");
        let python = part(".parts/moto/bin/python");
        let script = |name: &str| Some(part(&format!("examples/readers/{name}")));
        let (program, script) = match party {
            "plain" => ("node".into(), script("node/read-token.mjs")),
            "Node.js" => ("node".into(), script("node/read-sealed-token.mjs")),
            "Python" => (python, script("python/read_sealed_token.py")),
            _ => (example("read-token").await, None),
        };
        let mut command = bare(program);
        command.args(script).env("HOME", self.deployment.path());
        command.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]);
        command.env("AWS_REGION", "us-east-1").env("AWS_ENDPOINT_URL_DYNAMODB", dynamodb);
        command.env("AWS_ENDPOINT_URL_KMS", self.moto.endpoint());
        command
    }
}

fn bare(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    command
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A service: it is asked for a client's token again and again, a line each.
struct Service {
    party: &'static str,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// How often it has asked for a token's item.
    questions: Arc<AtomicUsize>,
    /// Whether they are refused.
    is_cut_off: Arc<AtomicBool>,
    /// When the last token expires that it has given.
    good_until: u64,
    child: Child,
    _front: Front,
}

impl Service {
    async fn start(world: &World, party: &'static str) -> Self {
        let questions = Arc::new(AtomicUsize::new(0));
        let is_cut_off = Arc::new(AtomicBool::new(false));
        let (counted, refuses) = (Arc::clone(&questions), Arc::clone(&is_cut_off));
        let front = Front::before(DynamoLocal::shared().await.endpoint(), move |call| {
            let reads = ["GetItem", "BatchGetItem"].contains(&call.operation());
            let asks = reads && String::from_utf8_lossy(&call.body).contains("TOKEN#ACCESS");
            counted.fetch_add(usize::from(asks), Ordering::Relaxed);
            refuses.load(Ordering::Relaxed).then_some(ACCESS_DENIED)
        })
        .await;
        let mut command = world.example(party, front.url()).await;
        command.args(["--table", world.deployment.table_name()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let input = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { party, input, answers, questions, is_cut_off, good_until: 0, child, _front: front }
    }

    /// Its token; none where it says that there is no good one. What it gives is good.
    async fn read(&mut self, id: &str) -> Option<String> {
        self.ask(id, 1).await;
        self.answer(id).await
    }

    /// While the table refuses, a good token goes on being given, an expired one is not.
    async fn is_cut_off_and_back(&mut self) {
        // A token that has expired before its reader asked again tells nothing: the next one may.
        for _ in 0..5 {
            if self.bridges_a_refusal().await {
                return;
            }
        }
        panic!("{} gave nothing from the first refusal on", self.party);
    }

    /// While the table refuses, a token is given until it expires. Returns whether one was once the table had been asked.
    async fn bridges_a_refusal(&mut self) -> bool {
        assert!(self.read("acme-crm").await.is_some(), "{}", self.party);
        self.is_cut_off.store(true, Ordering::Relaxed);
        let before = self.questions.load(Ordering::Relaxed);
        let mut is_bridged = false;
        wait_until(SOON, "the last one expires", async || {
            let asked = self.questions.load(Ordering::Relaxed) > before;
            let token = self.read("acme-crm").await;
            is_bridged |= token.is_some() && asked;
            token.is_none()
        })
        .await;
        assert!(now() + LEAST > self.good_until, "{} gives up a token that is good", self.party);
        self.is_cut_off.store(false, Ordering::Relaxed);
        wait_until(SOON, "it is back", async || self.read("acme-crm").await.is_some()).await;
        is_bridged
    }

    async fn ask(&mut self, id: &str, times: usize) {
        self.input.write_all(format!("{id}\n").repeat(times).as_bytes()).await.expect("it reads");
        self.input.flush().await.expect("it reads");
    }

    async fn answer(&mut self, id: &str) -> Option<String> {
        let before = now();
        let line = tokio::time::timeout(SOON, self.answers.next_line()).await;
        let line = line.expect("it answers").expect("text").expect("it lives");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(answer["client"], id, "{}", self.party);
        let Some(token) = answer["access_token"].as_str() else {
            assert!(answer["error"].as_str().is_some_and(|why| !why.is_empty()), "{}: {line}", self.party);
            return None;
        };
        self.good_until = answer["expires_at"].as_u64().expect("a time");
        assert!(self.good_until >= before, "{} gives an expired token: {line}", self.party);
        Some(token.to_owned())
    }
}

/// One question for many that ask at once, the provider's tokens, one after the other, and none that has expired.
async fn lives(world: &World, parties: &[&'static str]) {
    let mut daemon = world.daemon().await;
    let mut services = Vec::new();
    for party in parties {
        services.push(Service::start(world, party).await);
    }
    let mut first = BTreeMap::new();
    for service in &mut services {
        const MANY: usize = 20;
        service.ask("acme-crm", MANY).await;
        for _ in 0..MANY {
            let token = service.answer("acme-crm").await.expect("it is kept");
            assert!(world.provider.is_active(&token).await, "{} reads a dead token", service.party);
            first.insert(service.party, token);
        }
        let questions = service.questions.load(Ordering::Relaxed);
        assert!((1..=4).contains(&questions), "{}: {questions} questions for {MANY}", service.party);
        assert_eq!(service.read("nobody").await, None, "{}", service.party);
    }
    for service in &mut services {
        let first = &first[service.party];
        let next = wait_for(SOON, "the next token", async || {
            Some(service.read("acme-crm").await.expect("it is kept")).filter(|token| token != first)
        })
        .await;
        assert!(world.provider.is_active(&next).await, "{}", service.party);
        let got = world.deployment.ok(&["get", "acme-crm"]);
        wait_until(SOON, "the same as `perennial get`", async || {
            let token = service.read("acme-crm").await.expect("it is kept");
            got.trim() == token || world.deployment.ok(&["get", "acme-crm"]).trim() == token
        })
        .await;
    }
    for service in &mut services {
        service.is_cut_off_and_back().await;
    }
    daemon.signal("TERM");
    daemon.exit_code(SOON).await;
    for service in &mut services {
        wait_until(SOON, "the last one expires", async || service.read("acme-crm").await.is_none()).await;
        assert_eq!(service.read("acme-crm").await, None, "{}: for good", service.party);
        assert!(service.child.try_wait().expect("a child").is_none(), "{} lives on", service.party);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_read_what_stands_in_the_table_as_it_is() {
    lives(&World::new(false, "").await, &["Node.js", "Python", "Rust"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_read_what_is_sealed() {
    let world = World::new(true, "").await;
    lives(&world, &["Node.js", "Python", "Rust"]).await;
    let store = world.deployment.store().await;
    let stored =
        snapshot(&store, "acme-crm").await.token.and_then(|token| token.access_token).expect("a token");
    assert!(stored.expose().starts_with("eyJ") && stored.expose().split('.').count() == 5, "it was sealed");
}

/// What customers have: a `GetItemCommand`, `unmarshall`, two members.
#[tokio::test(flavor = "multi_thread")]
async fn the_readers_that_there_are_already_go_on_reading() {
    let world = World::new(false, "").await;
    let mut daemon = world.daemon().await;
    let read = async |id: &str| {
        let mut command = world.example("plain", DynamoLocal::shared().await.endpoint()).await;
        let output = command.args([id, world.deployment.table_name()]).output().await.expect("it starts");
        // Before it may stand what the SDK says of this Node.js's age.
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next_back().unwrap_or_default().to_owned();
        if output.status.success() {
            Ok(serde_json::from_slice::<Value>(&output.stdout).expect("JSON"))
        } else {
            Err(said)
        }
    };
    let first = read("acme-crm").await.expect("a token");
    assert!(world.provider.is_active(first["access_token"].as_str().expect("a token")).await);
    assert!(first["expires_at"].as_u64().is_some_and(|at| (now()..now() + 13).contains(&at)), "{first}");
    wait_until(SOON, "the next token", async || read("acme-crm").await.expect("a token") != first).await;
    assert_eq!(read("nobody").await, Err("read-token: no valid token for nobody".to_owned()));
    daemon.signal("TERM");
    daemon.exit_code(SOON).await;
    let refused = Err("read-token: no valid token for acme-crm".to_owned());
    wait_until(SOON, "the last one expires", async || read("acme-crm").await == refused).await;
    let source = std::fs::read_to_string(part("examples/readers/node/read-token.mjs")).expect("text");
    let key = "Key: marshall({ PK: 'CLIENT#' + id, SK: 'TOKEN#ACCESS' })";
    assert!(source.contains(key), "the key is made as readers make it");
}

/// A question is answered after the token was forgotten: with the one that the provider has refused.
const FORGOTTEN: &str = "
import { cached } from './read-sealed-token.mjs';
const answers = [];
const { read, forget } = cached(() => new Promise((resolve) => answers.push(resolve)));
const answer = (n, text) => {
  const token = { access_token: text, expires_at: Date.now() / 1000 + 600 };
  answers[n]({ token, refreshAtMs: Date.now() + 300_000 });
};
const turn = () => new Promise(setImmediate);
const waiting = read('acme');
forget('acme');
const later = read('acme');
answer(1, 'new');
await later;
answer(0, 'old');
const seen = [await waiting, await later, await read('acme')].map((token) => token.access_token);
forget('acme');
const last = read('acme');
forget('acme');
answer(2, 'older');
await turn();
answer(3, 'newest');
seen.push((await last).access_token);
console.log(seen.join(' '), answers.length);
";

#[tokio::test]
async fn what_was_forgotten_does_not_come_back_with_an_older_answer() {
    part("examples/readers/node/node_modules/.complete");
    assert_eq!(ran(runs("js", FORGOTTEN), "forgetting").await, "new new new newest 4");
}

// The snippets of the documentation.

/// The code of `docs/readers.md` in this language that has this word in it, as it stands there.
fn snippet(language: &str, word: &str) -> String {
    let text = std::fs::read_to_string(part("docs/readers.md")).expect("text");
    let blocks = text.split("```").skip(1).step_by(2);
    let mut fitting = blocks.filter_map(|block| {
        let (first, code) = block.split_once('\n')?;
        (first == language && code.contains(word)).then(|| code.to_owned())
    });
    let found = fitting.next().unwrap_or_else(|| panic!("no snippet in {language} with {word:?}"));
    assert_eq!(fitting.next(), None, "one snippet in {language} has {word:?}");
    found
}

/// How a snippet is run, once its places are this test's: its function is called, and prints what it returns.
fn runs(language: &str, code: &str) -> Command {
    let (program, arguments) = match language {
        "js" => ("node".into(), vec!["--input-type=module", "--eval", code]),
        "python" => (part(".parts/moto/bin/python"), vec!["-c", code]),
        _ => ("sh".into(), vec!["-ec", code]),
    };
    let mut command = bare(program);
    // Beside the packages that it imports.
    command.args(arguments).current_dir(part("examples/readers/node"));
    command
}

async fn ran(mut command: Command, what: &str) -> String {
    let output = tokio::time::timeout(SOON, command.output()).await.expect("it ends").expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {errors}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// The variable that has a reader's key in AWS Lambda. Elsewhere it is AWS's alone.
const LAMBDA: &str = "AWS_SESSION_TOKEN";

/// By language and a word of its own: what must be there, and work.
const SNIPPETS: [(&str, &str); 10] = [
    ("js", "env.READER_KEY}` };\n  const reply = await fetch("),
    ("js", "socketPath"),
    ("js", "GetItemCommand"),
    ("js", "/run/acme/token"),
    ("js", LAMBDA),
    ("python", "127.0.0.1:2774"),
    ("python", "AF_UNIX"),
    ("python", "boto3"),
    ("python", "/run/acme/token"),
    ("sh", "--unix-socket"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_documentation_shows_works() {
    let files = "[agent]\naddress = \"127.0.0.1:0\"\nsocket = \"agent.sock\"\nkeys_file = \"keys.toml\"\n\
                 [agent.files.acme]\nclient = \"acme-crm\"\npath = \"token\"\n";
    let world = World::new(false, files).await;
    let _daemon = world.daemon().await;
    let made = world.deployment.ok(&["agent", "key", "billing", "--json"]);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let entry = format!("[readers.billing]\nkey_sha256 = [{}]\nclients = [\"*\"]\n", made["key_sha256"]);
    let at = |name: &str| world.deployment.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(at("keys.toml"), entry).expect("writable");
    let agent = world.deployment.start(&["agent"], &[]).await;
    let (url, key) = (agent_url(&agent).await, made["key"].as_str().expect("a key"));
    wait_until(SOON, "the file", async || world.deployment.path().join("token").exists()).await;
    for (language, word) in SNIPPETS {
        let call = match language {
            "js" => "\nconsole.log(await authorization('acme-crm'));",
            "python" => "\nprint(authorization(\"acme-crm\"))",
            _ => "",
        };
        let code = (snippet(language, word) + call)
            .replace("http://127.0.0.1:2774", &url)
            .replace("min_ttl=30s", "min_ttl=1s")
            .replace("/run/perennial/agent.sock", &at("agent.sock"))
            .replace("/run/acme/token", &at("token"))
            .replace("client-credentials", world.deployment.table_name());
        let mut command = runs(language, &code);
        command.env(if word == LAMBDA { LAMBDA } else { "READER_KEY" }, key);
        command.env("HOME", world.deployment.path());
        command.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]);
        command.envs([("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1")]);
        command.env("AWS_ENDPOINT_URL_DYNAMODB", DynamoLocal::shared().await.endpoint());
        let printed = ran(command, word).await;
        let token = printed.strip_prefix("Bearer ").unwrap_or_else(|| panic!("{word} prints {printed:?}"));
        assert!(world.provider.is_active(token).await, "{language}, {word}");
    }
    assert!(!agent.errors().contains(key));
}
