//! The protocol's times in a run: scaled down, so that a take-over takes seconds, or the defaults.

use std::time::Duration;

/// What answers at once unless something is broken.
pub(crate) const PROMPT: Duration = Duration::from_secs(30);

/// Which times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scale {
    /// A take-over in twelve seconds, tokens of half a minute.
    Scaled,
    /// What the daemon does without a setting; tokens of ten minutes.
    Default,
}

/// A run's times.
#[derive(Clone, Debug)]
pub(crate) struct Timings {
    /// Of the configuration.
    pub(crate) settings: String,
    /// The whole exchange with the provider.
    pub(crate) request_timeout: Duration,
    /// What a taker waits for.
    pub(crate) take_over: Duration,
    /// Of an access token.
    pub(crate) lifetime: Duration,
    /// How long a drain may take.
    pub(crate) drain: Duration,
}

const SCALED: &str = "[refresh]\nlease = \"8s\"\nwindow = \"1s\"\nrequest_timeout = \"2s\"\ncommit_budget = \"3s\"\n\
    salvage_wait = \"2s\"\nlifetime_min = \"1s\"\nspread = \"1s\"\n\
    [backoff]\nbase = \"200ms\"\nmin_interval = \"200ms\"\ncap = \"2s\"\ncap_expired = \"2s\"\n\
    [breaker]\nopen = \"500ms\"\nopen_max = \"2s\"\n\
    [discovery]\ninterval = \"1s\"\n[fleet]\nbeat = \"500ms\"\nsilence = \"2s\"\n[shutdown]\ntimeout = \"40s\"\n";

impl Timings {
    pub(crate) fn of(scale: Scale) -> Self {
        match scale {
            Scale::Scaled => Self::scaled(),
            Scale::Default => Self {
                settings: String::new(),
                request_timeout: Duration::from_secs(20),
                // 90 s x 1.01 + 20 s + 60 s
                take_over: Duration::from_millis(170_900),
                lifetime: Duration::from_secs(600),
                drain: Duration::from_secs(110),
            },
        }
    }

    pub(crate) fn scaled() -> Self {
        Self {
            settings: SCALED.to_owned(),
            request_timeout: Duration::from_secs(2),
            // 8 s x 1.01 + 2 s + 2 s
            take_over: Duration::from_millis(12_080),
            lifetime: Duration::from_secs(30),
            drain: Duration::from_secs(40),
        }
    }
}
