//! The provider of a run: our strict one with its log of every redemption, or the certified server with its own.

use std::fs;

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::journal::Journal;
use crate::support::{Auth, OidcServer, StrictProvider, wait_for};
use crate::timings::Timings;

/// The secret of every client of the strict provider.
pub(crate) const SECRET: &str = "s";

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Ours.
    Strict,
    /// The certified server.
    Oidc,
}

/// What the provider's own log says of a redemption, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redemption {
    /// As the proxy numbered it; none where it came around the proxy.
    pub(crate) request: Option<u64>,
    pub(crate) granted: bool,
    /// The provider found its refresh token spent.
    pub(crate) reuse: bool,
}

/// A running provider.
pub(crate) enum Provider {
    Strict(StrictProvider, NamedTempFile),
    Certified(OidcServer),
}

impl Provider {
    /// `more` are further arguments of the strict provider.
    pub(crate) async fn start(kind: Kind, timings: &Timings, more: &[&str]) -> Self {
        let lifetime = timings.lifetime.as_secs().to_string();
        match kind {
            Kind::Strict => {
                let log = NamedTempFile::new().expect("the system's folder for temporary files is writable");
                let path = log.path().to_str().expect("a path in UTF-8").to_owned();
                let mut arguments = vec!["--lifetime-secs", &lifetime, "--event-log", &path];
                if !more.contains(&"--latency-ms") {
                    arguments.extend(["--latency-ms", "150"]);
                }
                arguments.extend(more);
                Self::Strict(StrictProvider::start(&arguments).await, log)
            }
            Kind::Oidc => {
                let variables =
                    [("ACCESS_TOKEN_SECONDS", lifetime.as_str()), ("REFRESH_TOKEN_SECONDS", "36000")];
                Self::Certified(OidcServer::start_with(&variables).await)
            }
        }
    }

    pub(crate) fn url(&self) -> &str {
        match self {
            Self::Strict(provider, _) => provider.url(),
            Self::Certified(server) => server.url(),
        }
    }

    /// What a client authenticates with.
    pub(crate) fn credentials<'a>(&self, client: &'a str) -> (&'a str, &'a str) {
        match (self, OidcServer::BASIC) {
            (Self::Certified(_), Auth::Basic(id, secret)) => (id, secret),
            _ => (client, SECRET),
        }
    }

    pub(crate) async fn register(&self, client: &str) {
        if let Self::Strict(provider, _) = self {
            provider.register(Auth::Basic(client, SECRET)).await;
        }
    }

    /// A customer consents: a first refresh token.
    pub(crate) async fn consent(&self, client: &str, journal: &Journal) -> String {
        let token = match self {
            Self::Strict(provider, _) => provider.seed(client).await.refresh_token,
            Self::Certified(server) => server.seed(self.credentials(client).0).await.refresh_token,
        };
        journal.consent(client, &token);
        token
    }

    pub(crate) async fn is_live(&self, refresh_token: &str) -> bool {
        match self {
            Self::Strict(provider, _) => provider.is_live(refresh_token).await,
            Self::Certified(server) => server.is_live(refresh_token).await,
        }
    }

    pub(crate) async fn redemptions(&self) -> Vec<Redemption> {
        match self {
            Self::Strict(_, log) => {
                let text = fs::read_to_string(log.path()).expect("the provider's log is there");
                text.lines()
                    .filter_map(|line| serde_json::from_str(line).ok())
                    .map(|line| ours(&line))
                    .collect()
            }
            Self::Certified(server) => {
                let events = wait_for(crate::timings::PROMPT, "the provider tells its log", async || {
                    Some(server.events().await)
                })
                .await;
                let told =
                    events.iter().filter(|event| event["event"] == "granted" || event["event"] == "refused");
                told.map(theirs).collect()
            }
        }
    }
}

fn request(line: &Value) -> Option<u64> {
    line["request_id"].as_str()?.parse().ok()
}

fn ours(line: &Value) -> Redemption {
    Redemption {
        request: request(line),
        granted: line["outcome"] == "granted",
        reuse: line["double_redemption"] == true,
    }
}

fn theirs(event: &Value) -> Redemption {
    Redemption {
        request: request(event),
        granted: event["event"] == "granted",
        reuse: event["reuse"] == true,
    }
}
