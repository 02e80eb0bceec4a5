//! What every AWS service needs: region, endpoint and credentials by AWS's default chain, and errors in words.

pub mod connections;

use std::error::Error;

use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_config::{AppName, BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::Credentials;
use url::Url;

use crate::client::is_loopback;

/// Loads them; sends nothing to the service yet. Another endpoint than AWS's is in `us-east-1` where no region is set;
/// on a loopback address stand-in credentials are used where neither environment, profile nor ECS has any.
pub async fn config(region: Option<&str>, endpoint: Option<&Url>) -> SdkConfig {
    loader(region, endpoint).load().await
}

fn loader(region: Option<&str>, endpoint: Option<&Url>) -> ConfigLoader {
    let mut loader =
        aws_config::defaults(BehaviorVersion::latest()).http_client(connections::Connections::new());
    if let Ok(name) = AppName::new(concat!("perennial-", env!("CARGO_PKG_VERSION"))) {
        loader = loader.app_name(name);
    }
    if let Some(endpoint) = endpoint {
        // The default chain would ask the instance metadata service, and wait for it where there is none.
        loader = loader.endpoint_url(endpoint.as_str()).region(local_region());
    }
    if endpoint.is_some_and(is_loopback) {
        loader = loader.credentials_provider(local_credentials());
    }
    match region {
        Some(region) => loader.region(Region::new(region.to_owned())),
        None => loader,
    }
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
    .or_else("EcsContainer", aws_config::ecs::EcsCredentialsProvider::builder().build())
    .or_else("Loopback", stand_in)
}

/// The error and its sources.
pub(crate) fn links<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// All that they say, once each; never a debug form, which holds whole responses.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<_> = links(error).map(ToString::to_string).collect();
    parts.dedup();
    parts.join(": ")
}

/// What to do where a role lacks a right: AWS's own words name the action and the resource.
pub(crate) const REMEDY_OF_RIGHTS: &str = "`perennial iam print` says what a role needs";

/// Whether a service's code says that the role lacks a right: S3's and the others'.
pub(crate) fn lacks_right(code: &str) -> bool {
    ["AccessDenied", "AccessDeniedException"].contains(&code)
}

/// As [`chain`], with the remedy where a right is lacking.
pub(crate) fn told(error: &(dyn Error + 'static), code: Option<&str>) -> String {
    let chain = chain(error);
    if code.is_some_and(lacks_right) { format!("{chain}; {REMEDY_OF_RIGHTS}") } else { chain }
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
