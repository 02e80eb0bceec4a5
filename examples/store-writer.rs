//! Counts up in one item of an embedded store by compare-and-set, two hundred times, and says so after each write
//! that was acknowledged: for the tests of several processes on one file.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::sync::Arc;

use anyhow::Context;
use perennial::client::ClientId;
use perennial::item::{Action, Assignment, Change, Condition, Key, Value};
use perennial::store::{Applied, DynamoStore, Embedded, Store, View};
use perennial::time::SystemClock;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("usage: store-writer FILE")?;
    let embedded = Embedded::open(path, "clients", 16, Arc::new(SystemClock)).await?;
    let key = Key::Lease(ClientId::new("shared")?);
    let mut written = 0;
    while written < 200 {
        let seen = count(embedded.store(), &key).await?;
        let unchanged = Condition::Any(vec![Condition::Absent, Condition::Equals("gen", Value::N(seen))]);
        let action = Action::Update(vec![Assignment::Set("gen", Value::N(seen + 1))]);
        let change = Change::one(key.clone(), unchanged, action);
        if embedded.store().apply(&change).await? == Applied::Committed {
            written += 1;
            println!("wrote {}", seen + 1);
        }
    }
    Ok(())
}

async fn count(store: &DynamoStore, key: &Key) -> anyhow::Result<i64> {
    let found = store.load(std::slice::from_ref(key), View::Whole).await?;
    match found.first().and_then(|(_, item)| item.get("gen")) {
        Some(Value::N(number)) => Ok(*number),
        _ => Ok(0),
    }
}
