//! The table itself: making it, checking it, and refusing to start on a wrong one.
//!
//! What it must be is in [`TableSpec`]; each point is a [`Finding`] with its remedy. A point that an endpoint knows
//! nothing of (local stores have no backups) is [`Verdict::Unsupported`], which is no difference.

mod judge;

use std::fmt;
use std::time::Duration;

use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::create_table::builders::CreateTableFluentBuilder;
use aws_sdk_dynamodb::operation::describe_table::DescribeTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType,
    PointInTimeRecoverySpecification, Projection, ProjectionType, ScalarAttributeType, SseSpecification,
    SseType, TableDescription, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
};

use super::dynamo::{BY_SHARD, DynamoStore, Failure, code, refusal};
use super::{Applied, Store, StoreError, View};
use crate::item::{Action, Change, Condition, Item, Key, Value, attr};

/// The version of the data model that this program writes, and the highest that it reads.
pub const SCHEMA_VERSION: i64 = 1;

/// A new table is active within seconds; one with an index or replicas may take minutes.
const CREATION_LIMIT: Duration = Duration::from_secs(300);
/// Pauses between looks at a table that is being created grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the table must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Encrypt with this KMS key (id, ARN or alias) instead of the key that AWS owns.
    pub kms_key: Option<String>,
    /// Number of virtual shards, fixed for the table's life.
    pub shards: u32,
    /// Refuse to delete the table.
    pub deletion_protection: bool,
    /// Keep continuous backups. A restored table holds spent refresh tokens: start it paused.
    pub point_in_time_recovery: bool,
}

/// What `META`/`SCHEMA` says of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Number of virtual shards.
    pub shards: u32,
    /// Version of the data model that wrote it.
    pub version: i64,
    /// The lowest version that may read it.
    pub min_reader: i64,
}

/// How one point was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As needed.
    Ok,
    /// Not as needed.
    Differs,
    /// The endpoint knows nothing of it.
    Unsupported,
}

/// One point of a table that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// What it must be.
    pub needed: String,
    /// What it is.
    pub found: String,
    /// Whether that will do.
    pub verdict: Verdict,
    /// What to do where it will not.
    pub remedy: String,
}

/// `key schema: needs PK (HASH), SK (RANGE), found id (HASH); create another table`
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, needed, found, .. } = self;
        match self.verdict {
            Verdict::Ok => write!(f, "{what}: {found}"),
            Verdict::Unsupported => write!(f, "{what}: not known to this endpoint"),
            Verdict::Differs => write!(f, "{what}: needs {needed}, found {found}; {}", self.remedy),
        }
    }
}

/// Why a table cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableError {
    /// The store gave no answer, or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such table.
    #[error(
        "table `{0}` does not exist in this region or at this endpoint: \
         check `table`, `region` and `endpoint`, or run `perennial table create`"
    )]
    Missing(String),
    /// It is still not active.
    #[error("table `{0}` is not active yet: try again in a few minutes")]
    NotActive(String),
    /// It is not as needed, in these points.
    #[error("table `{table}` is not as needed:{}", list(.differences))]
    Differs {
        /// The table's name.
        table: String,
        /// Where it differs.
        differences: Vec<Finding>,
    },
}

fn list(differences: &[Finding]) -> String {
    differences.iter().map(|finding| format!("\n  {finding}")).collect()
}

/// Makes the table, or finishes making it; a table that is there is compared, never changed.
///
/// # Errors
///
/// [`TableError::Differs`] where a table of that name is there and is another, [`TableError::NotActive`] after five
/// minutes.
pub async fn create(store: &DynamoStore, spec: &TableSpec) -> Result<Vec<Finding>, TableError> {
    // Asked for only where it is missing: whoever finishes a table that others made need not be allowed to make one.
    let made = match describe(store).await {
        Ok(_) => false,
        Err(TableError::Missing(_)) => request_table(store, spec).await?,
        Err(error) => return Err(error),
    };
    let description = active(store).await?;
    if fit(store, judge::structure(&description)).is_err() {
        // Not ours to finish: everything that is wrong with it, at once.
        fit(store, check(store, spec).await?)?;
    }
    // Without META it is ours to finish: nothing was ever stored. With it, TTL and the rest are the operator's.
    if made || stored_schema(store).await?.is_none() {
        finish(store, spec).await?;
    }
    let findings = check(store, spec).await?;
    fit(store, findings.clone())?;
    Ok(findings)
}

/// Compares the table with what it must be, point by point.
///
/// # Errors
///
/// The store's own; a difference is no error.
pub async fn check(store: &DynamoStore, spec: &TableSpec) -> Result<Vec<Finding>, TableError> {
    let description = describe(store).await?;
    let mut findings = judge::structure(&description);
    findings.extend(judge::settings(&description, spec));
    findings.push(judge::ttl(time_to_live(store).await?.as_ref()));
    findings.push(judge::backups(backups(store).await?, spec));
    if judge::can_be_read(&description) {
        findings.push(judge::schema(stored_schema(store).await?, spec.shards));
    }
    Ok(findings)
}

/// What the daemon needs to know before it starts, in three requests: the table is there, is ours, and keeps what
/// it promises.
///
/// # Errors
///
/// Names each problem with its remedy.
pub async fn preflight(store: &DynamoStore, shards: u32) -> Result<Schema, TableError> {
    let description = describe(store).await?;
    let mut findings = judge::structure(&description);
    if !judge::can_be_read(&description) {
        fit(store, findings.clone())?;
    }
    findings.push(judge::ttl_harm(time_to_live(store).await?.as_ref()));
    let schema = schema_of(store, shards).await;
    if let Err(TableError::Differs { differences, .. }) = &schema {
        findings.extend(differences.iter().cloned());
    }
    fit(store, findings)?;
    schema
}

/// What every client of the table needs to know before it touches an item, in one request: its `META`/`SCHEMA` says
/// this many shards, and that this program may read it.
///
/// # Errors
///
/// [`TableError::Differs`] with the remedy; the store's own.
pub async fn schema_of(store: &DynamoStore, shards: u32) -> Result<Schema, TableError> {
    let schema = stored_schema(store).await?;
    fit(store, vec![judge::schema(schema, shards)])?;
    schema.ok_or_else(|| TableError::Missing(store.table().to_owned()))
}

fn fit(store: &DynamoStore, findings: Vec<Finding>) -> Result<(), TableError> {
    let differences: Vec<_> =
        findings.into_iter().filter(|finding| finding.verdict == Verdict::Differs).collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(TableError::Differs { table: store.table().to_owned(), differences })
}

/// Whether the table was made by this request.
async fn request_table(store: &DynamoStore, spec: &TableSpec) -> Result<bool, TableError> {
    let request = creation(store, spec).map_err(|error| refusal(&error))?;
    match request.send().await {
        Ok(_) => Ok(true),
        Err(error) => match error.as_service_error() {
            Some(CreateTableError::ResourceInUseException(_)) => Ok(false),
            _ => Err(store.fail(Failure::of(&error)).into()),
        },
    }
}

fn creation(
    store: &DynamoStore,
    spec: &TableSpec,
) -> Result<CreateTableFluentBuilder, aws_sdk_dynamodb::error::BuildError> {
    use ScalarAttributeType::{N, S};
    let attribute =
        |name: &str, of| AttributeDefinition::builder().attribute_name(name).attribute_type(of).build();
    let key = |name: &str, of| KeySchemaElement::builder().attribute_name(name).key_type(of).build();
    let index = GlobalSecondaryIndex::builder()
        .index_name(BY_SHARD)
        .key_schema(key(attr::VS, KeyType::Hash)?)
        .key_schema(key(attr::JN, KeyType::Range)?)
        .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
        .build()?;
    let request = store
        .client()
        .create_table()
        .table_name(store.table())
        .billing_mode(BillingMode::PayPerRequest)
        .set_attribute_definitions(Some(vec![
            attribute(attr::PK, S)?,
            attribute(attr::SK, S)?,
            attribute(attr::VS, N)?,
            attribute(attr::JN, N)?,
        ]))
        .key_schema(key(attr::PK, KeyType::Hash)?)
        .key_schema(key(attr::SK, KeyType::Range)?)
        .global_secondary_indexes(index)
        .set_deletion_protection_enabled(spec.deletion_protection.then_some(true));
    Ok(request.set_sse_specification(spec.kms_key.as_ref().map(|key| {
        SseSpecification::builder().enabled(true).sse_type(SseType::Kms).kms_master_key_id(key).build()
    })))
}

/// Waits until the table and its index are active.
async fn active(store: &DynamoStore) -> Result<TableDescription, TableError> {
    let start = store.clock().moment();
    let mut pause = Duration::from_millis(100);
    loop {
        // A table just requested may not be seen at once (DescribeTable is eventually consistent).
        match describe(store).await {
            Ok(found)
                if found.table_status() == Some(&TableStatus::Active) && judge::indexes_active(&found) =>
            {
                return Ok(found);
            }
            Ok(_) | Err(TableError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
        if store.clock().moment().since(start) > CREATION_LIMIT {
            return Err(TableError::NotActive(store.table().to_owned()));
        }
        store.clock().sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sets what CreateTable cannot, and last the item that says that the table is complete.
async fn finish(store: &DynamoStore, spec: &TableSpec) -> Result<(), TableError> {
    if time_to_live(store).await?.is_some_and(|status| status.attribute.is_none()) {
        enable_ttl(store).await?;
    }
    if spec.point_in_time_recovery && backups(store).await? == Some(false) {
        enable_backups(store).await?;
    }
    let number = |number: i64| Value::N(number);
    let schema = Item::default()
        .with(attr::V, number(spec.shards.into()))
        .with(attr::SCHEMA, number(SCHEMA_VERSION))
        .with(attr::MIN_READER, number(SCHEMA_VERSION));
    // Lost: somebody else finished it, and the check that follows looks at what stands there.
    let (Applied::Committed | Applied::Lost(_)) =
        store.apply(&Change::one(Key::Schema, Condition::Absent, Action::Put(schema))).await?;
    Ok(())
}

async fn enable_ttl(store: &DynamoStore) -> Result<(), TableError> {
    let ttl = TimeToLiveSpecification::builder().enabled(true).attribute_name(attr::TTL).build();
    let request = store.client().update_time_to_live().table_name(store.table());
    let sent = request.time_to_live_specification(ttl.map_err(|error| refusal(&error))?).send().await;
    sent.map(drop).map_err(|error| store.fail(Failure::of(&error)).into())
}

async fn enable_backups(store: &DynamoStore) -> Result<(), TableError> {
    let enabled = PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(true).build();
    let request = store.client().update_continuous_backups().table_name(store.table());
    let sent =
        request.point_in_time_recovery_specification(enabled.map_err(|error| refusal(&error))?).send().await;
    sent.map(drop).map_err(|error| store.fail(Failure::of(&error)).into())
}

async fn describe(store: &DynamoStore) -> Result<TableDescription, TableError> {
    let missing = || TableError::Missing(store.table().to_owned());
    match store.client().describe_table().table_name(store.table()).send().await {
        Ok(output) => output.table.ok_or_else(missing),
        Err(error) => match error.as_service_error() {
            Some(DescribeTableError::ResourceNotFoundException(_)) => Err(missing()),
            _ => Err(store.fail(Failure::of(&error)).into()),
        },
    }
}

/// The table's TTL: on which attribute, if any.
struct TimeToLive {
    attribute: Option<String>,
}

/// `None` where the endpoint knows nothing of it.
async fn time_to_live(store: &DynamoStore) -> Result<Option<TimeToLive>, TableError> {
    let output = match store.client().describe_time_to_live().table_name(store.table()).send().await {
        Ok(output) => output,
        Err(error) if unknown_operation(&error) => return Ok(None),
        Err(error) => return Err(store.fail(Failure::of(&error)).into()),
    };
    let on =
        |status: &TimeToLiveStatus| matches!(status, TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling);
    let found = output.time_to_live_description.filter(|found| found.time_to_live_status().is_some_and(on));
    Ok(Some(TimeToLive { attribute: found.and_then(|found| found.attribute_name) }))
}

/// Whether continuous backups can be restored to a point in time; `None` where the endpoint knows nothing of it.
async fn backups(store: &DynamoStore) -> Result<Option<bool>, TableError> {
    let output = match store.client().describe_continuous_backups().table_name(store.table()).send().await {
        Ok(output) => output,
        Err(error) if unknown_operation(&error) => return Ok(None),
        Err(error) => return Err(store.fail(Failure::of(&error)).into()),
    };
    let found =
        output.continuous_backups_description.and_then(|found| found.point_in_time_recovery_description);
    let status = found.and_then(|found| found.point_in_time_recovery_status);
    Ok(Some(status.is_some_and(|status| status.as_str() == "ENABLED")))
}

fn unknown_operation<E>(
    error: &SdkError<E, aws_smithy_runtime_api::client::orchestrator::HttpResponse>,
) -> bool
where
    E: aws_sdk_dynamodb::error::ProvideErrorMetadata,
{
    matches!(code(error), Some("UnknownOperationException" | "UnsupportedOperation"))
}

/// `META`/`SCHEMA`, read strongly; `None` where it is missing or holds no numbers.
async fn stored_schema(store: &DynamoStore) -> Result<Option<Schema>, TableError> {
    let found = store.load(&[Key::Schema], View::Reader).await?;
    let number = |item: &Item, name| match item.get(name) {
        Some(Value::N(number)) => Some(*number),
        _ => None,
    };
    Ok(found.first().and_then(|(_, item)| {
        Some(Schema {
            shards: u32::try_from(number(item, attr::V)?).ok()?,
            version: number(item, attr::SCHEMA)?,
            min_reader: number(item, attr::MIN_READER)?,
        })
    }))
}
