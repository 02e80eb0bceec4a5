//! The table in DynamoDB: every change a conditional write, every decision a strongly consistent read.
//!
//! The SDK retries by itself, so a write may have been applied by an attempt whose answer was lost, and the retry
//! then fails its own condition. That is not hidden here: [`Applied::Lost`] brings the item, and callers know
//! their own attempt by its nonce.

mod connect;
mod error;
mod render;
mod watch;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{Builder, SharedInterceptor};
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ConsumedCapacity, KeysAndAttributes, ReturnConsumedCapacity};

pub use connect::Connection;
pub(super) use error::{Failure, code, refusal};

use super::item::{Raw, decode, key_of, number_of};
use super::memory::perform;
use super::{
    Applied, IndexRow, PAGE_ROWS, Page, Roster, ShardQuery, Store, StoreError, View, Vitals, capacity, rules,
};
use crate::client::ClientId;
use crate::item::{Action, Change, Item, Key, MEMBERS, Write, attr};
use crate::metrics;
use crate::record::Partition;
use crate::secret::Secret;
use crate::time::{Clock, Timestamp};

/// The index over virtual shard and join stamp.
pub(super) const BY_SHARD: &str = "by-shard";

/// A TCP and TLS handshake within one region takes milliseconds; a lost SYN is sent again after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// DynamoDB answers in tens of milliseconds. Longer than this is a dead connection, and the send window of 5 s
/// leaves time for a second attempt on a new one.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// The whole call, retries included: two calls fit into the commit budget of 15 s.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(7);
/// The first attempt and two more.
const ATTEMPTS: u32 = 3;
/// The SDK's own default of one second is meant for slower services.
const RETRY_BASE: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const RETRY_CAP: Duration = Duration::from_secs(1);

/// What BatchGetItem takes in one request.
const BATCH: usize = 100;
/// How often keys that a BatchGetItem left out are asked for again.
const BATCH_ROUNDS: u32 = 6;

/// The store of the daemon.
#[derive(Clone)]
pub struct DynamoStore {
    client: Client,
    table: String,
    /// Where it is, if not at AWS: for messages alone.
    endpoint: Option<String>,
    vitals: Arc<Vitals>,
    clock: Arc<dyn Clock>,
}

/// A page of secrets.
#[derive(Debug)]
pub struct Secrets {
    /// As they stand in the table.
    pub secrets: Vec<Secret>,
    /// Where the next page begins.
    pub next: Option<Place>,
}

/// Where a page ended.
#[derive(Debug)]
pub struct Place(std::collections::HashMap<String, AttributeValue>);

impl DynamoStore {
    /// A table behind a configured SDK client, which gets the timeouts and retries that the protocol is sized
    /// for, and is watched for [`Vitals`].
    pub fn new(config: Builder, table: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        let vitals = Arc::new(Vitals::default());
        let watch = watch::Watch::new(Arc::clone(&vitals), Arc::clone(&clock));
        let config = config
            .timeout_config(timeouts())
            .retry_config(retries())
            .interceptor(SharedInterceptor::new(watch))
            .build();
        Self { client: Client::from_conf(config), table: table.into(), endpoint: None, vitals, clock }
    }

    /// Has errors name the endpoint.
    #[must_use]
    pub(super) fn at(self, endpoint: Option<&str>) -> Self {
        Self { endpoint: endpoint.map(str::to_owned), ..self }
    }

    /// Capacity consumed, throttles, the store's clock.
    pub fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The SDK client, for what is no part of [`Store`].
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    fn charge_read(&self, consumed: &[ConsumedCapacity]) {
        self.vitals.consumed(total(consumed), 0.0);
    }

    /// An answer to a failed condition does not say what it cost: it is charged like the write.
    fn charge_lost(&self, writes: &[Write], lost: &[Option<Item>]) {
        let factor = if writes.len() > 1 { 2.0 } else { 1.0 };
        let units = |(write, item): (&Write, &Option<Item>)| factor * lost_units(write, item.as_ref());
        self.vitals.consumed(0.0, writes.iter().zip(lost).map(units).sum());
    }

    pub(super) fn fail(&self, failure: Failure<'_>) -> StoreError {
        error::classify(failure, &self.table, self.endpoint.as_deref())
    }

    async fn write(&self, write: &Write) -> Result<Applied, StoreError> {
        let rendered = render::render(write)?;
        let sent = match &write.action {
            Action::Update(_) => self.update(rendered).await,
            Action::Put(_) => self.put(rendered).await,
            Action::Delete => self.delete(rendered).await,
            Action::Check => {
                return Err(StoreError::Refused(format!("{}: a check alone writes nothing", write.key)));
            }
        };
        match sent? {
            Sent::Applied(units) => {
                self.vitals.consumed(0.0, units);
                Ok(Applied::Committed)
            }
            Sent::Lost(item) => {
                let lost = vec![item.map(decode)];
                self.charge_lost(std::slice::from_ref(write), &lost);
                Ok(Applied::Lost(lost))
            }
        }
    }

    async fn update(&self, rendered: render::Rendered) -> Result<Sent, StoreError> {
        let sent = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(rendered.key))
            .set_update_expression(rendered.update)
            .set_condition_expression(rendered.condition)
            .set_expression_attribute_names(rendered.names)
            .set_expression_attribute_values(rendered.values)
            .return_values_on_condition_check_failure(render::ALL_OLD)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await;
        match sent {
            Ok(output) => Ok(Sent::Applied(total(output.consumed_capacity.as_slice()))),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(lost)) => {
                    Ok(Sent::Lost(lost.item.clone()))
                }
                _ => Err(self.fail(Failure::of(&error))),
            },
        }
    }

    async fn put(&self, rendered: render::Rendered) -> Result<Sent, StoreError> {
        let sent = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(rendered.item)
            .set_condition_expression(rendered.condition)
            .set_expression_attribute_names(rendered.names)
            .set_expression_attribute_values(rendered.values)
            .return_values_on_condition_check_failure(render::ALL_OLD)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await;
        match sent {
            Ok(output) => Ok(Sent::Applied(total(output.consumed_capacity.as_slice()))),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(lost)) => {
                    Ok(Sent::Lost(lost.item.clone()))
                }
                _ => Err(self.fail(Failure::of(&error))),
            },
        }
    }

    async fn delete(&self, rendered: render::Rendered) -> Result<Sent, StoreError> {
        let sent = self
            .client
            .delete_item()
            .table_name(&self.table)
            .set_key(Some(rendered.key))
            .set_condition_expression(rendered.condition)
            .set_expression_attribute_names(rendered.names)
            .set_expression_attribute_values(rendered.values)
            .return_values_on_condition_check_failure(render::ALL_OLD)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await;
        match sent {
            Ok(output) => Ok(Sent::Applied(total(output.consumed_capacity.as_slice()))),
            Err(error) => match error.as_service_error() {
                Some(DeleteItemError::ConditionalCheckFailedException(lost)) => {
                    Ok(Sent::Lost(lost.item.clone()))
                }
                _ => Err(self.fail(Failure::of(&error))),
            },
        }
    }

    /// The SDK adds a token that makes its own retries of one transaction idempotent.
    async fn transact(&self, writes: &[Write]) -> Result<Applied, StoreError> {
        let items =
            writes.iter().map(|write| render::transact(write, &self.table)).collect::<Result<_, _>>()?;
        let sent = self
            .client
            .transact_write_items()
            .set_transact_items(Some(items))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await;
        let error = match sent {
            Ok(output) => {
                self.vitals.consumed(0.0, total(output.consumed_capacity()));
                return Ok(Applied::Committed);
            }
            Err(error) => error,
        };
        let Some(TransactWriteItemsError::TransactionCanceledException(canceled)) = error.as_service_error()
        else {
            return Err(self.fail(Failure::of(&error)));
        };
        let lost = error::lost(canceled.cancellation_reasons(), writes)?;
        self.charge_lost(writes, &lost);
        Ok(Applied::Lost(lost))
    }

    /// A page of every secret in the table, whosever it is, strongly consistent. It reads the whole table: for an operator's
    /// rare question.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub async fn scan_secrets(&self, after: Option<Place>) -> Result<Secrets, StoreError> {
        let mut scan = self.client.scan().table_name(&self.table).consistent_read(true);
        let mut names = Vec::new();
        for (number, name) in attr::SECRETS.into_iter().enumerate() {
            scan = scan.expression_attribute_names(format!("#{number}"), name);
            names.push(format!("#{number}"));
        }
        let scan = scan
            .projection_expression(names.join(", "))
            .set_exclusive_start_key(after.map(|place| place.0))
            .return_consumed_capacity(ReturnConsumedCapacity::Total);
        let page = scan.send().await.map_err(|error| self.fail(Failure::of(&error)))?;
        self.charge_read(page.consumed_capacity.as_slice());
        let texts = page.items().iter().flat_map(std::collections::HashMap::values);
        let secrets = texts.filter_map(|value| value.as_s().ok()).map(|text| Secret::new(text.as_str()));
        Ok(Secrets { secrets: secrets.collect(), next: page.last_evaluated_key.clone().map(Place) })
    }

    /// The items of ours under one partition key, strongly consistent.
    async fn partition(&self, pk: String) -> Result<Vec<(Key, Item)>, StoreError> {
        let mut pages = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("#pk = :pk")
            .expression_attribute_names("#pk", attr::PK)
            .expression_attribute_values(":pk", AttributeValue::S(pk))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .into_paginator()
            .send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.fail(Failure::of(&error)))?;
            self.charge_read(page.consumed_capacity.as_slice());
            found.extend(page.items.unwrap_or_default().into_iter().filter_map(ours));
        }
        Ok(found)
    }

    async fn batch(&self, mut asked: KeysAndAttributes) -> Result<Vec<Raw>, StoreError> {
        let mut found = Vec::new();
        for round in 0..BATCH_ROUNDS {
            let sent = self
                .client
                .batch_get_item()
                .request_items(&self.table, asked)
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
                .await;
            let output = sent.map_err(|error| self.fail(Failure::of(&error)))?;
            self.charge_read(output.consumed_capacity());
            found.extend(
                output.responses.and_then(|mut by_table| by_table.remove(&self.table)).unwrap_or_default(),
            );
            match output.unprocessed_keys.and_then(|mut by_table| by_table.remove(&self.table)) {
                Some(left) if !left.keys.is_empty() => asked = left,
                _ => return Ok(found),
            }
            self.vitals.throttled();
            self.clock.sleep(RETRY_BASE * 2_u32.pow(round)).await;
        }
        Err(StoreError::Throttled(format!("keys of a BatchGetItem were left unread {BATCH_ROUNDS} times")))
    }
}

/// What a single write came to.
enum Sent {
    /// With the capacity units that it took.
    Applied(f64),
    Lost(Option<Raw>),
}

impl fmt::Debug for DynamoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoStore").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Roster for DynamoStore {
    async fn members(&self) -> Result<Vec<(String, Item)>, StoreError> {
        let items = counted("read", self.partition(MEMBERS.to_owned()).await)?.into_iter();
        Ok(items.map(|(key, item)| (key.sk().to_owned(), item)).collect())
    }
}

impl Store for DynamoStore {
    async fn read(&self, id: &ClientId) -> Result<Partition, StoreError> {
        Ok(counted("read", self.partition(Key::partition(id)).await)?.into_iter().collect())
    }

    async fn apply(&self, change: &Change) -> Result<Applied, StoreError> {
        rules::check(change)?;
        let applied = match change.0.as_slice() {
            [write] => self.write(write).await,
            writes => self.transact(writes).await,
        };
        counted("write", applied)
    }

    async fn query(&self, query: &ShardQuery) -> Result<Page, StoreError> {
        let asked = render::shard_query(query);
        let sent = self
            .client
            .query()
            .table_name(&self.table)
            .index_name(BY_SHARD)
            .limit(PAGE_ROWS.try_into().unwrap_or(i32::MAX))
            .key_condition_expression(asked.condition)
            .set_expression_attribute_names(Some(asked.names))
            .set_expression_attribute_values(Some(asked.values))
            .set_exclusive_start_key(asked.start)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await;
        let output = counted("read", sent.map_err(|error| self.fail(Failure::of(&error))))?;
        self.charge_read(output.consumed_capacity.as_slice());
        let more = output.last_evaluated_key.is_some_and(|key| !key.is_empty());
        Ok(Page { rows: output.items.unwrap_or_default().iter().filter_map(row).collect(), more })
    }

    async fn load(&self, keys: &[Key], view: View) -> Result<Vec<(Key, Item)>, StoreError> {
        let distinct: Vec<_> = keys.iter().collect::<BTreeSet<_>>().into_iter().collect();
        let mut found = Vec::with_capacity(distinct.len());
        for some in distinct.chunks(BATCH) {
            let asked = render::batch(some, view).map_err(|error| refusal(&error))?;
            found.extend(counted("read", self.batch(asked).await)?.into_iter().filter_map(ours));
        }
        Ok(found)
    }
}

fn counted<T>(operation: &str, result: Result<T, StoreError>) -> Result<T, StoreError> {
    if result.is_err() {
        metrics::STORE_FAILURES.add(&[operation], 1);
    }
    result
}

/// An item whose key is one of ours; others are ignored.
fn ours(raw: Raw) -> Option<(Key, Item)> {
    let (pk, sk) = key_of(&raw)?;
    Some((Key::parse(pk, sk)?, decode(raw)))
}

fn row(raw: &Raw) -> Option<IndexRow> {
    let (pk, sk) = key_of(raw)?;
    let joined = Timestamp::from_millis(number_of(raw, attr::JN)?);
    Some(IndexRow { joined, pk: pk.to_owned(), sk: sk.to_owned() })
}

fn total(consumed: &[ConsumedCapacity]) -> f64 {
    consumed.iter().filter_map(|consumed| consumed.capacity_units).sum()
}

fn lost_units(write: &Write, item: Option<&Item>) -> f64 {
    let size =
        |item: Option<&Item>| item.map_or(0, |item| capacity::size(&write.key.pk(), write.key.sk(), item));
    let wanted = perform(&write.action, item.cloned()).ok().flatten();
    capacity::write_units(size(item).max(size(wanted.as_ref())))
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build()
}

fn retries() -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(ATTEMPTS)
        .with_initial_backoff(RETRY_BASE)
        .with_max_backoff(RETRY_CAP)
}

#[cfg(test)]
mod faults;
