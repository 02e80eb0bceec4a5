//! The judge, shown made-up runs: each crime is told from what only looks like it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checker::{Evidence, Rest, Verdict, judge};
use crate::harvest::{Announcement, Logs};
use crate::journal::{Consent, Interruption, Send, Task, Write};
use crate::meaning::{Call, Fate, Mark};
use crate::provider::Redemption;

const CLIENT: &str = "customer-0";

fn at(tenths: u64) -> Duration {
    Duration::from_millis(tenths * 100)
}

/// A run that is being made up: one client, whose consent is token 1. An exchange takes two seconds at most.
struct Story(Evidence);

impl Story {
    fn begin() -> Self {
        let mut evidence = Evidence {
            request_timeout: at(20),
            take_over: at(121),
            lifetime: at(300),
            end: at(200),
            rest: BTreeMap::from([(CLIENT.to_owned(), Rest::Live(Mark(1)))]),
            ..Evidence::default()
        };
        evidence.seen.consents.push(Consent { client: CLIENT.to_owned(), token: Mark(1), at: at(0) });
        evidence.seen.descent.insert(Mark(1), 0);
        Self(evidence)
    }

    /// An attempt of this task begins.
    fn acquires(mut self, tenths: u64, task: Task, generation: i64, takes_over: bool) -> Self {
        let (client, owner) = (CLIENT.to_owned(), attempt(generation));
        let call = Call::Acquire { client, generation, owner, takes_over };
        self.0.seen.writes.push(Write { at: at(tenths), task, call, fate: Fate::Landed });
        self
    }

    /// It sends a token; the provider grants another, or refuses.
    fn sends(
        mut self,
        tenths: u64,
        task: Task,
        generation: i64,
        presented: u64,
        granted: Option<u64>,
    ) -> Self {
        let request = self.0.seen.sends.len() as u64;
        let spent = self.0.seen.sends.iter().any(|send| send.presented == Mark(presented) && send.accepted);
        self.0.seen.sends.push(Send {
            request,
            task,
            client: CLIENT.to_owned(),
            attempt: attempt(generation),
            presented: Mark(presented),
            log_len: tenths,
            arrived: at(tenths),
            forwarded: true,
            answered: Some(at(tenths + 2)),
            accepted: granted.is_some(),
            granted: granted.map(Mark),
            withheld: None,
        });
        if let Some(granted) = granted {
            self.0.seen.descent.insert(Mark(granted), 0);
        }
        let reuse = spent && granted.is_none();
        self.0.redemptions.push(Redemption { request: Some(request), granted: granted.is_some(), reuse });
        self
    }

    /// The last answer does not arrive.
    fn withheld(mut self) -> Self {
        let send = self.0.seen.sends.last_mut().expect("something was sent");
        send.withheld = send.answered.map(|at| (at, "lost"));
        self
    }

    fn commits(mut self, tenths: u64, task: Task, generation: i64, token: u64) -> Self {
        let call = Call::Commit { client: CLIENT.to_owned(), generation, token: Some(Mark(token)) };
        self.0.seen.writes.push(Write { at: at(tenths), task, call, fate: Fate::Landed });
        self.rests(Rest::Live(Mark(token)))
    }

    /// A log has such a line, which ends where the log's length is the time in tenths.
    fn announces(mut self, tenths: u64, generation: i64, sent_before: u64) -> Self {
        let line = Announcement { sent_before, ends_at: tenths };
        self.0.logs.announced.entry(attempt(generation)).or_default().push(line);
        self
    }

    fn ends(mut self, generation: i64) -> Self {
        self.0.logs.ended.insert(attempt(generation));
        self
    }

    fn interrupted(mut self, task: Task, from: u64, to: Option<u64>) -> Self {
        self.0.seen.interruptions.push(Interruption { task, from: at(from), to: to.map(at) });
        self
    }

    fn rests(mut self, rest: Rest) -> Self {
        self.0.rest.insert(CLIENT.to_owned(), rest);
        self
    }

    /// A taker waits, announces that it sends what is in doubt, and finds it spent.
    fn taken_over_in_vain(self, tenths: u64, task: Task, generation: i64, token: u64) -> Self {
        self.acquires(tenths, task, generation, true)
            .announces(tenths, generation, 0)
            .sends(tenths + 1, task, generation, token, None)
            .rests(Rest::Lost(Mark(token)))
    }

    fn judged(&self) -> Verdict {
        judge(&self.0)
    }
}

fn attempt(generation: i64) -> String {
    format!("incarnation#{generation}")
}

#[test]
fn an_honest_run_is_clean() {
    let verdict =
        Story::begin().acquires(10, 1, 1, false).sends(11, 1, 1, 1, Some(2)).commits(14, 1, 1, 2).judged();
    assert!(verdict.is_clean(), "{verdict:#?}");
    assert_eq!((verdict.redemptions, verdict.replays, verdict.takeovers), (1, 0, 0));
}

#[test]
fn a_double_redemption_is_told_from_a_replay_that_was_logged_first() {
    let twice = |story: Story| {
        let story = story.acquires(10, 1, 1, false).sends(11, 1, 1, 1, Some(2)).withheld();
        story.sends(20, 1, 1, 1, None).rests(Rest::Lost(Mark(1))).judged()
    };
    let silent = twice(Story::begin());
    assert_eq!((silent.double_redemptions, silent.replays), (1, 0), "{silent:#?}");
    let logged = twice(Story::begin().announces(19, 1, 1));
    assert_eq!((logged.double_redemptions, logged.replays), (0, 1), "{logged:#?}");
    assert!(logged.is_clean() && logged.reply_lost == 1, "{logged:#?}");
    let too_late = twice(Story::begin().announces(21, 1, 1));
    assert_eq!(too_late.double_redemptions, 1, "logged after it was sent: {too_late:#?}");
    let for_another = twice(Story::begin().announces(19, 7, 1));
    assert_eq!(for_another.double_redemptions, 1, "another attempt's replay: {for_another:#?}");
    let not_that_one = twice(Story::begin().announces(19, 1, 0));
    assert_eq!(not_that_one.double_redemptions, 1, "the first send's announcement: {not_that_one:#?}");
}

#[test]
fn a_kill_excuses_what_that_task_had_not_stored_and_nothing_else() {
    let lost = |story: Story| {
        let story = story.acquires(10, 1, 1, false).sends(11, 1, 1, 1, Some(2));
        story.taken_over_in_vain(150, 2, 2, 1).judged()
    };
    let killed = lost(Story::begin().interrupted(1, 14, None));
    assert!(killed.is_clean(), "{killed:#?}");
    assert_eq!((killed.crash_window_injected, killed.crash_window_lost), (1, 1), "{killed:#?}");
    assert_eq!((killed.takeovers, killed.takeover_p99), (1, at(136)), "from the kill on: {killed:#?}");
    let another = lost(Story::begin().interrupted(3, 14, None));
    assert_eq!(another.lost_otherwise, 1, "another task was killed: {another:#?}");
    let done_with = lost(Story::begin().interrupted(1, 100, None).ends(1));
    assert_eq!(done_with.lost_otherwise, 1, "it had ended that attempt by itself: {done_with:#?}");
    let nobody = lost(Story::begin());
    assert_eq!(nobody.lost_otherwise, 1, "{nobody:#?}");
}

#[test]
fn a_kill_after_the_commit_excuses_nothing() {
    let story = Story::begin().acquires(10, 1, 1, false).sends(11, 1, 1, 1, Some(2)).commits(14, 1, 1, 2);
    let verdict = story.interrupted(1, 15, None).taken_over_in_vain(150, 2, 2, 1).judged();
    assert_eq!((verdict.crash_window_injected, verdict.lost_otherwise), (0, 1), "{verdict:#?}");
}

#[test]
fn a_stop_excuses_only_past_its_bound() {
    let lost = |to| {
        let story = Story::begin().acquires(10, 1, 1, false).sends(11, 1, 1, 1, Some(2));
        story.interrupted(1, 12, Some(to)).taken_over_in_vain(150, 2, 2, 1).judged()
    };
    assert_eq!(lost(140).crash_window_lost, 1);
    assert_eq!(lost(20).lost_otherwise, 1, "it woke in time to hear the answer");
}

#[test]
fn a_lost_reply_is_one_that_the_proxy_lost() {
    let lost = |story: Story| story.taken_over_in_vain(150, 2, 2, 1).judged();
    let sent = || Story::begin().acquires(10, 1, 1, false).sends(11, 1, 1, 1, Some(2));
    let withheld = lost(sent().withheld());
    assert_eq!((withheld.reply_lost_injected, withheld.reply_lost, withheld.lost_otherwise), (1, 1, 0));
    // The reply to the refusal is another one.
    let other = sent().taken_over_in_vain(150, 2, 2, 1).withheld().judged();
    assert_eq!((other.reply_lost, other.lost_otherwise), (0, 1), "{other:#?}");
    // First lost, and its hearer killed much later.
    let both = lost(sent().withheld().interrupted(1, 100, None));
    assert_eq!((both.reply_lost, both.crash_window_lost), (1, 0), "{both:#?}");
}

#[test]
fn a_client_that_does_not_come_to_rest_is_held_against_the_fleet() {
    let verdict = Story::begin().rests(Rest::Wrong("stuck".to_owned())).judged();
    assert!(!verdict.is_clean() && verdict.lost_otherwise == 1, "{verdict:#?}");
}

#[test]
fn what_went_around_the_proxy_is_noticed() {
    let mut story = Story::begin();
    story.0.redemptions.push(Redemption { request: None, granted: true, reuse: false });
    assert!(!story.judged().is_clean());
}

#[test]
fn a_generation_is_acquired_once() {
    let verdict = Story::begin().acquires(10, 1, 1, false).acquires(11, 2, 1, false).judged();
    assert!(!verdict.is_clean(), "{verdict:#?}");
}

#[test]
fn a_take_over_without_its_wait_is_seen() {
    let taken = |tenths| Story::begin().acquires(10, 1, 1, false).acquires(tenths, 2, 2, true).judged();
    assert!(taken(131).is_clean());
    assert!(!taken(100).is_clean());
}

#[test]
fn expired_seconds_are_counted_from_the_commits() {
    let story = Story::begin().acquires(10, 1, 1, false).sends(11, 1, 1, 1, Some(2)).commits(14, 1, 1, 2);
    // The token lives thirty seconds from its request on, and the next comes after forty.
    let story = story.acquires(411, 1, 2, false).sends(411, 1, 2, 2, Some(3)).commits(411, 1, 2, 3);
    let mut story = story;
    story.0.end = at(500);
    assert_eq!(story.judged().expired_token, at(100));
}

#[test]
fn a_daemons_log_is_read_by_attempt_and_place() {
    let replay = r#"{"message":"no answer: sending the same refresh token again, as ordered","replay":1,"span":{"attempt":"a#1"}}"#;
    let doubt =
        r#"{"message":"the refresh token is in doubt: sending it, as ordered","span":{"attempt":"a#2"}}"#;
    let end = r#"{"message":"refreshed","span":{"attempt":"a#2","outcome":"refreshed"}}"#;
    let panic = r#"{"message":"a refresh panicked","alarm":"panic"}"#;
    let mut logs = Logs::default();
    logs.read(1, &format!("{replay}\n{doubt}\n{end}\n{panic}\nnot json\n"));
    let (one, two) = (replay.len() as u64 + 1, (replay.len() + doubt.len()) as u64 + 2);
    assert_eq!(logs.announced["a#1"], [Announcement { sent_before: 1, ends_at: one }]);
    assert_eq!(logs.announced["a#2"], [Announcement { sent_before: 0, ends_at: two }]);
    assert!(logs.ended.contains("a#2") && !logs.ended.contains("a#1"));
    assert_eq!(logs.alarms.len(), 1);
}
