//! What operators do to clients, over any store: read, plan, apply, and again when somebody was quicker.
//!
//! Every operation is one conditional change, so that nothing is half-written. A change that was lost is planned anew
//! from what stands there now, and a write whose answer was lost is recognised by its own traces: it is never done
//! twice.

mod diff;

use std::time::Duration;

pub(crate) use diff::without_query;
pub use diff::{Field, Step, Wanted, diff};

use crate::client::{Client, ClientId, Provider};
use crate::entropy::Entropy;
use crate::item::{Action, Assignment, Change, Item, Key};
use crate::plan::lease::{Standing, standing};
use crate::plan::registry::{self, Imported, Refusal, Resolution};
use crate::record::{Malformed, Partition, Snapshot};
use crate::store::{Applied, Store, StoreError};
use crate::time::Clock;

/// How often a change is planned, at most.
const TRIES: u32 = 8;
/// The longest wait before the second try; doubled with each.
const PAUSE: Duration = Duration::from_millis(50);

/// Why an operation was not carried out.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegistrarError {
    /// The plan refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// An item cannot be understood; it was left as it is.
    #[error("{0}; nothing was written: repair or delete that item by hand")]
    Malformed(#[from] Malformed),
    /// The store gave no answer, or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else was quicker each time.
    #[error("client `{0}` changed under every try: nothing was written, try again")]
    Contended(ClientId),
    /// The last write went unanswered.
    #[error(
        "client `{0}`: unknown whether the change was written, look with `perennial clients show {0}`: {1}"
    )]
    Unanswered(ClientId, StoreError),
}

/// Whether anything had to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It was so already.
    Unchanged,
}

/// What is to be written, and what to tell the operator about it.
type Planned<T> = Result<(Option<Change>, T), Refusal>;

/// Carries out operators' changes.
pub struct Registrar<'a, S> {
    /// The table.
    pub store: &'a S,
    /// Wall time for stamps; waits between tries.
    pub clock: &'a dyn Clock,
    /// Jitter between tries.
    pub entropy: &'a Entropy,
    /// Virtual shards of the table.
    pub shards: u32,
}

impl<S: Store> Registrar<'_, S> {
    /// A client's items as they stand.
    pub async fn read(&self, id: &ClientId) -> Result<Snapshot, RegistrarError> {
        Ok(self.store.read(id).await?.decode(id)?)
    }

    /// Makes the registration what is wanted. Of `tokens` nothing is used where a live grant stands, unless `replace`
    /// says that they are newer.
    pub async fn put(
        &self,
        wanted: &Wanted,
        tokens: &Imported,
        provider: &Provider,
        replace: bool,
    ) -> Result<Step, RegistrarError> {
        let id = &wanted.client.id;
        self.change(id, |read| {
            let step = diff(wanted, read, tokens, provider, replace)?;
            let change = self.change_of(&step, wanted, read, tokens, provider)?;
            Ok((change, step))
        })
        .await
    }

    /// Registers a client that is not registered yet. A live refresh token that another tool stored is adopted, and
    /// replaced only where `replace` says that the given one is newer.
    pub async fn register(
        &self,
        wanted: &Wanted,
        tokens: &Imported,
        provider: &Provider,
        replace: bool,
    ) -> Result<Step, RegistrarError> {
        let id = &wanted.client.id;
        self.change(id, |read| {
            if read.client().is_some() {
                return Err(Refusal::Exists(id.clone()));
            }
            let step = diff(wanted, read, tokens, provider, replace)?;
            let change = self.change_of(&step, wanted, read, tokens, provider)?;
            Ok((change, step))
        })
        .await
    }

    fn change_of(
        &self,
        step: &Step,
        wanted: &Wanted,
        read: &Snapshot,
        tokens: &Imported,
        provider: &Provider,
    ) -> Result<Option<Change>, Refusal> {
        let now = self.clock.now();
        let client = wanted.over(read, now, step.mints_anew());
        let binding = client.binding(provider);
        match (step, read.client()) {
            (Step::Unchanged, _) => Ok(None),
            (Step::Create { adopts: true }, _) => {
                registry::register(&client, read, &Imported::nothing(), &binding, self.shards, now).map(Some)
            }
            (Step::Create { .. }, _) => {
                registry::register(&client, read, tokens, &binding, self.shards, now).map(Some)
            }
            (Step::Update { .. }, Some(was)) => Ok(Some(registry::reconfigure(&client, was, self.shards))),
            (Step::Update { .. }, None) => Err(Refusal::NotRegistered(client.id)),
            (Step::Replace { minted, .. }, _) => {
                let config = Some((&client, self.shards));
                let tokens = if *minted { &Imported::nothing() } else { tokens };
                registry::outside_write(&client.id, read, tokens, &binding, config, now).map(Some)
            }
        }
    }

    /// Pauses or resumes a client.
    pub async fn pause(&self, id: &ClientId, paused: bool) -> Result<Outcome, RegistrarError> {
        self.edit(id, |client, _| {
            Ok((client.paused != paused).then(|| registry::pause(client, paused, self.clock.now())))
        })
        .await
    }

    /// Asks for a new token at once. Refused where nothing would come of it.
    pub async fn refresh_now(&self, id: &ClientId) -> Result<Outcome, RegistrarError> {
        self.edit(id, |client, read| {
            let stored = read.tok_gen();
            let refuse = |why: &str| Err(Refusal::Inconsistent(id.clone(), why.into()));
            match read.lease.as_ref().map(|lease| standing(lease, stored)) {
                _ if client.paused => refuse("it is paused: `perennial clients resume` comes first"),
                Some(Standing::Dead) => {
                    refuse("its grant is gone: it needs `perennial clients import-token`")
                }
                Some(Standing::Held) => refuse("it is held in doubt: it needs `perennial clients resolve`"),
                _ if client.refresh_now.is_some_and(|asked| asked >= stored) => Ok(None),
                _ => Ok(Some(registry::refresh_now(client, stored, self.clock.now()))),
            }
        })
        .await
    }

    async fn edit(
        &self,
        id: &ClientId,
        plan: impl Fn(&Client, &Snapshot) -> Result<Option<Change>, Refusal>,
    ) -> Result<Outcome, RegistrarError> {
        self.change(id, |read| {
            let client = read.client().ok_or_else(|| Refusal::NotRegistered(id.clone()))?;
            let change = plan(client, read)?;
            let outcome = if change.is_some() { Outcome::Done } else { Outcome::Unchanged };
            Ok((change, outcome))
        })
        .await
    }

    /// Removes a client and its tokens.
    pub async fn remove(&self, id: &ClientId) -> Result<(), RegistrarError> {
        self.change(id, |read| Ok((Some(registry::remove(id, read, self.clock.now())?), ()))).await
    }

    /// Puts tokens from outside in the place of those that are stored. A live refresh token is replaced only where
    /// `replace` says so.
    pub async fn import(
        &self,
        id: &ClientId,
        tokens: &Imported,
        provider: &Provider,
        replace: bool,
    ) -> Result<(), RegistrarError> {
        self.change(id, |read| {
            let client = read.client().ok_or_else(|| Refusal::NotRegistered(id.clone()))?;
            if client.grant.needs_refresh_token() && tokens.refresh_token.is_none() {
                return Err(Refusal::NeedsRefreshToken(id.clone()));
            }
            if diff::has_live_grant(read) && !replace {
                return Err(Refusal::LiveGrant(id.clone()));
            }
            let binding = client.binding(provider);
            let change = registry::outside_write(id, read, tokens, &binding, None, self.clock.now())?;
            Ok((Some(change), ()))
        })
        .await
    }

    /// Ends a hold.
    pub async fn resolve(&self, id: &ClientId, resolution: Resolution) -> Result<(), RegistrarError> {
        self.change(id, |read| Ok((Some(registry::resolve(id, read, resolution)?), ()))).await
    }

    async fn change<T>(
        &self,
        id: &ClientId,
        plan: impl Fn(&Snapshot) -> Planned<T>,
    ) -> Result<T, RegistrarError> {
        let mut pending: Option<(Change, T)> = None;
        let mut unanswered = None;
        for attempt in 0..TRIES {
            if attempt > 0 {
                self.clock.sleep((PAUSE * 2_u32.pow(attempt - 1)).mul_f64(self.entropy.unit())).await;
            }
            let partition = match self.store.read(id).await {
                Ok(partition) => partition,
                Err(error) if error.is_transient() && attempt + 1 < TRIES => continue,
                Err(error) if unanswered.is_none() => return Err(error.into()),
                Err(error) => return Err(RegistrarError::Unanswered(id.clone(), error)),
            };
            if let Some((_, told)) = pending.take_if(|(change, _)| landed(change, &partition)) {
                return Ok(told);
            }
            unanswered = None;
            let (change, told) = plan(&partition.decode(id)?)?;
            let Some(change) = change else { return Ok(told) };
            match self.store.apply(&change).await {
                Ok(Applied::Committed) => return Ok(told),
                Ok(Applied::Lost(_)) => {}
                Err(error) if error.is_transient() => unanswered = Some(error),
                Err(error) => return Err(error.into()),
            }
            pending = Some((change, told));
        }
        Err(match unanswered {
            Some(error @ StoreError::Unavailable(_)) => RegistrarError::Unanswered(id.clone(), error),
            Some(error) => error.into(),
            None => RegistrarError::Contended(id.clone()),
        })
    }
}

/// Whether a change has been written after all. `CONFIG` tells where the change has a part in it: operators alone
/// write it, each with a stamp of their own. The other items may have moved on meanwhile.
fn landed(change: &Change, read: &Partition) -> bool {
    let of_config = change.0.iter().find(|write| matches!(write.key, Key::Config(_)));
    let Some(write) = of_config.or(change.0.first()) else { return false };
    let found = match &write.key {
        Key::Config(_) => &read.config,
        Key::Lease(_) => &read.lease,
        Key::Token(_) => &read.token,
        Key::Schema => return false,
    };
    found.as_ref().is_some_and(|item| shows(item, &write.action))
}

fn shows(item: &Item, action: &Action) -> bool {
    match action {
        Action::Put(put) => item == put,
        Action::Update(assignments) => assignments.iter().all(|assignment| match assignment {
            Assignment::Set(name, value) => item.get(name) == Some(value),
            Assignment::Remove(name) => item.get(name).is_none(),
            Assignment::Add(..) => false,
        }),
        Action::Delete | Action::Check => false,
    }
}
