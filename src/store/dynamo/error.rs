//! Errors by class: what a caller does next depends on the class alone.
//!
//! No text made here holds an item's value: of the server's messages those that quote one are cut.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::CancellationReason;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::super::StoreError;
use super::super::item::decode;
use crate::aws::{REMEDY_OF_RIGHTS, chain, lacks_right, links};
use crate::item::{Item, Write};

/// Why a request came to nothing, with the operation's type erased.
#[derive(Clone, Copy)]
pub(in super::super) enum Failure<'a> {
    /// The request was never built.
    Unbuilt(&'a (dyn Error + 'static)),
    /// No answer: timeout, connection, credentials.
    Unanswered(&'a (dyn Error + 'static)),
    /// The service's own error: status, code, message.
    Service(u16, &'a str, &'a str),
    /// An answer that DynamoDB does not give, with its status.
    Strange(u16),
}

impl<'a> Failure<'a> {
    pub(in super::super) fn of<E>(error: &'a SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match error {
            SdkError::ConstructionFailure(_) => Self::Unbuilt(error),
            SdkError::ServiceError(service) => {
                let meta = service.err().meta();
                let status = service.raw().status().as_u16();
                match meta.code() {
                    Some(code) => Self::Service(status, code, meta.message().unwrap_or_default()),
                    None => Self::Strange(status),
                }
            }
            _ => Self::Unanswered(error),
        }
    }
}

/// The service's name for an error.
pub(in super::super) fn code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.as_service_error().and_then(|service| service.meta().code())
}

/// A request that could not be built.
pub(in super::super) fn refusal(error: &dyn Error) -> StoreError {
    StoreError::Refused(error.to_string())
}

/// Sorts a failure into its class.
pub(super) fn classify(failure: Failure<'_>, table: &str, endpoint: Option<&str>) -> StoreError {
    match failure {
        Failure::Unbuilt(error) => credentials(error)
            .unwrap_or_else(|| StoreError::Refused(format!("table `{table}`: {}", chain(error)))),
        Failure::Unanswered(error) => {
            credentials(error).unwrap_or_else(|| unanswered(&chain(error), table, endpoint))
        }
        Failure::Service(status, code, message) => service(status, code, message, table),
        Failure::Strange(status) => strange(status, table, endpoint),
    }
}

fn unanswered(why: &str, table: &str, endpoint: Option<&str>) -> StoreError {
    StoreError::Unavailable(match endpoint {
        Some(endpoint) => {
            format!("no answer from {endpoint} for table `{table}`: is the endpoint right? ({why})")
        }
        None => format!("table `{table}`: is the region right, and AWS within reach? ({why})"),
    })
}

/// DynamoDB names its errors: whatever does not is a proxy, or another service.
fn strange(status: u16, table: &str, endpoint: Option<&str>) -> StoreError {
    let who = endpoint.unwrap_or("AWS, or what stands before it");
    let told = format!(
        "{who} answered for table `{table}` with HTTP status {status} and no error of DynamoDB's: \
         is it DynamoDB? check `endpoint`, and any proxy"
    );
    if status >= 500 { StoreError::Unavailable(told) } else { StoreError::Refused(told) }
}

fn service(status: u16, code: &str, message: &str, table: &str) -> StoreError {
    let told = || without_values(code, message);
    match code {
        code if is_throttle(code) => StoreError::Throttled(told()),
        "TransactionConflictException" | "ReplicatedWriteConflictException" => StoreError::Conflict(told()),
        // The first attempt may still be applied; temporary credentials may be renewed.
        "TransactionInProgressException" | "ExpiredTokenException" => StoreError::Unavailable(told()),
        "ResourceNotFoundException" => StoreError::Refused(format!(
            "table `{table}` or its index does not exist in this region or at this endpoint: \
             check `table`, `region` and `endpoint`, or run `perennial table create`"
        )),
        code if lacks_right(code) => StoreError::Refused(format!(
            "{}; let the role use table `{table}` and its index: {REMEDY_OF_RIGHTS}",
            told()
        )),
        "UnrecognizedClientException" | "InvalidSignatureException" | "MissingAuthenticationToken" => {
            StoreError::Refused(format!("{}; {CREDENTIALS}", told()))
        }
        "ValidationException" if message.contains("index") || message.contains("key element") => {
            StoreError::Refused(format!(
                "{}; table `{table}` is not as needed: run `perennial table check`",
                told()
            ))
        }
        _ if status >= 500 => StoreError::Unavailable(format!("table `{table}`: {}", told())),
        _ => StoreError::Refused(format!("table `{table}`: {}", told())),
    }
}

/// Whether an error asks for fewer requests.
pub(super) fn is_throttle(code: &str) -> bool {
    const THROTTLES: [&str; 4] = [
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "Throttling",
        "RequestLimitExceeded",
    ];
    THROTTLES.contains(&code)
}

/// The items that a cancelled transaction met, one for each write.
pub(super) fn lost(
    reasons: &[CancellationReason],
    writes: &[Write],
) -> Result<Vec<Option<Item>>, StoreError> {
    let code = |reason: &CancellationReason| reason.code().unwrap_or("None").to_owned();
    let codes: Vec<_> = reasons.iter().map(code).collect();
    let first = |wanted: &[&str]| codes.iter().position(|code| wanted.contains(&code.as_str()));
    let told = |at: usize| {
        let item = writes.get(at).map_or_else(String::new, |write| write.key.to_string());
        format!("{item}: {}", without_values(&codes[at], reasons[at].message().unwrap_or_default()))
    };
    let known = [
        "None",
        "ConditionalCheckFailed",
        "TransactionConflict",
        "ThrottlingError",
        "ProvisionedThroughputExceeded",
    ];
    if let Some(at) = codes.iter().position(|code| !known.contains(&code.as_str())) {
        return Err(StoreError::Refused(told(at)));
    }
    if let Some(at) = first(&["ThrottlingError", "ProvisionedThroughputExceeded"]) {
        return Err(StoreError::Throttled(told(at)));
    }
    if let Some(at) = first(&["TransactionConflict"]) {
        return Err(StoreError::Conflict(told(at)));
    }
    if first(&["ConditionalCheckFailed"]).is_none() || reasons.len() != writes.len() {
        return Err(StoreError::Refused("a transaction was cancelled without a reason".to_owned()));
    }
    Ok(reasons.iter().map(item_of).collect())
}

fn item_of(reason: &CancellationReason) -> Option<Item> {
    let failed = reason.code() == Some("ConditionalCheckFailed");
    let item = reason.item.clone().filter(|item| failed && !item.is_empty());
    item.map(decode)
}

const CREDENTIALS: &str =
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the ECS task a task role";

/// An error of the credentials' source, with the remedy. A source that is there and fails may recover.
fn credentials(error: &(dyn Error + 'static)) -> Option<StoreError> {
    let found = links(error).find_map(|error| error.downcast_ref::<CredentialsError>())?;
    let text = format!("no AWS credentials ({}): {CREDENTIALS}", chain(found));
    Some(match found {
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
            StoreError::Refused(text)
        }
        _ => StoreError::Unavailable(text),
    })
}

/// Validation messages may quote what was sent.
fn without_values(code: &str, message: &str) -> String {
    let quotes = message.contains("Value '") || message.contains("numeric value");
    match message {
        "" => code.to_owned(),
        _ if quotes => format!("{code} (its message quotes a value and is not shown)"),
        message => format!("{code}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::AttributeValue;

    use super::*;
    use crate::client::ClientId;
    use crate::item::{Action, Condition, Key, Value, attr};

    fn writes(count: usize) -> Vec<Write> {
        let key = |n| Key::Lease(ClientId::new(format!("c{n}")).expect("a valid id"));
        (0..count)
            .map(|n| Write { key: key(n), condition: Condition::Exists, action: Action::Delete })
            .collect()
    }

    fn reason(code: &str) -> CancellationReason {
        CancellationReason::builder().code(code).build()
    }

    #[test]
    fn each_class_of_error_is_told_apart() {
        let of = |status, code| service(status, code, "m", "t");
        for code in ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"]
        {
            assert_eq!(of(400, code), StoreError::Throttled(format!("{code}: m")));
        }
        assert!(matches!(of(400, "TransactionConflictException"), StoreError::Conflict(_)));
        assert!(matches!(of(400, "TransactionInProgressException"), StoreError::Unavailable(_)));
        assert!(matches!(of(500, "InternalServerError"), StoreError::Unavailable(_)));
        assert!(matches!(strange(503, "t", None), StoreError::Unavailable(_)));
        let strange = strange(404, "t", Some("http://h:1"));
        assert!(
            matches!(&strange, StoreError::Refused(text) if text.contains("404") && text.contains("http://h:1"))
        );
        let missing = "The table does not have the specified index: by-shard";
        let missing = service(400, "ValidationException", missing, "t").to_string();
        assert!(missing.contains("perennial table check") && missing.contains("by-shard"), "{missing}");
        for code in
            ["ValidationException", "AccessDeniedException", "ItemCollectionSizeLimitExceededException"]
        {
            assert!(matches!(of(400, code), StoreError::Refused(_)), "{code}");
        }
        assert!(of(400, "ResourceNotFoundException").to_string().contains("table `t`"));
    }

    #[test]
    fn a_cancelled_transaction_brings_the_items_aligned_with_its_writes() {
        let met = CancellationReason::builder()
            .code("ConditionalCheckFailed")
            .item(attr::PK, AttributeValue::S("CLIENT#c1".into()))
            .item(attr::GEN, AttributeValue::N("7".into()))
            .build();
        let items = lost(&[reason("None"), met, reason("ConditionalCheckFailed")], &writes(3));
        assert_eq!(items, Ok(vec![None, Some(Item::default().with(attr::GEN, Value::N(7))), None]));
    }

    #[test]
    fn a_transaction_cancelled_for_other_reasons_is_no_answer_to_its_conditions() {
        let of = |code| lost(&[reason("ConditionalCheckFailed"), reason(code)], &writes(2));
        assert!(matches!(of("TransactionConflict"), Err(StoreError::Conflict(_))));
        assert!(matches!(of("ThrottlingError"), Err(StoreError::Throttled(_))));
        assert!(matches!(of("ProvisionedThroughputExceeded"), Err(StoreError::Throttled(_))));
        assert!(matches!(of("ValidationError"), Err(StoreError::Refused(_))));
        assert!(matches!(of("SomethingNew"), Err(StoreError::Refused(_))));
    }

    #[test]
    fn messages_that_quote_a_value_are_cut() {
        let error = service(400, "ValidationException", "Value 'hunter2' at 'x' failed", "t");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn missing_credentials_come_with_their_remedy() {
        let told = |error: CredentialsError| credentials(&error).expect("recognised");
        let none = told(CredentialsError::not_loaded("nothing in the chain"));
        assert!(matches!(&none, StoreError::Refused(text) if text.contains("task role")), "{none}");
        let slow = told(CredentialsError::provider_timed_out(std::time::Duration::ZERO));
        assert!(matches!(&slow, StoreError::Unavailable(text) if text.contains("AWS_PROFILE")), "{slow}");
    }
}
