//! Failpoints of the shipped program: a request or its answer is held on its way, and whoever set the trap hears of
//! it. What is done to the process meanwhile falls exactly between two steps of its refresh, with no change to it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::journal::Task;

/// A step of a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Acquire,
    Read,
    Send,
    Commit,
}

/// Before the request goes on, or before its answer goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Before,
    After,
}

/// Every place where a crash can fall.
pub(crate) const FAILPOINTS: [(Row, Side); 8] = [
    (Row::Acquire, Side::Before),
    (Row::Acquire, Side::After),
    (Row::Read, Side::Before),
    (Row::Read, Side::After),
    (Row::Send, Side::Before),
    (Row::Send, Side::After),
    (Row::Commit, Side::Before),
    (Row::Commit, Side::After),
];

/// What becomes of what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    Deliver,
    Drop,
}

/// A trap that is set, for whoever set it. Dropped, it lets everything pass.
pub(crate) struct Trap {
    caught: oneshot::Receiver<String>,
    release: oneshot::Sender<Release>,
}

impl Trap {
    /// The client whose refresh is held; `None` where the trap is gone.
    pub(crate) async fn caught(&mut self) -> Option<String> {
        (&mut self.caught).await.ok()
    }

    pub(crate) fn release(self, release: Release) {
        // The connection may have ended.
        self.release.send(release).ok();
    }
}

struct Armed {
    task: Task,
    place: (Row, Side),
    caught: oneshot::Sender<String>,
    release: oneshot::Receiver<Release>,
}

/// The traps that are set.
#[derive(Default)]
pub(crate) struct Traps(Mutex<Vec<Armed>>);

impl Traps {
    /// Catches the next passer-by.
    pub(crate) fn set(&self, task: Task, place: (Row, Side)) -> Trap {
        let ((caught, hears), (releases, release)) = (oneshot::channel(), oneshot::channel());
        self.armed().push(Armed { task, place, caught, release });
        Trap { caught: hears, release: releases }
    }

    /// Passes by; held where a trap is set.
    pub(crate) async fn pass(&self, task: Task, place: (Row, Side), client: &str) -> Release {
        let sprung = {
            let mut armed = self.armed();
            armed.retain(|trap| !trap.caught.is_closed());
            let found = armed.iter().position(|trap| trap.task == task && trap.place == place);
            found.map(|found| armed.swap_remove(found))
        };
        let Some(trap) = sprung else { return Release::Deliver };
        if trap.caught.send(client.to_owned()).is_err() {
            return Release::Deliver;
        }
        trap.release.await.unwrap_or(Release::Deliver)
    }

    fn armed(&self) -> std::sync::MutexGuard<'_, Vec<Armed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
