//! Misbehaviour on request: what a real token endpoint does on a bad day. No HTTP here.
//!
//! A fault says whether the request is processed all the same. That is the difference between "try again" and "the
//! refresh token may be spent", which a client cannot see, so tests need both.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An order for misbehaviour, as `/control/fault` takes it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Fault {
    /// For how many token requests; until cleared where absent.
    times: Option<u32>,
    /// Only for this client's requests.
    client_id: Option<String>,
    /// Whether a request whose real answer is withheld takes effect all the same. `false` by default.
    process: Option<bool>,
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

/// What goes wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Any answer at all.
    Status {
        code: u16,
        #[serde(default)]
        body: String,
        content_type: Option<String>,
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// A page for people, as gateways and firewalls send it.
    Html {
        #[serde(default = "service_unavailable")]
        code: u16,
    },
    /// 200 with no body.
    Empty200,
    /// An OAuth error with status 200, in the manner of some well-known providers.
    Error200 {
        #[serde(default = "invalid_grant")]
        error: String,
    },
    /// 200 with a JSON body of about so many bytes.
    Huge { bytes: usize },
    /// A redirect, which must not be followed: the request carries secrets.
    Redirect {
        location: String,
        #[serde(default = "found")]
        code: u16,
    },
    /// The real answer, cut in the middle of its body.
    Truncated,
    /// The real answer after a delay, and byte by byte where `drip_ms` is given.
    Slow {
        #[serde(default)]
        ms: u64,
        drip_ms: Option<u64>,
    },
    /// The request takes effect, then the connection closes without an answer.
    LoseReply,
    /// The connection closes without an answer, and nothing took effect.
    ResetBefore,
    /// The real answer with another `expires_in`; with none where `value` is absent.
    ExpiresIn {
        #[serde(default, deserialize_with = "present")]
        value: Option<Value>,
    },
    /// The real answer without its refresh token, even if it was rotated.
    OmitRefreshToken,
    /// The real answer without `scope`.
    OmitScope,
    /// The real answer with another `token_type`; with none where `value` is absent.
    TokenType {
        #[serde(default, deserialize_with = "present")]
        value: Option<Value>,
    },
}

fn service_unavailable() -> u16 {
    503
}

fn found() -> u16 {
    302
}

fn invalid_grant() -> String {
    "invalid_grant".to_owned()
}

/// Tells `null` from an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Fault {
    /// Whether the request takes effect before it is answered, or not answered.
    pub(crate) fn processes(&self) -> bool {
        match self.kind {
            Kind::ResetBefore => false,
            Kind::Status { .. }
            | Kind::Html { .. }
            | Kind::Empty200
            | Kind::Error200 { .. }
            | Kind::Huge { .. }
            | Kind::Redirect { .. } => self.process.unwrap_or(false),
            _ => true,
        }
    }
}

impl Kind {
    /// Name of the fault in the event log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Html { .. } => "html",
            Self::Empty200 => "empty200",
            Self::Error200 { .. } => "error200",
            Self::Huge { .. } => "huge",
            Self::Redirect { .. } => "redirect",
            Self::Truncated => "truncated",
            Self::Slow { .. } => "slow",
            Self::LoseReply => "lose_reply",
            Self::ResetBefore => "reset_before",
            Self::ExpiresIn { .. } => "expires_in",
            Self::OmitRefreshToken => "omit_refresh_token",
            Self::OmitScope => "omit_scope",
            Self::TokenType { .. } => "token_type",
        }
    }

    /// Alters a granted answer as the fault says.
    pub(crate) fn reshape(&self, answer: &mut serde_json::Map<String, Value>) {
        let (field, value) = match self {
            Self::ExpiresIn { value } => ("expires_in", value.clone()),
            Self::TokenType { value } => ("token_type", value.clone()),
            Self::OmitRefreshToken => ("refresh_token", None),
            Self::OmitScope => ("scope", None),
            _ => return,
        };
        match value {
            Some(value) => drop(answer.insert(field.to_owned(), value)),
            None => drop(answer.remove(field)),
        }
    }

    pub(crate) fn delay(&self) -> Duration {
        match self {
            Self::Slow { ms, .. } => Duration::from_millis(*ms),
            _ => Duration::ZERO,
        }
    }
}

/// The orders in force, oldest first. A request meets at most one of them.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(crate) fn order(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes the fault that the next request of this client meets.
    pub(crate) fn take(&mut self, client_id: Option<&str>) -> Option<Fault> {
        self.0.retain(|fault| fault.times != Some(0));
        let meets =
            |fault: &&mut Fault| fault.client_id.as_deref().is_none_or(|only| Some(only) == client_id);
        let fault = self.0.iter_mut().find(meets)?;
        fault.times = fault.times.map(|times| times - 1);
        Some(fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fault(order: Value) -> Fault {
        serde_json::from_value(order).unwrap()
    }

    #[test]
    fn a_fault_lasts_for_its_times_and_then_the_next_one_has_its_turn() {
        let mut faults = Faults::default();
        faults.order(fault(json!({ "kind": "empty200", "times": 2 })));
        faults.order(fault(json!({ "kind": "html" })));
        let names: Vec<_> = (0..4).map(|_| faults.take(None).unwrap().kind.name()).collect();
        assert_eq!(names, ["empty200", "empty200", "html", "html"]);
        faults.clear();
        assert!(faults.take(None).is_none());
    }

    #[test]
    fn a_fault_for_one_client_leaves_the_others_alone() {
        let mut faults = Faults::default();
        faults.order(fault(json!({ "kind": "lose_reply", "client_id": "app", "times": 1 })));
        assert!(faults.take(None).is_none() && faults.take(Some("other")).is_none());
        assert!(faults.take(Some("app")).is_some() && faults.take(Some("app")).is_none());
    }

    #[test]
    fn an_absent_expiry_is_not_a_null_one() {
        let reshaped = |order| {
            let mut answer = serde_json::Map::from_iter([("expires_in".to_owned(), json!(30))]);
            fault(order).kind.reshape(&mut answer);
            Value::Object(answer)
        };
        assert_eq!(reshaped(json!({ "kind": "expires_in" })), json!({}));
        assert_eq!(reshaped(json!({ "kind": "expires_in", "value": null })), json!({ "expires_in": null }));
        let huge = json!({ "kind": "expires_in", "value": 1e20 });
        assert_eq!(reshaped(huge), json!({ "expires_in": 1e20 }));
    }

    #[test]
    fn only_some_faults_take_effect() {
        let processes = |order| fault(order).processes();
        assert!(processes(json!({ "kind": "lose_reply" })) && processes(json!({ "kind": "truncated" })));
        assert!(!processes(json!({ "kind": "reset_before", "process": true })));
        assert!(!processes(json!({ "kind": "status", "code": 500 })));
        assert!(processes(json!({ "kind": "status", "code": 500, "process": true })));
    }
}
