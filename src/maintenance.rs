//! Jobs that people think of in calendar terms, on cron expressions.
//!
//! Nothing that safety or freshness needs is here: refreshes have their heap, discovery its own loop. Only
//! cron-*expression* jobs are used of `tokio-cron-scheduler`, never its interval jobs, which read the wall clock and
//! were seen not to run again after the process had been suspended or the clock stepped. [`Overdue`] tells, on the
//! steady clock, which job has missed its time all the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use croner::parser::{CronParser, Seconds};
use tokio::sync::mpsc;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use crate::time::{Moment, Timestamp};

/// When the jobs run: cron expressions of six fields, seconds first, in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// List the whole table and compare it with what is known.
    pub reconcile: String,
    /// Compare the table's settings with what is needed.
    pub table_check: String,
}

/// Something whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chore {
    /// See [`Calendar::reconcile`].
    Reconcile,
    /// See [`Calendar::table_check`].
    TableCheck,
}

impl Calendar {
    fn chores(&self) -> [(&str, Chore); 2] {
        [(&self.reconcile, Chore::Reconcile), (&self.table_check, Chore::TableCheck)]
    }
}

/// Knows which job has missed its time by twice its period.
#[derive(Clone, Debug)]
pub struct Overdue(BTreeMap<Chore, (Duration, Moment)>);

impl Overdue {
    /// Counts from now. An expression that never comes again is never overdue.
    pub fn new(calendar: &Calendar, now: Timestamp, moment: Moment) -> Self {
        let chores = calendar.chores().into_iter();
        Self(
            chores
                .filter_map(|(expression, chore)| Some((chore, (period(expression, now)?, moment))))
                .collect(),
        )
    }

    /// The jobs that should long have been announced.
    pub fn missed(&self, moment: Moment) -> Vec<Chore> {
        let late = |(period, last): &(Duration, Moment)| moment.since(*last) > *period * 2;
        self.0.iter().filter(|(_, entry)| late(entry)).map(|(chore, _)| *chore).collect()
    }

    /// One was announced, or is made up for now.
    pub fn done(&mut self, chore: Chore, moment: Moment) {
        if let Some((_, last)) = self.0.get_mut(&chore) {
            *last = moment;
        }
    }
}

/// The longest pause among the next few times.
fn period(expression: &str, now: Timestamp) -> Option<Duration> {
    const NEXT: usize = 16;
    let cron =
        CronParser::builder().seconds(Seconds::Required).dom_and_dow(true).build().parse(expression).ok()?;
    let from = DateTime::from_timestamp_millis(now.as_millis())?;
    let times: Vec<_> = cron.iter_after(from).take(NEXT).collect();
    times.windows(2).filter_map(|pair| (pair[1] - pair[0]).to_std().ok()).max()
}

/// Runs the calendar; stops when it is dropped and told so.
pub struct Maintenance(JobScheduler);

impl Maintenance {
    /// Announces each chore when its time has come. One that is still being done when its next time comes is not
    /// announced twice.
    pub async fn start(calendar: &Calendar, chores: mpsc::Sender<Chore>) -> Result<Self, JobSchedulerError> {
        let scheduler = JobScheduler::new().await?;
        let chores = Arc::new(chores);
        for (expression, chore) in calendar.chores() {
            let chores = Arc::clone(&chores);
            let job = Job::new(expression, move |_, _| {
                // A full channel means that it is announced already.
                if chores.try_send(chore).is_err() {
                    tracing::debug!(?chore, "is announced already");
                }
            })?;
            scheduler.add(job).await?;
        }
        scheduler.start().await?;
        Ok(Self(scheduler))
    }

    /// Ends the calendar.
    pub async fn stop(mut self) {
        if let Err(error) = self.0.shutdown().await {
            tracing::debug!(%error, "the calendar did not stop cleanly");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_overdue_after_twice_its_longest_period() {
        let calendar = Calendar { reconcile: "17 23 * * * *".into(), table_check: "41 7 */6 * * *".into() };
        let at = |hours: u64, secs| Moment::from_origin(Duration::from_secs(hours * 3600 + secs));
        let mut overdue = Overdue::new(&calendar, Timestamp::from_secs(1_800_000_000), at(0, 0));
        assert_eq!(overdue.missed(at(2, 0)), []);
        assert_eq!(overdue.missed(at(2, 1)), [Chore::Reconcile]);
        overdue.done(Chore::Reconcile, at(2, 1));
        assert_eq!(overdue.missed(at(4, 1)), []);
        assert_eq!(overdue.missed(at(12, 1)), [Chore::Reconcile, Chore::TableCheck]);
    }

    #[tokio::test]
    async fn a_cron_expression_announces_its_chore() {
        let (sender, mut chores) = mpsc::channel(4);
        let calendar = Calendar { reconcile: "* * * * * *".into(), table_check: "0 0 0 1 1 *".into() };
        let maintenance = Maintenance::start(&calendar, sender).await.expect("starts");
        let chore =
            tokio::time::timeout(Duration::from_secs(10), chores.recv()).await.expect("within its second");
        assert_eq!(chore, Some(Chore::Reconcile));
        maintenance.stop().await;
    }

    #[tokio::test]
    async fn a_broken_expression_is_refused() {
        let (sender, _chores) = mpsc::channel(4);
        let calendar = Calendar { reconcile: "every day".into(), table_check: "0 0 0 1 1 *".into() };
        assert!(Maintenance::start(&calendar, sender).await.is_err());
    }
}
