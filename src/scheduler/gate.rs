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
    per_second: f64,
    /// How many were let through since that was last asked.
    passed: u32,
    /// Token endpoints that were used under this provider's name.
    endpoints: BTreeSet<String>,
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
        let budget = |provider: &Provider| Budget {
            limiter: RateLimiter::direct_with_clock(quota(provider.rate), clock.clone()),
            concurrency: provider.concurrency,
            running: 0,
            spent_until: None,
            per_second: provider.rate.per_second,
            passed: 0,
            endpoints: BTreeSet::new(),
        };
        let budgets = providers.iter().map(|(name, provider)| (name.clone(), budget(provider))).collect();
        Self { policy, clock, budgets, endpoints: BTreeMap::new(), applications: BTreeMap::new() }
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
            let allowed = (budget.per_second * since.as_secs_f64()).max(1.0);
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
