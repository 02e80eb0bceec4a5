//! Copies of tokens that are quicker to read than the table, and may be behind it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::freshness::{self, Entry, Now, Question, Sighting, Standing};
use super::{Inner, access_token};
use crate::client::ClientId;
use crate::record::Token;
use crate::store::Store;

/// Where copies are. It answers within a short time that it keeps itself, whatever is the matter.
pub trait Copies: Send + Sync + 'static {
    /// A client's token, where there is a copy that can be read.
    fn copy<'a>(&'a self, id: &'a ClientId) -> Pin<Box<dyn Future<Output = Option<Copied>> + Send + 'a>>;
}

/// A copy.
#[derive(Clone, Debug)]
pub struct Copied {
    /// As it stood in the table.
    pub token: Token,
    /// How long it lives, by the clock of whoever keeps the copy.
    pub lives: Duration,
}

/// A copy that may be served, and when it was asked for.
pub(super) struct Seen {
    pub(super) sighting: Sighting,
    pub(super) asked: Now,
}

impl<S: Store> Inner<S> {
    /// A copy that is no step back.
    pub(super) async fn copy(&self, id: &ClientId, before: &Arc<Entry>, what: Question) -> Option<Seen> {
        let copies = self.copies.as_ref().filter(|_| what != Question::Table)?;
        let asked = self.now();
        let copied = tokio::select! {
            copied = copies.copy(id) => copied?,
            () = self.clock.sleep(self.settings.patience) => return None,
        };
        let sighting = sighting(copied, before, asked)?;
        freshness::is_usable(&sighting, before, self.now()).then_some(Seen { sighting, asked })
    }
}

/// Two clocks say how long it lives, and the more cautious one is believed: ours may be wrong, and the table has not yet
/// told the time.
fn sighting(copied: Copied, before: &Entry, asked: Now) -> Option<Sighting> {
    let token = access_token(copied.token)?;
    let seen_at = asked.wall.max(token.expires_at.minus(copied.lives));
    let last = before.sighting.as_ref();
    let standing = last.map_or(Standing::Kept, |last| last.standing.clone());
    let overlap = last.and_then(|last| last.overlap);
    Some(Sighting { token: Some(token), standing, overlap, seen: asked.moment, seen_at })
}
