//! Passes on what a daemon has stored: behind its back, so that no refresh waits for the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tracing::{debug, warn};

use super::CacheError;
use super::entry::{self, Entry};
use super::link::{Line, Link};
use super::queue::Queue;
use crate::client::ClientId;
use crate::item::{Item, Key};
use crate::metrics;
use crate::store::{News, Store, View};
use crate::time::Clock;

/// What the server may take over one piece of news before the connection is given up.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the table may take over one before it is left for the client's next refresh.
const PATIENCE_WITH_TABLE: Duration = Duration::from_secs(2);
/// How many clients are published at once: one whom the table is slow with keeps no others.
const AT_ONCE: usize = 8;

/// What is to be done at the server.
enum Deed {
    Put(Item),
    Remove,
}

/// Publishes what the queue holds.
pub struct Publisher<S> {
    queue: Arc<Queue>,
    link: Arc<Link>,
    /// The table as it stands: what is sealed there stays sealed.
    store: S,
    clock: Arc<dyn Clock>,
    /// Whether the trouble that there is has been told.
    told: AtomicBool,
}

impl<S: Store> Publisher<S> {
    /// Reads in this store, which opens nothing, what has to be read.
    pub fn new(queue: Arc<Queue>, link: Arc<Link>, store: S, clock: Arc<dyn Clock>) -> Self {
        Self { queue, link, store, clock, told: AtomicBool::new(false) }
    }

    /// Publishes for as long as it is polled.
    pub async fn run(&self) {
        join_all((0..AT_ONCE).map(|_| self.work())).await;
    }

    /// Waits until everything is published, for at most so long, and not at all while the server is away.
    pub async fn finish(&self, patience: Duration) {
        if self.link.is_up() {
            tokio::select! {
                () = self.queue.settled() => {}
                () = self.clock.sleep(patience) => debug!("not everything was published before the end"),
            }
        }
    }

    async fn work(&self) {
        loop {
            self.queue.filled().await;
            // Taken only where there is somebody to take it to: until then fresher news overtakes it.
            let line = self.link.up().await;
            let Some((id, news)) = self.queue.take() else { continue };
            let back = match self.pass_on(&line, &id, &news).await {
                Ok(outcome) => {
                    metrics::SHARED_CACHE_PUBLICATIONS.add(&[outcome], 1);
                    self.told.store(false, Ordering::Relaxed);
                    None
                }
                Err(CacheError::Unreachable(_)) => {
                    line.give_up();
                    Some(news)
                }
                Err(error) => {
                    metrics::SHARED_CACHE_PUBLICATIONS.add(&["failed"], 1);
                    if !self.told.swap(true, Ordering::Relaxed) {
                        warn!(client = %id, %error, "a token could not be published");
                    }
                    None
                }
            };
            self.queue.done(&id, back);
        }
    }

    /// The outcome, in a word. A table that is slow says nothing about the server.
    async fn pass_on(&self, line: &Line, id: &ClientId, news: &News) -> Result<&'static str, CacheError> {
        // What cannot be read is published with its next refresh.
        let Some(deed) = self.deed(id, news).await else { return Ok("failed") };
        let done = async {
            match &deed {
                Deed::Put(item) => self.put(line, id, item).await,
                Deed::Remove => self.remove(line, id).await,
            }
        };
        tokio::select! {
            done = done => done,
            () = self.clock.sleep(PATIENCE) => Err(CacheError::Unreachable("no answer in time".into())),
        }
    }

    async fn deed(&self, id: &ClientId, news: &News) -> Option<Deed> {
        match news {
            News::Stored(item) => return Some(Deed::Put(item.clone())),
            News::Removed => return Some(Deed::Remove),
            News::Changed => {}
        }
        let keys = [Key::Token(id.clone())];
        let read = tokio::select! {
            read = self.store.load(&keys, View::Reader) => read,
            () = self.clock.sleep(PATIENCE_WITH_TABLE) => {
                debug!(client = %id, "a token that changed could not be read in time");
                return None;
            }
        };
        match read.map(|found| found.into_iter().next()) {
            Ok(Some((_, item))) => Some(Deed::Put(item)),
            Ok(None) => Some(Deed::Remove),
            Err(error) => {
                debug!(client = %id, %error, "a token that changed could not be read");
                None
            }
        }
    }

    async fn put(&self, line: &Line, id: &ClientId, item: &Item) -> Result<&'static str, CacheError> {
        let now = self.clock.now();
        let good = |entry: &Entry| entry.expires_at > now;
        let Some(entry) = entry::encode(item).filter(good) else { return Ok("skipped") };
        let written = line.connection.clone().put(&self.key(id), &entry).await?;
        Ok(if written { "published" } else { "superseded" })
    }

    async fn remove(&self, line: &Line, id: &ClientId) -> Result<&'static str, CacheError> {
        line.connection.clone().remove(&self.key(id)).await?;
        Ok("removed")
    }

    fn key(&self, id: &ClientId) -> String {
        entry::key(&self.link.settings().prefix, id)
    }
}
