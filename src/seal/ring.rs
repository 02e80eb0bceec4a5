//! Which key seals what, and where keys come from: by families and shards, wrapped, asked for seldom and kept for a
//! bounded time.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tracing::warn;
use zeroize::Zeroizing;

use super::{Key, SealError};
use crate::time::{Clock, Moment, Timestamp};

/// What a key may open. Whoever may unwrap one family's keys can never open the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `at`: access tokens, for readers.
    Access,
    /// `rt`: refresh tokens and client secrets, for the daemon alone.
    Refresh,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Access, Self::Refresh];

    /// The family of an attribute's key.
    pub fn of(attribute: &str) -> Self {
        if attribute == "access_token" { Self::Access } else { Self::Refresh }
    }

    /// As it stands in a key's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "at",
            Self::Refresh => "rt",
        }
    }
}

/// A line of keys, each of which takes the place of the one before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series {
    /// The table whose secrets they seal.
    pub table: String,
    /// What they open.
    pub family: Family,
    /// Which of the clients.
    pub shard: u32,
}

impl Series {
    /// The series for a client's secrets.
    pub fn of(table: &str, family: Family, client: &str, shards: u32) -> Self {
        let digest = Sha256::digest(client.as_bytes());
        let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        Self { table: table.to_owned(), family, shard: number % shards.max(1) }
    }
}

/// `<table>/<family>/s<shard>`.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/s{}", self.table, self.family.as_str(), self.shard)
    }
}

/// A key's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName {
    /// Its line.
    pub series: Series,
    /// Its place there, from 1.
    pub version: u32,
}

impl KeyName {
    /// Reads a name of the form that it prints.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (table, family) = (parts.next()?, parts.next()?);
        let shard = parts.next()?.strip_prefix('s')?.parse().ok()?;
        let version = parts.next()?.strip_prefix('v')?.parse().ok()?;
        let family = Family::ALL.into_iter().find(|known| known.as_str() == family)?;
        let name = Self { series: Series { table: table.to_owned(), family, shard }, version };
        // One spelling alone: `v03` would be another name for the same key.
        (name.to_string() == text).then_some(name)
    }
}

/// `<table>/<family>/s<shard>/v<version>`.
impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/v{}", self.series, self.version)
    }
}

/// Whether a key still seals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It seals, if none of its series is younger.
    Active,
    /// It only opens.
    DecryptOnly,
}

impl KeyState {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::DecryptOnly => "DECRYPT_ONLY",
        }
    }
}

/// A wrapped key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its name.
    pub name: KeyName,
    /// The key under the customer master key: worth nothing without it.
    pub wrapped: Vec<u8>,
    /// ARN of the customer master key that wrapped it.
    pub cmk: String,
    /// Whether it still seals.
    pub state: KeyState,
    /// When it was made.
    pub created: Timestamp,
    /// Since when it only opens.
    pub retired: Option<Timestamp>,
}

impl fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRecord({}, {})", self.name, self.state.as_str())
    }
}

/// Where wrapped keys are, and who unwraps them.
pub trait KeySource: Send + Sync + 'static {
    /// The youngest active key of a series, wrapped.
    fn active(&self, series: &Series) -> impl Future<Output = Result<KeyRecord, SealError>> + Send;
    /// This key, wrapped.
    fn record(&self, name: &KeyName) -> impl Future<Output = Result<KeyRecord, SealError>> + Send;
    /// Unwraps it.
    fn unwrap(
        &self,
        record: &KeyRecord,
    ) -> impl Future<Output = Result<Zeroizing<[u8; 32]>, SealError>> + Send;
}

/// How long keys are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// So long without asking again.
    pub fresh: Duration,
    /// So long beyond that while whoever keeps or unwraps keys gives no answer. A refusal ends it at once.
    pub stale: Duration,
}

/// After a question without an answer none is asked for so long: whoever waits for keys does not wait one by one.
const SILENCE: Duration = Duration::from_secs(5);

/// Keys by name, unwrapped once and then kept for a while.
pub struct Ring<S> {
    source: S,
    shards: u32,
    keeping: Keeping,
    clock: Arc<dyn Clock>,
    held: Mutex<HashMap<KeyName, (Key, Moment)>>,
    /// What sealed last, and when it was known to be the youngest.
    sealing: Mutex<HashMap<Series, (Key, Moment)>>,
    /// When a question went unanswered, and how.
    silent: Mutex<Option<(Moment, SealError)>>,
    /// Who asks for a key: many that miss the same one ask once.
    asking: tokio::sync::Mutex<()>,
}

impl<S: KeySource> Ring<S> {
    /// An empty ring.
    pub fn new(source: S, shards: u32, keeping: Keeping, clock: Arc<dyn Clock>) -> Self {
        Self {
            source,
            shards,
            keeping,
            clock,
            held: Mutex::default(),
            sealing: Mutex::default(),
            silent: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// Where its keys come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The key that sealed last, however old, asking nobody: an answer that has come is stored, whatever KMS says by now.
    /// A refresh begins with [`Ring::sealing`].
    pub(super) fn at_hand(&self, table: &str, family: Family, client: &str) -> Option<Key> {
        let series = Series::of(table, family, client, self.shards);
        lock(&self.sealing).get(&series).map(|(key, _)| key.clone())
    }

    /// The key that is to seal a client's secrets of this family: the youngest one, known for a bounded time.
    pub(super) async fn sealing(&self, table: &str, family: Family, client: &str) -> Result<Key, SealError> {
        let series = Series::of(table, family, client, self.shards);
        if let Some(key) = self.sealing_within(&series, self.keeping.fresh) {
            return Ok(key);
        }
        let _one = self.asking.lock().await;
        if let Some(key) = self.sealing_within(&series, self.keeping.fresh) {
            return Ok(key);
        }
        let asked = self.ask(async {
            let record = self.source.active(&series).await?;
            self.unwrap(&record).await
        });
        match asked.await {
            Ok(key) => {
                lock(&self.sealing).insert(series, (key.clone(), self.clock.moment()));
                Ok(key)
            }
            Err(error) if error.is_transient() => {
                self.sealing_within(&series, self.keeping.fresh + self.keeping.stale).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The key of this name.
    pub(super) async fn opening(&self, name: &KeyName) -> Result<Key, SealError> {
        if let Some(key) = self.held_within(name, self.keeping.fresh) {
            return Ok(key);
        }
        let _one = self.asking.lock().await;
        if let Some(key) = self.held_within(name, self.keeping.fresh) {
            return Ok(key);
        }
        let asked = self.ask(async {
            let record = self.source.record(name).await?;
            self.unwrap(&record).await
        });
        match asked.await {
            Err(error) if error.is_transient() => self.opening_at_hand(name).ok_or(error),
            Err(error) => {
                lock(&self.held).remove(name);
                Err(error)
            }
            Ok(key) => Ok(key),
        }
    }

    /// The key of this name if it is kept, asking nobody.
    pub(super) fn opening_at_hand(&self, name: &KeyName) -> Option<Key> {
        self.held_within(name, self.keeping.fresh + self.keeping.stale)
    }

    /// Asks, unless somebody has just asked in vain.
    async fn ask<T>(&self, question: impl Future<Output = Result<T, SealError>>) -> Result<T, SealError> {
        let now = self.clock.moment();
        if let Some((at, error)) = lock(&self.silent).as_ref()
            && now.since(*at) < SILENCE
        {
            return Err(error.clone());
        }
        let answer = question.await;
        if let Err(error) = &answer
            && error.is_transient()
        {
            warn!(%error, "no answer about keys: going on with what is kept");
            *lock(&self.silent) = Some((self.clock.moment(), error.clone()));
        }
        answer
    }

    async fn unwrap(&self, record: &KeyRecord) -> Result<Key, SealError> {
        let bytes = self.source.unwrap(record).await?;
        let key = Key { id: record.name.to_string(), bytes };
        lock(&self.held).insert(record.name.clone(), (key.clone(), self.clock.moment()));
        Ok(key)
    }

    fn held_within(&self, name: &KeyName, age: Duration) -> Option<Key> {
        let held = lock(&self.held);
        let (key, at) = held.get(name)?;
        (self.clock.moment().since(*at) <= age).then(|| key.clone())
    }

    fn sealing_within(&self, series: &Series, age: Duration) -> Option<Key> {
        let sealing = lock(&self.sealing);
        let (key, at) = sealing.get(series)?;
        (self.clock.moment().since(*at) <= age).then(|| key.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

    use super::*;
    use crate::time::Sleep;

    #[derive(Default)]
    struct Hands(AtomicU64);

    impl Clock for Hands {
        fn now(&self) -> Timestamp {
            Timestamp::EPOCH
        }
        fn moment(&self) -> Moment {
            Moment::from_origin(Duration::from_secs(self.0.load(Ordering::Relaxed)))
        }
        fn sleep(&self, _: Duration) -> Sleep {
            Box::pin(std::future::ready(()))
        }
    }

    #[derive(Default)]
    struct Source {
        version: AtomicU32,
        silent: AtomicBool,
        refusing: AtomicBool,
        unwrapped: AtomicU32,
        asked: AtomicU32,
    }

    impl KeySource for Source {
        async fn active(&self, series: &Series) -> Result<KeyRecord, SealError> {
            let version = self.version.load(Ordering::Relaxed) + 1;
            self.record(&KeyName { series: series.clone(), version }).await
        }
        async fn record(&self, name: &KeyName) -> Result<KeyRecord, SealError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.silent.load(Ordering::Relaxed) {
                return Err(SealError::NoAnswer("silent".into()));
            }
            let (wrapped, cmk, state) = (vec![1], "cmk".to_owned(), KeyState::Active);
            Ok(KeyRecord {
                name: name.clone(),
                wrapped,
                cmk,
                state,
                created: Timestamp::EPOCH,
                retired: None,
            })
        }
        async fn unwrap(&self, record: &KeyRecord) -> Result<Zeroizing<[u8; 32]>, SealError> {
            // As over a network: others are at work meanwhile.
            tokio::task::yield_now().await;
            if self.refusing.load(Ordering::Relaxed) {
                return Err(SealError::Refused("denied".into()));
            }
            self.unwrapped.fetch_add(1, Ordering::Relaxed);
            Ok(Zeroizing::new([u8::try_from(record.name.version).expect("small"); 32]))
        }
    }

    fn ring() -> (Ring<Source>, Arc<Hands>) {
        let clock = Arc::new(Hands::default());
        let keeping = Keeping { fresh: Duration::from_secs(60), stale: Duration::from_secs(600) };
        (Ring::new(Source::default(), 64, keeping, Arc::clone(&clock) as _), clock)
    }

    #[tokio::test]
    async fn a_key_is_unwrapped_once_and_a_younger_one_is_noticed_when_it_is_no_longer_fresh() {
        let (ring, clock) = ring();
        for _ in 0..100 {
            let key = ring.sealing("t", Family::Refresh, "c").await.expect("a key");
            assert!(key.id.starts_with("t/rt/s") && key.id.ends_with("/v1"), "{}", key.id);
        }
        assert_eq!(ring.source.unwrapped.load(Ordering::Relaxed), 1);
        ring.source.version.store(1, Ordering::Relaxed);
        clock.0.store(61, Ordering::Relaxed);
        assert!(ring.sealing("t", Family::Refresh, "c").await.expect("a key").id.ends_with("/v2"));
    }

    #[tokio::test]
    async fn many_that_miss_one_key_ask_for_it_once() {
        let (ring, _) = ring();
        let name = KeyName::parse("t/at/s3/v1").expect("a name");
        let all = (0..64).map(|_| ring.opening(&name));
        for key in futures_util::future::join_all(all).await {
            assert!(key.is_ok());
        }
        assert_eq!(ring.source.unwrapped.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn while_nobody_answers_keys_are_used_for_a_bounded_time_and_an_answer_is_sealed_without_one() {
        let (ring, clock) = ring();
        let sealing = ring.sealing("t", Family::Access, "c").await.expect("a key");
        let name = KeyName::parse(&sealing.id).expect("a name");
        ring.source.silent.store(true, Ordering::Relaxed);
        clock.0.store(659, Ordering::Relaxed);
        assert!(ring.opening(&name).await.is_ok());
        assert!(ring.sealing("t", Family::Access, "c").await.is_ok());
        clock.0.store(661, Ordering::Relaxed);
        assert!(matches!(ring.opening(&name).await, Err(SealError::NoAnswer(_))));
        assert!(matches!(ring.sealing("t", Family::Access, "c").await, Err(SealError::NoAnswer(_))));
        assert_eq!(ring.at_hand("t", Family::Access, "c").expect("the last one").id, sealing.id);
        assert!(ring.at_hand("t", Family::Refresh, "c").is_none(), "never had one");
    }

    #[tokio::test]
    async fn after_a_question_without_an_answer_nobody_waits_for_another() {
        let (ring, clock) = ring();
        ring.source.silent.store(true, Ordering::Relaxed);
        for n in 0..10 {
            assert!(ring.sealing("t", Family::Access, &format!("c{n}")).await.is_err());
        }
        assert_eq!(ring.source.asked.load(Ordering::Relaxed), 1);
        clock.0.store(5, Ordering::Relaxed);
        assert!(ring.sealing("t", Family::Access, "c").await.is_err());
        assert_eq!(ring.source.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_refusal_does_not_take_away_what_an_answer_on_its_way_is_sealed_with() {
        let (ring, clock) = ring();
        ring.sealing("t", Family::Access, "c").await.expect("a key");
        ring.source.refusing.store(true, Ordering::Relaxed);
        clock.0.store(61, Ordering::Relaxed);
        assert!(matches!(ring.sealing("t", Family::Access, "c").await, Err(SealError::Refused(_))));
        assert!(ring.at_hand("t", Family::Access, "c").is_some());
    }

    #[tokio::test]
    async fn a_refusal_ends_it_at_once() {
        let (ring, clock) = ring();
        let name = KeyName::parse("t/at/s3/v1").expect("a name");
        ring.opening(&name).await.expect("a key");
        ring.source.refusing.store(true, Ordering::Relaxed);
        clock.0.store(61, Ordering::Relaxed);
        assert!(matches!(ring.opening(&name).await, Err(SealError::Refused(_))));
        ring.source.silent.store(true, Ordering::Relaxed);
        assert!(ring.opening(&name).await.is_err(), "it is not kept");
    }

    #[test]
    fn a_name_has_one_spelling() {
        for good in ["t/at/s0/v1", "client-credentials/rt/s63/v12"] {
            assert_eq!(KeyName::parse(good).expect(good).to_string(), good);
        }
        for bad in ["t/at/s0", "t/xx/s0/v1", "t/at/s00/v1", "t/at/s0/v1/x", "t/at/s+1/v1", "local/ab"] {
            assert!(KeyName::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn clients_are_spread_over_the_shards() {
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..2000 {
            seen.insert(Series::of("t", Family::Access, &format!("client-{n}"), 64).shard);
        }
        assert_eq!(seen.len(), 64);
    }
}
