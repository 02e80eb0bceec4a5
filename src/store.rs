//! Where the fleet's truth is kept: one table, four operations, outcomes that callers branch on.
//!
//! A store *obeys* a [`Change`]; it does not know what the change is for. [`Applied::Lost`] means "no", with what
//! stood there instead. A [`StoreError`] never means "no": it means "not applied" where it says so, and "don't
//! know" otherwise.

mod capacity;
mod dynamo;
#[cfg(feature = "embedded")]
mod embedded;
pub(crate) mod item;
pub mod memory;
mod reading;
mod reseal;
mod rules;
pub mod table;
mod vault;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

pub use dynamo::{Connection, DynamoStore};
#[cfg(feature = "embedded")]
pub use embedded::{Embedded, EmbeddedError};
pub use memory::MemoryStore;
pub use reading::Reading;
pub use reseal::{Form, Resealed};
pub use table::{Finding, Schema, TableError, TableSpec, Verdict};
pub use vault::{Herald, News, Role, Vault};

/// The daemon's table.
pub type DynamoVault = Vault<DynamoStore>;

use crate::client::ClientId;
use crate::item::{Change, Item, Key, attr};
use crate::metrics::{self, Metric};
use crate::record::Partition;
use crate::time::{Clock, Moment, Timestamp};

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is written.
    Committed,
    /// A condition did not hold, and nothing was written. For each write of the change, in order, the item that
    /// stands there; `None` where there is none, or where that write's own condition held.
    Lost(Vec<Option<Item>>),
}

/// Why an operation gave no answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// Not applied: the table asks for less. Retry later.
    #[error("the table throttles: {0}")]
    Throttled(String),
    /// Not applied: another transaction held one of the items. Retry at once.
    #[error("a concurrent transaction got in the way: {0}")]
    Conflict(String),
    /// Unknown whether applied: no answer, or a server's fault. Retry.
    #[error("the store gave no answer: {0}")]
    Unavailable(String),
    /// Not applied, and no retry will cure it: validation, access, size, a missing table.
    #[error("the store refuses: {0}")]
    Refused(String),
    /// Not applied, or not read: a secret cannot be opened or sealed, and no retry will cure it.
    #[error("a secret cannot be used: {0}")]
    Unreadable(String),
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Unreadable(_))
    }
}

/// How much of an item a [`Store::load`] brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All of it.
    Whole,
    /// What a reader of access tokens needs, [`attr::READER`]: its role may be allowed no more.
    Reader,
    /// All but the secrets: what a scheduler keeps in memory.
    WithoutSecrets,
    /// All but the secrets, eventually consistent, at half the price: for whoever only looks.
    Glance,
    /// How a client stands, [`attr::STANDING`], eventually consistent: for whoever reads tokens and asks for others.
    Standing,
}

impl View {
    /// Whether it costs half, and may be a moment old.
    const fn is_eventual(self) -> bool {
        matches!(self, Self::Glance | Self::Standing)
    }

    /// The attributes that it brings; none for all of them.
    const fn names(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Whole => None,
            Self::Reader => Some(&attr::READER),
            Self::Standing => Some(&attr::STANDING),
            Self::WithoutSecrets | Self::Glance => Some(&PLAIN),
        }
    }
}

/// Which clients of a virtual shard a [`Store::query`] lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardQuery {
    /// The virtual shard.
    pub shard: u32,
    /// Only those whose join stamp is later.
    pub joined_after: Option<Timestamp>,
    /// Go on after this row: the last one of the page before.
    pub after: Option<IndexRow>,
}

/// One row of the `by-shard` index. The key is raw: a row that another tool wrote may name no client of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexRow {
    /// Join stamp: the index's sort key.
    pub joined: Timestamp,
    /// Partition key of the indexed item.
    pub pk: String,
    /// Sort key of the indexed item.
    pub sk: String,
}

/// A page of index rows, in the order of their join stamps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The rows.
    pub rows: Vec<IndexRow>,
    /// Whether there are more.
    pub more: bool,
}

/// The most rows of one page of the index: some 25 KB.
const PAGE_ROWS: usize = 250;

/// What [`View::WithoutSecrets`] and [`View::Glance`] bring: every attribute of ours whose value is no secret. Of an attribute that is
/// not known here nobody can say that.
const PLAIN: [&str; 37] = [
    attr::GEN,
    attr::ST,
    attr::OWN,
    attr::LEASE_MS,
    attr::INT_AT,
    attr::NEXT_AT,
    attr::FAILS,
    attr::ERR,
    attr::OF,
    attr::DBT,
    attr::DBT_SENDS,
    attr::TOKEN_TYPE,
    attr::SCOPE,
    attr::EXPIRES_AT,
    attr::LAST_UPDATED,
    attr::REFRESH_AT,
    attr::TOK_GEN,
    attr::BND,
    attr::TTL,
    attr::PROVIDER,
    attr::GRANT,
    attr::CLIENT_ID,
    attr::CLIENT_SECRET_REF,
    attr::SECOND_CLIENT_SECRET_REF,
    attr::SCOPES,
    attr::AUDIENCE,
    attr::RESOURCE,
    attr::PARAMS,
    attr::TOKEN_URL,
    attr::PAUSED,
    attr::RF,
    attr::VS,
    attr::JN,
    attr::GONE,
    attr::V,
    attr::SCHEMA,
    attr::MIN_READER,
];

/// A table of clients.
pub trait Store: Send + Sync + 'static {
    /// A client's whole partition, strongly consistent, in one request.
    fn read(&self, id: &ClientId) -> impl Future<Output = Result<Partition, StoreError>> + Send;

    /// Carries a change out, or says what stands in its way.
    fn apply(&self, change: &Change) -> impl Future<Output = Result<Applied, StoreError>> + Send;

    /// A page of a virtual shard's clients, eventually consistent.
    fn query(&self, query: &ShardQuery) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Many items at once, strongly consistent but for [`View::Glance`] and [`View::Standing`], in no order; those that do not exist are left
    /// out.
    fn load(
        &self,
        keys: &[Key],
        view: View,
    ) -> impl Future<Output = Result<Vec<(Key, Item)>, StoreError>> + Send;

    /// Something was found in the table that another process wrote: whoever passes on what stands there hears of it.
    /// Nobody does, unless there is a [`Herald`].
    fn announce(&self, _id: &ClientId, _news: News) {}
}

/// Who works on a table.
pub trait Roster: Send + Sync + 'static {
    /// The `MEMBER` items, strongly consistent, with the incarnations that they belong to.
    fn members(&self) -> impl Future<Output = Result<Vec<(String, Item)>, StoreError>> + Send;
}

/// What a store's answers tell beside their content: capacity used, and how far the store's clock is from ours.
#[derive(Debug, Default)]
pub struct Vitals {
    write_units_x1000: AtomicU64,
    read_units_x1000: AtomicU64,
    throttles: AtomicU64,
    /// Our wall clock's lead over the store's, less its own lead over the steady clock at that time.
    lead_ms: AtomicI64,
    /// Our wall clock's lead over the store's, as it was then.
    skew_then_ms: AtomicI64,
    dated: AtomicBool,
    answered_at_ms: AtomicI64,
}

const DOLLARS_PER_MILLION_WRITES: f64 = 0.625;
const DOLLARS_PER_MILLION_READS: f64 = 0.125;

impl Vitals {
    /// Adds consumed capacity, in capacity units.
    pub fn consumed(&self, read_units: f64, write_units: f64) {
        charge(&self.read_units_x1000, read_units, &metrics::READ_UNITS);
        charge(&self.write_units_x1000, write_units, &metrics::WRITE_UNITS);
    }

    /// Read capacity units consumed since start.
    pub fn read_units(&self) -> f64 {
        units(&self.read_units_x1000)
    }

    /// Write capacity units consumed since start.
    pub fn write_units(&self) -> f64 {
        units(&self.write_units_x1000)
    }

    /// What was consumed since start, in dollars at the on-demand prices of us-east-1 ("Pricing for On-Demand Capacity"
    /// in Amazon DynamoDB's price list): $0.625 a million write units, $0.125 a million read units.
    pub fn dollars(&self) -> f64 {
        (self.write_units() * DOLLARS_PER_MILLION_WRITES + self.read_units() * DOLLARS_PER_MILLION_READS)
            / 1e6
    }

    /// Notes a throttled request.
    pub fn throttled(&self) {
        metrics::STORE_THROTTLES.add(&[], 1);
        self.throttles.fetch_add(1, Ordering::Relaxed);
    }

    /// Throttled requests since start.
    pub fn throttles(&self) -> u64 {
        self.throttles.load(Ordering::Relaxed)
    }

    /// Notes an answer, and the server's `Date` where it had one.
    pub fn answered(&self, clock: &dyn Clock, server_date: Option<Timestamp>) {
        let now = clock.now();
        self.answered_at_ms.store(now.as_millis(), Ordering::Relaxed);
        if let Some(date) = server_date {
            let skew = skew_ms(now, date);
            self.lead_ms.store(skew - own_lead_ms(clock), Ordering::Relaxed);
            self.skew_then_ms.store(skew, Ordering::Relaxed);
            self.dated.store(true, Ordering::Relaxed);
        }
    }

    /// When the store last answered anything; `None` before the first answer.
    pub fn answered_at(&self) -> Option<Timestamp> {
        let millis = self.answered_at_ms.load(Ordering::Relaxed);
        (millis != 0).then(|| Timestamp::from_millis(millis))
    }

    /// The time by the store's clock, as far as its answers have told how far ours is off.
    pub fn now(&self, clock: &dyn Clock) -> Timestamp {
        self.by_steady(clock.moment()).unwrap_or_else(|| clock.now())
    }

    /// The same at readings of both clocks, but never earlier than our wall clock makes it, as it went on since the last
    /// answer: it alone counts the time in which a machine stood still together with its steady clock (a snapshot).
    /// Whoever judges by this errs, after a step of our clock, towards "expired", until the store answers.
    pub fn latest(&self, moment: Moment, wall: Timestamp) -> Timestamp {
        let by_wall = wall.set_right(self.skew_then_ms.load(Ordering::Relaxed));
        self.by_steady(moment).map_or(by_wall, |by_steady| by_steady.max(by_wall))
    }

    /// The store's clock, as our steady clock went on since its last answer; `None` before the first.
    fn by_steady(&self, moment: Moment) -> Option<Timestamp> {
        let is_dated = self.dated.load(Ordering::Relaxed);
        is_dated.then(|| steady(moment).set_right(self.lead_ms.load(Ordering::Relaxed)))
    }

    /// Our wall clock minus the store's, in milliseconds; zero while they agree to the second of the header, and before
    /// the first answer. A step of our clock shows at once, before the next answer.
    pub fn skew_ms(&self, clock: &dyn Clock) -> i64 {
        if !self.dated.load(Ordering::Relaxed) {
            return 0;
        }
        self.lead_ms.load(Ordering::Relaxed) + own_lead_ms(clock)
    }
}

/// It changes only when the wall clock is stepped or slewed.
fn own_lead_ms(clock: &dyn Clock) -> i64 {
    let steady = steady(clock.moment());
    clock.now().as_millis().saturating_sub(steady.as_millis())
}

/// Our steady clock, as if its origin were the Unix epoch.
fn steady(moment: Moment) -> Timestamp {
    Timestamp::EPOCH.plus(moment.since(Moment::default()))
}

/// The `Date` header (RFC 9110 section 6.6.1) is cut to whole seconds: the true time lies in `[date, date + 1 s)`.
fn skew_ms(now: Timestamp, date: Timestamp) -> i64 {
    let behind = now.as_millis().saturating_sub(date.as_millis());
    if behind < 0 { behind } else { (behind - 999).max(0) }
}

/// The metric counts whole units, as they become whole.
fn charge(total: &AtomicU64, units: f64, metric: &Metric) {
    let charged = thousandths(units);
    let before = total.fetch_add(charged, Ordering::Relaxed);
    let whole = (before + charged) / 1000 - before / 1000;
    if whole > 0 {
        metric.add(&[], whole);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "capacity units are small and not negative"
)]
fn thousandths(units: f64) -> u64 {
    (units * 1000.0).round() as u64
}

#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 thousandths of a unit are not reached in a process's life"
)]
fn units(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Clocks(Timestamp, Moment);

    impl Clock for Clocks {
        fn now(&self) -> Timestamp {
            self.0
        }

        fn moment(&self) -> Moment {
            self.1
        }

        fn sleep(&self, _: Duration) -> crate::time::Sleep {
            Box::pin(std::future::pending())
        }
    }

    #[test]
    fn a_machine_that_stood_still_with_its_steady_clock_is_not_taken_back_in_time() {
        let at = |wall: i64, steady: u64| {
            Clocks(Timestamp::from_secs(wall), Moment::default().plus(Duration::from_secs(steady)))
        };
        let vitals = Vitals::default();
        // Our clock is an hour ahead of the store's.
        vitals.answered(&at(4600, 50), Some(Timestamp::from_secs(1000)));
        let second = Duration::from_secs(1);
        for (clocks, store, latest) in [
            (at(4610, 60), 1010, 1010),
            // It stood still for a day, and nothing but the wall clock knows.
            (at(91_010, 60), 1010, 87_410),
            // A step back revives nothing.
            (at(100, 60), 1010, 1010),
        ] {
            let near = |time: Timestamp, secs: i64| {
                let expected = Timestamp::from_secs(secs);
                time.since(expected) <= second && expected.since(time) <= second
            };
            assert!(near(vitals.now(&clocks), store), "{}", vitals.now(&clocks));
            let found = vitals.latest(clocks.1, clocks.0);
            assert!(near(found, latest), "{found}");
        }
        vitals.answered(&at(91_010, 60), Some(Timestamp::from_secs(87_410)));
        let clocks = at(91_010, 60);
        assert_eq!(vitals.latest(clocks.1, clocks.0), vitals.now(&clocks));
    }

    #[test]
    fn a_date_header_cut_to_the_second_is_no_skew() {
        let date = Timestamp::from_secs(100);
        assert_eq!(skew_ms(Timestamp::from_millis(100_999), date), 0);
        assert_eq!(skew_ms(Timestamp::from_millis(105_999), date), 5_000);
        assert_eq!(skew_ms(Timestamp::from_millis(94_000), date), -6_000);
    }
}
