//! Secrets that stand in the table in one form, brought into another while daemons run: sealing turned on or off, or
//! under a younger key.
//!
//! Each secret by itself, on the condition that it is still what was read: a refresh that comes between has written the
//! new form already.

use super::vault::{Vault, told, version_attribute, version_of};
use super::{Applied, Store, StoreError};
use crate::client::ClientId;
use crate::item::{Action, Assignment, Change, Condition, Item, Key, Value, attr};
use crate::seal::{Keys, Place};
use crate::secret::Secret;

/// How a secret stands in the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// As it is.
    Plain,
    /// Sealed under the key of this name.
    Sealed(String),
}

/// What became of a client's secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Brought into the form that is wanted.
    pub changed: u64,
    /// Had it already.
    pub kept: u64,
    /// Changed by somebody else meanwhile.
    pub raced: u64,
}

impl<S: Store> Vault<S> {
    /// The forms of a client's secrets.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn forms(&self, id: &ClientId) -> Result<Vec<(&'static str, Form)>, StoreError> {
        let mut partition = self.raw().read(id).await?;
        let items = partition.items_mut(id).map(|(_, item)| secrets(item).collect::<Vec<_>>());
        Ok(items.flatten().map(|(name, stored)| (name, form(&stored))).collect())
    }

    /// Brings a client's secrets into the form that new ones have.
    ///
    /// # Errors
    /// As [`Store::read`] and [`Store::apply`], and where a secret cannot be opened or sealed. What has been changed stays.
    pub async fn reseal(&self, id: &ClientId) -> Result<Resealed, StoreError> {
        let mut partition = self.raw().read(id).await?;
        let mut resealed = Resealed::default();
        for (key, item) in partition.items_mut(id) {
            for (name, stored) in secrets(item) {
                let counted = match self.another_form(&key, id, item, name, &stored).await? {
                    None => &mut resealed.kept,
                    Some(next) => match self.raw().apply(&exchange(&key, item, name, &stored, next)).await? {
                        Applied::Committed => &mut resealed.changed,
                        Applied::Lost(_) => &mut resealed.raced,
                    },
                };
                *counted += 1;
            }
        }
        Ok(resealed)
    }

    /// The secret in the form that is wanted; none where it has it.
    async fn another_form(
        &self,
        key: &Key,
        id: &ClientId,
        item: &Item,
        name: &'static str,
        stored: &Secret,
    ) -> Result<Option<Secret>, StoreError> {
        let failed = |error| told(&error, key, name);
        let wanted = self.keys().sealing_name(self.table(), id.as_str(), name).await.map_err(failed)?;
        let found = Keys::name_of(stored.expose());
        if wanted == found {
            return Ok(None);
        }
        let mut place = Place { attribute: name, ..self.place(id, version_of(key, item)) };
        let plain = if found.is_some() {
            let opened = self.keys().open(stored.expose(), &place).await.map_err(failed)?;
            place.version = opened.version;
            opened.secret
        } else {
            stored.clone()
        };
        let sealed = self.keys().seal(&plain, &place, self.clock().now()).await.map_err(failed)?;
        Ok(Some(sealed.map_or(plain, Secret::new)))
    }
}

fn form(stored: &Secret) -> Form {
    let name = Keys::name_of(stored.expose());
    name.map_or(Form::Plain, Form::Sealed)
}

fn secrets(item: &Item) -> impl Iterator<Item = (&'static str, Secret)> {
    let stands = |name: &'static str| match item.get(name) {
        Some(Value::Secret(secret)) => Some((name, secret.clone())),
        _ => None,
    };
    attr::SECRETS.into_iter().filter_map(stands)
}

/// On the condition that neither the secret nor its item's generation has moved: the new form speaks of both.
fn exchange(key: &Key, item: &Item, name: &'static str, stored: &Secret, next: Secret) -> Change {
    let version = version_attribute(key);
    let still = Condition::All(vec![
        Condition::Equals(name, Value::Secret(stored.clone())),
        item.get(version)
            .map_or(Condition::Lacks(version), |value| Condition::Equals(version, value.clone())),
    ]);
    Change::one(key.clone(), still, Action::Update(vec![Assignment::Set(name, Value::Secret(next))]))
}
