//! `perennial clients resolve`.

use std::process::ExitCode;

use clap::Args;

use super::{App, client_id, output};
use crate::client::ClientId;
use crate::plan::registry::Resolution;

/// Decide about a client that is held in doubt.
///
/// Its refresh token may have been spent by an attempt whose answer was lost. The third way out is a new token:
/// `perennial clients import-token`.
#[derive(Debug, Args)]
pub(super) struct Resolve {
    /// The client.
    #[arg(value_name = "ID", value_parser = client_id)]
    id: ClientId,
    #[command(flatten)]
    decision: Decision,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Decision {
    /// Send the stored refresh token once more.
    #[arg(long)]
    retry: bool,
    /// The grant is lost.
    #[arg(long)]
    dead: bool,
}

impl Resolve {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store().await?;
        let (resolution, told) = if self.decision.retry {
            (Resolution::Retry, "will be tried once more by the running daemon")
        } else {
            (Resolution::Dead, "is dead now: it needs `perennial clients import-token`")
        };
        app.registrar(&store).resolve(&self.id, resolution).await?;
        output::told(format_args!("{} {told}", self.id));
        Ok(ExitCode::SUCCESS)
    }
}
