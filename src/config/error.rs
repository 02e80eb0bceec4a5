//! What is wrong with a configuration: every error at once, each with its key, its remedy and where it came from.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::shown;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nothing set it.
    Default,
    /// A file, by its path.
    File(String),
    /// An environment variable, by its name.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Environment(name) => write!(f, "environment {name}"),
        }
    }
}

impl Origin {
    /// How an origin is written into a raw tree, where it can only be a string.
    pub(super) fn label(&self) -> String {
        self.to_string()
    }

    /// The origin of a value in a raw tree.
    pub(super) fn of(value: &::config::Value) -> Option<Self> {
        let label = value.origin()?;
        let environment = label.strip_prefix("environment ").map(|name| Self::Environment(name.to_owned()));
        environment.or_else(|| label.strip_prefix("file ").map(|path| Self::File(path.to_owned())))
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that is wrong. Printed on one line; it never holds the value of a secret key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{key}: {problem}{}: {remedy}", from(origin))]
pub struct ConfigError {
    /// The key (`store.table`), the environment variable, or the file that is wrong.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// Where the value came from; none where nothing was set.
    pub origin: Option<Origin>,
}

fn from(origin: &Option<Origin>) -> String {
    // A variable's name may be of any length, with any character.
    let shown = |origin: &Origin| format!(" ({})", shown::clipped(&origin.to_string(), 300));
    origin.as_ref().map(shown).unwrap_or_default()
}

/// Everything that is wrong, sorted by key; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the configuration has 1 error:")?,
            count => write!(f, "the configuration has {count} errors:")?,
        }
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// What a check finds wrong with a value: a predicate (`is not a duration`), so that the caller can say of what.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Fault {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }
}
