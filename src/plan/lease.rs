//! The lease: who may refresh a client, and what each step of a refresh writes.
//!
//! `gen` is a fencing number: every acquire raises it, and the stored tokens carry the `gen` that produced them
//! (`tok_gen`). So the state of a client is a comparison of two numbers, success needs no release, and an attempt
//! that comes late can never overwrite what is newer. No clock takes part in any condition.

use std::time::Duration;

use crate::client::{Binding, ClientId, Grant};
use crate::item::{Action, Assignment, Change, Condition, Key, Value, attr};
use crate::record::{Gen, Lease, State, Token};
use crate::reply::Tokens;
use crate::time::Timestamp;

/// How long a token item of a mintable grant outlives its token before DynamoDB's TTL may delete it.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// The longest `err`, in bytes: `LEASE` stays under 1 KB, which is one write unit.
const ERROR_LEN: usize = 64;

/// What the two generations say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may be acquired.
    Free,
    /// An attempt is under way, or its owner died.
    InDoubt,
    /// An operator decides.
    Held,
    /// The provider said that the grant is gone.
    Dead,
    /// There is no such client any more.
    Removed,
    /// A newer version wrote a state that this one does not know.
    Unknown,
}

/// What a lease means beside tokens of this generation.
pub fn standing(lease: &Lease, tok_gen: Gen) -> Standing {
    // A newer token voids what was said about an older one.
    let void = lease.of.is_some_and(|of| tok_gen > of);
    match &lease.state {
        State::Idle => Standing::Free,
        State::InFlight if tok_gen >= lease.generation => Standing::Free,
        State::InFlight => Standing::InDoubt,
        State::Held | State::Dead if void => Standing::Free,
        State::Held => Standing::Held,
        State::Dead => Standing::Dead,
        State::Removed => Standing::Removed,
        State::Unknown(_) => Standing::Unknown,
    }
}

/// Who acquires, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// `<incarnation>#<nonce>`, new for each attempt: by it an attempt recognises its own write.
    pub owner: String,
    /// The lease's length.
    pub lease: Duration,
    /// Wall time, for people who read the table.
    pub now: Timestamp,
}

/// The write-ahead intent: it raises `gen`, on the state as it was seen. Also returns the lease as it will stand.
/// `None` where the plan knows that the client is not to be acquired. A lease in doubt may be acquired (a take-over),
/// once its wait is over; the doubt is written in the same breath, so that it survives the taker's own death.
pub fn acquire(id: &ClientId, seen: &Lease, tok_gen: Gen, intent: &Intent) -> Option<(Change, Lease)> {
    // Above the tokens too, where a tool that keeps to no protocol has numbered them: else no answer could be stored.
    let generation = seen.generation.max(tok_gen).next();
    let lease_ms = i64::try_from(intent.lease.as_millis()).unwrap_or(i64::MAX);
    let mut next = Lease {
        generation,
        state: State::InFlight,
        owner: Some(intent.owner.clone()),
        lease_ms,
        intended_at: Some(intent.now),
        ..seen.clone()
    };
    let mut assignments = vec![
        Assignment::Set(attr::GEN, Value::N(generation.0)),
        Assignment::Set(attr::ST, Value::S(State::InFlight.as_str().to_owned())),
        Assignment::Set(attr::OWN, Value::S(intent.owner.clone())),
        Assignment::Set(attr::LEASE_MS, Value::N(lease_ms)),
        Assignment::Set(attr::INT_AT, Value::N(intent.now.as_millis())),
    ];
    match (standing(seen, tok_gen), &seen.state) {
        (Standing::Free, State::Idle) => {}
        (Standing::Free, _) => {
            assignments.extend(clean_slate());
            next = Lease { next_at: None, fails: 0, error: None, of: None, doubt: None, ..next };
        }
        (Standing::InDoubt, _) => {
            let sends = seen.doubt_about(tok_gen).unwrap_or(0).saturating_add(1);
            assignments.extend(doubt(tok_gen, sends));
            next.doubt = Some((tok_gen, sends));
        }
        _ => return None,
    }
    let condition = stands(seen.generation, &seen.state);
    Some((Change::one(Key::Lease(id.clone()), condition, Action::Update(assignments)), next))
}

/// The lease is as it was seen.
pub(super) fn stands(generation: Gen, state: &State) -> Condition {
    Condition::All(vec![
        Condition::Equals(attr::GEN, Value::N(generation.0)),
        Condition::Equals(attr::ST, Value::S(state.as_str().to_owned())),
    ])
}

fn clean_slate() -> Vec<Assignment> {
    let mut assignments = vec![Assignment::Set(attr::FAILS, Value::N(0))];
    let past = [attr::NEXT_AT, attr::ERR, attr::OF, attr::DBT, attr::DBT_SENDS];
    assignments.extend(past.map(Assignment::Remove));
    assignments
}

fn doubt(tok_gen: Gen, sends: u32) -> [Assignment; 2] {
    [
        Assignment::Set(attr::DBT, Value::N(tok_gen.0)),
        Assignment::Set(attr::DBT_SENDS, Value::N(i64::from(sends))),
    ]
}

/// The tokens to store, with everything that is stored beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The attempt's generation.
    pub generation: Gen,
    /// What the provider granted.
    pub tokens: Tokens,
    /// Expiry of the access token.
    pub expires_at: Timestamp,
    /// When to refresh it.
    pub refresh_at: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// The registration that obtained them.
    pub binding: Binding,
    /// Of which grant.
    pub grant: Grant,
    /// Whether there was a token item when the attempt read the partition.
    pub item_exists: bool,
}

/// Stores the tokens, unless something newer is stored. One condition serves the punctual holder and the one that
/// woke late with the only live token. What the answer omits is not mentioned, and so stays.
pub fn commit(id: &ClientId, commit: &Commit) -> Change {
    let generation = commit.generation.0;
    let older =
        Condition::Any(vec![Condition::Lacks(attr::TOK_GEN), Condition::Below(attr::TOK_GEN, generation)]);
    let action = Action::Update(committed(commit));
    let token = Key::Token(id.clone());
    if commit.item_exists {
        return Change::one(token, Condition::All(vec![Condition::Exists, older]), action);
    }
    // A plain commit never creates an item: it could bring a removed client back.
    let mine = stands(commit.generation, &State::InFlight);
    let absent_or_older =
        Condition::Any(vec![Condition::Absent, Condition::Below(attr::TOK_GEN, generation)]);
    Change::one(Key::Lease(id.clone()), mine, Action::Check).and(token, absent_or_older, action)
}

fn committed(commit: &Commit) -> Vec<Assignment> {
    let Commit { tokens, .. } = commit;
    let mut assignments = vec![
        Assignment::Set(attr::ACCESS_TOKEN, Value::Secret(tokens.access_token.clone())),
        Assignment::Set(attr::EXPIRES_AT, Value::N(commit.expires_at.as_secs())),
        Assignment::Set(attr::REFRESH_AT, Value::N(commit.refresh_at.as_millis())),
        Assignment::Set(attr::LAST_UPDATED, Value::S(commit.now.to_string())),
        Assignment::Set(attr::BND, Value::S(commit.binding.0.clone())),
        Assignment::Set(attr::TOK_GEN, Value::N(commit.generation.0)),
        ttl(commit.grant, tokens.refresh_token.is_some(), commit.expires_at),
    ];
    let optional = [
        (attr::REFRESH_TOKEN, tokens.refresh_token.clone().map(Value::Secret)),
        (attr::TOKEN_TYPE, tokens.token_type.clone().map(Value::S)),
        (attr::SCOPE, tokens.scope.clone().map(Value::S)),
    ];
    assignments.extend(optional.into_iter().filter_map(|(name, value)| Some(Assignment::Set(name, value?))));
    assignments
}

/// An item that holds a refresh token must never expire: DynamoDB's TTL deletes the whole item.
fn ttl(grant: Grant, has_refresh_token: bool, expires_at: Timestamp) -> Assignment {
    if grant.needs_refresh_token() || has_refresh_token {
        Assignment::Remove(attr::TTL)
    } else {
        Assignment::Set(attr::TTL, Value::N(expires_at.plus(RETENTION).as_secs()))
    }
}

/// Takes a `ttl` off a token item that must not expire, if the item is still the one that was read.
pub fn repair_ttl(id: &ClientId, token: &Token) -> Option<Change> {
    let ttl = token.ttl?;
    let condition = Condition::Equals(attr::TTL, Value::N(ttl.as_secs()));
    Some(Change::one(Key::Token(id.clone()), condition, Action::Update(vec![Assignment::Remove(attr::TTL)])))
}

/// How an attempt ends that stored nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// It was not needed after all: no failure, nothing else changes.
    NotNeeded,
    /// It failed, and will be tried again.
    Failed {
        /// What happened.
        code: String,
        /// Not before.
        next_at: Timestamp,
        /// What is known about the refresh token now.
        doubt: Doubt,
    },
    /// An operator decides: the refresh token of `of` may be spent.
    Hold {
        /// What happened.
        code: String,
        /// The stored token's generation.
        of: Gen,
        /// Unanswered sends.
        sends: u32,
    },
    /// The provider said that the grant which left the tokens of `of` is gone.
    Bury {
        /// What it said.
        code: String,
        /// The stored token's generation.
        of: Gen,
    },
}

/// What an attempt that failed leaves behind about the refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// As it was.
    Unchanged,
    /// The refresh token of this generation may be spent, after so many unanswered sends.
    About(Gen, u32),
    /// The endpoint has judged the refresh token: there is no doubt any more.
    Ended,
}

/// Gives the lease back, if it is still this attempt's.
pub fn release(id: &ClientId, generation: Gen, release: &Release) -> Change {
    let state = |state: State| Assignment::Set(attr::ST, Value::S(state.as_str().to_owned()));
    let failed =
        |code: &str| [Assignment::Add(attr::FAILS, 1), Assignment::Set(attr::ERR, Value::S(clip(code)))];
    let mut assignments = Vec::new();
    match release {
        Release::NotNeeded => assignments.push(state(State::Idle)),
        Release::Failed { code, next_at, doubt: about } => {
            assignments.push(state(State::Idle));
            assignments.extend(failed(code));
            assignments.push(Assignment::Set(attr::NEXT_AT, Value::N(next_at.as_millis())));
            assignments.extend(doubt_after(*about));
        }
        Release::Hold { code, of, sends } => {
            assignments.push(state(State::Held));
            assignments.extend(failed(code));
            assignments.push(Assignment::Set(attr::OF, Value::N(of.0)));
            assignments.extend(doubt(*of, *sends));
        }
        Release::Bury { code, of } => {
            assignments.push(state(State::Dead));
            assignments.extend(failed(code));
            assignments.push(Assignment::Set(attr::OF, Value::N(of.0)));
            assignments.extend(doubt_after(Doubt::Ended));
        }
    }
    let condition = stands(generation, &State::InFlight);
    Change::one(Key::Lease(id.clone()), condition, Action::Update(assignments))
}

/// Gives back a lease whose acquire went unanswered: whatever `gen` it was given.
pub fn abandon(id: &ClientId, owner: &str) -> Change {
    let mine = Condition::All(vec![
        Condition::Equals(attr::OWN, Value::S(owner.to_owned())),
        Condition::Equals(attr::ST, Value::S(State::InFlight.as_str().to_owned())),
    ]);
    let idle = Assignment::Set(attr::ST, Value::S(State::Idle.as_str().to_owned()));
    Change::one(Key::Lease(id.clone()), mine, Action::Update(vec![idle]))
}

fn doubt_after(about: Doubt) -> Vec<Assignment> {
    match about {
        Doubt::Unchanged => Vec::new(),
        Doubt::About(tok_gen, sends) => doubt(tok_gen, sends).to_vec(),
        Doubt::Ended => vec![Assignment::Remove(attr::DBT), Assignment::Remove(attr::DBT_SENDS)],
    }
}

/// The lease as it stands after such a release, for the memory of whoever released it.
pub fn released(held: &Lease, release: &Release) -> Lease {
    let failed = |code: &str, state| Lease {
        state,
        fails: held.fails.saturating_add(1),
        error: Some(clip(code)),
        ..held.clone()
    };
    match release {
        Release::NotNeeded => Lease { state: State::Idle, ..held.clone() },
        Release::Failed { code, next_at, doubt } => Lease {
            next_at: Some(*next_at),
            doubt: match doubt {
                Doubt::Unchanged => held.doubt,
                Doubt::About(tok_gen, sends) => Some((*tok_gen, *sends)),
                Doubt::Ended => None,
            },
            ..failed(code, State::Idle)
        },
        Release::Hold { code, of, sends } => {
            Lease { of: Some(*of), doubt: Some((*of, *sends)), ..failed(code, State::Held) }
        }
        Release::Bury { code, of } => Lease { of: Some(*of), doubt: None, ..failed(code, State::Dead) },
    }
}

fn clip(code: &str) -> String {
    let printable = code.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
    printable.take(ERROR_LEN).collect()
}
