//! Random lives of a client, as `plan/` writes them: the three stores must tell the same story.
//!
//! [`super::differential`] compares whatever the table's language can say; here the changes are those of production,
//! each planned from what was read, now or a few steps ago, and now and then issued twice, as after a lost answer. A
//! fixed tour comes first, so that every kind of change and every expression is known to have been tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perennial::client::credentials::Credentials;
use perennial::client::{Client, ClientId, Grant, Provider};
use perennial::item::{Action, Assignment, Change, Condition, Item, Key, Value, attr};
use perennial::plan::lease::{self, Commit, Doubt, Intent, Release};
use perennial::plan::ownership::shard_of;
use perennial::plan::registry::{self, Imported, Resolution};
use perennial::record::{Gen, Member, Partition, Phase, Snapshot, Tally, decode_member, encode_member};
use perennial::reply::{Lifetime, Tokens};
use perennial::secret::Secret;
use perennial::store::{Applied, IndexRow, MemoryStore, Roster, ShardQuery, Store, StoreError, View};
use perennial::time::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use url::Url;

use super::worlds::{DynamoWorld, World};

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const SHARDS: u32 = 16;

/// Everything that a refresh, an operator or the fleet writes, and what other tools do to an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Register,
    RegisterMintable,
    Adopt,
    Acquire,
    Commit,
    CommitWithoutRefreshToken,
    CommitMissingItem,
    GiveBack,
    Fail,
    FailInDoubt,
    EndDoubt,
    Hold,
    Bury,
    Abandon,
    Import,
    Move,
    Reconfigure,
    Pause,
    Resume,
    RefreshNow,
    ResolveRetry,
    ResolveDead,
    Remove,
    Unlist,
    RepairTtl,
    Beat,
    Farewell,
    /// Another tool writes a token item in the single-item form.
    ForeignToken,
    /// Another tool puts a `ttl` on the token item.
    ForeignTtl,
    /// DynamoDB's TTL takes the token item.
    TtlStrikes,
}

use Kind as K;

const KINDS: [Kind; 30] = [
    K::Register,
    K::RegisterMintable,
    K::Adopt,
    K::Acquire,
    K::Commit,
    K::CommitWithoutRefreshToken,
    K::CommitMissingItem,
    K::GiveBack,
    K::Fail,
    K::FailInDoubt,
    K::EndDoubt,
    K::Hold,
    K::Bury,
    K::Abandon,
    K::Import,
    K::Move,
    K::Reconfigure,
    K::Pause,
    K::Resume,
    K::RefreshNow,
    K::ResolveRetry,
    K::ResolveDead,
    K::Remove,
    K::Unlist,
    K::RepairTtl,
    K::Beat,
    K::Farewell,
    K::ForeignToken,
    K::ForeignTtl,
    K::TtlStrikes,
];

/// What nobody can lose: it has no condition.
const UNCONDITIONAL: [Kind; 5] = [K::Beat, K::Farewell, K::ForeignToken, K::ForeignTtl, K::TtlStrikes];

#[derive(Clone, Copy, Debug)]
struct Step {
    kind: Kind,
    /// Planned from what was read so many steps ago.
    age: usize,
    /// Issued twice, unchanged.
    twice: bool,
}

/// Each kind at a time when it is possible, and once more unchanged.
const TOUR: [Kind; 50] = [
    K::Beat,
    K::ForeignToken,
    K::Adopt,
    K::Acquire,
    K::Commit,
    K::ForeignTtl,
    K::RepairTtl,
    // From a spent lease.
    K::Acquire,
    K::FailInDoubt,
    K::Acquire,
    K::Fail,
    // In doubt: a take-over.
    K::Acquire,
    K::Acquire,
    K::EndDoubt,
    K::Acquire,
    K::CommitWithoutRefreshToken,
    K::Acquire,
    K::GiveBack,
    K::Acquire,
    K::Abandon,
    K::Acquire,
    K::Hold,
    K::ResolveRetry,
    K::Acquire,
    K::Hold,
    K::ResolveDead,
    K::Import,
    K::Move,
    K::Reconfigure,
    K::Pause,
    K::Resume,
    K::RefreshNow,
    K::Acquire,
    K::Bury,
    K::Import,
    K::Remove,
    K::Unlist,
    K::RegisterMintable,
    K::Acquire,
    K::Commit,
    K::TtlStrikes,
    K::Acquire,
    K::CommitMissingItem,
    K::Remove,
    K::Register,
    K::Acquire,
    K::Commit,
    K::Remove,
    K::Unlist,
    K::Farewell,
];

fn history() -> impl Strategy<Value = Vec<Step>> {
    // Mostly the path that a client takes, or few lives would come far.
    let usual = [K::Register, K::Acquire, K::Acquire, K::Commit, K::FailInDoubt, K::Hold, K::Remove];
    let kind = prop_oneof![
        1 => proptest::sample::select(&KINDS[..]),
        1 => proptest::sample::select(usual.to_vec()),
    ];
    let age = prop_oneof![5 => Just(0_usize), 1 => 1..4_usize];
    let step =
        (kind, age, proptest::bool::weighted(0.15)).prop_map(|(kind, age, twice)| Step { kind, age, twice });
    proptest::collection::vec(step, 1..30)
}

fn provider() -> Provider {
    Provider::new("acme", Url::parse("https://idp.test/token").expect("a URL"))
}

fn client(id: &ClientId, grant: Grant, now: Timestamp) -> Client {
    Client {
        id: id.clone(),
        provider: "acme".into(),
        grant,
        client_id: "app".into(),
        credentials: Credentials::stored("s"),
        scopes: vec!["a".into(), "b".into()],
        audience: Some("them".into()),
        resource: vec!["https://api.test".into()],
        params: BTreeMap::from([("k".into(), Secret::new("v"))]),
        token_url: None,
        paused: false,
        refresh_now: None,
        joined: now,
    }
}

fn imported(nonce: u64, grant: Grant) -> Imported {
    Imported {
        refresh_token: grant.needs_refresh_token().then(|| Secret::new(format!("r{nonce}"))),
        token_type: (nonce.is_multiple_of(2)).then(|| "Bearer".into()),
        ..Imported::nothing()
    }
}

/// What would be written by somebody who has read that. `None` where nobody would.
fn plan(kind: Kind, id: &ClientId, read: &Snapshot, member: &str, nonce: u64) -> Option<Change> {
    let now = START.plus(Duration::from_secs(nonce));
    let token = Key::Token(id.clone());
    let always = || Condition::All(Vec::new());
    match kind {
        K::Beat => {
            Some(Change::one(Key::Member(member.into()), always(), Action::Put(beat(member, nonce, now))))
        }
        K::Farewell => Some(Change::one(Key::Member(member.into()), always(), Action::Delete)),
        K::ForeignToken => {
            let item = Item::default()
                .with(attr::REFRESH_TOKEN, Value::Secret(Secret::new("theirs")))
                .with("theirs", Value::S("unknown".into()));
            read.token.is_none().then(|| Change::one(token, always(), Action::Put(item)))
        }
        K::ForeignTtl => {
            let set = vec![Assignment::Set(attr::TTL, Value::N(now.as_secs()))];
            read.token.as_ref().map(|_| Change::one(token, always(), Action::Update(set)))
        }
        K::TtlStrikes => Some(Change::one(token, always(), Action::Delete)),
        K::RepairTtl => lease::repair_ttl(id, read.token.as_ref()?),
        K::Register | K::RegisterMintable | K::Adopt => register(kind, id, read, nonce, now),
        K::Acquire
        | K::Commit
        | K::CommitWithoutRefreshToken
        | K::CommitMissingItem
        | K::GiveBack
        | K::Fail
        | K::FailInDoubt
        | K::EndDoubt
        | K::Hold
        | K::Bury
        | K::Abandon => attempt(kind, id, read, nonce, now),
        _ => operate(kind, id, read, nonce, now),
    }
}

fn beat(member: &str, nonce: u64, now: Timestamp) -> Item {
    let member = Member {
        incarnation: member.into(),
        beat: i64::try_from(nonce).expect("small"),
        phase: [Phase::Joining, Phase::Active, Phase::Leaving][usize::try_from(nonce % 3).expect("small")],
        lag_ms: 3,
        skew_ms: -4,
        at: now,
        version: "1".into(),
        tally: Tally::default(),
    };
    encode_member(&member, now)
}

fn register(kind: Kind, id: &ClientId, read: &Snapshot, nonce: u64, now: Timestamp) -> Option<Change> {
    let grant = if kind == K::RegisterMintable { Grant::ClientCredentials } else { Grant::RefreshToken };
    let client = client(id, grant, now);
    let tokens = if kind == K::Adopt { Imported::nothing() } else { imported(nonce, grant) };
    registry::register(&client, read, &tokens, &client.binding(&provider()), SHARDS, now).ok()
}

fn attempt(kind: Kind, id: &ClientId, read: &Snapshot, nonce: u64, now: Timestamp) -> Option<Change> {
    let lease = read.lease.as_ref()?;
    let (generation, of) = (lease.generation, read.tok_gen());
    let code = || "timeout".to_owned();
    let failed = |doubt| Release::Failed { code: code(), next_at: now, doubt };
    let release = match kind {
        K::Acquire => {
            let intent = Intent { owner: format!("me#{nonce}"), lease: Duration::from_secs(90), now };
            return lease::acquire(id, lease, of, &intent).map(|(change, _)| change);
        }
        K::Abandon => return lease.owner.as_ref().map(|owner| lease::abandon(id, owner)),
        K::Commit => return Some(lease::commit(id, &granted(read, generation, nonce, now, true)?)),
        K::CommitWithoutRefreshToken => {
            let mut commit = granted(read, generation, nonce, now, true)?;
            commit.tokens.refresh_token = None;
            return Some(lease::commit(id, &commit));
        }
        K::CommitMissingItem => {
            return Some(lease::commit(id, &granted(read, generation, nonce, now, false)?));
        }
        K::GiveBack => Release::NotNeeded,
        K::Fail => failed(Doubt::Unchanged),
        K::FailInDoubt => failed(Doubt::About(of, 1)),
        K::EndDoubt => failed(Doubt::Ended),
        K::Hold => Release::Hold { code: code(), of, sends: 3 },
        _ => Release::Bury { code: code(), of },
    };
    Some(lease::release(id, generation, &release))
}

fn granted(
    read: &Snapshot,
    generation: Gen,
    nonce: u64,
    now: Timestamp,
    item_exists: bool,
) -> Option<Commit> {
    let client = read.client()?;
    let tokens = Tokens {
        access_token: Secret::new(format!("a{nonce}")),
        refresh_token: client.grant.needs_refresh_token().then(|| Secret::new(format!("r{nonce}"))),
        token_type: Some("Bearer".into()),
        scope: (nonce.is_multiple_of(3)).then(|| "read".into()),
        lifetime: Lifetime::Missing,
    };
    Some(Commit {
        generation,
        tokens,
        expires_at: now,
        refresh_at: now,
        now,
        binding: client.binding(&provider()),
        grant: client.grant,
        item_exists,
    })
}

fn operate(kind: Kind, id: &ClientId, read: &Snapshot, nonce: u64, now: Timestamp) -> Option<Change> {
    let client = read.client()?;
    let binding = client.binding(&provider());
    let changed =
        || Client { joined: Timestamp::from_millis(registry::stamp(client, now)), ..client.clone() };
    match kind {
        K::Import => {
            registry::outside_write(id, read, &imported(nonce, client.grant), &binding, None, now).ok()
        }
        K::Move => {
            let moved = Client { client_id: format!("app-{nonce}"), audience: None, ..changed() };
            let tokens = imported(nonce, client.grant);
            let binding = moved.binding(&provider());
            registry::outside_write(id, read, &tokens, &binding, Some((&moved, SHARDS)), now).ok()
        }
        K::Reconfigure => {
            Some(registry::reconfigure(&Client { scopes: vec!["c".into()], ..changed() }, client, SHARDS))
        }
        K::Pause | K::Resume => Some(registry::pause(client, kind == K::Pause, now)),
        K::RefreshNow => Some(registry::refresh_now(client, read.tok_gen(), now)),
        K::ResolveRetry => registry::resolve(id, read, Resolution::Retry, now).ok(),
        K::ResolveDead => registry::resolve(id, read, Resolution::Dead, now).ok(),
        _ => registry::remove(id, read, SHARDS, now).ok(),
    }
}

/// What was tried, and what came of it.
#[derive(Default)]
struct Seen {
    outcomes: BTreeMap<(Kind, bool), u32>,
    /// Variants of conditions, assignments, actions and values.
    variants: BTreeSet<&'static str>,
    /// Expressions as they are rendered, without their values.
    shapes: BTreeSet<String>,
}

impl Seen {
    fn note(&mut self, kind: Kind, change: &Change, outcome: &Result<Applied, StoreError>) {
        if let Ok(applied) = outcome {
            *self.outcomes.entry((kind, *applied == Applied::Committed)).or_default() += 1;
        }
        self.variants.insert(if change.0.len() > 1 { "transaction" } else { "single" });
        let mut shape = Vec::new();
        for write in &change.0 {
            let action = self.action(&write.action);
            shape.push(format!("{} IF {}", action, self.condition(&write.condition)));
        }
        self.shapes.insert(shape.join("; "));
    }

    fn condition(&mut self, condition: &Condition) -> String {
        let (variant, shape) = match condition {
            Condition::Exists => ("Exists", "exists".to_owned()),
            Condition::Absent => ("Absent", "absent".to_owned()),
            Condition::Has(name) => ("Has", format!("has {name}")),
            Condition::Lacks(name) => ("Lacks", format!("lacks {name}")),
            Condition::Equals(name, _) => ("Equals", format!("{name} =")),
            Condition::Below(name, _) => ("Below", format!("{name} <")),
            Condition::All(list) => ("All", self.list(list, " and ")),
            Condition::Any(list) => ("Any", self.list(list, " or ")),
        };
        self.variants.insert(variant);
        shape
    }

    fn list(&mut self, list: &[Condition], by: &str) -> String {
        format!("({})", list.iter().map(|one| self.condition(one)).collect::<Vec<_>>().join(by))
    }

    fn action(&mut self, action: &Action) -> String {
        let (variant, shape) = match action {
            Action::Update(list) => {
                let list: Vec<_> = list.iter().map(|one| self.assignment(one)).collect();
                ("Update", list.join(", "))
            }
            Action::Put(_) => ("Put", "put".to_owned()),
            Action::Delete => ("Delete", "delete".to_owned()),
            Action::Check => ("Check", "check".to_owned()),
        };
        self.variants.insert(variant);
        shape
    }

    fn assignment(&mut self, assignment: &Assignment) -> String {
        let (variant, shape) = match assignment {
            Assignment::Set(name, _) => ("Set", format!("set {name}")),
            Assignment::Add(name, _) => ("Add", format!("add {name}")),
            Assignment::Remove(name) => ("Remove", format!("remove {name}")),
        };
        self.variants.insert(variant);
        shape
    }

    /// Every kind landed, and every kind that can lose has lost; every variant of the language was in use.
    fn assert_complete(&self) {
        let happened = |kind, landed| self.outcomes.contains_key(&(kind, landed));
        let missing: Vec<_> = KINDS.into_iter().filter(|kind| !happened(*kind, true)).collect();
        assert!(missing.is_empty(), "never landed: {missing:?}");
        let losers = KINDS.into_iter().filter(|kind| !UNCONDITIONAL.contains(kind));
        let missing: Vec<_> = losers.filter(|kind| !happened(*kind, false)).collect();
        assert!(missing.is_empty(), "never lost: {missing:?}");
        let all = [
            "Absent",
            "Add",
            "All",
            "Any",
            "Below",
            "Check",
            "Delete",
            "Equals",
            "Exists",
            "Has",
            "Lacks",
            "Put",
            "Remove",
            "Set",
            "Update",
            "single",
            "transaction",
        ];
        assert_eq!(self.variants, BTreeSet::from(all));
    }
}

/// The three stores, side by side.
struct Stores {
    memory: MemoryStore,
    #[cfg(feature = "embedded")]
    embedded: DynamoWorld,
    local: DynamoWorld,
}

impl Stores {
    async fn apply(&self, change: &Change) -> Result<Result<Applied, StoreError>, TestCaseError> {
        let mine = self.memory.apply(change).await;
        #[cfg(feature = "embedded")]
        prop_assert_eq!(
            told(&mine),
            told(&self.embedded.store().apply(change).await),
            "embedded: {:?}",
            change
        );
        prop_assert_eq!(told(&mine), told(&self.local.store().apply(change).await), "DynamoDB: {:?}", change);
        Ok(mine)
    }

    /// What stands there now, in every way in which it is read.
    async fn read(&self, id: &ClientId, member: &str) -> Result<Partition, TestCaseError> {
        let mine = everything(&self.memory, id, member).await;
        #[cfg(feature = "embedded")]
        prop_assert_eq!(&mine, &everything(self.embedded.store(), id, member).await, "embedded");
        prop_assert_eq!(&mine, &everything(self.local.store(), id, member).await, "DynamoDB");
        Ok(mine.partition)
    }
}

#[derive(Debug, PartialEq)]
struct Everything {
    partition: Partition,
    listed: Vec<IndexRow>,
    plain: Vec<(Key, Item)>,
    member: Option<Member>,
}

async fn everything(store: &(impl Store + Roster), id: &ClientId, member: &str) -> Everything {
    let keys = [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id.clone())];
    let mut plain = store.load(&keys, View::WithoutSecrets).await.expect("loads");
    plain.sort_by(|(one, _), (other, _)| one.cmp(other));
    let members = store.members().await.expect("lists");
    let member = members.into_iter().find(|(found, _)| found == member);
    Everything {
        partition: store.read(id).await.expect("reads"),
        listed: listed(store, id).await,
        plain,
        member: member.map(|(name, item)| decode_member(&name, &item).expect("a member")),
    }
}

/// The client's rows of the index; those of the histories before it are passed over.
async fn listed(store: &impl Store, id: &ClientId) -> Vec<IndexRow> {
    let joined_after = Some(START.minus(Duration::from_secs(1)));
    let mut query = ShardQuery { shard: shard_of(id, SHARDS), joined_after, after: None };
    let mut rows = Vec::new();
    loop {
        let page = store.query(&query).await.expect("a page");
        query.after = page.rows.last().cloned();
        rows.extend(page.rows.into_iter().filter(|row| row.pk == Key::partition(id)));
        if !page.more {
            return rows;
        }
    }
}

/// What the stores must agree on: the outcome, or the class of the error.
fn told(outcome: &Result<Applied, StoreError>) -> Result<Applied, &'static str> {
    outcome.clone().map_err(|error| match error {
        StoreError::Throttled(_) => "throttled",
        StoreError::Conflict(_) => "conflict",
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Refused(_) => "refused",
        StoreError::Unreadable(_) => "unreadable",
    })
}

static LIFE: AtomicU64 = AtomicU64::new(0);

async fn live(stores: &Stores, steps: &[Step], seen: &mut Seen) -> Result<(), TestCaseError> {
    let life = LIFE.fetch_add(1, Ordering::Relaxed);
    let (id, member) = (ClientId::new(format!("life-{life}")).expect("a valid id"), format!("member-{life}"));
    let mut past = vec![stores.read(&id, &member).await?];
    for (nonce, step) in (1..).zip(steps) {
        let then = &past[past.len().saturating_sub(1 + step.age)];
        let read = then.clone().decode(&id).expect("our own items");
        let change = match step.kind {
            K::Unlist => tombstone(then).map(|stamp| registry::unlist(&id, stamp)),
            kind => plan(kind, &id, &read, &member, nonce),
        };
        let Some(change) = change else { continue };
        for _ in 0..=usize::from(step.twice) {
            seen.note(step.kind, &change, &stores.apply(&change).await?);
            past.push(stores.read(&id, &member).await?);
        }
    }
    Ok(())
}

/// The join stamp under which a tombstone is listed.
fn tombstone(partition: &Partition) -> Option<Timestamp> {
    let config = partition.config.as_ref().filter(|config| config.get(attr::GONE).is_some())?;
    match config.get(attr::JN)? {
        Value::N(stamp) => Some(Timestamp::from_millis(*stamp)),
        _ => None,
    }
}

/// On failure proptest prints the seed, which `PROPTEST_RNG_SEED` takes, and the shortest life it found.
#[test]
fn whatever_is_planned_comes_out_the_same_in_memory_embedded_and_in_dynamodb_local() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stores = runtime.block_on(async {
        Stores {
            memory: MemoryStore::new(),
            #[cfg(feature = "embedded")]
            embedded: DynamoWorld::embedded().await,
            local: DynamoWorld::local().await,
        }
    });
    let mut seen = Seen::default();
    // Twice, and once from what was read before: so each of them lands, and loses.
    let tour: Vec<_> = TOUR.map(|kind| Step { kind, age: 0, twice: true }).to_vec();
    runtime.block_on(live(&stores, &tour, &mut seen)).expect("the tour");
    seen.assert_complete();
    let seen = std::sync::Mutex::new(seen);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&history(), |steps| {
        let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        runtime.block_on(live(&stores, &steps, &mut seen))
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let seen = seen.into_inner().expect("no case panicked");
    let changes: u32 = seen.outcomes.values().sum();
    println!("{changes} changes of {} kinds, {} different expressions", KINDS.len(), seen.shapes.len());
}
