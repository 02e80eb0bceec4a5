//! Perennial keeps third-party OAuth2 tokens fresh for a fleet of API clients, over one DynamoDB table.

pub mod client;
pub mod config;
pub mod entropy;
pub mod item;
pub mod plan;
pub mod record;
pub mod secret;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod time;
