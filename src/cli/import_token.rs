//! `perennial clients import-token`: tokens from outside for a registered client.

use std::process::ExitCode;

use clap::Args;

use super::add::{read_all, short_lifetime};
use super::source::{AccessTokenArgs, Expiry, RefreshTokenArgs, imported};
use super::{App, UsageError, client_id, output};
use crate::client::ClientId;
use crate::registrar::RegistrarError;

/// Put tokens from outside in the place of those that are stored, as after a new consent of the customer.
///
/// A client that is dead or held comes back to life by it. A refresh token that may still be good is replaced only
/// with --replace: importing an old one would kill the grant at providers that rotate.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  consent-tool crm-7 | perennial clients import-token crm-7 --refresh-token-stdin")]
pub(super) struct ImportToken {
    /// The client.
    #[arg(value_name = "ID", value_parser = client_id)]
    id: ClientId,
    #[command(flatten)]
    refresh_token: RefreshTokenArgs,
    #[command(flatten)]
    access_token: AccessTokenArgs,
    /// Replace a refresh token that may still be good.
    #[arg(long)]
    replace: bool,
}

impl ImportToken {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let sources = [self.refresh_token.source(), self.access_token.source()];
        let [refresh_token, access_token] = read_all(app, &sources)?;
        if refresh_token.is_none() && access_token.is_none() {
            let remedy = "there is no token to import: give one, as in --refresh-token-stdin";
            return Err(UsageError(remedy.into()).into());
        }
        let store = app.store().await?;
        let registrar = app.registrar(&store);
        let read = registrar.read(&self.id).await?;
        let client = read.client().ok_or_else(|| not_registered(&self.id))?;
        let provider = app.provider(&client.provider)?;
        let expiry = self.access_token.expires_in.map_or(Expiry::Unknown, Expiry::In);
        let tokens = imported(app, refresh_token, access_token, expiry);
        registrar.import(&self.id, &tokens, provider, self.replace).await?;
        if let Some(note) = short_lifetime(expiry) {
            output::note(format_args!("note: {}: {note}", self.id));
        }
        output::told(format_args!("{} has new tokens", self.id));
        Ok(ExitCode::SUCCESS)
    }
}

/// There is no such client.
pub(super) fn not_registered(id: &ClientId) -> RegistrarError {
    crate::plan::registry::Refusal::NotRegistered(id.clone()).into()
}
