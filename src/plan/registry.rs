//! What operators write: registration, changes, removal, outside tokens, adoption.
//!
//! Each is one change, conditional on what was read. They are rare, so the double price of a transaction does not
//! matter; that nothing is half-written does. `gen` goes on growing through all of them, removal included: an old
//! attempt in flight must never land on a client registered anew under the same id.

use std::time::Duration;

use super::lease::{Standing, standing, stands};
use super::ownership::shard_of;
use crate::client::credentials::{Credential, Credentials};
use crate::client::{Binding, Client, ClientId};
use crate::item::{Action, Assignment, Change, Condition, Item, Key, Value, attr};
use crate::record::{Gen, Lease, Snapshot, State, Token, encode_config, reference, stored};
use crate::secret::Secret;
use crate::time::Timestamp;

/// How long a tombstone stands before DynamoDB's TTL may delete it.
const TOMBSTONE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Tokens that an operator brings in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// An access token, if there is one that is still good.
    pub access_token: Option<Secret>,
    /// The refresh token.
    pub refresh_token: Option<Secret>,
    /// The access token's type.
    pub token_type: Option<String>,
    /// The granted scope.
    pub scope: Option<String>,
    /// Expiry of the access token; the epoch where it is not known, which makes the client due at once.
    pub expires_at: Timestamp,
    /// When to refresh it.
    pub refresh_at: Option<Timestamp>,
}

impl Imported {
    /// Nothing: the daemon mints the first token.
    pub fn nothing() -> Self {
        Self {
            access_token: None,
            refresh_token: None,
            token_type: None,
            scope: None,
            expires_at: Timestamp::EPOCH,
            refresh_at: None,
        }
    }

    /// Whether the client's grant has use for them. It is asked before anything is overwritten.
    pub(crate) fn fit(&self, client: &Client) -> Result<(), Refusal> {
        if self.refresh_token.is_some() && !client.grant.needs_refresh_token() {
            return Err(Refusal::NoRefreshToken(client.id.clone()));
        }
        Ok(())
    }

    /// In the place of the tokens that stand there, if any; attributes that are not known here stay.
    fn assignments(&self, generation: Gen, binding: &Binding, now: Timestamp) -> Vec<Assignment> {
        let known = [
            (attr::ACCESS_TOKEN, self.access_token.clone().map(Value::Secret)),
            (attr::REFRESH_TOKEN, self.refresh_token.clone().map(Value::Secret)),
            (attr::TOKEN_TYPE, self.token_type.clone().map(Value::S)),
            (attr::SCOPE, self.scope.clone().map(Value::S)),
            (attr::REFRESH_AT, self.refresh_at.map(|at| Value::N(at.as_millis()))),
            (attr::EXPIRES_AT, Some(Value::N(self.expires_at.as_secs()))),
            (attr::LAST_UPDATED, Some(Value::S(now.to_string()))),
            (attr::TOK_GEN, Some(Value::N(generation.0))),
            (attr::BND, Some(Value::S(binding.0.clone()))),
            (attr::TTL, None),
        ];
        known.into_iter().map(|(name, value)| assign(name, value)).collect()
    }
}

fn assign(name: &'static str, value: Option<Value>) -> Assignment {
    value.map_or(Assignment::Remove(name), |value| Assignment::Set(name, value))
}

/// Why a registration cannot be planned from what was read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// It is there already.
    #[error(
        "client `{0}` is registered already: change it by `perennial clients apply`, give it new tokens by `perennial \
         clients import-token {0}`, or look at it with `perennial clients show {0}`"
    )]
    Exists(ClientId),
    /// It is not there.
    #[error("client `{0}` is not registered: see `perennial clients list`")]
    NotRegistered(ClientId),
    /// The grant needs a refresh token and none was given.
    #[error(
        "client `{0}`: the grant refresh_token needs a refresh token, and there is none: give one from stdin, a file \
         or the environment (`refresh_token = {{ env = \"...\" }}`, or `--refresh-token-file`)"
    )]
    NeedsRefreshToken(ClientId),
    /// The grant has none, and one was given.
    #[error(
        "client `{0}`: the grant client_credentials has no refresh token, and one is given: leave it out, or use the \
         grant refresh_token"
    )]
    NoRefreshToken(ClientId),
    /// A live grant would be overwritten.
    #[error(
        "client `{0}` has a live refresh token: a repeated import would put a spent one in its place. If this one is \
         newer, say so by --replace (`clients apply`: --replace {0})"
    )]
    LiveGrant(ClientId),
    /// Its refresh token is of no use to the changed registration.
    #[error(
        "client `{0}`: {1} changes, and its refresh token is of use with the old one alone: obtain what the new one \
         needs, give it, and say --replace {0}"
    )]
    Moved(ClientId, &'static str),
    /// What stands there does not fit together.
    #[error("client `{0}`: {1}")]
    Inconsistent(ClientId, String),
}

/// Registers a client with its first tokens, as one transaction: over nothing, over a tombstone, or over a token
/// item that another tool wrote (adoption).
pub fn register(
    client: &Client,
    read: &Snapshot,
    tokens: &Imported,
    binding: &Binding,
    shards: u32,
    now: Timestamp,
) -> Result<Change, Refusal> {
    let id = &client.id;
    if read.client().is_some() {
        return Err(Refusal::Exists(id.clone()));
    }
    tokens.fit(client)?;
    let config_absent = Condition::Any(vec![Condition::Absent, Condition::Has(attr::GONE)]);
    let config = Action::Put(encode_config(client, shard_of(id, shards)));
    let lease_key = Key::Lease(id.clone());
    let (generation, lease_condition) = match &read.lease {
        None => (first_generation(read), Condition::Absent),
        Some(lease) if lease.state == State::Removed => {
            (lease.generation.next().max(first_generation(read)), stands(lease.generation, &lease.state))
        }
        Some(_) => {
            let problem =
                "its LEASE item is there without a CONFIG item; remove it by hand if nothing uses it";
            return Err(Refusal::Inconsistent(id.clone(), problem.into()));
        }
    };
    let lease = Action::Put(idle(generation));
    let change =
        Change::one(Key::Config(id.clone()), config_absent, config).and(lease_key, lease_condition, lease);
    let (condition, action) = first_tokens(client, read, tokens, generation, binding, now)?;
    Ok(change.and(Key::Token(id.clone()), condition, action))
}

/// A token item that another tool wrote may carry generations of its own: ours start at least there.
fn first_generation(read: &Snapshot) -> Gen {
    read.tok_gen().max(Gen::FIRST)
}

fn first_tokens(
    client: &Client,
    read: &Snapshot,
    tokens: &Imported,
    generation: Gen,
    binding: &Binding,
    now: Timestamp,
) -> Result<(Condition, Action), Refusal> {
    match &read.token {
        Some(found) if tokens.refresh_token.is_none() => adopt(client, found, generation, binding, now),
        // Nothing depends on what stands there: what was given is newer, and was given on purpose.
        Some(found) => Ok((unchanged(found), Action::Update(tokens.assignments(generation, binding, now)))),
        None if client.grant.needs_refresh_token() && tokens.refresh_token.is_none() => {
            Err(Refusal::NeedsRefreshToken(client.id.clone()))
        }
        None => Ok((Condition::Absent, Action::Update(tokens.assignments(generation, binding, now)))),
    }
}

/// Takes over a token item in the single-item form, leaving its tokens and its unknown attributes as they are.
fn adopt(
    client: &Client,
    found: &Token,
    generation: Gen,
    binding: &Binding,
    now: Timestamp,
) -> Result<(Condition, Action), Refusal> {
    if client.grant.needs_refresh_token() && found.refresh_token.is_none() {
        return Err(Refusal::NeedsRefreshToken(client.id.clone()));
    }
    // Written again as it is: what is sealed speaks of its generation.
    let again =
        found.access_token.clone().map(|token| Assignment::Set(attr::ACCESS_TOKEN, Value::Secret(token)));
    let mut assignments = vec![
        Assignment::Set(attr::TOK_GEN, Value::N(generation.0)),
        Assignment::Set(attr::BND, Value::S(binding.0.clone())),
        Assignment::Set(attr::LAST_UPDATED, Value::S(now.to_string())),
        Assignment::Remove(attr::TTL),
    ];
    assignments.extend(again);
    Ok((unchanged(found), Action::Update(assignments)))
}

/// The item still holds the refresh token that was read.
fn unchanged(found: &Token) -> Condition {
    match &found.refresh_token {
        Some(seen) => Condition::Equals(attr::REFRESH_TOKEN, Value::Secret(seen.clone())),
        None => Condition::Lacks(attr::REFRESH_TOKEN),
    }
}

fn idle(generation: Gen) -> Item {
    Item::default()
        .with(attr::GEN, Value::N(generation.0))
        .with(attr::ST, Value::S(State::Idle.as_str().into()))
}

/// Puts new tokens in the place of whatever is stored: an import, a new consent, or another registration of the
/// same client. What is in flight is fenced out. With `client`, `CONFIG` changes in the same transaction.
pub fn outside_write(
    id: &ClientId,
    read: &Snapshot,
    tokens: &Imported,
    binding: &Binding,
    client: Option<(&Client, u32)>,
    now: Timestamp,
) -> Result<Change, Refusal> {
    let (Some(registered), Some(lease)) = (read.client(), &read.lease) else {
        return Err(Refusal::NotRegistered(id.clone()));
    };
    tokens.fit(client.map_or(registered, |(client, _)| client))?;
    // Above what stands there, whoever has numbered it: this is how an operator ends another tool's mischief.
    let generation = lease.generation.max(read.tok_gen()).next();
    let revived = vec![
        Assignment::Set(attr::GEN, Value::N(generation.0)),
        Assignment::Set(attr::ST, Value::S(State::Idle.as_str().to_owned())),
        Assignment::Set(attr::FAILS, Value::N(0)),
    ];
    let past = [
        attr::OWN,
        attr::LEASE_MS,
        attr::INT_AT,
        attr::NEXT_AT,
        attr::ERR,
        attr::OF,
        attr::DBT,
        attr::DBT_SENDS,
    ];
    let revived = revived.into_iter().chain(past.map(Assignment::Remove)).collect();
    let seen = Condition::Equals(attr::GEN, Value::N(lease.generation.0));
    let older = Condition::Any(vec![
        Condition::Absent,
        Condition::Lacks(attr::TOK_GEN),
        Condition::Below(attr::TOK_GEN, generation.0),
    ]);
    let announce = match client {
        Some((client, shards)) => Action::Update(config_assignments(client, shards)),
        None => Action::Update(vec![Assignment::Set(attr::JN, Value::N(stamp(registered, now)))]),
    };
    Ok(Change::one(Key::Lease(id.clone()), seen, Action::Update(revived))
        .and(Key::Token(id.clone()), older, Action::Update(tokens.assignments(generation, binding, now)))
        .and(Key::Config(id.clone()), unchanged_config(registered), announce))
}

/// The next join stamp: it only grows, whatever the operator's clock says.
pub fn stamp(client: &Client, now: Timestamp) -> i64 {
    now.as_millis().max(client.joined.as_millis().saturating_add(1))
}

fn unchanged_config(client: &Client) -> Condition {
    let live = Condition::All(vec![Condition::Exists, Condition::Lacks(attr::GONE)]);
    let same = match client.joined.as_millis() {
        // Written by hand, without a join stamp.
        0 => Condition::Any(vec![Condition::Lacks(attr::JN), Condition::Equals(attr::JN, Value::N(0))]),
        joined => Condition::Equals(attr::JN, Value::N(joined)),
    };
    Condition::All(vec![live, same])
}

/// Changes a registration that keeps its tokens: same provider, endpoint and OAuth client id.
pub fn reconfigure(client: &Client, was: &Client, shards: u32) -> Change {
    let update = Action::Update(config_assignments(client, shards));
    Change::one(Key::Config(client.id.clone()), unchanged_config(was), update)
}

/// The whole registration over another; attributes that are not known here stay.
fn config_assignments(client: &Client, shards: u32) -> Vec<Assignment> {
    let item = encode_config(client, shard_of(&client.id, shards));
    attr::CONFIG.map(|name| assign(name, item.get(name).cloned())).to_vec()
}

/// Pauses or resumes a client.
pub fn pause(client: &Client, paused: bool, now: Timestamp) -> Change {
    let set = if paused {
        Assignment::Set(attr::PAUSED, Value::Bool(true))
    } else {
        Assignment::Remove(attr::PAUSED)
    };
    edit(client, set, now)
}

/// "Refresh now": asks for a replacement of the stored generation. It deduplicates itself and needs no clearing.
pub fn refresh_now(client: &Client, tok_gen: Gen, now: Timestamp) -> Change {
    edit(client, Assignment::Set(attr::RF, Value::N(tok_gen.0)), now)
}

/// The same; `None` where it has been asked for. Refused where nothing would come of it.
pub fn replacement(
    client: &Client,
    lease: Option<&Lease>,
    stored: Gen,
    now: Timestamp,
) -> Result<Option<Change>, Refusal> {
    let refuse = |why: &str| Err(Refusal::Inconsistent(client.id.clone(), why.into()));
    match lease.map(|lease| standing(lease, stored)) {
        _ if client.paused => refuse("it is paused: `perennial clients resume` comes first"),
        Some(Standing::Dead) => refuse("its grant is gone: it needs `perennial clients import-token`"),
        Some(Standing::Held) => refuse("it is held in doubt: it needs `perennial clients resolve`"),
        _ if client.refresh_now == Some(stored) => Ok(None),
        _ => Ok(Some(refresh_now(client, stored, now))),
    }
}

/// Puts other client secrets, or references, in the place of those that are registered: all of them in one write.
pub fn set_credentials(client: &Client, credentials: &Credentials, now: Timestamp) -> Change {
    let Credentials { first, second } = credentials;
    let all = [
        (attr::CLIENT_SECRET, stored(first)),
        (attr::CLIENT_SECRET_REF, reference(first)),
        (attr::SECOND_CLIENT_SECRET, stored(second)),
        (attr::SECOND_CLIENT_SECRET_REF, reference(second)),
    ];
    let assignments = all.into_iter().map(|(name, value)| assign(name, value)).collect();
    edit_all(client, assignments, now)
}

/// What is to become of a client's two secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// This one is the second, in the place of another where that is said.
    Second {
        /// It.
        credential: Credential,
        /// Whether it takes the place of another.
        replace: bool,
    },
    /// The second becomes the first. The first goes, or stays as the second.
    Promote {
        /// Whether it stays.
        keep: bool,
    },
    /// The second goes.
    Drop,
}

impl Rotation {
    /// The credentials that it leaves; none where they are so already.
    ///
    /// # Errors
    /// Where there is no second to promote, or another stands in the way.
    pub fn of(&self, client: &Client) -> Result<Option<Credentials>, Refusal> {
        let Credentials { first, second } = client.credentials.clone();
        let refuse = |why: &str| Err(Refusal::Inconsistent(client.id.clone(), why.to_owned()));
        match (self, second) {
            (Self::Second { credential, .. }, Some(second)) if *credential == second => Ok(None),
            (Self::Second { replace: false, .. }, Some(_)) => refuse(
                "it has a second client secret already: say --replace, or promote or drop that one first",
            ),
            (Self::Second { .. }, _) if first.is_none() => {
                refuse("it has no first client secret: give it one in its clients file")
            }
            (Self::Second { credential, .. }, _) => {
                Ok(Some(Credentials { first, second: Some(credential.clone()) }))
            }
            (Self::Promote { .. }, None) => refuse(
                "it has no second client secret that could be promoted: see `perennial clients secret add`",
            ),
            (Self::Promote { keep }, second) => {
                let kept = if *keep { first } else { None };
                Ok(Some(Credentials { first: second, second: kept }))
            }
            (Self::Drop, None) => Ok(None),
            (Self::Drop, Some(_)) => Ok(Some(Credentials { first, second: None })),
        }
    }
}

fn edit(client: &Client, assignment: Assignment, now: Timestamp) -> Change {
    edit_all(client, vec![assignment], now)
}

fn edit_all(client: &Client, mut assignments: Vec<Assignment>, now: Timestamp) -> Change {
    assignments.push(Assignment::Set(attr::JN, Value::N(stamp(client, now))));
    let action = Action::Update(assignments);
    Change::one(Key::Config(client.id.clone()), unchanged_config(client), action)
}

/// Removes a client: tombstones in the place of `CONFIG` and `LEASE`, and no tokens. What is in flight fails its
/// conditions and brings nothing back.
pub fn remove(id: &ClientId, read: &Snapshot, shards: u32, now: Timestamp) -> Result<Change, Refusal> {
    let client = read.client().ok_or_else(|| Refusal::NotRegistered(id.clone()))?;
    let Some(lease) = &read.lease else {
        return Err(Refusal::Inconsistent(
            id.clone(),
            "its LEASE item is missing; remove CONFIG by hand".into(),
        ));
    };
    let ttl = Value::N(now.plus(TOMBSTONE).as_secs());
    // It stays in the index for now: that is where the fleet finds out.
    let config = Item::default()
        .with(attr::GONE, Value::N(now.as_millis()))
        .with(attr::VS, Value::N(i64::from(shard_of(id, shards))))
        .with(attr::JN, Value::N(stamp(client, now)))
        .with(attr::TTL, ttl.clone());
    let tombstone = Item::default()
        .with(attr::GEN, Value::N(lease.generation.next().0))
        .with(attr::ST, Value::S(State::Removed.as_str().to_owned()))
        .with(attr::TTL, ttl);
    let exists = Condition::All(vec![Condition::Exists, Condition::Lacks(attr::GONE)]);
    let seen = Condition::Equals(attr::GEN, Value::N(lease.generation.0));
    Ok(Change::one(Key::Config(id.clone()), exists, Action::Put(config))
        .and(Key::Lease(id.clone()), seen, Action::Put(tombstone))
        .and(
            Key::Token(id.clone()),
            Condition::Any(vec![Condition::Exists, Condition::Absent]),
            Action::Delete,
        ))
}

/// Takes a tombstone out of the index, once every task has had time to find it there: if it is still the one that was
/// listed.
pub fn unlist(id: &ClientId, joined: Timestamp) -> Change {
    let same = Condition::All(vec![
        Condition::Has(attr::GONE),
        Condition::Equals(attr::JN, Value::N(joined.as_millis())),
    ]);
    let out = vec![Assignment::Remove(attr::VS), Assignment::Remove(attr::JN)];
    Change::one(Key::Config(id.clone()), same, Action::Update(out))
}

/// An operator's decision about a client held in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Send the stored refresh token once more. The doubt about it stays on record.
    Retry,
    /// The grant is lost.
    Dead,
}

/// Ends a hold.
pub fn resolve(
    id: &ClientId,
    read: &Snapshot,
    resolution: Resolution,
    now: Timestamp,
) -> Result<Change, Refusal> {
    let client = read.client().ok_or_else(|| Refusal::NotRegistered(id.clone()))?;
    let held = read.lease.as_ref().filter(|lease| standing(lease, read.tok_gen()) == Standing::Held);
    let Some(lease) = held else {
        let problem = format!("it is not held in doubt: see `perennial why {id}`");
        return Err(Refusal::Inconsistent(id.clone(), problem));
    };
    let assignments = match resolution {
        // A count of zero is the operator's order to send, where policy alone would not.
        Resolution::Retry => vec![
            Assignment::Set(attr::ST, Value::S(State::Idle.as_str().to_owned())),
            Assignment::Set(attr::DBT, Value::N(read.tok_gen().0)),
            Assignment::Set(attr::DBT_SENDS, Value::N(0)),
            Assignment::Remove(attr::OF),
            Assignment::Remove(attr::NEXT_AT),
        ],
        Resolution::Dead => vec![Assignment::Set(attr::ST, Value::S(State::Dead.as_str().to_owned()))],
    };
    // A new join stamp: the daemon looks at what is new, not at what is held.
    let announce = Action::Update(vec![Assignment::Set(attr::JN, Value::N(stamp(client, now)))]);
    Ok(Change::one(
        Key::Lease(id.clone()),
        stands(lease.generation, &lease.state),
        Action::Update(assignments),
    )
    .and(Key::Config(id.clone()), unchanged_config(client), announce))
}
