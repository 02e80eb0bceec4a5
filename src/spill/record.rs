//! What a record holds: an answer, and everything that its commit needs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Name, SpillError};
use crate::client::{Binding, ClientId, Grant};
use crate::plan::lease::Commit;
use crate::record::Gen;
use crate::reply::{Lifetime, Tokens};
use crate::seal::{Label, LocalKeys, SealError};
use crate::secret::Secret;
use crate::time::Timestamp;

/// What is sealed, in its header.
const ATTRIBUTE: &str = "spill";

/// An answer that is not in the table yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose tokens.
    pub client: ClientId,
    /// The attempt's generation.
    pub generation: Gen,
    /// The tokens, and what is stored beside them.
    pub commit: Commit,
}

/// As it is sealed. Times are epoch milliseconds.
#[derive(Serialize, Deserialize)]
struct Form {
    access_token: String,
    refresh_token: Option<String>,
    token_type: Option<String>,
    scope: Option<String>,
    expires_at: i64,
    refresh_at: i64,
    granted_at: i64,
    binding: String,
    grant: String,
}

impl Drop for Form {
    fn drop(&mut self) {
        use zeroize::Zeroize as _;
        self.access_token.zeroize();
        self.refresh_token.zeroize();
    }
}

impl Record {
    /// The answer of this commit.
    pub fn of(client: &ClientId, commit: &Commit) -> Self {
        Self { client: client.clone(), generation: commit.generation, commit: commit.clone() }
    }

    /// What it is called.
    pub fn name(&self) -> Name {
        Name { client: self.client.clone(), generation: self.generation }
    }

    pub(super) fn seal(&self, keys: &LocalKeys, table: &str, now: Timestamp) -> Result<String, SealError> {
        let Commit { tokens, expires_at, refresh_at, now: granted_at, binding, grant, .. } = &self.commit;
        let expose = |secret: &Secret| secret.expose().to_owned();
        let form = Form {
            access_token: expose(&tokens.access_token),
            refresh_token: tokens.refresh_token.as_ref().map(expose),
            token_type: tokens.token_type.clone(),
            scope: tokens.scope.clone(),
            expires_at: expires_at.as_millis(),
            refresh_at: refresh_at.as_millis(),
            granted_at: granted_at.as_millis(),
            binding: binding.0.clone(),
            grant: grant.as_str().to_owned(),
        };
        let text = zeroize::Zeroizing::new(serde_json::to_vec(&form).map_err(|_| SealError::Unsealed)?);
        keys.seal(&text, &label(table, &self.name()), now)
    }

    /// The record, and when it was sealed.
    pub(super) fn open(
        sealed: &str,
        name: &Name,
        keys: &LocalKeys,
        table: &str,
    ) -> Result<(Self, Timestamp), SpillError> {
        let opened = keys.open(sealed.trim_end(), &label(table, name));
        let opened = opened.map_err(|error| SpillError::Sealed(name.clone(), error))?;
        let malformed = || SpillError::Malformed(name.clone());
        let mut form: Form = serde_json::from_slice(&opened.content).map_err(|_| malformed())?;
        let grant: Grant = form.grant.parse().map_err(|_| malformed())?;
        let tokens = Tokens {
            access_token: Secret::new(std::mem::take(&mut form.access_token)),
            refresh_token: form.refresh_token.take().map(Secret::new),
            token_type: form.token_type.take(),
            scope: form.scope.take(),
            lifetime: Lifetime::Missing,
        };
        let commit = Commit {
            generation: name.generation,
            tokens,
            expires_at: Timestamp::from_millis(form.expires_at),
            refresh_at: Timestamp::from_millis(form.refresh_at),
            now: Timestamp::from_millis(form.granted_at),
            binding: Binding(std::mem::take(&mut form.binding)),
            grant,
            // A replay never creates an item: it could bring a removed client back.
            item_exists: true,
        };
        let record = Self { client: name.client.clone(), generation: name.generation, commit };
        Ok((record, opened.sealed_at))
    }
}

fn label<'a>(table: &'a str, name: &'a Name) -> Label<'a> {
    Label { table, client: name.client.as_str(), attribute: ATTRIBUTE, version: name.generation.0 }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({})", self.name())
    }
}
