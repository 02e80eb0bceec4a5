//! Records in memory: for simulated worlds, where they outlive the processes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Name, SpillError};
use crate::client::ClientId;

/// Clones share their records.
#[derive(Clone, Default)]
pub struct Memory(Arc<Shared>);

#[derive(Default)]
struct Shared {
    records: Mutex<BTreeMap<Name, String>>,
    cut: AtomicBool,
}

impl Memory {
    /// Whether it answers at all from now on.
    pub fn cut(&self, cut: bool) {
        self.0.cut.store(cut, Ordering::Relaxed);
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.0.records.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn records(&self) -> Result<MutexGuard<'_, BTreeMap<Name, String>>, SpillError> {
        if self.0.cut.load(Ordering::Relaxed) {
            return Err(SpillError::Place("cut".into()));
        }
        Ok(self.0.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn put(&self, name: &Name, sealed: &str) -> Result<(), SpillError> {
        self.records()?.insert(name.clone(), sealed.to_owned());
        Ok(())
    }

    pub(super) fn list(&self, client: Option<&ClientId>) -> Result<Vec<Name>, SpillError> {
        let records = self.records()?;
        Ok(records.keys().filter(|name| client.is_none_or(|id| name.client == *id)).cloned().collect())
    }

    pub(super) fn fetch(&self, name: &Name) -> Result<Option<String>, SpillError> {
        Ok(self.records()?.get(name).cloned())
    }

    pub(super) fn remove(&self, name: &Name) -> Result<(), SpillError> {
        self.records()?.remove(name);
        Ok(())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("records", &self.len()).finish()
    }
}
