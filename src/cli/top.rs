//! `perennial top`: fleet and clients as they are now, and again, and again.
//!
//! [`feed`] reads, within bounds; [`view`] is what is known and what the keys have made of it; [`draw`] makes a frame of
//! that, and nothing else does: a frame is a pure function of a view. [`screen`] is the only one to touch a terminal.

mod draw;
mod feed;
mod popup;
mod screen;
mod sweep;
mod text;
mod view;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use self::feed::{Reader, Round, Table};
use self::view::View;
use super::status::Report;
use super::{App, UsageError, fleet, output};
use crate::shutdown::Shutdown;

/// How wide a frame is where no terminal says so.
const WIDTH: u16 = 120;
/// How many clients are listed where nobody can scroll: the most urgent ones.
const LISTED: usize = 50;

/// Watch the fleet and its clients on a terminal: verdict, tasks, and the clients that most need an eye first.
#[derive(Debug, Args)]
#[command(after_help = "\
Keys:
  q Esc Ctrl-C     quit
  arrows PgUp PgDn Home End   move; Enter tells of the client what `perennial why` tells
  s                sort by urgency, expiry, next refresh, failures, id
  /                only clients whose id contains what is typed
  f p              only clients that are in trouble
  v                every finding, with its remedy and its section of the runbook
  r + -            read now; read more seldom, more often
  ?                these keys

It reads and never writes. A round costs 1.5 read units for each client whose items are small, a half for each shard (or for
each 40 clients of it), and one for each 20 tasks: with 130 clients on 16 shards some 204, which is 41 a second at 5s. A round
reads at most --max-clients clients. Where there are more, each round goes on where the last one ended, the view says that it is
partial, and then how old its rows may be. All rows are held in memory, about 1 KB each.

What is shown may be a second old beside that: clients are read eventually consistent. `perennial status` judges by strongly
consistent reads. Where the table does not answer, the view says so and keeps what it had, with its age.

Examples:
  perennial top --interval 2s
  perennial top --once | head -20
  perennial top --json | jq -c '[.at, .status, .least_remaining_secs]'")]
pub(super) struct Top {
    /// Between the end of a round of reading and the next, as in 2s or 1m.
    #[arg(long, default_value = "5s", value_parser = interval)]
    interval: Duration,
    /// Read at most so many clients a round.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = at_least_one)]
    max_clients: usize,
    /// Print one frame as text, and end. It needs no terminal.
    #[arg(long)]
    once: bool,
    /// Print one JSON object a line for each round, until nobody reads them; with --once, one.
    #[arg(long)]
    json: bool,
}

/// How often a round may begin.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

fn interval(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if every < MIN_INTERVAL { Err("at least 1s".into()) } else { Ok(every) }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number of 1 or more".into()),
        Ok(count) => Ok(count),
    }
}

impl Top {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let table = Table::new(app);
        match (self.once, self.json) {
            (true, _) => self.once(app, &table).await?,
            (false, true) => self.stream(app, &table).await?,
            (false, false) if !io::stdout().is_terminal() => {
                let problem = "standard output is no terminal: say --once for one frame as text, or --json";
                return Err(UsageError(problem.into()).into());
            }
            (false, false) => Box::pin(screen::live(&table, self.max_clients, self.view(app))).await?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn view(&self, app: &App) -> View {
        View::new(app.config().store.table.clone(), self.interval)
    }

    async fn once(&self, app: &App, table: &Table<'_>) -> anyhow::Result<()> {
        let round = Reader::new(table, self.max_clients).round().await?;
        if self.json {
            return output::json(&object(&round));
        }
        let mut view = self.view(app);
        view.now = round.report.now;
        view.heard(Ok(round));
        let width = if io::stdout().is_terminal() { crossterm::terminal::size()?.0 } else { WIDTH };
        output::line(draw::text(&view, width, LISTED))
    }

    async fn stream(&self, app: &App, table: &Table<'_>) -> anyhow::Result<()> {
        let shutdown = Shutdown::listen().context("installing signal handlers")?;
        let mut reader = Reader::new(table, self.max_clients);
        loop {
            let read = tokio::select! {
                () = shutdown.drain.cancelled() => return Ok(()),
                read = reader.round() => read,
            };
            output::json(&match read {
                Ok(round) => object(&round),
                Err(problem) => of_problem(&problem, table),
            })?;
            tokio::select! {
                () = shutdown.drain.cancelled() => return Ok(()),
                () = app.clock().sleep(self.interval) => {}
            }
        }
    }
}

/// A round, for programs: what `status --json` says, the tasks as in `fleet --json`, and the most urgent clients as in
/// `clients list --json`.
fn object(round: &Round) -> Value {
    let Round { report, coverage } = round;
    let members = report.muster.iter().flat_map(|muster| &muster.seen).map(fleet::object);
    let survey = report.survey.as_ref();
    let urgent = survey.iter().flat_map(|survey| &survey.rows).take(LISTED);
    let more = json!({
        "at": report.now.to_string(),
        "partial": !coverage.whole,
        "rounds_per_sweep": coverage.rounds,
        "next_due_at": survey.and_then(|survey| survey.next_due).map(|at| at.to_string()),
        "tasks": members.collect::<Vec<_>>(),
        "urgent": urgent.map(|row| row.json()).collect::<Vec<_>>(),
    });
    merged(report.json(), more)
}

fn of_problem(problem: &anyhow::Error, table: &Table<'_>) -> Value {
    let report = Report::unknown(&format!("{problem:#}"));
    merged(report.json(), json!({ "at": table.now().to_string() }))
}

fn merged(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_second_or_more() {
        assert_eq!(interval("1s"), Ok(MIN_INTERVAL));
        assert_eq!(interval("999ms"), Err("at least 1s".into()));
        assert!(interval("soon").is_err());
        assert_eq!((at_least_one("1"), at_least_one("0").is_err()), (Ok(1), true));
    }

    #[test]
    fn a_round_is_one_object_with_what_the_other_commands_say() {
        let object = object(&view::tests::round());
        assert_eq!((&object["status"], &object["partial"]), (&"broken".into(), &false.into()));
        assert_eq!(object["tasks"][0]["member"], "task-1");
        assert_eq!(
            (&object["urgent"][0]["client"], &object["urgent"][0]["state"]),
            (&"gone".into(), &"expired".into())
        );
        assert_eq!(object["clients"]["total"], 4);
    }
}
