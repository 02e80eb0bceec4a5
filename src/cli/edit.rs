//! `perennial clients pause`, `resume` and `refresh`: one attribute of the registration.
//!
//! `pause --all` is for a table whose refresh tokens may be spent, as one that was restored: what nobody refreshes can be
//! looked at in peace.

use std::process::ExitCode;

use clap::Args;

use super::walk::Listing;
use super::{App, client_id, output};
use crate::client::ClientId;
use crate::registrar::{Outcome, RegistrarError};

/// Stop refreshing clients; their tokens stay, and expire in time.
#[derive(Debug, Args)]
pub(super) struct Pause {
    /// Clients.
    #[arg(required_unless_present = "all", value_name = "ID", value_parser = client_id)]
    ids: Vec<ClientId>,
    /// Every client of the table, as before a daemon is started on a table that was restored to a point in time.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

/// Refresh clients again that were paused.
#[derive(Debug, Args)]
pub(super) struct Resume {
    /// Clients.
    #[arg(required = true, value_name = "ID", value_parser = client_id)]
    ids: Vec<ClientId>,
}

/// Have clients' tokens replaced at once, by the running daemon; backoff still applies.
///
/// Saying it twice replaces a token once: each request names the generation that is to be replaced.
#[derive(Debug, Args)]
pub(super) struct Refresh {
    /// Clients.
    #[arg(required = true, value_name = "ID", value_parser = client_id)]
    ids: Vec<ClientId>,
}

const PAUSED: [&str; 2] = ["paused", "is paused already"];

impl Pause {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store().await?;
        let registrar = app.registrar(&store);
        let pause = async |id: &ClientId| registrar.pause(id, true).await;
        if !self.all {
            return each(&self.ids, PAUSED, pause).await;
        }
        let mut code = ExitCode::SUCCESS;
        let mut listing = Listing::new(&store, app.config().store.shards);
        while let Some(page) = listing.next().await? {
            page.name_strangers();
            if each(&page.ids, PAUSED, pause).await? != ExitCode::SUCCESS {
                code = ExitCode::FAILURE;
            }
        }
        Ok(code)
    }
}

impl Resume {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store().await?;
        let registrar = app.registrar(&store);
        each(&self.ids, ["resumed", "is not paused"], async |id| registrar.pause(id, false).await).await
    }
}

impl Refresh {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store().await?;
        let registrar = app.registrar(&store);
        let told = ["will be refreshed by the running daemon", "was asked for already"];
        each(&self.ids, told, async |id| registrar.refresh_now(id).await).await
    }
}

/// All of them, whatever becomes of one; 1 if any failed.
async fn each(
    ids: &[ClientId],
    [done, unchanged]: [&str; 2],
    edit: impl AsyncFn(&ClientId) -> Result<Outcome, RegistrarError>,
) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        match edit(id).await {
            Ok(Outcome::Done) => output::told(format_args!("{id} {done}")),
            Ok(Outcome::Unchanged) => output::told(format_args!("{id} {unchanged}")),
            Err(error) => {
                output::note(format_args!("error: {error}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
