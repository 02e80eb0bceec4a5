//! Fixtures for the integration tests: the real parts as child processes, and typed clients for their controls.
//!
//! Every child dies with its fixture, and with the test process however that ends. A part that is not installed is a
//! failure with its remedy and never a skipped test: a suite that passes because it tested nothing is worse than one
//! that fails.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::disallowed_methods, reason = "tests poll real processes, and look at their own environment")]
#![allow(unused_imports, reason = "each test binary uses a part")]

pub(crate) mod alarm;
mod canaries;
mod commands;
mod daemon;
mod dynamo;
mod ecs;
pub(crate) mod faketime;
mod front;
pub(crate) mod iam;
mod lambda;
mod moto;
mod node_reader;
pub(crate) mod numbers;
mod oauth;
mod oidc;
mod process;
mod proxy;
pub(crate) mod redis;
pub(crate) mod stack;
mod strict;

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

pub(crate) use self::redis::Redis;
pub(crate) use canaries::Canaries;
pub(crate) use commands::commands;
pub(crate) use daemon::{
    Deployment, NewClient, agent_url, binary, drop_in_port, health_url, quick_settings, snapshot,
};
pub(crate) use dynamo::DynamoLocal;
pub(crate) use ecs::{EcsAgent, Mood, TASK};
pub(crate) use front::{ACCESS_DENIED, Call, EXPIRED_CREDENTIALS, Front, Refusal, THROTTLED};
pub(crate) use lambda::LambdaApi;
pub(crate) use moto::Moto;
pub(crate) use node_reader::{ReaderToken, node_reader};
pub(crate) use oauth::{Auth, Reply, fetch, http_client, post_form, post_json, token_request};
pub(crate) use oidc::{OidcGrant, OidcServer, OidcStats};
pub(crate) use process::Process;
pub(crate) use proxy::Proxy;
pub(crate) use strict::{Grant, Standing, Stats, StrictProvider, example};

/// Polls a condition until it holds.
///
/// # Panics
/// When it does not hold within `bound`; the message names `what`.
pub(crate) async fn wait_until(bound: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    wait_for(bound, what, async || condition().await.then_some(())).await;
}

/// Polls until there is a value, and returns it.
///
/// # Panics
/// When there is none within `bound`; the message names `what`.
pub(crate) async fn wait_for<T>(bound: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let poll = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    match tokio::time::timeout(bound, poll).await {
        Ok(value) => value,
        Err(_) => panic!("waited {bound:?} in vain: {what}"),
    }
}

/// A free port, handed out once per test process.
///
/// It lies below the ports that the kernel gives to outgoing connections: a child that takes seconds to bind would
/// otherwise now and then find its port in use.
pub(crate) fn free_port() -> u16 {
    static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..1000)
        .map(|_| rand::random_range(18_000..32_000))
        .find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok() && taken.insert(*port))
        .expect("one port of fourteen thousand is free")
}

/// The lines of a log in JSON; other lines are left out.
pub(crate) fn log_lines(log: &str) -> Vec<serde_json::Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Root of the checkout.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file that `scripts/parts.sh` installs.
///
/// # Panics
/// When it is not there, with the remedy.
pub(crate) fn part(path: &str) -> PathBuf {
    let path = root().join(path);
    assert!(
        path.exists(),
        "{} is missing: run `scripts/parts.sh --all` once, or `make test`, which does it",
        path.display()
    );
    path
}
