//! Who belongs to the fleet, and which shards are ours: a view that each task makes for itself.
//!
//! A member is alive while its beat counter moves. How long it has been silent is counted on the observer's own steady
//! clock, and only between looks that succeeded: a task that could not read the members blames nobody for that time,
//! and neither does one that was suspended itself. Wall clocks decide nothing but a first impression.
//!
//! Membership is a hint that avoids waste. Two tasks with different views work on one client only as far as its lease
//! lets them: one of them finds a failed condition, and nobody's refresh token is sent twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ownership::owner_of;
use crate::record::{Member, Phase};
use crate::time::{Moment, Timestamp};

/// Beats after which a member that was silent counts again: one that stutters is worse than none.
const RETURNS_AFTER: u32 = 3;

/// When a member counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Between two beats.
    pub beat: Duration,
    /// One who has been silent for so long is gone.
    pub silence: Duration,
    /// One whose scheduler is later than this does not do its work.
    pub max_lag: Duration,
}

/// What an observer has seen of a member.
#[derive(Clone, Debug)]
struct Seen {
    member: Member,
    silent: Duration,
    /// Beats until it counts as alive.
    returns_in: u32,
    /// Beats until it counts as doing its work.
    prompt_in: u32,
}

/// One task's view of the fleet.
#[derive(Clone, Debug)]
pub struct View {
    rules: Rules,
    seen: BTreeMap<String, Seen>,
    looked: Option<Moment>,
}

impl View {
    /// Nobody has been seen yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, seen: BTreeMap::new(), looked: None }
    }

    /// Notes the members as they were just read. Those that are no longer listed are gone.
    pub fn observe(&mut self, members: Vec<Member>, moment: Moment, now: Timestamp) {
        let since = self.looked.map_or(Duration::ZERO, |looked| moment.since(looked));
        let elapsed = since.min(self.rules.beat * 2);
        self.looked = Some(moment);
        let mut before = std::mem::take(&mut self.seen);
        for member in members {
            let seen = match before.remove(&member.incarnation) {
                Some(seen) => self.again(seen, &member, elapsed),
                None => self.first_sight(&member, now),
            };
            self.seen.insert(member.incarnation.clone(), Seen { member, ..seen });
        }
    }

    /// The item of a task that died long ago may still be there. Its wall clock may be wrong, too: then three beats
    /// tell better.
    fn first_sight(&self, member: &Member, now: Timestamp) -> Seen {
        let stale = now.since(member.at) > self.rules.silence * 2;
        let wait = |unless: bool| if unless { RETURNS_AFTER } else { 0 };
        Seen {
            member: member.clone(),
            silent: Duration::ZERO,
            returns_in: wait(stale),
            prompt_in: wait(self.is_late(member)),
        }
    }

    fn again(&self, seen: Seen, member: &Member, elapsed: Duration) -> Seen {
        let beats = member.beat.saturating_sub(seen.member.beat);
        if beats <= 0 {
            let silent = seen.silent + elapsed;
            let returns_in = if silent >= self.rules.silence { RETURNS_AFTER } else { seen.returns_in };
            return Seen { silent, returns_in, ..seen };
        }
        let beats = u32::try_from(beats).unwrap_or(u32::MAX);
        Seen {
            silent: Duration::ZERO,
            returns_in: seen.returns_in.saturating_sub(beats),
            prompt_in: if self.is_late(member) {
                RETURNS_AFTER
            } else {
                seen.prompt_in.saturating_sub(beats)
            },
            ..seen
        }
    }

    fn is_late(&self, member: &Member) -> bool {
        Duration::from_millis(member.lag_ms.max(0).unsigned_abs()) > self.rules.max_lag
    }

    /// The members that share the work. One that is wedged is left out, unless most are: then it is not them.
    pub fn workers(&self) -> Vec<&str> {
        let active: Vec<_> = self
            .seen
            .values()
            .filter(|seen| seen.member.phase == Phase::Active && seen.returns_in == 0)
            .collect();
        let prompt = active.iter().filter(|seen| seen.prompt_in == 0).count();
        let lag_counts = prompt * 2 >= active.len();
        let works = |seen: &&Seen| !lag_counts || seen.prompt_in == 0;
        active.into_iter().filter(works).map(|seen| seen.member.incarnation.as_str()).collect()
    }

    /// The shards of a member, out of so many.
    pub fn shards_of(&self, member: &str, shards: u32) -> BTreeSet<u32> {
        let workers = self.workers();
        (0..shards).filter(|shard| owner_of(*shard, workers.iter().copied()) == Some(member)).collect()
    }

    /// The shards that would be a member's if it were at work.
    pub fn shards_to_be(&self, member: &str, shards: u32) -> BTreeSet<u32> {
        let mut workers = self.workers();
        workers.push(member);
        (0..shards).filter(|shard| owner_of(*shard, workers.iter().copied()) == Some(member)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Tally;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn view() -> View {
        View::new(Rules { beat: secs(10), silence: secs(30), max_lag: secs(120) })
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_origin(secs(seconds))
    }

    fn member(name: &str, beat: i64) -> Member {
        Member {
            incarnation: name.into(),
            beat,
            phase: Phase::Active,
            lag_ms: 0,
            skew_ms: 0,
            at: NOW,
            version: String::new(),
            tally: Tally::default(),
        }
    }

    /// Sees these members at these seconds.
    fn see(view: &mut View, seconds: u64, members: &[(&str, i64)]) -> Vec<String> {
        let members = members.iter().map(|(name, beat)| member(name, *beat)).collect();
        view.observe(members, at(seconds), NOW.plus(secs(seconds)));
        view.workers().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn one_who_falls_silent_is_gone_after_the_silence_and_back_after_three_beats() {
        let mut view = view();
        assert_eq!(see(&mut view, 0, &[("a", 1), ("b", 1)]), ["a", "b"]);
        assert_eq!(see(&mut view, 10, &[("a", 2), ("b", 1)]), ["a", "b"]);
        assert_eq!(see(&mut view, 20, &[("a", 3), ("b", 1)]), ["a", "b"]);
        assert_eq!(see(&mut view, 30, &[("a", 4), ("b", 1)]), ["a"]);
        assert_eq!(see(&mut view, 40, &[("a", 5), ("b", 2)]), ["a"]);
        assert_eq!(see(&mut view, 50, &[("a", 6), ("b", 3)]), ["a"]);
        assert_eq!(see(&mut view, 60, &[("a", 7), ("b", 4)]), ["a", "b"]);
    }

    #[test]
    fn an_observer_that_could_not_look_blames_nobody() {
        let mut view = view();
        see(&mut view, 0, &[("a", 1), ("b", 1)]);
        assert_eq!(see(&mut view, 3600, &[("a", 1), ("b", 1)]), ["a", "b"], "an hour without a look");
        assert_eq!(see(&mut view, 3610, &[("a", 2), ("b", 1)]), ["a"], "20 s at most for the hour, and 10");
    }

    #[test]
    fn what_a_task_left_that_died_long_ago_does_not_count_until_it_beats() {
        let mut view = view();
        let stale = Member { at: NOW.minus(secs(61)), ..member("b", 5) };
        view.observe(vec![member("a", 1), stale], at(0), NOW);
        assert_eq!(view.workers(), ["a"]);
        assert_eq!(
            see(&mut view, 30, &[("a", 4), ("b", 8)]),
            ["a", "b"],
            "its clock was wrong, its beat is not"
        );
    }

    #[test]
    fn one_who_leaves_or_is_only_joining_does_not_share() {
        for phase in [Phase::Joining, Phase::Leaving] {
            let mut view = view();
            view.observe(vec![member("a", 1), Member { phase, ..member("b", 1) }], at(0), NOW);
            assert_eq!(view.workers(), ["a"], "{phase}");
        }
        let mut view = view();
        see(&mut view, 0, &[("a", 1), ("b", 1)]);
        assert_eq!(see(&mut view, 10, &[("a", 2)]), ["a"], "no longer listed");
    }

    #[test]
    fn one_that_is_wedged_is_left_out_until_three_good_beats() {
        let late = |beat| Member { lag_ms: 120_001, ..member("b", beat) };
        let mut view = view();
        view.observe(vec![member("a", 1), member("c", 1), late(1)], at(0), NOW);
        assert_eq!(view.workers(), ["a", "c"]);
        assert_eq!(see(&mut view, 10, &[("a", 2), ("b", 2), ("c", 2)]), ["a", "c"]);
        assert_eq!(see(&mut view, 30, &[("a", 4), ("b", 4), ("c", 4)]), ["a", "b", "c"]);
    }

    #[test]
    fn where_most_are_late_it_is_not_them() {
        let late = |name| Member { lag_ms: 999_999, ..member(name, 1) };
        let mut view = view();
        view.observe(vec![member("a", 1), late("b"), late("c")], at(0), NOW);
        assert_eq!(view.workers(), ["a", "b", "c"]);
    }

    #[test]
    fn the_shards_are_divided_without_rest() {
        let mut view = view();
        see(&mut view, 0, &[("a", 1), ("b", 1), ("c", 1)]);
        let mut all: Vec<u32> = ["a", "b", "c"].iter().flat_map(|m| view.shards_of(m, 64)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..64).collect::<Vec<_>>());
        let joined = view.shards_to_be("d", 64);
        see(&mut view, 10, &[("a", 2), ("b", 2), ("c", 2), ("d", 1)]);
        assert_eq!(view.shards_of("d", 64), joined);
    }
}
