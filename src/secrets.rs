//! Client secrets by reference: followed, kept for a while, and followed again when a provider refuses what was kept.
//!
//! A reference is followed only where the configuration allows it to this client ([`crate::client::allowance`]); that is
//! looked at each time, whatever is kept. What is kept is used for [`Keeping::fresh`] without asking, and for
//! [`Keeping::stale`] beyond that while there is no answer; a refusal ends it at once. Of many who miss the same secret one
//! asks; and of an object with many keys it is the whole that is looked up and kept, once for all of them. A refresh warms what it
//! needs before it acquires ([`Secrets::warm`]), so that a slow answer costs no lease.
//!
//! Nothing here says a secret in an error or a log line: references and what services say about them are names.

mod aws;
mod file;
mod object;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{debug, warn};

pub use self::aws::ServiceAddress;
use self::aws::Services;
use self::file::Files;
use crate::client::Client;
use crate::client::allowance::{Allowed, NotAllowed, Rules};
use crate::client::credentials::Credential;
use crate::client::reference::{Location, Scheme, SecretRef};
use crate::entropy::Entropy;
use crate::metrics;
use crate::secret::Secret;
use crate::time::{Clock, Moment};

/// The longest secret, in bytes: what is longer is something else.
const LONGEST: usize = 64 * 1024;
/// How long an answer is waited for: it has to fit a send window where it was not warmed before.
const PATIENCE: Duration = Duration::from_secs(3);
/// After a question without an answer, or with a refusal, the same is not asked for so long.
const SILENCE: Duration = Duration::from_secs(5);
/// What a provider refuses is looked up again, but not more often: many clients may share one secret.
const AGAIN: Duration = Duration::from_secs(1);
/// Questions in a row that a service gave no answer to, before it is left alone for [`SILENCE`]: what is down for one secret
/// is down for all, and each question holds a refresh up.
const SILENT: u32 = 3;
/// Secrets that are kept, at most.
const MOST: usize = 10_000;

/// How long secrets are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// So long without asking again; up to a quarter less, so that what was asked for together is not asked again together.
    pub fresh: Duration,
    /// So long beyond that while there is no answer.
    pub stale: Duration,
}

/// Why there is no secret from a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is none, or it may not be read.
    Refused(String),
    /// Nobody knows. Try again.
    NoAnswer(String),
}

/// Why there is no secret. Never says more than names.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretError {
    /// The configuration has no rule for it.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// There is none, or it may not be read.
    #[error("{0}: {1}")]
    Refused(SecretRef, String),
    /// No answer about it. Try again.
    #[error("{0}: no answer: {1}")]
    NoAnswer(SecretRef, String),
}

impl SecretError {
    /// Whether the same may succeed later, with nothing changed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NoAnswer(..))
    }
}

/// An answer to come.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Secret, Failure>> + Send + 'a>>;

/// Somebody who follows references.
pub trait Source: Send + Sync + 'static {
    /// The secret that is there by now: all of it, whatever key the reference has.
    fn fetch<'a>(&'a self, allowed: &'a Allowed) -> Answer<'a>;
}

/// What this machine can reach: its files, its environment as it was at the start, and AWS's services.
pub struct Machine {
    environment: BTreeMap<String, Secret>,
    services: Services,
    files: Files,
}

impl Machine {
    /// Asks nobody yet: whoever has no reference to a service waits for no credentials. `own` are files that no reference
    /// may lead to, whatever the rules say: this program's keys, configuration and credentials.
    pub fn new(environment: BTreeMap<String, Secret>, own: Vec<PathBuf>, address: ServiceAddress) -> Self {
        Self { environment, services: Services::new(address), files: Files::new(own) }
    }
}

impl Source for Machine {
    fn fetch<'a>(&'a self, allowed: &'a Allowed) -> Answer<'a> {
        Box::pin(async move {
            match allowed.reference.location() {
                Location::SecretsManager { id, stage, .. } => self.services.secret(id, stage).await,
                Location::Parameter(name) => self.services.parameter(name).await,
                Location::Environment(name) => {
                    self.environment.get(name).cloned().ok_or_else(|| {
                        Failure::Refused("is not set, or was not when this process began".into())
                    })
                }
                Location::File(path) => self.files.read(path, allowed.below.as_deref()).await,
            }
        })
    }
}

/// Nothing is allowed, and nobody asked.
struct Nowhere;

impl Source for Nowhere {
    fn fetch<'a>(&'a self, _: &'a Allowed) -> Answer<'a> {
        Box::pin(std::future::ready(Err(Failure::Refused("nobody follows references here".into()))))
    }
}

/// What is kept of one reference, without its key.
#[derive(Default)]
struct Slot {
    held: Option<Held>,
    failed: Option<(Moment, Failure)>,
}

struct Held {
    secret: Secret,
    at: Moment,
    fresh: Duration,
}

type Shared = Arc<tokio::sync::Mutex<Slot>>;

/// Follows references.
pub struct Secrets {
    rules: Rules,
    keeping: Keeping,
    source: Arc<dyn Source>,
    clock: Arc<dyn Clock>,
    entropy: Arc<Entropy>,
    /// By reference, without its key, with the moment of the last use.
    slots: Mutex<HashMap<Allowed, (Moment, Shared)>>,
    /// By scheme: questions in a row without an answer, and when the last of them ended.
    silent: Mutex<HashMap<Scheme, (u32, Moment)>>,
}

impl Secrets {
    /// Has asked for nothing yet.
    pub fn new(
        rules: Rules,
        keeping: Keeping,
        source: Arc<dyn Source>,
        clock: Arc<dyn Clock>,
        entropy: Arc<Entropy>,
    ) -> Self {
        Self { rules, keeping, source, clock, entropy, slots: Mutex::default(), silent: Mutex::default() }
    }

    /// Allows no reference.
    pub fn none(clock: Arc<dyn Clock>, entropy: Arc<Entropy>) -> Self {
        let keeping = Keeping { fresh: Duration::ZERO, stale: Duration::ZERO };
        Self::new(Rules::default(), keeping, Arc::new(Nowhere), clock, entropy)
    }

    /// The secret that this client of this provider has there.
    ///
    /// # Errors
    /// Where the reference is not allowed, or leads to nothing, or there is no answer and nothing is kept.
    pub async fn resolve(
        &self,
        credential: &Credential,
        client: &Client,
        provider: &str,
    ) -> Result<Secret, SecretError> {
        self.follow(credential, client, provider, None).await
    }

    /// The same where a provider has refused `sent`: looked up again, unless what is kept is another by now.
    ///
    /// # Errors
    /// As [`Secrets::resolve`].
    pub async fn resolve_again(
        &self,
        credential: &Credential,
        client: &Client,
        provider: &str,
        sent: &Secret,
    ) -> Result<Secret, SecretError> {
        self.follow(credential, client, provider, Some(sent)).await
    }

    /// Has the client's first secret at hand, if it can be had.
    pub async fn warm(&self, client: &Client, provider: &str) {
        let Some(first @ Credential::At(_)) = &client.credentials.first else { return };
        if let Err(error) = self.resolve(first, client, provider).await {
            debug!(%error, "a client secret could not be warmed: the attempt will say so");
        }
    }

    async fn follow(
        &self,
        credential: &Credential,
        client: &Client,
        provider: &str,
        refused: Option<&Secret>,
    ) -> Result<Secret, SecretError> {
        let reference = match credential {
            Credential::Stored(secret) => return Ok(secret.clone()),
            Credential::At(reference) => reference,
        };
        let allowed = self.rules.admit(reference, &client.id, provider)?;
        let whole = Allowed { reference: reference.whole(), ..allowed };
        let slot = self.slot(&whole);
        // Held while somebody asks: whoever misses the same secret waits for that answer.
        let mut slot = slot.lock().await;
        let location = reference.location();
        let key = location.key();
        let found = match slot.at_hand(self.clock.moment(), key, refused) {
            Some(found) => found,
            None => self.ask(&whole, &mut slot).await.and_then(|whole| part(&whole, key)),
        };
        found.map_err(|failure| match failure {
            Failure::Refused(why) => SecretError::Refused(reference.clone(), why),
            Failure::NoAnswer(why) => SecretError::NoAnswer(reference.clone(), why),
        })
    }

    /// Asks, unless somebody has just asked in vain, and keeps what there is.
    async fn ask(&self, allowed: &Allowed, slot: &mut Slot) -> Result<Secret, Failure> {
        if let Some((at, failure)) = &slot.failed
            && self.clock.moment().since(*at) < SILENCE
        {
            let failure = failure.clone();
            return self.stale(slot).ok_or(failure);
        }
        let scheme = allowed.reference.location().scheme();
        if self.is_silent(scheme) {
            let silence = Failure::NoAnswer("others have had no answer from there lately".into());
            return self.stale(slot).ok_or(silence);
        }
        let answer = tokio::select! {
            biased;
            answer = self.source.fetch(allowed) => answer.and_then(plausible),
            () = self.clock.sleep(PATIENCE) => Err(Failure::NoAnswer("it takes too long".into())),
        };
        let now = self.clock.moment();
        self.note(scheme, !matches!(answer, Err(Failure::NoAnswer(_))), now);
        match answer {
            Ok(secret) => {
                metrics::SECRET_LOOKUPS.add(&[scheme.as_str(), "found"], 1);
                let fresh = self.keeping.fresh.mul_f64(1.0 - self.entropy.unit() / 4.0);
                *slot = Slot { held: Some(Held { secret: secret.clone(), at: now, fresh }), failed: None };
                Ok(secret)
            }
            Err(failure @ Failure::Refused(_)) => {
                metrics::SECRET_LOOKUPS.add(&[scheme.as_str(), "refused"], 1);
                *slot = Slot { held: None, failed: Some((now, failure.clone())) };
                Err(failure)
            }
            Err(failure @ Failure::NoAnswer(_)) => {
                metrics::SECRET_LOOKUPS.add(&[scheme.as_str(), "no_answer"], 1);
                slot.failed = Some((now, failure.clone()));
                let kept = self.stale(slot).ok_or(failure)?;
                warn!(reference = %allowed.reference, "no answer about a client secret: going on with what is kept");
                Ok(kept)
            }
        }
    }

    /// Whether a service is left alone for now. Of those who come when that is over, one asks and the others go on waiting.
    fn is_silent(&self, scheme: Scheme) -> bool {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((failures, since)) = silent.get_mut(&scheme) else { return false };
        let now = self.clock.moment();
        if *failures < SILENT {
            return false;
        }
        let over = now.since(*since) >= SILENCE;
        if over {
            *since = now;
        }
        !over
    }

    fn note(&self, scheme: Scheme, answered: bool, now: Moment) {
        // Each file may be on a file system of its own.
        if scheme == Scheme::File {
            return;
        }
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            silent.remove(&scheme);
        } else {
            let (failures, since) = silent.entry(scheme).or_default();
            *failures = failures.saturating_add(1);
            *since = now;
        }
    }

    fn stale(&self, slot: &Slot) -> Option<Secret> {
        let held = slot.held.as_ref()?;
        let age = self.clock.moment().since(held.at);
        (age <= self.keeping.fresh + self.keeping.stale).then(|| held.secret.clone())
    }

    /// The slot of this reference; the one that nobody has asked for the longest makes room.
    fn slot(&self, allowed: &Allowed) -> Shared {
        let now = self.clock.moment();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((used, slot)) = slots.get_mut(allowed) {
            *used = now;
            return Arc::clone(slot);
        }
        if slots.len() >= MOST
            && let Some(oldest) = slots.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone())
        {
            slots.remove(&oldest);
        }
        let slot = Shared::default();
        slots.insert(allowed.clone(), (now, Arc::clone(&slot)));
        slot
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Slot {
    /// What is kept and fresh; where it was refused, only what is another or was looked up just now. A key that is not there may
    /// have been added since.
    fn at_hand(
        &self,
        now: Moment,
        key: Option<&str>,
        refused: Option<&Secret>,
    ) -> Option<Result<Secret, Failure>> {
        let held = self.held.as_ref()?;
        let found = part(&held.secret, key);
        let within = match &found {
            Err(_) => SILENCE.min(held.fresh),
            Ok(secret) if refused == Some(secret) => AGAIN.min(held.fresh),
            Ok(_) => held.fresh,
        };
        (now.since(held.at) < within).then_some(found)
    }
}

/// What is wanted of what was found.
fn part(whole: &Secret, key: Option<&str>) -> Result<Secret, Failure> {
    match key {
        None => Ok(whole.clone()),
        Some(key) => object::string(whole, key).and_then(plausible),
    }
}

/// What can be a secret.
fn plausible(secret: Secret) -> Result<Secret, Failure> {
    let refuse = |why: &str| Err(Failure::Refused(why.to_owned()));
    match secret.expose() {
        "" => refuse("is empty"),
        text if text.len() > LONGEST => refuse("holds more than 64 KB, which is no secret"),
        text if text.contains('\0') => refuse("holds a NUL byte, which is no part of a secret"),
        _ => Ok(secret),
    }
}

#[cfg(test)]
mod tests;
