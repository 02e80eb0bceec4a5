//! What a reader may be given, and when the table is asked again: pure, on what was seen last.
//!
//! Invariant: a token is served only while *both* clocks agree that it is good. The steady one counts from the moment it
//! was seen, so that a step of the wall clock revives nothing; the wall clock also counts the time in which a
//! machine was frozen together with its steady clock (a snapshot, a Lambda sandbox).

use std::sync::Arc;
use std::time::Duration;

use super::written::Written;
use crate::record::Gen;
use crate::secret::Shared;
use crate::time::{Moment, Timestamp};

/// The daemon needs a moment from the time at which a refresh is due to the commit.
const REFRESH_TAKES: Duration = Duration::from_secs(1);
/// ... and readers of one token do not ask in one breath. That takes a quarter at most of what the token has left then.
const SPREAD: Duration = Duration::from_secs(2);
/// Between two looks for something that is overdue, at least and at most.
const EAGER: Duration = Duration::from_secs(1);
const PATIENT: Duration = Duration::from_secs(30);
/// Between two looks at a client whom only an operator or a customer can help.
const HELPLESS: Duration = Duration::from_secs(15);
/// How long a client that is not there is taken not to be.
const ABSENT: Duration = Duration::from_secs(5);
/// What is overdue for so long may have a reason that stands beside the token.
const TROUBLE: Duration = Duration::from_secs(60);
/// What comes from a copy is taken for so many times the age at which a token in use is confirmed; then the table itself
/// is asked: it alone knows of removals that nobody has heard of.
const WORD_OF_THE_TABLE: u32 = 12;
/// The wall clock is so far ahead of the steady one only after a thaw, or a step.
const JUMP: Duration = Duration::from_secs(10);

/// An access token, as the table had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessToken {
    /// The token.
    pub secret: Shared,
    /// As the provider spelt it.
    pub token_type: Option<String>,
    /// The granted scope, space separated.
    pub scope: Option<String>,
    /// Its expiry, to the second.
    pub expires_at: Timestamp,
    /// When the daemon will replace it.
    pub refresh_at: Option<Timestamp>,
    /// When the daemon stored it.
    pub stored_at: Option<Timestamp>,
    /// The generation that produced it.
    pub generation: Gen,
    /// What servers have written about it.
    pub written: Written,
}

impl AccessToken {
    /// Its type as HTTP spells it (RFC 6750): providers write `bearer` and `BEARER`, and some servers mind.
    pub fn scheme(&self) -> &str {
        match self.token_type.as_deref() {
            None => "Bearer",
            Some(kind) if kind.eq_ignore_ascii_case("bearer") => "Bearer",
            Some(kind) => kind,
        }
    }
}

/// How a client stands, beside its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Somebody sees to it that its token is good.
    Kept,
    /// No such client is registered.
    Absent,
    /// The provider said that its grant is gone.
    Dead(String),
    /// Its refresh token may be spent; an operator decides.
    Held(String),
    /// An operator paused it.
    Paused,
}

/// What the table said of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its access token, good or not.
    pub token: Option<AccessToken>,
    /// How it stands.
    pub standing: Standing,
    /// For how long after its replacement an access token still works; `None` for as long as it lives.
    pub overlap: Option<Duration>,
    /// When the request for it began.
    pub seen: Moment,
    /// The same, by the table's clock.
    pub seen_at: Timestamp,
}

/// What is known of a client, and how well the table answers about it.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The last that the table said, or a copy.
    pub sighting: Option<Arc<Sighting>>,
    /// Questions since then that had no answer.
    pub failures: u32,
    /// Whether the last of them was refused, so that no retry will cure it.
    pub refused: bool,
    /// Not to be asked about again before, unless somebody needs it.
    pub check_at: Moment,
    /// When the last question began; `None` before the first.
    pub asked: Option<Now>,
    /// When the last question began that was put to the table itself, answered or not.
    pub asked_table: Option<Moment>,
    /// When the table itself last told something: before that, what stands beside the token is not known.
    pub told: Option<Moment>,
    /// Since when a newer token than the one that is known is expected, before its time.
    pub expected: Option<Moment>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether the token that is known is still the one; or any, where none is known.
    Which,
    /// A newer one than is known.
    Newer,
    /// What the table itself says.
    Table,
}

/// The two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Steady time.
    pub moment: Moment,
    /// Wall time, by the table's clock.
    pub wall: Timestamp,
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The token must live for longer than this.
    pub min_ttl: Duration,
    /// It must be of a later generation.
    pub after: Option<Gen>,
}

/// A token that is good.
#[derive(Clone, Debug)]
pub struct Served {
    /// What it comes from; it has a token.
    pub sighting: Arc<Sighting>,
    /// How long it lives from now.
    pub remaining: Duration,
    /// How long ago the table said so.
    pub age: Duration,
    /// The table ought to have been asked since then, and gave no answer.
    pub stale: bool,
}

impl Served {
    /// The token.
    pub fn token(&self) -> &AccessToken {
        self.sighting.token.as_ref().expect("only what has a token is served")
    }
}

/// Why there is no token to give.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such client.
    #[error("there is no such client")]
    Absent,
    /// Its grant is gone: the customer has to consent again. With the provider's code.
    #[error("its grant is gone ({0}): the customer has to consent again")]
    Dead(String),
    /// Held in doubt: an operator has to decide. With the code.
    #[error("it is held ({0}): an operator has to decide")]
    Held(String),
    /// Paused by an operator, and its token has expired.
    #[error("an operator paused it, and its token has expired")]
    Paused,
    /// Its first token is yet to come.
    #[error("its first token is yet to come")]
    Pending(Duration),
    /// Its token has expired, and the next is late.
    #[error("its token has expired, and the next is late")]
    Expired(Duration),
    /// Its token lives, and for less than was asked for.
    #[error("its token lives for less than was asked for")]
    ShortLived(Duration),
    /// There is none of a later generation yet.
    #[error("there is no newer token yet")]
    NoNewer(Duration),
    /// The table gives no answer, and nothing good is known.
    #[error("the table gives no answer, and no good token is known")]
    Unavailable(Duration),
    /// The table refuses: rights or keys are missing.
    #[error("the table refuses: rights or keys are missing")]
    Forbidden,
}

/// What to do about a request.
#[derive(Clone, Debug)]
pub enum Judgement {
    /// Here it is.
    Serve(Served),
    /// The table has to be asked first.
    Ask,
    /// A newer token is expected in so long: it can be waited for. If not, this is the answer.
    Await(Duration, Refusal),
    /// There is none, and none is expected.
    Refuse(Refusal),
}

impl Sighting {
    /// How long its token lives from `now`: what both clocks grant.
    pub fn remaining(&self, now: Now) -> Duration {
        let Some(token) = &self.token else { return Duration::ZERO };
        let granted = token.expires_at.since(self.seen_at);
        let steady = granted.saturating_sub(now.moment.since(self.seen));
        steady.min(token.expires_at.since(now.wall))
    }

    /// In how long the token's successor is due, as far as the table said; zero where it is overdue.
    fn due_in(&self, now: Now) -> Duration {
        self.token.as_ref().map_or(Duration::ZERO, |token| due(token).since(now.wall))
    }

    /// Whether a token that a newer one may have replaced is still good with certainty.
    fn is_within_overlap(&self, now: Now) -> bool {
        let Some(overlap) = self.overlap else { return true };
        let confirmed = now.moment.since(self.seen).max(now.wall.since(self.seen_at)) <= overlap;
        let due = self.token.as_ref().map_or(Timestamp::EPOCH, due);
        confirmed || now.wall <= due.plus(overlap)
    }
}

/// Judges a request by what is known.
pub fn judge(entry: &Entry, want: Want, now: Now) -> Judgement {
    let may_ask = is_due(entry, now);
    let wait = retry_in(entry, now);
    let Some(sighting) = &entry.sighting else {
        return match may_ask {
            true => Judgement::Ask,
            false if entry.refused => Judgement::Refuse(Refusal::Forbidden),
            false => Judgement::Refuse(Refusal::Unavailable(wait)),
        };
    };
    let remaining = sighting.remaining(now);
    if remaining.is_zero() {
        return if may_ask { Judgement::Ask } else { without_token(entry, sighting, wait) };
    }
    if !sighting.is_within_overlap(now) || is_unexplained(entry, sighting, now) && may_ask {
        return if may_ask { Judgement::Ask } else { Judgement::Refuse(Refusal::Unavailable(wait)) };
    }
    let due_in = sighting.due_in(now);
    if want.after.is_some_and(|after| generation(sighting) <= after) {
        return Judgement::Await(Duration::ZERO, Refusal::NoNewer(due_in.max(EAGER)));
    }
    if remaining <= want.min_ttl {
        return short_lived(sighting, due_in);
    }
    let age = now.moment.since(sighting.seen);
    Judgement::Serve(Served { sighting: Arc::clone(sighting), remaining, age, stale: entry.failures > 0 })
}

fn without_token(entry: &Entry, sighting: &Sighting, wait: Duration) -> Judgement {
    match &sighting.standing {
        _ if entry.refused => Judgement::Refuse(Refusal::Forbidden),
        _ if entry.failures > 0 => Judgement::Refuse(Refusal::Unavailable(wait)),
        Standing::Absent => Judgement::Refuse(Refusal::Absent),
        Standing::Dead(code) => Judgement::Refuse(Refusal::Dead(code.clone())),
        Standing::Held(code) => Judgement::Refuse(Refusal::Held(code.clone())),
        Standing::Paused => Judgement::Refuse(Refusal::Paused),
        Standing::Kept if sighting.token.is_none() => {
            Judgement::Await(Duration::ZERO, Refusal::Pending(wait))
        }
        Standing::Kept => Judgement::Await(Duration::ZERO, Refusal::Expired(wait)),
    }
}

fn short_lived(sighting: &Sighting, due_in: Duration) -> Judgement {
    let refusal = Refusal::ShortLived(due_in.saturating_add(REFRESH_TAKES));
    match sighting.standing {
        Standing::Kept => Judgement::Await(due_in, refusal),
        _ => Judgement::Refuse(refusal),
    }
}

/// Of a copy it is not known for how long its token works once it is replaced: the table is asked then, unless it has just
/// given no answer.
fn is_unexplained(entry: &Entry, sighting: &Sighting, now: Now) -> bool {
    entry.told.is_none() && entry.failures == 0 && sighting.due_in(now).is_zero()
}

/// Whether what a copy says is no step back: a good token of a later generation than is known, or the very one that is
/// known. Where the table said that there is none, a copy does not know better.
pub fn is_usable(copy: &Sighting, known: &Entry, now: Now) -> bool {
    if copy.remaining(now).is_zero() {
        return false;
    }
    known.sighting.as_ref().is_none_or(|known| {
        known.token.is_some() && (generation(copy) > generation(known) || copy.token == known.token)
    })
}

/// Whether a usable copy makes a question to the table needless: its token is not about to be replaced, and is newer than
/// what is known, or the same where that is all that was asked and no newer one is expected. Beyond the first time the table
/// must have been asked lately.
pub fn suffices(copy: &Sighting, known: &Entry, question: Question, max_age: Duration, now: Now) -> bool {
    let is_replaced = copy.due_in(now).is_zero();
    let Some(sighting) = &known.sighting else { return question != Question::Table && !is_replaced };
    let lately = known.asked_table.is_some_and(|asked| {
        known.told.is_some() && now.moment.since(asked) < max_age.saturating_mul(WORD_OF_THE_TABLE)
    });
    let is_newer = generation(copy) > generation(sighting);
    let fits = match question {
        Question::Which => is_newer || known.expected.is_none(),
        Question::Newer => is_newer,
        Question::Table => false,
    };
    lately && fits && !is_replaced
}

fn generation(sighting: &Sighting) -> Gen {
    sighting.token.as_ref().map_or(Gen::NONE, |token| token.generation)
}

/// Whether the table is to be asked, with or without somebody who needs it.
pub fn is_due(entry: &Entry, now: Now) -> bool {
    has_jumped(entry, now) || now.moment >= entry.check_at
}

/// Whether the machine was frozen since the last question, or its clock set: what was planned on the steady clock means
/// nothing any more.
pub fn has_jumped(entry: &Entry, now: Now) -> bool {
    entry.asked.is_some_and(|then| now.wall.since(then.wall) > now.moment.since(then.moment) + JUMP)
}

/// When to ask again, in seconds that a client can be told.
fn retry_in(entry: &Entry, now: Now) -> Duration {
    entry.check_at.since(now.moment).max(EAGER)
}

/// Whether more than the token has to be looked at: what stands beside it explains why there is none.
pub fn looks_closer(entry: &Entry, now: Now) -> bool {
    let Some(sighting) = &entry.sighting else { return true };
    entry.told.is_none()
        || sighting.remaining(now).is_zero()
        || sighting.standing != Standing::Kept
        || sighting.token.as_ref().is_none_or(|token| now.wall.since(due(token)) > TROUBLE)
}

/// What is known once the table has answered. `unit` is in `[0, 1)`.
pub fn confirmed(sighting: Sighting, max_age: Duration, now: Now, unit: f64) -> Entry {
    let check_at = now.moment.plus(next_look(&sighting, max_age, now, unit));
    let asked = Now { moment: sighting.seen, wall: sighting.seen_at };
    Entry {
        sighting: Some(Arc::new(sighting)),
        failures: 0,
        refused: false,
        check_at,
        asked: Some(asked),
        asked_table: Some(asked.moment),
        told: Some(asked.moment),
        expected: None,
    }
}

/// What is known once a copy has sufficed. The table is asked for the first time well before the token is replaced.
pub fn copied(copy: Sighting, known: &Entry, asked: Now, max_age: Duration, now: Now, unit: f64) -> Entry {
    let mut next = next_look(&copy, max_age, now, unit);
    if known.told.is_none() {
        next = max_age.mul_f64(0.1 + unit * 0.9).min(copy.due_in(now) / 2).max(EAGER).min(next);
    }
    Entry {
        sighting: Some(Arc::new(copy)),
        failures: 0,
        refused: false,
        check_at: now.moment.plus(next),
        asked: Some(asked),
        ..known.clone()
    }
}

/// What is known once it has not.
pub fn failed(entry: &Entry, refused: bool, asked: Now, now: Now, unit: f64) -> Entry {
    let failures = entry.failures.saturating_add(1);
    let pause = PATIENT.min(EAGER * 2_u32.saturating_pow(failures.min(6) - 1)).mul_f64(0.5 + unit / 2.0);
    Entry {
        sighting: entry.sighting.clone(),
        failures,
        refused,
        check_at: now.moment.plus(pause),
        asked: Some(asked),
        asked_table: Some(asked.moment),
        told: entry.told,
        expected: None,
    }
}

/// What is known once a question has brought `entry`, with `known` before it. Where a newer token is expected, and this is none, it
/// is looked for again, less and less often and for a minute; a look that is still to come is not put off. `meanwhile`, if
/// that became known after the question had begun.
pub fn learned(entry: Entry, known: &Entry, meanwhile: bool, now: Moment, unit: f64) -> Entry {
    let of = |entry: &Entry| entry.sighting.as_ref().map(|sighting| generation(sighting));
    let waited = known.expected.map(|since| now.since(since));
    let Some(waited) = waited.filter(|waited| *waited < TROUBLE && of(&entry) <= of(known)) else {
        return Entry { expected: None, ..entry };
    };
    let began_before = entry.asked.is_some_and(|asked| asked.moment < known.check_at);
    let next = if began_before { known.check_at } else { now.plus(overdue(waited, unit)) };
    let asked_table = entry.asked_table.filter(|_| !meanwhile);
    Entry { check_at: entry.check_at.min(next), asked_table, expected: known.expected, ..entry }
}

fn next_look(sighting: &Sighting, max_age: Duration, now: Now, unit: f64) -> Duration {
    let good = sighting.token.as_ref().filter(|_| !sighting.remaining(now).is_zero());
    let Some(token) = good else {
        return match (&sighting.standing, &sighting.token) {
            (Standing::Absent, _) => ABSENT,
            (Standing::Kept, Some(token)) => overdue(now.wall.since(token.expires_at), unit),
            (Standing::Kept, None) => EAGER.mul_f64(1.0 + unit),
            _ => HELPLESS,
        };
    };
    let regular = max_age.mul_f64(0.9 + unit / 10.0);
    let due = due(token);
    if due > now.wall {
        let spread = SPREAD.min(token.expires_at.since(due) / 4);
        let expected = due.since(now.wall) + REFRESH_TAKES + spread.mul_f64(unit);
        return expected.min(regular);
    }
    overdue(now.wall.since(due), unit).min(sighting.remaining(now)).max(EAGER.mul_f64(0.5))
}

/// The longer something is overdue, the less often it is looked for.
fn overdue(since: Duration, unit: f64) -> Duration {
    since.mul_f64(0.3 + unit * 0.2).clamp(EAGER, PATIENT)
}

/// When the daemon will replace it; a table without `refresh_at` is not kept by a daemon, or by an old one.
fn due(token: &AccessToken) -> Timestamp {
    token.refresh_at.unwrap_or_else(|| token.expires_at.minus(TROUBLE))
}

#[cfg(test)]
mod tests;
