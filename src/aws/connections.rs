//! Connections to AWS, and when those that are open are not used any more.
//!
//! The SDK's own limit on idle connections counts on a clock that stands still while a machine does: after a snapshot, or a
//! thaw of a Lambda sandbox, it would send requests into connections whose other ends are long gone, and wait. So what has
//! not been used for a while, by either of our clocks, is left to end, and so is everything once [`drop_all`] was called.
//!
//! Requests that are under way keep their connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, ConnectorBuilder};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::runtime_components::{RuntimeComponents, RuntimeComponentsBuilder};
use aws_smithy_types::config_bag::ConfigBag;

use crate::time::{Clock, Moment, SystemClock, Timestamp, has_passed};

/// Middle boxes forget connections after 350 s (AWS's NAT gateways) or sooner: such a request would wait for its time-out.
const IDLE: Duration = Duration::from_secs(60);

/// How often all connections were dropped.
static DROPS: AtomicU64 = AtomicU64::new(0);

/// From now on no connection of this process that is open now gets another request.
pub fn drop_all() {
    DROPS.fetch_add(1, Ordering::Relaxed);
}

/// The SDK's default client, made anew where its connections are too old.
#[derive(Debug)]
pub(super) struct Connections(Mutex<Pool>);

#[derive(Debug)]
struct Pool {
    client: SharedHttpClient,
    drops: u64,
    used: (Moment, Timestamp),
}

impl Connections {
    pub(super) fn new() -> Self {
        let (drops, used) = (DROPS.load(Ordering::Relaxed), now());
        Self(Mutex::new(Pool { client: client(), drops, used }))
    }

    fn current(&self) -> SharedHttpClient {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (drops, now) = (DROPS.load(Ordering::Relaxed), now());
        if drops != pool.drops || is_cold(pool.used, now) {
            pool.client = client();
        }
        (pool.drops, pool.used) = (drops, now);
        pool.client.clone()
    }
}

impl HttpClient for Connections {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        self.current().http_connector(settings, components)
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.current().validate_base_client_config(components, config)
    }

    fn validate_final_config(
        &self,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.current().validate_final_config(components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.current().connector_metadata()
    }
}

/// As the SDK makes it where it is not given one: hyper 1, rustls with aws-lc, the proxies of the environment.
fn client() -> SharedHttpClient {
    Builder::new().build_with_connector_fn(|settings, components| {
        let mut connector = ConnectorBuilder::default().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector.set_proxy_config(Some(ProxyConfig::from_env()));
        connector.build()
    })
}

fn now() -> (Moment, Timestamp) {
    (SystemClock.moment(), SystemClock.now())
}

/// Whichever clock says so: one of them may have stood still.
fn is_cold(used: (Moment, Timestamp), now: (Moment, Timestamp)) -> bool {
    has_passed(IDLE, used, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_cold_where_either_clock_says_so() {
        let at = |steady: u64, wall: i64| {
            (Moment::from_origin(Duration::from_secs(steady)), Timestamp::from_secs(wall))
        };
        let used = at(1000, 5000);
        for warm in [at(1000, 5000), at(1059, 5059), at(1001, 4000)] {
            assert!(!is_cold(used, warm), "{warm:?}");
        }
        for cold in [at(1060, 5060), at(1001, 5060), at(1060, 5001)] {
            assert!(is_cold(used, cold), "{cold:?}");
        }
    }
}
