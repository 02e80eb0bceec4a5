//! A faithful table in memory: what simulation and tests run on.
//!
//! It interprets the same [`Change`] that the DynamoDB store renders, and one behavioural suite holds the two
//! together. Nothing awaits while the table is locked, and everything is ordered, so that a seed reproduces a run.
//! [`holds`] and [`perform`] are the whole semantics of a write: a model checker uses them as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Applied, IndexRow, PAGE_ROWS, Page, Roster, ShardQuery, Store, StoreError, View, Vitals, capacity, rules,
};
use crate::client::ClientId;
use crate::item::{Action, Assignment, Change, Condition, Item, Key, MEMBERS, Value, Write, attr};
use crate::record::Partition;
use crate::time::Timestamp;

/// DynamoDB's limit on the size of an item, in bytes.
const MAX_ITEM: usize = 400 * 1024;

/// What the names of four keys and two numbers add to a row of the index, about.
const INDEX_KEYS: usize = 24;

/// A table in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    vitals: Arc<Vitals>,
    hook: Mutex<Option<Arc<Hook>>>,
}

type Hook = dyn Fn(Operation<'_>) -> Fault + Send + Sync;

/// The items and the index over them.
#[derive(Default)]
struct Table {
    items: BTreeMap<(String, String), Item>,
    index: BTreeSet<(i64, IndexRow)>,
}

impl Table {
    fn replace(&mut self, key: (String, String), item: Option<Item>) {
        if let Some(row) = self.items.remove(&key).and_then(|old| indexed(&key, &old)) {
            self.index.remove(&row);
        }
        if let Some(item) = item {
            self.index.extend(indexed(&key, &item));
            self.items.insert(key, item);
        }
    }
}

/// What a fault hook decides on.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// [`Store::read`].
    Read(&'a ClientId),
    /// [`Store::apply`].
    Apply(&'a Change),
    /// [`Store::query`].
    Query(&'a ShardQuery),
    /// [`Store::load`].
    Load(&'a [Key]),
    /// [`Roster::members`].
    Members,
}

/// What goes wrong with an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It is not carried out, and this is the answer.
    Before(StoreError),
    /// It is carried out, and the answer is lost: the caller gets this instead.
    After(StoreError),
}

impl MemoryStore {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Capacity consumed.
    pub fn vitals(&self) -> &Arc<Vitals> {
        &self.0.vitals
    }

    /// Lets a hook decide on the failure of every operation from now on.
    pub fn on_operation(&self, hook: impl Fn(Operation<'_>) -> Fault + Send + Sync + 'static) {
        *self.0.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
    }

    /// Puts an item under any key, as another tool would.
    pub fn put_raw(&self, pk: &str, sk: &str, item: Item) {
        self.table().replace((pk.to_owned(), sk.to_owned()), Some(item));
    }

    /// The item under any key.
    pub fn raw(&self, pk: &str, sk: &str) -> Option<Item> {
        self.table().items.get(&(pk.to_owned(), sk.to_owned())).cloned()
    }

    /// All items, in the order of their keys.
    pub fn items(&self) -> Vec<((String, String), Item)> {
        self.table().items.iter().map(|(key, item)| (key.clone(), item.clone())).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A change is computed before the first item is replaced: a panic leaves the table whole.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T>(
        &self,
        operation: Operation<'_>,
        body: impl FnOnce(&mut Table, &Vitals) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let hook = self.0.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match hook.map_or(Fault::None, |hook| hook(operation)) {
            Fault::None => body(&mut self.table(), &self.0.vitals),
            Fault::Before(error) => Err(error),
            Fault::After(error) => {
                body(&mut self.table(), &self.0.vitals)?;
                Err(error)
            }
        }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("items", &self.table().items.len()).finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    async fn read(&self, id: &ClientId) -> Result<Partition, StoreError> {
        self.run(Operation::Read(id), |table, vitals| Ok(read(table, vitals, id)))
    }

    async fn apply(&self, change: &Change) -> Result<Applied, StoreError> {
        self.run(Operation::Apply(change), |table, vitals| apply(table, vitals, change))
    }

    async fn query(&self, query: &ShardQuery) -> Result<Page, StoreError> {
        self.run(Operation::Query(query), |table, vitals| Ok(page(table, vitals, query)))
    }

    async fn load(&self, keys: &[Key], view: View) -> Result<Vec<(Key, Item)>, StoreError> {
        self.run(Operation::Load(keys), |table, vitals| Ok(load(table, vitals, keys, view)))
    }
}

impl Roster for MemoryStore {
    async fn members(&self) -> Result<Vec<(String, Item)>, StoreError> {
        self.run(Operation::Members, |table, vitals| {
            let items = partition(table, vitals, MEMBERS);
            Ok(items.into_iter().map(|(sk, item)| (sk.to_owned(), item.clone())).collect())
        })
    }
}

/// Whether a condition holds of an item, as DynamoDB judges it: a comparison with an attribute that is absent,
/// or of another type, is false.
pub fn holds(condition: &Condition, item: Option<&Item>) -> bool {
    let value = |name: &str| item.and_then(|item| item.get(name));
    match condition {
        Condition::Exists => item.is_some(),
        Condition::Absent => item.is_none(),
        Condition::Has(name) => value(name).is_some(),
        Condition::Lacks(name) => value(name).is_none(),
        Condition::Equals(name, wanted) => value(name) == Some(wanted),
        Condition::Below(name, bound) => matches!(value(name), Some(Value::N(number)) if number < bound),
        Condition::All(list) => list.iter().all(|condition| holds(condition, item)),
        Condition::Any(list) => list.iter().any(|condition| holds(condition, item)),
    }
}

/// The item after an action; `None` where none is left.
///
/// # Errors
///
/// Refuses to add to what is not a number, as DynamoDB does.
pub fn perform(action: &Action, item: Option<Item>) -> Result<Option<Item>, StoreError> {
    Ok(match action {
        Action::Check => item,
        Action::Delete => None,
        Action::Put(new) => Some(new.clone()),
        Action::Update(assignments) => {
            let mut item = item.unwrap_or_default();
            assignments.iter().try_for_each(|assignment| assign(&mut item, assignment))?;
            Some(item)
        }
    })
}

fn assign(item: &mut Item, assignment: &Assignment) -> Result<(), StoreError> {
    match assignment {
        Assignment::Set(name, value) => drop(item.0.insert((*name).to_owned(), value.clone())),
        Assignment::Remove(name) => drop(item.0.remove(*name)),
        Assignment::Add(name, amount) => {
            let sum = match item.get(name) {
                None => Value::N(*amount),
                // DynamoDB counts on beyond 64 bits, where this program reads no number.
                Some(Value::N(number)) => number.checked_add(*amount).map_or(Value::Other("N"), Value::N),
                Some(Value::Other("N")) => Value::Other("N"),
                Some(other) => return Err(cannot_add(name, other)),
            };
            item.0.insert((*name).to_owned(), sum);
        }
    }
    Ok(())
}

fn cannot_add(name: &str, value: &Value) -> StoreError {
    StoreError::Refused(format!(
        "attribute `{name}` has type {}, and only a number can be added to",
        value.type_name()
    ))
}

fn table_key(key: &Key) -> (String, String) {
    (key.pk(), key.sk().to_owned())
}

fn size_of(key: &Key, item: Option<&Item>) -> usize {
    item.map_or(0, |item| capacity::size(&key.pk(), key.sk(), item))
}

fn read(table: &Table, vitals: &Vitals, id: &ClientId) -> Partition {
    let pk = Key::partition(id);
    let mut read = Partition::default();
    for (sk, item) in partition(table, vitals, &pk) {
        if let Some(key) = Key::parse(&pk, sk) {
            read.insert(&key, item.clone());
        }
    }
    read
}

/// The items of a partition, charged as one strongly consistent query.
fn partition<'a>(table: &'a Table, vitals: &Vitals, pk: &str) -> Vec<(&'a str, &'a Item)> {
    let from = (pk.to_owned(), String::new());
    let within = table.items.range(from..).take_while(|((found, _), _)| found == pk);
    let found: Vec<_> = within.map(|((_, sk), item)| (sk.as_str(), item)).collect();
    let bytes = found.iter().map(|(sk, item)| capacity::size(pk, sk, item)).sum();
    vitals.consumed(capacity::read_units(bytes), 0.0);
    found
}

/// What a write of a change would do.
struct Outcome<'a> {
    write: &'a Write,
    before: Option<Item>,
    /// The item afterwards, or `None` where the condition does not hold.
    after: Option<Option<Item>>,
}

fn apply(table: &mut Table, vitals: &Vitals, change: &Change) -> Result<Applied, StoreError> {
    rules::check(change)?;
    let outcomes: Vec<_> = change.0.iter().map(|write| judge(table, write)).collect::<Result<_, _>>()?;
    vitals.consumed(0.0, bill(&outcomes));
    if outcomes.iter().any(|outcome| outcome.after.is_none()) {
        let lost = |outcome: Outcome<'_>| if outcome.after.is_none() { outcome.before } else { None };
        return Ok(Applied::Lost(outcomes.into_iter().map(lost).collect()));
    }
    for outcome in outcomes {
        table.replace(table_key(&outcome.write.key), outcome.after.flatten());
    }
    Ok(Applied::Committed)
}

fn judge<'a>(table: &Table, write: &'a Write) -> Result<Outcome<'a>, StoreError> {
    let before = table.items.get(&table_key(&write.key)).cloned();
    let after = match holds(&write.condition, before.as_ref()) {
        true => Some(perform(&write.action, before.clone())?),
        false => None,
    };
    if size_of(&write.key, after.as_ref().and_then(Option::as_ref)) > MAX_ITEM {
        return Err(StoreError::Refused(format!(
            "{}: item size has exceeded the maximum of 400 KB",
            write.key
        )));
    }
    Ok(Outcome { write, before, after })
}

/// Write units: by the larger of the item before and after, doubled in a transaction. A failed condition is
/// charged like a write. The index is charged where its row appears, disappears or moves.
fn bill(outcomes: &[Outcome<'_>]) -> f64 {
    let factor = if outcomes.len() > 1 { 2.0 } else { 1.0 };
    let committed = outcomes.iter().all(|outcome| outcome.after.is_some());
    outcomes
        .iter()
        .map(|outcome| factor * units(outcome) + if committed { index_units(outcome) } else { 0.0 })
        .sum()
}

fn units(Outcome { write, before, after }: &Outcome<'_>) -> f64 {
    let after = after.as_ref().and_then(Option::as_ref);
    capacity::write_units(size_of(&write.key, before.as_ref()).max(size_of(&write.key, after)))
}

fn index_units(Outcome { write, before, after }: &Outcome<'_>) -> f64 {
    let row = |item: Option<&Item>| item.and_then(|item| indexed(&table_key(&write.key), item));
    match (row(before.as_ref()), row(after.as_ref().and_then(Option::as_ref))) {
        (None, None) => 0.0,
        (Some(old), Some(new)) if old == new => 0.0,
        (Some(_), Some(_)) => 2.0,
        _ => 1.0,
    }
}

/// The item's row in the index, with its shard: an item without numeric `vs` and `jn` has none.
fn indexed((pk, sk): &(String, String), item: &Item) -> Option<(i64, IndexRow)> {
    let (Value::N(shard), Value::N(joined)) = (item.get(attr::VS)?, item.get(attr::JN)?) else { return None };
    Some((*shard, IndexRow { joined: Timestamp::from_millis(*joined), pk: pk.clone(), sk: sk.clone() }))
}

fn page(table: &Table, vitals: &Vitals, query: &ShardQuery) -> Page {
    let shard = i64::from(query.shard);
    let least = IndexRow { joined: Timestamp::from_millis(i64::MIN), pk: String::new(), sk: String::new() };
    let from = (shard, query.after.clone().unwrap_or(least));
    let rows = table.index.range(from..).take_while(|(found, _)| *found == shard).map(|(_, row)| row);
    let wanted = |row: &&IndexRow| {
        query.joined_after.is_none_or(|after| row.joined > after) && query.after.as_ref() != Some(*row)
    };
    let mut rows: Vec<_> = rows.filter(wanted).take(PAGE_ROWS + 1).cloned().collect();
    let more = rows.len() > PAGE_ROWS;
    rows.truncate(PAGE_ROWS);
    let bytes = rows.iter().map(|row| row.pk.len() + row.sk.len() + INDEX_KEYS).sum();
    vitals.consumed(capacity::read_units(bytes) / 2.0, 0.0);
    Page { rows, more }
}

fn load(table: &Table, vitals: &Vitals, keys: &[Key], view: View) -> Vec<(Key, Item)> {
    let distinct: BTreeSet<_> = keys.iter().collect();
    let mut found = Vec::new();
    for key in distinct {
        let item = table.items.get(&table_key(key));
        let strong = capacity::read_units(size_of(key, item));
        vitals.consumed(if view.is_eventual() { strong / 2.0 } else { strong }, 0.0);
        found.extend(item.map(|item| (key.clone(), seen(item, view))));
    }
    found
}

fn seen(item: &Item, view: View) -> Item {
    let Some(names) = view.names() else { return item.clone() };
    let named = item.0.iter().filter(|(name, _)| names.contains(&name.as_str()));
    Item(named.map(|(name, value)| (name.clone(), value.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write() -> Change {
        let key = Key::Lease(ClientId::new("c").expect("a valid id"));
        Change::one(key, Condition::Absent, Action::Put(Item::default().with(attr::GEN, Value::N(0))))
    }

    #[tokio::test]
    async fn a_lost_answer_hides_a_write_that_happened() {
        let store = MemoryStore::new();
        let lost = StoreError::Unavailable("cut".into());
        let answer = lost.clone();
        store.on_operation(move |_| Fault::After(answer.clone()));
        assert_eq!(store.apply(&write()).await, Err(lost));
        assert_eq!(store.items().len(), 1);
    }

    #[tokio::test]
    async fn a_refusal_before_leaves_the_table_alone() {
        let store = MemoryStore::new();
        store.on_operation(|operation| match operation {
            Operation::Apply(_) => Fault::Before(StoreError::Throttled("slow down".into())),
            _ => Fault::None,
        });
        assert!(store.apply(&write()).await.is_err());
        assert!(store.items().is_empty());
        assert_eq!(store.read(&ClientId::new("c").expect("a valid id")).await, Ok(Partition::default()));
    }
}
