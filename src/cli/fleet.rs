//! `perennial fleet`: who is at work, and who cares for what.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::standing::relative;
use super::{App, output};
use crate::fleet::Rules;
use crate::plan::membership::View;
use crate::record::{Member, Phase, Tally, decode_member};
use crate::scheduler::SKEW_ALARM;
use crate::store::Roster as _;
use crate::time::Timestamp;

/// List the running tasks: state, shards, clients, lag, and what each has done since its start.
#[derive(Debug, Args)]
#[command(after_help = "\
A task is `silent` when it has not beaten for fleet.silence: the others have its shards by now. One that is `late` beyond
fleet.max_lag keeps beating and has lost its shards, too. One that is `skewed` acquires nobody: its wall clock is further
off the table's than health.max_skew. CONFLICTS are attempts that found another's lease or newer tokens: some are normal
while shards move.

What needs somebody's attention is said on standard error; the last line is for programs.

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
        // Every clock is set right by the table's, as far as its owner knows how wrong it is.
        let now = shifted(clock.now(), store.vitals().skew_ms());
        members.iter_mut().for_each(|member| member.at = shifted(member.at, member.skew_ms));
        let limits = Limits { rules, max_skew: app.config().health.max_skew };
        let alive = members.iter().filter(|member| !is_silent(member, &rules, now));
        let mut view = View::new(rules);
        view.observe(alive.cloned().collect(), clock.moment(), now);
        if !members.is_empty() && !self.json {
            output::line(row(&HEADER.map(str::to_owned)))?;
        }
        let mut owned = 0;
        for member in &members {
            let shards = view.shards_of(&member.incarnation, shards);
            owned += shards.len();
            if self.json {
                output::json(&object(member, &shards.into_iter().collect::<Vec<_>>(), &limits, now))?;
            } else {
                output::line(row(&cells(member, shards.len(), &limits, now)))?;
            }
        }
        if members.is_empty() {
            output::note("no task is running: start one with `perennial run`");
        } else if owned == 0 {
            output::note("no task is at work: nobody's token is refreshed");
        }
        members.iter().filter_map(|member| concern(member, &limits, now)).for_each(output::note);
        if !self.json {
            output::line(summary(&members, &limits, now, owned, shards))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What a member must keep to.
struct Limits {
    rules: Rules,
    max_skew: Duration,
}

/// A reading of a clock that is so far ahead of the table's.
fn shifted(at: Timestamp, skew_ms: i64) -> Timestamp {
    Timestamp::from_millis(at.as_millis().saturating_sub(skew_ms))
}

fn is_silent(member: &Member, rules: &Rules, now: Timestamp) -> bool {
    now.since(member.at) > rules.silence
}

fn lag(member: &Member) -> Duration {
    Duration::from_millis(member.lag_ms.max(0).unsigned_abs())
}

fn skew(member: &Member) -> Duration {
    Duration::from_millis(member.skew_ms.unsigned_abs())
}

/// What somebody should know of a member, and what to do about it.
fn concern(member: &Member, limits: &Limits, now: Timestamp) -> Option<String> {
    let (name, skew_ms) = (&member.incarnation, member.skew_ms);
    match state(member, limits, now) {
        "silent" => Some(format!(
            "{name} fell silent {}: it was killed or is cut off, and has lost its shards",
            relative(member.at, now)
        )),
        "skewed" => Some(format!(
            "{name} acquires nobody: its wall clock is {skew_ms} ms off the table's; repair its time service"
        )),
        "late" => Some(format!(
            "{name} is {:.0} s late and has lost its shards: look at its /status and its log, then restart it",
            lag(member).as_secs_f64()
        )),
        _ if skew(member) > SKEW_ALARM => {
            Some(format!("{name}: its wall clock is {skew_ms} ms off the table's, tokens may expire early"))
        }
        _ => None,
    }
}

fn summary(members: &[Member], limits: &Limits, now: Timestamp, owned: usize, shards: u32) -> String {
    let count = |wanted: &str| members.iter().filter(|member| state(member, limits, now) == wanted).count();
    let present = members.iter().filter(|member| !is_silent(member, &limits.rules, now));
    let (mut clients, mut conflicts) = (0, 0);
    for member in present {
        clients += member.tally.clients;
        conflicts += member.tally.conflicts;
    }
    format!(
        "summary members={} active={} silent={} shards={shards} unowned={} clients={clients} conflicts={conflicts}",
        members.len(),
        count("active"),
        count("silent"),
        usize::try_from(shards).unwrap_or(usize::MAX).saturating_sub(owned),
    )
}

/// As the others see it.
fn state(member: &Member, limits: &Limits, now: Timestamp) -> &'static str {
    let late = lag(member) > limits.rules.max_lag;
    match member.phase {
        _ if is_silent(member, &limits.rules, now) => "silent",
        Phase::Joining => "joining",
        Phase::Leaving => "leaving",
        Phase::Active if skew(member) > limits.max_skew => "skewed",
        Phase::Active if late => "late",
        Phase::Active => "active",
    }
}

fn object(member: &Member, shards: &[u32], limits: &Limits, now: Timestamp) -> serde_json::Value {
    let Tally { clients, refreshed, failed, conflicts, takeovers } = member.tally;
    json!({
        "member": member.incarnation,
        "state": state(member, limits, now),
        "beat_at": member.at.to_string(),
        "shards": shards,
        "clients": if is_silent(member, &limits.rules, now) { 0 } else { clients },
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

fn cells(member: &Member, shards: usize, limits: &Limits, now: Timestamp) -> [String; 12] {
    let Tally { clients, refreshed, failed, conflicts, takeovers } = member.tally;
    [
        member.incarnation.clone(),
        state(member, limits, now).to_owned(),
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
        let limits = Limits { rules, max_skew: secs(30) };
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
        let concerns = |member: &Member, now| concern(member, &limits, now).unwrap_or_default();
        assert_eq!((state(&member, &limits, now), concerns(&member, now)), ("active", String::new()));
        assert_eq!(state(&member, &limits, now.plus(secs(31))), "silent");
        assert!(concerns(&member, now.plus(secs(31))).contains("has lost its shards"));
        let late = Member { lag_ms: 120_001, ..member.clone() };
        assert_eq!(state(&late, &limits, now), "late");
        let skewed = Member { skew_ms: -30_001, ..late };
        assert_eq!(state(&skewed, &limits, now), "skewed", "that is why it is late");
        assert!(concerns(&skewed, now).contains("-30001 ms"));
        assert!(concerns(&Member { skew_ms: 5_001, ..member.clone() }, now).contains("may expire early"));
        assert_eq!(state(&Member { phase: Phase::Leaving, ..member }, &limits, now), "leaving");
    }
}
