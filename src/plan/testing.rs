//! What the tests of the planner have in common.

use std::collections::BTreeMap;
use std::time::Duration;

use url::Url;

use super::in_doubt::Risk;
use super::policy::Timing;
use crate::client::credentials::Credentials;
use crate::client::{Client, ClientId, Grant, Provider};
use crate::time::Timestamp;

pub(crate) fn timing() -> Timing {
    let secs = Duration::from_secs;
    Timing::try_new(secs(90), secs(5), secs(20), secs(15), secs(60)).expect("the defaults are consistent")
}

pub(crate) fn provider() -> Provider {
    Provider::new("acme", Url::parse("https://acme.test/token").expect("a url"))
}

pub(crate) fn risk() -> Risk {
    Risk::of(&provider(), Grant::RefreshToken)
}

pub(crate) fn client() -> Client {
    Client {
        id: ClientId::new("c1").expect("a valid id"),
        provider: "acme".into(),
        grant: Grant::RefreshToken,
        client_id: "app".into(),
        credentials: Credentials::stored("s"),
        scopes: Vec::new(),
        audience: None,
        resource: Vec::new(),
        params: BTreeMap::new(),
        token_url: None,
        paused: false,
        refresh_now: None,
        joined: Timestamp::from_millis(99),
    }
}
