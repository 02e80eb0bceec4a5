//! A circuit breaker: while it is open nobody is acquired, so that an outage costs no write and leaves no doubt.
//!
//! The scheduler keeps one for each token endpoint, opened by transport errors, 5xx and 429, and one for each
//! (endpoint, OAuth client id), opened by `invalid_client`: a secret that died is one event, not as many dead
//! grants as there are clients of that application.

use std::time::Duration;

use super::policy::BreakerPolicy;
use crate::time::Moment;

/// The state of one breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Open {
    until: Moment,
    length: Duration,
    probing: bool,
}

/// Whether an attempt may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Free,
    /// It may, alone: its outcome closes the breaker or keeps it open.
    Probe,
    /// Not now. `Some`: the time at which a probe may begin; `None`: when the probe under way has ended.
    Refused(Option<Moment>),
}

impl Breaker {
    /// Whether an attempt may begin now. Changes nothing: [`Breaker::probing`] says that one has begun.
    pub fn admit(&self, now: Moment) -> Admission {
        match &self.open {
            None => Admission::Free,
            Some(Open { probing: true, .. }) => Admission::Refused(None),
            Some(open) if now < open.until => Admission::Refused(Some(open.until)),
            Some(_) => Admission::Probe,
        }
    }

    /// Whether it is open, or half open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A probe has begun.
    pub fn probing(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = true;
        }
    }

    /// An attempt ended without having asked anything. If it was the probe, another may begin.
    pub fn inconclusive(&mut self, probe: bool) {
        if let Some(open) = self.open.as_mut().filter(|_| probe) {
            open.probing = false;
        }
    }

    /// The endpoint answered as it should. Only the probe closes an open breaker, and not one that was shut for longer
    /// while the probe was under way.
    pub fn success(&mut self, probe: bool, now: Moment) {
        match &mut self.open {
            Some(_) if !probe => {}
            Some(open) if now < open.until => open.probing = false,
            _ => *self = Self::default(),
        }
    }

    /// The endpoint asked to be left alone for so long: that binds everybody, at once.
    /// `probe` and `unit` are as in [`Breaker::failure`].
    pub fn shut(&mut self, policy: &BreakerPolicy, wait: Duration, probe: bool, now: Moment, unit: f64) {
        self.failures = self.failures.saturating_add(1);
        let length = match &self.open {
            Some(open) if probe => open.length.saturating_mul(2).min(policy.open_max),
            Some(open) => open.length,
            None => policy.open,
        };
        let until = now.plus(wait.max(length).mul_f64(1.0 + unit / 10.0));
        let before = self.open.as_ref().map_or(until, |open| open.until);
        let probing = self.open.as_ref().is_some_and(|open| open.probing && !probe);
        self.open = Some(Open { until: until.max(before), length, probing });
    }

    /// The endpoint failed. `probe`: in the attempt that was let through as one. `unit`, uniform in `[0, 1)`, spreads
    /// the probes of several tasks.
    pub fn failure(
        &mut self,
        policy: &BreakerPolicy,
        retry_after: Option<Duration>,
        probe: bool,
        now: Moment,
        unit: f64,
    ) {
        self.failures = self.failures.saturating_add(1);
        let length = match &self.open {
            Some(open) if probe => open.length.saturating_mul(2).min(policy.open_max),
            // A straggler that began before it opened: nothing new is known.
            Some(_) => return,
            None if self.failures >= policy.threshold => policy.open,
            None => return,
        };
        let wait = length.mul_f64(0.75 + unit / 2.0).max(retry_after.unwrap_or_default());
        self.open = Some(Open { until: now.plus(wait), length, probing: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::from_origin(Duration::from_secs(1000));
    const HALF: f64 = 0.5;

    fn after(secs: u64) -> Moment {
        START.plus(Duration::from_secs(secs))
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..5 {
            breaker.failure(&BreakerPolicy::default(), None, false, START, HALF);
        }
        breaker
    }

    #[test]
    fn it_opens_at_the_threshold_and_not_before() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            breaker.failure(&BreakerPolicy::default(), None, false, START, HALF);
            assert_eq!(breaker.admit(START), Admission::Free);
        }
        breaker.success(true, after(5));
        breaker.failure(&BreakerPolicy::default(), None, false, START, HALF);
        assert!(!breaker.is_open(), "a success starts the count again");
        assert_eq!(opened().admit(START), Admission::Refused(Some(after(5))));
    }

    #[test]
    fn one_probe_at_a_time_and_its_failure_doubles_the_wait() {
        let mut breaker = opened();
        assert_eq!(breaker.admit(after(5)), Admission::Probe);
        breaker.probing();
        assert_eq!(breaker.admit(after(5)), Admission::Refused(None));
        breaker.failure(&BreakerPolicy::default(), None, true, after(5), HALF);
        assert_eq!(breaker.admit(after(6)), Admission::Refused(Some(after(15))));
    }

    #[test]
    fn a_probe_that_succeeds_closes_it_and_one_that_asked_nothing_lets_another_begin() {
        let mut breaker = opened();
        breaker.probing();
        breaker.inconclusive(true);
        assert_eq!(breaker.admit(after(5)), Admission::Probe);
        breaker.success(true, after(5));
        assert_eq!(breaker.admit(after(5)), Admission::Free);
    }

    #[test]
    fn retry_after_keeps_it_open_at_least_that_long() {
        let mut breaker = Breaker { failures: 4, open: None };
        breaker.failure(&BreakerPolicy::default(), Some(Duration::from_secs(300)), false, START, HALF);
        assert_eq!(breaker.admit(after(299)), Admission::Refused(Some(after(300))));
    }

    #[test]
    fn one_that_is_asked_to_wait_stays_shut_so_long_without_any_threshold() {
        let mut breaker = Breaker::default();
        breaker.shut(&BreakerPolicy::default(), Duration::from_secs(120), false, START, 0.0);
        assert_eq!(breaker.admit(after(119)), Admission::Refused(Some(after(120))));
        breaker.shut(&BreakerPolicy::default(), Duration::from_secs(10), false, after(5), 0.0);
        assert_eq!(breaker.admit(after(119)), Admission::Refused(Some(after(120))), "and never less");
        assert_eq!(breaker.admit(after(120)), Admission::Probe);
    }

    #[test]
    fn a_stragglers_success_does_not_open_what_was_asked_to_stay_shut() {
        let mut breaker = Breaker::default();
        breaker.shut(&BreakerPolicy::default(), Duration::from_secs(600), false, START, 0.0);
        breaker.success(false, after(1));
        assert_eq!(breaker.admit(after(2)), Admission::Refused(Some(after(600))));
        breaker.probing();
        breaker.shut(&BreakerPolicy::default(), Duration::from_secs(900), false, after(600), 0.0);
        breaker.success(true, after(601));
        assert_eq!(breaker.admit(after(602)), Admission::Refused(Some(after(1500))));
    }

    #[test]
    fn stragglers_do_not_prolong_it() {
        let mut breaker = opened();
        breaker.failure(&BreakerPolicy::default(), None, false, after(4), HALF);
        assert_eq!(breaker.admit(after(5)), Admission::Probe);
        breaker.probing();
        breaker.failure(&BreakerPolicy::default(), None, false, after(6), HALF);
        breaker.inconclusive(false);
        assert_eq!(breaker.admit(after(7)), Admission::Refused(None), "the probe is still under way");
    }
}
