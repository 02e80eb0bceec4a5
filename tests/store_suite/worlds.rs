//! A store under test, with a way to put in what other tools would.

use std::future::Future;
use std::sync::Arc;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use perennial::item::{Item, Value};
use perennial::store::{Connection, DynamoStore, MemoryStore, Store, TableSpec, Vitals, table};
use perennial::time::SystemClock;

use crate::support::DynamoLocal;

/// A store and a back door into its table.
pub(crate) trait World: Clone + Send + Sync + 'static {
    type Store: Store;
    fn store(&self) -> &Self::Store;
    fn vitals(&self) -> &Vitals;
    /// Puts an item as another tool would; [`Value::Other`] becomes some value of that type.
    fn seed(&self, pk: &str, sk: &str, item: Item) -> impl Future<Output = ()> + Send;
}

#[derive(Clone)]
pub(crate) struct MemoryWorld(MemoryStore);

impl MemoryWorld {
    pub(crate) fn new() -> Self {
        Self(MemoryStore::new())
    }
}

impl World for MemoryWorld {
    type Store = MemoryStore;
    fn store(&self) -> &MemoryStore {
        &self.0
    }
    fn vitals(&self) -> &Vitals {
        self.0.vitals()
    }
    async fn seed(&self, pk: &str, sk: &str, item: Item) {
        self.0.put_raw(pk, sk, item);
    }
}

#[derive(Clone)]
pub(crate) struct DynamoWorld {
    store: DynamoStore,
    /// What must live as long as the store: its directory.
    _keep: Arc<dyn std::any::Any + Send + Sync>,
}

pub(crate) const SPEC: TableSpec =
    TableSpec { kms_key: None, shards: 16, deletion_protection: false, point_in_time_recovery: false };

impl DynamoWorld {
    #[cfg(feature = "embedded")]
    pub(crate) async fn embedded() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store.db");
        let opened = perennial::store::Embedded::open(path, "clients", 16, Arc::new(SystemClock)).await;
        Self { store: opened.expect("opens").store().clone(), _keep: Arc::new(dir) }
    }

    /// A new table in DynamoDB Local.
    pub(crate) async fn local() -> Self {
        let world = Self::local_without_table().await;
        table::create(&world.store, &SPEC).await.expect("the table is created");
        world
    }

    /// The name of a table that is yet to be made in DynamoDB Local.
    pub(crate) async fn local_without_table() -> Self {
        let endpoint = DynamoLocal::shared().await.endpoint().parse().expect("a url");
        let connection =
            Connection { table: DynamoLocal::fresh_table_name(), region: None, endpoint: Some(endpoint) };
        let store = connection.connect(Arc::new(SystemClock)).await.expect("connects");
        Self { store, _keep: Arc::new(()) }
    }

    pub(crate) fn dynamo(&self) -> &DynamoStore {
        &self.store
    }
}

impl World for DynamoWorld {
    type Store = DynamoStore;
    fn store(&self) -> &DynamoStore {
        &self.store
    }
    fn vitals(&self) -> &Vitals {
        self.store.vitals()
    }
    async fn seed(&self, pk: &str, sk: &str, item: Item) {
        let mut put = self.store.client().put_item().table_name(self.store.table());
        put = put.item("PK", AttributeValue::S(pk.into())).item("SK", AttributeValue::S(sk.into()));
        for (name, value) in item.0 {
            put = put.item(name, raw(value));
        }
        put.send().await.expect("seeded");
    }
}

fn raw(value: Value) -> AttributeValue {
    let blob = || Blob::new([7]);
    match value {
        Value::S(text) => AttributeValue::S(text),
        Value::Secret(secret) => AttributeValue::S(secret.expose().to_owned()),
        Value::N(number) => AttributeValue::N(number.to_string()),
        Value::Bool(value) => AttributeValue::Bool(value),
        Value::L(list) => AttributeValue::L(list.into_iter().map(raw).collect()),
        Value::M(map) => AttributeValue::M(map.into_iter().map(|(name, value)| (name, raw(value))).collect()),
        Value::Other("N") => AttributeValue::N("1e40".into()),
        Value::Other("B") => AttributeValue::B(blob()),
        Value::Other("BS") => AttributeValue::Bs(vec![blob()]),
        Value::Other("SS") => AttributeValue::Ss(vec!["x".into()]),
        Value::Other("NS") => AttributeValue::Ns(vec!["1".into()]),
        Value::Other(_) => AttributeValue::Null(true),
    }
}
