//! The table's language: keys, items, and changes to them, as plain data.
//!
//! The planner returns a [`Change`]; every store interprets the same one, so that what is simulated and model
//! checked is what is written. A change is one conditional write, or several that stand or fall together.
//! Nothing here knows AWS, a clock, or the lease protocol.

use std::collections::BTreeMap;
use std::fmt;

use crate::client::ClientId;
use crate::secret::Secret;

/// The names of the attributes, as they stand in the table. Times are epoch milliseconds unless said otherwise.
pub mod attr {
    /// Partition key (S).
    pub const PK: &str = "PK";
    /// Sort key (S).
    pub const SK: &str = "SK";

    /// `LEASE`: the fencing number (N), +1 on every acquire and outside write, never restarted.
    pub const GEN: &str = "gen";
    /// `LEASE`: state (S): `I`, `F`, `Q`, `D`, `X`.
    pub const ST: &str = "st";
    /// `LEASE`: `<incarnation>#<nonce>` of the last attempt (S).
    pub const OWN: &str = "own";
    /// `LEASE`: the lease's length (N, milliseconds).
    pub const LEASE_MS: &str = "lease_ms";
    /// `LEASE`: when the last attempt was acquired (N).
    pub const INT_AT: &str = "int_at";
    /// `LEASE`: not to be acquired before (N).
    pub const NEXT_AT: &str = "next_at";
    /// `LEASE`: failures since the last success (N).
    pub const FAILS: &str = "fails";
    /// `LEASE`: the last failure's code (S, at most 64 bytes).
    pub const ERR: &str = "err";
    /// `LEASE`: the `tok_gen` that a `Q` or `D` speaks of (N).
    pub const OF: &str = "of";
    /// `LEASE`: the `tok_gen` whose refresh token may have been redeemed without our learning the answer (N).
    pub const DBT: &str = "dbt";
    /// `LEASE`: how many sends of that refresh token went unanswered (N).
    pub const DBT_SENDS: &str = "dbt_n";

    /// `TOKEN#ACCESS`: the access token (S).
    pub const ACCESS_TOKEN: &str = "access_token";
    /// `TOKEN#ACCESS`: the refresh token (S).
    pub const REFRESH_TOKEN: &str = "refresh_token";
    /// `TOKEN#ACCESS`: the token type as the provider spelt it (S).
    pub const TOKEN_TYPE: &str = "token_type";
    /// `TOKEN#ACCESS`: the granted scope (S, space separated).
    pub const SCOPE: &str = "scope";
    /// `TOKEN#ACCESS`: expiry of the access token (N, epoch *seconds*).
    pub const EXPIRES_AT: &str = "expires_at";
    /// `TOKEN#ACCESS`: when it was written (S, ISO 8601).
    pub const LAST_UPDATED: &str = "last_updated";
    /// `TOKEN#ACCESS`: when it is to be refreshed (N).
    pub const REFRESH_AT: &str = "refresh_at";
    /// `TOKEN#ACCESS`: the generation that produced it (N); a missing one counts as -1.
    pub const TOK_GEN: &str = "tok_gen";
    /// `TOKEN#ACCESS`: which provider, endpoint and OAuth client id obtained it (S).
    pub const BND: &str = "bnd";
    /// DynamoDB's time to live (N, epoch *seconds*): only on items whose loss loses nothing.
    pub const TTL: &str = "ttl";

    /// `CONFIG`: name of the provider profile (S).
    pub const PROVIDER: &str = "provider";
    /// `CONFIG`: grant type (S).
    pub const GRANT: &str = "grant";
    /// `CONFIG`: OAuth client id (S).
    pub const CLIENT_ID: &str = "client_id";
    /// `CONFIG`: OAuth client secret (S).
    pub const CLIENT_SECRET: &str = "client_secret";
    /// `CONFIG`: where the OAuth client secret is, in its place (S, a reference).
    pub const CLIENT_SECRET_REF: &str = "client_secret_ref";
    /// `CONFIG`: OAuth client secret that is tried where the first is refused (S).
    pub const SECOND_CLIENT_SECRET: &str = "second_client_secret";
    /// `CONFIG`: where that is, in its place (S, a reference).
    pub const SECOND_CLIENT_SECRET_REF: &str = "second_client_secret_ref";
    /// `CONFIG`: requested scopes (S, space separated).
    pub const SCOPES: &str = "scopes";
    /// `CONFIG`: audience parameter (S).
    pub const AUDIENCE: &str = "audience";
    /// `CONFIG`: RFC 8707 resource indicators (L of S).
    pub const RESOURCE: &str = "resource";
    /// `CONFIG`: further parameters of the token request (M of S).
    pub const PARAMS: &str = "params";
    /// `CONFIG`: token endpoint where it is not the provider's (S).
    pub const TOKEN_URL: &str = "token_url";
    /// `CONFIG`: no refreshes while true (BOOL).
    pub const PAUSED: &str = "paused";
    /// `CONFIG`: "refresh now": the `tok_gen` to be replaced (N).
    pub const RF: &str = "rf";
    /// `CONFIG`: virtual shard (N), the index's partition key.
    pub const VS: &str = "vs";
    /// `CONFIG`: join stamp (N), the index's sort key: when an operator last changed the client.
    pub const JN: &str = "jn";
    /// `CONFIG`: when the client was removed (N); marks a tombstone.
    pub const GONE: &str = "gone";

    /// The attributes of `CONFIG` that a registration consists of.
    pub const CONFIG: [&str; 16] = [
        PROVIDER,
        GRANT,
        CLIENT_ID,
        CLIENT_SECRET,
        CLIENT_SECRET_REF,
        SECOND_CLIENT_SECRET,
        SECOND_CLIENT_SECRET_REF,
        SCOPES,
        AUDIENCE,
        RESOURCE,
        PARAMS,
        TOKEN_URL,
        PAUSED,
        RF,
        VS,
        JN,
    ];

    /// `MEMBER`: grows by one with every beat (N).
    pub const BEAT: &str = "beat";
    /// `MEMBER`: `JOINING`, `ACTIVE` or `LEAVING` (S).
    pub const STATE: &str = "state";
    /// `MEMBER`: how late the task's scheduler is (N, milliseconds).
    pub const LAG_MS: &str = "lag_ms";
    /// `MEMBER`: how far the task's wall clock is ahead of the store's (N, milliseconds).
    pub const SKEW_MS: &str = "skew_ms";
    /// `MEMBER`: when the task wrote the item (N).
    pub const AT: &str = "at";
    /// `MEMBER`: the task's version (S).
    pub const VERSION: &str = "version";
    /// `MEMBER`: clients that the task cares for (N).
    pub const CLIENTS: &str = "clients";
    /// `MEMBER`: refreshes that stored new tokens, since the task's start (N).
    pub const REFRESHED: &str = "refreshed";
    /// `MEMBER`: refreshes that failed, since the task's start (N).
    pub const FAILED: &str = "failed";
    /// `MEMBER`: attempts that found another's lease or newer tokens, since the task's start (N).
    pub const CONFLICTS: &str = "conflicts";
    /// `MEMBER`: leases taken over from silent owners, since the task's start (N).
    pub const TAKEOVERS: &str = "takeovers";

    /// `META`: number of virtual shards (N).
    pub const V: &str = "v";
    /// `META`: schema version (N).
    pub const SCHEMA: &str = "schema";
    /// `META`: the lowest schema version that may read the table (N).
    pub const MIN_READER: &str = "min_reader";

    /// The attributes whose values are secrets wherever they stand.
    pub const SECRETS: [&str; 4] = [ACCESS_TOKEN, REFRESH_TOKEN, CLIENT_SECRET, SECOND_CLIENT_SECRET];

    /// How a client stands, for whoever reads its tokens or asks for others: no secret among them, and nothing that only a
    /// refresh needs.
    pub const STANDING: [&str; 12] =
        [PROVIDER, GRANT, CLIENT_ID, PAUSED, RF, JN, GONE, GEN, ST, OF, ERR, TOK_GEN];

    /// What is a reader's business of `TOKEN#ACCESS`.
    pub const READER_TOKEN: [&str; 7] =
        [ACCESS_TOKEN, TOKEN_TYPE, SCOPE, EXPIRES_AT, LAST_UPDATED, REFRESH_AT, TOK_GEN];

    /// What is a reader's business: the access token and what belongs to it, and whether the table can be read. A policy
    /// that names them keeps readers from every other secret.
    pub const READER: [&str; 10] = [
        ACCESS_TOKEN,
        TOKEN_TYPE,
        SCOPE,
        EXPIRES_AT,
        LAST_UPDATED,
        REFRESH_AT,
        TOK_GEN,
        V,
        SCHEMA,
        MIN_READER,
    ];
}

/// Which item.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `CLIENT#<id>` / `CONFIG`: the registration, written by operators.
    Config(ClientId),
    /// `CLIENT#<id>` / `LEASE`: the bookkeeping, written by every attempt.
    Lease(ClientId),
    /// `CLIENT#<id>` / `TOKEN#ACCESS`: the tokens, written when they change.
    Token(ClientId),
    /// `MEMBER` / `<incarnation>`: a running task, written by its heartbeat.
    Member(String),
    /// `META` / `SCHEMA`: written when the table is created.
    Schema,
}

/// The partition of the members.
pub const MEMBERS: &str = "MEMBER";

impl Key {
    /// The partition key's value.
    pub fn pk(&self) -> String {
        match self {
            Self::Config(id) | Self::Lease(id) | Self::Token(id) => Self::partition(id),
            Self::Member(_) => MEMBERS.to_owned(),
            Self::Schema => "META".to_owned(),
        }
    }

    /// The sort key's value.
    pub fn sk(&self) -> &str {
        match self {
            Self::Config(_) => "CONFIG",
            Self::Lease(_) => "LEASE",
            Self::Token(_) => "TOKEN#ACCESS",
            Self::Member(incarnation) => incarnation,
            Self::Schema => "SCHEMA",
        }
    }

    /// The partition key of a client's three items.
    pub fn partition(id: &ClientId) -> String {
        format!("CLIENT#{id}")
    }

    /// The key that these values spell, if it is one of ours.
    pub fn parse(pk: &str, sk: &str) -> Option<Self> {
        if (pk, sk) == ("META", "SCHEMA") {
            return Some(Self::Schema);
        }
        if pk == MEMBERS {
            return Some(Self::Member(sk.to_owned()));
        }
        let id = ClientId::new(pk.strip_prefix("CLIENT#")?).ok()?;
        match sk {
            "CONFIG" => Some(Self::Config(id)),
            "LEASE" => Some(Self::Lease(id)),
            "TOKEN#ACCESS" => Some(Self::Token(id)),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pk(), self.sk())
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string.
    S(String),
    /// A string that must not be shown.
    Secret(Secret),
    /// A whole number. A fraction written by another tool is read rounded down.
    N(i64),
    /// A boolean.
    Bool(bool),
    /// A list.
    L(Vec<Value>),
    /// A map.
    M(BTreeMap<String, Value>),
    /// A type that this program does not use, by its DynamoDB name; never written back.
    Other(&'static str),
}

impl Value {
    /// A string under the given attribute name: a [`Value::Secret`] where the name says so.
    pub fn text(name: &str, text: impl Into<String>) -> Self {
        if attr::SECRETS.contains(&name) { Self::Secret(Secret::new(text)) } else { Self::S(text.into()) }
    }

    /// The type's name in DynamoDB's terms.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::S(_) | Self::Secret(_) => "S",
            Self::N(_) => "N",
            Self::Bool(_) => "BOOL",
            Self::L(_) => "L",
            Self::M(_) => "M",
            Self::Other(name) => name,
        }
    }
}

/// An item's attributes without its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item(pub BTreeMap<String, Value>);

impl Item {
    /// The value of an attribute.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Sets an attribute, for building items.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// Sets an attribute if there is a value for it.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<Value>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Whether there are no attributes at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a write may happen, judged on the item as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The item exists.
    Exists,
    /// The item does not exist.
    Absent,
    /// The attribute exists.
    Has(&'static str),
    /// The attribute does not exist (nor, then, need the item).
    Lacks(&'static str),
    /// The attribute exists and equals the value.
    Equals(&'static str, Value),
    /// The attribute is a number lower than this.
    Below(&'static str, i64),
    /// All of them.
    All(Vec<Condition>),
    /// Any of them.
    Any(Vec<Condition>),
}

/// What an update does to one attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// Sets it.
    Set(&'static str, Value),
    /// Adds to it, counting from zero where it does not exist.
    Add(&'static str, i64),
    /// Removes it, if it is there.
    Remove(&'static str),
}

/// What a write does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Changes the named attributes, leaves all others, and creates the item if it is not there.
    Update(Vec<Assignment>),
    /// Replaces the whole item.
    Put(Item),
    /// Deletes the item.
    Delete,
    /// Does nothing: the condition alone counts (in a transaction).
    Check,
}

/// One conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Of which item.
    pub key: Key,
    /// On which condition.
    pub condition: Condition,
    /// What is done.
    pub action: Action,
}

/// One write, or several of different items that stand or fall together (a transaction, at twice the price).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change(pub Vec<Write>);

impl Change {
    /// A change of one item.
    pub fn one(key: Key, condition: Condition, action: Action) -> Self {
        Self(vec![Write { key, condition, action }])
    }

    /// Adds a write that stands or falls with the others.
    #[must_use]
    pub fn and(mut self, key: Key, condition: Condition, action: Action) -> Self {
        self.0.push(Write { key, condition, action });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spelt_as_existing_readers_expect_and_parse_back() {
        let id = ClientId::new("1234").expect("a valid id");
        let member = Key::Member("f00d".into());
        let keys = [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id), member, Key::Schema];
        assert_eq!(keys[2].to_string(), "CLIENT#1234/TOKEN#ACCESS");
        for key in keys {
            assert_eq!(Key::parse(&key.pk(), key.sk()), Some(key));
        }
    }

    #[test]
    fn foreign_keys_are_none_of_ours() {
        for (pk, sk) in
            [("CLIENT#1", "TOKEN#ID"), ("CLIENT#", "CONFIG"), ("USER#1", "CONFIG"), ("CLIENT#a b", "LEASE")]
        {
            assert_eq!(Key::parse(pk, sk), None, "{pk}/{sk}");
        }
    }

    #[test]
    fn token_attributes_are_secrets_wherever_they_are_read() {
        assert_eq!(Value::text(attr::REFRESH_TOKEN, "r"), Value::Secret(Secret::new("r")));
        assert_eq!(Value::text(attr::SCOPE, "r"), Value::S("r".into()));
    }
}
