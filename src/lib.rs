//! Perennial keeps third-party OAuth2 tokens fresh for a fleet of API clients, over one DynamoDB table.
//!
//! The flow, in five lines: [`fleet`] finds the clients; [`scheduler`] knows whose turn it is, and asks its gate;
//! [`refresh`] acquires a lease, reads, sends, and commits; [`plan`] decides at every step, without I/O; and a
//! [`store`] obeys the change that it planned, while a [`provider`] says what became of a request.
//!
//! In reading order: [`client`] and [`record`] (what is registered and stored), [`item`] (the table's language),
//! [`plan`], [`refresh`], [`scheduler`], [`fleet`]; then what they stand on: [`store`], [`provider`], [`secrets`],
//! [`reply`], [`secret`], [`time`], [`entropy`]; then those who use tokens: [`reader`], [`agent`], [`sink`], and
//! what lies between: [`shared_cache`];
//! then what operators touch: [`config`], [`registrar`], [`iam`], [`cli`]; and
//! the surroundings of a daemon: [`ecs`], [`health`], [`lambda`], [`maintenance`], [`metrics`], [`reload`], [`seclusion`], [`shutdown`],
//! [`telemetry`].

pub mod agent;
pub mod aws;
pub mod bounded;
pub mod cli;
pub mod client;
pub mod config;
pub mod ecs;
pub mod entropy;
#[doc(hidden)]
pub mod entry;
pub mod fleet;
pub mod health;
pub mod iam;
pub mod item;
pub mod lambda;
pub mod maintenance;
pub mod metrics;
pub mod plan;
pub mod provider;
pub mod reader;
pub mod record;
pub mod refresh;
pub mod registrar;
pub mod reload;
pub mod reply;
pub mod scheduler;
pub mod seal;
pub mod seclusion;
pub mod secret;
pub mod secrets;
pub mod shared_cache;
pub mod shown;
pub mod shutdown;
pub mod sink;
pub mod spill;
pub mod store;
pub mod telemetry;
pub mod time;
pub mod tls;

/// The snippets of the documentation, compiled as tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/readers.md")]
mod snippets {}
