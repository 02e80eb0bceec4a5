//! Perennial keeps third-party OAuth2 tokens fresh for a fleet of API clients, over one DynamoDB table.

pub mod cli;
pub mod client;
pub mod config;
pub mod entropy;
pub mod fleet;
pub mod health;
pub mod item;
pub mod maintenance;
pub mod plan;
pub mod provider;
pub mod record;
pub mod refresh;
pub mod registrar;
pub mod reply;
pub mod scheduler;
pub mod secret;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod time;
