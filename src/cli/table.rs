//! `perennial table create` and `table check`.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::{App, output};
use crate::store::{Finding, TableSpec, Verdict, table};

/// Make the DynamoDB table, or compare it with what it must be.
#[derive(Debug, Subcommand)]
pub(super) enum TableCommand {
    /// Make the table with its index, TTL, backups and schema item; a table that is there is compared, never changed.
    Create,
    /// Compare the table with what it must be; exit code 1 where it differs.
    Check {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

impl TableCommand {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.raw_store().await?;
        let settings = &app.config().store;
        let spec = TableSpec {
            kms_key: settings.kms_key.clone(),
            shards: settings.shards,
            deletion_protection: settings.deletion_protection,
            point_in_time_recovery: settings.point_in_time_recovery,
        };
        match self {
            Self::Create => {
                print(&table::create(&store, &spec).await?, false)?;
                output::line(format_args!("table {} is ready", store.table()))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Check { json } => {
                let findings = table::check(&store, &spec).await?;
                print(&findings, *json)?;
                let differs = findings.iter().any(|finding| finding.verdict == Verdict::Differs);
                Ok(if differs { ExitCode::FAILURE } else { ExitCode::SUCCESS })
            }
        }
    }
}

fn print(findings: &[Finding], json: bool) -> anyhow::Result<()> {
    for finding in findings {
        let Finding { what, needed, found, remedy, .. } = finding;
        let verdict = word(finding.verdict);
        if json {
            output::json(&json!({
                "what": what, "verdict": verdict, "needed": needed, "found": found, "remedy": remedy,
            }))?;
        } else {
            output::line(format_args!("{verdict:<11}  {finding}"))?;
        }
    }
    Ok(())
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Differs => "differs",
        Verdict::Unsupported => "unsupported",
    }
}
