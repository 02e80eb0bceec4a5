//! What operators do to clients, over any store: read, plan, apply, and again when somebody was quicker.
//!
//! Every operation is one conditional change, so that nothing is half-written. A change that was lost is planned anew
//! from what stands there now, and a write whose answer was lost is recognised by its own traces: it is never done
//! twice.

mod diff;
mod landed;

use std::time::Duration;

pub use diff::{Field, Step, Wanted, diff};
use landed::landed;

use crate::client::{Client, ClientId, Provider};
use crate::entropy::Entropy;
use crate::item::Change;
use crate::plan::lease::{Standing, standing};
use crate::plan::registry::{self, Imported, Refusal, Resolution, Rotation};
use crate::record::{Malformed, Snapshot};
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
    #[error("{0}; correct or delete that item by hand")]
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
        self.change(&wanted.client.id, |read| self.plan(wanted, read, tokens, provider, replace)).await
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
            self.plan(wanted, read, tokens, provider, replace)
        })
        .await
    }

    fn plan(
        &self,
        wanted: &Wanted,
        read: &Snapshot,
        tokens: &Imported,
        provider: &Provider,
        replace: bool,
    ) -> Planned<Step> {
        let step = diff(wanted, read, tokens, provider, replace)?;
        let change = self.change_of(&step, wanted, read, tokens, provider)?;
        Ok((change, step))
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

    /// Adds, promotes or drops a client's second secret, in one write.
    pub async fn rotate(&self, id: &ClientId, rotation: &Rotation) -> Result<Outcome, RegistrarError> {
        self.edit(id, |client, _| {
            let credentials = rotation.of(client)?;
            Ok(credentials
                .map(|credentials| registry::set_credentials(client, &credentials, self.clock.now())))
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
                _ if client.refresh_now == Some(stored) => Ok(None),
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
        let plan = |read: &Snapshot| registry::remove(id, read, self.shards, self.clock.now());
        self.change(id, |read| Ok((Some(plan(read)?), ()))).await
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
        let plan = |read: &Snapshot| registry::resolve(id, read, resolution, self.clock.now());
        self.change(id, |read| Ok((Some(plan(read)?), ()))).await
    }

    async fn change<T>(
        &self,
        id: &ClientId,
        plan: impl Fn(&Snapshot) -> Planned<T>,
    ) -> Result<T, RegistrarError> {
        // All of them: one that is late may arrive when the next is under way.
        let mut pending: Vec<(Change, T)> = Vec::new();
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
            if let Some(place) = pending.iter().position(|(change, _)| landed(change, &partition)) {
                return Ok(pending.swap_remove(place).1);
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
            pending.push((change, told));
        }
        Err(match unanswered {
            Some(error @ StoreError::Unavailable(_)) => RegistrarError::Unanswered(id.clone(), error),
            Some(error) => error.into(),
            None => RegistrarError::Contended(id.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;
    use crate::client::Grant;
    use crate::item::{Action, Assignment, Condition, Item, Key, Value, attr};
    use crate::plan::lease::{self, Intent};
    use crate::plan::testing::{client, provider};
    use crate::record::{Gen, Lease, Partition, Registration, State};
    use crate::secret::Secret;
    use crate::store::MemoryStore;
    use crate::store::memory::{Fault, Operation};
    use crate::time::{Moment, Sleep, Timestamp};

    /// Stands still, and never waits.
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::from_secs(1_700_000_000)
        }
        fn moment(&self) -> Moment {
            Moment::default()
        }
        fn sleep(&self, _: Duration) -> Sleep {
            Box::pin(ready(()))
        }
    }

    struct World {
        store: MemoryStore,
        entropy: Entropy,
    }

    impl World {
        fn new() -> Self {
            Self { store: MemoryStore::new(), entropy: Entropy::from_seed(1) }
        }

        fn registrar(&self) -> Registrar<'_, MemoryStore> {
            Registrar { store: &self.store, clock: &Still, entropy: &self.entropy, shards: 16 }
        }

        async fn register(&self, token: &str) -> Result<Step, RegistrarError> {
            self.registrar().register(&wanted(), &tokens(token), &provider(), false).await
        }

        async fn partition(&self) -> Partition {
            self.store.read(&client().id).await.expect("the memory store answers")
        }

        async fn read(&self) -> Snapshot {
            self.registrar().read(&client().id).await.expect("well-formed")
        }

        async fn lease(&self) -> Lease {
            self.read().await.lease.expect("a lease")
        }

        async fn apply(&self, change: &Change) -> Applied {
            self.store.apply(change).await.expect("the memory store answers")
        }

        /// A task acquires the client.
        async fn acquire(&self) -> Lease {
            let read = self.read().await;
            let intent = Intent { owner: "me#1".into(), lease: Duration::from_secs(90), now: Still.now() };
            let seen = read.lease.clone().expect("a lease");
            let (change, held) = lease::acquire(&client().id, &seen, read.tok_gen(), &intent).expect("free");
            assert_eq!(self.apply(&change).await, Applied::Committed);
            held
        }

        /// The provider said that the grant is gone.
        async fn bury(&self) {
            let held = self.acquire().await;
            let of = self.read().await.tok_gen();
            let release = lease::Release::Bury { code: "invalid_grant".into(), of };
            let change = lease::release(&client().id, held.generation, &release);
            assert_eq!(self.apply(&change).await, Applied::Committed);
        }

        fn put_token(&self, item: Item) {
            self.store.put_raw("CLIENT#c1", "TOKEN#ACCESS", item);
        }
    }

    fn wanted() -> Wanted {
        Wanted { client: client(), paused: None }
    }

    fn with(change: impl FnOnce(&mut Client)) -> Wanted {
        let mut wanted = wanted();
        change(&mut wanted.client);
        wanted
    }

    fn machine(change: impl FnOnce(&mut Client)) -> Wanted {
        with(|client| {
            client.grant = Grant::ClientCredentials;
            change(client);
        })
    }

    fn tokens(refresh: &str) -> Imported {
        Imported { refresh_token: Some(Secret::new(refresh)), ..Imported::nothing() }
    }

    fn refresh_token(read: &Snapshot) -> Option<&str> {
        read.token.as_ref()?.refresh_token.as_ref().map(Secret::expose)
    }

    fn refused<T: std::fmt::Debug>(outcome: Result<T, RegistrarError>) -> Refusal {
        match outcome {
            Err(RegistrarError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_registration_writes_all_three_items_and_not_twice() {
        let world = World::new();
        assert_eq!(world.register("r1").await, Ok(Step::Create { adopts: false }));
        let read = world.read().await;
        assert_eq!(read.lease, Some(Lease::idle(Gen(0))));
        assert_eq!((read.tok_gen(), refresh_token(&read)), (Gen(0), Some("r1")));
        assert_eq!(refused(world.register("r2").await), Refusal::Exists(client().id));
    }

    #[tokio::test]
    async fn generations_go_on_through_removal() {
        let world = World::new();
        world.register("r1").await.expect("registered");
        let held = world.acquire().await;
        world.registrar().remove(&client().id).await.expect("removed");
        let gone = world.read().await;
        assert_eq!((gone.registration, gone.token), (Registration::Removed, None));
        world.register("r2").await.expect("registered again");
        let read = world.read().await;
        let generation = read.lease.as_ref().expect("a lease").generation;
        assert!(generation > held.generation.next(), "{generation}");
        assert_eq!(read.tok_gen(), generation);
        // What was in flight before the removal brings nothing back.
        let late = lease::release(&client().id, held.generation, &lease::Release::NotNeeded);
        assert!(matches!(world.apply(&late).await, Applied::Lost(_)));
        assert_eq!(refresh_token(&world.read().await), Some("r2"));
    }

    #[tokio::test]
    async fn a_client_that_is_not_there_cannot_be_removed() {
        let world = World::new();
        let absent = Refusal::NotRegistered(client().id);
        assert_eq!(refused(world.registrar().remove(&client().id).await), absent);
        world.register("r1").await.expect("registered");
        world.registrar().remove(&client().id).await.expect("removed");
        assert_eq!(refused(world.registrar().remove(&client().id).await), absent);
    }

    fn foreign() -> Item {
        Item::default()
            .with(attr::REFRESH_TOKEN, Value::Secret(Secret::new("r9")))
            .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new("a9")))
            .with(attr::EXPIRES_AT, Value::N(1_700_000_900))
            .with(attr::TTL, Value::N(1_700_000_900))
            .with("tenant", Value::S("t".into()))
    }

    #[tokio::test]
    async fn adoption_keeps_the_tokens_and_takes_the_ttl_off() {
        let world = World::new();
        world.put_token(foreign().with(attr::TOK_GEN, Value::N(5)));
        let adopted = world.registrar().register(&wanted(), &Imported::nothing(), &provider(), false).await;
        assert_eq!(adopted, Ok(Step::Create { adopts: true }));
        let read = world.read().await;
        let token = read.token.clone().expect("a token");
        assert_eq!(refresh_token(&read), Some("r9"));
        assert_eq!(token.access_token, Some(Secret::new("a9")));
        assert_eq!((token.ttl, token.expires_at), (None, Timestamp::from_secs(1_700_000_900)));
        assert_eq!((read.tok_gen(), read.lease.expect("a lease").generation), (Gen(5), Gen(5)));
        let item = world.partition().await.token.expect("an item");
        assert_eq!(item.get("tenant"), Some(&Value::S("t".into())), "unknown attributes stay");
    }

    #[tokio::test]
    async fn adoption_does_not_put_an_older_token_over_a_live_one() {
        let world = World::new();
        world.put_token(foreign());
        assert_eq!(refused(world.register("r1").await), Refusal::LiveGrant(client().id));
        assert_eq!(world.register("r9").await, Ok(Step::Create { adopts: true }), "the very same token");
        let other = World::new();
        other.put_token(foreign());
        let replaced = other.registrar().register(&wanted(), &tokens("r10"), &provider(), true).await;
        assert_eq!(replaced, Ok(Step::Create { adopts: false }));
        assert_eq!(refresh_token(&other.read().await), Some("r10"));
    }

    #[tokio::test]
    async fn malformed_items_are_named_and_never_overwritten() {
        let world = World::new();
        let broken = Item::default().with(attr::TOK_GEN, Value::S("x".into()));
        world.put_token(broken.clone());
        let error = world.register("r1").await.expect_err("malformed").to_string();
        assert!(error.contains("CLIENT#c1/TOKEN#ACCESS: attribute `tok_gen`"), "{error}");
        assert_eq!(world.store.items(), [(("CLIENT#c1".into(), "TOKEN#ACCESS".into()), broken)]);
    }

    #[tokio::test]
    async fn an_import_fences_out_what_is_in_flight() {
        let world = World::new();
        world.register("r1").await.expect("registered");
        let held = world.acquire().await;
        let id = client().id;
        assert_eq!(
            refused(world.registrar().import(&id, &tokens("r2"), &provider(), false).await),
            Refusal::LiveGrant(id.clone())
        );
        world.registrar().import(&id, &tokens("r2"), &provider(), true).await.expect("replaced");
        let read = world.read().await;
        assert_eq!(read.tok_gen(), held.generation.next());
        assert_eq!(read.lease, Some(Lease::idle(held.generation.next())));
        let late = lease::release(&id, held.generation, &lease::Release::NotNeeded);
        assert!(matches!(world.apply(&late).await, Applied::Lost(_)));
    }

    #[tokio::test]
    async fn a_machine_client_keeps_its_good_token_from_a_refresh_token() {
        let world = World::new();
        let given = Imported { access_token: Some(Secret::new("a1")), ..Imported::nothing() };
        let (registrar, id, wanted) = (world.registrar(), client().id, machine(|_| ()));
        registrar.put(&wanted, &given, &provider(), false).await.expect("created");
        let before = world.partition().await;
        let refusal = Refusal::NoRefreshToken(id.clone());
        assert_eq!(refused(registrar.import(&id, &tokens("r1"), &provider(), true).await), refusal);
        assert_eq!(refused(registrar.put(&wanted, &tokens("r1"), &provider(), true).await), refusal);
        let nothing = registrar.put(&wanted, &Imported::nothing(), &provider(), true).await;
        assert_eq!(nothing, Ok(Step::Unchanged), "none given to put in its place");
        assert_eq!(world.partition().await, before);
    }

    #[tokio::test]
    async fn a_dead_client_comes_back_by_an_import() {
        let world = World::new();
        world.register("r1").await.expect("registered");
        world.bury().await;
        assert!(matches!(
            refused(world.registrar().refresh_now(&client().id).await),
            Refusal::Inconsistent(..)
        ));
        world
            .registrar()
            .import(&client().id, &tokens("r2"), &provider(), false)
            .await
            .expect("no live grant");
        assert_eq!(world.lease().await.state, State::Idle);
        assert_eq!(refresh_token(&world.read().await), Some("r2"));
    }

    #[tokio::test]
    async fn a_hold_is_resolved_by_its_operator_alone() {
        let world = World::new();
        world.register("r1").await.expect("registered");
        let id = client().id;
        let not_held = world.registrar().resolve(&id, Resolution::Retry).await;
        assert!(matches!(refused(not_held), Refusal::Inconsistent(..)));
        for (resolution, state) in [(Resolution::Retry, State::Idle), (Resolution::Dead, State::Dead)] {
            let held = world.acquire().await;
            let hold = lease::Release::Hold { code: "timeout".into(), of: Gen(0), sends: 3 };
            world.apply(&lease::release(&id, held.generation, &hold)).await;
            world.registrar().resolve(&id, resolution).await.expect("resolved");
            assert_eq!(world.lease().await.state, state);
        }
    }

    #[tokio::test]
    async fn edits_are_idempotent_and_move_the_join_stamp() {
        let world = World::new();
        world.register("r1").await.expect("registered");
        let (registrar, id) = (world.registrar(), client().id);
        let stamp = async || world.read().await.client().expect("registered").joined;
        let first = stamp().await;
        assert_eq!(registrar.pause(&id, true).await, Ok(Outcome::Done));
        assert!(stamp().await > first);
        assert_eq!(registrar.pause(&id, true).await, Ok(Outcome::Unchanged));
        assert!(matches!(refused(registrar.refresh_now(&id).await), Refusal::Inconsistent(..)));
        assert_eq!(registrar.pause(&id, false).await, Ok(Outcome::Done));
        assert_eq!(registrar.refresh_now(&id).await, Ok(Outcome::Done));
        assert_eq!(registrar.refresh_now(&id).await, Ok(Outcome::Unchanged));
        assert_eq!(world.read().await.client().expect("registered").refresh_now, Some(Gen(0)));
    }

    #[tokio::test]
    async fn a_write_whose_answer_was_lost_is_not_done_twice() {
        let world = World::new();
        let lost = |operation: Operation<'_>| match operation {
            Operation::Apply(_) => Fault::After(StoreError::Unavailable("reset".into())),
            _ => Fault::None,
        };
        world.store.on_operation(lost);
        assert_eq!(world.register("r1").await, Ok(Step::Create { adopts: false }));
        world.registrar().import(&client().id, &tokens("r2"), &provider(), true).await.expect("done once");
        assert_eq!(world.read().await.tok_gen(), Gen(1));
        world.registrar().remove(&client().id).await.expect("done once");
    }

    #[tokio::test]
    async fn tries_are_bounded() {
        let world = World::new();
        let down = |operation: Operation<'_>| match operation {
            Operation::Apply(_) => Fault::Before(StoreError::Unavailable("reset".into())),
            _ => Fault::None,
        };
        world.store.on_operation(down);
        let error = world.register("r1").await.expect_err("the store is down");
        assert!(matches!(error, RegistrarError::Unanswered(..)), "{error}");
    }

    #[tokio::test]
    async fn a_change_keeps_tokens_generations_and_unknown_attributes() {
        let world = World::new();
        world.register("r1").await.expect("registered");
        let tag = Action::Update(vec![Assignment::Set("tag", Value::S("x".into()))]);
        world.apply(&Change::one(Key::Config(client().id), Condition::Exists, tag)).await;
        let paused = Wanted { paused: Some(true), ..with(|client| client.scopes = vec!["a".into()]) };
        let step = world.registrar().put(&paused, &Imported::nothing(), &provider(), false).await;
        let Ok(Step::Update { fields, mint_anew: false }) = step else { panic!("{step:?}") };
        let told: Vec<_> = fields.iter().map(|field| format!("{}: {}", field.field, field.change)).collect();
        assert_eq!(told, ["scopes: none -> a", "paused: false -> true"]);
        let read = world.read().await;
        assert_eq!((read.tok_gen(), refresh_token(&read)), (Gen(0), Some("r1")));
        let item = world.partition().await.config.expect("an item");
        assert_eq!(item.get("tag"), Some(&Value::S("x".into())));
        let again = world.registrar().put(&paused, &Imported::nothing(), &provider(), false).await;
        assert_eq!(again, Ok(Step::Unchanged));
        let silent = Wanted { paused: None, ..paused };
        let step = world.registrar().put(&silent, &Imported::nothing(), &provider(), false).await;
        assert_eq!(step, Ok(Step::Unchanged), "a file that is silent about it resumes nobody");
    }

    #[tokio::test]
    async fn a_machine_client_with_other_scopes_is_minted_anew() {
        let world = World::new();
        let put = async |wanted| {
            let step = world.registrar().put(&wanted, &Imported::nothing(), &provider(), false).await;
            step.expect("allowed")
        };
        assert_eq!(put(machine(|_| ())).await, Step::Create { adopts: false });
        let step = put(machine(|client| client.audience = Some("api".into()))).await;
        assert!(matches!(step, Step::Update { mint_anew: true, .. }), "{step:?}");
        assert_eq!(world.read().await.client().expect("registered").refresh_now, Some(Gen(0)));
    }

    #[tokio::test]
    async fn a_machine_client_that_moves_loses_its_token_and_gets_another() {
        let world = World::new();
        let put = async |wanted, given| {
            let step = world.registrar().put(&wanted, &given, &provider(), false).await;
            step.expect("allowed")
        };
        let given = Imported { access_token: Some(Secret::new("a1")), ..Imported::nothing() };
        put(machine(|_| ()), given.clone()).await;
        let moved = machine(|client| client.client_id = "app2".into());
        let step = put(moved.clone(), given).await;
        assert!(matches!(step, Step::Replace { minted: true, .. }), "{step:?}");
        let read = world.read().await;
        let token = read.token.clone().expect("a token");
        assert_eq!((token.access_token, token.expires_at), (None, Timestamp::EPOCH));
        assert_eq!(token.binding, Some(moved.client.binding(&provider())));
        assert_eq!(read.tok_gen(), Gen(1));
    }

    #[tokio::test]
    async fn a_grant_does_not_move_with_its_old_refresh_token() {
        let world = World::new();
        world.register("r1").await.expect("registered");
        let moved = with(|client| client.client_id = "app2".into());
        let put = async |wanted: &Wanted, given: Imported, replace| {
            world.registrar().put(wanted, &given, &provider(), replace).await
        };
        let expected = Refusal::Moved(client().id, "client_id");
        assert_eq!(refused(put(&moved, tokens("r2"), false).await), expected);
        assert_eq!(
            refused(put(&moved, Imported::nothing(), true).await),
            Refusal::NeedsRefreshToken(client().id)
        );
        assert_eq!(refresh_token(&world.read().await), Some("r1"), "nothing was written");
        let step = put(&moved, tokens("r2"), true).await;
        assert!(matches!(step, Ok(Step::Replace { minted: false, .. })), "{step:?}");
        assert_eq!(refresh_token(&world.read().await), Some("r2"));
        let to_machine = machine(|client| client.client_id = "app2".into());
        let expected = Refusal::Moved(client().id, "grant");
        assert_eq!(refused(put(&to_machine, Imported::nothing(), false).await), expected);
    }

    #[tokio::test]
    async fn the_files_refresh_token_is_used_once_or_on_demand() {
        let world = World::new();
        world.register("r1").await.expect("registered");
        let put = async |given, replace| {
            world.registrar().put(&wanted(), &tokens(given), &provider(), replace).await
        };
        assert_eq!(put("r2", false).await, Ok(Step::Unchanged));
        assert_eq!(put("r1", true).await, Ok(Step::Unchanged), "the very same token, alive");
        assert_eq!(put("r2", true).await, Ok(Step::Replace { fields: vec![], minted: false }));
        world.bury().await;
        assert_eq!(put("r3", false).await, Ok(Step::Unchanged), "not even over a dead grant");
    }
}
