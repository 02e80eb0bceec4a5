//! What an idle task consumes: one beat, one look at the members, one round of discovery, one reconciliation. The table
//! in memory charges what DynamoDB Local says (but for one thing, which is named), so that `examples/idle.rs` may price a month on simulated time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use perennial::client::credentials::Credentials;
use perennial::client::{Client, ClientId, Grant, Provider};
use perennial::fleet::Listing;
use perennial::item::{Action, Change, Condition, Key};
use perennial::plan::ownership::shard_of;
use perennial::plan::registry::{self, Imported};
use perennial::record::{Member, Partition, Phase, Tally, encode_member};
use perennial::secret::Secret;
use perennial::store::{Applied, Roster, Store, Vitals};
use perennial::time::{Clock, SystemClock, Timestamp};
use tokio::sync::mpsc;
use url::Url;

use super::worlds::{DynamoWorld, MemoryWorld, World};

const SHARDS: u32 = 16;
const CLIENTS: u32 = 70;

/// Write and read units of one of each.
#[derive(Debug, PartialEq)]
struct Bill {
    beat: (f64, f64),
    members_of_2: (f64, f64),
    members_of_10: (f64, f64),
    members_of_50: (f64, f64),
    discovery: (f64, f64),
    reconciliation: (f64, f64),
}

/// As the daemon's own code does it, with members as they look in production.
async fn bill<S: Store + Roster + Clone>(store: &S, vitals: &Vitals) -> Bill {
    let (mut beat, mut of) = ((0.0, 0.0), BTreeMap::new());
    for n in 1..=50 {
        beat = cost(vitals, async || write_beat(store, n).await).await;
        if [2, 10, 50].contains(&n) {
            let read = cost(vitals, async || {
                let members = store.members().await.expect("reads");
                assert_eq!(members.len(), usize::try_from(n).expect("small"));
            });
            of.insert(n, read.await);
        }
    }
    register(store).await;
    let (sender, mut commands) = mpsc::channel(10_000);
    let mut listing = Listing::new(Arc::new(store.clone()), Arc::new(SystemClock), sender);
    let found = listing.care_for(&(0..SHARDS).collect::<BTreeSet<_>>()).await.expect("lists").clients;
    assert_eq!(found, CLIENTS as usize);
    let discovery = cost(vitals, async || assert_eq!(listing.discover().await, Ok(0)));
    let discovery = discovery.await;
    let reconciliation = cost(vitals, async || assert!(listing.reconcile().await.is_ok())).await;
    commands.close();
    Bill {
        beat,
        members_of_2: of[&2],
        members_of_10: of[&10],
        members_of_50: of[&50],
        discovery,
        reconciliation,
    }
}

async fn cost(vitals: &Vitals, mut operation: impl AsyncFnMut()) -> (f64, f64) {
    let before = (vitals.write_units(), vitals.read_units());
    operation().await;
    (vitals.write_units() - before.0, vitals.read_units() - before.1)
}

async fn write_beat(store: &impl Store, n: i64) {
    let incarnation = format!("{n:016x}");
    let member = Member {
        incarnation: incarnation.clone(),
        beat: 260_000 + n,
        phase: Phase::Active,
        lag_ms: 12,
        skew_ms: -345,
        at: Timestamp::from_millis(1_800_000_012_345),
        version: "0.1.0".into(),
        tally: Tally { clients: 2600, refreshed: 123_456, failed: 1234, conflicts: 123, takeovers: 12 },
    };
    let item = encode_member(&member, Timestamp::from_secs(1_800_003_612));
    let change = Change::one(Key::Member(incarnation), Condition::All(Vec::new()), Action::Put(item));
    assert_eq!(store.apply(&change).await, Ok(Applied::Committed));
}

fn id(n: u32) -> ClientId {
    ClientId::new(format!("customer-{n:06}")).expect("a valid id")
}

/// Clients that were registered a while ago: discovery finds nothing new.
async fn register(store: &impl Store) {
    let provider = Provider::new("acme", Url::parse("https://idp.test/token").expect("a URL"));
    let now = SystemClock.now();
    for n in 0..CLIENTS {
        let client = Client {
            id: id(n),
            provider: "acme".into(),
            grant: Grant::RefreshToken,
            client_id: "app".into(),
            credentials: Credentials::stored("0123456789abcdef0123456789abcdef"),
            scopes: vec!["read".into()],
            audience: None,
            resource: Vec::new(),
            params: BTreeMap::new(),
            token_url: None,
            paused: false,
            refresh_now: None,
            joined: now.minus(std::time::Duration::from_secs(3600)),
        };
        let tokens = Imported { refresh_token: Some(Secret::new("r".repeat(80))), ..Imported::nothing() };
        let nothing = Partition::default().decode(&client.id).expect("nothing is well formed");
        let change = registry::register(&client, &nothing, &tokens, &client.binding(&provider), SHARDS, now);
        assert_eq!(store.apply(&change.expect("a change")).await, Ok(Applied::Committed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idling_costs_what_it_cost_and_the_same_in_memory_and_in_dynamodb_local() {
    let expected = Bill {
        beat: (1.0, 0.0),
        // One read unit for each begun 4 KB of members: not one for each member.
        members_of_2: (0.0, 1.0),
        members_of_10: (0.0, 1.0),
        members_of_50: (0.0, 2.0),
        // Half a unit for each shard, whatever it holds.
        discovery: (0.0, 8.0),
        // The same, and the three items of every client.
        reconciliation: (0.0, 8.0 + 3.0 * f64::from(CLIENTS)),
    };
    let memory = MemoryWorld::new();
    assert_eq!(bill(memory.store(), memory.vitals()).await, expected, "in memory");
    // DynamoDB charges half a unit for a page without rows as well; DynamoDB Local does not.
    let with_clients: BTreeSet<_> = (0..CLIENTS).map(|n| shard_of(&id(n), SHARDS)).collect();
    let listed = f64::from(u32::try_from(with_clients.len()).expect("16 at most")) / 2.0;
    let expected =
        Bill { discovery: (0.0, 0.0), reconciliation: (0.0, listed + 3.0 * f64::from(CLIENTS)), ..expected };
    let local = DynamoWorld::local().await;
    assert_eq!(bill(local.store(), local.vitals()).await, expected, "in DynamoDB Local");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_the_table_costs_one_read_unit() {
    let local = DynamoWorld::local().await;
    let check = cost(local.vitals(), async || {
        perennial::store::table::preflight(local.dynamo(), SHARDS)
            .await
            .expect("the table is as it should be");
    });
    assert_eq!(check.await, (0.0, 1.0));
}
