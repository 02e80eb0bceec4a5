//! `perennial config check` and `config show`.

use std::process::ExitCode;

use clap::Subcommand;

use super::{App, output, sealing};
use crate::config::StoreKind;

/// Check the configuration, or show what holds and why.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print OK, or everything that is wrong (exit code 2).
    Check,
    /// Print every setting with the place that it came from; secrets are redacted.
    Show {
        /// Print one JSON array.
        #[arg(long)]
        json: bool,
    },
}

impl ConfigCommand {
    /// A configuration with errors never comes this far.
    pub(super) fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check => {
                let config = app.config();
                if config.sealing.has_own_key() {
                    sealing::own_keys(&config.sealing)?;
                }
                let store = match config.store.kind {
                    StoreKind::Embedded => format!("embedded store {}", config.store.path.display()),
                    StoreKind::Dynamodb => format!("DynamoDB table {}", config.store.table),
                };
                let (profile, providers) = (config.profile.as_str(), config.providers.len());
                output::line(format_args!("OK: profile {profile}, {store}, {providers} providers"))?;
            }
            Self::Show { json: true } => output::json(&app.settings())?,
            Self::Show { json: false } => {
                for setting in app.settings() {
                    output::line(format_args!("{} = {}  ({})", setting.key, setting.value, setting.origin))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
