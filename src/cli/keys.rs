//! `perennial keys`: the keys that seal secrets, wrapped by AWS KMS.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::progress::Progress;
use super::{App, UsageError, output, seal, sealing};
use crate::seal::{Family, KeyName, KeyRecord, KeyState, KmsKeys, Series};

/// The keys that seal secrets, wrapped by AWS KMS.
#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make the table of keys, and a key for each family and shard that has none. May be run again.
    Init,
    /// List the keys: name, state, when it was made, and the customer master key that wraps it.
    List(List),
    /// Make a younger key in each series, and have the older ones only open. `perennial seal migrate` then brings what
    /// stands in the table under the new ones.
    Rotate,
    /// Have one key only open; or destroy one that nothing is sealed with any more.
    Retire(Retire),
    /// Write the wrapped keys as JSON lines: worth nothing without the customer master key, and all that is lost with the
    /// table of keys.
    Export(Export),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Retire {
    /// The key's name, as `keys list` prints it.
    key: String,
    /// Delete it, after every secret in the table has been looked at. What is sealed with it elsewhere, in a backup say, can
    /// then never be opened again.
    #[arg(long)]
    destroy: bool,
    /// With --destroy: do not ask.
    #[arg(long, requires = "destroy")]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// A file that does not exist yet; standard output without.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl KeysCommand {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let ring = sealing::ring(app);
        let keys = ring.source();
        match self {
            Self::Init => init(app, keys).await?,
            Self::List(options) => list(app, keys, options).await?,
            Self::Rotate => rotate(app, keys).await?,
            Self::Retire(options) => return retire(app, keys, options).await,
            Self::Export(options) => export(app, keys, options).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn master_key(app: &App) -> Result<&str, UsageError> {
    app.config().sealing.kms_key.as_deref().ok_or_else(|| {
        UsageError("sealing.kms_key is not set: name the customer master key that is to wrap keys (id, alias or ARN)".into())
    })
}

async fn init(app: &App, keys: &KmsKeys) -> anyhow::Result<()> {
    let (config, cmk) = (app.config(), master_key(app)?);
    let store = &config.store;
    if keys
        .create_table(store.deletion_protection, store.point_in_time_recovery)
        .await
        .context("the table of keys")?
    {
        output::note(format_args!("table {} is ready", keys.table()));
    }
    let records = keys.list(&config.sealing.name).await?;
    let series: Vec<Series> = Family::ALL
        .into_iter()
        .flat_map(|family| (0..config.sealing.shards).map(move |shard| (family, shard)))
        .map(|(family, shard)| Series { table: config.sealing.name.clone(), family, shard })
        .collect();
    let (mut created, total) = (0, series.len());
    let mut progress = Progress::new("keys", total);
    for series in series {
        let youngest = records.iter().rev().find(|record| record.name.series == series);
        let active = youngest.is_some_and(|record| record.state == KeyState::Active);
        if !active {
            let version = youngest.map_or(0, |record| record.name.version) + 1;
            created += u32::from(keys.create(&KeyName { series, version }, cmk, app.clock().now()).await?);
        }
        progress.step();
    }
    drop(progress);
    output::line(format_args!("summary keys={total} created={created}"))
}

async fn list(app: &App, keys: &KmsKeys, options: &List) -> anyhow::Result<()> {
    for record in keys.list(&app.config().sealing.name).await? {
        if options.json {
            output::json(&object(&record, false))?;
        } else {
            let KeyRecord { name, state, created, cmk, .. } = &record;
            output::row(format_args!("{:<44} {:<12} {created}  {cmk}", name.to_string(), state.as_str()))?;
        }
    }
    Ok(())
}

async fn rotate(app: &App, keys: &KmsKeys) -> anyhow::Result<()> {
    let cmk = master_key(app)?;
    let mut youngest: BTreeMap<Series, u32> = BTreeMap::new();
    let records = keys.list(&app.config().sealing.name).await?;
    for record in &records {
        let version = youngest.entry(record.name.series.clone()).or_default();
        *version = record.name.version.max(*version);
    }
    if youngest.is_empty() {
        return Err(anyhow!("there are no keys: `perennial keys init` makes them"));
    }
    let (mut created, mut retired) = (0_u32, 0_u32);
    let mut progress = Progress::new("series", youngest.len());
    for (series, version) in youngest {
        // The new one first: at no time is there none that seals.
        let name = KeyName { series: series.clone(), version: version + 1 };
        created += u32::from(keys.create(&name, cmk, app.clock().now()).await?);
        let older =
            records.iter().filter(|record| record.name.series == series && record.state == KeyState::Active);
        for record in older {
            keys.retire(&record.name, app.clock().now()).await?;
            retired += 1;
        }
        progress.step();
    }
    drop(progress);
    let fresh = humantime::format_duration(app.config().sealing.fresh);
    output::note(format_args!(
        "daemons take the new keys up within sealing.fresh ({fresh}); then `perennial seal migrate` brings what stands in the \
         table under them"
    ));
    output::line(format_args!("summary created={created} retired={retired}"))
}

async fn retire(app: &App, keys: &KmsKeys, options: &Retire) -> anyhow::Result<ExitCode> {
    let table = &app.config().sealing.name;
    let name = KeyName::parse(&options.key).filter(|name| name.series.table == *table);
    let name = name.ok_or_else(|| {
        UsageError(format!(
            "`{}` is no key of the table {table}: `perennial keys list` has their names",
            options.key
        ))
    })?;
    let records = keys.list(table).await?;
    let found = records.iter().find(|record| record.name == name);
    let found = found.ok_or_else(|| UsageError(format!("there is no key {name}: `perennial keys list`")))?;
    let others = records.iter().filter(|record| record.name.series == name.series && record.name != name);
    if !others.clone().any(|record| record.state == KeyState::Active) {
        return Err(UsageError(format!(
            "{name} is the only key of its series that seals: `perennial keys rotate` first"
        ))
        .into());
    }
    if found.state == KeyState::Active {
        keys.retire(&name, app.clock().now()).await?;
    }
    if options.destroy
        && let Err(wait) = may_be_destroyed(app, found)
    {
        output::note(format_args!("{name} is kept, and only opens: {wait}"));
        return Ok(ExitCode::FAILURE);
    }
    if !options.destroy {
        output::told(format_args!("{name} only opens from now on"));
        return Ok(ExitCode::SUCCESS);
    }
    let uses = seal::uses_of(app, &name.to_string()).await?;
    if uses > 0 {
        output::note(format_args!(
            "{name} is kept: {uses} secrets are sealed with it; `perennial seal migrate` brings them under a younger key"
        ));
        return Ok(ExitCode::FAILURE);
    }
    if !super::confirm(
        options.yes,
        &format!("Destroy {name}: what backups hold of it can never be opened again."),
    )? {
        return Ok(ExitCode::FAILURE);
    }
    keys.destroy(&name).await?;
    output::told(format_args!("{name} is destroyed"));
    Ok(ExitCode::SUCCESS)
}

/// A daemon that had no answer about keys since then has sealed with it for so long, and for an attempt beyond that.
fn may_be_destroyed(app: &App, key: &KeyRecord) -> Result<(), String> {
    let (sealing, timing) = (&app.config().sealing, &app.config().refresh.timing);
    let least = sealing.fresh + sealing.stale + timing.lease();
    let retired = key.retired.ok_or("it has only now been retired")?;
    let at = retired.plus(least);
    if app.clock().now() < at {
        return Err(format!(
            "daemons may seal with it until {at} (sealing.fresh + sealing.stale + refresh.lease)"
        ));
    }
    Ok(())
}

async fn export(app: &App, keys: &KmsKeys, options: &Export) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let records = keys.list(&app.config().sealing.name).await?;
    let lines: String = records.iter().map(|record| format!("{}\n", object(record, true))).collect();
    let Some(path) = &options.out else { return output::raw(lines.as_bytes()) };
    let mut opening = std::fs::OpenOptions::new();
    let file = opening.write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("--out {}", path.display()))?;
    file.write_all(lines.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| path.display().to_string())?;
    output::line(format_args!("summary keys={} file={}", records.len(), path.display()))
}

fn object(record: &KeyRecord, wrapped: bool) -> Value {
    let KeyRecord { name, state, created, cmk, .. } = record;
    let mut object = json!({
        "kid": name.to_string(), "state": state.as_str(), "created": created.to_string(), "cmk": cmk,
    });
    if wrapped {
        object["wrapped"] = STANDARD.encode(&record.wrapped).into();
    }
    object
}
