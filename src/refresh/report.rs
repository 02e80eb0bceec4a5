//! What a refresh leaves for whoever asked for it.

use super::Known;
use crate::reply::Reply;

/// How a refresh ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// New tokens are stored.
    Refreshed,
    /// It was not needed: somebody else had done it, or the client is paused.
    NotNeeded,
    /// Somebody else holds the lease, or something newer is stored.
    Conflict,
    /// There is no such client any more.
    Removed,
    /// It failed with this code, and will be tried again.
    Failed(String),
    /// It failed with this code, and an operator has to decide.
    Held(String),
    /// The provider said with this code that the grant is gone.
    Dead(String),
    /// The store gave no answer; nothing was sent.
    StoreUnavailable(String),
}

impl Outcome {
    /// In one word, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refreshed => "refreshed",
            Self::NotNeeded => "not_needed",
            Self::Conflict => "conflict",
            Self::Removed => "removed",
            Self::Failed(_) => "failed",
            Self::Held(_) => "held",
            Self::Dead(_) => "dead",
            Self::StoreUnavailable(_) => "store_unavailable",
        }
    }

    /// What went wrong, in one word.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Failed(code) | Self::Held(code) | Self::Dead(code) | Self::StoreUnavailable(code) => {
                Some(code)
            }
            _ => None,
        }
    }
}

/// What a refresh leaves for whoever asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// The client as it stands now; `None` where that is not known and has to be read.
    pub known: Option<Known>,
    /// The last reply, where anything was sent: for the breakers.
    pub reply: Option<Reply>,
}

impl Report {
    pub(super) fn unread(outcome: Outcome) -> Self {
        Self { outcome, known: None, reply: None }
    }
}
