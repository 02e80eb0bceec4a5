//! What an agent finds there: for a short time, and only what opens and expires.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::warn;

use super::CacheError;
use super::entry::{self, Unusable};
use super::link::Link;
use super::wire::Held;
use crate::client::ClientId;
use crate::metrics;
use crate::reader::{Copied, Copies};
use crate::record::Partition;
use crate::store::{Store, Vault};
use crate::time::Clock;

/// Looks at the server before the table is asked.
pub struct Lookup<S> {
    link: Arc<Link>,
    /// Opens what it finds, as if it stood in the table.
    vault: Vault<S>,
    clock: Arc<dyn Clock>,
    /// Whether the last look was refused.
    refused: AtomicBool,
}

impl<S: Store> Lookup<S> {
    /// Opens by this vault.
    pub fn new(link: Arc<Link>, vault: Vault<S>, clock: Arc<dyn Clock>) -> Self {
        Self { link, vault, clock, refused: AtomicBool::new(false) }
    }

    async fn copy(&self, id: &ClientId) -> Option<Copied> {
        let (result, copied) = match self.held(id).await {
            Ok(None) => ("miss", None),
            Ok(Some(held)) => match self.understand(id, &held).await {
                Ok(copied) => ("hit", Some(copied)),
                Err(problem) => (unusable(id, &problem), None),
            },
            Err(Some(error @ CacheError::WrongType)) => (unusable(id, &error.to_string()), None),
            Err(Some(error @ CacheError::Refused(_))) => (self.refused(id, &error), None),
            Err(_) => ("failed", None),
        };
        if result != "failed" {
            self.refused.store(false, Ordering::Relaxed);
        }
        metrics::SHARED_CACHE_LOOKUPS.add(&[result], 1);
        copied
    }

    /// Told once, until it is over.
    fn refused(&self, id: &ClientId, error: &CacheError) -> &'static str {
        if !self.refused.swap(true, Ordering::Relaxed) {
            warn!(client = %id, %error, "the shared cache could not be read: asking the table");
        }
        "failed"
    }

    /// No error where there is no connection: that has been told.
    async fn held(&self, id: &ClientId) -> Result<Option<Held>, Option<CacheError>> {
        let settings = self.link.settings();
        let mut line = None;
        let asking = async {
            let at_hand = self.link.at_hand().await?;
            line = Some(at_hand.clone());
            Some(at_hand.connection.read(&entry::key(&settings.prefix, id)).await)
        };
        let answer = tokio::select! {
            answer = asking => answer.ok_or(None)?,
            () = self.clock.sleep(settings.patience) => Err(CacheError::Unreachable("no answer in time".into())),
        };
        // Whoever comes next does not wait for it: there is no connection until there is a better one.
        if let (Err(CacheError::Unreachable(_)), Some(line)) = (&answer, &line) {
            line.give_up();
        }
        answer.map_err(Some)
    }

    async fn understand(&self, id: &ClientId, held: &Held) -> Result<Copied, String> {
        let lives = held.lives.ok_or_else(|| Unusable::Eternal.to_string())?;
        let item = entry::decode(&held.bytes).map_err(|error| error.to_string())?;
        let token = Some(self.vault.open(id, item).await.map_err(|error| error.to_string())?);
        let partition = Partition { token, ..Partition::default() };
        let token = partition.decode(id).map_err(|error| error.to_string())?.token;
        token.map(|token| Copied { token, lives }).ok_or_else(|| Unusable::Malformed.to_string())
    }
}

fn unusable(id: &ClientId, problem: &str) -> &'static str {
    warn!(client = %id, problem, "an entry of the shared cache cannot be used: asking the table");
    "unusable"
}

impl<S: Store> Copies for Lookup<S> {
    fn copy<'a>(&'a self, id: &'a ClientId) -> Pin<Box<dyn Future<Output = Option<Copied>> + Send + 'a>> {
        Box::pin(self.copy(id))
    }
}
