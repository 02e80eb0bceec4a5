//! When a task asks ECS not to stop it, and when it lets go again.
//!
//! A task that is chosen for scale-in drains, and loses nothing. Protection makes ECS choose another one where there
//! is one: so it follows the work in stretches, not refresh by refresh. It is asked for when something is in flight,
//! renewed long before it runs out, and let go of after a rest.
//!
//! A fleet of some hundred clients never rests. A rolling deployment waits for protected tasks, and CloudFormation
//! gives up after three hours ("Task scale-in protection", Amazon ECS Developer Guide): so after a long stretch the task
//! lets go for a while all the same, whatever is in flight. What stops it then is a drain like any other.

use std::time::Duration;

use crate::time::Moment;

/// For how long protection is asked for. ECS takes whole minutes, from 1 to 2880.
pub const TERM: Duration = Duration::from_secs(20 * 60);
/// After so much of it, it is renewed.
pub const RENEWAL: Duration = Duration::from_secs(10 * 60);
/// Nothing in flight for so long is a rest.
pub const REST: Duration = Duration::from_secs(60);
/// The longest stretch under protection.
pub const STRETCH: Duration = Duration::from_secs(30 * 60);
/// How long a task that never rests goes without it then.
pub const BREATHER: Duration = Duration::from_secs(5 * 60);

/// After the first failure in a row; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What ECS is to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Protection for [`TERM`], from now on.
    Protect,
    /// None any more.
    Release,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask, and tell [`Protection::answered`].
    Ask(Request),
    /// Look again after this, or when something is in flight.
    Wait(Duration),
    /// There is nothing to do until something is in flight.
    Idle,
}

/// What is known of a task's protection.
#[derive(Clone, Debug, Default)]
pub struct Protection {
    /// When something was last in flight.
    busy: Option<Moment>,
    /// Since when this stretch lasts, from the first request of it.
    since: Option<Moment>,
    /// When the request was begun that was granted last.
    granted: Option<Moment>,
    /// Until when ECS may hold the task protected: also after a request that was never answered.
    perhaps_until: Option<Moment>,
    /// Nothing is asked before this.
    not_before: Moment,
    failures: u32,
}

impl Protection {
    /// Something is in flight, or was since the last look.
    pub fn busy(&mut self, now: Moment) {
        self.busy = Some(now);
    }

    /// What to do.
    pub fn step(&self, now: Moment) -> Step {
        let (request, due) = match (self.is_wanted(now), self.granted) {
            (true, None) => (Request::Protect, now),
            (true, Some(granted)) => (Request::Protect, granted.plus(RENEWAL)),
            (false, _) if self.may_hold(now) => (Request::Release, now),
            (false, _) => return self.rest(now),
        };
        match due.max(self.not_before) {
            at if at <= now => Step::Ask(request),
            at => Step::Wait(self.turns_at(now).map_or(at, |turn| turn.min(at)).since(now)),
        }
    }

    /// The request that was begun at `begun` has ended by `now`. `unit` is uniform in `[0, 1)`.
    pub fn answered(&mut self, request: Request, granted: bool, begun: Moment, now: Moment, unit: f64) {
        match request {
            Request::Protect => {
                if self.begins_anew(begun) {
                    self.since = Some(begun);
                }
                self.perhaps_until = self.perhaps_until.max(Some(now.plus(TERM)));
                if granted {
                    self.granted = Some(begun);
                }
            }
            Request::Release => {
                self.granted = None;
                if granted {
                    self.perhaps_until = None;
                    // After a rest the next stretch is a whole one; a breather is taken to its end.
                    self.since = self.since.filter(|_| self.is_out_of_breath(now));
                }
            }
        }
        self.failures = if granted { 0 } else { self.failures.saturating_add(1) };
        self.not_before = if granted { now } else { now.plus(pause(self.failures, unit)) };
    }

    /// Whether ECS may hold the task protected: then it is to be released before the process ends.
    pub fn may_hold(&self, now: Moment) -> bool {
        self.perhaps_until.is_some_and(|until| now < until)
    }

    /// Whether ECS has granted protection that is not over yet.
    pub fn holds(&self, now: Moment) -> bool {
        self.granted.is_some_and(|granted| now < granted.plus(TERM))
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn is_wanted(&self, now: Moment) -> bool {
        self.rests_at().is_some_and(|at| now < at) && !self.is_out_of_breath(now)
    }

    fn rests_at(&self) -> Option<Moment> {
        self.busy.map(|busy| busy.plus(REST))
    }

    fn is_out_of_breath(&self, now: Moment) -> bool {
        self.since.is_some_and(|since| since.plus(STRETCH) <= now && now < since.plus(STRETCH + BREATHER))
    }

    /// A stretch ends with its rest, or with its breather.
    fn begins_anew(&self, now: Moment) -> bool {
        let over = self.since.is_none_or(|since| since.plus(STRETCH + BREATHER) <= now);
        over || self.granted.is_none() && !self.may_hold(now)
    }

    /// When the answer to "is it wanted?" changes by itself.
    fn turns_at(&self, now: Moment) -> Option<Moment> {
        let ends = self.since.map(|since| since.plus(STRETCH));
        [self.rests_at(), ends].into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Neither wanted nor there: only the end of a breather is waited for.
    fn rest(&self, now: Moment) -> Step {
        let still_busy = self.rests_at().is_some_and(|at| now < at);
        match self.since.map(|since| since.plus(STRETCH + BREATHER)) {
            Some(at) if still_busy && at > now => Step::Wait(at.since(now)),
            _ => Step::Idle,
        }
    }
}

fn pause(failures: u32, unit: f64) -> Duration {
    let doubled =
        FIRST_PAUSE.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(LONGEST_PAUSE).mul_f64(0.5 + unit / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::from_origin(Duration::from_secs(secs))
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// What is asked from `from` on, and when, where ECS grants everything at once and `work` says when something is in
    /// flight.
    fn asked(
        state: &mut Protection,
        from: u64,
        until: u64,
        work: impl Fn(u64) -> bool,
    ) -> Vec<(u64, Request)> {
        let mut asked = Vec::new();
        for second in from..until {
            if work(second) {
                state.busy(at(second));
            }
            if let Step::Ask(request) = state.step(at(second)) {
                state.answered(request, true, at(second), at(second), 0.5);
                asked.push((second, request));
            }
        }
        asked
    }

    #[test]
    fn a_burst_is_one_request_and_its_rest_another() {
        let mut state = Protection::default();
        assert_eq!(state.step(at(0)), Step::Idle);
        let burst = asked(&mut state, 0, 3600, |second| (100..160).contains(&second));
        assert_eq!(burst, [(100, Request::Protect), (219, Request::Release)]);
        assert_eq!((state.step(at(3600)), state.may_hold(at(3600))), (Step::Idle, false));
    }

    #[test]
    fn what_lasts_is_renewed_and_lets_a_deployment_through_now_and_then() {
        let mut state = Protection::default();
        let asked = asked(&mut state, 0, 2 * 2100 + 1, |_| true);
        let stretch = |from: u64| {
            let protect = [0, 600, 1200].map(|second| (from + second, Request::Protect));
            protect.into_iter().chain([(from + 1800, Request::Release)])
        };
        let expected: Vec<_> = stretch(0).chain(stretch(2100)).chain([(4200, Request::Protect)]).collect();
        assert_eq!(asked, expected);
    }

    #[test]
    fn after_a_rest_the_next_stretch_is_a_whole_one() {
        let mut state = Protection::default();
        let asked = asked(&mut state, 0, 1900, |second| !(1700..=1780).contains(&second));
        let last: Vec<_> = asked.into_iter().rev().take(2).collect();
        assert_eq!(last, [(1781, Request::Protect), (1759, Request::Release)], "no breather at 1800");
    }

    #[test]
    fn failures_are_left_alone_for_longer_and_longer_and_a_request_without_an_answer_is_taken_back() {
        let mut state = Protection::default();
        let mut pauses = Vec::new();
        let mut now = at(0);
        for _ in 0..8 {
            state.busy(now);
            assert_eq!(state.step(now), Step::Ask(Request::Protect));
            state.answered(Request::Protect, false, now, now, 1.0);
            let next = state.not_before;
            pauses.push(next.since(now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600]);
        assert_eq!((state.failures(), state.holds(now)), (8, false));
        now = now.plus(secs(61));
        assert_eq!(state.step(now), Step::Ask(Request::Release), "it may have been granted");
        state.answered(Request::Release, false, now, now, 0.0);
        now = now.plus(secs(300));
        assert_eq!(state.step(now), Step::Ask(Request::Release));
        assert_eq!(state.step(now.plus(TERM)), Step::Idle, "it has run out by itself");
    }

    /// What happens at a time: work or none, and what becomes of a request.
    fn happenings() -> impl Strategy<Value = Vec<(u64, bool, bool, f64)>> {
        prop::collection::vec((1_u64..200, any::<bool>(), prop::bool::weighted(0.8), 0.0..1.0), 1..400)
    }

    proptest! {
        #[test]
        fn ecs_is_asked_seldom_and_only_for_what_can_change(happenings in happenings()) {
            let (mut state, mut now) = (Protection::default(), at(0));
            let mut last: Option<(Moment, Request, bool)> = None;
            for (gap, works, grants, unit) in happenings {
                if works {
                    state.busy(now);
                }
                match state.step(now) {
                    Step::Ask(request) => {
                        if request == Request::Release {
                            prop_assert!(state.may_hold(now), "nothing to let go of");
                        }
                        if let Some((when, before, granted)) = last {
                            let pause = now.since(when);
                            prop_assert!(granted || pause >= FIRST_PAUSE / 2, "{pause:?} after a failure");
                            let again = before == request && granted;
                            prop_assert!(!again || pause >= RENEWAL, "{request:?} again after {pause:?}");
                        }
                        state.answered(request, grants, now, now, unit);
                        last = Some((now, request, grants));
                        prop_assert!(!matches!(state.step(now), Step::Ask(_)), "twice at once");
                    }
                    Step::Wait(pause) => prop_assert!(!pause.is_zero(), "a tight loop"),
                    Step::Idle => {
                        prop_assert!(!state.may_hold(now));
                        prop_assert!(!works, "something is in flight, and nobody looks again");
                    }
                }
                now = now.plus(secs(gap));
            }
        }

        #[test]
        fn while_ecs_grants_everything_work_is_protected_except_for_breath(gaps in prop::collection::vec(1_u64..90, 1..600)) {
            let (mut state, mut now) = (Protection::default(), at(0));
            let mut held_since: Option<Moment> = None;
            for gap in gaps {
                state.busy(now);
                let mut look = now;
                let next = now.plus(secs(gap));
                // A driver that looks when it was told to, and at each piece of work.
                while look < next {
                    let pause = match state.step(look) {
                        Step::Ask(request) => {
                            state.answered(request, true, look, look, 0.5);
                            continue;
                        }
                        Step::Wait(pause) => pause,
                        Step::Idle => next.since(look),
                    };
                    prop_assert!(state.holds(look) || look.since(now) >= REST || state.is_out_of_breath(look));
                    held_since = if state.holds(look) { held_since.or(Some(look)) } else { None };
                    if let Some(since) = held_since {
                        prop_assert!(look.since(since) <= STRETCH, "a deployment would wait for ever");
                    }
                    look = look.plus(pause);
                }
                now = next;
            }
        }
    }
}
