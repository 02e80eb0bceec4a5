//! Keys wrapped by AWS KMS, in a small DynamoDB table of their own: `PK` is the series, `SK` the version.
//!
//! They are made by `GenerateDataKeyWithoutPlaintext` and unwrapped by `Decrypt`, both under an encryption context that
//! names purpose, table, family and key (AWS KMS Developer Guide, "Encryption context"). A key's policy can thereby let
//! readers unwrap the family `at` alone.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
    PointInTimeRecoverySpecification, ScalarAttributeType, TableStatus,
};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use tokio::sync::OnceCell;
use url::Url;
use zeroize::Zeroizing;

use super::ring::{KeyName, KeyRecord, KeySource, KeyState, Series};
use super::{PURPOSE, SealError};
use crate::aws;
use crate::time::{Clock, Timestamp};

/// A key is asked for while a refresh waits.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPT: Duration = Duration::from_millis(900);

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAddress {
    /// The table of wrapped keys.
    pub table: String,
    /// Its region and KMS's, where it is not the environment's.
    pub region: Option<String>,
    /// Another DynamoDB endpoint than AWS's.
    pub endpoint: Option<Url>,
    /// Another KMS endpoint than AWS's.
    pub kms_endpoint: Option<Url>,
}

/// Wrapped keys in DynamoDB, unwrapped by KMS.
#[derive(Debug)]
pub struct KmsKeys {
    address: KeyAddress,
    clients: OnceCell<Clients>,
}

#[derive(Debug)]
struct Clients {
    dynamodb: aws_sdk_dynamodb::Client,
    kms: aws_sdk_kms::Client,
}

impl KmsKeys {
    /// Loads and sends nothing yet: where nothing is sealed, nobody waits for a region or for credentials.
    pub fn new(address: KeyAddress) -> Self {
        Self { address, clients: OnceCell::new() }
    }

    async fn clients(&self) -> &Clients {
        self.clients.get_or_init(|| Box::pin(connect(&self.address))).await
    }

    /// The name of the table of keys.
    pub fn table(&self) -> &str {
        &self.address.table
    }

    /// Makes the table of keys, with point-in-time recovery: losing it loses every token. Says whether it was not there.
    ///
    /// # Errors
    /// Where DynamoDB refuses or does not answer.
    pub async fn create_table(&self, protect: bool, recovery: bool) -> Result<bool, SealError> {
        let definition = |name: &str| {
            let definition = AttributeDefinition::builder().attribute_name(name);
            definition.attribute_type(ScalarAttributeType::S).build()
        };
        let element =
            |name: &str, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
        let refused = |error: &(dyn Error + 'static)| SealError::Refused(aws::chain(error));
        let mut create = self
            .clients()
            .await
            .dynamodb
            .create_table()
            .table_name(&self.address.table)
            .billing_mode(BillingMode::PayPerRequest);
        for (name, kind) in [("PK", KeyType::Hash), ("SK", KeyType::Range)] {
            create = create
                .attribute_definitions(definition(name).map_err(|error| refused(&error))?)
                .key_schema(element(name, kind).map_err(|error| refused(&error))?);
        }
        let made = match create.deletion_protection_enabled(protect).send().await {
            Ok(_) => true,
            Err(error)
                if matches!(error.as_service_error(), Some(CreateTableError::ResourceInUseException(_))) =>
            {
                false
            }
            Err(error) => return Err(failed(&error)),
        };
        for _ in 0..60 {
            let asked =
                self.clients().await.dynamodb.describe_table().table_name(&self.address.table).send().await;
            let table = asked.map_err(|error| failed(&error))?.table;
            if table.is_some_and(|table| table.table_status == Some(TableStatus::Active)) {
                // Made by whomever: the answer of an earlier try may have been lost, and then it was this one.
                if recovery {
                    self.enable_recovery().await?;
                }
                return Ok(made);
            }
            crate::time::SystemClock.sleep(Duration::from_secs(1)).await;
        }
        Err(SealError::NoAnswer(format!("the table `{}` does not become active", self.address.table)))
    }

    async fn enable_recovery(&self) -> Result<(), SealError> {
        let specification =
            PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(true).build();
        let specification = specification.map_err(|error| SealError::Refused(error.to_string()))?;
        let update =
            self.clients().await.dynamodb.update_continuous_backups().table_name(&self.address.table);
        let updated = update.point_in_time_recovery_specification(specification).send().await;
        match updated {
            // DynamoDB Local has no backups.
            Err(error) if error.code() == Some("UnknownOperationException") => Ok(()),
            updated => updated.map(drop).map_err(|error| failed(&error)),
        }
    }

    /// Makes a key of this name under that customer master key; false where there is one of the name already.
    ///
    /// # Errors
    /// Where KMS or DynamoDB refuses or does not answer.
    pub async fn create(&self, name: &KeyName, cmk: &str, now: Timestamp) -> Result<bool, SealError> {
        let made = self
            .clients()
            .await
            .kms
            .generate_data_key_without_plaintext()
            .key_id(cmk)
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(context(name)))
            .send()
            .await
            .map_err(|error| failed(&error))?;
        let wrapped = made.ciphertext_blob.ok_or_else(|| SealError::Refused("KMS sent no key".into()))?;
        // The ARN: an alias may point elsewhere tomorrow.
        let cmk = made.key_id.unwrap_or_else(|| cmk.to_owned());
        let put = self
            .clients()
            .await
            .dynamodb
            .put_item()
            .table_name(&self.address.table)
            .item("PK", text(name.series.to_string()))
            .item("SK", text(format!("v{}", name.version)))
            .item("kid", text(name.to_string()))
            .item("wrapped", AttributeValue::B(wrapped))
            .item("cmk", text(cmk))
            .item("state", text(KeyState::Active.as_str()))
            .item("created", AttributeValue::N(now.as_millis().to_string()))
            .condition_expression("attribute_not_exists(PK)")
            .send()
            .await;
        match put {
            Ok(_) => Ok(true),
            Err(error)
                if matches!(
                    error.as_service_error(),
                    Some(PutItemError::ConditionalCheckFailedException(_))
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Has a key only open from now on. It stays: what it has sealed may lie anywhere.
    ///
    /// # Errors
    /// Where DynamoDB refuses or does not answer, or there is no such key.
    pub async fn retire(&self, name: &KeyName, now: Timestamp) -> Result<(), SealError> {
        let update = self
            .clients()
            .await
            .dynamodb
            .update_item()
            .table_name(&self.address.table)
            .key("PK", text(name.series.to_string()))
            .key("SK", text(format!("v{}", name.version)))
            .update_expression("SET #state = :state, retired = if_not_exists(retired, :now)")
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_names("#state", "state")
            .expression_attribute_values(":state", text(KeyState::DecryptOnly.as_str()))
            .expression_attribute_values(":now", AttributeValue::N(now.as_millis().to_string()))
            .send()
            .await;
        update.map(drop).map_err(|error| failed(&error))
    }

    /// Deletes a retired key. What it has sealed can never be opened again.
    ///
    /// # Errors
    /// Where DynamoDB refuses or does not answer, or the key is still active.
    pub async fn destroy(&self, name: &KeyName) -> Result<(), SealError> {
        let delete = self
            .clients()
            .await
            .dynamodb
            .delete_item()
            .table_name(&self.address.table)
            .key("PK", text(name.series.to_string()))
            .key("SK", text(format!("v{}", name.version)))
            .condition_expression("#state = :state")
            .expression_attribute_names("#state", "state")
            .expression_attribute_values(":state", text(KeyState::DecryptOnly.as_str()))
            .send()
            .await;
        delete.map(drop).map_err(|error| failed(&error))
    }

    /// Every key for a table's secrets.
    ///
    /// # Errors
    /// Where DynamoDB refuses or does not answer, or an item is none of ours.
    pub async fn list(&self, of: &str) -> Result<Vec<KeyRecord>, SealError> {
        let mut pages = self
            .clients()
            .await
            .dynamodb
            .scan()
            .table_name(&self.address.table)
            .consistent_read(true)
            .into_paginator()
            .send();
        let mut records = Vec::new();
        while let Some(page) = pages.next().await {
            for item in page.map_err(|error| failed(&error))?.items() {
                let record = decode(item)?;
                if record.name.series.table == of {
                    records.push(record);
                }
            }
        }
        records.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(records)
    }
}

impl KeySource for KmsKeys {
    async fn active(&self, series: &Series) -> Result<KeyRecord, SealError> {
        let mut pages = self
            .clients()
            .await
            .dynamodb
            .query()
            .table_name(&self.address.table)
            .consistent_read(true)
            .key_condition_expression("PK = :series")
            .expression_attribute_values(":series", text(series.to_string()))
            .into_paginator()
            .send();
        let mut youngest: Option<KeyRecord> = None;
        while let Some(page) = pages.next().await {
            for item in page.map_err(|error| failed(&error))?.items() {
                let record = decode(item)?;
                let younger =
                    youngest.as_ref().is_none_or(|youngest| youngest.name.version < record.name.version);
                if record.state == KeyState::Active && younger {
                    youngest = Some(record);
                }
            }
        }
        youngest.ok_or_else(|| {
            SealError::Refused(format!(
                "there is no active key `{series}/..`: `perennial keys init` makes the keys"
            ))
        })
    }

    async fn record(&self, name: &KeyName) -> Result<KeyRecord, SealError> {
        let asked = self
            .clients()
            .await
            .dynamodb
            .get_item()
            .table_name(&self.address.table)
            .consistent_read(true)
            .key("PK", text(name.series.to_string()))
            .key("SK", text(format!("v{}", name.version)))
            .send()
            .await
            .map_err(|error| failed(&error))?;
        let item = asked.item.ok_or_else(|| SealError::UnknownKey(name.to_string()))?;
        decode(&item)
    }

    async fn unwrap(&self, record: &KeyRecord) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let asked = self
            .clients()
            .await
            .kms
            .decrypt()
            .ciphertext_blob(Blob::new(record.wrapped.clone()))
            .key_id(&record.cmk)
            .set_encryption_context(Some(context(&record.name)))
            .send()
            .await
            .map_err(|error| failed(&error))?;
        let plain = asked.plaintext.map(|blob| Zeroizing::new(blob.into_inner()));
        let bytes = plain.and_then(|plain| <[u8; 32]>::try_from(plain.as_slice()).ok());
        bytes.map(Zeroizing::new).ok_or_else(|| SealError::Refused("KMS sent no key of 32 bytes".into()))
    }
}

async fn connect(address: &KeyAddress) -> Clients {
    let region = address.region.as_deref();
    let timeouts =
        TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT).operation_timeout(PATIENCE).build();
    let retries = RetryConfig::standard().with_max_attempts(3);
    let config = aws::config(region, address.endpoint.as_ref()).await;
    let dynamodb = aws_sdk_dynamodb::config::Builder::from(&config)
        .timeout_config(timeouts.clone())
        .retry_config(retries.clone())
        .build();
    let config = aws::config(region, address.kms_endpoint.as_ref()).await;
    let kms =
        aws_sdk_kms::config::Builder::from(&config).timeout_config(timeouts).retry_config(retries).build();
    Clients {
        dynamodb: aws_sdk_dynamodb::Client::from_conf(dynamodb),
        kms: aws_sdk_kms::Client::from_conf(kms),
    }
}

fn context(name: &KeyName) -> HashMap<String, String> {
    let pairs = [
        ("purpose", PURPOSE.to_owned()),
        ("table", name.series.table.clone()),
        ("family", name.series.family.as_str().to_owned()),
        ("kid", name.to_string()),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn decode(item: &HashMap<String, AttributeValue>) -> Result<KeyRecord, SealError> {
    let read = || {
        let string = |name: &str| item.get(name)?.as_s().ok().map(String::as_str);
        let name = KeyName::parse(&format!("{}/{}", string("PK")?, string("SK")?))?;
        let state = match string("state")? {
            "ACTIVE" => KeyState::Active,
            "DECRYPT_ONLY" => KeyState::DecryptOnly,
            _ => return None,
        };
        let time = |name: &str| Some(Timestamp::from_millis(item.get(name)?.as_n().ok()?.parse().ok()?));
        Some(KeyRecord {
            name,
            wrapped: item.get("wrapped")?.as_b().ok()?.as_ref().to_vec(),
            cmk: string("cmk")?.to_owned(),
            state,
            created: time("created")?,
            retired: time("retired"),
        })
    };
    read().ok_or_else(|| SealError::Refused("an item of the table of keys is none of ours".into()))
}

/// A refusal is an answer; everything else is none.
fn failed<E>(error: &SdkError<E, HttpResponse>) -> SealError
where
    SdkError<E, HttpResponse>: Error + 'static,
    E: ProvideErrorMetadata,
{
    const FINAL: [&str; 12] = [
        "AccessDeniedException",
        "AccessDenied",
        "DisabledException",
        "IncorrectKeyException",
        "InvalidCiphertextException",
        "InvalidGrantTokenException",
        "InvalidKeyUsageException",
        "KMSInvalidStateException",
        "NotFoundException",
        "ResourceNotFoundException",
        "ConditionalCheckFailedException",
        "ValidationException",
    ];
    let code = match error {
        SdkError::ServiceError(context) => context.err().code(),
        _ => None,
    };
    let told = aws::told(error, code);
    if code.is_some_and(|code| FINAL.contains(&code)) {
        SealError::Refused(told)
    } else {
        SealError::NoAnswer(told)
    }
}
