//! Every metric there is, in one table: what Prometheus scrapes, what CloudWatch is sent, and `docs/metrics.md` all
//! follow it.
//!
//! A metric is used by its name here (`metrics::TAKEOVERS.add(&[], 1)`), from anywhere: where no recorder is installed,
//! as in tests and commands, that does nothing.
//!
//! Invariant: cardinality is bounded. A label's values come from the configuration (`provider`) or from the code; never
//! from a client, a task, or what a provider answers. In CloudWatch, where each combination of values is billed, no
//! task id is a dimension: tasks add up by statistic.

mod cloudwatch;
mod docs;
mod exporter;

use std::time::Duration;

use metrics::{Key, Label, Level, Metadata, Unit, with_recorder};

pub use self::docs::markdown;
pub use self::exporter::{Exporter, ExporterError, Settings, install};

/// How a value behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution; in Prometheus in buckets with these upper bounds, in the metric's unit.
    Histogram(&'static [f64]),
}

/// What CloudWatch is sent of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloudWatch {
    /// Its name there. Durations of histograms are in milliseconds there.
    pub name: &'static str,
    /// The sets of dimensions under which it appears. An alarm needs a set whose values it knows beforehand.
    pub sets: &'static [&'static [&'static str]],
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// Its Prometheus name.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// The unit of its values in Prometheus.
    pub unit: Unit,
    /// Its labels, each with the values that it takes.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it tells.
    pub help: &'static str,
    /// What CloudWatch gets of it.
    pub cloudwatch: Option<CloudWatch>,
}

const PROVIDER: (&str, &str) = ("provider", "the names of `[providers.NAME]`");
const ALONE: &[&[&str]] = &[&[]];
const BY_PROVIDER: &[&[&str]] = &[&["provider"]];
/// Seconds: from a fast answer to more than a lease.
const EXCHANGE: Kind =
    Kind::Histogram(&[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0]);
/// Seconds: from punctual to an outage.
const LATENESS: Kind =
    Kind::Histogram(&[0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]);

macro_rules! metrics {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $kind:expr, $unit:ident, $labels:expr, $cloudwatch:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric {
                name: $name, kind: $kind, unit: Unit::$unit, labels: $labels, help: $help, cloudwatch: $cloudwatch,
            };
        )*
        /// All of them, in the order of the documentation.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

const fn sent(name: &'static str, sets: &'static [&'static [&'static str]]) -> Option<CloudWatch> {
    Some(CloudWatch { name, sets })
}

metrics! {
    REFRESHES = "perennial_refreshes_total", Kind::Counter, Count,
        &[PROVIDER, ("outcome", "`refreshed`, `not_needed`, `conflict`, `removed`, `failed`, `held`, `dead`, `store_unavailable`")],
        sent("Refreshes", &[&["provider", "outcome"], &["outcome"]]),
        "Attempts that have ended. `conflict`: another task was faster. `dead`: the provider said that the grant is gone. `held`: in doubt, an operator decides.";
    REFRESH_DURATION = "perennial_refresh_duration_seconds", EXCHANGE, Seconds, &[PROVIDER],
        sent("RefreshDuration", &[&["provider"], &[]]),
        "From the acquire to the stored token, of attempts that refreshed.";
    REFRESH_LATENESS = "perennial_refresh_lateness_seconds", LATENESS, Seconds, &[PROVIDER],
        sent("RefreshLateness", &[&["provider"], &[]]),
        "How long after its time an attempt began: budgets, breakers and a busy task make it late.";
    ENDPOINT_DURATION = "perennial_endpoint_duration_seconds", EXCHANGE, Seconds, &[PROVIDER],
        sent("EndpointDuration", BY_PROVIDER),
        "One HTTP exchange with a token endpoint, answered or not.";
    LEAST_REMAINING_LIFETIME = "perennial_least_remaining_lifetime_seconds", Kind::Gauge, Seconds, &[],
        sent("LeastRemainingLifetime", ALONE),
        "The access token nearest to its expiry, of all clients of this task that are being kept fresh; below zero it has expired. At most 30 days, which is also what a task tells that keeps none.";
    CLIENTS = "perennial_clients", Kind::Gauge, Count,
        &[("state", "`idle`, `refreshing`, `in_doubt`, `held`, `dead`, `paused`, `pending`, `expired`")],
        sent("Clients", &[&["state"]]),
        "Clients of this task by state. `pending`: its first token is yet to come. `expired`: its token has expired and is still being tried.";
    TAKEOVERS = "perennial_takeovers_total", Kind::Counter, Count, &[], sent("Takeovers", ALONE),
        "Leases taken over from an owner that fell silent.";
    BREAKERS_OPEN = "perennial_breakers_open", Kind::Gauge, Count, &[PROVIDER], sent("BreakersOpen", BY_PROVIDER),
        "Open breakers, of token endpoints and of single applications there.";
    WAITING_CLIENTS = "perennial_waiting_clients", Kind::Gauge, Count, &[PROVIDER], sent("WaitingClients", BY_PROVIDER),
        "Clients that are due and held up by a breaker, a rate budget or a concurrency limit.";
    RATE_BUDGET_USED = "perennial_rate_budget_used_ratio", Kind::Gauge, Count, &[PROVIDER], sent("RateBudgetUsed", BY_PROVIDER),
        "How much of the provider's rate budget was used lately: 1 is all of it, a burst is more.";
    WRITE_UNITS = "perennial_consumed_write_units_total", Kind::Counter, Count, &[], sent("WriteUnits", ALONE),
        "Write capacity units that the table charged this task.";
    READ_UNITS = "perennial_consumed_read_units_total", Kind::Counter, Count, &[], sent("ReadUnits", ALONE),
        "Read capacity units that the table charged this task.";
    DOLLARS_PER_THOUSAND = "perennial_dollars_per_thousand_refreshes", Kind::Gauge, Count, &[], sent("DollarsPerThousandRefreshes", ALONE),
        "What the table has charged this task for each thousand refreshes since its start, at the on-demand prices of us-east-1. Everything counts, heartbeats too: an idle task is dear.";
    STORE_THROTTLES = "perennial_store_throttles_total", Kind::Counter, Count, &[], sent("StoreThrottles", ALONE),
        "Throttled answers of DynamoDB, those among them that the SDK tried again.";
    STORE_FAILURES = "perennial_store_failures_total", Kind::Counter, Count, &[("operation", "`read`, `write`")],
        sent("StoreFailures", &[&["operation"]]),
        "Operations on the table that ended in an error, after the SDK's own tries. A failed condition is none.";
    UNCOMMITTED_ANSWERS = "perennial_uncommitted_answers", Kind::Gauge, Count, &[], sent("UncommittedAnswers", ALONE),
        "Granted tokens that the table has not taken yet: they are in this task's memory, and in the spill where there is one.";
    SPILLED = "perennial_spilled_total", Kind::Counter, Count, &[], sent("Spilled", ALONE),
        "Answers put into the spill.";
    SECRET_LOOKUPS = "perennial_secret_lookups_total", Kind::Counter, Count,
        &[("kind", "`secretsmanager`, `ssm`, `env`, `file`"), ("outcome", "`found`, `refused`, `no_answer`")], None,
        "Client secrets that were looked up where a reference leads. What is kept is not looked up.";
    SECOND_SECRETS = "perennial_second_secrets_accepted_total", Kind::Counter, Count, &[PROVIDER],
        sent("SecondSecretsAccepted", BY_PROVIDER),
        "Refreshes in which the provider refused a client's first secret and took its second: it is time to promote that one.";
    CLOCK_SKEW = "perennial_clock_skew_seconds", Kind::Gauge, Seconds, &[], sent("ClockSkew", ALONE),
        "How far the wall clock is off the table's, without sign.";
    SCHEDULER_LAG = "perennial_scheduler_lag_seconds", Kind::Gauge, Seconds, &[], sent("SchedulerLag", ALONE),
        "How late the scheduler came to what was due.";
    READY = "perennial_ready", Kind::Gauge, Count, &[], sent("Ready", ALONE),
        "1 where `/readyz` says so, else 0.";
    FLEET_MEMBERS = "perennial_fleet_members", Kind::Gauge, Count, &[], sent("FleetMembers", ALONE),
        "Tasks at work, as this task sees them.";
    LOG_LINES_DROPPED = "perennial_log_lines_dropped_total", Kind::Counter, Count, &[], sent("LogLinesDropped", ALONE),
        "Log lines that were dropped because whoever reads the log did not keep up.";
    REJECTED_TOKENS = "perennial_rejected_tokens_total", Kind::Counter, Count, &[], sent("RejectedTokens", ALONE),
        "Refreshes that this agent asked for because a reader's token was refused.";
    AGENT_READS = "perennial_agent_reads_total", Kind::Counter, Count, &[("result", "`hit`, `miss`")], sent("AgentReads", &[&["result"]]),
        "Tokens that were wanted: known and good, or to be waited for.";
    AGENT_QUESTIONS = "perennial_agent_questions_total", Kind::Counter, Count, &[("answered", "`yes`, `no`")], sent("AgentQuestions", &[&["answered"]]),
        "Questions that the agent put to the table.";
    AGENT_REFUSALS = "perennial_agent_refusals_total", Kind::Counter, Count,
        &[("code", "`forwarded_request`, `another_host`, `key_missing`, `key_unknown`, `not_allowed`")],
        sent("AgentRefusals", &[&["code"], &[]]),
        "Requests that were refused for what they were, or for who asked.";
    AGENT_CONNECTIONS = "perennial_agent_connections", Kind::Gauge, Count, &[], sent("AgentConnections", ALONE),
        "Connections that are open.";
    AGENT_WAITING = "perennial_agent_waiting", Kind::Gauge, Count, &[], sent("AgentWaiting", ALONE),
        "Requests that wait, for the table or for a newer token.";
    AGENT_CLIENTS = "perennial_agent_clients", Kind::Gauge, Count, &[], sent("AgentClients", ALONE),
        "Clients that the agent remembers.";
    LEAST_LIFETIME_SERVED = "perennial_least_lifetime_served_seconds", Kind::Gauge, Seconds, &[], sent("LeastLifetimeServed", ALONE),
        "The shortest life that a token had left when this agent served it, since its start: above zero, or something is wrong.";
    SHARED_CACHE_CONNECTED = "perennial_shared_cache_connected", Kind::Gauge, Count, &[], sent("SharedCacheConnected", ALONE),
        "1 while this process has a connection to the shared cache, else 0. Nothing but speed depends on it.";
    SHARED_CACHE_PUBLICATIONS = "perennial_shared_cache_publications_total", Kind::Counter, Count,
        &[("outcome", "`published`, `removed`, `superseded`, `skipped`, `failed`, `dropped`")],
        sent("SharedCachePublications", &[&["outcome"]]),
        "What became of tokens that were to be published. `superseded`: a newer one stood there. `skipped`: expired, without an access token, or too large. `dropped`: the server was away for so long that there was no room to wait.";
    SHARED_CACHE_LOOKUPS = "perennial_shared_cache_lookups_total", Kind::Counter, Count,
        &[("result", "`hit`, `miss`, `unusable`, `failed`")], sent("SharedCacheLookups", &[&["result"]]),
        "What an agent found there. `unusable`: an entry that is none, does not open, or does not expire: its log says which. `failed`: no connection, or no answer in time.";
    BUILD_INFO = "perennial_build_info", Kind::Gauge, Count, &[("version", "the program's version")], None,
        "Always 1.";
}

impl Metric {
    /// Counts so many more. `labels` are the values of the metric's labels, in their order.
    pub fn add(&self, labels: &[&str], count: u64) {
        let key = self.key(labels);
        with_recorder(|recorder| recorder.register_counter(&key, &METADATA)).increment(count);
    }

    /// So many have been counted elsewhere, since the start.
    pub fn reached(&self, labels: &[&str], total: u64) {
        let key = self.key(labels);
        with_recorder(|recorder| recorder.register_counter(&key, &METADATA)).absolute(total);
    }

    /// Sets a gauge.
    pub fn set(&self, labels: &[&str], value: f64) {
        let key = self.key(labels);
        with_recorder(|recorder| recorder.register_gauge(&key, &METADATA)).set(value);
    }

    /// Sets a gauge that counts.
    pub fn set_count(&self, labels: &[&str], count: usize) {
        self.set(labels, u32::try_from(count).unwrap_or(u32::MAX).into());
    }

    /// One more in a gauge, for as long as what it returns lives.
    #[must_use]
    pub fn hold(&self, labels: &[&str]) -> Held {
        let key = self.key(labels);
        let gauge = with_recorder(|recorder| recorder.register_gauge(&key, &METADATA));
        gauge.increment(1.0);
        Held(gauge)
    }

    /// Records a duration in a histogram of seconds.
    pub fn record(&self, labels: &[&str], duration: Duration) {
        let key = self.key(labels);
        with_recorder(|recorder| recorder.register_histogram(&key, &METADATA)).record(duration);
    }

    fn key(&self, values: &[&str]) -> Key {
        debug_assert_eq!(values.len(), self.labels.len(), "{} has other labels", self.name);
        let labels =
            self.labels.iter().zip(values).map(|((name, _), value)| Label::new(*name, (*value).to_owned()));
        Key::from_parts(self.name, labels.collect::<Vec<_>>())
    }
}

/// One more in a gauge, until it is dropped.
pub struct Held(metrics::Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

static METADATA: Metadata<'static> = Metadata::new("perennial", Level::INFO, None);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions_and_are_unique() {
        let mut names = BTreeSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(names.insert(name) && name.starts_with("perennial_"), "{name}");
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(!matches!(metric.kind, Kind::Histogram(_)) || name.ends_with("_seconds"), "{name}");
            let Some(cloudwatch) = metric.cloudwatch else { continue };
            assert!(names.insert(cloudwatch.name), "{}", cloudwatch.name);
        }
    }

    /// A gauge's value under fewer dimensions would be that of whoever wrote last.
    #[test]
    fn only_what_adds_up_is_rolled_up() {
        for metric in ALL {
            let Some(cloudwatch) = metric.cloudwatch else { continue };
            let all: Vec<_> = metric.labels.iter().map(|(name, _)| *name).collect();
            for set in cloudwatch.sets {
                assert!(set.iter().all(|name| all.contains(name)), "{}: {set:?}", metric.name);
                assert!(metric.kind != Kind::Gauge || *set == all, "{}: {set:?}", metric.name);
            }
        }
    }

    #[test]
    fn no_label_names_a_client_or_a_task() {
        let known =
            ["provider", "outcome", "state", "operation", "kind", "version", "result", "answered", "code"];
        let labels = ALL.iter().flat_map(|metric| metric.labels);
        labels.for_each(|(name, _)| assert!(known.contains(name), "is `{name}` bounded?"));
    }
}
