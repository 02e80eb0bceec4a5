//! The command line: one file a command, and the only place that chooses implementations.
//!
//! stdout carries results, stderr everything else. What can be refused is refused before anything is written, with
//! its remedy. `perennial --help` says what the exit codes mean.

mod add;
mod agent;
mod apply;
mod clients;
mod completions;
mod config;
mod ecs;
mod edit;
mod files;
mod fleet;
mod get;
mod healthcheck;
mod iam;
mod import_token;
mod judge;
mod keys;
mod lambda;
mod list;
mod man;
mod meter;
mod muster;
mod output;
mod progress;
mod reload;
mod remove;
mod resolve;
mod run;
mod seal;
mod sealing;
mod secret;
mod shared_cache;
mod show;
mod source;
mod spec;
mod spill;
mod standing;
mod status;
mod story;
mod survey;
mod table;
mod top;
mod trouble;
mod walk;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "embedded")]
use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::client::{ClientId, Provider};
use crate::config::{Config, ConfigErrors, Loaded, Setting, Sources, StoreKind};
use crate::entropy::Entropy;
use crate::registrar::Registrar;
use crate::seclusion;
#[cfg(feature = "embedded")]
use crate::store::Embedded;
use crate::store::{Connection, DynamoStore, DynamoVault, Role, TableError, Vault, table as schema};
use crate::time::{Clock, SystemClock, Timestamp};

/// What the exit codes say, as `--help` prints it.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, failed, or the condition that was asked for is not met (`status`: degraded)
  2  usage or configuration error; nothing was touched (`status`: broken, too)";

/// Keeps third-party OAuth2 tokens fresh, over one DynamoDB table.
#[derive(Debug, Parser)]
#[command(name = "perennial", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Configuration file, or a directory with perennial.toml in it [default: $PERENNIAL_CONFIG, else ./config]
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    #[command(subcommand)]
    Table(table::TableCommand),
    #[command(subcommand)]
    Clients(Box<clients::ClientsCommand>),
    Status(status::Status),
    Fleet(fleet::Fleet),
    Top(top::Top),
    Get(get::Get),
    Agent(agent::Agent),
    LambdaExtension(lambda::LambdaExtension),
    Healthcheck(healthcheck::Healthcheck),
    #[command(subcommand)]
    Spill(spill::SpillCommand),
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    #[command(subcommand)]
    Seal(seal::SealCommand),
    Why(why::Why),
    #[command(subcommand)]
    Iam(iam::IamCommand),
    Completions(completions::Completions),
    Man(man::Man),
}

pub use lambda::arguments;

/// Runs a command to its end.
pub async fn run(cli: Cli) -> ExitCode {
    // Whatever it is, it comes by secrets. That it was refused is said where there is a log.
    drop(seclusion::seclude());
    match cli.run().await {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// Prints an error, and says which exit code it has.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    // Whoever read our output has seen enough: `perennial clients list | head`.
    if error.is::<output::Closed>() {
        return ExitCode::SUCCESS;
    }
    output::note(format_args!("error: {error:#}"));
    if error.is::<ConfigErrors>() || error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

impl Cli {
    async fn run(self) -> anyhow::Result<ExitCode> {
        // These speak of the program, and need no configuration.
        match &self.command {
            Command::Completions(command) => return command.run(),
            Command::Man(command) => return command.run(),
            // AWS Lambda is told what is wrong with the configuration.
            Command::LambdaExtension(command) => return Box::pin(command.run(self.config)).await,
            _ => {}
        }
        let mut app = App::load(self.config)?;
        app.checks_table = !matches!(self.command, Command::Run(_) | Command::Table(_));
        // Boxed: the commands' futures differ greatly in size.
        match self.command {
            Command::Run(command) => Box::pin(command.run(&app)).await,
            Command::Config(command) => command.run(&app),
            Command::Table(command) => Box::pin(command.run(&app)).await,
            Command::Clients(command) => Box::pin(command.run(&app)).await,
            Command::Status(command) => Box::pin(command.run(&app)).await,
            Command::Fleet(command) => Box::pin(command.run(&app)).await,
            Command::Top(command) => Box::pin(command.run(&app)).await,
            Command::Get(command) => Box::pin(command.run(&app)).await,
            Command::Agent(command) => Box::pin(command.run(&app)).await,
            Command::Healthcheck(command) => Box::pin(command.run(&app)).await,
            Command::Spill(command) => Box::pin(command.run(&app)).await,
            Command::Keys(command) => Box::pin(command.run(&app)).await,
            Command::Seal(command) => Box::pin(command.run(&app)).await,
            Command::Why(command) => Box::pin(command.run(&app)).await,
            Command::Iam(command) => command.run(&app),
            Command::LambdaExtension(command) => Box::pin(command.run(None)).await,
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    }
}

/// How long a table is waited for by whoever can go on without.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// Something that was asked for wrongly.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
struct UsageError(String);

/// What commands are made of.
struct App {
    sources: Sources,
    loaded: Loaded,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    /// Whether a table is checked as it is opened: `run` and `table` look closer themselves.
    checks_table: bool,
}

impl App {
    fn load(path: Option<PathBuf>) -> Result<Self, ConfigErrors> {
        let sources = Sources::from_process(path);
        let loaded = Config::load(sources.clone())?;
        let (clock, entropy) = (Arc::new(SystemClock), Entropy::from_system());
        Ok(Self { sources, loaded, clock, entropy, checks_table: true })
    }

    fn config(&self) -> &Config {
        &self.loaded.config
    }

    fn settings(&self) -> &[Setting] {
        &self.loaded.settings
    }

    fn sources(&self) -> &Sources {
        &self.sources
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// The time by the table's clock, as far as its answers have told how far ours is off.
    fn table_time(&self, store: &DynamoVault) -> Timestamp {
        store.vitals().now(self.clock.as_ref())
    }

    /// The provider profile that a client names.
    fn provider(&self, name: &str) -> Result<&Provider, UsageError> {
        let providers = &self.config().providers;
        providers.get(name).map(AsRef::as_ref).ok_or_else(|| {
            UsageError(format!(
                "provider `{name}` is not in the configuration: add [providers.{name}] with its token_url, or use one \
                 of: {}",
                spec::names(providers)
            ))
        })
    }

    /// Opens the store that the configuration names. A table of other shards, or of a newer program, is refused: what
    /// is written there by the wrong count is never found.
    async fn store(&self) -> anyhow::Result<DynamoVault> {
        self.store_for(Role::Operator).await
    }

    /// The same, for whoever does something else.
    async fn store_for(&self, role: Role) -> anyhow::Result<DynamoVault> {
        let (store, keys) = (self.raw_store().await?, Arc::new(sealing::keys(self)?));
        Ok(Vault::new(store, &self.config().sealing.name, keys, self.clock(), role))
    }

    /// The same for whoever goes on while the table gives no answer: then it is yet to be checked.
    async fn store_for_reading(&self) -> anyhow::Result<(DynamoVault, Option<DynamoStore>)> {
        let (store, keys) = (self.opened().await?, Arc::new(sealing::keys(self)?));
        let checked = tokio::select! {
            checked = schema::schema_of(&store, self.config().store.shards) => checked.map(|_| true),
            () = self.clock.sleep(FIRST_LOOK) => Ok(false),
        };
        let checked = match checked {
            Err(TableError::Store(error)) if error.is_transient() => false,
            checked => checked?,
        };
        let unchecked = (!checked).then(|| store.clone());
        let vault = Vault::new(store, &self.config().sealing.name, keys, self.clock(), Role::Reader);
        Ok((vault, unchecked))
    }

    async fn raw_store(&self) -> anyhow::Result<DynamoStore> {
        let opened = self.opened().await?;
        if self.checks_table && self.config().store.kind == StoreKind::Dynamodb {
            schema::schema_of(&opened, self.config().store.shards).await?;
        }
        Ok(opened)
    }

    async fn opened(&self) -> anyhow::Result<DynamoStore> {
        let store = &self.config().store;
        match store.kind {
            StoreKind::Dynamodb => {
                let (table, region, endpoint) =
                    (store.table.clone(), store.region.clone(), store.endpoint.clone());
                Ok(Connection { table, region, endpoint }.connect(self.clock()).await?)
            }
            StoreKind::Embedded => self.embedded().await,
        }
    }

    #[cfg(feature = "embedded")]
    async fn embedded(&self) -> anyhow::Result<DynamoStore> {
        let store = &self.config().store;
        let open = Embedded::open(&store.path, &store.table, store.shards, self.clock()).await;
        Ok(open.context("opening the embedded store")?.store().clone())
    }

    #[cfg(not(feature = "embedded"))]
    #[expect(clippy::unused_async, reason = "as with the feature")]
    async fn embedded(&self) -> anyhow::Result<DynamoStore> {
        Err(no_embedded().into())
    }

    /// Keeps a second daemon off an embedded store, for as long as the lock lives.
    #[cfg(feature = "embedded")]
    fn lock_for_daemon(&self) -> anyhow::Result<Option<impl Sized + use<>>> {
        let store = &self.config().store;
        match store.kind {
            StoreKind::Embedded => Ok(Some(Embedded::lock_for_daemon(&store.path)?)),
            StoreKind::Dynamodb => Ok(None),
        }
    }

    #[cfg(not(feature = "embedded"))]
    fn lock_for_daemon(&self) -> anyhow::Result<Option<std::convert::Infallible>> {
        match self.config().store.kind {
            StoreKind::Embedded => Err(no_embedded().into()),
            StoreKind::Dynamodb => Ok(None),
        }
    }

    fn registrar<'a>(&'a self, store: &'a DynamoVault) -> Registrar<'a, DynamoVault> {
        let shards = self.config().store.shards;
        Registrar { store, clock: self.clock.as_ref(), entropy: &self.entropy, shards }
    }
}

#[cfg(not(feature = "embedded"))]
fn no_embedded() -> UsageError {
    UsageError("this build has no embedded store: set store.kind = \"dynamodb\" and store.table".into())
}

/// Asks a person before something is destroyed; without a terminal, `--yes` has to have been said.
fn confirm(yes: bool, what: &str) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    match output::ask(&format!("{what} This cannot be undone. Type yes to go on: "))? {
        Some(answer) if answer.trim() == "yes" => Ok(true),
        Some(_) => {
            output::note("nothing was removed");
            Ok(false)
        }
        None => {
            output::note(format_args!("{what} Refused: there is no terminal to ask; say --yes"));
            Ok(false)
        }
    }
}

/// Client ids as arguments.
fn client_id(text: &str) -> Result<ClientId, crate::client::InvalidClientId> {
    ClientId::new(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
