//! From the spill into the table, through the same fence as every commit.

use tracing::{error, info, warn};

use super::{Name, Record, Spill, SpillError};
use crate::item::attr;
use crate::plan::lease;
use crate::store::{Applied, Store, StoreError};

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Its tokens are in the table now.
    Stored,
    /// They were there already.
    Known,
    /// The table has newer ones.
    Superseded,
    /// The client is no longer registered, or a grant that can always be minted again has lost its item.
    Gone,
    /// The client is registered elsewhere now: these tokens are another registration's.
    Misplaced,
}

impl Replayed {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Known => "known",
            Self::Superseded => "superseded",
            Self::Gone => "gone",
            Self::Misplaced => "misplaced",
        }
    }

    /// Whether nobody needs the record any more.
    pub fn is_done(self) -> bool {
        self != Self::Misplaced
    }
}

/// Commits one record, unless the table has something newer.
///
/// # Errors
/// Where the table gives no answer: the record stays.
pub async fn replay<S: Store>(record: &Record, store: &S) -> Result<Replayed, StoreError> {
    let snapshot = store.read(&record.client).await?.decode(&record.client);
    let snapshot = snapshot.map_err(|malformed| StoreError::Refused(malformed.to_string()))?;
    let (Some(_), Some(token)) = (snapshot.client(), &snapshot.token) else { return Ok(Replayed::Gone) };
    if token.generation == record.generation {
        return Ok(Replayed::Known);
    }
    // Registered anew since, with another provider or application: a higher generation says so, or the binding does.
    if token.generation < record.generation
        && token.binding.as_ref().is_some_and(|bound| *bound != record.commit.binding)
    {
        return Ok(Replayed::Misplaced);
    }
    match store.apply(&lease::commit(&record.client, &record.commit)).await? {
        Applied::Committed => Ok(Replayed::Stored),
        Applied::Lost(found) if found.iter().flatten().any(|item| item.get(attr::TOK_GEN).is_some()) => {
            Ok(Replayed::Superseded)
        }
        Applied::Lost(_) => Ok(Replayed::Gone),
    }
}

/// Replays every record, and removes those that nobody needs any more. One that cannot be is named and left alone.
///
/// # Errors
/// Where a place does not answer.
pub async fn replay_all<S: Store>(
    spill: &Spill,
    store: &S,
) -> Result<Vec<(Name, Result<Replayed, String>)>, SpillError> {
    let mut told = Vec::new();
    for (name, record) in spill.all().await? {
        let outcome = match record {
            Ok(record) => replay(&record, store).await.map_err(|error| error.to_string()),
            Err(problem) => {
                error!(alarm = "spill_unreadable", client = %name.client, %problem, "a spilled record cannot be used");
                Err(problem.to_string())
            }
        };
        match &outcome {
            Ok(Replayed::Misplaced) => error!(
                alarm = "spill_misplaced",
                client = %name.client,
                generation = name.generation.0,
                "spilled tokens belong to another registration of this client: remove the record if nobody misses them"
            ),
            Ok(done) => {
                info!(client = %name.client, generation = name.generation.0, outcome = done.as_str(), "replayed from the spill");
                if let Err(error) = spill.remove(&name).await {
                    warn!(client = %name.client, %error, "a record that is done with could not be removed");
                }
            }
            Err(_) => {}
        }
        told.push((name, outcome));
    }
    Ok(told)
}
