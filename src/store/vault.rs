//! A store whose secrets are sealed: they are opened as they are read and sealed as they are written, here and nowhere
//! else, so that nothing above knows whether they are.
//!
//! What is not sealed is read as it is, whatever the mode: sealing is turned on and off while daemons run. What cannot
//! be opened is an error that names its item and attribute, and never a value.

use std::sync::Arc;

use tracing::debug;

use super::{Applied, DynamoStore, Page, Roster, ShardQuery, Store, StoreError, View, Vitals};
use crate::client::ClientId;
use crate::item::{Action, Assignment, Change, Condition, Item, Key, Value, Write, attr};
use crate::record::Partition;
use crate::seal::{Keys, Place, SealError};
use crate::secret::Secret;
use crate::time::Clock;

/// A table with sealed secrets.
#[derive(Clone)]
pub struct Vault<S> {
    store: S,
    table: Arc<str>,
    keys: Arc<Keys>,
    clock: Arc<dyn Clock>,
    role: Role,
    herald: Option<Arc<dyn Herald>>,
}

/// Passes on what stands in the table. It is told after the fact, and nobody waits for it.
pub trait Herald: Send + Sync {
    /// There is news of a client.
    fn tell(&self, id: &ClientId, news: News);
}

/// What has become of a client's token item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// This stands there now, as it stands there: all that is a reader's business.
    Stored(Item),
    /// It is another one now: what stands there has to be read.
    Changed,
    /// The client is gone.
    Removed,
}

/// What it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Refreshing: a client's keys are at hand before its secrets are.
    Daemon,
    /// Looking and changing: keys are asked for as they are needed.
    Operator,
    /// Reading access tokens: no other secret is opened, or even returned.
    Reader,
}

impl<S> Vault<S> {
    /// Before this table.
    pub fn new(store: S, table: &str, keys: Arc<Keys>, clock: Arc<dyn Clock>, role: Role) -> Self {
        Self { store, table: table.into(), keys, clock, role, herald: None }
    }

    /// Has new tokens told, each once it is committed.
    #[must_use]
    pub fn with_herald(self, herald: Arc<dyn Herald>) -> Self {
        Self { herald: Some(herald), ..self }
    }

    /// The table as it stands.
    pub fn raw(&self) -> &S {
        &self.store
    }

    /// Its name.
    pub fn table(&self) -> &str {
        &self.table
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// What seals and opens.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }
}

impl Vault<DynamoStore> {
    /// Capacity consumed, throttles, the store's clock.
    pub fn vitals(&self) -> &Arc<Vitals> {
        self.store.vitals()
    }
}

impl<S: Store> Vault<S> {
    /// Opens a client's token item that came another way, as if it stood in the table.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub async fn open(&self, id: &ClientId, mut item: Item) -> Result<Item, StoreError> {
        self.open_item(&Key::Token(id.clone()), &mut item).await?;
        Ok(item)
    }

    async fn open_item(&self, key: &Key, item: &mut Item) -> Result<(), StoreError> {
        let Some(id) = client_of(key) else { return Ok(()) };
        let version = version_of(key, item);
        if self.role == Role::Reader {
            item.0.retain(|name, value| name == attr::ACCESS_TOKEN || !matches!(value, Value::Secret(_)));
        }
        for (place, secret) in sealed(item, self.place(id, version)) {
            match self.keys.open(secret.expose(), &place).await {
                Ok(opened) => open(secret, opened.secret),
                // Whoever repairs a client has to see it first. Sealed, it equals nothing that anybody gives.
                Err(error) if self.role == Role::Operator => {
                    debug!(%error, %key, name = place.attribute, "it stays sealed");
                }
                Err(error) => return Err(told(&error, key, place.attribute)),
            }
        }
        Ok(())
    }

    /// "No" stays an answer where what stands there cannot be opened at once: sealed, it equals nothing.
    fn open_at_hand(&self, key: &Key, item: &mut Item) {
        let Some(id) = client_of(key) else { return };
        let version = version_of(key, item);
        for (place, secret) in sealed(item, self.place(id, version)) {
            match self.keys.open_at_hand(secret.expose(), &place) {
                Ok(opened) => open(secret, opened.secret),
                Err(error) => {
                    debug!(%error, %key, name = place.attribute, "what stands in the way stays sealed");
                }
            }
        }
    }

    /// A place of this client's, of whichever attribute.
    pub(super) fn place<'a>(&'a self, id: &'a ClientId, version: i64) -> Place<'a> {
        Place { table: &self.table, client: id.as_str(), attribute: "", version }
    }

    async fn seal_change(&self, change: &Change) -> Result<Change, StoreError> {
        let mut writes = Vec::with_capacity(change.0.len());
        for write in &change.0 {
            let Write { key, condition, action } = write;
            let action = self.seal_action(key, action).await?;
            writes.push(Write { key: key.clone(), condition: as_stored(condition), action });
        }
        Ok(Change(writes))
    }

    async fn seal_action(&self, key: &Key, action: &Action) -> Result<Action, StoreError> {
        let mut action = action.clone();
        let Some(id) = client_of(key) else { return Ok(action) };
        match &mut action {
            Action::Update(assignments) => {
                let version = assignments.iter().find_map(|assignment| match assignment {
                    Assignment::Set(name, Value::N(version)) if *name == version_attribute(key) => {
                        Some(*version)
                    }
                    _ => None,
                });
                for assignment in assignments {
                    if let Assignment::Set(name, Value::Secret(secret)) = assignment {
                        *secret = self.seal_secret(key, id, name, secret, version).await?;
                    }
                }
            }
            Action::Put(item) => {
                let version = Some(version_of(key, item));
                for (name, value) in &mut item.0 {
                    if let Value::Secret(secret) = value {
                        *secret = self.seal_secret(key, id, name, secret, version).await?;
                    }
                }
            }
            Action::Delete | Action::Check => {}
        }
        Ok(action)
    }

    async fn seal_secret(
        &self,
        key: &Key,
        id: &ClientId,
        name: &str,
        secret: &Secret,
        version: Option<i64>,
    ) -> Result<Secret, StoreError> {
        // What could not be opened is written back as it stands, where it stood: elsewhere it would never open again.
        if Keys::is_sealed(secret.expose()) {
            let moved = Keys::attribute_of(secret.expose()).is_none_or(|stood| stood != name);
            return if moved {
                Err(told(&SealError::Misplaced("att"), key, name))
            } else {
                Ok(secret.clone())
            };
        }
        // A write of a secret that does not move its item's generation is as old as any.
        let place = Place { attribute: name, ..self.place(id, version.unwrap_or(-1)) };
        let sealed = self.keys.seal(secret, &place, self.clock.now()).await;
        let sealed = sealed.map_err(|error| told(&error, key, name))?;
        Ok(sealed.map_or_else(|| Secret::new(secret.expose()), Secret::new))
    }
}

impl<S: Store> Store for Vault<S> {
    /// A refresh begins with this: the keys that will seal its answer are at hand when it returns.
    async fn read(&self, id: &ClientId) -> Result<Partition, StoreError> {
        let mut partition = self.store.read(id).await?;
        if self.role == Role::Daemon {
            let prepared = self.keys.prepare(&self.table, id.as_str()).await;
            prepared.map_err(|error| told(&error, &Key::Token(id.clone()), "the keys for its answer"))?;
        }
        for (key, item) in partition.items_mut(id) {
            self.open_item(&key, item).await?;
        }
        Ok(partition)
    }

    async fn apply(&self, change: &Change) -> Result<Applied, StoreError> {
        let sealed = self.seal_change(change).await?;
        let mut applied = self.store.apply(&sealed).await?;
        if let Some(herald) = &self.herald {
            news(&sealed, &applied).for_each(|(id, news)| herald.tell(id, news));
        }
        if let Applied::Lost(items) = &mut applied {
            for (write, item) in change.0.iter().zip(items) {
                if let Some(item) = item {
                    self.open_at_hand(&write.key, item);
                }
            }
        }
        Ok(applied)
    }

    async fn query(&self, query: &ShardQuery) -> Result<Page, StoreError> {
        self.store.query(query).await
    }

    async fn load(&self, keys: &[Key], view: View) -> Result<Vec<(Key, Item)>, StoreError> {
        let mut found = self.store.load(keys, view).await?;
        for (key, item) in &mut found {
            self.open_item(key, item).await?;
        }
        Ok(found)
    }

    fn announce(&self, id: &ClientId, news: News) {
        if let Some(herald) = &self.herald {
            herald.tell(id, news);
        }
    }
}

impl<S: Roster> Roster for Vault<S> {
    async fn members(&self) -> Result<Vec<(String, Item)>, StoreError> {
        self.store.members().await
    }
}

/// What a change that was carried out, or had been before, means for those who read access tokens.
fn news<'a>(change: &'a Change, applied: &'a Applied) -> impl Iterator<Item = (&'a ClientId, News)> {
    change.0.iter().enumerate().filter_map(move |(at, write)| {
        let (Key::Token(id), Action::Update(assignments)) = (&write.key, &write.action) else { return None };
        let stored = stored(assignments)?;
        match applied {
            Applied::Committed => Some((id, stored.map_or(News::Changed, News::Stored))),
            // Its answer was lost, and here it stands.
            Applied::Lost(found) => {
                let found = found.get(at)?.as_ref()?;
                let ours = version_of(&write.key, found) == generation(assignments)?;
                ours.then_some((id, News::Changed))
            }
        }
    })
}

/// The item that an access token was written with; `None` inside where more of it was there before.
fn stored(assignments: &[Assignment]) -> Option<Option<Item>> {
    let mentioned = |name: &str| {
        assignments.iter().find_map(|assignment| match assignment {
            Assignment::Set(own, value) if *own == name => Some(Some(value)),
            Assignment::Remove(own) if *own == name => Some(None),
            _ => None,
        })
    };
    mentioned(attr::ACCESS_TOKEN)??;
    let whole = attr::READER_TOKEN.iter().try_fold(Item::default(), |item, name| {
        mentioned(name).map(|value| item.with_some(name, value.cloned()))
    });
    Some(whole)
}

fn generation(assignments: &[Assignment]) -> Option<i64> {
    assignments.iter().find_map(|assignment| match assignment {
        Assignment::Set(attr::TOK_GEN, Value::N(generation)) => Some(*generation),
        _ => None,
    })
}

/// The sealed secrets of an item, each with its place.
fn sealed<'a>(item: &'a mut Item, of: Place<'a>) -> impl Iterator<Item = (Place<'a>, &'a mut Secret)> {
    item.0.iter_mut().filter_map(move |(name, value)| match value {
        Value::Secret(secret) if Keys::is_sealed(secret.expose()) => {
            Some((Place { attribute: name.as_str(), ..of }, secret))
        }
        _ => None,
    })
}

/// It remembers how it stands in the table.
fn open(secret: &mut Secret, opened: Secret) {
    *secret = opened.sealed_as(secret.expose());
}

fn client_of(key: &Key) -> Option<&ClientId> {
    match key {
        Key::Config(id) | Key::Token(id) => Some(id),
        Key::Lease(_) | Key::Member(_) | Key::Schema => None,
    }
}

/// What an item's writes are counted by.
pub(super) fn version_attribute(key: &Key) -> &'static str {
    match key {
        Key::Config(_) => attr::JN,
        _ => attr::TOK_GEN,
    }
}

pub(super) fn version_of(key: &Key, item: &Item) -> i64 {
    match item.get(version_attribute(key)) {
        Some(Value::N(version)) => *version,
        _ => -1,
    }
}

/// A condition on a secret is one on what stands in the table.
fn as_stored(condition: &Condition) -> Condition {
    let all = |conditions: &[Condition]| conditions.iter().map(as_stored).collect();
    match condition {
        Condition::Equals(name, Value::Secret(secret)) => {
            Condition::Equals(name, Value::Secret(Secret::new(secret.as_stored())))
        }
        Condition::All(conditions) => Condition::All(all(conditions)),
        Condition::Any(conditions) => Condition::Any(all(conditions)),
        other => other.clone(),
    }
}

pub(super) fn told(error: &SealError, key: &Key, name: &str) -> StoreError {
    let told = format!("{key}, {name}: {error}");
    if error.is_transient() { StoreError::Unavailable(told) } else { StoreError::Unreadable(told) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(without: &str) -> Change {
        let values = attr::READER_TOKEN.map(|name| match name {
            attr::ACCESS_TOKEN => Assignment::Set(name, Value::Secret(Secret::new("sealed"))),
            attr::TOK_GEN => Assignment::Set(name, Value::N(7)),
            attr::SCOPE => Assignment::Remove(name),
            _ => Assignment::Set(name, Value::N(1)),
        });
        let name = |assignment: &Assignment| match assignment {
            Assignment::Set(name, _) | Assignment::Add(name, _) | Assignment::Remove(name) => *name,
        };
        let mut assignments: Vec<_> = values.into_iter().filter(|value| name(value) != without).collect();
        assignments.push(Assignment::Set(attr::REFRESH_TOKEN, Value::Secret(Secret::new("canary"))));
        let id = ClientId::new("acme").expect("an id");
        let lease = Change::one(Key::Lease(id.clone()), Condition::Exists, Action::Check);
        lease.and(Key::Token(id), Condition::Exists, Action::Update(assignments))
    }

    fn told(change: &Change, applied: &Applied) -> Vec<News> {
        news(change, applied).map(|(_, news)| news).collect()
    }

    #[test]
    fn what_a_reader_needs_is_told_once_it_is_committed_and_nothing_else() {
        let told = told(&change(""), &Applied::Committed);
        let [News::Stored(item)] = told.as_slice() else { panic!("{told:?}") };
        let names: Vec<_> = item.0.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["access_token", "expires_at", "last_updated", "refresh_at", "tok_gen", "token_type"]
        );
        assert_eq!(item.get(attr::ACCESS_TOKEN), Some(&Value::Secret(Secret::new("sealed"))));
    }

    #[test]
    fn what_was_left_as_it_stood_is_read_and_what_is_no_token_is_not_told() {
        assert_eq!(told(&change(attr::SCOPE), &Applied::Committed), [News::Changed]);
        assert_eq!(told(&change(attr::ACCESS_TOKEN), &Applied::Committed), []);
    }

    #[test]
    fn a_commit_whose_answer_was_lost_is_told_and_one_that_came_too_late_is_not() {
        let stands = |generation| {
            let item = Item::default().with(attr::TOK_GEN, Value::N(generation));
            Applied::Lost(vec![None, Some(item)])
        };
        assert_eq!(told(&change(""), &stands(7)), [News::Changed]);
        assert_eq!(told(&change(""), &stands(8)), []);
        assert_eq!(told(&change(""), &Applied::Lost(vec![None, None])), []);
    }
}
