//! `perennial clients show`: everything about one client but its secrets.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::import_token::not_registered;
use super::standing::ClientStatus;
use super::{App, client_id, output};
use crate::client::credentials::Credential;
use crate::client::{Client, ClientId, without_query};
use crate::record::Snapshot;
use crate::time::Timestamp;

/// Show everything about a client; of its secrets, only whether there are any.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The client.
    #[arg(value_name = "ID", value_parser = client_id)]
    id: ClientId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store().await?;
        let read = app.registrar(&store).read(&self.id).await?;
        let client = read.client().ok_or_else(|| not_registered(&self.id))?;
        let facts = facts(client, &read, app.clock().now());
        if self.json {
            output::json(&facts)?;
        } else {
            for (key, value) in facts.as_object().into_iter().flatten() {
                output::row(format_args!("{key:<18} {}", plain(value)))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn facts(client: &Client, read: &Snapshot, now: Timestamp) -> Value {
    let status = ClientStatus::of(client, read, now);
    let mut facts = status.map_or_else(
        || json!({ "client": client.id.as_str(), "state": "no LEASE item" }),
        |status| status.json(&client.id, &client.provider, client.grant, client.paused),
    );
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let token = read.token.as_ref();
    let more = json!({
        "provider": client.provider,
        "grant": client.grant.as_str(),
        "client_id": client.client_id,
        "has_client_secret": client.credentials.first.is_some(),
        "client_secret": client.credentials.first.as_ref().map(Credential::shown),
        "second_client_secret": client.credentials.second.as_ref().map(Credential::shown),
        "scopes": client.scopes,
        "audience": client.audience,
        "resource": client.resource,
        "params": client.params.keys().collect::<Vec<_>>(),
        "token_url": client.token_url.as_ref().map(without_query),
        "changed_at": client.joined.to_string(),
        "refresh_now": client.refresh_now.map(|generation| generation.0),
        "has_access_token": token.is_some_and(|token| token.access_token.is_some()),
        "has_refresh_token": token.is_some_and(|token| token.refresh_token.is_some()),
        "token_type": token.and_then(|token| token.token_type.clone()),
        "scope": token.and_then(|token| token.scope.clone()),
        "last_updated": token.and_then(|token| token.last_updated.clone()),
        "refresh_at": time(token.and_then(|token| token.refresh_at)),
        "token_generation": token.map(|token| token.generation.0),
        "generation": read.lease.as_ref().map(|lease| lease.generation.0),
        "lease_state": read.lease.as_ref().map(|lease| lease.state.as_str()),
    });
    if let (Value::Object(facts), Value::Object(more)) = (&mut facts, more) {
        facts.extend(more);
    }
    facts
}

/// A value as a person reads it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(flag) => if *flag { "yes" } else { "no" }.into(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "-".into(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
