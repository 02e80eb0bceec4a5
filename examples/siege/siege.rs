//! The siege from its first day to its last.

#![allow(clippy::disallowed_methods, reason = "a siege lives in real time")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::camp::{Camp, SOON, UNSEEN};
use crate::engines;
use crate::readers::{Readers, Tally};
use crate::support::wait_until;

/// How large it is.
pub(crate) struct Size {
    /// Clients of each kind.
    pub(crate) clients: usize,
    pub(crate) idle: usize,
    pub(crate) slow: usize,
    pub(crate) hostile_rounds: usize,
    pub(crate) misses: usize,
    /// How long the table is gone.
    pub(crate) outage: Duration,
    /// How long tokens of the brief kind live.
    pub(crate) brief_life: Duration,
    /// The agent confirms what is in use so often.
    pub(crate) max_age: Duration,
}

/// As it is told of.
pub(crate) const STATED: Size = Size {
    clients: 20,
    idle: 10_000,
    slow: 300,
    hostile_rounds: 50,
    misses: 5000,
    outage: Duration::from_secs(600),
    brief_life: Duration::from_secs(30),
    max_age: Duration::from_secs(60),
};

/// A minute and a half, and fewer descriptors than most machines allow.
pub(crate) const SCALED: Size = Size {
    clients: 4,
    idle: 300,
    slow: 24,
    hostile_rounds: 2,
    misses: 200,
    outage: Duration::from_secs(14),
    brief_life: Duration::from_secs(10),
    max_age: Duration::from_secs(2),
};

/// The allocator gives back what has not been used for ten seconds.
const GIVES_BACK: Duration = Duration::from_secs(12);
/// Between two looks at memory.
const LOOK: Duration = Duration::from_millis(500);
/// Memory that comes and goes: answers of the table, readers' buffers, in MiB.
const SLACK_MB: f64 = 8.0;
/// Descriptors that come and go: connections to the table, a file that is looked at.
const SLACK_DESCRIPTORS: usize = 16;

/// What was seen.
pub(crate) struct Seen {
    seconds: u64,
    idle: (usize, usize),
    slow: (usize, usize),
    hostile: (usize, usize),
    crowd: (usize, usize),
    upstream: u64,
    outage_s: u64,
    recovery_s: u64,
    tally: Arc<Tally>,
    descriptors: (usize, usize),
    rss_mb: (f64, f64),
    exit: i32,
}

/// Besieges the agent of a camp of its own. `tell` is told what comes next.
///
/// # Panics
/// Where something does not come that must come; and where the log or the numbers show a secret.
pub(crate) async fn lay(size: &Size, program: Option<&Path>, tell: impl Fn(&str)) -> Seen {
    tell("pitching the camp");
    let camp = Arc::new(Camp::pitch(size, program).await);
    let begun = Instant::now();
    let readers = Readers::begin(&camp);
    // Twice: what the first time leaves behind must not grow with the second.
    storm(&camp, size, &tell).await;
    crowd(&camp, UNSEEN[0], size, &readers.tally, &tell).await;
    let before = settled(&camp).await;
    let (idle, slow, hostile) = storm(&camp, size, &tell).await;
    let (crowd, upstream) = crowd(&camp, UNSEEN[1], size, &readers.tally, &tell).await;
    let (outage_s, recovery_s) = outage(&camp, size, &readers.tally, &tell).await;
    let after = settled(&camp).await;
    let tally = readers.end().await;
    let log = camp.agent.errors();
    camp.canaries.assert_absent("the agent's log", &log);
    tell("asking it to stop");
    let mut camp = Arc::into_inner(camp).expect("the readers have gone");
    camp.agent.signal("TERM");
    let exit = camp.agent.exit_code(SOON).await;
    Seen {
        seconds: begun.elapsed().as_secs(),
        idle,
        slow,
        hostile,
        crowd,
        upstream,
        outage_s,
        recovery_s,
        tally,
        descriptors: (before.0, after.0),
        rss_mb: (before.1, after.1),
        exit,
    }
}

type Ends = (usize, usize);

async fn storm(camp: &Camp, size: &Size, tell: impl Fn(&str)) -> (Ends, Ends, Ends) {
    tell("idle connections");
    let idle = engines::idle(camp, size.idle).await;
    tell("slow connections");
    let slow = engines::slow(camp, size.slow).await;
    tell("hostile requests");
    (idle, slow, engines::hostile(camp, size.hostile_rounds).await)
}

/// ... and how many questions about its client reached the table before all were answered.
async fn crowd(camp: &Camp, unseen: &str, size: &Size, tally: &Tally, tell: impl Fn(&str)) -> (Ends, u64) {
    tell("a crowd wants one token");
    tally.without_table(true);
    let crowd = engines::crowd(camp, unseen, size.misses).await;
    let upstream = Tally::of(&camp.upstream);
    caught_up(camp).await;
    tally.without_table(false);
    (crowd, upstream)
}

async fn outage(camp: &Camp, size: &Size, tally: &Tally, tell: impl Fn(&str)) -> (u64, u64) {
    tell("the table is gone");
    tally.without_table(true);
    camp.to_store.cut();
    tokio::time::sleep(size.outage).await;
    tell("the table is back");
    camp.to_store.mend();
    let back = Instant::now();
    caught_up(camp).await;
    tally.without_table(false);
    (size.outage.as_secs(), back.elapsed().as_secs())
}

/// Every token is there, and none is marked.
async fn caught_up(camp: &Camp) {
    for id in camp.lasting.iter().chain(&camp.brief) {
        wait_until(SOON, "every token is as the table has it", async || {
            let (status, told) = camp.read(id).await;
            status == 200 && told["stale"] == false
        })
        .await;
    }
}

/// Descriptors, and memory when no more of it is given back, once the storm is over.
async fn settled(camp: &Camp) -> (usize, f64) {
    wait_until(SOON, "the storm's connections are gone", async || {
        camp.number("perennial_agent_connections").await < 32
    })
    .await;
    let (mut least, mut since) = (camp.agent.rss_mb(), Instant::now());
    let begun = since;
    while since.elapsed() < GIVES_BACK && begun.elapsed() < SOON {
        tokio::time::sleep(LOOK).await;
        let now = camp.agent.rss_mb();
        if now < least - 0.5 {
            (least, since) = (now, Instant::now());
        }
    }
    (camp.descriptors(), least)
}

impl Seen {
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let tally = |count| json!(Tally::of(count));
        let growth = self.rss_mb.1 - self.rss_mb.0;
        vec![
            ("seconds", json!(self.seconds)),
            ("idle", json!(self.idle.0)),
            ("held", json!(self.idle.1)),
            ("slow", json!(self.slow.0)),
            ("given_up", json!(self.slow.1)),
            ("hostile", json!(self.hostile.0)),
            ("refused", json!(self.hostile.1)),
            ("misses", json!(self.crowd.0)),
            ("served", json!(self.crowd.1)),
            ("upstream", json!(self.upstream)),
            ("outage_s", json!(self.outage_s)),
            ("recovery_s", json!(self.recovery_s)),
            ("reads", tally(&self.tally.reads)),
            ("rotations", tally(&self.tally.rotations)),
            ("stale", tally(&self.tally.stale)),
            ("refused_without_table", tally(&self.tally.refused)),
            ("late", tally(&self.tally.late)),
            ("errors", tally(&self.tally.errors)),
            ("expired_served", tally(&self.tally.expired)),
            ("backwards", tally(&self.tally.backwards)),
            ("descriptors", json!(self.descriptors.1)),
            ("rss_mb", json!((self.rss_mb.1 * 10.0).round() / 10.0)),
            ("rss_growth_mb", json!((growth * 10.0).round() / 10.0)),
            ("exit", json!(self.exit)),
        ]
    }

    pub(crate) fn line(&self, json: bool) -> String {
        let fields = self.fields();
        if json {
            return Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
                .to_string();
        }
        fields.iter().fold("summary".to_owned(), |line, (name, value)| format!("{line} {name}={value}"))
    }

    /// What is not as it should be.
    pub(crate) fn wrong(&self) -> Vec<&'static str> {
        let tally = &self.tally;
        let none = |count| Tally::of(count) == 0;
        let rules = [
            (self.idle.0 == self.idle.1, "idle connections were closed"),
            (self.slow.0 == self.slow.1, "slow connections were kept"),
            (self.hostile.0 == self.hostile.1, "hostile requests were answered"),
            (self.crowd.0 == self.crowd.1, "not all of a crowd were served"),
            (self.upstream == 1, "a crowd asked the table more than once"),
            (none(&tally.errors), "readers were refused while the table was there"),
            (none(&tally.expired), "an expired token was served"),
            (none(&tally.backwards), "an older token came after a newer one"),
            (!none(&tally.rotations), "no token was refreshed meanwhile"),
            (!none(&tally.stale), "nothing was served without the table"),
            (!none(&tally.refused), "no token expired without the table"),
            (self.descriptors.1 <= self.descriptors.0 + SLACK_DESCRIPTORS, "descriptors were leaked"),
            (self.rss_mb.1 <= self.rss_mb.0 + SLACK_MB, "memory was leaked"),
            (self.exit == 0, "it did not drain"),
        ];
        rules.iter().filter(|(holds, _)| !holds).map(|(_, wrong)| *wrong).collect()
    }
}
