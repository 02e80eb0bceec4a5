//! `perennial config check` and `config show`.

use std::process::ExitCode;

use clap::Subcommand;

use super::{App, output};

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
            Self::Check => output::line("OK")?,
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
