//! What a drill has shown.

use serde_json::json;

/// What was seen of a drill that went as it should.
#[derive(Debug)]
pub(crate) struct Seen {
    /// How long it went wrong.
    pub(crate) seconds: u64,
    pub(crate) clients: usize,
    /// Tokens granted by the provider, first ones included.
    pub(crate) granted: u64,
    /// The longest time that a client's stored token was an expired one.
    pub(crate) longest_expired_s: u64,
    /// From the end of the trouble until every client was fresh again.
    pub(crate) recovery_s: u64,
    /// What this drill alone counts.
    pub(crate) more: Vec<(&'static str, u64)>,
}

/// How a drill ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) drill: &'static str,
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Passed(Seen),
    Failed(String),
    /// This machine lacks something; what.
    NotRun(String),
}

impl End {
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }

    pub(crate) fn line(&self, json: bool) -> String {
        let name = self.drill;
        match (&self.outcome, json) {
            (Outcome::Passed(seen), true) => {
                let mut object = json!({
                    "drill": name, "outcome": "passed", "seconds": seen.seconds, "clients": seen.clients,
                    "granted": seen.granted, "longest_expired_s": seen.longest_expired_s, "recovery_s": seen.recovery_s,
                });
                for (key, value) in &seen.more {
                    object[*key] = (*value).into();
                }
                object.to_string()
            }
            (Outcome::Passed(seen), false) => {
                let more: String = seen.more.iter().map(|(key, value)| format!(" {key}={value}")).collect();
                format!(
                    "{name}: passed seconds={} clients={} granted={} longest_expired_s={} recovery_s={}{more}",
                    seen.seconds, seen.clients, seen.granted, seen.longest_expired_s, seen.recovery_s
                )
            }
            (Outcome::Failed(why), true) => {
                json!({"drill": name, "outcome": "failed", "why": why}).to_string()
            }
            (Outcome::Failed(why), false) => format!("{name}: FAILED: {why}"),
            (Outcome::NotRun(why), true) => {
                json!({"drill": name, "outcome": "not_run", "why": why}).to_string()
            }
            (Outcome::NotRun(why), false) => format!("{name}: not run: {why}"),
        }
    }
}

/// The last line.
pub(crate) fn summary(ends: &[End], json: bool) -> String {
    let seen: Vec<_> = ends
        .iter()
        .filter_map(|end| match &end.outcome {
            Outcome::Passed(seen) => Some(seen),
            _ => None,
        })
        .collect();
    let (drills, passed) = (ends.len(), seen.len());
    let failed = ends.iter().filter(|end| end.is_failure()).count();
    let not_run = drills - passed - failed;
    let longest = seen.iter().map(|seen| seen.recovery_s).max().unwrap_or_default();
    if json {
        return json!({
            "drills": drills, "passed": passed, "failed": failed, "not_run": not_run, "longest_recovery_s": longest,
        })
        .to_string();
    }
    format!(
        "summary drills={drills} passed={passed} failed={failed} not_run={not_run} longest_recovery_s={longest}"
    )
}
