//! A deployment in which everything that can be a secret is one that is looked for.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use perennial::client::ClientId;
use perennial::store::Store as _;
use serde_json::{Value, json};

use crate::support::{
    ACCESS_DENIED, Auth, Call, Canaries, Deployment, DynamoLocal, EXPIRED_CREDENTIALS, Front, Moto, Redis,
    Refusal, StrictProvider, THROTTLED, free_port,
};

/// Anything that is to happen soon, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const SECRET: &str = "client/canary+\"1\"\\é%&= one";
pub(crate) const HEADER: &str = "header/canary+\"2\"=%5C";
pub(crate) const ASSERTION: &str = "param/canary+\"3\"\\é&= three";
pub(crate) const QUERY: &str = "query-canary-4";
const PROXY_PASSWORD: &str = "proxy-canary-5";
const AWS_SECRET: &str = "aws/canary+6=";
const AWS_SESSION: &str = "aws/session+canary/7=";
/// 32 bytes in hexadecimal.
pub(crate) const KEY: &str = "c0ffee00c0ffee01c0ffee02c0ffee03c0ffee04c0ffee05c0ffee06c0ffee07";
/// What stands in the answer that the table does not take, again and again.
const LARGE: &str = "large/canary+\"8\"";

/// Clients whose secrets are kept elsewhere, where (`FOLDER` is the deployment's), and the secrets: of characters that stay as they are
/// however often they are quoted, since services put them into JSON that is put into JSON.
pub(crate) const REFERRED: [(&str, &str, &str); 4] = [
    ("at-ssm", "ssm:/leaks/acme", "ssm/canary+9=one"),
    ("at-secretsmanager", "secretsmanager:leaks/shared#client_secret", "secretsmanager/canary+10=one"),
    ("at-env", "env:REFERRED_SECRET", "env/canary+11=one"),
    ("at-file", "file:FOLDER/referred/acme", "file/canary+12=one"),
];
/// Stands beside the one secret in Secrets Manager, and is nobody's.
const BESIDE: &str = "beside/canary+13=one";
/// That of the shared cache.
pub(crate) const CACHE_PASSWORD: &str = "cache/canary+\"15\"=%é";
const CACHE_USER: &str = "leaks";
/// Whoever says so was let in with it.
pub(crate) const CACHE_ANSWERS: &str = "the shared cache answers";

/// Everything there is to be logged; and everything that libraries have to tell, by their names.
pub(crate) const FILTERS: [&str; 2] = [
    "trace",
    "perennial=trace,aws_config=trace,aws_sigv4=trace,aws_smithy_runtime=trace,aws_sdk_dynamodb=trace,aws_sdk_ssm=trace,\
     aws_sdk_secretsmanager=trace,hyper=trace,hyper_util=trace,reqwest=trace,rustls=trace,oauth2=trace,h2=trace,axum=trace,config=trace,redis=trace",
];

/// One client with an application of its own, and what its provider does to it.
pub(crate) struct Case {
    pub(crate) id: &'static str,
    provider: &'static str,
    fault: fn(&str) -> Value,
}

/// What goes wrong, and each time the answer echoes what was sent.
pub(crate) const CASES: &[Case] = &[
    case("good", "strict", |_| Value::Null),
    case("posted", "posting", |_| Value::Null),
    case("grant", "strict", |token| refusal(400, "invalid_grant", token)),
    case("client", "strict", |token| refusal(401, "invalid_client", token)),
    case("request", "posting", |token| refusal(400, "invalid_request", token)),
    case("coded", "strict", |token| refusal(400, token, token)),
    case("coded-200", "strict", |token| refusal(200, token, token)),
    case("vendor", "strict", |token| {
        status(400, &json!({ "status": token, "error": SECRET, "error_uri": SECRET }).to_string(), token)
    }),
    case("page", "strict", |token| status(503, &format!("<html>{token} {SECRET} {ASSERTION}</html>"), token)),
    case("page-200", "strict", |token| status(200, &format!("<html>{token} {SECRET}</html>"), token)),
    case("cut-json", "strict", |token| status(200, &format!("{{\"access_token\":\"{token}"), token)),
    case("scalar", "strict", |token| status(200, &json!(token).to_string(), token)),
    case("throttled", "strict", |token| status(429, token, token)),
    case("redirected", "strict", |token| {
        let location = format!("http://127.0.0.1:9/?refresh_token={token}&api_key={QUERY}");
        json!({ "kind": "redirect", "location": location })
    }),
    case("slow", "strict", |_| json!({ "kind": "slow", "ms": 4000 })),
    case("lost", "strict", |_| json!({ "kind": "lose_reply" })),
    case("truncated", "strict", |_| json!({ "kind": "truncated" })),
    case("reset", "strict", |_| json!({ "kind": "reset_before" })),
    case("huge", "strict", |_| json!({ "kind": "huge", "bytes": 3 << 20 })),
    case("nobody", "nobody", |_| Value::Null),
    case("proxied", "proxied", |_| Value::Null),
    case("tls", "tls", |_| Value::Null),
];

/// More than an item holds, and less than an answer may. Whoever was given it keeps it for as long as it lives.
pub(crate) const TOO_LARGE: Case = case("large", "strict", |_| {
    let body = json!({ "access_token": LARGE.repeat(40_000), "refresh_token": LARGE, "expires_in": 3600 });
    json!({ "kind": "status", "code": 200, "body": body.to_string() })
});

const fn case(id: &'static str, provider: &'static str, fault: fn(&str) -> Value) -> Case {
    Case { id, provider, fault }
}

fn refusal(code: u16, error: &str, token: &str) -> Value {
    let description = format!("{token} of {SECRET} with {ASSERTION} is refused");
    let body = json!({ "error": error, "error_description": description, "error_uri": token });
    status(code, &body.to_string(), token)
}

fn status(code: u16, body: &str, token: &str) -> Value {
    let headers = json!({
        "www-authenticate": format!("Basic realm=\"{token}\", error_description=\"{QUERY}\""),
        "retry-after": token,
        "x-echo": HEADER,
    });
    json!({ "kind": "status", "code": code, "body": body, "headers": headers })
}

/// What stands before the table does this.
#[derive(Clone, Copy)]
pub(crate) enum Mood {
    Serves = 0,
    Throttles = 1,
    Denies = 2,
    Expires = 3,
}

pub(crate) struct World {
    pub(crate) canaries: Canaries,
    _strict: StrictProvider,
    pub(crate) moto: Moto,
    pub(crate) deployment: Deployment,
    /// What programs of this world have in their environment.
    pub(crate) variables: Vec<(String, String)>,
    mood: Arc<AtomicU8>,
    _front: Front,
    _redis: Redis,
}

impl World {
    /// All cases are registered, and nothing has been refreshed.
    pub(crate) async fn new() -> Self {
        Self::of(CASES.iter()).await
    }

    pub(crate) async fn of(cases: impl Iterator<Item = &Case>) -> Self {
        let (mut canaries, strict) = (planted(), StrictProvider::start(&["--lifetime-secs", "600"]).await);
        let (local, moto) = (DynamoLocal::shared().await, Moto::start().await);
        let redis = Redis::start().await;
        let words = ["ACL", "SETUSER", CACHE_USER, "on", &format!(">{CACHE_PASSWORD}"), "~*", "+@all"];
        redis.ask::<()>(&words);
        let mood = Arc::new(AtomicU8::new(0));
        let front = Front::before(local.endpoint(), rule(&mood)).await;
        let deployment = Deployment::on_dynamo(local, &settings(&strict));
        let mut clients = String::new();
        for case in cases {
            let client = register(&strict, &deployment, case, &mut canaries).await;
            clients.push_str(&client);
        }
        for referred in REFERRED {
            clients.push_str(&refer(&strict, &moto, &deployment, referred, &mut canaries).await);
        }
        std::fs::write(deployment.path().join("clients.toml"), clients).expect("the folder is writable");
        let variables = variables(&deployment, front.url(), moto.endpoint(), &redis.url());
        let world = Self {
            canaries,
            _strict: strict,
            moto,
            deployment,
            variables,
            mood,
            _front: front,
            _redis: redis,
        };
        assert!(world.run(&["clients", "apply", "clients.toml", "--json"]).status.success());
        world
    }

    pub(crate) fn be(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }

    pub(crate) fn with<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        own.chain(more.iter().copied()).collect()
    }

    /// Runs a command to its end. It shows no secret.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[])
    }

    pub(crate) fn run_with(&self, arguments: &[&str], more: &[(&str, &str)]) -> Output {
        let output = self.deployment.run_with(arguments, &self.with(more));
        let (told, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let what = format!("{arguments:?}");
        if arguments.first() == Some(&"get") {
            self.canaries.assert_absent_but_access_tokens(&what, &told);
        } else {
            self.canaries.assert_absent(&what, &told);
        }
        self.canaries.assert_absent(&format!("{what}: its messages"), &errors);
        assert!(!errors.contains("panicked"), "{what}: {errors}");
        output
    }

    /// Plants the refresh tokens that stand in the table by now, and access tokens where no command is to print them.
    pub(crate) async fn plant_stored(&mut self, access_tokens: bool) {
        let store = self.deployment.store().await;
        for id in CASES.iter().map(|case| case.id).chain(REFERRED.map(|(id, ..)| id)) {
            let id = ClientId::new(id).expect("a valid id");
            let read = store.read(&id).await.expect("the table answers");
            // Of what was spoilt only the forms are looked for.
            let stored = read.decode(&id).ok().and_then(|read| read.token);
            let access = |token: Option<_>| token.filter(|_| access_tokens);
            let tokens =
                stored.into_iter().flat_map(|token| [access(token.access_token), token.refresh_token]);
            tokens.flatten().for_each(|token| self.canaries.add(token.expose()));
        }
    }

    /// How many attempts of this client have been begun.
    pub(crate) async fn attempts(&self, id: &str) -> i64 {
        let id = ClientId::new(id).expect("a valid id");
        let read = self.deployment.store().await.read(&id).await.expect("the table answers");
        read.decode(&id).expect("our own items").lease.map_or(0, |lease| lease.generation.0)
    }
}

fn planted() -> Canaries {
    let mut canaries = Canaries::default();
    let secrets = [
        SECRET,
        HEADER,
        ASSERTION,
        QUERY,
        PROXY_PASSWORD,
        AWS_SECRET,
        AWS_SESSION,
        KEY,
        LARGE,
        BESIDE,
        CACHE_PASSWORD,
    ];
    secrets.into_iter().for_each(|secret| canaries.add(secret));
    canaries.add_basic(CACHE_USER, CACHE_PASSWORD);
    let bytes = |text: &str| u8::from_str_radix(text, 16).expect("hexadecimal");
    let key: Vec<u8> = (0..KEY.len()).step_by(2).map(|at| bytes(&KEY[at..at + 2])).collect();
    canaries.add_bytes(&key);
    canaries
}

fn rule(mood: &Arc<AtomicU8>) -> impl Fn(&Call) -> Option<Refusal> + Send + Sync + 'static {
    let mood = Arc::clone(mood);
    move |_| match mood.load(Ordering::Relaxed) {
        1 => Some(THROTTLED),
        2 => Some(ACCESS_DENIED),
        3 => Some(EXPIRED_CREDENTIALS),
        _ => None,
    }
}

/// Its client as a clients file has it.
async fn register(
    strict: &StrictProvider,
    deployment: &Deployment,
    case: &Case,
    canaries: &mut Canaries,
) -> String {
    let (id, provider) = (case.id, case.provider);
    strict
        .register(if provider == "posting" { Auth::Post(id, SECRET) } else { Auth::Basic(id, SECRET) })
        .await;
    canaries.add_basic(id, SECRET);
    let token = strict.seed(id).await.refresh_token;
    canaries.add(token.as_str());
    if let Value::Object(mut fault) = (case.fault)(&token) {
        fault.insert("client_id".to_owned(), json!(id));
        strict.fault(fault.into()).await;
    }
    let secret = deployment.secret_file(&format!("{id}.secret"), SECRET);
    let token = deployment.secret_file(&format!("{id}.token"), &token);
    format!(
        "[[clients]]\nid = \"{id}\"\nprovider = \"{provider}\"\ngrant = \"refresh_token\"\nclient_id = \"{id}\"\n\
         client_secret = {{ file = {secret:?} }}\nrefresh_token = {{ file = {token:?} }}\n\
         params = {{ client_assertion = {ASSERTION:?} }}\n"
    )
}

/// The same of a client whose secret is put where the reference leads.
async fn refer(
    strict: &StrictProvider,
    moto: &Moto,
    deployment: &Deployment,
    (id, reference, secret): (&str, &str, &str),
    canaries: &mut Canaries,
) -> String {
    strict.register(Auth::Basic(id, secret)).await;
    canaries.add_basic(id, secret);
    let token = strict.seed(id).await.refresh_token;
    canaries.add(token.as_str());
    match id {
        "at-ssm" => moto.put_parameter("/leaks/acme", secret).await,
        "at-secretsmanager" => {
            let whole = json!({ "client_secret": secret, "beside": BESIDE }).to_string();
            canaries.add(whole.as_str());
            moto.make_secret("leaks/shared", &whole).await;
        }
        "at-file" => {
            let folder = deployment.path().join("referred");
            std::fs::create_dir(&folder).expect("a fresh folder");
            std::fs::write(folder.join("acme"), format!("{secret}\n")).expect("a fresh folder is writable");
        }
        // It is among the variables.
        _ => {}
    }
    let reference = reference.replace("FOLDER", deployment.path().to_str().expect("UTF-8"));
    let token = deployment.secret_file(&format!("{id}.token"), &token);
    format!(
        "[[clients]]\nid = \"{id}\"\nprovider = \"strict\"\ngrant = \"refresh_token\"\nclient_id = \"{id}\"\n\
         client_secret = {{ ref = {reference:?} }}\nrefresh_token = {{ file = {token:?} }}\n"
    )
}

fn settings(strict: &StrictProvider) -> String {
    let own = format!("{}?api_key={QUERY}", strict.token_url());
    let nobody = format!("http://127.0.0.1:{}/token?api_key={QUERY}", free_port());
    let provider = |name: &str, url: &str, more: &str| {
        format!(
            "[providers.{name}]\ntoken_url = \"{url}\"\nrate_per_second = 1000.0\nburst = 1000\n\
             concurrency = 100\nmax_response = 2000000\n{more}\nheaders = {{ x-api-key = {HEADER:?} }}\n\
             params = {{ assertion = {ASSERTION:?} }}\n"
        )
    };
    [
        "[refresh]\nrequest_timeout = \"2s\"\ncommit_budget = \"4s\"\nlease = \"20s\"\nspread = \"0s\"\n\
         concurrency = 200\n[backoff]\nbase = \"100ms\"\nmin_interval = \"0s\"\n[breaker]\nthreshold = 1000\n\
         [discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
         [shutdown]\ntimeout = \"5s\"\n[metrics]\nemf = true\nemf_interval = \"1s\"\n"
            .to_owned(),
        provider("strict", &own, ""),
        provider("posting", &own, "auth = \"client_secret_post\""),
        provider("nobody", &nobody, ""),
        provider("proxied", "http://proxied.test/token", "allow_http = true"),
        provider("tls", &own.replace("http:", "https:"), ""),
    ]
    .concat()
}

fn variables(deployment: &Deployment, endpoint: &str, secrets: &str, cache: &str) -> Vec<(String, String)> {
    let proxy = format!("http://operator:{PROXY_PASSWORD}@127.0.0.1:{}", free_port());
    let spill = deployment.path().join("spill");
    let folder = deployment.path().display();
    let allowed =
        format!("ssm:/leaks/*,secretsmanager:leaks/shared#*,env:REFERRED_*,file:{folder}/referred/*");
    let [.., (_, _, referred), _] = REFERRED;
    [
        ("PERENNIAL__STORE__ENDPOINT", endpoint),
        ("PERENNIAL__SPILL__DIRECTORY", spill.to_str().expect("UTF-8")),
        ("PERENNIAL__SEALING__KEY", KEY),
        ("AWS_ACCESS_KEY_ID", "AKIACANARY"),
        ("AWS_SECRET_ACCESS_KEY", AWS_SECRET),
        ("AWS_SESSION_TOKEN", AWS_SESSION),
        ("AWS_REGION", "us-east-1"),
        ("HTTP_PROXY", proxy.as_str()),
        ("HTTPS_PROXY", proxy.as_str()),
        ("NO_PROXY", "127.0.0.1,localhost"),
        ("APP_SECRET", SECRET),
        ("REFERRED_SECRET", referred),
        ("PERENNIAL__SECRETS__ENDPOINT", secrets),
        ("PERENNIAL__SECRETS__ALLOW", allowed.as_str()),
        ("PERENNIAL__SHARED_CACHE__URL", cache),
        ("PERENNIAL__SHARED_CACHE__USER", CACHE_USER),
        ("PERENNIAL__SHARED_CACHE__PASSWORD", CACHE_PASSWORD),
        ("RUST_BACKTRACE", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}
