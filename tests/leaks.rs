//! No secret shows: not in a log at its finest level, not in an error, a metric, a panic, a `Debug`, a response, nor in
//! what a command prints. The secrets are canaries of characters that change whenever they are encoded, and each of
//! their forms is looked for.

mod support;

mod leaks {
    pub(crate) mod agent;
    pub(crate) mod commands;
    pub(crate) mod configuration;
    pub(crate) mod daemon;
    pub(crate) mod process;
    pub(crate) mod requests;
    pub(crate) mod sealed;
    pub(crate) mod types;
    pub(crate) mod world;
}
