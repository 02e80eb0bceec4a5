//! From a table's name to a store: region, endpoint and credentials by AWS's default chain.

use std::sync::Arc;

use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_config::{AppName, BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_sdk_dynamodb::config::{Builder, Credentials};
use url::Url;

use super::super::StoreError;
use super::DynamoStore;
use crate::client::is_loopback;
use crate::time::Clock;

/// Where the table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The table's name, or its ARN.
    pub table: String,
    /// The region, where it is not the environment's (`AWS_REGION`, the profile, the instance).
    pub region: Option<String>,
    /// Another endpoint than AWS's, such as `http://127.0.0.1:8000`. Its region is `us-east-1` where none is set; on
    /// a loopback address stand-in credentials are used where neither environment nor profile has any.
    pub endpoint: Option<Url>,
}

impl Connection {
    /// Loads region and credentials, and sends nothing to the table yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::Refused`] where no region can be found.
    pub async fn connect(&self, clock: Arc<dyn Clock>) -> Result<DynamoStore, StoreError> {
        let config = self.loader().load().await;
        if config.region().is_none() {
            let remedy =
                "no AWS region: set `region` in the configuration, or AWS_REGION, or a profile that has one";
            return Err(StoreError::Refused(remedy.to_owned()));
        }
        // A URL with a password in it is no text for messages.
        let endpoint = config.endpoint_url().filter(|url| !url.contains('@'));
        Ok(DynamoStore::new(builder(&config), &self.table, clock).at(endpoint))
    }

    fn loader(&self) -> ConfigLoader {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Ok(name) = AppName::new(concat!("perennial-", env!("CARGO_PKG_VERSION"))) {
            loader = loader.app_name(name);
        }
        if let Some(endpoint) = &self.endpoint {
            // The default chain would ask the instance metadata service, and wait for it where there is none.
            loader = loader.endpoint_url(endpoint.as_str()).region(local_region());
        }
        if self.endpoint.as_ref().is_some_and(is_loopback) {
            loader = loader.credentials_provider(local_credentials());
        }
        match &self.region {
            Some(region) => loader.region(Region::new(region.clone())),
            None => loader,
        }
    }
}

fn builder(config: &SdkConfig) -> Builder {
    Builder::from(config)
}

fn local_region() -> RegionProviderChain {
    RegionProviderChain::first_try(aws_config::environment::EnvironmentVariableRegionProvider::new())
        .or_else(aws_config::profile::ProfileFileRegionProvider::new())
        .or_else(Region::from_static("us-east-1"))
}

fn local_credentials() -> CredentialsProviderChain {
    let stand_in = Credentials::new("local", "local", None, None, "perennial: a loopback endpoint");
    CredentialsProviderChain::first_try(
        "Environment",
        aws_config::environment::EnvironmentVariableCredentialsProvider::new(),
    )
    .or_else("Profile", aws_config::profile::ProfileFileCredentialsProvider::builder().build())
    .or_else("Loopback", stand_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_in_credentials_are_for_loopback_alone() {
        let loopback = |text| is_loopback(&Url::parse(text).expect("a url"));
        for yes in ["http://127.0.0.1:8000", "http://[::1]:8000", "http://localhost:8000"] {
            assert!(loopback(yes), "{yes}");
        }
        for no in
            ["http://10.0.0.1:8000", "https://dynamodb.eu-west-1.amazonaws.com", "http://localhost.test"]
        {
            assert!(!loopback(no), "{no}");
        }
    }
}
