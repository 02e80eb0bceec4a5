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
    /// The client was removed, or a grant that can always be minted again has lost its item.
    Gone,
    /// The table has never heard of the client: it may be another one of the same name.
    Unknown,
    /// The client is registered elsewhere now: these tokens are another registration's.
    Misplaced,
    /// The table has never come so far: it was restored to an earlier time.
    Ahead,
}

impl Replayed {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Known => "known",
            Self::Superseded => "superseded",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
            Self::Misplaced => "misplaced",
            Self::Ahead => "ahead",
        }
    }

    /// Whether nobody needs the record any more.
    pub fn is_done(self) -> bool {
        !matches!(self, Self::Misplaced | Self::Ahead | Self::Unknown)
    }
}

/// Commits one record, unless the table has something newer.
///
/// # Errors
/// Where the table gives no answer: the record stays.
pub async fn replay<S: Store>(record: &Record, store: &S) -> Result<Replayed, StoreError> {
    let snapshot = store.read(&record.client).await?.decode(&record.client);
    let snapshot = snapshot.map_err(|malformed| StoreError::Refused(malformed.to_string()))?;
    if snapshot.lease.is_none() {
        return Ok(Replayed::Unknown);
    }
    let (Some(_), Some(token)) = (snapshot.client(), &snapshot.token) else { return Ok(Replayed::Gone) };
    if token.generation == record.generation {
        return Ok(Replayed::Known);
    }
    // A token of a generation that the lease has yet to reach would fence every attempt out until it does.
    if snapshot.lease.as_ref().is_none_or(|lease| lease.generation < record.generation) {
        return Ok(Replayed::Ahead);
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

/// What became of each record, in words where it could not be replayed.
pub type Told = Vec<(Name, Result<Replayed, String>)>;

/// Replays every record, and removes those that nobody needs any more. One that cannot be replayed is named and left
/// alone. The error says that there may be more, since a place does not answer.
pub async fn replay_all<S: Store>(spill: &Spill, store: &S) -> (Told, Option<SpillError>) {
    let (names, silent) = spill.names().await;
    let mut told = Vec::new();
    for name in names {
        let outcome = match spill.record(&name).await {
            Ok(None) => continue,
            Ok(Some(record)) => replay(&record, store).await.map_err(|error| refused(&name, &error)),
            Err(problem) => {
                error!(alarm = "spill_unreadable", client = %name.client, %problem, "a spilled record cannot be used");
                Err(problem.to_string())
            }
        };
        if let Ok(done) = &outcome {
            finish(spill, &name, *done).await;
        }
        told.push((name, outcome));
    }
    (told, silent)
}

fn refused(name: &Name, error: &StoreError) -> String {
    let (client, generation) = (&name.client, name.generation.0);
    if error.is_transient() {
        warn!(%client, generation, %error, "a spilled record could not be stored yet: trying again");
    } else {
        error!(alarm = "spill_refused", %client, generation, %error, "the table does not take a spilled record");
    }
    error.to_string()
}

async fn finish(spill: &Spill, name: &Name, done: Replayed) {
    let (client, generation, outcome) = (&name.client, name.generation.0, done.as_str());
    if !done.is_done() {
        error!(
            alarm = "spill_misplaced",
            %client,
            generation,
            outcome,
            "spilled tokens that do not fit what the table holds (another registration, another table of that name, or one \
             that was restored): the record is kept, remove it if nobody misses it"
        );
        return;
    }
    info!(%client, generation, outcome, "replayed from the spill");
    if let Err(error) = spill.remove(name).await {
        warn!(%client, %error, "a record that is done with could not be removed");
    }
}
