//! The files that `perennial agent` keeps, as the configuration names them.

use super::{App, UsageError};
use crate::config::{AgentFile, FileFormat};
use crate::reader::Reader;
use crate::sink::{File, Form, Sink};
use crate::store::DynamoVault;

/// What commands get of the agent's environment: where programs are and how they speak, and nothing that may be secret.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// Looks at each place; no token is written yet.
pub(super) fn sink(app: &App, reader: Reader<DynamoVault>) -> Result<Sink<DynamoVault>, UsageError> {
    let files = app.config().agent.files.iter().map(|(name, file)| of(name, file)).collect();
    let inherited = INHERITED.iter().filter_map(|name| {
        let value = app.sources().variable(name)?;
        Some(((*name).to_owned(), value.expose().to_owned()))
    });
    let opened = Sink::open(reader, app.clock(), files, inherited.collect());
    opened.map_err(|error| UsageError(error.to_string()))
}

fn of(name: &str, file: &AgentFile) -> File {
    File {
        name: name.to_owned(),
        client: file.client.clone(),
        path: file.path.clone(),
        form: match file.format {
            FileFormat::Token => Form::Token,
            FileFormat::Json => Form::Json,
            FileFormat::Env => Form::Env,
        },
        mode: file.mode,
        group: file.group,
        on_change: file.on_change.clone(),
        timeout: file.on_change_timeout,
    }
}
