//! `perennial clients ...`: what operators do to clients.

use std::process::ExitCode;

use clap::Subcommand;

use super::{App, add, apply, edit, import_token, list, remove, resolve, secret, show};

/// Register, change, look at and remove clients.
#[derive(Debug, Subcommand)]
pub(super) enum ClientsCommand {
    Apply(apply::Apply),
    Add(Box<add::Add>),
    List(list::List),
    Show(show::Show),
    Pause(edit::Pause),
    Resume(edit::Resume),
    Refresh(edit::Refresh),
    Remove(remove::Remove),
    ImportToken(import_token::ImportToken),
    Resolve(resolve::Resolve),
    #[command(subcommand)]
    Secret(secret::SecretCommand),
}

impl ClientsCommand {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        match self {
            Self::Apply(command) => command.run(app).await,
            Self::Add(command) => command.run(app).await,
            Self::List(command) => command.run(app).await,
            Self::Show(command) => command.run(app).await,
            Self::Pause(command) => command.run(app).await,
            Self::Resume(command) => command.run(app).await,
            Self::Refresh(command) => command.run(app).await,
            Self::Remove(command) => command.run(app).await,
            Self::ImportToken(command) => command.run(app).await,
            Self::Resolve(command) => command.run(app).await,
            Self::Secret(command) => command.run(app).await,
        }
    }
}
