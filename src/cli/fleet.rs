//! `perennial fleet`: who is at work, and who cares for what.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::status::relative;
use super::{App, output};
use crate::fleet::Rules;
use crate::plan::membership::View;
use crate::record::{Member, Phase, Tally, decode_member};
use crate::store::Roster as _;
use crate::time::Timestamp;

/// List the running tasks: state, shards, clients, lag, and what each has done since its start.
#[derive(Debug, Args)]
#[command(after_help = "\
A task is `silent` when it has not beaten for fleet.silence: the others have its shards by now. One that is late beyond
fleet.max_lag keeps beating and has lost its shards, too. CONFLICTS are attempts that found another's lease or newer
tokens: some are normal while shards move.

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
        let (rules, shards, clock) = (app.config().fleet, app.config().store.shards, app.clock());
        let mut members = Vec::new();
        for (incarnation, item) in store.members().await? {
            match decode_member(&incarnation, &item) {
                Ok(member) => members.push(member),
                Err(malformed) => output::note(format_args!("skipped: {malformed}")),
            }
        }
        let now = clock.now();
        let mut view = View::new(rules);
        view.observe(members.clone(), clock.moment(), now);
        if members.is_empty() {
            output::note("no task is running: start one with `perennial run`");
        } else if !self.json {
            output::line(row(&HEADER.map(str::to_owned)))?;
        }
        for member in &members {
            let shards = view.shards_of(&member.incarnation, shards);
            if self.json {
                output::json(&object(member, &shards.into_iter().collect::<Vec<_>>(), &rules, now))?;
            } else {
                output::line(row(&cells(member, shards.len(), &rules, now)))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// As the others see it.
fn state(member: &Member, rules: &Rules, now: Timestamp) -> &'static str {
    let silent = now.since(member.at) > rules.silence;
    let late = Duration::from_millis(member.lag_ms.max(0).unsigned_abs()) > rules.max_lag;
    match member.phase {
        _ if silent => "silent",
        Phase::Joining => "joining",
        Phase::Leaving => "leaving",
        Phase::Active if late => "late",
        Phase::Active => "active",
    }
}

fn object(member: &Member, shards: &[u32], rules: &Rules, now: Timestamp) -> serde_json::Value {
    let Tally { clients, refreshed, failed, conflicts, takeovers } = member.tally;
    json!({
        "member": member.incarnation,
        "state": state(member, rules, now),
        "beat_at": member.at.to_string(),
        "shards": shards,
        "clients": clients,
        "lag_ms": member.lag_ms,
        "skew_ms": member.skew_ms,
        "refreshed": refreshed,
        "failed": failed,
        "conflicts": conflicts,
        "takeovers": takeovers,
        "version": member.version,
    })
}

const HEADER: [&str; 12] = [
    "MEMBER",
    "STATE",
    "BEAT",
    "SHARDS",
    "CLIENTS",
    "LAG",
    "SKEW",
    "REFRESHED",
    "FAILED",
    "CONFLICTS",
    "TAKEOVERS",
    "VERSION",
];

fn cells(member: &Member, shards: usize, rules: &Rules, now: Timestamp) -> [String; 12] {
    let Tally { clients, refreshed, failed, conflicts, takeovers } = member.tally;
    [
        member.incarnation.clone(),
        state(member, rules, now).to_owned(),
        relative(member.at, now),
        shards.to_string(),
        clients.to_string(),
        format!("{} ms", member.lag_ms),
        format!("{} ms", member.skew_ms),
        refreshed.to_string(),
        failed.to_string(),
        conflicts.to_string(),
        takeovers.to_string(),
        member.version.clone(),
    ]
}

fn row(cells: &[String; 12]) -> String {
    let [member, state, beat, shards, clients, lag, skew, refreshed, failed, conflicts, takeovers, version] =
        cells;
    format!(
        "{member:<16}  {state:<8}  {beat:<10}  {shards:>6}  {clients:>8}  {lag:>8}  {skew:>8}  {refreshed:>9}  \
         {failed:>6}  {conflicts:>9}  {takeovers:>9}  {version}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_told_as_the_others_see_it() {
        let secs = Duration::from_secs;
        let rules = Rules { beat: secs(10), silence: secs(30), max_lag: secs(120) };
        let now = Timestamp::from_secs(1000);
        let member = Member {
            incarnation: "a".into(),
            beat: 1,
            phase: Phase::Active,
            lag_ms: 0,
            skew_ms: 0,
            at: now,
            version: "1".into(),
            tally: Tally::default(),
        };
        assert_eq!(state(&member, &rules, now), "active");
        assert_eq!(state(&member, &rules, now.plus(secs(31))), "silent");
        assert_eq!(state(&Member { lag_ms: 120_001, ..member.clone() }, &rules, now), "late");
        assert_eq!(state(&Member { phase: Phase::Leaving, ..member }, &rules, now), "leaving");
    }
}
