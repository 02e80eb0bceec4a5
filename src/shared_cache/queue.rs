//! What is yet to be published: bounded, one piece of news for each client, and nobody waits at it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::client::ClientId;
use crate::metrics;
use crate::store::{Herald, News};

/// Clients that there may be news of. Where there are more, those that have waited longest are dropped.
const MOST: usize = 4096;

/// News that wait for the publisher.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
    /// Nothing is left.
    settled: Notify,
}

#[derive(Default)]
struct Waiting {
    order: VecDeque<ClientId>,
    news: HashMap<ClientId, News>,
    /// Whether the publisher has taken something that is not done.
    at_work: bool,
}

impl Herald for Queue {
    fn tell(&self, id: &ClientId, news: News) {
        let dropped = {
            let mut waiting = self.lock();
            // What was heard before is overtaken, and keeps its place.
            if waiting.news.insert(id.clone(), news).is_none() {
                waiting.order.push_back(id.clone());
            }
            waiting.shed()
        };
        self.changed.notify_one();
        count_dropped(dropped);
    }
}

impl Queue {
    /// There is something to do.
    pub(super) async fn filled(&self) {
        loop {
            if !self.lock().order.is_empty() {
                return;
            }
            self.changed.notified().await;
        }
    }

    /// The news that has waited longest; [`Queue::done`] follows.
    pub(super) fn take(&self) -> Option<(ClientId, News)> {
        let mut waiting = self.lock();
        let id = waiting.order.pop_front()?;
        let news = waiting.news.remove(&id)?;
        waiting.at_work = true;
        Some((id, news))
    }

    /// What was taken is done, or given back where it could not be: before everything else, unless there is fresher news.
    pub(super) fn done(&self, back: Option<(ClientId, News)>) {
        let (dropped, is_settled) = {
            let mut waiting = self.lock();
            waiting.at_work = false;
            if let Some((id, news)) = back
                && !waiting.news.contains_key(&id)
            {
                waiting.news.insert(id.clone(), news);
                waiting.order.push_front(id);
            }
            (waiting.shed(), waiting.is_settled())
        };
        count_dropped(dropped);
        if is_settled {
            self.settled.notify_waiters();
        }
    }

    /// Nothing is left to do.
    pub(super) async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.lock().is_settled() {
                return;
            }
            settled.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// How many were dropped for want of room.
    fn shed(&mut self) -> u64 {
        let mut dropped = 0;
        while self.order.len() > MOST {
            if let Some(oldest) = self.order.pop_front() {
                self.news.remove(&oldest);
                dropped += 1;
            }
        }
        dropped
    }

    fn is_settled(&self) -> bool {
        self.order.is_empty() && !self.at_work
    }
}

fn count_dropped(dropped: u64) {
    if dropped > 0 {
        metrics::SHARED_CACHE_PUBLICATIONS.add(&["dropped"], dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ClientId {
        ClientId::new(format!("c{number}")).expect("an id")
    }

    #[test]
    fn the_oldest_goes_where_there_is_no_room() {
        let queue = Queue::default();
        (0..=MOST).for_each(|number| queue.tell(&id(number), News::Changed));
        assert_eq!(queue.take(), Some((id(1), News::Changed)));
        assert_eq!(queue.lock().order.len(), MOST - 1);
        assert_eq!(queue.lock().news.len(), MOST - 1);
    }

    #[test]
    fn of_one_client_only_the_last_news_counts() {
        let queue = Queue::default();
        queue.tell(&id(1), News::Changed);
        queue.tell(&id(2), News::Changed);
        queue.tell(&id(1), News::Removed);
        let taken = queue.take().expect("news");
        assert_eq!(taken, (id(1), News::Removed));
        queue.done(Some(taken));
        assert_eq!(queue.take(), Some((id(1), News::Removed)), "given back");
        queue.tell(&id(1), News::Changed);
        queue.done(Some((id(1), News::Removed)));
        assert_eq!(queue.take(), Some((id(2), News::Changed)));
        assert_eq!(queue.take(), Some((id(1), News::Changed)), "overtaken");
        assert_eq!(queue.take(), None);
    }
}
