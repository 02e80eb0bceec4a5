//! The one connection of this process, made again whenever it breaks, while nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::wire::{self, Connection, Driver};
use super::{CacheError, Settings};
use crate::entropy::Entropy;
use crate::metrics;
use crate::time::Clock;
use crate::tls::{self, TlsError};

/// Connecting, TLS and the first answer included, takes milliseconds in one region.
const CONNECT: Duration = Duration::from_secs(2);
/// Between two tries, at first and at most.
const SOON: Duration = Duration::from_millis(250);
const LATE: Duration = Duration::from_secs(15);
/// A connection that has lasted for so long was good.
const GOOD: Duration = Duration::from_secs(10);

/// The connection to the server.
pub struct Link {
    settings: Settings,
    tls: Option<Arc<ClientConfig>>,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    state: watch::Sender<State>,
}

#[derive(Clone)]
enum State {
    /// The first try is under way.
    Starting,
    Up(Line),
    Down,
}

/// A connection that was good when it was given out.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) connection: Connection,
    broken: CancellationToken,
}

impl Line {
    /// Has it given up: it does not answer.
    pub(super) fn give_up(&self) {
        self.broken.cancel();
    }
}

impl Link {
    /// Nothing is sent before [`Link::keep`].
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let tls = match settings.url.scheme() {
            "rediss" => {
                let roots = settings.ca_file.as_deref().map(tls::roots).transpose()?;
                Some(Arc::new(tls::configuration(tls::verifier(roots.map(Arc::new))?)?))
            }
            _ => None,
        };
        let (state, _) = watch::channel(State::Starting);
        Ok(Self { settings, tls, clock, entropy: Entropy::from_system(), state })
    }

    /// Connects, and again whenever that has ended, for as long as it is polled.
    pub async fn keep(&self) {
        let (mut failures, mut told) = (0, None);
        loop {
            match self.connect().await {
                Ok((line, driver)) => {
                    info!(url = %self.settings.url, "the shared cache answers");
                    told = None;
                    let begun = self.clock.moment();
                    self.follow(line, driver).await;
                    let lasted = self.clock.moment().since(begun);
                    failures = if lasted >= GOOD { 0 } else { failures + 1 };
                    debug!("the connection to the shared cache has ended");
                }
                Err(error) => {
                    failures += 1;
                    self.state.send_replace(State::Down);
                    // Once an outage, and again where the reason is another.
                    let reason = std::mem::discriminant(&error);
                    if told != Some(reason) {
                        warn!(url = %self.settings.url, %error, "the shared cache is not used: going on without it");
                        told = Some(reason);
                    }
                }
            }
            self.clock.sleep(pause(failures, self.entropy.unit())).await;
        }
    }

    /// The connection, once there is one.
    pub(super) async fn up(&self) -> Line {
        let mut state = self.state.subscribe();
        loop {
            if let State::Up(line) = &*state.borrow_and_update() {
                return line.clone();
            }
            // The sender lives as long as this does.
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The connection if there is one; the first try is waited for, and no other.
    pub(super) async fn at_hand(&self) -> Option<Line> {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Starting)).await;
        match settled.as_deref() {
            Ok(State::Up(line)) => Some(line.clone()),
            _ => None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), State::Up(_))
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    async fn connect(&self) -> Result<(Line, Driver), CacheError> {
        let connecting = Box::pin(wire::connect(&self.settings, self.tls.as_ref()));
        let (connection, driver) = tokio::select! {
            connected = connecting => connected?,
            () = self.clock.sleep(CONNECT) => return Err(CacheError::Unreachable("no answer in time".into())),
        };
        Ok((Line { connection, broken: CancellationToken::new() }, driver))
    }

    async fn follow(&self, line: Line, driver: Driver) {
        let broken = line.broken.clone();
        metrics::SHARED_CACHE_CONNECTED.set(&[], 1.0);
        self.state.send_replace(State::Up(line));
        tokio::select! { () = driver => {}, () = broken.cancelled() => {} }
        self.state.send_replace(State::Down);
        metrics::SHARED_CACHE_CONNECTED.set(&[], 0.0);
    }
}

/// `unit` is in `[0, 1)`: a fleet does not come back in one breath.
fn pause(failures: u32, unit: f64) -> Duration {
    let longest = SOON.saturating_mul(2_u32.saturating_pow(failures.min(10))).min(LATE);
    longest.mul_f64(0.5 + unit / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_somewhere() {
        let pauses: Vec<_> = [0, 1, 2, 5, 9, 4_000_000_000].map(|failures| pause(failures, 1.0)).to_vec();
        assert!(pauses.is_sorted() && pauses[0] == SOON && pauses[5] == LATE, "{pauses:?}");
        assert_eq!(pause(0, 0.0), SOON / 2);
    }
}
