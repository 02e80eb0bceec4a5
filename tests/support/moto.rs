//! moto, a stand-in for AWS services that nobody here wrote, as a child process.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};

use super::oauth::fetch;
use super::{Process, free_port, part, wait_for};

/// A running server with nothing in it.
pub(crate) struct Moto {
    _process: Process,
    endpoint: String,
}

impl Moto {
    /// Starts a server on a free port.
    ///
    /// # Panics
    /// When it is not installed or does not answer within 60 seconds.
    pub(crate) async fn start() -> Self {
        part(".parts/moto/.complete");
        let port = free_port().to_string();
        let endpoint = format!("http://127.0.0.1:{port}");
        let server = part(".parts/moto/bin/moto_server");
        let process = Process::start(server, ["-H", "127.0.0.1", "-p", &port], |_| {}).await;
        let ready = format!("{endpoint}/moto-api/");
        wait_for(Duration::from_secs(60), "moto answers", async || fetch(&ready).await.ok()).await;
        Self { _process: process, endpoint }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A customer master key of its KMS: the ARN.
    pub(crate) async fn key(&self) -> String {
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .endpoint_url(&self.endpoint)
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .build();
        let made = aws_sdk_kms::Client::from_conf(config).create_key().send().await.expect("moto makes keys");
        made.key_metadata.and_then(|key| key.arn).expect("a key has an ARN")
    }

    /// Puts a SecureString into its Parameter Store, in the place of what is there.
    pub(crate) async fn put_parameter(&self, name: &str, value: &str) {
        let config = aws_sdk_ssm::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .endpoint_url(&self.endpoint)
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .build();
        let put = aws_sdk_ssm::Client::from_conf(config).put_parameter().name(name).value(value);
        let put = put.r#type(aws_sdk_ssm::types::ParameterType::SecureString).overwrite(true);
        put.send().await.expect("moto keeps parameters");
    }

    /// Makes a secret in its Secrets Manager: the ARN.
    pub(crate) async fn make_secret(&self, name: &str, value: &str) -> String {
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .endpoint_url(&self.endpoint)
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .build();
        let client = aws_sdk_secretsmanager::Client::from_conf(config);
        let made = client.create_secret().name(name).secret_string(value).send().await;
        made.expect("moto keeps secrets").arn.expect("a secret has an ARN")
    }

    /// Its DynamoDB, which knows backups; never for the protocol, it loses exclusivity under races.
    pub(crate) fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .endpoint_url(&self.endpoint)
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .build();
        aws_sdk_dynamodb::Client::from_conf(config)
    }

    /// A versioned bucket of its S3.
    pub(crate) async fn bucket(&self, name: &str) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .endpoint_url(&self.endpoint)
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .force_path_style(true)
            .build();
        let client = Client::from_conf(config);
        client.create_bucket().bucket(name).send().await.expect("moto makes buckets");
        let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        let put = client.put_bucket_versioning().bucket(name).versioning_configuration(enabled);
        put.send().await.expect("moto keeps versions");
        client
    }
}
