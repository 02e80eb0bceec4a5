//! Records as objects in an S3 bucket, which outlives the task. Versioned, so that a removal can be undone.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::BucketVersioningStatus;
use url::Url;

use super::{Name, SpillError, folder};
use crate::aws;
use crate::client::ClientId;

/// A put of some kilobytes takes tens of milliseconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// The whole call, retries included.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);

/// Where a bucket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketAddress {
    /// Its name.
    pub bucket: String,
    /// What the keys of the records begin with.
    pub prefix: String,
    /// Its region, where it is not the environment's.
    pub region: Option<String>,
    /// Another endpoint than AWS's; it is addressed by paths.
    pub endpoint: Option<Url>,
}

/// An S3 bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    client: Client,
    address: BucketAddress,
}

impl Bucket {
    /// Loads region and credentials; sends nothing yet.
    pub async fn connect(address: BucketAddress) -> Self {
        let config = aws::config(address.region.as_deref(), address.endpoint.as_ref()).await;
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let config = Builder::from(&config)
            .force_path_style(address.endpoint.is_some())
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            .build();
        Self { client: Client::from_conf(config), address }
    }

    /// Whether the bucket keeps older versions.
    ///
    /// # Errors
    /// Where S3 does not say.
    pub async fn is_versioned(&self) -> Result<bool, SpillError> {
        let asked = self.client.get_bucket_versioning().bucket(&self.address.bucket).send().await;
        let answer = asked.map_err(|error| self.failed(&error))?;
        Ok(answer.status() == Some(&BucketVersioningStatus::Enabled))
    }

    fn key(&self, name: &Name) -> String {
        format!("{}{}", self.address.prefix, name.path())
    }

    fn failed(&self, error: &(impl ProvideErrorMetadata + Error + 'static)) -> SpillError {
        SpillError::Place(format!("{self}: {}", aws::told(error, error.code())))
    }

    pub(super) async fn put(&self, name: &Name, sealed: &str) -> Result<(), SpillError> {
        let put = self.client.put_object().bucket(&self.address.bucket).key(self.key(name));
        let put = put.content_type("application/jose").body(sealed.as_bytes().to_vec().into());
        put.send().await.map(drop).map_err(|error| self.failed(&error))
    }

    pub(super) async fn list(&self, client: Option<&ClientId>) -> Result<Vec<Name>, SpillError> {
        let within = client.map_or_else(String::new, |id| format!("{}/", folder(id)));
        let prefix = format!("{}{within}", self.address.prefix);
        let mut pages =
            self.client.list_objects_v2().bucket(&self.address.bucket).prefix(prefix).into_paginator().send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failed(&error))?;
            let keys = page.contents().iter().filter_map(|object| object.key());
            names.extend(keys.filter_map(|key| Name::parse(key.strip_prefix(&self.address.prefix)?)));
        }
        Ok(names)
    }

    pub(super) async fn fetch(&self, name: &Name) -> Result<Option<String>, SpillError> {
        let asked = self.client.get_object().bucket(&self.address.bucket).key(self.key(name)).send().await;
        let found = match asked {
            Ok(found) => found,
            Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => {
                return Ok(None);
            }
            Err(error) => return Err(self.failed(&error)),
        };
        let body = found.body.collect().await;
        let body = body.map_err(|error| SpillError::Place(format!("{self}: {}", aws::chain(&error))))?;
        Ok(Some(String::from_utf8_lossy(&body.into_bytes()).into_owned()))
    }

    pub(super) async fn remove(&self, name: &Name) -> Result<(), SpillError> {
        let removed =
            self.client.delete_object().bucket(&self.address.bucket).key(self.key(name)).send().await;
        removed.map(drop).map_err(|error| self.failed(&error))
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spill.s3_bucket = {:?}", self.address.bucket)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// S3's answer to GetBucketVersioning, given once.
    fn answering(body: &str) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody asks");
            let lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            stream.write_all(answer.as_bytes()).expect("somebody listens");
        });
        Url::parse(&url).expect("a url")
    }

    #[tokio::test]
    async fn a_bucket_that_keeps_no_versions_is_known() {
        for (status, versioned) in
            [("", false), ("<Status>Suspended</Status>", false), ("<Status>Enabled</Status>", true)]
        {
            let space = "http://s3.amazonaws.com/doc/2006-03-01/";
            let body =
                format!("<VersioningConfiguration xmlns=\"{space}\">{status}</VersioningConfiguration>");
            let address = BucketAddress {
                bucket: "spilled".into(),
                prefix: String::new(),
                region: None,
                endpoint: Some(answering(&body)),
            };
            assert_eq!(Bucket::connect(address).await.is_versioned().await, Ok(versioned), "{status}");
        }
    }
}
