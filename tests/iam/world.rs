//! Whose each command is, and a place in which all of them have something to do.

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::Mutex;

use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::types::AttributeValue;
use perennial::iam::Role;

use super::gate::Gate;
use crate::support::iam::Policy;
use crate::support::{
    Auth, Deployment, DynamoLocal, EcsAgent, LambdaApi, Moto, Process, StrictProvider, commands, part,
    snapshot,
};

const SECRET: &str = "canary-client-secret";
const BUCKET: &str = "spilled";
const PARAMETER: &str = "/oauth/acme";
/// Where the policies say that the table is; the agent's task is there, too.
pub(crate) const HOME: &str = "arn:aws:dynamodb:eu-central-1:111122223333";

const NOBODY: &[Role] = &[];
const DAEMON: &[Role] = &[Role::Daemon];
const READER: &[Role] = &[Role::Reader];
const AGENT: &[Role] = &[Role::Agent];
const OPERATOR: &[Role] = &[Role::Operator];
const KEYS: &[Role] = &[Role::KeyAdministrator];

/// Whose each command is; those of nobody ask nothing of AWS.
pub(crate) const COMMANDS: &[(&str, &[Role])] = &[
    ("run", DAEMON),
    ("config check", NOBODY),
    ("config show", NOBODY),
    // The task's first container finishes a table that is there.
    ("table create", &[Role::Daemon, Role::Operator]),
    ("table check", OPERATOR),
    ("clients apply", OPERATOR),
    ("clients add", OPERATOR),
    ("clients list", OPERATOR),
    ("clients show", OPERATOR),
    ("clients pause", OPERATOR),
    ("clients resume", OPERATOR),
    ("clients refresh", OPERATOR),
    ("clients remove", OPERATOR),
    ("clients import-token", OPERATOR),
    ("clients resolve", OPERATOR),
    ("clients secret add", OPERATOR),
    ("clients secret promote", OPERATOR),
    ("clients secret drop", OPERATOR),
    ("clients secret check", OPERATOR),
    ("status", OPERATOR),
    ("fleet", OPERATOR),
    ("top", OPERATOR),
    ("get", READER),
    ("agent", AGENT),
    ("agent key", NOBODY),
    ("lambda-extension", AGENT),
    ("healthcheck", NOBODY),
    ("spill list", OPERATOR),
    ("spill replay", OPERATOR),
    ("keys init", KEYS),
    ("keys list", KEYS),
    ("keys rotate", KEYS),
    ("keys retire", KEYS),
    ("keys export", KEYS),
    ("seal status", OPERATOR),
    ("seal migrate", OPERATOR),
    ("why", OPERATOR),
    ("iam print", NOBODY),
    ("completions", NOBODY),
    ("man", NOBODY),
];

/// Every command, as the program defines them: those that have none below them, and one that does its work without.
pub(crate) fn leaves() -> BTreeSet<String> {
    commands().into_iter().map(|(name, _)| name).chain(["agent".to_owned()]).collect()
}

/// A provider, AWS's services, an ECS agent, and a configuration that names all of them.
pub(crate) struct World {
    pub(crate) moto: Moto,
    pub(crate) agent: EcsAgent,
    /// ARN of the customer master key.
    pub(crate) key: String,
    /// ARN of a secret whose keys are client secrets.
    secret: String,
    provider: StrictProvider,
    deployment: Deployment,
    bucket: aws_sdk_s3::Client,
    performed: Mutex<BTreeSet<(String, String)>>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let provider = StrictProvider::start(&["--lifetime-secs", "3600"]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let moto = Moto::start().await;
        let (key, bucket) = (moto.key().await, moto.bucket(BUCKET).await);
        let secret = moto.make_secret("oauth/shared", &format!("{{\"kept\": {SECRET:?}}}")).await;
        moto.put_parameter(PARAMETER, SECRET).await;
        let settings = format!(
            "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
             [refresh]\nspread = \"0s\"\nlease = \"8s\"\nwindow = \"3s\"\nrequest_timeout = \"2s\"\ncommit_budget = \"2s\"\n\
             salvage_wait = \"2s\"\n[backoff]\nbase = \"200ms\"\nmin_interval = \"200ms\"\ncap = \"1s\"\n\
             [sealing]\nmode = \"kms\"\nkms_key = \"{key}\"\nshards = 2\nfresh = \"10s\"\nstale = \"0s\"\nkey = \"{}\"\n\
             [spill]\ns3_bucket = \"{BUCKET}\"\nreplay_interval = \"1s\"\n\
             [secrets]\nallow = [\"ssm:{PARAMETER}\", \"secretsmanager:{secret}#{{client}}\"]\nfresh = \"1s\"\n\
             [providers.strict]\ntoken_url = \"{}\"\nallow_networks = [\"127.0.0.0/8\"]\nrate_per_second = 1000.0\n\
             burst = 1000\n",
            "00".repeat(32),
            provider.token_url()
        );
        let deployment = Deployment::without_table(DynamoLocal::shared().await, &settings);
        let agent = EcsAgent::start().await;
        let performed = Mutex::default();
        let world = Self { moto, agent, key, secret, provider, deployment, bucket, performed };
        world.write_clients().await;
        world
    }

    async fn write_clients(&self) {
        self.deployment.secret_file("app.secret", SECRET);
        let mut text = String::new();
        let file = "file = \"app.secret\"".to_owned();
        for (id, secret) in [
            ("crm", &file),
            ("old", &file),
            ("noted", &format!("ref = \"ssm:{PARAMETER}\"")),
            ("kept", &format!("ref = \"secretsmanager:{}#kept\"", self.secret)),
        ] {
            self.consent(&format!("{id}.first")).await;
            text += &format!(
                "[[clients]]\nid = \"{id}\"\nprovider = \"strict\"\ngrant = \"refresh_token\"\nclient_id = \"app\"\n\
                 client_secret = {{ {secret} }}\nrefresh_token = {{ file = \"{id}.first\" }}\n"
            );
        }
        self.deployment.secret_file("clients.toml", &text);
    }

    /// A consent of its own, its refresh token in a file of this name.
    pub(crate) async fn consent(&self, file: &str) {
        self.deployment.secret_file(file, &self.provider.seed("app").await.refresh_token);
    }

    pub(crate) fn table(&self) -> &str {
        self.deployment.table_name()
    }

    /// One for each role, in the order of [`Role::ALL`].
    pub(crate) async fn gates(&self) -> [Gate; 5] {
        let references = self.references();
        let references = references.each_ref().map(String::as_str);
        let with = |more: &[&'static str]| [&references[..], more].concat();
        [
            Gate::of(self, Role::Daemon, &with(&["--cluster", "fleet"])).await,
            Gate::of(self, Role::Reader, &[]).await,
            Gate::of(self, Role::Agent, &[]).await,
            Gate::of(self, Role::Operator, &with(&["--create-table"])).await,
            Gate::of(self, Role::KeyAdministrator, &[]).await,
        ]
    }

    /// The options for client secrets that are kept elsewhere.
    pub(crate) fn references(&self) -> [String; 4] {
        let parameter = format!("{}:parameter{PARAMETER}", HOME.replace(":dynamodb:", ":ssm:"));
        ["--secret-arn".to_owned(), self.secret.clone(), "--parameter-arn".to_owned(), parameter]
    }

    /// What `perennial iam print` prints, with the configuration's names.
    pub(crate) fn policy(&self, role: Role, options: &[&str]) -> Policy {
        let table = format!("{HOME}:table/{}", self.table());
        let print = ["iam", "print", role.as_str(), "--table-arn", &table];
        Policy::parse(&self.deployment.ok(&[&print[..], options].concat()))
    }

    /// Runs a command in a role's name.
    pub(crate) fn perform(&self, gate: &Gate, arguments: &[&str], more: &[(&str, &str)]) -> Output {
        let words = arguments.iter().scan(String::new(), |path, word| {
            *path = format!("{path} {word}").trim().to_owned();
            Some(path.clone())
        });
        let commands = leaves();
        let command = words.into_iter().filter(|path| commands.contains(path)).last().expect("a command");
        self.performed.lock().expect("nobody panicked").insert((command, gate.name().to_owned()));
        self.deployment.run_with(arguments, &[&gate.variables(), more].concat())
    }

    #[track_caller]
    pub(crate) fn ok(&self, gate: &Gate, arguments: &[&str]) -> String {
        self.ok_with(gate, arguments, &[])
    }

    #[track_caller]
    pub(crate) fn ok_with(&self, gate: &Gate, arguments: &[&str], more: &[(&str, &str)]) -> String {
        let output = self.perform(gate, arguments, more);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {arguments:?}: {errors} {:?}", gate.name(), gate.refused());
        String::from_utf8(output.stdout).expect("text")
    }

    /// Each command in the name of each role that it is for.
    pub(crate) fn has_run_every_command(&self) {
        let mut wanted = BTreeSet::new();
        for (command, roles) in COMMANDS {
            let names = roles.iter().map(|role| role.as_str());
            let nobody = roles.is_empty().then_some("nobody");
            wanted.extend(names.chain(nobody).map(|name| ((*command).to_owned(), name.to_owned())));
        }
        assert_eq!(*self.performed.lock().expect("nobody panicked"), wanted);
    }

    /// `perennial run`, as a task of ECS.
    pub(crate) async fn daemon(&self, gate: &Gate) -> Process {
        let task = self.agent.variables();
        let task = task.each_ref().map(|(name, value)| (*name, value.as_str()));
        let mut daemon = self.deployment.daemon_with(&[&gate.variables()[..], &task].concat()).await;
        crate::support::wait_until(crate::SOON, "it is warm", async || {
            assert!(!daemon.has_ended(), "it has ended: {}", daemon.errors());
            daemon.errors().contains("warm: all clients")
        })
        .await;
        daemon
    }

    /// `perennial agent`, and where it answers.
    pub(crate) async fn token_agent(&self, gate: &Gate) -> (Process, String) {
        self.performed.lock().expect("nobody panicked").insert(("agent".into(), gate.name().to_owned()));
        let settings =
            [("PERENNIAL__AGENT__ADDRESS", "127.0.0.1:0"), ("PERENNIAL__AGENT__REJECTION_INTERVAL", "10s")];
        let agent = self.deployment.start(&["agent"], &[&gate.variables()[..], &settings].concat()).await;
        let url = crate::support::agent_url(&agent).await;
        (agent, url)
    }

    /// The same as an extension of AWS Lambda, once it waits for events.
    pub(crate) async fn extension(&self, gate: &Gate, lambda: &LambdaApi) -> (Process, String) {
        self.performed
            .lock()
            .expect("nobody panicked")
            .insert(("lambda-extension".into(), gate.name().to_owned()));
        let settings = [
            ("PERENNIAL__AGENT__ADDRESS", "127.0.0.1:0"),
            ("PERENNIAL__LAMBDA__WARM", "crm"),
            ("AWS_LAMBDA_RUNTIME_API", lambda.address()),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "session"),
        ];
        let extension =
            self.deployment.start(&["lambda-extension"], &[&gate.variables()[..], &settings].concat()).await;
        lambda.begun().await;
        let url = crate::support::agent_url(&extension).await;
        (extension, url)
    }

    /// What the readers of the examples print.
    pub(crate) async fn examples(&self, gate: &Gate, id: &str) -> [String; 2] {
        part("examples/readers/node/node_modules/.complete");
        part(".parts/moto/.complete");
        let python = part(".parts/moto/bin/python");
        let node = ("node".into(), "examples/readers/node/read-sealed-token.mjs");
        let mut printed = Vec::new();
        for (interpreter, script) in [node, (python, "examples/readers/python/read_sealed_token.py")] {
            let mut command = std::process::Command::new(interpreter);
            command.arg(part(script)).args([id, "--table", self.table(), "--require-sealed"]);
            command.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]);
            command.env("AWS_REGION", "us-east-1").env("AWS_ENDPOINT_URL_DYNAMODB", gate.dynamodb());
            command.env("AWS_ENDPOINT_URL_KMS", gate.kms()).env("PYTHONDONTWRITEBYTECODE", "1");
            let run = tokio::task::spawn_blocking(move || command.output()).await;
            let output = run.expect("the task did not panic").expect("it starts");
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
            printed.push(String::from_utf8(output.stdout).expect("text"));
        }
        printed.try_into().expect("two")
    }

    /// `GetItem` by the SDK, through a gate: how many attributes come, or the error in words.
    pub(crate) async fn read_by(
        &self,
        gate: &Gate,
        id: &str,
        sort: &str,
        projection: Option<&str>,
    ) -> Result<usize, String> {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(gate.dynamodb())
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .build();
        let get = aws_sdk_dynamodb::Client::from_conf(config).get_item().table_name(self.table());
        let get = get.key("PK", string(&format!("CLIENT#{id}"))).key("SK", string(sort));
        let got = get.set_projection_expression(projection.map(str::to_owned)).send().await;
        got.map(|got| got.item.unwrap_or_default().len()).map_err(|error| format!("{error:?}"))
    }

    pub(crate) async fn spilled(&self) -> usize {
        let listed = self.bucket.list_objects_v2().bucket(BUCKET).send().await.expect("moto answers");
        listed.contents().len()
    }

    pub(crate) async fn generation(&self, id: &str) -> i64 {
        snapshot(&self.deployment.store().await, id).await.tok_gen().0
    }

    /// As TTL does.
    pub(crate) async fn delete(&self, id: &str, sort: &str) {
        let delete = DynamoLocal::shared().await.client().delete_item().table_name(self.table());
        let delete = delete.key("PK", string(&format!("CLIENT#{id}"))).key("SK", string(sort));
        delete.send().await.expect("deleted");
    }

    /// An operator has to decide what becomes of it.
    pub(crate) async fn hold(&self, id: &str) {
        let of = AttributeValue::N(self.generation(id).await.to_string());
        let update = DynamoLocal::shared().await.client().update_item().table_name(self.table());
        let update = update.key("PK", string(&format!("CLIENT#{id}"))).key("SK", string("LEASE"));
        let update =
            update.update_expression("SET st = :held, #of = :of").expression_attribute_names("#of", "of");
        let update =
            update.expression_attribute_values(":held", string("Q")).expression_attribute_values(":of", of);
        update.send().await.expect("written");
    }
}

fn string(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}
