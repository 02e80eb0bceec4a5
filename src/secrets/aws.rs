//! Secrets in AWS's services: Secrets Manager, and SecureStrings of Systems Manager's Parameter Store.
//!
//! `secretsmanager:GetSecretValue` and `ssm:GetParameter` are called, and `kms:Decrypt` on behalf of the caller where a key
//! of the customer's own encrypts (AWS Secrets Manager User Guide, "Secret encryption and decryption").

use std::error::Error;
use std::time::Duration;

use aws_sdk_secretsmanager::error::{ErrorMetadata, ProvideErrorMetadata, SdkError};
use aws_sdk_ssm::types::ParameterType;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use tokio::sync::OnceCell;
use url::Url;

use super::Failure;
use crate::aws;
use crate::secret::Secret;

/// A secret is asked for before a refresh, or while one waits.
const WHOLE: Duration = Duration::from_millis(2500);
const ATTEMPT: Duration = Duration::from_millis(1200);

/// Where the services are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAddress {
    /// Their region, where it is not the environment's.
    pub region: Option<String>,
    /// Another endpoint of both than AWS's own.
    pub endpoint: Option<Url>,
}

/// The clients, each made when it is first needed.
pub(super) struct Services {
    address: ServiceAddress,
    secrets_manager: OnceCell<aws_sdk_secretsmanager::Client>,
    ssm: OnceCell<aws_sdk_ssm::Client>,
}

impl Services {
    pub(super) fn new(address: ServiceAddress) -> Self {
        Self { address, secrets_manager: OnceCell::new(), ssm: OnceCell::new() }
    }

    /// The string of a secret.
    pub(super) async fn secret(&self, id: &str, stage: Option<&str>) -> Result<Secret, Failure> {
        let client = self.secrets_manager.get_or_init(|| Box::pin(self.secrets_manager())).await;
        let asked = client.get_secret_value().secret_id(id).set_version_stage(stage.map(str::to_owned));
        let answer = Box::pin(asked.send()).await.map_err(|error| failed(&error))?;
        answer.secret_string.map(Secret::from).ok_or_else(|| refused("is binary: store it as a string"))
    }

    /// The value of a SecureString.
    pub(super) async fn parameter(&self, name: &str) -> Result<Secret, Failure> {
        let client = self.ssm.get_or_init(|| Box::pin(self.ssm())).await;
        let asked = client.get_parameter().name(name).with_decryption(true);
        let answer = Box::pin(asked.send()).await.map_err(|error| failed(&error))?;
        let parameter = answer.parameter.ok_or_else(|| Failure::NoAnswer("the answer is empty".into()))?;
        if parameter.r#type != Some(ParameterType::SecureString) {
            return Err(refused("is no SecureString: store it as one"));
        }
        parameter.value.map(Secret::from).ok_or_else(|| refused("has no value"))
    }

    async fn secrets_manager(&self) -> aws_sdk_secretsmanager::Client {
        let config = aws::config(self.address.region.as_deref(), self.address.endpoint.as_ref()).await;
        let config = aws_sdk_secretsmanager::config::Builder::from(&config);
        let config = config.timeout_config(timeouts()).retry_config(retries()).build();
        aws_sdk_secretsmanager::Client::from_conf(config)
    }

    async fn ssm(&self) -> aws_sdk_ssm::Client {
        let config = aws::config(self.address.region.as_deref(), self.address.endpoint.as_ref()).await;
        let config = aws_sdk_ssm::config::Builder::from(&config);
        let config = config.timeout_config(timeouts()).retry_config(retries()).build();
        aws_sdk_ssm::Client::from_conf(config)
    }
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT).operation_timeout(WHOLE).build()
}

fn retries() -> RetryConfig {
    RetryConfig::standard().with_max_attempts(3)
}

fn refused(why: &str) -> Failure {
    Failure::Refused(why.to_owned())
}

/// A refusal is an answer; everything else is none. Errors name secrets and rights, and no value.
fn failed<E>(error: &SdkError<E, HttpResponse>) -> Failure
where
    SdkError<E, HttpResponse>: Error + 'static,
    E: ProvideErrorMetadata,
{
    const FINAL: [&str; 11] = [
        "AccessDenied",
        "AccessDeniedException",
        "DecryptionFailure",
        "InvalidKeyId",
        "InvalidParameterException",
        "InvalidRequestException",
        "ParameterNotFound",
        "ParameterVersionNotFound",
        "ResourceNotFoundException",
        "ValidationException",
        "KMSAccessDeniedException",
    ];
    let said = match error {
        SdkError::ServiceError(context) => Some(context.err().meta()),
        _ => None,
    };
    let code = said.and_then(ErrorMetadata::code);
    let mut told = aws::told(error, code);
    // An error that the SDK has a type for may lack the message where a service spells its member another way.
    if let Some(message) = said.and_then(ErrorMetadata::message).filter(|message| !told.contains(message)) {
        told = format!("{message}: {told}");
    }
    if code.is_some_and(|code| FINAL.contains(&code)) {
        Failure::Refused(told)
    } else {
        Failure::NoAnswer(told)
    }
}
