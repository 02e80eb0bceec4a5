//! `perennial agent`: tokens for the programs of this machine; and keys for whoever reads them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::meter::Meter;
use super::{App, UsageError, files, output, shared_cache};
use crate::agent::{self, Keys, Manner, Socket, drop_in, keys};
use crate::bounded;
use crate::config::{Config, Profile, SecretForm};
use crate::reader::{self, Overlaps, Reader};
use crate::shutdown::Shutdown;
use crate::store::{DynamoStore, DynamoVault, TableError, table};
use crate::telemetry::{self, Logs};
use crate::time::Clock;

/// How often the file of keys is looked at, and a table that gave no answer at the start.
const LOOK: Duration = Duration::from_secs(2);
/// How long requests under way may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// No file of keys is larger, in bytes.
const LARGEST: u64 = 1 << 20;
/// Where a region has to be named and there is none.
const SOME_REGION: &str = "us-east-1";

/// The readers that there are, and what they were read from.
pub(super) struct KeysFile {
    path: PathBuf,
    text: String,
    keys: Arc<ArcSwap<Keys>>,
}

/// Give the programs of this machine their tokens, over HTTP on loopback, until SIGTERM or SIGINT.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Example:
  perennial agent &
  curl -s -H \"Authorization: Bearer $READER_KEY\" http://127.0.0.1:2774/v1/token/acme-crm | jq -r .authorization"
)]
pub(super) struct Agent {
    #[command(subcommand)]
    command: Option<AgentCommand>,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    Key(NewKey),
}

/// Make a key for a reader: it is printed once, and its entry for agent.keys_file beside it.
#[derive(Debug, Args)]
struct NewKey {
    /// The reader's name, as the log will tell it.
    #[arg(value_name = "READER", value_parser = reader_name)]
    name: String,
    /// The clients whose tokens it may read, with * for any characters.
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    clients: Vec<String>,
    /// Print both as JSON.
    #[arg(long)]
    json: bool,
}

impl Agent {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        match &self.command {
            Some(AgentCommand::Key(command)) => command.run(),
            None => serve(app).await,
        }
    }
}

impl NewKey {
    fn run(&self) -> anyhow::Result<ExitCode> {
        for pattern in &self.clients {
            let known = keys::Pattern::new(pattern).is_some();
            known.then_some(()).ok_or_else(|| {
                UsageError(format!("--clients {pattern:?} fits no client: use A-Z a-z 0-9 . _ : @ - and *"))
            })?;
        }
        let key = keys::new_key();
        let digest = keys::digest_of(key.expose());
        if self.json {
            output::json(&json!({
                "reader": self.name, "key": key.expose(), "key_sha256": digest, "clients": self.clients,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        output::note(format_args!(
            "# for agent.keys_file; the key itself is on standard output, and nowhere else:\n[readers.{}]\n\
             key_sha256 = [{digest:?}]\nclients = {:?}",
            self.name, self.clients
        ));
        output::line(key.expose())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn reader_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(allowed);
    fits.then(|| text.to_owned()).ok_or_else(|| "use 1 to 64 characters of A-Z a-z 0-9 _ -".to_owned())
}

async fn serve(app: &App) -> anyhow::Result<ExitCode> {
    let serving = Serving::start(app, Readers::configured).await?;
    serving.asked_to_stop().await;
    serving.end(DRAIN).await
}

/// Who may read.
pub(super) enum Readers {
    /// Every process of this machine.
    Anybody,
    /// Those of a file, which is followed.
    File(KeysFile),
    /// These.
    Fixed(Keys),
}

/// An agent whose sockets are open.
pub(super) struct Serving {
    pub(super) agent: Arc<agent::Agent<DynamoVault>>,
    pub(super) shutdown: Shutdown,
    clock: Arc<dyn Clock>,
    meter: Meter,
    answering: JoinHandle<()>,
    helpers: Vec<JoinHandle<()>>,
    /// The table answered later, and is none for this program.
    unfit: Arc<OnceLock<TableError>>,
}

impl Serving {
    /// Opens the log, the sockets and the table, and answers from then on.
    pub(super) async fn start(
        app: &App,
        readers: impl FnOnce(&Config) -> anyhow::Result<Readers>,
    ) -> anyhow::Result<Self> {
        let config = app.config();
        let Logs { lines, .. } = telemetry::init(&config.log)?;
        let meter = Meter::install(&config.metrics, lines)?;
        let shutdown = Shutdown::listen().context("installing signal handlers")?;
        let readers = readers(config)?;
        let room = agent::make_room_for(config.agent.connections);
        if room < config.agent.connections {
            warn!(
                room,
                "the limit on open files (RLIMIT_NOFILE) is too low for agent.connections: this many are taken; raise it"
            );
        }
        let sockets = sockets(config).await?;
        let (places, drop_in) = (places(&sockets, Manner::Own), places(&sockets, Manner::DropIn));
        let (store, unchecked) = app.store_for_reading().await?;
        let agent = Arc::new(agent_for(app, store, readers.keys(), &meter, room.max(1))?);
        let sink = files::sink(app, agent.reader().clone())?;
        info!(version = env!("CARGO_PKG_VERSION"), ?places, ?drop_in, "answering");
        let measured = Arc::clone(&agent);
        let mut helpers = vec![meter.start(app.clock(), move || measured.measure())];
        if let Readers::File(file) = readers {
            helpers.push(tokio::spawn(follow(file, app.clock())));
        }
        let unfit = Arc::new(OnceLock::new());
        if let Some(table) = unchecked {
            warn!("the table gives no answer: it is checked when it does");
            let (shards, clock, drain) = (config.store.shards, app.clock(), shutdown.drain.clone());
            helpers.push(tokio::spawn(check(table, shards, clock, Arc::clone(&unfit), drain)));
        }
        let answering = Arc::clone(&agent).serve(sockets, shutdown.drain.clone());
        let tending = sink.run(shutdown.drain.clone());
        let answering = tokio::spawn(async { _ = tokio::join!(answering, tending) });
        Ok(Self { agent, shutdown, clock: app.clock(), meter, answering, helpers, unfit })
    }

    /// Until a signal asks for it, or nobody answers any more, which only a mistake of ours would bring about.
    pub(super) async fn asked_to_stop(&self) {
        while !self.answering.is_finished() {
            tokio::select! {
                () = self.shutdown.drain.cancelled() => return,
                () = self.clock.sleep(LOOK) => {}
            }
        }
    }

    /// Lets what is under way end, for at most so long, and not after a second signal.
    pub(super) async fn end(mut self, drain: Duration) -> anyhow::Result<ExitCode> {
        self.shutdown.drain.cancel();
        let late = async {
            tokio::select! {
                () = self.shutdown.now.cancelled() => {}
                () = self.clock.sleep(drain) => {}
            }
        };
        let ended = tokio::select! {
            ended = &mut self.answering => ended.map_err(|error| anyhow!("the agent ended: {error}")),
            () = late => {
                warn!("requests are under way still: leaving them");
                Ok(())
            }
        };
        self.helpers.iter().for_each(JoinHandle::abort);
        self.meter.finish();
        if let Some(error) = Arc::into_inner(self.unfit).and_then(OnceLock::into_inner) {
            return Err(error.into());
        }
        ended.map(|()| ExitCode::SUCCESS)
    }
}

/// Looks at a table that gave no answer at the start, until it does.
async fn check(
    table: DynamoStore,
    shards: u32,
    clock: Arc<dyn Clock>,
    unfit: Arc<OnceLock<TableError>>,
    drain: CancellationToken,
) {
    loop {
        clock.sleep(LOOK).await;
        match table::schema_of(&table, shards).await {
            Ok(_) => return info!("the table answers, and is as needed"),
            Err(TableError::Store(error)) if error.is_transient() => {}
            Err(error) => {
                drop(unfit.set(error));
                return drain.cancel();
            }
        }
    }
}

fn places(sockets: &[(Socket, Manner)], wanted: Manner) -> Vec<String> {
    sockets.iter().filter(|(_, manner)| *manner == wanted).map(|(socket, _)| socket.place()).collect()
}

fn agent_for(
    app: &App,
    store: DynamoVault,
    keys: Option<Arc<ArcSwap<Keys>>>,
    meter: &Meter,
    room: usize,
) -> anyhow::Result<agent::Agent<DynamoVault>> {
    let own = &app.config().agent;
    let settings = reader::Settings {
        clients: own.clients,
        max_age: own.max_age,
        idle: own.idle,
        ..reader::Settings::default()
    };
    let vitals = Arc::clone(store.vitals());
    let mut reader = Reader::new(store.clone(), vitals, app.clock(), overlaps(app.config()), settings);
    if let Some(copies) = shared_cache::copies(app, &store)? {
        reader = reader.with_copies(copies);
    }
    let settings = agent::Settings {
        max_wait: own.max_wait,
        // Descriptors that there are not would be missed by whoever needs one: the table, too.
        connections: own.connections.min(room),
        waiting: own.waiting,
        rejection_interval: own.rejections.then_some(own.rejection_interval),
        drop_in: own.drop_in.address.map(|_| drop_in_settings(app.config())),
    };
    Ok(agent::Agent::new(reader, store, app.clock(), keys, Some(meter.exporter()), settings))
}

fn overlaps(config: &Config) -> Box<Overlaps> {
    let providers = config.providers.clone();
    Box::new(move |name: &str| providers.get(name).and_then(|provider| provider.overlap))
}

fn drop_in_settings(config: &Config) -> drop_in::Settings {
    let own = &config.agent.drop_in;
    let form = match own.form {
        SecretForm::Json => drop_in::Form::Json,
        SecretForm::Plain => drop_in::Form::Plain,
    };
    let region = config.store.region.as_deref().unwrap_or(SOME_REGION).to_owned();
    drop_in::Settings { names: own.names.clone(), form, region }
}

async fn sockets(config: &Config) -> anyhow::Result<Vec<(Socket, Manner)>> {
    let own = &config.agent;
    let mut sockets = vec![(Socket::tcp(own.address).await?, Manner::Own)];
    if let Some(path) = &own.socket {
        let mut users = own.socket_users.clone();
        users.push(rustix::process::geteuid().as_raw());
        sockets.push((Socket::unix(path, users)?, Manner::Own));
    }
    if let Some(address) = own.drop_in.address {
        sockets.push((Socket::tcp(address).await?, Manner::DropIn));
    }
    Ok(sockets)
}

impl Readers {
    /// Those of the file of keys, where there is one.
    fn configured(config: &Config) -> anyhow::Result<Self> {
        if let Some(readers) = Self::of_file(config)? {
            return Ok(readers);
        }
        if config.profile == Profile::Production {
            return Err(UsageError(
                "agent.keys_file is not set: under the production profile every reader needs a key; make one with \
                 `perennial agent key READER`"
                    .into(),
            )
            .into());
        }
        warn!("no agent.keys_file is set: every process of this machine may read every token");
        Ok(Self::Anybody)
    }

    /// None where no file is set.
    pub(super) fn of_file(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(file) = &config.agent.keys_file else { return Ok(None) };
        let wrong = |why: String| UsageError(format!("agent.keys_file, {}: {why}", file.display()));
        let text = read(file).map_err(|error| wrong(error.to_string()))?;
        let keys = Keys::parse(&text).map_err(|error| wrong(error.to_string()))?;
        info!(readers = keys.len(), "readers' keys are read");
        let keys = Arc::new(ArcSwap::from_pointee(keys));
        Ok(Some(Self::File(KeysFile { path: file.clone(), text, keys })))
    }

    fn keys(&self) -> Option<Arc<ArcSwap<Keys>>> {
        match self {
            Self::Anybody => None,
            Self::File(file) => Some(Arc::clone(&file.keys)),
            Self::Fixed(keys) => Some(Arc::new(ArcSwap::from_pointee(keys.clone()))),
        }
    }
}

/// Digests are no secrets.
fn read(file: &Path) -> io::Result<String> {
    Ok(bounded::read_text(file, LARGEST)?.to_string())
}

/// Takes up what changes in the file. What cannot be understood changes nothing.
async fn follow(file: KeysFile, clock: Arc<dyn Clock>) {
    let KeysFile { path, text: mut taken, keys } = file;
    let mut seen = String::new();
    let mut trouble = String::new();
    loop {
        clock.sleep(LOOK).await;
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) => {
                // Once for each cause; a file that is being replaced may be away for a moment.
                let why = error.to_string();
                if why == seen && why != trouble {
                    error!(alarm = "reload", %why, "readers' keys cannot be read: they stay as they were");
                    trouble.clone_from(&why);
                }
                seen = why;
                continue;
            }
        };
        if !trouble.is_empty() {
            info!("readers' keys can be read again");
            trouble.clear();
        }
        // What is still being written is left until it rests.
        if text == taken || text != seen {
            seen = text;
            continue;
        }
        match Keys::parse(&text) {
            Ok(new) => {
                info!(readers = new.len(), "readers' keys are read again");
                keys.store(Arc::new(new));
            }
            Err(why) => error!(alarm = "reload", %why, "readers' keys stay as they were"),
        }
        taken = text;
    }
}
