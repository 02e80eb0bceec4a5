//! How a run ends: everything mended, everybody at rest, every process asked to stop, and all evidence collected.

#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::plan::lease::Standing;
use perennial::record::Snapshot;

use crate::checker::{Evidence, Rest};
use crate::fleet::{Fleet, rest, stands};
use crate::harvest::Logs;
use crate::journal::Task;
use crate::meaning::Mark;

/// Waits until every client is at rest, for as long as that may take; whoever is not then is named.
pub(crate) async fn settle(fleet: &mut Fleet) -> BTreeMap<String, Rest> {
    let bound = fleet.journal.now() + rest(&fleet.timings);
    let mut at_rest = BTreeMap::new();
    loop {
        for id in fleet.ids.clone() {
            if matches!(at_rest.get(&id), Some(Rest::Live(_) | Rest::Lost(_))) {
                continue;
            }
            let snapshot = fleet.snapshot(&id).await;
            if stands(&snapshot) == Standing::Held {
                fleet.retry(&id);
            }
            at_rest.insert(id, judge(fleet, &snapshot).await);
        }
        let restless = at_rest.values().any(|rest| matches!(rest, Rest::Wrong(_)));
        if !restless || fleet.journal.now() > bound {
            return at_rest;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn judge(fleet: &Fleet, snapshot: &Snapshot) -> Rest {
    let token = snapshot.token.as_ref().and_then(|token| token.refresh_token.as_ref());
    let Some(token) = token.map(|token| token.expose().to_owned()) else {
        return Rest::Wrong("it has no refresh token".to_owned());
    };
    let lease = snapshot.lease.as_ref().expect("a registered client has a lease");
    let live = fleet.provider.is_live(&token).await;
    match stands(snapshot) {
        Standing::Free if live && lease.doubt_about(snapshot.tok_gen()).is_none() => {
            Rest::Live(Mark::of(&token))
        }
        Standing::Dead if !live => Rest::Lost(Mark::of(&token)),
        standing => Rest::Wrong(format!("{standing:?} at the end, its token live: {live}, {lease:?}")),
    }
}

/// Stops these tasks politely, and collects the evidence. Also says who did not end well.
pub(crate) async fn collect(
    fleet: &mut Fleet,
    at_rest: BTreeMap<String, Rest>,
    running: &[Task],
) -> (Evidence, Vec<String>) {
    let end = fleet.journal.now();
    let mut complaints = Vec::new();
    for task in running {
        let code = fleet.terminate(*task).await;
        if code != 0 {
            complaints.push(format!("task {task} ended with {code} when it was asked to stop"));
        }
    }
    let mut logs = Logs::default();
    for run in &fleet.runs {
        logs.read(run.task, &run.process.errors());
    }
    // What was refreshed while the tasks were stopping stands in the table now.
    let mut rest = BTreeMap::new();
    for (id, before) in at_rest {
        let now = match before {
            Rest::Live(_) => judge(fleet, &fleet.snapshot(&id).await).await,
            other => other,
        };
        rest.insert(id, now);
    }
    let evidence = Evidence {
        redemptions: fleet.provider.redemptions().await,
        seen: fleet.journal.seen(),
        logs,
        rest,
        request_timeout: fleet.timings.request_timeout,
        take_over: fleet.timings.take_over,
        lifetime: fleet.timings.lifetime,
        end,
    };
    (evidence, complaints)
}
