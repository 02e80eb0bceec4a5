//! The table, for a program that reads access tokens and has no configuration of this one's.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::{Connection, DynamoVault, Role, StoreError, Vault};
use crate::seal::{Keeping, KeyAddress, Keys, KmsKeys, LocalKeys, Mode, Ring};
use crate::time::SystemClock;

/// How long an unwrapped key is used before KMS is asked again, which is what revoking a right takes; and how much longer
/// while KMS gives no answer: the defaults of `sealing.fresh` and `sealing.stale`.
const KEEPING: Keeping = Keeping { fresh: Duration::from_secs(1800), stale: Duration::from_secs(12 * 3600) };

/// Where access tokens are read, and what opens those that are sealed.
pub struct Reading {
    /// The table.
    pub table: Connection,
    /// The table's name in what is sealed, where it is not its own: `sealing.name`.
    pub sealed_as: Option<String>,
    /// The table of the keys that KMS wraps; none for `<name>-keys`.
    pub key_table: Option<String>,
    /// Another KMS endpoint than AWS's.
    pub kms_endpoint: Option<Url>,
    /// Keys of this machine, where `sealing.mode` is `"local"`.
    pub local: Option<LocalKeys>,
}

impl Reading {
    /// A table of this name. Region, credentials and endpoints are found as AWS's SDK finds them.
    pub fn of(table: impl Into<String>) -> Self {
        let table = Connection { table: table.into(), region: None, endpoint: None };
        Self { table, sealed_as: None, key_table: None, kms_endpoint: None, local: None }
    }

    /// Loads region and credentials, and sends nothing to the table yet. What it reads is access tokens: no other secret is
    /// opened, or even asked for. A [`crate::reader::Reader`] before it needs the rights that `perennial iam print agent` prints, but for
    /// `AsksForRefreshes`.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where no region can be found.
    pub async fn open(self) -> Result<DynamoVault, StoreError> {
        let clock = Arc::new(SystemClock);
        let store = self.table.connect(clock.clone()).await?;
        let name = self.sealed_as.unwrap_or_else(|| self.table.table.clone());
        let address = KeyAddress {
            table: self.key_table.unwrap_or_else(|| format!("{name}-keys")),
            region: self.table.region,
            endpoint: self.table.endpoint,
            kms_endpoint: self.kms_endpoint,
        };
        // A reader seals nothing: how many keys there are is no concern of its.
        let kms = Ring::new(KmsKeys::new(address), 1, KEEPING, clock.clone());
        let keys = Keys { mode: Mode::Off, local: self.local, kms: Some(kms) };
        Ok(Vault::new(store, &name, Arc::new(keys), clock, Role::Reader))
    }
}
