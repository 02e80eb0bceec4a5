//! The gate before the acquire: concurrency and rate budget of each provider, a breaker for each token endpoint, and
//! one for each (endpoint, OAuth client id).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::lane::LaneKey;
use crate::client::{Provider, RateLimit};
use crate::plan::BreakerPolicy;
use crate::plan::breaker::{Admission, Breaker};
use crate::reply::{Reply, refuses_application};
use crate::time::{Clock, Moment};

/// The injected steady clock, for the rate limiter.
#[derive(Clone)]
struct Steady(Arc<dyn Clock>);

impl GovernorClock for Steady {
    type Instant = Nanos;
    fn now(&self) -> Nanos {
        Nanos::from(self.0.moment().since(Moment::default()))
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Steady, NoOpMiddleware<Nanos>>;

struct Budget {
    limiter: Limiter,
    concurrency: usize,
    running: usize,
    /// When the rate budget has something left again.
    spent_until: Option<Moment>,
    rate: RateLimit,
    /// How many were let through since that was last asked.
    passed: u32,
    /// Token endpoints that were used under this provider's name.
    endpoints: BTreeSet<String>,
}

impl Budget {
    fn of(provider: &Provider, clock: &Steady) -> Self {
        Self {
            limiter: RateLimiter::direct_with_clock(quota(provider.rate), clock.clone()),
            concurrency: provider.concurrency,
            running: 0,
            spent_until: None,
            rate: provider.rate,
            passed: 0,
            endpoints: BTreeSet::new(),
        }
    }
}

/// An attempt that was let through.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    key: LaneKey,
    app: String,
    /// Whether it probes the endpoint's breaker, and the application's.
    probes: (bool, bool),
}

pub(crate) struct Gate {
    policy: BreakerPolicy,
    clock: Steady,
    budgets: BTreeMap<String, Budget>,
    endpoints: BTreeMap<String, Breaker>,
    applications: BTreeMap<(String, String), Breaker>,
}

impl Gate {
    pub(crate) fn new(
        providers: &BTreeMap<String, Arc<Provider>>,
        policy: BreakerPolicy,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let clock = Steady(clock);
        let budgets = providers.iter();
        let budgets = budgets.map(|(name, provider)| (name.clone(), Budget::of(provider, &clock))).collect();
        Self { policy, clock, budgets, endpoints: BTreeMap::new(), applications: BTreeMap::new() }
    }

    /// Other budgets and another policy from now on. What was let through stays counted, also of a provider that is gone;
    /// breakers stay as they are.
    pub(crate) fn tune(&mut self, providers: &BTreeMap<String, Arc<Provider>>, policy: BreakerPolicy) {
        self.policy = policy;
        let mut before = std::mem::take(&mut self.budgets);
        for (name, provider) in providers {
            let budget = match before.remove(name) {
                Some(budget) if budget.rate == provider.rate => {
                    Budget { concurrency: provider.concurrency, ..budget }
                }
                Some(budget) => {
                    let Budget { running, passed, endpoints, .. } = budget;
                    Budget { running, passed, endpoints, ..Budget::of(provider, &self.clock) }
                }
                None => Budget::of(provider, &self.clock),
            };
            self.budgets.insert(name.clone(), budget);
        }
        let in_flight = before.into_iter().filter(|(_, budget)| budget.running > 0);
        self.budgets.extend(in_flight.map(|(name, budget)| (name, Budget { concurrency: 0, ..budget })));
    }

    /// When this application's breaker lets somebody through; `None` where it does so now.
    pub(crate) fn application_opens_at(&self, key: &LaneKey, app: &str, now: Moment) -> Option<Moment> {
        match self.applications.get(&application(key, app))?.admit(now) {
            Admission::Free | Admission::Probe => None,
            Admission::Refused(until) => Some(until.unwrap_or(now.plus(Duration::from_secs(1)))),
        }
    }

    /// Lets one attempt through, and remembers it; [`Gate::ended`] must follow.
    pub(crate) fn admit(&mut self, key: &LaneKey, app: &str, now: Moment) -> Option<Pass> {
        let endpoint =
            self.endpoints.get(&key.endpoint).map_or(Admission::Free, |breaker| breaker.admit(now));
        if matches!(endpoint, Admission::Refused(_)) {
            return None;
        }
        let budget = self.budgets.get_mut(&key.provider)?;
        if budget.running >= budget.concurrency {
            return None;
        }
        if let Err(not_until) = budget.limiter.check() {
            let wait = not_until.wait_time_from(GovernorClock::now(&self.clock));
            budget.spent_until = Some(now.plus(wait));
            return None;
        }
        budget.spent_until = None;
        budget.running += 1;
        budget.passed = budget.passed.saturating_add(1);
        if !budget.endpoints.contains(&key.endpoint) {
            budget.endpoints.insert(key.endpoint.clone());
        }
        let probes = (
            self.endpoints.get_mut(&key.endpoint).is_some_and(probe),
            self.applications.get_mut(&application(key, app)).is_some_and(probe),
        );
        Some(Pass { key: key.clone(), app: app.to_owned(), probes })
    }

    /// Refreshes that were let through and have not ended.
    pub(crate) fn running(&self) -> usize {
        self.budgets.values().map(|budget| budget.running).sum()
    }

    /// Whether the endpoint's breaker is open.
    pub(crate) fn is_open(&self, key: &LaneKey) -> bool {
        self.endpoints.get(&key.endpoint).is_some_and(Breaker::is_open)
    }

    /// An attempt that was let through has ended, with this last reply.
    pub(crate) fn ended(&mut self, pass: &Pass, reply: Option<&Reply>, now: Moment, unit: f64) {
        let Pass { key, app, probes } = pass;
        if let Some(budget) = self.budgets.get_mut(&key.provider) {
            budget.running = budget.running.saturating_sub(1);
        }
        let endpoint = self.endpoints.entry(key.endpoint.clone()).or_default();
        let application = self.applications.entry(application(key, app)).or_default();
        match reply {
            None => {
                endpoint.inconclusive(probes.0);
                application.inconclusive(probes.1);
            }
            Some(Reply::Granted(_)) => {
                endpoint.success(probes.0, now);
                application.success(probes.1, now);
            }
            Some(Reply::Rejected(code)) if refuses_application(code) => {
                endpoint.success(probes.0, now);
                application.failure(&self.policy, None, probes.1, now, unit);
            }
            Some(Reply::Rejected(_)) => {
                endpoint.success(probes.0, now);
                application.success(probes.1, now);
            }
            // Somebody in between answers for this application; whether for all is not known.
            Some(Reply::Blocked(_)) => {
                endpoint.inconclusive(probes.0);
                application.failure(&self.policy, None, probes.1, now, unit);
            }
            Some(Reply::Throttled { after: Some(after), .. }) => {
                application.inconclusive(probes.1);
                endpoint.shut(&self.policy, *after, probes.0, now, unit);
            }
            Some(failure @ (Reply::NotSent(_) | Reply::Throttled { .. } | Reply::Unknown { .. })) => {
                application.inconclusive(probes.1);
                endpoint.failure(&self.policy, failure.retry_after(), probes.0, now, unit);
            }
        }
    }

    /// Open breakers of each provider: of its token endpoints and of applications there.
    pub(crate) fn open_breakers(&self) -> impl Iterator<Item = (&str, usize)> {
        self.budgets.iter().map(|(provider, budget)| {
            let ours = |endpoint: &String| budget.endpoints.contains(endpoint);
            let endpoints =
                self.endpoints.iter().filter(|(endpoint, breaker)| ours(endpoint) && breaker.is_open());
            let applications = self
                .applications
                .iter()
                .filter(|((endpoint, _), breaker)| ours(endpoint) && breaker.is_open());
            (provider.as_str(), endpoints.count() + applications.count())
        })
    }

    /// How much of each provider's rate budget was used since this was last asked: so long ago.
    pub(crate) fn budget_used(&mut self, since: Duration) -> impl Iterator<Item = (&str, f64)> {
        self.budgets.iter_mut().map(move |(provider, budget)| {
            let allowed = (budget.rate.per_second * since.as_secs_f64()).max(1.0);
            (provider.as_str(), f64::from(std::mem::take(&mut budget.passed)) / allowed)
        })
    }

    /// How soon one of these lanes may be let through for a reason of time; what waits for a running attempt is
    /// woken by its end.
    pub(crate) fn opens_in<'a>(
        &self,
        lanes: impl Iterator<Item = &'a LaneKey>,
        now: Moment,
    ) -> Option<Duration> {
        let opens = |key: &LaneKey| {
            let breaker = match self.endpoints.get(&key.endpoint).map(|breaker| breaker.admit(now)) {
                Some(Admission::Refused(until)) => return until,
                _ => None,
            };
            breaker.or(self.budgets.get(&key.provider)?.spent_until)
        };
        lanes.filter_map(opens).min().map(|until| until.since(now))
    }
}

/// Whether whoever is let through now probes the breaker.
fn probe(breaker: &mut Breaker) -> bool {
    breaker.probing();
    breaker.is_open()
}

fn application(key: &LaneKey, app: &str) -> (String, String) {
    (key.endpoint.clone(), app.to_owned())
}

fn quota(rate: RateLimit) -> Quota {
    let burst = NonZeroU32::new(rate.burst).unwrap_or(NonZeroU32::MIN);
    // The configuration has checked that the rate is more than zero.
    let period = Duration::try_from_secs_f64(1.0 / rate.per_second).unwrap_or(Duration::from_secs(1));
    let period = period.max(Duration::from_nanos(1));
    Quota::with_period(period).unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(burst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::SystemClock;

    fn provider(name: &str, concurrency: usize, burst: u32) -> (String, Arc<Provider>) {
        let url = "https://acme.test/token".parse().expect("a URL");
        let rate = RateLimit { per_second: 0.01, burst };
        (name.to_owned(), Arc::new(Provider { concurrency, rate, ..Provider::new(name, url) }))
    }

    fn key(provider: &str) -> LaneKey {
        LaneKey { provider: provider.to_owned(), endpoint: "https://acme.test/token".to_owned() }
    }

    #[test]
    fn other_budgets_forget_nobody_who_is_in_flight() {
        let policy = BreakerPolicy::default();
        let providers = BTreeMap::from([provider("acme", 2, 10), provider("gone", 2, 10)]);
        let mut gate = Gate::new(&providers, policy, Arc::new(SystemClock));
        let now = SystemClock.moment();
        let admit = |gate: &mut Gate, provider: &str| gate.admit(&key(provider), "app", now);
        let (first, leaving) =
            (admit(&mut gate, "acme").expect("free"), admit(&mut gate, "gone").expect("free"));

        gate.tune(&BTreeMap::from([provider("acme", 1, 20), provider("new", 1, 1)]), policy);
        assert_eq!(gate.running(), 2);
        assert!(admit(&mut gate, "acme").is_none(), "one is running, and one is allowed");
        assert!(admit(&mut gate, "gone").is_none(), "it is configured no longer");
        assert!(admit(&mut gate, "new").is_some());
        gate.ended(&leaving, None, now, 0.5);
        gate.ended(&first, None, now, 0.5);
        assert_eq!(gate.running(), 1);
        assert!(admit(&mut gate, "acme").is_some());

        gate.tune(&BTreeMap::from([provider("new", 9, 1)]), policy);
        assert!(
            admit(&mut gate, "new").is_none(),
            "what was spent of a rate that has not changed stays spent"
        );
        assert!(!gate.budgets.contains_key("gone"));
    }
}
