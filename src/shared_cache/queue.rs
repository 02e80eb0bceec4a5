//! What is yet to be published: bounded, one piece of news for each client, and nobody waits at it.
//!
//! Several may take from it at once, and never two of them news of one client: of a token and its removal the later one has
//! to come last.

use std::collections::{HashMap, HashSet, VecDeque};
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
    /// There may be something to take for one more.
    changed: Notify,
    /// Nothing is left.
    settled: Notify,
}

#[derive(Default)]
struct Waiting {
    order: VecDeque<ClientId>,
    news: HashMap<ClientId, News>,
    /// Of whom something was taken that is not done.
    at_work: HashSet<ClientId>,
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
    /// There is something to take.
    pub(super) async fn filled(&self) {
        while self.lock().next().is_none() {
            self.changed.notified().await;
        }
    }

    /// The news that has waited longest of those that can be taken; [`Queue::done`] follows.
    pub(super) fn take(&self) -> Option<(ClientId, News)> {
        let (taken, is_left) = {
            let mut waiting = self.lock();
            let at = waiting.next()?;
            let id = waiting.order.remove(at)?;
            let news = waiting.news.remove(&id)?;
            waiting.at_work.insert(id.clone());
            ((id, news), waiting.next().is_some())
        };
        // Where two were told of while nobody waited, one is woken.
        if is_left {
            self.changed.notify_one();
        }
        Some(taken)
    }

    /// What was taken of this client is done, or given `back` where it could not be: before everything else, unless there is
    /// fresher news.
    pub(super) fn done(&self, id: &ClientId, back: Option<News>) {
        let (dropped, is_settled) = {
            let mut waiting = self.lock();
            waiting.at_work.remove(id);
            if let Some(news) = back
                && !waiting.news.contains_key(id)
            {
                waiting.news.insert(id.clone(), news);
                waiting.order.push_front(id.clone());
            }
            (waiting.shed(), waiting.is_settled())
        };
        // What came meanwhile of the same client can be taken now.
        self.changed.notify_one();
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

    /// Where in the order that stands which can be taken.
    fn next(&self) -> Option<usize> {
        self.order.iter().position(|id| !self.at_work.contains(id))
    }

    fn is_settled(&self) -> bool {
        self.order.is_empty() && self.at_work.is_empty()
    }
}

fn count_dropped(dropped: u64) {
    if dropped > 0 {
        metrics::SHARED_CACHE_PUBLICATIONS.add(&["dropped"], dropped);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

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
        assert_eq!(queue.take(), Some((id(1), News::Removed)));
        queue.done(&id(1), Some(News::Removed));
        assert_eq!(queue.take(), Some((id(1), News::Removed)), "given back");
        queue.tell(&id(1), News::Changed);
        queue.done(&id(1), Some(News::Removed));
        assert_eq!(queue.take(), Some((id(2), News::Changed)));
        assert_eq!(queue.take(), Some((id(1), News::Changed)), "overtaken");
        assert_eq!(queue.take(), None);
    }

    #[test]
    fn what_comes_of_a_client_whose_last_news_is_at_work_waits_and_keeps_nobody() {
        let queue = Queue::default();
        queue.tell(&id(1), News::Changed);
        assert_eq!(queue.take(), Some((id(1), News::Changed)));
        queue.tell(&id(1), News::Removed);
        assert_eq!(queue.take(), None);
        queue.tell(&id(2), News::Changed);
        assert_eq!(queue.take(), Some((id(2), News::Changed)));
        queue.done(&id(1), None);
        assert_eq!(queue.take(), Some((id(1), News::Removed)));
        assert!(!queue.lock().is_settled());
        [1, 2].iter().for_each(|number| queue.done(&id(*number), None));
        assert!(queue.lock().is_settled());
    }

    #[test]
    fn whoever_takes_news_wakes_another_where_there_is_more() {
        let queue = Queue::default();
        let is_woken = || queue.changed.notified().now_or_never().is_some();
        [1, 2].iter().for_each(|number| queue.tell(&id(*number), News::Changed));
        assert_eq!((is_woken(), is_woken()), (true, false), "nobody waited, and that is remembered once");
        assert_eq!(queue.take(), Some((id(1), News::Changed)));
        assert!(is_woken());
        assert_eq!(queue.take(), Some((id(2), News::Changed)));
        assert!(!is_woken());
    }
}
