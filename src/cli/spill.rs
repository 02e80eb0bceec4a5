//! `perennial spill list` and `spill replay`; and what the configuration's spill is made of.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;
use tracing::{error, warn};

use super::{App, UsageError, output, sealing};
use crate::spill::{self, Bucket, BucketAddress, Directory, Place, Spill, SpillError};

/// New tokens that the table did not take.
#[derive(Debug, Subcommand)]
pub(super) enum SpillCommand {
    /// List the records: whose tokens, of which generation, and whether they can be used.
    List(Options),
    /// Bring every record into the table, unless it has newer tokens. A running daemon does this by itself.
    Replay(Options),
}

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

impl SpillCommand {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let spill = configured(app).await?;
        if !spill.is_configured() {
            return Err(
                UsageError("no spill is configured: set spill.directory or spill.s3_bucket".into()).into()
            );
        }
        match self {
            Self::List(options) => list(&spill, options).await,
            Self::Replay(options) => replay(&spill, app, options).await,
        }
    }
}

async fn list(spill: &Spill, options: &Options) -> anyhow::Result<ExitCode> {
    let (names, silent) = spill.names().await;
    let (mut clean, count) = (true, names.len());
    for name in names {
        let (client, generation) = (&name.client, name.generation.0);
        let (expires_at, problem) = match spill.record(&name).await {
            Ok(None) => continue,
            Ok(Some(record)) => (Some(record.commit.expires_at.to_string()), None),
            Err(problem) => {
                clean = false;
                (None, Some(problem.to_string()))
            }
        };
        if options.json {
            output::json(&json!({
                "client": client.as_str(), "generation": generation, "expires_at": expires_at, "problem": problem,
            }))?;
        } else {
            let state = problem.unwrap_or_else(|| format!("expires {}", expires_at.unwrap_or_default()));
            output::line(format_args!("{:<28} {generation:<8} {state}", client.as_str()))?;
        }
    }
    if silent.is_none() && clean && count == 0 {
        output::note(format_args!("nothing is in the spill: {}", spill.told()));
    }
    finish(clean, silent)
}

async fn replay(spill: &Spill, app: &App, options: &Options) -> anyhow::Result<ExitCode> {
    let store = app.store().await?;
    let mut clean = true;
    let (told, silent) = spill::replay_all(spill, &store).await;
    for (name, outcome) in told {
        clean &= outcome.as_ref().is_ok_and(|outcome| outcome.is_done());
        let (client, generation) = (name.client.as_str(), name.generation.0);
        let told = outcome.map(spill::Replayed::as_str);
        if options.json {
            let (outcome, problem) = (told.as_ref().ok(), told.as_ref().err());
            output::json(&json!({
                "client": client, "generation": generation, "outcome": outcome, "problem": problem,
            }))?;
        } else {
            let told = told.map_or_else(|problem| problem, str::to_owned);
            output::line(format_args!("{client:<28} {generation:<8} {told}"))?;
        }
    }
    finish(clean, silent)
}

fn finish(clean: bool, silent: Option<SpillError>) -> anyhow::Result<ExitCode> {
    match silent {
        Some(error) => Err(error.into()),
        None => Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

/// The spill that the configuration describes.
pub(super) async fn configured(app: &App) -> anyhow::Result<Spill> {
    let config = &app.config().spill;
    if !config.is_configured() {
        return Ok(Spill::none());
    }
    let mut places = Vec::new();
    places.extend(config.directory.as_ref().map(|path| Place::Directory(Directory::new(path))));
    if let Some(bucket) = &config.bucket {
        let address = BucketAddress {
            bucket: bucket.clone(),
            prefix: config.prefix.clone(),
            region: config.region.clone(),
            endpoint: config.endpoint.clone(),
        };
        places.push(Place::Bucket(Bucket::connect(address).await));
    }
    let keys = sealing::own_keys(&app.config().sealing)?;
    Ok(Spill::new(places, keys, app.config().store.table.clone(), Arc::clone(&app.clock())))
}

/// Says so where a place cannot be used, or a bucket forgets what is deleted. It is no reason not to start.
pub(super) async fn check(spill: &Spill) {
    for directory in spill.directories() {
        if let Err(error) = directory.probe().await {
            error!(alarm = "spill_failed", %error, "the spill's directory cannot be written: it would keep nothing");
        }
    }
    for bucket in spill.buckets() {
        match bucket.is_versioned().await {
            Ok(true) => {}
            Ok(false) => {
                warn!("spill.s3_bucket is not versioned: switch versioning on, so that no removal is final")
            }
            Err(error) => error!(alarm = "spill_unreadable", %error, "the spill's bucket does not answer"),
        }
    }
}
