//! The agent in the place of AWS's: readers that others wrote for AWS's agent and extension get tokens, unchanged.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use perennial::time::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::support::{DynamoLocal, Front, THROTTLED, drop_in_port, http_client, part, wait_until};
use crate::{SECRET, SOON, World};

const DROP_IN: &str =
    "[agent.drop_in]\naddress = \"127.0.0.1:0\"\nnames = [\"prod/oauth/{client}\", \"{client}\"]";
const KEY: &str = "X-Aws-Parameters-Secrets-Token";

/// A world whose agent answers in AWS's way, too.
struct DropIn {
    world: World,
    port: u16,
}

impl DropIn {
    async fn new(more: &str) -> Self {
        let world = World::new("600", &format!("{DROP_IN}\n{more}")).await;
        let port = drop_in_port(&world.agent).await;
        Self { world, port }
    }

    async fn get(&self, target: &str) -> (u16, Value) {
        let (status, body) = self.ask(target, &[(KEY, &self.world.key)]).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    async fn ask(&self, target: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let request = http_client().get(format!("http://localhost:{}{target}", self.port));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let reply = request.send().await.expect("the agent answers");
        (reply.status().as_u16(), reply.text().await.expect("a body"))
    }

    /// The crate `aws-parameters-and-secrets-lambda`, as a function in AWS Lambda would use it.
    fn extension_reader(&self, words: &[&str]) -> Output {
        part(".parts/extension-reader/.complete");
        let mut reader = Command::new(part(".parts/extension-reader/debug/extension-reader"));
        reader.args(words).env("AWS_SESSION_TOKEN", &self.world.key);
        reader.env("PARAMETERS_SECRETS_EXTENSION_HTTP_PORT", self.port.to_string());
        reader.output().expect("it is built")
    }
}

fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_written_for_the_extension_of_aws_is_content() {
    let there = DropIn::new("").await;
    let (_, token) = there.world.get("acme-crm").await;
    let access = token["access_token"].as_str().expect("a token");
    for words in [&["prod/oauth/acme-crm"][..], &["acme-crm", "AWSCURRENT"]] {
        let printed = lines(&there.extension_reader(words));
        assert_eq!(printed[1], access);
        let told: Value = serde_json::from_str(&printed[0]).expect("JSON");
        assert_eq!(told["authorization"], format!("Bearer {access}"));
        assert_eq!(told["expires_at"], token["expires_at"]);
    }
    for (words, status) in [(&["prod/oauth/acme-nobody"][..], "400"), (&["acme-crm", "AWSPREVIOUS"], "400")] {
        let refused = there.extension_reader(words);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains(status), "{told}");
    }
}

/// As "Using the AWS Secrets Manager Agent" of AWS's guide has it done in Python: `requests`, and a token from a file.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_in_python_takes_its_token_from_a_file() {
    const READER: &str = "import json, requests, sys\n\
        token = open(sys.argv[1]).read().strip()\n\
        session = requests.Session()\n\
        url = f'http://localhost:{sys.argv[2]}/secretsmanager/get'\n\
        for _ in range(3):\n\
        \x20   reply = session.get(url, params={'secretId': sys.argv[3]}, headers={'X-Aws-Parameters-Secrets-Token': token})\n\
        \x20   reply.raise_for_status()\n\
        print(json.loads(reply.json()['SecretString'])['access_token'])\n";
    let there = DropIn::new("").await;
    let file = there.world.deployment.secret_file("awssmatoken", &format!("{}\n", there.world.key));
    part(".parts/moto/.complete");
    let arn = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/oauth/acme-crm-NhBWsc";
    let mut python = Command::new(part(".parts/moto/bin/python"));
    python.args(["-c", READER]).arg(file).args([&there.port.to_string(), arn]).env("NO_PROXY", "localhost");
    let printed = lines(&python.output().expect("python starts"));
    assert_eq!(there.world.get("acme-crm").await.1["access_token"], printed[0].as_str());
}

#[tokio::test]
async fn answers_have_the_shape_of_get_secret_value() {
    let there = DropIn::new("").await;
    let (_, token) = there.world.get("acme-crm").await;
    let (status, told) = there.get("/secretsmanager/get?secretId=prod%2Foauth%2Facme-crm").await;
    assert_eq!((status, &told["Name"]), (200, &json!("prod/oauth/acme-crm")));
    let mut keys: Vec<_> = told.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["ARN", "CreatedDate", "Name", "SecretString", "VersionId", "VersionStages"]);
    assert_eq!(told["VersionStages"], json!(["AWSCURRENT"]));
    let arn = told["ARN"].as_str().expect("an ARN");
    assert!(arn.starts_with("arn:aws:secretsmanager:us-east-1:000000000000:secret:prod/oauth/acme-crm-"));
    let created: f64 = told["CreatedDate"].as_str().and_then(|text| text.parse().ok()).expect("seconds");
    assert!(created > 1.7e9 && created < 1e11, "{created}");
    let string: Value = serde_json::from_str(told["SecretString"].as_str().expect("a string")).expect("JSON");
    assert_eq!(string["access_token"], token["access_token"]);

    // By its ARN, by the path, by its version, confirmed: it is the same secret.
    let version = told["VersionId"].as_str().expect("a version");
    for target in [
        format!("/secretsmanager/get?secretId={arn}"),
        "/v1/prod/oauth/acme-crm".to_owned(),
        format!("/v1/acme-crm?versionId={version}&versionStage=AWSCURRENT"),
        "/secretsmanager/get?secretId=acme-crm&refreshNow=true".to_owned(),
    ] {
        let (status, same) = there.get(&target).await;
        assert_eq!((status, &same["VersionId"]), (200, &told["VersionId"]), "{target}: {same}");
    }
    assert_eq!(there.get("/secretsmanager/get").await, (400, json!("missing parameter secretId")));
    let kind = async |target: &str| {
        let (status, told) = there.get(target).await;
        (status, told["__type"].as_str().unwrap_or_default().to_owned())
    };
    let absent = (400, "ResourceNotFoundException".to_owned());
    for target in ["acme-nobody", "prod/acme-crm", "acme-crm&versionStage=AWSPENDING", "acme-crm&versionId=x"]
    {
        assert_eq!(kind(&format!("/secretsmanager/get?secretId={target}")).await, absent, "{target}");
    }
    assert_eq!(kind("/v1/other").await, (400, "AccessDeniedException".into()), "the key is not for it");
}

/// `acme-europe` ends as an ARN does, and is not the client `acme`.
#[tokio::test(flavor = "multi_thread")]
async fn an_arn_never_leads_to_another_clients_token() {
    const ARN: &str = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/oauth/";
    let there = DropIn::new("").await;
    let world = &there.world;
    let ask = async |name: &str| {
        let (status, told) = there.get(&format!("/secretsmanager/get?secretId={ARN}{name}")).await;
        (status, told["Name"].as_str().unwrap_or_default().to_owned())
    };
    let crm = (200, "prod/oauth/acme-crm".to_owned());
    assert_eq!(ask("acme-crm-europe").await, crm, "an end like any other");
    let ids = ["acme-x-europe", "acme-x-europe-Ab12Cd", "acme-both", "acme-both-Ab12Cd"];
    world.deployment.register(&world.provider, SECRET, ids).await;
    for id in ids {
        wait_until(SOON, "the first token", async || world.get(id).await.0 == 200).await;
    }
    for (name, whose) in [
        ("acme-x-europe", "prod/oauth/acme-x-europe"),
        ("acme-both-NhBWsc", "prod/oauth/acme-both"),
        ("acme-both-Ab12Cd-NhBWsc", "prod/oauth/acme-both-Ab12Cd"),
    ] {
        assert_eq!(ask(name).await, (200, whose.to_owned()), "{name}");
    }
    for either in ["acme-x-europe-Ab12Cd", "acme-both-Ab12Cd"] {
        assert_eq!(ask(either).await, (400, String::new()), "{either}");
    }
    assert_eq!(ask("other-NhBWsc").await, (400, String::new()), "the key is not for it");
}

#[tokio::test]
async fn whoever_may_not_ask_hears_the_words_of_aws_and_is_in_the_log() {
    let there = DropIn::new("").await;
    let (target, key) = ("/secretsmanager/get?secretId=acme-crm", there.world.key.as_str());
    let own = (KEY, key);
    for (headers, status, words) in [
        (&[][..], 403, "Bad Token"),
        (&[(KEY, "prn_wrong")], 403, "Bad Token"),
        (&[("authorization", "Bearer x")], 403, "Bad Token"),
        (&[own, ("x-forwarded-for", "10.0.0.1")], 400, "Forwarded"),
        (&[own, ("via", "1.1 proxy")], 400, "Forwarded"),
        (&[own, ("origin", "https://evil.example")], 400, "Forwarded"),
    ] {
        assert_eq!(there.ask(target, headers).await, (status, words.to_owned()), "{headers:?}");
    }
    // The agent of AWS answers to any name; a page of evil.example could read on.
    let (status, told) = there.ask(target, &[own, ("host", "evil.example")]).await;
    assert_eq!(status, 421, "{told}");
    assert_eq!(there.ask("/ping", &[]).await, (200, "healthy".into()));
    assert_eq!(there.ask(target, &[("x-vault-token", key)]).await.0, 200);
    assert_eq!(there.ask("/systemsmanager/parameters/get?name=a", &[own]).await, (404, "Not found".into()));
    assert_eq!(there.ask("/v1/token/acme-crm", &[("authorization", key)]).await.0, 403, "no second way in");
    let url = format!("http://127.0.0.1:{}{target}", there.port);
    let posted = http_client().post(url).header(KEY, key).send().await.expect("an answer");
    assert_eq!(posted.status(), 405);
    let log = there.world.agent.errors();
    for code in ["key_missing", "key_unknown", "forwarded_request", "another_host"] {
        assert!(log.contains(code), "{code}");
    }
    assert!(!log.contains(key));
}

#[tokio::test]
async fn the_string_may_be_the_access_token_alone() {
    let there = DropIn::new("form = \"plain\"").await;
    let (_, token) = there.world.get("acme-crm").await;
    assert_eq!(there.get("/v1/acme-crm").await.1["SecretString"], token["access_token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_now_asks_the_table_and_a_flood_of_it_hardly_more() {
    let asked = Arc::new(AtomicUsize::new(0));
    let deaf = Arc::new(AtomicUsize::new(0));
    let (count, refuses) = (Arc::clone(&asked), Arc::clone(&deaf));
    let front = Front::before(DynamoLocal::shared().await.endpoint(), move |call| {
        if call.operation().contains("Get") {
            count.fetch_add(1, Ordering::Relaxed);
        }
        (refuses.load(Ordering::Relaxed) > 0).then_some(THROTTLED)
    })
    .await;
    let world = World::with("600", DROP_IN, &[("PERENNIAL__STORE__ENDPOINT", front.url())]).await;
    let port = drop_in_port(&world.agent).await;
    let there = DropIn { world, port };
    let target = "/secretsmanager/get?secretId=acme-crm&refreshNow=true";
    wait_until(SOON, "a question to the table", async || {
        let before = asked.load(Ordering::Relaxed);
        assert_eq!(there.get(target).await.0, 200);
        asked.load(Ordering::Relaxed) > before
    })
    .await;
    let (begun, before) = (SystemClock.moment(), asked.load(Ordering::Relaxed));
    for _ in 0..10 {
        let replies = futures_util::future::join_all((0..50).map(|_| there.get(target))).await;
        assert!(replies.iter().all(|(status, _)| *status == 200));
    }
    // A question about a token that is near its end looks at what stands beside it as well: two requests.
    let seconds = usize::try_from(SystemClock.moment().since(begun).as_secs()).expect("a few");
    let more = asked.load(Ordering::Relaxed) - before;
    assert!(more <= 2 * (seconds + 2), "{more} requests in {seconds} s for 500 readers");

    // Without the table it says so, as AWS's does, and whoever does not insist is served.
    deaf.store(1, Ordering::Relaxed);
    wait_until(SOON, "an error", async || {
        let (status, told) = there.get(target).await;
        status == 503 && told["__type"] == "ServiceUnavailable"
    })
    .await;
    assert_eq!(there.get("/secretsmanager/get?secretId=acme-crm").await.0, 200);
}
