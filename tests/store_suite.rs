//! One behavioural suite for every store: in memory, embedded, and Amazon's own DynamoDB Local as the referee.
//!
//! The in-memory store earns its trust here: what the simulation and the model checker run on does the same as the
//! table in production. Cases share one table, and each has its own clients and virtual shard.

mod support;

mod store_suite {
    pub(crate) mod cases;
    pub(crate) mod differential;
    pub(crate) mod idle;
    pub(crate) mod plans;
    #[cfg(feature = "embedded")]
    pub(crate) mod processes;
    pub(crate) mod tables;
    pub(crate) mod worlds;
}

use store_suite::cases;
use store_suite::worlds::{DynamoWorld, MemoryWorld};

#[tokio::test]
async fn memory() {
    cases::run_all(MemoryWorld::new()).await;
}

#[cfg(feature = "embedded")]
#[tokio::test(flavor = "multi_thread")]
async fn embedded() {
    cases::run_all(DynamoWorld::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamodb_local() {
    cases::run_all(DynamoWorld::local().await).await;
}
