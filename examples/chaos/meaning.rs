//! What a request to the table or to the token endpoint means in the terms of a refresh: read off the wire, since the
//! daemons under test are the shipped program and tell nobody.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use url::form_urlencoded;

use crate::wire::Message;

/// A refresh token's fingerprint: journals hold no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Mark(pub(crate) u64);

impl Mark {
    pub(crate) fn of(token: &str) -> Self {
        let digest = Sha256::digest(token);
        Self(digest.iter().take(8).fold(0, |mark, byte| mark << 8 | u64::from(*byte)))
    }
}

/// A request to the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// The write-ahead intent.
    Acquire {
        client: String,
        generation: i64,
        owner: String,
        /// It takes over a lease whose attempt may have been answered.
        takes_over: bool,
    },
    /// A client's whole partition.
    Read { client: String },
    /// New tokens.
    Commit { client: String, generation: i64, token: Option<Mark> },
    /// A lease is given back, held, or buried.
    Release { client: String, state: String },
    /// An operator's tokens.
    Outside { client: String, generation: i64, token: Option<Mark> },
    /// Heartbeats, discovery, and the rest.
    Other,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Landed,
    /// The condition failed; whose lease stands there.
    Lost(Option<String>),
    /// Another error of the table's.
    Refused,
}

/// Reads a request to the table.
pub(crate) fn call(request: &Message) -> Call {
    let target = request.header("x-amz-target").unwrap_or_default();
    let Ok(body) = serde_json::from_slice::<Value>(request.body()) else { return Call::Other };
    match target.rsplit('.').next().unwrap_or_default() {
        "UpdateItem" => update(&body).unwrap_or(Call::Other),
        "Query" => read(&body).unwrap_or(Call::Other),
        "TransactWriteItems" => transaction(&body).unwrap_or(Call::Other),
        _ => Call::Other,
    }
}

/// Reads the table's answer to a write.
pub(crate) fn fate(response: &Message) -> Fate {
    if response.status() == 200 {
        return Fate::Landed;
    }
    let body: Value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    let kind = body["__type"].as_str().unwrap_or_default();
    if kind.ends_with("ConditionalCheckFailedException") || kind.ends_with("TransactionCanceledException") {
        return Fate::Lost(body["Item"]["own"]["S"].as_str().map(str::to_owned));
    }
    Fate::Refused
}

fn update(body: &Value) -> Option<Call> {
    let (client, item) = place(body)?;
    let set = assignments(body);
    match item.as_str() {
        "LEASE" => Some(lease(client, &set)),
        "TOKEN#ACCESS" if set.contains_key("tok_gen") => {
            Some(Call::Commit { client, generation: number(&set, "tok_gen")?, token: token(&set) })
        }
        _ => None,
    }
}

fn lease(client: String, set: &BTreeMap<String, Value>) -> Call {
    match (text(set, "own"), number(set, "gen")) {
        (Some(owner), Some(generation)) => {
            Call::Acquire { client, generation, owner, takes_over: set.contains_key("dbt") }
        }
        _ => Call::Release { client, state: text(set, "st").unwrap_or_default() },
    }
}

fn read(body: &Value) -> Option<Call> {
    // The index names itself.
    if body.get("IndexName").is_some() {
        return None;
    }
    let values = body["ExpressionAttributeValues"].as_object()?;
    let partition = values.values().find_map(|value| value["S"].as_str())?;
    Some(Call::Read { client: partition.strip_prefix("CLIENT#")?.to_owned() })
}

fn transaction(body: &Value) -> Option<Call> {
    let writes = body["TransactItems"].as_array()?;
    let updates: Vec<_> = writes.iter().filter_map(|write| write.get("Update")).collect();
    let of = |item: &str| updates.iter().find(|update| place(update).is_some_and(|(_, sk)| sk == item));
    let tokens = of("TOKEN#ACCESS")?;
    let (client, _) = place(tokens)?;
    let set = assignments(tokens);
    let (generation, token) = (number(&set, "tok_gen")?, token(&set));
    Some(match of("LEASE") {
        Some(_) => Call::Outside { client, generation, token },
        None => Call::Commit { client, generation, token },
    })
}

fn place(body: &Value) -> Option<(String, String)> {
    let client = body["Key"]["PK"]["S"].as_str()?.strip_prefix("CLIENT#")?;
    Some((client.to_owned(), body["Key"]["SK"]["S"].as_str()?.to_owned()))
}

/// What an update sets, by the attributes' names.
fn assignments(body: &Value) -> BTreeMap<String, Value> {
    let expression = body["UpdateExpression"].as_str().unwrap_or_default();
    let set = expression.strip_prefix("SET ").unwrap_or_default();
    let set = set.split(" REMOVE ").next().and_then(|set| set.split(" ADD ").next()).unwrap_or_default();
    let pairs = set.split(", ").filter_map(|pair| pair.split_once(" = "));
    pairs
        .filter_map(|(name, value)| {
            let name = body["ExpressionAttributeNames"][name].as_str()?;
            Some((name.to_owned(), body["ExpressionAttributeValues"].get(value)?.clone()))
        })
        .collect()
}

fn text(set: &BTreeMap<String, Value>, name: &str) -> Option<String> {
    set.get(name)?["S"].as_str().map(str::to_owned)
}

fn number(set: &BTreeMap<String, Value>, name: &str) -> Option<i64> {
    set.get(name)?["N"].as_str()?.parse().ok()
}

fn token(set: &BTreeMap<String, Value>) -> Option<Mark> {
    text(set, "refresh_token").map(|token| Mark::of(&token))
}

/// The refresh token that a token request presents.
pub(crate) fn presented(request: &Message) -> Option<Mark> {
    let mut fields = form_urlencoded::parse(request.body());
    fields.find(|(name, _)| name == "refresh_token").map(|(_, token)| Mark::of(&token))
}

/// The refresh token that an answer grants.
pub(crate) fn granted(response: &Message) -> Option<Mark> {
    let body: Value = serde_json::from_slice(response.body()).ok()?;
    (response.status() == 200).then(|| body["refresh_token"].as_str().map(Mark::of))?
}
