//! From a table's name to a store.

use std::sync::Arc;

use aws_sdk_dynamodb::config::Builder;
use url::Url;

use super::super::StoreError;
use super::DynamoStore;
use crate::aws;
use crate::time::Clock;

/// Where the table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The table's name, or its ARN.
    pub table: String,
    /// The region, where it is not the environment's (`AWS_REGION`, the profile, the instance).
    pub region: Option<String>,
    /// Another endpoint than AWS's, such as `http://127.0.0.1:8000`.
    pub endpoint: Option<Url>,
}

impl Connection {
    /// Loads region and credentials, and sends nothing to the table yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::Refused`] where no region can be found.
    pub async fn connect(&self, clock: Arc<dyn Clock>) -> Result<DynamoStore, StoreError> {
        let config = aws::config(self.region.as_deref(), self.endpoint.as_ref()).await;
        if config.region().is_none() {
            let remedy =
                "no AWS region: set `region` in the configuration, or AWS_REGION, or a profile that has one";
            return Err(StoreError::Refused(remedy.to_owned()));
        }
        // A URL with a password in it is no text for messages.
        let endpoint = config.endpoint_url().filter(|url| !url.contains('@'));
        Ok(DynamoStore::new(Builder::from(&config), &self.table, clock).at(endpoint))
    }
}
