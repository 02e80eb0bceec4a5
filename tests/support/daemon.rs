//! The real binary over a table of its own: configuration in a folder that goes away, clients applied by the command
//! line, and the daemon as a child process.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use perennial::client::ClientId;
use perennial::record::Snapshot;
use perennial::store::{Connection, DynamoStore, Embedded, Store};
use perennial::time::SystemClock;
use tempfile::TempDir;
use url::Url;

use super::{DynamoLocal, Process, StrictProvider, log_lines, wait_for};

/// Where the table is.
#[derive(Clone)]
enum Table {
    Local { endpoint: String, name: String },
    Embedded,
}

/// A folder with a configuration, and the table that it names.
pub(crate) struct Deployment {
    folder: TempDir,
    table: Table,
}

/// Settings of programs that are quick to find, to do and to do again, at the strict provider; and `more`.
pub(crate) fn quick_settings(provider: &StrictProvider, more: &str) -> String {
    format!(
        "[discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n\
         [refresh]\nspread = \"0s\"\nlifetime_min = \"1s\"\n\
         [backoff]\nbase = \"200ms\"\nmin_interval = \"200ms\"\ncap = \"1s\"\n{more}\n\
         [providers.strict]\ntoken_url = \"{}\"\nrate_per_second = 1000.0\nburst = 1000\n",
        provider.token_url()
    )
}

/// One client to be registered.
pub(crate) struct NewClient<'a> {
    pub(crate) id: String,
    pub(crate) provider: &'a str,
    pub(crate) client_id: &'a str,
    pub(crate) client_secret: Option<&'a str>,
    /// None for client_credentials.
    pub(crate) refresh_token: Option<String>,
}

impl Deployment {
    /// A fresh table in this DynamoDB Local, made by `perennial table create`. `settings` is the rest of the
    /// configuration: providers, and whatever is not to have its default.
    pub(crate) fn on_dynamo(local: &DynamoLocal, settings: &str) -> Self {
        let deployment = Self::without_table(local, settings);
        deployment.ok(&["table", "create"]);
        deployment
    }

    /// A fresh embedded store.
    pub(crate) fn embedded(settings: &str) -> Self {
        Self::prepare(Table::Embedded, "", settings)
    }

    /// As [`Deployment::on_dynamo`], where nobody has made the table yet.
    pub(crate) fn without_table(local: &DynamoLocal, settings: &str) -> Self {
        let (endpoint, name) = (local.endpoint().to_owned(), DynamoLocal::fresh_table_name());
        let store = format!("[store]\nkind = \"dynamodb\"\ntable = \"{name}\"\nendpoint = \"{endpoint}\"\n");
        Self::prepare(Table::Local { endpoint, name }, &store, settings)
    }

    fn prepare(table: Table, store: &str, settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("the system's folder for temporary files is writable");
        let config = folder.path().join("config");
        fs::create_dir(&config).expect("a fresh folder is writable");
        let text = format!("{settings}\n{store}\n[health]\nenabled = false\n");
        fs::write(config.join("perennial.toml"), text).expect("a fresh folder is writable");
        Self { folder, table }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The binary in this folder, with an environment that holds nothing of the developer's.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments);
        self.settle(&mut command);
        command.stdin(Stdio::null());
        command
    }

    fn settle(&self, command: &mut Command) {
        command.current_dir(self.path()).env("HOME", self.path());
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("PERENNIAL") || name.starts_with("AWS_"))
        {
            command.env_remove(name);
        }
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[])
    }

    /// Runs a command to its end, with more environment variables.
    ///
    /// # Panics
    /// When it has not ended by itself in five minutes, with the last lines that it wrote to standard error.
    pub(crate) fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = self.command(arguments);
        ended(command.envs(variables.iter().copied()), arguments)
    }

    /// Replaces the configuration.
    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.path().join("config/perennial.toml"), text).expect("the folder is writable");
    }

    /// Runs a command that has to succeed, and returns what it prints.
    ///
    /// # Panics
    /// When it fails, with what it wrote to standard error.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, &[])
    }

    /// As [`Deployment::ok`], with more environment variables.
    pub(crate) fn ok_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.run_with(arguments, variables);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} failed with {:?}:\n{errors}", output.status.code());
        String::from_utf8(output.stdout).expect("output is UTF-8")
    }

    /// Registers clients by `perennial clients apply`.
    pub(crate) fn apply(&self, clients: &[NewClient<'_>]) {
        let mut text = String::new();
        for client in clients {
            let grant = if client.refresh_token.is_some() { "refresh_token" } else { "client_credentials" };
            let (id, provider, client_id) = (&client.id, client.provider, client.client_id);
            let head = format!(
                "[[clients]]\nid = \"{id}\"\nprovider = \"{provider}\"\ngrant = \"{grant}\"\nclient_id = \"{client_id}\"\n"
            );
            text.push_str(&head);
            for (key, secret) in
                [("client_secret", client.client_secret), ("refresh_token", client.refresh_token.as_deref())]
            {
                if let Some(secret) = secret {
                    let file = self.secret_file(&format!("{id}.{key}"), secret);
                    writeln!(text, "{key} = {{ file = {file:?} }}").expect("a string takes everything");
                }
            }
            text.push('\n');
        }
        fs::write(self.path().join("clients.toml"), text).expect("the folder is writable");
        self.ok(&["clients", "apply", "clients.toml"]);
    }

    /// Registers clients of the application `app` at the provider `strict`, each with a consent of its own.
    pub(crate) async fn register(
        &self,
        at: &StrictProvider,
        secret: &str,
        ids: impl IntoIterator<Item: Into<String>>,
    ) {
        let mut clients = Vec::new();
        for id in ids {
            let refresh_token = Some(at.seed("app").await.refresh_token);
            let (id, client_secret) = (id.into(), Some(secret));
            clients.push(NewClient {
                id,
                provider: "strict",
                client_id: "app",
                client_secret,
                refresh_token,
            });
        }
        self.apply(&clients);
    }

    /// Writes a secret to a file of its own.
    pub(crate) fn secret_file(&self, name: &str, secret: &str) -> PathBuf {
        let file = self.path().join(name);
        fs::write(&file, secret).expect("the folder is writable");
        file
    }

    /// Starts `perennial run`; its log is [`Process::errors`].
    pub(crate) async fn daemon(&self) -> Process {
        self.daemon_with(&[]).await
    }

    /// Starts `perennial run` with more environment variables.
    pub(crate) async fn daemon_with(&self, variables: &[(&str, &str)]) -> Process {
        self.daemon_of(&binary(), variables).await
    }

    /// Has another program start `perennial run`, whose words come last: a shell, say, or one that changes its world.
    pub(crate) async fn daemon_by(
        &self,
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Process {
        let own = binary();
        let own = own.to_str().expect("a path of UTF-8");
        Process::start(program, arguments.iter().chain(&[own, "run"]), |command| {
            self.settle(command);
            command.envs(variables.iter().copied());
        })
        .await
    }

    /// Starts the `run` of another build of the program.
    pub(crate) async fn daemon_of(&self, program: &Path, variables: &[(&str, &str)]) -> Process {
        self.start_of(program, &["run"], variables).await
    }

    /// Starts another command that runs until it is stopped.
    pub(crate) async fn start(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Process {
        self.start_of(&binary(), arguments, variables).await
    }

    /// The same with another build of the program.
    pub(crate) async fn start_of(
        &self,
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Process {
        Process::start(program, arguments, |command| {
            self.settle(command);
            command.envs(variables.iter().copied());
        })
        .await
    }

    /// The table, beside whoever else uses it.
    pub(crate) async fn store(&self) -> DynamoStore {
        match &self.table {
            Table::Local { endpoint, name } => {
                let endpoint = Url::parse(endpoint).expect("a URL");
                let connection = Connection { table: name.clone(), region: None, endpoint: Some(endpoint) };
                connection.connect(Arc::new(SystemClock)).await.expect("a connection is not opened yet")
            }
            Table::Embedded => {
                let path = self.path().join(".perennial/perennial.db");
                let opened = Embedded::open(path, "client-credentials", 16, Arc::new(SystemClock)).await;
                opened.expect("the embedded store opens").store().clone()
            }
        }
    }

    /// The name of the table in DynamoDB Local.
    pub(crate) fn table_name(&self) -> &str {
        match &self.table {
            Table::Local { name, .. } => name,
            Table::Embedded => "client-credentials",
        }
    }
}

/// No command takes so long, however busy the machine is: one that waits for ever is to fail its own test, and not the whole run.
const LONGEST: Duration = Duration::from_secs(300);

fn ended(command: &mut Command, arguments: &[&str]) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary is built");
    let (pid, (sender, output)) = (child.id().to_string(), mpsc::channel());
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    if let Ok(output) = output.recv_timeout(LONGEST) {
        return output.expect("its output is read");
    }
    let killed = Command::new("kill").args(["-KILL", &pid]).status().expect("tests need `kill`");
    let told = output.recv().expect("the thread is there").expect("its output is read").stderr;
    let told = String::from_utf8_lossy(&told);
    let last: Vec<_> = told.lines().rev().take(5).collect();
    panic!("{arguments:?} had not ended in {LONGEST:?} ({killed}); the last lines: {last:#?}");
}

/// Where an agent answers.
pub(crate) async fn agent_url(agent: &Process) -> String {
    format!("http://{}", place_of(agent, "places").await)
}

/// The port at which an agent answers as AWS's does.
pub(crate) async fn drop_in_port(agent: &Process) -> u16 {
    let place = place_of(agent, "drop_in").await;
    place.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address with a port")
}

async fn place_of(agent: &Process, kind: &str) -> String {
    wait_for(Duration::from_secs(60), "the agent's address", async || {
        let lines = log_lines(&agent.errors());
        let line = lines.iter().find(|line| line["message"] == "answering")?;
        Some(line[kind].as_str()?.split('"').nth(1)?.to_owned())
    })
    .await
}

/// A client's partition, as it stands in the table.
pub(crate) async fn snapshot(store: &impl Store, id: &str) -> Snapshot {
    let id = ClientId::new(id).expect("a valid id");
    store.read(&id).await.expect("the table answers").decode(&id).expect("our own items decode")
}

/// Where a daemon with `health.address = "127.0.0.1:0"` serves `/healthz` and its neighbours.
///
/// # Panics
/// When it does not say so in half a minute.
pub(crate) async fn health_url(daemon: &Process) -> String {
    wait_for(Duration::from_secs(30), "the health endpoints are served", async || {
        let log = log_lines(&daemon.errors());
        let line = log.iter().find(|line| line["message"] == "serving /healthz and /readyz")?;
        line["address"].as_str().map(|address| format!("http://{address}"))
    })
    .await
}

/// The daemon's program. Cargo names it to tests; an example finds it beside its own folder.
pub(crate) fn binary() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_perennial") {
        Some(path) => path.into(),
        None => {
            let example = std::env::current_exe().expect("a program knows its own path");
            example.ancestors().nth(2).expect("it lies in target/PROFILE/examples").join("perennial")
        }
    }
}
