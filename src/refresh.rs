//! One refresh, from top to bottom: acquire -> read -> send -> commit. This file is the product.
//!
//! Providers rotate refresh tokens and revoke the whole grant when an old one is used again. So nobody sends without
//! a lease that was durably written first (*acquire*), nobody sends what was not read after that (*read*), a request
//! leaves once (*send*), and its answer is stored in one conditional write that is retried for as long as the process
//! lives, and is found in the [spill](crate::spill) where it did not live long enough (*commit*). Everything that decides
//! is in [`crate::plan`]; everything that is written is a [`Change`](crate::item::Change). What is left here is the
//! order of things, which is what safety hangs on.
//!
//! Invariants: no request without a lease; no request later than the send window after the acquire was *begun*, on a
//! clock that counts suspended time; nothing between an answer and its commit that could fail.

mod report;
mod secret;

use std::sync::Arc;
use std::time::Duration;

use tracing::{Instrument, debug, error, field, info, info_span, warn};

pub use self::report::{Outcome, Report};
use crate::client::{Client, ClientId, Provider};
use crate::entropy::Entropy;
use crate::item::{Item, Value, attr};
use crate::metrics;
use crate::plan::lease::{self, Commit, Doubt, Intent, Release};
use crate::plan::outcome::{self, Attempt, Go, Judge, Tally, Verdict, Which};
use crate::plan::{Backoff, Lifetimes, Timing, backoff, schedule};
use crate::provider::{TokenEndpoint, TokenRequest};
use crate::record::{Gen, Lease, Malformed, Snapshot, Token, decode_lease};
use crate::reply::{Reply, Tokens};
use crate::secrets::Secrets;
use crate::spill::{Name, Record, Spill, SpillError, Taken};
use crate::store::{Applied, Store, StoreError};
use crate::time::{Clock, Moment, Timestamp};

/// How long the table may fail to take new tokens before they also go to the spill.
const SPILL_AFTER: Duration = Duration::from_secs(10);

/// What a task remembers of a client between refreshes: no secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The registration.
    pub client: Arc<Client>,
    /// The bookkeeping.
    pub lease: Lease,
    /// The tokens' dates and generation.
    pub token: Token,
}

impl Known {
    /// What is remembered of a partition that was read; `None` where there is no live client in it.
    pub fn of(snapshot: Snapshot) -> Option<Self> {
        let client = without_secrets(snapshot.client()?.clone());
        let token = snapshot.token.unwrap_or_else(|| Token::stub(Gen::NONE));
        let token = Token { access_token: None, refresh_token: None, ..token };
        Some(Self { client, lease: snapshot.lease?, token })
    }
}

/// The numbers that a refresh depends on.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The durations of the lease protocol.
    pub timing: Timing,
    /// How long to wait after failures.
    pub backoff: Backoff,
    /// Bounds of a lifetime.
    pub lifetimes: Lifetimes,
}

/// Refreshes clients, one call each.
pub struct Refresher<S, E> {
    store: Arc<S>,
    endpoint: Arc<E>,
    clock: Arc<dyn Clock>,
    entropy: Arc<Entropy>,
    policy: Policy,
    spill: Arc<Spill>,
    secrets: Arc<Secrets>,
    incarnation: String,
}

/// An attempt that holds its lease.
struct Held<'a> {
    id: &'a ClientId,
    provider: &'a Provider,
    lease: Lease,
    begun: Moment,
}

impl<S: Store, E: TokenEndpoint> Refresher<S, E> {
    /// The incarnation, random per process start, names this process in the leases that it takes.
    pub fn new(
        store: Arc<S>,
        endpoint: Arc<E>,
        clock: Arc<dyn Clock>,
        entropy: Arc<Entropy>,
        policy: Policy,
    ) -> Self {
        let (incarnation, spill) = (entropy.nonce(), Arc::new(Spill::none()));
        let secrets = Arc::new(Secrets::none(Arc::clone(&clock), Arc::clone(&entropy)));
        Self { store, endpoint, clock, entropy, policy, spill, secrets, incarnation }
    }

    /// Has answers that the table does not take put there, and looked for there.
    #[must_use]
    pub fn with_spill(self, spill: Arc<Spill>) -> Self {
        Self { spill, ..self }
    }

    /// Has references to client secrets followed.
    #[must_use]
    pub fn with_secrets(self, secrets: Arc<Secrets>) -> Self {
        Self { secrets, ..self }
    }

    /// The same process with other numbers; what is in flight keeps those that it began with.
    #[must_use]
    pub fn tuned(&self, backoff: Backoff, lifetimes: Lifetimes) -> Self {
        let (store, endpoint) = (Arc::clone(&self.store), Arc::clone(&self.endpoint));
        let (clock, entropy) = (Arc::clone(&self.clock), Arc::clone(&self.entropy));
        let (spill, incarnation) = (Arc::clone(&self.spill), self.incarnation.clone());
        let policy = Policy { backoff, lifetimes, ..self.policy };
        let secrets = Arc::clone(&self.secrets);
        Self { store, endpoint, clock, entropy, policy, spill, secrets, incarnation }
    }

    /// Where answers go that the table does not take.
    pub fn spill(&self) -> &Arc<Spill> {
        &self.spill
    }

    /// The process is about to end: an answer that the table does not take goes to the spill at once.
    pub fn hurry(&self) {
        self.spill.hurry();
    }

    /// This process's name in the leases that it takes.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// The durations of the lease protocol.
    pub fn timing(&self) -> &Timing {
        &self.policy.timing
    }

    /// Has at hand what an attempt needs of elsewhere. Before the lease begins: what takes long here costs nobody's send window. It may
    /// take seconds, so whoever may not acquire for ever looks again before [`Refresher::refresh`].
    pub async fn warm(&self, known: &Known, provider: &Provider) {
        let span = info_span!("warm", client = %known.client.id, provider = %provider.name);
        self.secrets.warm(&known.client, &provider.name).instrument(span).await;
    }

    /// Refreshes one client. The caller has found it due, or in doubt with its wait over; the table has the last word.
    pub async fn refresh(&self, known: &Known, provider: &Provider) -> Report {
        let owner = format!("{}#{}", self.incarnation, self.entropy.nonce());
        let span = info_span!(
            "refresh",
            client = %known.client.id,
            provider = %provider.name,
            generation = known.lease.generation.next().0,
            attempt = %owner,
            outcome = field::Empty,
            duration_ms = field::Empty,
        );
        let begun = self.clock.moment();
        let report = self.attempt(known, provider, owner, begun).instrument(span.clone()).await;
        span.record("outcome", report.outcome.name());
        let duration = self.clock.moment().since(begun);
        span.record("duration_ms", u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        metrics::REFRESHES.add(&[&provider.name, report.outcome.name()], 1);
        if report.outcome == Outcome::Refreshed {
            metrics::REFRESH_DURATION.record(&[&provider.name], duration);
        }
        span.in_scope(|| announce(&report, self.clock.now()));
        report
    }

    async fn attempt(&self, known: &Known, provider: &Provider, owner: String, begun: Moment) -> Report {
        let held = match self.acquire(known, provider, owner, begun).await {
            Ok(held) => held,
            Err(report) => return report,
        };
        // Before the read: a record that is gone by now was stored before that, and the read finds its tokens.
        let spilled = self.look_in_spill(&held, known).await;
        let read = match self.read(held.id, begun).await {
            Ok(read) => read,
            Err(Unread::NoAnswer(error)) => return self.give_up(&held, Some(known.clone()), &error).await,
            Err(Unread::Malformed(malformed)) => {
                error!(alarm = "malformed_item", %malformed, "nothing was sent: repair or remove the item");
                return self.set_aside(&held, known, "malformed_item").await;
            }
            Err(Unread::Sealed(why)) => {
                error!(
                    alarm = "unreadable_secret",
                    why, "nothing was sent: see `perennial seal status` and `keys list`"
                );
                return self.set_aside(&held, known, "unreadable_secret").await;
            }
        };
        if let Ok(Some(record)) = &spilled
            && let Some(client) = outcome::takes_spilled(
                record.generation,
                &record.commit.binding,
                &read,
                &held.lease,
                provider,
            )
        {
            return self.commit_spilled(&held, client, read.token.is_some(), record).await;
        }
        let (backoff, now, unit) = (&self.policy.backoff, self.clock.now(), self.entropy.unit());
        let known = Known::of(read.clone());
        let attempt = match outcome::after_read(read, &held.lease, provider, backoff, begun, now, unit) {
            Go::Send(attempt) => *attempt,
            Go::Release(release) => return self.release(&held, known, release, None).await,
            Go::Drop(why) => {
                info!(why, "the lease is no longer ours: nothing was sent");
                return Report::unread(Outcome::Conflict);
            }
        };
        if let (Err(error), Some(_)) = (spilled, attempt.begins_with().filter(|_| attempt.risk.rotates)) {
            error!(alarm = "spill_unreadable", %error, "in doubt, and the spill does not say: nothing is sent");
            let (now, unit) = (self.clock.now(), self.entropy.unit());
            let release = outcome::unsent(&attempt, "spill_unreadable", backoff, now, unit);
            return self.release(&held, known, release, None).await;
        }
        let attempt = match self.with_secret(attempt, provider).await {
            Ok(attempt) => attempt,
            Err(release) => return self.release(&held, known, release, None).await,
        };
        if self.clock.moment().since(begun) > self.policy.timing.window() {
            return self.give_up(&held, known, "the send window was missed").await;
        }
        match self.send(&held, attempt).await {
            Sent::Granted { tokens, issued, attempt } => self.commit(&held, *attempt, *tokens, issued).await,
            Sent::Not { release, reply } => self.release(&held, known, release, Some(reply)).await,
        }
    }

    /// Writes the intent, on the lease as it was seen. An unanswered write is issued again unchanged: if it had
    /// landed, the condition fails and the item that stands there carries this attempt's own name.
    async fn acquire<'a>(
        &self,
        known: &'a Known,
        provider: &'a Provider,
        owner: String,
        begun: Moment,
    ) -> Result<Held<'a>, Report> {
        let id = &known.client.id;
        let intent = Intent { owner, lease: self.policy.timing.lease(), now: self.clock.now() };
        let Some((change, lease)) = lease::acquire(id, &known.lease, known.token.generation, &intent) else {
            return Err(Report::unread(Outcome::Conflict));
        };
        let error = loop {
            match self.store.apply(&change).await {
                Ok(Applied::Committed) => return Ok(Held { id, provider, lease, begun }),
                Ok(Applied::Lost(found)) => {
                    let stands = found.into_iter().next().flatten();
                    if stands.as_ref().and_then(|item| owner_of(id, item)).as_ref() == Some(&intent.owner) {
                        return Ok(Held { id, provider, lease, begun });
                    }
                    return Err(lost(known, stands.as_ref()));
                }
                Err(error) if error.is_transient() && self.within_window(begun) => {
                    debug!(%error, "the acquire went unanswered: issuing it again unchanged");
                    self.pause().await;
                }
                Err(error) => break error,
            }
        };
        // Whether it landed is not known. If it did, this gives it back; if it cannot, the lease runs out.
        if let Err(error) = self.store.apply(&lease::abandon(id, &intent.owner)).await {
            debug!(%error, "could not give back a lease that may have been taken");
        }
        Err(Report::unread(Outcome::StoreUnavailable(error.to_string())))
    }

    /// The whole partition, strongly consistent, after the acquire: secrets come from here only.
    async fn read(&self, id: &ClientId, begun: Moment) -> Result<Snapshot, Unread> {
        loop {
            match self.store.read(id).await {
                Ok(partition) => return partition.decode(id).map_err(Unread::Malformed),
                Err(StoreError::Unreadable(why)) => return Err(Unread::Sealed(why)),
                Err(error) if error.is_transient() && self.within_window(begun) => self.pause().await,
                Err(error) => return Err(Unread::NoAnswer(error.to_string())),
            }
        }
    }

    /// A token in doubt may have its successor in the spill: then that is stored, and nothing is sent. A spill that
    /// does not answer may hold it, and sending the old token might kill it: better late than lost.
    async fn look_in_spill(&self, held: &Held<'_>, known: &Known) -> Result<Option<Record>, SpillError> {
        let at_stake = held.provider.rotates && known.client.grant.needs_refresh_token();
        if !at_stake || held.lease.doubt.is_none() {
            return Ok(None);
        }
        let patience = self.policy.timing.window() / 2;
        tokio::select! {
            biased;
            found = self.spill.find(held.id, known.token.generation) => found,
            () = self.clock.sleep(patience) => Err(SpillError::Place("no answer within half the send window".into())),
        }
    }

    /// Stores what another attempt was granted, under this attempt's generation: so the lease is spent at once, and
    /// that other attempt, if it still lives, finds itself superseded by its own tokens.
    async fn commit_spilled(
        &self,
        held: &Held<'_>,
        client: Client,
        item_exists: bool,
        record: &Record,
    ) -> Report {
        warn!(
            spilled = record.generation.0,
            "the answer of a lost attempt was in the spill: storing it, nothing is sent"
        );
        let generation = held.lease.generation;
        let commit = Commit { generation, now: self.clock.now(), item_exists, ..record.commit.clone() };
        let outcome = self.persist(held.id, &commit).await;
        self.clear_spill(&record.name()).await;
        let known = (outcome == Outcome::Refreshed && self.within_lease(held))
            .then(|| committed(held, client, &commit));
        Report { outcome, known, reply: None }
    }

    /// Sends until there is a verdict. A replay is logged with the attempt's name before it leaves.
    async fn send(&self, held: &Held<'_>, mut attempt: Attempt) -> Sent {
        let (mut tally, mut which) = (Tally::default(), Which::First);
        if let Some(unanswered) = attempt.begins_with().filter(|_| attempt.risk.rotates) {
            warn!(
                unanswered,
                "the refresh token is in doubt: sending it, as the provider's in-doubt policy orders"
            );
        }
        loop {
            let stored = attempt.token.as_ref().and_then(|token| token.refresh_token.clone());
            let secret = attempt.secret.clone();
            let request = TokenRequest::new(&attempt.client, held.provider, secret, stored);
            let (issued, asked) = (self.clock.now(), self.clock.moment());
            let reply = self.endpoint.send(&request).await;
            let exchange = self.clock.moment().since(asked);
            metrics::ENDPOINT_DURATION.record(&[&held.provider.name], exchange);
            tally = tally.with(&reply);
            debug!(reply = reply.code(), send = tally.sends, "the token endpoint replied");
            let judge = self.judge();
            match outcome::after_send(reply.clone(), &attempt, &tally, &judge) {
                Verdict::Commit(tokens) => {
                    secret::note(which, held.provider);
                    return Sent::Granted { tokens, issued, attempt: Box::new(attempt) };
                }
                Verdict::Release(release) => return Sent::Not { release, reply },
                Verdict::Replay(pause) => {
                    self.clock.sleep(pause).await;
                    // The machine may have been suspended meanwhile: judged again, on a clock that counts it.
                    if let Verdict::Release(release) =
                        outcome::after_send(reply.clone(), &attempt, &tally, &self.judge())
                    {
                        return Sent::Not { release, reply };
                    }
                    warn!(
                        replay = tally.sends,
                        after = reply.code(),
                        "no answer: sending the same refresh token again, as the provider's in-doubt policy orders"
                    );
                }
                Verdict::RecheckGrant(code) => {
                    let release = match self.read(held.id, self.clock.moment()).await {
                        Ok(read) => outcome::after_grant_recheck(code, &read, &attempt, &tally),
                        Err(_) => outcome::unverified(&attempt, &tally, &self.judge()),
                    };
                    return Sent::Not { release, reply };
                }
                Verdict::RecheckClient(code) => {
                    match self.another_secret(held, &attempt, code, &tally).await {
                        Ok(other) => (attempt.client, attempt.secret, which) = other,
                        Err(release) => return Sent::Not { release, reply },
                    }
                    tally.second_secret = true;
                }
            }
        }
    }

    /// Stores the answer, and does not stop until it is stored, superseded or homeless.
    async fn commit(&self, held: &Held<'_>, attempt: Attempt, tokens: Tokens, issued: Timestamp) -> Report {
        let reply = Some(Reply::Granted(Box::new(tokens.clone())));
        note_drift(held.provider, &attempt, &tokens);
        let commit = self.plan_commit(held, &attempt, tokens, issued);
        let outcome = self.persist(held.id, &commit).await;
        // Past its lease somebody else may have acquired: what stands there now has to be read.
        let punctual = self.within_lease(held);
        let known =
            (outcome == Outcome::Refreshed && punctual).then(|| committed(held, attempt.client, &commit));
        Report { outcome, known, reply }
    }

    fn plan_commit(&self, held: &Held<'_>, attempt: &Attempt, tokens: Tokens, issued: Timestamp) -> Commit {
        let bounds = &self.policy.lifetimes;
        let lifetime = schedule::lifetime(tokens.lifetime, held.provider.default_lifetime, bounds);
        let wide = schedule::comes_in_a_wave(&attempt.client, attempt.token.as_ref(), issued);
        Commit {
            generation: held.lease.generation,
            expires_at: issued.plus(lifetime),
            refresh_at: schedule::refresh_at(issued, lifetime, bounds, wide, self.entropy.unit()),
            now: self.clock.now(),
            binding: attempt.client.binding(held.provider),
            grant: attempt.client.grant,
            item_exists: attempt.token.is_some(),
            tokens,
        }
    }

    /// Writes until the table has answered. What it does not take for a while, or refuses, also goes to the spill,
    /// beside the pauses between the writes.
    async fn persist(&self, id: &ClientId, commit: &Commit) -> Outcome {
        let change = lease::commit(id, commit);
        let record = Record::of(id, commit);
        let (begun, mut failures, mut spilled) = (self.clock.moment(), 0_u32, Spilled::default());
        let mut waits = None;
        let outcome = loop {
            match self.store.apply(&change).await {
                Ok(Applied::Committed) => break Outcome::Refreshed,
                Ok(Applied::Lost(found)) => break superseded(&found, commit.generation),
                Err(error) => {
                    failures += 1;
                    waits.get_or_insert_with(|| metrics::UNCOMMITTED_ANSWERS.hold(&[]));
                    complain(&error, failures);
                    let hopeless = !error.is_transient()
                        || self.spill.is_hurried()
                        || self.clock.moment().since(begun) >= SPILL_AFTER;
                    let longest = Duration::from_secs(5).min(Duration::from_millis(100) * failures.min(50));
                    let pause = self.clock.sleep(longest.mul_f64(0.5 + self.entropy.unit() / 2.0));
                    if hopeless && self.spill.is_configured() && !spilled.done {
                        tokio::join!(self.put_in_spill(&record, &mut spilled), pause);
                    } else {
                        pause.await;
                    }
                }
            }
        };
        if spilled.tries > 0 {
            self.clear_spill(&record.name()).await;
        }
        outcome
    }

    /// Until every place has taken it: one that has not may be the only one that outlives this machine.
    async fn put_in_spill(&self, record: &Record, spilled: &mut Spilled) {
        spilled.tries += 1;
        match self.spill.put(record, &mut spilled.taken).await {
            Ok(()) => {
                spilled.done = true;
                metrics::SPILLED.add(&[], 1);
                error!(
                    alarm = "spilled",
                    "the table does not take new tokens: they are in the spill as well"
                );
            }
            Err(error) if spilled.tries == 1 || spilled.tries.is_multiple_of(20) => error!(
                alarm = "spill_failed",
                %error,
                tries = spilled.tries,
                "the table does not take new tokens, nor does every place of the spill: trying on"
            ),
            Err(error) => debug!(%error, "the spill does not take new tokens yet"),
        }
    }

    /// A record that stays is found to be superseded by whoever replays it.
    async fn clear_spill(&self, name: &Name) {
        if let Err(error) = self.spill.remove(name).await {
            warn!(%error, "a record could not be removed from the spill");
        }
    }

    /// Gives the lease back with what is known now. Where that cannot be written, the lease is found in doubt.
    async fn release(
        &self,
        held: &Held<'_>,
        known: Option<Known>,
        release: Release,
        reply: Option<Reply>,
    ) -> Report {
        let outcome = ended(&release);
        let change = lease::release(held.id, held.lease.generation, &release);
        loop {
            match self.store.apply(&change).await {
                Ok(Applied::Committed) => {
                    let lease = lease::released(&held.lease, &release);
                    return Report { outcome, known: known.map(|known| Known { lease, ..known }), reply };
                }
                Ok(Applied::Lost(_)) => return Report { outcome, known: None, reply },
                // While the lease lasts nobody else comes: what is known now is worth more than the wait.
                Err(error) if error.is_transient() && self.within_lease(held) => self.pause().await,
                Err(error) => {
                    warn!(%error, "could not give the lease back: it will be found in doubt");
                    return Report { outcome, known: None, reply };
                }
            }
        }
    }

    async fn give_up(&self, held: &Held<'_>, known: Option<Known>, why: &str) -> Report {
        let report = self.release(held, known, Release::NotNeeded, None).await;
        Report { outcome: Outcome::StoreUnavailable(why.to_owned()), ..report }
    }

    /// An item that cannot be understood now that it has been read whole, or whose secrets do not open: nothing is sent
    /// on a guess, and the next try has no hurry.
    async fn set_aside(&self, held: &Held<'_>, known: &Known, code: &str) -> Report {
        let (fails, expires_at) = (held.lease.fails.saturating_add(1), known.token.expires_at);
        let (now, unit) = (self.clock.now(), self.entropy.unit());
        let next_at = backoff::next_attempt(&self.policy.backoff, fails, expires_at, None, now, unit);
        let release = Release::Failed { code: code.into(), next_at, doubt: Doubt::Unchanged };
        self.release(held, Some(known.clone()), release, None).await
    }

    fn judge(&self) -> Judge<'_> {
        Judge {
            timing: &self.policy.timing,
            backoff: &self.policy.backoff,
            moment: self.clock.moment(),
            now: self.clock.now(),
            unit: self.entropy.unit(),
        }
    }

    fn within_window(&self, begun: Moment) -> bool {
        self.clock.moment().since(begun) < self.policy.timing.window()
    }

    fn within_lease(&self, held: &Held<'_>) -> bool {
        self.clock.moment().since(held.begun) < self.policy.timing.lease()
    }

    async fn pause(&self) {
        self.clock.sleep(Duration::from_millis(200).mul_f64(0.5 + self.entropy.unit())).await;
    }
}

/// How far an answer is on its way into the spill.
#[derive(Default)]
struct Spilled {
    tries: u32,
    taken: Taken,
    done: bool,
}

/// Why there is no partition to judge.
enum Unread {
    NoAnswer(String),
    Malformed(Malformed),
    /// A secret that does not open, or a key that is refused.
    Sealed(String),
}

enum Sent {
    Granted { tokens: Box<Tokens>, issued: Timestamp, attempt: Box<Attempt> },
    Not { release: Release, reply: Reply },
}

fn owner_of(id: &ClientId, item: &Item) -> Option<String> {
    decode_lease(id, item).ok()?.owner
}

/// Somebody else got there first: their lease is what is known now.
fn lost(known: &Known, stands: Option<&Item>) -> Report {
    let lease = stands.and_then(|item| decode_lease(&known.client.id, item).ok());
    let known = lease.map(|lease| Known { lease, ..known.clone() });
    Report { outcome: Outcome::Conflict, known, reply: None }
}

/// A commit whose condition failed: it had landed before, or something newer stands there, or the client is gone.
fn superseded(found: &[Option<Item>], generation: Gen) -> Outcome {
    let stored = found.iter().flatten().find_map(|item| match item.get(attr::TOK_GEN) {
        Some(Value::N(stored)) => Some(Gen(*stored)),
        _ => None,
    });
    match stored {
        Some(stored) if stored == generation => Outcome::Refreshed,
        Some(_) => Outcome::Conflict,
        None if found.iter().all(Option::is_none) => Outcome::Removed,
        None => {
            error!(
                alarm = "second_writer",
                "tok_gen is no number any more: the new tokens were not stored over it"
            );
            Outcome::Conflict
        }
    }
}

fn committed(held: &Held<'_>, client: Client, commit: &Commit) -> Known {
    let token = Token {
        generation: commit.generation,
        binding: Some(commit.binding.clone()),
        expires_at: Timestamp::from_secs(commit.expires_at.as_secs()),
        refresh_at: Some(commit.refresh_at),
        ..Token::stub(commit.generation)
    };
    Known { client: without_secrets(client), lease: held.lease.clone(), token }
}

/// What stays in memory of a registration: where its secrets are elsewhere, that remains known.
fn without_secrets(mut client: Client) -> Arc<Client> {
    client.credentials = client.credentials.without_values();
    Arc::new(client)
}

fn ended(release: &Release) -> Outcome {
    match release {
        Release::NotNeeded => Outcome::NotNeeded,
        Release::Failed { code, .. } => Outcome::Failed(code.clone()),
        Release::Hold { code, .. } => Outcome::Held(code.clone()),
        Release::Bury { code, .. } => Outcome::Dead(code.clone()),
    }
}

/// A provider that is said not to rotate and does: replays would burn grants.
fn note_drift(provider: &Provider, attempt: &Attempt, tokens: &Tokens) {
    let stored = attempt.token.as_ref().and_then(|token| token.refresh_token.as_ref());
    if !provider.rotates
        && tokens.refresh_token.is_some()
        && tokens.refresh_token.as_ref() != stored
        && stored.is_some()
    {
        error!(
            alarm = "rotation_drift",
            "the provider returned another refresh token, and is configured as not rotating: set \
             providers.{}.rotates = true",
            provider.name
        );
    }
}

fn complain(error: &StoreError, failures: u32) {
    if failures == 1 || failures.is_multiple_of(20) || !error.is_transient() {
        error!(
            alarm = "uncommitted_tokens",
            %error,
            failures,
            "new tokens are granted and not stored yet: retrying for as long as this process lives"
        );
    }
}

fn announce(report: &Report, now: Timestamp) {
    let code = report.outcome.code();
    match &report.outcome {
        Outcome::Refreshed => info!("refreshed"),
        Outcome::NotNeeded | Outcome::Conflict | Outcome::Removed => debug!("nothing to do"),
        Outcome::Dead(_) => {
            error!(alarm = "dead_grant", code, "the grant is gone: the customer has to consent again");
        }
        Outcome::Held(_) => error!(alarm = "in_doubt", code, "held in doubt: an operator has to decide"),
        Outcome::StoreUnavailable(_) => warn!(code, "the store gave no answer: nothing was sent"),
        Outcome::Failed(_) => {
            let escalates =
                report.known.as_ref().is_some_and(|k| outcome::escalates(&k.lease, k.token.expires_at, now));
            if escalates {
                error!(alarm = "expired", code, "still failing, and the token has expired");
            } else if code.is_some_and(outcome::needs_operator) {
                error!(
                    alarm = "misconfigured",
                    code, "failed, and will go on failing until the registration changes"
                );
            } else {
                warn!(code, "failed: will be tried again");
            }
        }
    }
}
