//! `perennial seal`: in which form secrets stand in the table, and how they come into another.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::progress::Progress;
use super::walk::Listing;
use super::{App, output};
use crate::client::ClientId;
use crate::seal::Keys;
use crate::store::{DynamoVault, Form, Resealed};

/// In which form secrets stand in the table.
#[derive(Debug, Subcommand)]
pub(super) enum SealCommand {
    /// Count the secrets by form and key; exit code 1 where some have another form than new ones get.
    Status(Options),
    /// Bring every secret into the form that sealing.mode gives new ones, or under the youngest key. Daemons may run; run it
    /// again after an interruption. It works in both directions.
    Migrate(Options),
}

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl SealCommand {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        match self {
            Self::Status(options) => status(app, options).await,
            Self::Migrate(options) => migrate(app, options).await,
        }
    }
}

/// So many secrets of this form.
type Forms = BTreeMap<(&'static str, Form), u64>;

async fn count(app: &App, store: &DynamoVault) -> anyhow::Result<(u64, u64, Forms)> {
    let (mut clients, mut astray, mut forms) = (0, 0, Forms::new());
    let mut listing = Listing::new(store, app.config().store.shards);
    let mut progress = Progress::open("clients");
    while let Some(page) = listing.next().await? {
        for id in page.ids {
            clients += 1;
            for (name, form) in store.forms(&id).await? {
                let wanted = store.keys().sealing_name(store.table(), id.as_str(), name).await?;
                astray += u64::from(form != wanted.map_or(Form::Plain, Form::Sealed));
                *forms.entry((name, form)).or_default() += 1;
            }
            progress.step();
        }
    }
    Ok((clients, astray, forms))
}

/// Secrets in the whole table that are sealed with this key, whether a client is registered beside them or not.
pub(super) async fn uses_of(app: &App, key: &str) -> anyhow::Result<u64> {
    let store = app.raw_store().await?;
    let mut uses = 0;
    let mut progress = Progress::open("items");
    let mut after = None;
    loop {
        let page = store.scan_secrets(after).await?;
        for secret in &page.secrets {
            uses += u64::from(Keys::name_of(secret.expose()).as_deref() == Some(key));
            progress.step();
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(uses),
        }
    }
}

async fn status(app: &App, options: &Options) -> anyhow::Result<ExitCode> {
    let store = app.store().await?;
    let (clients, astray, forms) = count(app, &store).await?;
    let of = |plain: bool| -> u64 {
        forms.iter().filter(|((_, form), _)| (*form == Form::Plain) == plain).map(|(_, count)| count).sum()
    };
    let (plain, sealed) = (of(true), of(false));
    let key = |form: &Form| match form {
        Form::Plain => None,
        Form::Sealed(name) => Some(name.clone()),
    };
    if options.json {
        let forms: Vec<_> = forms
            .iter()
            .map(|((name, form), count)| json!({"attribute": name, "kid": key(form), "secrets": count}))
            .collect();
        output::json(&json!({
            "clients": clients, "sealed": sealed, "plain": plain, "astray": astray, "forms": forms,
        }))?;
    } else {
        for ((name, form), count) in &forms {
            output::line(format_args!(
                "{name:<16} {:<48} {count}",
                key(form).unwrap_or_else(|| "plain".into())
            ))?;
        }
        output::line(format_args!(
            "summary clients={clients} sealed={sealed} plain={plain} astray={astray}"
        ))?;
    }
    Ok(if astray == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn migrate(app: &App, options: &Options) -> anyhow::Result<ExitCode> {
    let store = app.store().await?;
    let mut total = Resealed::default();
    let mut failed: Vec<(ClientId, String)> = Vec::new();
    let mut listing = Listing::new(&store, app.config().store.shards);
    let mut progress = Progress::open("clients");
    while let Some(page) = listing.next().await? {
        page.name_strangers();
        for id in page.ids {
            match store.reseal(&id).await {
                Ok(resealed) => {
                    total.changed += resealed.changed;
                    total.kept += resealed.kept;
                    total.raced += resealed.raced;
                }
                Err(error) => failed.push((id, error.to_string())),
            }
            progress.step();
        }
    }
    drop(progress);
    for (id, error) in &failed {
        output::note(format_args!("{id}: {error}"));
    }
    let (Resealed { changed, kept, raced }, failed) = (total, failed.len());
    if options.json {
        output::json(&json!({"changed": changed, "kept": kept, "raced": raced, "failed": failed}))?;
    } else {
        output::line(format_args!("summary changed={changed} kept={kept} raced={raced} failed={failed}"))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
