//! The processes of the demo: a provider, a daemon, and the command line that registers the clients.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use perennial::store::DynamoStore;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Everything that runs, in a directory of its own that goes away with it.
pub(crate) struct Stage {
    directory: TempDir,
    provider: Child,
    provider_url: String,
    daemon: Child,
    http: reqwest::Client,
}

impl Stage {
    /// Starts the provider, registers the clients, starts the daemon.
    pub(crate) async fn set(clients: u32, lifetime_secs: u32) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for the demo")?;
        let (provider, provider_url) = start_provider(lifetime_secs)?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let registrations = register(&http, &provider_url, clients, directory.path()).await?;
        configure(directory.path(), &provider_url, &registrations)?;
        let applied = perennial(directory.path())?.args(["clients", "apply", "clients.toml"]).output()?;
        ensure!(
            applied.status.success(),
            "registering clients: {}",
            String::from_utf8_lossy(&applied.stderr)
        );
        let daemon = start_daemon(directory.path())?;
        Ok(Self { directory, provider, provider_url, daemon, http })
    }

    /// The same table that the daemon keeps, beside it.
    pub(crate) async fn open_table(&self) -> anyhow::Result<DynamoStore> {
        crate::observe::open(&self.directory.path().join(STORE)).await
    }

    pub(crate) fn daemon_runs(&mut self) -> bool {
        matches!(self.daemon.try_wait(), Ok(None))
    }

    pub(crate) fn daemon_output(&self) -> String {
        std::fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default()
    }

    /// Asks the daemon to stop, as ECS would; true if it drained and ended with code 0.
    pub(crate) async fn stop_daemon(&mut self) -> anyhow::Result<bool> {
        signal(&self.daemon, Signal::TERM);
        for _ in 0..600 {
            if let Some(status) = self.daemon.try_wait()? {
                return Ok(status.success());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the daemon did not stop within 30 s of SIGTERM")
    }

    /// As the provider counted them.
    pub(crate) async fn double_redemptions(&self) -> anyhow::Result<u64> {
        let stats =
            self.http.get(format!("{}/control/stats", self.provider_url)).send().await?.text().await?;
        let stats: Value = serde_json::from_str(&stats)?;
        stats["double_redemptions"].as_u64().context("the provider counts double redemptions")
    }

    pub(crate) async fn clear(mut self) {
        signal(&self.provider, Signal::TERM);
        for _ in 0..100 {
            if !matches!(self.provider.try_wait(), Ok(None)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.provider] {
            if matches!(child.try_wait(), Ok(None)) {
                drop(child.kill());
                drop(child.wait());
            }
        }
    }
}

const STORE: &str = "perennial.db";
const LOG: &str = "daemon.log";

/// `examples/demo` lies beside the other examples and one level below the daemon.
fn built(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let examples = here.parent().context("the demo lies in a directory")?;
    let path = match name {
        "perennial" => examples.parent().context("the examples lie below the daemon")?.join(name),
        _ => examples.join(name),
    };
    ensure!(path.exists(), "{} is not built: use `make demo`", path.display());
    Ok(path)
}

fn start_provider(lifetime_secs: u32) -> anyhow::Result<(Child, String)> {
    let mut child = Command::new(built("strict-provider")?)
        .args([
            "--listen",
            "127.0.0.1:0",
            "--latency-ms",
            "30",
            "--lifetime-secs",
            &lifetime_secs.to_string(),
        ])
        .stdout(Stdio::piped())
        // Ctrl-C is for the demo: the daemon has to be able to finish what is in flight.
        .process_group(0)
        .spawn()
        .context("starting the provider")?;
    let output = child.stdout.take().context("the provider's output is piped")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let url = line.trim().strip_prefix("READY ").context("the provider did not start")?.to_owned();
    Ok((child, url))
}

struct Registration {
    id: String,
    grant: &'static str,
    app: &'static str,
    refresh_token: Option<PathBuf>,
}

const APPS: [(&str, &str); 2] = [("crm-app", "crm-demo-secret"), ("billing-app", "billing-demo-secret")];

async fn register(
    http: &reqwest::Client,
    provider: &str,
    clients: u32,
    directory: &Path,
) -> anyhow::Result<Vec<Registration>> {
    for (app, secret) in APPS {
        let body = json!({ "client_id": app, "client_secret": secret, "auth": "basic" });
        post(http, &format!("{provider}/control/clients"), body.to_string()).await?;
        std::fs::write(directory.join(format!("{app}.secret")), secret)?;
    }
    let mut registrations = Vec::new();
    for n in 0..clients {
        let (app, _) = APPS[(n % 2) as usize];
        if n % 3 == 2 {
            let id = format!("service-{n:03}");
            registrations.push(Registration { id, grant: "client_credentials", app, refresh_token: None });
            continue;
        }
        let grant = post(http, &format!("{provider}/control/grants?client_id={app}"), String::new()).await?;
        let token = grant["refresh_token"].as_str().context("a grant has a refresh token")?;
        let id = format!("customer-{n:03}");
        let file = directory.join(format!("{id}.token"));
        std::fs::write(&file, token)?;
        registrations.push(Registration { id, grant: "refresh_token", app, refresh_token: Some(file) });
    }
    Ok(registrations)
}

async fn post(http: &reqwest::Client, url: &str, body: String) -> anyhow::Result<Value> {
    let response = http.post(url).header("content-type", "application/json").body(body).send().await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status.is_success(), "{url}: {status}: {text}");
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

fn configure(directory: &Path, provider: &str, registrations: &[Registration]) -> anyhow::Result<()> {
    let config = format!(
        "[store]\npath = {:?}\n\n[refresh]\nlifetime_min = \"5s\"\nspread = \"1s\"\n\n[discovery]\ninterval = \
         \"1s\"\n\n[health]\naddress = \"127.0.0.1:0\"\n\n[log]\nformat = \"json\"\n\n[providers.strict]\ntoken_url = \
         \"{provider}/token\"\nrotates = true\nrate_per_second = 100.0\nburst = 100\n",
        directory.join(STORE)
    );
    std::fs::create_dir_all(directory.join("config"))?;
    std::fs::write(directory.join("config/perennial.toml"), config)?;
    let mut clients = String::new();
    for Registration { id, grant, app, refresh_token } in registrations {
        writeln!(
            clients,
            "[[clients]]\nid = \"{id}\"\nprovider = \"strict\"\ngrant = \"{grant}\"\nclient_id = \"{app}\""
        )?;
        writeln!(clients, "client_secret = {{ file = {:?} }}", directory.join(format!("{app}.secret")))?;
        if let Some(file) = refresh_token {
            writeln!(clients, "refresh_token = {{ file = {file:?} }}")?;
        }
        writeln!(clients)?;
    }
    std::fs::write(directory.join("clients.toml"), clients)?;
    Ok(())
}

fn perennial(directory: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(built("perennial")?);
    command.current_dir(directory).process_group(0).stdin(Stdio::null());
    Ok(command)
}

fn start_daemon(directory: &Path) -> anyhow::Result<Child> {
    let log = std::fs::File::create(directory.join(LOG))?;
    perennial(directory)?.arg("run").stdout(Stdio::null()).stderr(log).spawn().context("starting the daemon")
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // One that has ended already is what was asked for.
        kill_process(pid, signal).ok();
    }
}
