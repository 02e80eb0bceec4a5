//! A deployment: every task is replaced, under load.

use std::time::Duration;

use perennial::plan::lease::Standing;

use crate::checker::judge;
use crate::end::{collect, settle};
use crate::fleet::{Fleet, Setup};
use crate::journal::Task;
use crate::meaning::Call;
use crate::network::{Hop, Weather};
use crate::support::wait_until;
use crate::timings::{PROMPT, Timings};
use crate::trap::{Release, Row, Side};

const DAEMONS: usize = 3;

/// A new task runs before the old one is asked to stop, as orchestrators do it.
async fn replace(fleet: &mut Fleet, old: Task) -> Task {
    let new = fleet.start().await;
    wait_until(PROMPT, "the new task works", async || {
        let log = std::fs::read_to_string(fleet.run(new).process.log()).unwrap_or_default();
        log.contains("\"message\":\"refreshed\"")
    })
    .await;
    // Its answers take their time to reach the table, and one of them stands before its door when the signal comes.
    fleet.network.set(old, Hop::Store, Weather::Slow(Duration::from_millis(300), Duration::ZERO));
    let mut trap = fleet.network.traps.set(old, (Row::Commit, Side::Before));
    let caught = tokio::time::timeout(PROMPT, trap.caught()).await;
    let client = caught.ok().flatten().expect("the old task is at work");
    let asked = fleet.journal.now();
    fleet.run(old).process.signal("TERM");
    wait_until(PROMPT, "the old task drains", async || {
        let log = std::fs::read_to_string(fleet.run(old).process.log()).unwrap_or_default();
        log.contains("draining")
    })
    .await;
    trap.release(Release::Deliver);
    assert_eq!(fleet.run(old).process.exit_code(PROMPT).await, 0, "task {old}");
    let landed = fleet.journal.seen().writes.into_iter().any(|write| {
        let of_this = matches!(&write.call, Call::Commit { client: of, .. } if *of == client);
        of_this && write.task == old && write.at > asked
    });
    assert!(landed, "the commit of {client} was given up at the signal");
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_every_task_under_load_costs_no_token_and_no_wait() {
    let mut fleet = Fleet::prepare(&Setup::of(Timings::scaled(), 40)).await;
    let mut tasks = Vec::new();
    for _ in 0..DAEMONS {
        tasks.push(fleet.start().await);
    }
    let ids = fleet.ids.clone();
    wait_until(PROMPT, "everybody has a token", async || {
        for id in &ids {
            if fleet.snapshot(id).await.token.is_none_or(|token| token.generation.0 == 0) {
                return false;
            }
        }
        true
    })
    .await;
    for task in &mut tasks {
        *task = replace(&mut fleet, *task).await;
    }
    for id in &ids {
        assert_ne!(fleet.stands(id).await, Standing::Dead, "{id}");
    }
    let at_rest = settle(&mut fleet).await;
    let (evidence, complaints) = collect(&mut fleet, at_rest, &tasks).await;
    let verdict = judge(&evidence);
    println!("{}", verdict.summary());
    assert!(complaints.is_empty() && verdict.is_clean(), "{complaints:?} {verdict:#?}");
    assert_eq!((verdict.takeovers, verdict.replays), (0, 0), "a lease was left behind: {verdict:#?}");
    assert_eq!(verdict.expired_token, Duration::ZERO, "{verdict:#?}");
    let lost = (verdict.crash_window_lost, verdict.reply_lost);
    assert_eq!(lost, (0, 0), "{verdict:#?}");
}
