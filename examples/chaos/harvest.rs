//! What the daemons' own logs say of their attempts.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::journal::Task;

/// A replay that an attempt announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    /// How many times it had sent before: 0 where the doubt is an earlier attempt's.
    pub(crate) sent_before: u64,
    /// Where its line ends in the log.
    pub(crate) ends_at: u64,
}

/// The logs of all daemons.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    /// By attempt.
    pub(crate) announced: HashMap<String, Vec<Announcement>>,
    /// Attempts that ended while their process lived.
    pub(crate) ended: HashSet<String>,
    /// Alarms that no fault explains.
    pub(crate) alarms: Vec<String>,
}

impl Logs {
    /// Reads one log.
    pub(crate) fn read(&mut self, task: Task, log: &str) {
        let mut ends_at = 0;
        for line in log.split_inclusive('\n') {
            ends_at += line.len() as u64;
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            if matches!(
                line["alarm"].as_str(),
                Some("panic" | "second_writer" | "malformed_item" | "rotation_drift")
            ) {
                self.alarms.push(format!("task {task}: {line}"));
            }
            let Some(attempt) = line["span"]["attempt"].as_str() else { continue };
            let message = line["message"].as_str().unwrap_or_default();
            let sent_before = match message {
                _ if message.starts_with("no answer: sending the same refresh token again") => {
                    line["replay"].as_u64()
                }
                _ if message.starts_with("the refresh token is in doubt: sending it") => Some(0),
                _ => None,
            };
            if let Some(sent_before) = sent_before {
                let announcement = Announcement { sent_before, ends_at };
                self.announced.entry(attempt.to_owned()).or_default().push(announcement);
            }
            if line["span"].get("outcome").is_some() {
                self.ended.insert(attempt.to_owned());
            }
        }
    }
}
