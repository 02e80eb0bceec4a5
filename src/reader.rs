//! Reading tokens: a cache in this process that is never stale, in front of the table.
//!
//! [`freshness`] decides, without I/O, whether what is known may be served, whether the table is asked first, or whether
//! a newer token is worth waiting for. This module asks: at most one question about a client is under way at any time,
//! whoever wants its answer, and tokens that are in use are asked for again *before* they are needed: soon after
//! the daemon was due to replace them, and every so often in any case.
//!
//! Invariant: an expired token is never served. While the table gives no answer, good ones go on being served, marked.
//!
//! A service makes one, keeps it, and asks it before each request of its own:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use perennial::client::ClientId;
//! use perennial::reader::{Reader, Want};
//! use perennial::store::Reading;
//!
//! let table = Reading::of("client-credentials").open().await?;
//! let reader = Reader::over(table.clone(), table.vitals());
//! let keeping = reader.clone();
//! tokio::spawn(async move { keeping.keep().await });
//!
//! let acme = ClientId::new("acme-crm")?;
//! let want = Want { min_ttl: Duration::from_secs(30), ..Want::default() };
//! let served = reader.token(&acme, want, Duration::from_secs(5)).await?;
//! let authorization = format!("{} {}", served.token().scheme(), served.token().secret.expose());
//! # drop(authorization);
//! # Ok(())
//! # }
//! ```

mod copies;
mod follow;
pub mod freshness;
mod slot;
mod upkeep;
pub mod written;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use crate::client::ClientId;
use crate::entropy::Entropy;
use crate::item::Key;
use crate::plan::lease;
use crate::record::{Gen, Lease, Partition, Registration, Snapshot, Token};
use crate::store::{Store, StoreError, View, Vitals};
use crate::time::{Clock, Moment, SystemClock, Timestamp};

pub use copies::{Copied, Copies};
pub use freshness::{AccessToken, Refusal, Served, Sighting, Standing, Want};

use freshness::{Entry, Judgement, Now, Question};
use slot::Slot;
use upkeep::Upkeep;
use written::Written;

/// Clients that were asked for and are not known to exist are remembered apart, so that inventing names pushes nobody out.
const STRANGERS: usize = 1024;
/// Questions to the table at once.
const AT_ONCE: usize = 32;
/// Between two looks for a token that somebody waits for.
const PACE: Duration = Duration::from_millis(500);

/// How a reader behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Clients that are remembered, at most.
    pub clients: usize,
    /// A token in use is confirmed at least this often.
    pub max_age: Duration,
    /// A token that nobody has asked for in so long is not in use.
    pub idle: Duration,
    /// How long a question to the table may take.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clients: 10_000,
            max_age: Duration::from_secs(300),
            idle: Duration::from_secs(3600),
            patience: Duration::from_secs(5),
        }
    }
}

/// For how long a provider's old access token still works after a refresh; `None` for as long as it lives.
pub type Overlaps = dyn Fn(&str) -> Option<Duration> + Send + Sync;

/// What a reader has done since its start.
#[derive(Debug)]
pub struct Counts {
    /// Tokens served from memory.
    pub hits: AtomicU64,
    /// Requests that had to wait for the table.
    pub misses: AtomicU64,
    /// Questions to the table that had an answer.
    pub answers: AtomicU64,
    /// Those that had none.
    pub failures: AtomicU64,
    /// In milliseconds.
    least_lifetime: AtomicU64,
}

impl Counts {
    fn new() -> Self {
        let zero = AtomicU64::default;
        let (hits, misses, answers, failures) = (zero(), zero(), zero(), zero());
        Self { hits, misses, answers, failures, least_lifetime: AtomicU64::new(u64::MAX) }
    }

    /// The shortest life that a token had left when it was served; 30 days before the first.
    pub fn least_lifetime(&self) -> Duration {
        const MONTH: Duration = Duration::from_secs(30 * 86_400);
        Duration::from_millis(self.least_lifetime.load(Ordering::Relaxed)).min(MONTH)
    }

    fn served(&self, served: &Served) {
        let left = u64::try_from(served.remaining.as_millis()).unwrap_or(u64::MAX);
        // A read is cheaper than a write that changes nothing.
        if left < self.least_lifetime.load(Ordering::Relaxed) {
            self.least_lifetime.fetch_min(left, Ordering::Relaxed);
        }
    }
}

/// The cache. Clones share it.
pub struct Reader<S>(Arc<Inner<S>>);

impl<S> Clone for Reader<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<S> {
    store: S,
    copies: Option<Arc<dyn Copies>>,
    vitals: Arc<Vitals>,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    overlaps: Box<Overlaps>,
    settings: Settings,
    known: Cache<ClientId, Arc<Slot>>,
    strangers: Cache<ClientId, Arc<Slot>>,
    questions: Semaphore,
    upkeep: Upkeep,
    counts: Counts,
}

impl<S: Store> Reader<S> {
    /// In front of a store, whose `vitals` tell its clock. Nothing is asked before somebody wants it.
    pub fn new(
        store: S,
        vitals: Arc<Vitals>,
        clock: Arc<dyn Clock>,
        overlaps: Box<Overlaps>,
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            copies: None,
            vitals,
            clock,
            entropy: Entropy::from_system(),
            overlaps,
            settings,
            known: Cache::new(settings.clients),
            strangers: Cache::new(STRANGERS),
            questions: Semaphore::new(AT_ONCE),
            upkeep: Upkeep::default(),
            counts: Counts::new(),
        }))
    }

    /// The same by the machine's clock, with the usual settings, where every access token works until it expires.
    pub fn over(store: S, vitals: &Arc<Vitals>) -> Self {
        let (clock, overlaps) = (Arc::new(SystemClock), Box::new(|_: &str| None));
        Self::new(store, Arc::clone(vitals), clock, overlaps, Settings::default())
    }

    /// Has copies of tokens looked at before the table is asked.
    ///
    /// # Panics
    /// Where the reader is shared already.
    #[must_use]
    pub fn with_copies(mut self, copies: Arc<dyn Copies>) -> Self {
        Arc::get_mut(&mut self.0).expect("it is not shared before it is whole").copies = Some(copies);
        self
    }

    /// The token, if it is known and good: no I/O, no waiting.
    pub fn at_hand(&self, id: &ClientId, want: Want) -> Option<Served> {
        let inner = &self.0;
        let slot = inner.known.get(id)?;
        let now = inner.now();
        slot.touch(now.moment);
        let entry = slot.entry.load();
        let Judgement::Serve(served) = freshness::judge(&entry, want, now) else { return None };
        if freshness::is_due(&entry, now) {
            inner.ask(&slot, Question::Which);
        }
        inner.counts.hits.fetch_add(1, Ordering::Relaxed);
        inner.counts.served(&served);
        Some(served)
    }

    /// The token; where a newer one is needed and expected, waits for it at most so long.
    pub async fn token(&self, id: &ClientId, want: Want, max_wait: Duration) -> Result<Served, Refusal> {
        match self.at_hand(id, want) {
            Some(served) => Ok(served),
            None => self.wait_for(id, want, max_wait).await,
        }
    }

    /// The same for whoever knows that it is not at hand.
    pub async fn wait_for(&self, id: &ClientId, want: Want, max_wait: Duration) -> Result<Served, Refusal> {
        Inner::wait_for(&self.0, id, want, max_wait).await
    }

    /// Asks the table about a client again, if the question under way or the last one began before `since`; returns
    /// when there is an answer, or none.
    pub async fn confirm(&self, id: &ClientId, since: Moment) {
        let slot = self.0.slot(id);
        // What was seen before a freeze was not seen just now, whatever the steady clock says.
        let mut is_old = freshness::has_jumped(&slot.entry.load(), self.0.now());
        while is_old || slot.entry.load().asked_table.is_none_or(|asked| asked < since) {
            let ended = slot.ended.notified();
            self.0.ask(&slot, Question::Table);
            ended.await;
            is_old = false;
        }
    }

    /// Looks for a successor soon, and for a minute again and again until it is there: one has been asked for.
    pub fn expect_newer(&self, id: &ClientId) {
        let slot = self.0.slot(id);
        let now = self.0.clock.moment();
        let soon = now.plus(PACE);
        // A copy of the token that was refused is no answer.
        let expecting = |entry: &Arc<Entry>| Entry {
            check_at: soon.min(entry.check_at),
            asked_table: None,
            expected: Some(now),
            ..Entry::clone(entry)
        };
        slot.entry.rcu(expecting);
        self.0.upkeep.plan(&slot, soon);
    }

    /// Keeps what is in use fresh, for as long as it is polled.
    pub async fn keep(&self) {
        Inner::keep(&self.0).await;
    }

    /// What was done since the start.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Clients that are remembered.
    pub fn len(&self) -> usize {
        self.0.known.len()
    }

    /// Whether nobody is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<S: Store> Inner<S> {
    fn now(&self) -> Now {
        let (moment, wall) = (self.clock.moment(), self.clock.now());
        Now { moment, wall: self.vitals.latest(moment, wall) }
    }

    fn slot(&self, id: &ClientId) -> Arc<Slot> {
        let known = self.known.get(id).or_else(|| self.strangers.get(id));
        known.unwrap_or_else(|| {
            let made = self.strangers.get_or_insert_with(id, || Ok::<_, ()>(Arc::new(Slot::new(id.clone()))));
            made.unwrap_or_else(|()| unreachable!("making a slot cannot fail"))
        })
    }

    async fn wait_for(
        this: &Arc<Self>,
        id: &ClientId,
        want: Want,
        max_wait: Duration,
    ) -> Result<Served, Refusal> {
        this.counts.misses.fetch_add(1, Ordering::Relaxed);
        let slot = this.slot(id);
        let deadline = this.clock.moment().plus(max_wait);
        let mut put = None;
        loop {
            let ended = slot.ended.notified();
            let (entry, now) = (slot.entry.load_full(), this.now());
            slot.touch(now.moment);
            match freshness::judge(&entry, want, now) {
                Judgement::Serve(served) => {
                    this.counts.served(&served);
                    return Ok(served);
                }
                Judgement::Refuse(refusal) => return Err(refusal),
                // A question whose task died told nothing.
                Judgement::Ask if put.as_ref().is_some_and(|put| Arc::ptr_eq(put, &entry)) => {
                    return Err(Refusal::Unavailable(PACE));
                }
                Judgement::Ask => {
                    this.ask(&slot, Question::Which);
                    ended.await;
                    put = Some(entry);
                }
                Judgement::Await(due_in, refusal) => {
                    let left = deadline.since(now.moment);
                    if left.is_zero() || due_in > left {
                        return Err(refusal);
                    }
                    if due_in.is_zero()
                        && entry.asked.is_none_or(|asked| now.moment.since(asked.moment) >= PACE)
                    {
                        this.ask(&slot, Question::Newer);
                    }
                    let pause = this.clock.sleep(left.min(due_in.max(PACE)));
                    tokio::select! { () = ended => {}, () = pause => {} }
                }
            }
        }
    }

    /// Has the table asked about a client, or a copy looked at where that will do, unless it is being asked.
    fn ask(self: &Arc<Self>, slot: &Arc<Slot>, what: Question) {
        if let Some(question) = slot.begin() {
            let (this, slot) = (Arc::clone(self), Arc::clone(slot));
            tokio::spawn(async move {
                this.put_question(&slot, what).await;
                drop(question);
            });
        }
    }

    async fn put_question(self: &Arc<Self>, slot: &Arc<Slot>, what: Question) {
        let before = slot.entry.load_full();
        let copy = self.copy(&slot.id, &before, what).await;
        if let Some(copy) = &copy {
            let (now, unit, max_age) = (self.now(), self.entropy.unit(), self.settings.max_age);
            if freshness::suffices(&copy.sighting, &before, what, max_age, now) {
                let sighting = copy.sighting.clone();
                let entry = freshness::copied(sighting, &before, copy.asked, max_age, now, unit);
                return self.learn(slot, &before, &entry);
            }
        }
        let asked = self.now();
        let answer = tokio::select! {
            answer = self.look(&slot.id, &before) => answer,
            () = self.clock.sleep(self.settings.patience) => Err(StoreError::Unavailable("no answer in time".into())),
        };
        let (now, unit) = (self.now(), self.entropy.unit());
        let entry = match answer {
            Ok(look) => {
                self.counts.answers.fetch_add(1, Ordering::Relaxed);
                // The answer has just told the table's clock: only now is the time known at which it began.
                let wall = now.wall.minus(now.moment.since(asked.moment));
                let sighting = look.with(&before, Now { wall, ..asked });
                freshness::confirmed(sighting, self.settings.max_age, now, unit)
            }
            Err(error) => {
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(client = %slot.id, %error, "the table gives no answer about a token");
                let failed = freshness::failed(&before, !error.is_transient(), asked, now, unit);
                match copy.filter(|copy| freshness::is_usable(&copy.sighting, &before, now)) {
                    Some(copy) => Entry { sighting: Some(Arc::new(copy.sighting)), ..failed },
                    None => failed,
                }
            }
        };
        self.learn(slot, &before, &entry);
    }

    fn learn(&self, slot: &Arc<Slot>, before: &Arc<Entry>, entry: &Entry) {
        let exists =
            entry.sighting.as_ref().is_some_and(|s| s.token.is_some() || s.standing != Standing::Absent);
        let (now, unit) = (self.clock.moment(), self.entropy.unit());
        // One question at a time: all that changes meanwhile is that a newer token is expected.
        let learned = |known: &Arc<Entry>| {
            freshness::learned(entry.clone(), known, !Arc::ptr_eq(known, before), now, unit)
        };
        slot.entry.rcu(learned);
        if exists {
            if self.known.get(&slot.id).is_none() {
                self.known.insert(slot.id.clone(), Arc::clone(slot));
                self.strangers.remove(&slot.id);
            }
            self.upkeep.plan(slot, slot.entry.load().check_at);
        }
    }

    /// The token alone where it is good; what stands beside it where that explains something.
    async fn look(&self, id: &ClientId, before: &Entry) -> Result<Look, StoreError> {
        let _permit = self.questions.acquire().await;
        let token = [Key::Token(id.clone())];
        let token = self.load(id, &token, View::Reader);
        if !freshness::looks_closer(before, self.now()) {
            return Ok(Look { token: token.await?.token, beside: None });
        }
        let beside = [Key::Config(id.clone()), Key::Lease(id.clone())];
        let beside = self.load(id, &beside, View::Standing);
        let (token, beside) = tokio::try_join!(token, beside)?;
        let standing = standing(&beside, token.token.as_ref());
        let overlap = match &beside.registration {
            Registration::Live(client) => (self.overlaps)(&client.provider),
            Registration::Absent | Registration::Removed => None,
        };
        Ok(Look { token: token.token, beside: Some((standing, overlap)) })
    }

    async fn load(&self, id: &ClientId, keys: &[Key], view: View) -> Result<Snapshot, StoreError> {
        let partition: Partition = self.store.load(keys, view).await?.into_iter().collect();
        partition.decode(id).map_err(|error| StoreError::Unreadable(error.to_string()))
    }
}

/// What one question brought.
struct Look {
    token: Option<Token>,
    beside: Option<(Standing, Option<Duration>)>,
}

impl Look {
    fn with(self, before: &Entry, asked: Now) -> Sighting {
        let last = before.sighting.as_ref();
        let (standing, overlap) = self.beside.unwrap_or_else(|| {
            last.map_or((Standing::Kept, None), |last| (last.standing.clone(), last.overlap))
        });
        let token = self.token.and_then(access_token);
        Sighting { token, standing, overlap, seen: asked.moment, seen_at: asked.wall }
    }
}

fn access_token(token: Token) -> Option<AccessToken> {
    Some(AccessToken {
        secret: token.access_token?.into(),
        token_type: token.token_type,
        scope: token.scope,
        expires_at: token.expires_at,
        refresh_at: token.refresh_at,
        stored_at: token.last_updated.and_then(|text| stored_at(&text)),
        generation: token.generation,
        written: Written::default(),
    })
}

fn stored_at(text: &str) -> Option<Timestamp> {
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::EPOCH.plus(since))
}

fn standing(beside: &Snapshot, token: Option<&Token>) -> Standing {
    let Some(client) = beside.client() else {
        // A table that another tool keeps has tokens alone.
        return if token.is_some() { Standing::Kept } else { Standing::Absent };
    };
    let generation = token.map_or(Gen::NONE, |token| token.generation);
    let code = |lease: &Lease| lease.error.clone().unwrap_or_else(|| "unknown".to_owned());
    match beside.lease.as_ref().map(|of| (lease::standing(of, generation), of)) {
        Some((lease::Standing::Dead, of)) => Standing::Dead(code(of)),
        Some((lease::Standing::Held | lease::Standing::Unknown, of)) => Standing::Held(code(of)),
        Some((lease::Standing::Removed, _)) => Standing::Absent,
        _ if client.paused => Standing::Paused,
        _ => Standing::Kept,
    }
}

#[cfg(test)]
mod tests;
