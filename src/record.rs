//! The three items of a client as types: [`Client`] (its `CONFIG`), [`Lease`], [`Token`]; and the item of a [`Member`].
//!
//! The table is not ours alone: other tools write to it, people edit it. Reading is therefore strict about what
//! a decision depends on, and a malformed item is *named*: the client is skipped, the item never overwritten.
//! Attributes that are not known here survive every update.

mod member;

use std::collections::BTreeMap;
use std::fmt;

use url::Url;

pub use self::member::{Member, Phase, Tally, decode_member, encode_member};
use crate::client::credentials::{Credential, Credentials};
use crate::client::reference::InvalidRef;
use crate::client::{Binding, Client, ClientId};
use crate::item::{Item, Key, Value, attr};
use crate::secret::Secret;
use crate::shown;
use crate::time::Timestamp;

/// How much of an item's name is said, in characters. A client's fits, a stranger's may be of a kilobyte.
const LONGEST_NAME: usize = 200;
/// How much is said of what is wrong, in characters: values are of up to 400 KB.
const LONGEST_PROBLEM: usize = 160;

/// The fencing number: grows by one with every acquire and every outside write, and never restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gen(pub i64);

impl Gen {
    /// What a missing `tok_gen` counts as.
    pub const NONE: Self = Self(-1);
    /// The generation of a client that was never registered before.
    pub const FIRST: Self = Self(0);
    /// Beyond this a number is no generation: nobody has counted so far, and near the end of 64 bits it would cease to
    /// grow. Every reader's language is exact up to here.
    pub const MOST: Self = Self(1 << 53);

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Gen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The state of a lease, as the table spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// `I`: idle.
    Idle,
    /// `F`: an attempt was begun. Whether it goes on, ended well or was lost, `tok_gen` tells.
    InFlight,
    /// `Q`: held in doubt; an operator decides.
    Held,
    /// `D`: the provider said that the grant is gone.
    Dead,
    /// `X`: removed.
    Removed,
    /// Anything else: never acquired.
    Unknown(String),
}

impl State {
    /// As the table spells it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Idle => "I",
            Self::InFlight => "F",
            Self::Held => "Q",
            Self::Dead => "D",
            Self::Removed => "X",
            Self::Unknown(text) => text,
        }
    }

    fn parse(text: &str) -> Self {
        let known = [Self::Idle, Self::InFlight, Self::Held, Self::Dead, Self::Removed];
        known
            .into_iter()
            .find(|state| state.as_str() == text)
            .unwrap_or_else(|| Self::Unknown(text.to_owned()))
    }
}

/// The `LEASE` item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The fencing number.
    pub generation: Gen,
    /// The state.
    pub state: State,
    /// `<incarnation>#<nonce>` of the last attempt.
    pub owner: Option<String>,
    /// The lease's length in milliseconds, as its holder wrote it.
    pub lease_ms: i64,
    /// When the last attempt was acquired.
    pub intended_at: Option<Timestamp>,
    /// Not to be acquired before.
    pub next_at: Option<Timestamp>,
    /// Failures since the last success.
    pub fails: u32,
    /// The last failure's code.
    pub error: Option<String>,
    /// The `tok_gen` that a `Q` or `D` speaks of.
    pub of: Option<Gen>,
    /// The `tok_gen` in doubt, and how many sends of its refresh token went unanswered.
    pub doubt: Option<(Gen, u32)>,
}

impl Lease {
    /// A client that may be acquired: as registered.
    pub fn idle(generation: Gen) -> Self {
        Self {
            generation,
            state: State::Idle,
            owner: None,
            lease_ms: 0,
            intended_at: None,
            next_at: None,
            fails: 0,
            error: None,
            of: None,
            doubt: None,
        }
    }

    /// Unanswered sends of the refresh token of this generation; `None` where there is no doubt about it.
    pub fn doubt_about(&self, tok_gen: Gen) -> Option<u32> {
        self.doubt.filter(|(of, _)| *of == tok_gen).map(|(_, sends)| sends)
    }
}

/// The `TOKEN#ACCESS` item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The access token; none before the first refresh.
    pub access_token: Option<Secret>,
    /// The refresh token.
    pub refresh_token: Option<Secret>,
    /// As the provider spelt it.
    pub token_type: Option<String>,
    /// The granted scope, space separated.
    pub scope: Option<String>,
    /// Expiry of the access token, to the second; the epoch where there is none.
    pub expires_at: Timestamp,
    /// When it was written (ISO 8601).
    pub last_updated: Option<String>,
    /// When it is to be refreshed.
    pub refresh_at: Option<Timestamp>,
    /// The generation that produced it.
    pub generation: Gen,
    /// Which registration obtained it.
    pub binding: Option<Binding>,
    /// Time to live, where the item carries one.
    pub ttl: Option<Timestamp>,
}

impl Token {
    /// The place of a token that is yet to be obtained.
    pub fn stub(generation: Gen) -> Self {
        Self {
            access_token: None,
            refresh_token: None,
            token_type: None,
            scope: None,
            expires_at: Timestamp::EPOCH,
            last_updated: None,
            refresh_at: None,
            generation,
            binding: None,
            ttl: None,
        }
    }
}

/// An item that cannot be understood. It is named, its client skipped, and nothing of it overwritten.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{item}: attribute `{attribute}` {problem}")]
pub struct Malformed {
    /// `PK/SK`.
    pub item: String,
    /// Which attribute.
    pub attribute: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// A client's partition as it was read: up to three raw items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// `CONFIG`.
    pub config: Option<Item>,
    /// `LEASE`.
    pub lease: Option<Item>,
    /// `TOKEN#ACCESS`.
    pub token: Option<Item>,
}

impl Partition {
    /// Puts an item in its place.
    pub fn insert(&mut self, key: &Key, item: Item) {
        match key {
            Key::Config(_) => self.config = Some(item),
            Key::Lease(_) => self.lease = Some(item),
            Key::Token(_) => self.token = Some(item),
            Key::Member(_) | Key::Schema => {}
        }
    }

    /// The items that are there, with their keys.
    pub fn items_mut(&mut self, id: &ClientId) -> impl Iterator<Item = (Key, &mut Item)> {
        let keys = [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id.clone())];
        let items = [&mut self.config, &mut self.lease, &mut self.token];
        keys.into_iter().zip(items).filter_map(|(key, item)| Some((key, item.as_mut()?)))
    }

    /// Understands the items, or names the first that cannot be understood.
    pub fn decode(&self, id: &ClientId) -> Result<Snapshot, Malformed> {
        Ok(Snapshot {
            registration: match &self.config {
                Some(item) => decode_config(id, item)?,
                None => Registration::Absent,
            },
            lease: self.lease.as_ref().map(|item| decode_lease(id, item)).transpose()?,
            token: self.token.as_ref().map(|item| decode_token(id, item)).transpose()?,
        })
    }
}

/// Of one client's items.
impl FromIterator<(Key, Item)> for Partition {
    fn from_iter<I: IntoIterator<Item = (Key, Item)>>(items: I) -> Self {
        let mut partition = Self::default();
        items.into_iter().for_each(|(key, item)| partition.insert(&key, item));
        partition
    }
}

/// A client's partition, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// What `CONFIG` says.
    pub registration: Registration,
    /// The bookkeeping.
    pub lease: Option<Lease>,
    /// The tokens.
    pub token: Option<Token>,
}

impl Snapshot {
    /// The registered client, if there is one.
    pub fn client(&self) -> Option<&Client> {
        match &self.registration {
            Registration::Live(client) => Some(client),
            Registration::Absent | Registration::Removed => None,
        }
    }

    /// The generation of the stored tokens.
    pub fn tok_gen(&self) -> Gen {
        self.token.as_ref().map_or(Gen::NONE, |token| token.generation)
    }
}

/// Whether a client is registered.
#[derive(Clone, Debug, PartialEq)]
pub enum Registration {
    /// It is.
    Live(Box<Client>),
    /// It was: a tombstone stands in its place.
    Removed,
    /// It never was, or its tombstone has gone.
    Absent,
}

/// The `CONFIG` item of a client in the given virtual shard.
pub fn encode_config(client: &Client, shard: u32) -> Item {
    let strings = |list: &[String]| Value::L(list.iter().cloned().map(Value::S).collect());
    let params =
        client.params.iter().map(|(name, value)| (name.clone(), Value::Secret(value.clone()))).collect();
    Item::default()
        .with(attr::PROVIDER, Value::S(client.provider.clone()))
        .with(attr::GRANT, Value::S(client.grant.as_str().to_owned()))
        .with(attr::CLIENT_ID, Value::S(client.client_id.clone()))
        .with_some(attr::CLIENT_SECRET, stored(&client.credentials.first))
        .with_some(attr::CLIENT_SECRET_REF, reference(&client.credentials.first))
        .with_some(attr::SECOND_CLIENT_SECRET, stored(&client.credentials.second))
        .with_some(attr::SECOND_CLIENT_SECRET_REF, reference(&client.credentials.second))
        .with_some(attr::SCOPES, (!client.scopes.is_empty()).then(|| Value::S(client.scopes.join(" "))))
        .with_some(attr::AUDIENCE, client.audience.clone().map(Value::S))
        .with_some(attr::RESOURCE, (!client.resource.is_empty()).then(|| strings(&client.resource)))
        .with_some(attr::PARAMS, (!client.params.is_empty()).then_some(Value::M(params)))
        .with_some(attr::TOKEN_URL, client.token_url.as_ref().map(|url| Value::S(url.to_string())))
        .with_some(attr::PAUSED, client.paused.then_some(Value::Bool(true)))
        .with_some(attr::RF, client.refresh_now.map(|generation| Value::N(generation.0)))
        .with(attr::VS, Value::N(i64::from(shard)))
        .with(attr::JN, Value::N(client.joined.as_millis()))
}

/// A secret, as its attribute holds it.
pub(crate) fn stored(credential: &Option<Credential>) -> Option<Value> {
    credential.as_ref()?.stored().cloned().map(Value::Secret)
}

/// A reference, as its attribute holds it.
pub(crate) fn reference(credential: &Option<Credential>) -> Option<Value> {
    Some(Value::S(credential.as_ref()?.reference()?.to_string()))
}

fn decode_config(id: &ClientId, item: &Item) -> Result<Registration, Malformed> {
    let read = Reader { key: Key::Config(id.clone()), item };
    if item.get(attr::GONE).is_some() {
        return Ok(Registration::Removed);
    }
    let token_url = read.string(attr::TOKEN_URL)?;
    Ok(Registration::Live(Box::new(Client {
        id: id.clone(),
        provider: read.required(attr::PROVIDER, Reader::string)?,
        // What another tool wrote there is not quoted: it may be anything.
        grant: read
            .required(attr::GRANT, Reader::string)?
            .parse()
            .map_err(|_| read.bad(attr::GRANT, "is not a grant: use client_credentials or refresh_token"))?,
        client_id: read.required(attr::CLIENT_ID, Reader::string)?,
        credentials: Credentials {
            first: read.credential(attr::CLIENT_SECRET, attr::CLIENT_SECRET_REF)?,
            second: read.credential(attr::SECOND_CLIENT_SECRET, attr::SECOND_CLIENT_SECRET_REF)?,
        },
        scopes: words(read.string(attr::SCOPES)?),
        audience: read.string(attr::AUDIENCE)?,
        resource: read.strings(attr::RESOURCE)?,
        params: read.map(attr::PARAMS)?,
        token_url: token_url
            .map(|text| {
                Url::parse(&text).map_err(|e| read.bad(attr::TOKEN_URL, format!("is not a URL: {e}")))
            })
            .transpose()?,
        paused: read.bool(attr::PAUSED)?.unwrap_or(false),
        refresh_now: read.number(attr::RF)?.map(Gen),
        joined: Timestamp::from_millis(read.number(attr::JN)?.unwrap_or(0)),
    })))
}

fn words(text: Option<String>) -> Vec<String> {
    text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Understands a `LEASE` item.
pub fn decode_lease(id: &ClientId, item: &Item) -> Result<Lease, Malformed> {
    let read = Reader { key: Key::Lease(id.clone()), item };
    let time = |name| read.number(name).map(|millis| millis.map(Timestamp::from_millis));
    let count = |number: i64| u32::try_from(number.max(0)).unwrap_or(u32::MAX);
    let sends = count(read.number(attr::DBT_SENDS)?.unwrap_or(0));
    Ok(Lease {
        generation: read.required(attr::GEN, |read, name| read.generation(name, Gen::FIRST))?,
        state: State::parse(&read.required(attr::ST, Reader::string)?),
        owner: read.string(attr::OWN)?,
        lease_ms: read.number(attr::LEASE_MS)?.unwrap_or(0),
        intended_at: time(attr::INT_AT)?,
        next_at: time(attr::NEXT_AT)?,
        fails: count(read.number(attr::FAILS)?.unwrap_or(0)),
        error: read.string(attr::ERR)?,
        of: read.number(attr::OF)?.map(Gen),
        doubt: read.number(attr::DBT)?.map(|of| (Gen(of), sends)),
    })
}

fn decode_token(id: &ClientId, item: &Item) -> Result<Token, Malformed> {
    let read = Reader { key: Key::Token(id.clone()), item };
    Ok(Token {
        access_token: read.secret(attr::ACCESS_TOKEN)?,
        refresh_token: read.secret(attr::REFRESH_TOKEN)?,
        token_type: read.string(attr::TOKEN_TYPE)?,
        scope: read.string(attr::SCOPE)?,
        expires_at: Timestamp::from_secs(read.number(attr::EXPIRES_AT)?.unwrap_or(0)),
        last_updated: read.string(attr::LAST_UPDATED)?,
        refresh_at: read.number(attr::REFRESH_AT)?.map(Timestamp::from_millis),
        generation: read.generation(attr::TOK_GEN, Gen::NONE)?.unwrap_or(Gen::NONE),
        binding: read.string(attr::BND)?.map(Binding),
        ttl: read.number(attr::TTL)?.map(Timestamp::from_secs),
    })
}

/// Reads attributes by type, and names what it cannot read.
struct Reader<'a> {
    key: Key,
    item: &'a Item,
}

impl Reader<'_> {
    fn bad(&self, attribute: &str, problem: impl Into<String>) -> Malformed {
        Malformed {
            item: shown::clipped(&self.key.to_string(), LONGEST_NAME),
            attribute: attribute.to_owned(),
            problem: shown::clipped(&problem.into(), LONGEST_PROBLEM),
        }
    }

    fn wrong_type(&self, attribute: &str, value: &Value, wanted: &str) -> Malformed {
        if value.type_name() == wanted {
            return self.bad(attribute, "is a number beyond 64 bits");
        }
        self.bad(attribute, format!("has type {}, needs {wanted}", value.type_name()))
    }

    fn required<T>(
        &self,
        attribute: &str,
        read: impl Fn(&Self, &str) -> Result<Option<T>, Malformed>,
    ) -> Result<T, Malformed> {
        read(self, attribute)?.ok_or_else(|| self.bad(attribute, "is missing"))
    }

    fn string(&self, attribute: &str) -> Result<Option<String>, Malformed> {
        match self.item.get(attribute) {
            None => Ok(None),
            Some(Value::S(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong_type(attribute, other, "S")),
        }
    }

    fn secret(&self, attribute: &str) -> Result<Option<Secret>, Malformed> {
        match self.item.get(attribute) {
            None => Ok(None),
            Some(Value::Secret(secret)) => Ok(Some(secret.clone())),
            Some(other) => Err(self.wrong_type(attribute, other, "S")),
        }
    }

    /// A secret, or a reference to one: never both, since nobody knows which is meant.
    fn credential(&self, value: &str, reference: &str) -> Result<Option<Credential>, Malformed> {
        match (self.secret(value)?, self.string(reference)?) {
            (None, None) => Ok(None),
            (Some(secret), None) => Ok(Some(Credential::Stored(secret))),
            (None, Some(text)) => {
                let parsed =
                    text.parse().map_err(|error: InvalidRef| self.bad(reference, error.to_string()))?;
                Ok(Some(Credential::At(parsed)))
            }
            (Some(_), Some(_)) => {
                Err(self.bad(reference, format!("stands beside `{value}`: keep one of them")))
            }
        }
    }

    fn number(&self, attribute: &str) -> Result<Option<i64>, Malformed> {
        match self.item.get(attribute) {
            None => Ok(None),
            Some(Value::N(number)) => Ok(Some(*number)),
            Some(other) => Err(self.wrong_type(attribute, other, "N")),
        }
    }

    fn generation(&self, attribute: &str, least: Gen) -> Result<Option<Gen>, Malformed> {
        let Some(number) = self.number(attribute)? else { return Ok(None) };
        let generation = Gen(number);
        if (least..=Gen::MOST).contains(&generation) {
            return Ok(Some(generation));
        }
        Err(self.bad(attribute, format!("is {number}, and generations are from {least} to {}", Gen::MOST)))
    }

    fn bool(&self, attribute: &str) -> Result<Option<bool>, Malformed> {
        match self.item.get(attribute) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_type(attribute, other, "BOOL")),
        }
    }

    fn strings(&self, attribute: &str) -> Result<Vec<String>, Malformed> {
        match self.item.get(attribute) {
            None => Ok(Vec::new()),
            Some(Value::L(list)) => list.iter().map(|value| self.text_in(attribute, value)).collect(),
            Some(other) => Err(self.wrong_type(attribute, other, "L of S")),
        }
    }

    /// What stands there may be a credential.
    fn map(&self, attribute: &str) -> Result<BTreeMap<String, Secret>, Malformed> {
        match self.item.get(attribute) {
            None => Ok(BTreeMap::new()),
            Some(Value::M(map)) => map
                .iter()
                .map(|(name, value)| Ok((name.clone(), self.secret_in(attribute, value)?)))
                .collect(),
            Some(other) => Err(self.wrong_type(attribute, other, "M of S")),
        }
    }

    fn text_in(&self, attribute: &str, value: &Value) -> Result<String, Malformed> {
        match value {
            Value::S(text) => Ok(text.clone()),
            other => Err(self.wrong_type(attribute, other, "S inside")),
        }
    }

    fn secret_in(&self, attribute: &str, value: &Value) -> Result<Secret, Malformed> {
        match value {
            Value::Secret(secret) => Ok(secret.clone()),
            value => self.text_in(attribute, value).map(Secret::new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Grant;

    fn id() -> ClientId {
        ClientId::new("c1").expect("a valid id")
    }

    fn client() -> Client {
        Client {
            id: id(),
            provider: "acme".into(),
            grant: Grant::RefreshToken,
            client_id: "app".into(),
            credentials: Credentials::stored("s"),
            scopes: vec!["a".into(), "b".into()],
            audience: Some("api".into()),
            resource: vec!["https://r.test/".into()],
            params: BTreeMap::from([("x".into(), Secret::new("y"))]),
            token_url: Some(Url::parse("https://acme.test/token").expect("a url")),
            paused: true,
            refresh_now: Some(Gen(4)),
            joined: Timestamp::from_millis(99),
        }
    }

    #[test]
    fn a_registration_survives_the_table() {
        let client = client();
        let partition = Partition { config: Some(encode_config(&client, 3)), ..Partition::default() };
        let snapshot = partition.decode(&id()).expect("decodes");
        assert_eq!(snapshot.client(), Some(&client));
    }

    #[test]
    fn wrong_types_are_named_with_item_and_attribute() {
        let item = Item::default().with(attr::GEN, Value::S("7".into())).with(attr::ST, Value::S("I".into()));
        let partition = Partition { lease: Some(item), ..Partition::default() };
        let error = partition.decode(&id()).expect_err("gen is a string");
        assert_eq!(error.to_string(), "CLIENT#c1/LEASE: attribute `gen` has type S, needs N");
    }

    #[test]
    fn a_missing_attribute_that_decisions_need_is_named() {
        let partition = Partition { lease: Some(Item::default()), ..Partition::default() };
        let error = partition.decode(&id()).expect_err("gen is missing");
        assert_eq!(error.to_string(), "CLIENT#c1/LEASE: attribute `gen` is missing");
    }

    #[test]
    fn another_tools_token_without_generation_counts_as_minus_one() {
        let item = Item::default().with(attr::EXPIRES_AT, Value::N(5));
        let partition = Partition { token: Some(item), ..Partition::default() };
        let snapshot = partition.decode(&id()).expect("decodes");
        assert_eq!(snapshot.tok_gen(), Gen::NONE);
    }

    #[test]
    fn doubt_speaks_of_one_generation_only() {
        let lease = Lease { doubt: Some((Gen(3), 2)), ..Lease::idle(Gen(5)) };
        assert_eq!(lease.doubt_about(Gen(3)), Some(2));
        assert_eq!(lease.doubt_about(Gen(4)), None);
    }
}
