//! `perennial status`: is all well? For scripts and for people who were woken up.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::judge::{Verdict, judge};
use super::muster::{MemberState, Muster};
use super::survey::Survey;
use super::{App, output};
use crate::plan::condition::Condition;
use crate::time::Timestamp;

/// Judge the fleet and its clients: exit code 0 where all is well, 1 where it is degraded, 2 where it is broken.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  fine
  1  degraded: a task silent, late or with a wrong clock; clients dead, held, failing, overdue, in doubt for too long,
     waiting for their first token for too long, or about to expire
  2  broken: no task at work, or clients whose token has expired; or nothing can be told, since the table cannot be
     used, or the configuration or the command line is wrong

Clients that an operator paused are passed over. Each finding names the first few it is about, the command that tells
more, and a section of the runbook; the last line is for programs.

It costs three read units for each client and a half for each shard, and one for the tasks; with --only members that one.

Examples:
  perennial status --json | jq -r '.findings[].code'
  perennial status --only clients     # where `perennial run --once` is scheduled, and no task stays")]
pub(super) struct Status {
    /// Look at the tasks alone, which costs next to nothing, or at the clients alone.
    #[arg(long, value_name = "WHAT")]
    only: Option<Only>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    /// The running tasks.
    Members,
    /// The registered clients.
    Clients,
}

impl Status {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let report = match self.look(app).await {
            Ok(report) => report,
            Err(problem) => Report::unknown(&format!("{problem:#}")),
        };
        // The exit code is the answer, also where nobody reads the rest.
        output::told(if self.json { report.json().to_string() } else { report.text() });
        Ok(ExitCode::from(report.verdict.level.code()))
    }

    async fn look(&self, app: &App) -> anyhow::Result<Report> {
        let store = app.store().await?;
        let muster = match self.only {
            Some(Only::Clients) => None,
            _ => Some(Muster::read(app, &store).await?),
        };
        let survey = match self.only {
            Some(Only::Members) => None,
            _ => Some(Survey::read(app, &store, 0).await?),
        };
        let verdict = judge(muster.as_ref(), survey.as_ref());
        Ok(Report {
            verdict,
            muster,
            survey,
            now: app.table_time(&store),
            read_units: store.vitals().read_units(),
        })
    }
}

/// What was found, and what is concluded.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) verdict: Verdict,
    pub(super) muster: Option<Muster>,
    pub(super) survey: Option<Survey>,
    pub(super) now: Timestamp,
    /// What the look cost.
    pub(super) read_units: f64,
}

impl Report {
    pub(super) fn unknown(problem: &str) -> Self {
        let verdict = Verdict::unknown(problem);
        Self { verdict, muster: None, survey: None, now: Timestamp::default(), read_units: 0.0 }
    }

    /// Until the soonest expiry of a token that is kept fresh; negative where it is past.
    fn least_secs(&self) -> Option<i64> {
        let least = self.survey.as_ref()?.least?;
        Some((least.as_millis() - self.now.as_millis()).div_euclid(1000))
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.verdict.findings {
            let runbook = finding.runbook.as_ref().map(|place| format!("; {place}")).unwrap_or_default();
            let (level, code, message) = (finding.level.as_str(), finding.code, &finding.message);
            text += &format!("{level:<9} {code}: {message}\n{:<9} -> {}{runbook}\n", "", finding.remedy);
        }
        text + &self.summary()
    }

    fn summary(&self) -> String {
        let mut line = format!("summary status={}", self.verdict.level.as_str());
        // Writing to a string cannot fail.
        let mut add = |text: std::fmt::Arguments<'_>| line.write_fmt(text).unwrap_or_default();
        if let Some(muster) = &self.muster {
            let (members, at_work) = (muster.seen.len(), muster.at_work());
            let (silent, unowned) = (muster.count(MemberState::Silent), muster.unowned());
            add(format_args!(" members={members} at_work={at_work} silent={silent} unowned={unowned}"));
        }
        if let Some(survey) = &self.survey {
            add(format_args!(" clients={}", survey.clients()));
            for condition in Condition::ALL {
                add(format_args!(" {}={}", condition.label(), count(survey, condition)));
            }
            add(format_args!(" malformed={}", survey.malformed.count));
        }
        if let Some(least) = self.least_secs() {
            add(format_args!(" least_remaining_secs={least}"));
        }
        add(format_args!(" read_units={}", self.read_units));
        line
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "status": self.verdict.level,
            "findings": self.verdict.findings,
            "members": self.muster.as_ref().map(|muster| json!({
                "total": muster.seen.len(),
                "at_work": muster.at_work(),
                "silent": muster.count(MemberState::Silent),
                "late": muster.count(MemberState::Late),
                "skewed": muster.count(MemberState::Skewed),
                "shards": muster.shards,
                "unowned": muster.unowned(),
            })),
            "clients": self.survey.as_ref().map(|survey| {
                let mut clients: serde_json::Map<_, _> = Condition::ALL
                    .map(|condition| (condition.label().to_owned(), count(survey, condition).into()))
                    .into_iter()
                    .collect();
                clients.insert("total".into(), survey.clients().into());
                clients.insert("malformed".into(), survey.malformed.count.into());
                Value::Object(clients)
            }),
            "least_remaining_secs": self.least_secs(),
            "read_units": self.read_units,
        })
    }
}

pub(super) fn count(survey: &Survey, condition: Condition) -> usize {
    survey.by.get(&condition).copied().unwrap_or_default()
}
