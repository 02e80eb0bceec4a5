//! What stands under a key: the generation, a space, and the token item as JSON, under the table's own names.
//!
//! Whoever may write to the server may write anything there: size and types are checked, and the rest is for whoever
//! opens the item.

use serde::{Deserialize, Serialize};

use crate::client::ClientId;
use crate::item::{Item, Value, attr};
use crate::record::Gen;
use crate::secret::Secret;
use crate::time::Timestamp;

/// The largest entry that is written or read, in bytes.
pub(super) const LARGEST: usize = 64 * 1024;

/// An entry to be written.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) generation: i64,
    /// When the token expires, and the entry with it.
    pub(super) expires_at: Timestamp,
    pub(super) text: Secret,
}

/// Why an entry cannot be used.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Unusable {
    #[error("it is larger than {LARGEST} bytes")]
    TooLarge,
    #[error("it is no token item")]
    Malformed,
    #[error("it does not expire")]
    Eternal,
}

#[derive(Serialize, Deserialize)]
struct Fields<T> {
    access_token: T,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_type: Option<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<T>,
    /// Seconds.
    expires_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_updated: Option<T>,
    /// Milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_at: Option<i64>,
    tok_gen: i64,
}

pub(super) fn key(prefix: &str, id: &ClientId) -> String {
    format!("{prefix}{id}")
}

/// `None` where the item has no token that could be passed on.
pub(super) fn encode(item: &Item) -> Option<Entry> {
    let text = |name: &str| match item.get(name) {
        Some(Value::S(text)) => Some(text.as_str()),
        _ => None,
    };
    let number = |name: &str| match item.get(name) {
        Some(Value::N(number)) => Some(*number),
        _ => None,
    };
    let Some(Value::Secret(access_token)) = item.get(attr::ACCESS_TOKEN) else { return None };
    let fields = Fields {
        access_token: access_token.expose(),
        token_type: text(attr::TOKEN_TYPE),
        scope: text(attr::SCOPE),
        expires_at: number(attr::EXPIRES_AT)?,
        last_updated: text(attr::LAST_UPDATED),
        refresh_at: number(attr::REFRESH_AT),
        tok_gen: number(attr::TOK_GEN).filter(|generation| is_generation(*generation))?,
    };
    let json = serde_json::to_string(&fields).ok()?;
    let text = Secret::new(format!("{} {json}", fields.tok_gen));
    let (generation, expires_at) = (fields.tok_gen, Timestamp::from_secs(fields.expires_at));
    (text.len() <= LARGEST).then_some(Entry { generation, expires_at, text })
}

pub(super) fn decode(bytes: &[u8]) -> Result<Item, Unusable> {
    if bytes.len() > LARGEST {
        return Err(Unusable::TooLarge);
    }
    let space = bytes.iter().position(|byte| *byte == b' ').ok_or(Unusable::Malformed)?;
    let (generation, json) = bytes.split_at(space);
    let generation: Option<i64> = std::str::from_utf8(generation).ok().and_then(|text| text.parse().ok());
    // The parser's own words could quote a token.
    let fields: Fields<String> = serde_json::from_slice(json).map_err(|_| Unusable::Malformed)?;
    if generation != Some(fields.tok_gen) || !is_generation(fields.tok_gen) {
        return Err(Unusable::Malformed);
    }
    let text = |value: Option<String>| value.map(Value::S);
    Ok(Item::default()
        .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new(fields.access_token)))
        .with_some(attr::TOKEN_TYPE, text(fields.token_type))
        .with_some(attr::SCOPE, text(fields.scope))
        .with(attr::EXPIRES_AT, Value::N(fields.expires_at))
        .with_some(attr::LAST_UPDATED, text(fields.last_updated))
        .with_some(attr::REFRESH_AT, fields.refresh_at.map(Value::N))
        .with(attr::TOK_GEN, Value::N(fields.tok_gen)))
}

/// What has no generation of ours cannot be ordered.
fn is_generation(number: i64) -> bool {
    (Gen::FIRST.0..=Gen::MOST.0).contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item() -> Item {
        Item::default()
            .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new("canary")))
            .with(attr::TOKEN_TYPE, Value::S("Bearer".into()))
            .with(attr::EXPIRES_AT, Value::N(1_800_000_000))
            .with(attr::REFRESH_AT, Value::N(1_799_999_000_000))
            .with(attr::TOK_GEN, Value::N(7))
    }

    #[test]
    fn an_item_comes_back_as_it_went() {
        let entry = encode(&item()).expect("a token");
        assert_eq!((entry.generation, entry.expires_at.as_secs()), (7, 1_800_000_000));
        assert_eq!(decode(entry.text.expose().as_bytes()), Ok(item()));
        assert!(!format!("{entry:?}").contains("canary"));
    }

    #[test]
    fn what_has_no_token_or_no_generation_is_not_passed_on() {
        for name in [attr::ACCESS_TOKEN, attr::EXPIRES_AT, attr::TOK_GEN] {
            let mut item = item();
            item.0.remove(name);
            assert!(encode(&item).is_none(), "{name}");
        }
        assert!(encode(&item().with(attr::TOK_GEN, Value::N(-1))).is_none());
        let huge = Value::Secret(Secret::new("x".repeat(LARGEST)));
        assert!(encode(&item().with(attr::ACCESS_TOKEN, huge)).is_none());
    }

    #[test]
    fn what_a_stranger_wrote_is_refused() {
        let json = r#"{"access_token":"a","expires_at":1,"tok_gen":7}"#;
        assert!(decode(format!("7 {json}").as_bytes()).is_ok());
        let strange = [
            String::new(),
            "7".into(),
            json.into(),
            format!("8 {json}"),
            format!("-7 {json}"),
            "7 []".into(),
            r#"7 {"access_token":7,"expires_at":1,"tok_gen":7}"#.into(),
            r#"7 {"access_token":"a","expires_at":"1","tok_gen":7}"#.into(),
            r#"7 {"access_token":"a","expires_at":1e99,"tok_gen":7}"#.into(),
            r#"9007199254740993 {"access_token":"a","expires_at":1,"tok_gen":9007199254740993}"#.into(),
        ];
        for text in strange {
            assert_eq!(decode(text.as_bytes()), Err(Unusable::Malformed), "{text}");
        }
        assert_eq!(decode(&[0xff, b' ', b'{']), Err(Unusable::Malformed));
        assert_eq!(decode(&vec![b' '; LARGEST + 1]), Err(Unusable::TooLarge));
    }
}
