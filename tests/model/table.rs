//! The client's three items, and the interpreter of changes to them: the one that the memory store uses.

use std::fmt::{self, Debug};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use perennial::client::ClientId;
use perennial::item::{Change, Item, Key, Value, attr};
use perennial::record::{Gen, Lease, Partition, Snapshot};
use perennial::secret::Secret;
use perennial::store::memory::{holds, perform};

/// A value that many states have in common, with its fingerprint.
pub(crate) struct Shared<T>(Arc<T>, u64);

impl<T: Debug> Shared<T> {
    /// `beside` tells apart what `Debug` does not: secrets are redacted there.
    pub(crate) fn new(value: T, beside: impl Hash) -> Self {
        let print = fingerprint(|hasher| {
            format!("{value:?}").hash(hasher);
            beside.hash(hasher);
        });
        Self(Arc::new(value), print)
    }
}

impl<T> Shared<T> {
    /// The fingerprint is that of what it was made from.
    pub(crate) fn made_from(value: T, source: impl Hash) -> Self {
        Self(Arc::new(value), fingerprint(|hasher| source.hash(hasher)))
    }
}

pub(crate) fn fingerprint(feed: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut hasher = DefaultHasher::new();
    feed(&mut hasher);
    hasher.finish()
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0), self.1)
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}

impl<T> Eq for Shared<T> {}

impl<T> PartialOrd for Shared<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Shared<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.1.cmp(&other.1)
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.1.hash(hasher);
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Debug> Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition, raw and understood.
#[derive(Clone, PartialEq)]
pub(crate) struct Stored {
    raw: Partition,
    /// What a strongly consistent read of it says.
    pub(crate) read: Snapshot,
}

impl Stored {
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.read.lease.as_ref()
    }

    pub(crate) fn tok_gen(&self) -> Gen {
        self.read.tok_gen()
    }

    /// The number of the stored refresh token.
    pub(crate) fn refresh_token(&self) -> Option<u8> {
        self.read.token.as_ref()?.refresh_token.as_ref().map(number_of)
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.raw.config.as_ref().is_some_and(|config| config.get(attr::GONE).is_some())
            && self.lease().is_some_and(|lease| lease.state.as_str() == "X")
            && self.raw.token.is_none()
    }
}

impl Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(lease) = self.lease() else { return f.write_str("nothing") };
        let (tok_gen, token) = (self.tok_gen(), self.refresh_token());
        write!(
            f,
            "gen={} st={} own={:?} of={:?} ",
            lease.generation,
            lease.state.as_str(),
            lease.owner,
            lease.of
        )?;
        write!(f, "doubt={:?} tok_gen={tok_gen} token={token:?}", lease.doubt)
    }
}

/// The table.
pub(crate) type Table = Shared<Stored>;

/// What became of a change.
pub(crate) enum Applied {
    Committed,
    Lost,
}

pub(crate) fn id() -> ClientId {
    ClientId::new("c1").expect("a valid id")
}

/// Refresh tokens are numbered in the order in which the provider issued them.
pub(crate) fn token(number: u8) -> Secret {
    Secret::new(format!("r{number}"))
}

pub(crate) fn number_of(token: &Secret) -> u8 {
    token.expose().trim_start_matches('r').parse().expect("a token of this model")
}

pub(crate) fn empty() -> Table {
    understood(Partition::default())
}

/// Carries a change out: all of it, or nothing.
pub(crate) fn apply(table: &mut Table, change: &Change) -> Applied {
    let mut next = table.raw.clone();
    for write in &change.0 {
        let place = match write.key {
            Key::Config(_) => &mut next.config,
            Key::Lease(_) => &mut next.lease,
            Key::Token(_) => &mut next.token,
            Key::Member(_) | Key::Schema => panic!("the model has one client: {}", write.key),
        };
        if !holds(&write.condition, place.as_ref()) {
            return Applied::Lost;
        }
        *place = perform(&write.action, place.take()).expect("numbers stay numbers");
    }
    *table = understood(next);
    Applied::Committed
}

fn understood(raw: Partition) -> Table {
    let read = raw.decode(&id()).expect("this model writes no malformed items");
    let print = fingerprint(|hasher| {
        for item in [&raw.config, &raw.lease, &raw.token] {
            item.is_some().hash(hasher);
            item.iter().for_each(|item| hash_item(item, hasher));
        }
    });
    Shared::made_from(Stored { raw, read }, print)
}

fn hash_item(item: &Item, hasher: &mut impl Hasher) {
    for (name, value) in &item.0 {
        name.hash(hasher);
        match value {
            Value::S(text) => text.hash(hasher),
            Value::Secret(secret) => secret.expose().hash(hasher),
            Value::N(number) => number.hash(hasher),
            other => format!("{other:?}").hash(hasher),
        }
    }
}
