//! `perennial clients remove`.

use std::process::ExitCode;

use clap::Args;

use super::{App, client_id, confirm, output};
use crate::client::ClientId;

/// Remove a client and its tokens; what is in flight brings nothing back.
///
/// A refresh token that is deleted here exists nowhere else: the customer has to consent again.
#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The client.
    #[arg(value_name = "ID", value_parser = client_id)]
    id: ClientId,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Remove {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let what = format!("Client `{}` and its tokens will be removed.", self.id);
        if !confirm(self.yes, &what)? {
            return Ok(ExitCode::FAILURE);
        }
        let store = app.store().await?;
        app.registrar(&store).remove(&self.id).await?;
        output::told(format_args!("{} removed", self.id));
        Ok(ExitCode::SUCCESS)
    }
}
