//! Jobs that people think of in calendar terms, on cron expressions.
//!
//! Nothing that safety or freshness needs is here: refreshes have their heap, discovery its own loop. Only
//! cron-*expression* jobs are used of `tokio-cron-scheduler`, never its interval jobs, which read the wall clock and
//! were seen not to run again after the process had been suspended or the clock stepped.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

/// When the jobs run: cron expressions of six fields, seconds first, in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// List the whole table and compare it with what is known.
    pub reconcile: String,
    /// Compare the table's settings with what is needed.
    pub table_check: String,
}

/// Something whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chore {
    /// See [`Calendar::reconcile`].
    Reconcile,
    /// See [`Calendar::table_check`].
    TableCheck,
}

/// Runs the calendar; stops when it is dropped and told so.
pub struct Maintenance(JobScheduler);

impl Maintenance {
    /// Announces each chore when its time has come. One that is still being done when its next time comes is not
    /// announced twice.
    pub async fn start(calendar: &Calendar, chores: mpsc::Sender<Chore>) -> Result<Self, JobSchedulerError> {
        let scheduler = JobScheduler::new().await?;
        let chores = Arc::new(chores);
        for (expression, chore) in
            [(&calendar.reconcile, Chore::Reconcile), (&calendar.table_check, Chore::TableCheck)]
        {
            let chores = Arc::clone(&chores);
            let job = Job::new(expression.as_str(), move |_, _| {
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
    use std::time::Duration;

    use super::*;

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
