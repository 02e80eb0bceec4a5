//! `perennial fleet`: who is at work, and who cares for what.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::muster::{self, MemberState, Muster, Seen};
use super::{App, output};
use crate::record::Tally;

/// List the running tasks: state, shards, clients, lag, and what each has done since its start.
#[derive(Debug, Args)]
#[command(after_help = "\
A task is `silent` when it has not beaten for fleet.silence: the others have its shards by now. One that is `late` beyond
fleet.max_lag keeps beating and has lost its shards, too. One that is `skewed` acquires nobody: its wall clock is further
off the table's than health.max_skew. CONFLICTS are attempts that found another's lease or newer tokens: some are normal
while shards move.

What needs somebody's attention is said on standard error; the last line is for programs. The exit code is 0 whatever is
found: `perennial status` judges.

Example:
  perennial fleet --json | jq -s 'map(.clients) | add'")]
pub(super) struct Fleet {
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Fleet {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store().await?;
        let muster = Muster::read(app, &store).await?;
        for problem in &muster.malformed {
            output::skipped(problem);
        }
        if !muster.seen.is_empty() && !self.json {
            output::line(muster::header())?;
        }
        for seen in &muster.seen {
            if self.json {
                output::json(&object(seen))?;
            } else {
                output::row(seen.row(muster.now))?;
            }
        }
        if muster.seen.is_empty() {
            output::note("no task is running: start one with `perennial run`");
        } else if muster.at_work() == 0 {
            output::note("no task is at work: nobody's token is refreshed");
        }
        muster.seen.iter().filter_map(|seen| seen.concern(muster.now)).for_each(output::concern);
        if !self.json {
            output::line(summary(&muster))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn summary(muster: &Muster) -> String {
    let present = muster.seen.iter().filter(|seen| seen.state != MemberState::Silent);
    let (mut clients, mut conflicts) = (0, 0);
    for Seen { member, .. } in present {
        clients += member.tally.clients;
        conflicts += member.tally.conflicts;
    }
    format!(
        "summary members={} active={} silent={} shards={} unowned={} clients={clients} conflicts={conflicts}",
        muster.seen.len(),
        muster.count(MemberState::Active),
        muster.count(MemberState::Silent),
        muster.shards,
        muster.unowned(),
    )
}

/// A member, for programs.
pub(super) fn object(seen: &Seen) -> serde_json::Value {
    let Seen { member, state, shards, .. } = seen;
    let Tally { clients, refreshed, failed, conflicts, takeovers } = member.tally;
    json!({
        "member": member.incarnation,
        "state": state.as_str(),
        "beat_at": member.at.to_string(),
        "shards": shards,
        "clients": if *state == MemberState::Silent { 0 } else { clients },
        "lag_ms": member.lag_ms,
        "skew_ms": member.skew_ms,
        "refreshed": refreshed,
        "failed": failed,
        "conflicts": conflicts,
        "takeovers": takeovers,
        "version": member.version,
    })
}
