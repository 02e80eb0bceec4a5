//! Items as DynamoDB spells them, to [`Item`] and back: pure, and total in the reading direction.
//!
//! Other tools write to the table too. Whatever they wrote is read without an error: a type that this program
//! does not use becomes [`Value::Other`], which is never written back.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;

use super::StoreError;
use crate::item::{Item, Key, Value, attr};
use crate::secret::Secret;

/// An item as the SDK has it.
pub type Raw = HashMap<String, AttributeValue>;

/// An item's attributes, without its key.
pub fn decode(raw: Raw) -> Item {
    let key = |name: &str| name == attr::PK || name == attr::SK;
    let values = raw.into_iter().filter(|(name, _)| !key(name));
    Item(values.map(|(name, value)| named(name, value)).collect())
}

/// The values of the partition key and the sort key, where both are strings.
pub(super) fn key_of(raw: &Raw) -> Option<(&str, &str)> {
    Some((raw.get(attr::PK)?.as_s().ok()?, raw.get(attr::SK)?.as_s().ok()?))
}

/// A whole number under that name.
pub(super) fn number_of(raw: &Raw, name: &str) -> Option<i64> {
    whole(raw.get(name)?.as_n().ok()?)
}

/// The key as the SDK wants it.
pub(super) fn encode_key(key: &Key) -> Raw {
    raw_key(key.pk(), key.sk())
}

/// Any key, ours or not.
pub(super) fn raw_key(pk: impl Into<String>, sk: impl Into<String>) -> Raw {
    let text = |text: String| AttributeValue::S(text);
    HashMap::from([(attr::PK.to_owned(), text(pk.into())), (attr::SK.to_owned(), text(sk.into()))])
}

/// A whole item, key included.
///
/// # Errors
/// Refuses a value of a type that another tool wrote: it is never written back.
pub fn encode(key: &Key, item: &Item) -> Result<Raw, StoreError> {
    let mut raw = encode_key(key);
    for (name, value) in &item.0 {
        raw.insert(name.clone(), encode_value(name, value)?);
    }
    Ok(raw)
}

/// A value; `name` is for the error alone.
pub(super) fn encode_value(name: &str, value: &Value) -> Result<AttributeValue, StoreError> {
    Ok(match value {
        Value::S(text) => AttributeValue::S(text.clone()),
        Value::Secret(secret) => AttributeValue::S(secret.expose().to_owned()),
        Value::N(number) => AttributeValue::N(number.to_string()),
        Value::Bool(value) => AttributeValue::Bool(*value),
        Value::L(list) => {
            AttributeValue::L(list.iter().map(|value| encode_value(name, value)).collect::<Result<_, _>>()?)
        }
        Value::M(map) => {
            let entry = |(inner, value): (&String, &Value)| Ok((inner.clone(), encode_value(name, value)?));
            AttributeValue::M(map.iter().map(entry).collect::<Result<_, StoreError>>()?)
        }
        Value::Other(kind) => {
            let why = format!(
                "attribute `{name}` holds a {kind} that another tool wrote; it is never written back"
            );
            return Err(StoreError::Refused(why));
        }
    })
}

fn named(name: String, value: AttributeValue) -> (String, Value) {
    let value = decode_value(&name, value);
    (name, value)
}

fn decode_value(name: &str, value: AttributeValue) -> Value {
    match value {
        AttributeValue::S(text) => Value::text(name, text),
        // What stands where a secret belongs may be one, whatever its type: it is not shown.
        other if attr::SECRETS.contains(&name) => Value::Other(type_name(&other)),
        AttributeValue::N(digits) => whole(&digits).map_or(Value::Other("N"), Value::N),
        AttributeValue::Bool(value) => Value::Bool(value),
        AttributeValue::L(list) => {
            Value::L(list.into_iter().map(|value| decode_value(name, value)).collect())
        }
        AttributeValue::M(map) => {
            let inside = |(inner, value)| match value {
                AttributeValue::S(text) if name == attr::PARAMS => (inner, Value::Secret(Secret::new(text))),
                value => named(inner, value),
            };
            Value::M(map.into_iter().map(inside).collect::<BTreeMap<_, _>>())
        }
        other => Value::Other(type_name(&other)),
    }
}

fn type_name(value: &AttributeValue) -> &'static str {
    match value {
        AttributeValue::S(_) => "S",
        AttributeValue::N(_) => "N",
        AttributeValue::Bool(_) => "BOOL",
        AttributeValue::L(_) => "L",
        AttributeValue::M(_) => "M",
        AttributeValue::B(_) => "B",
        AttributeValue::Bs(_) => "BS",
        AttributeValue::Ss(_) => "SS",
        AttributeValue::Ns(_) => "NS",
        AttributeValue::Null(_) => "NULL",
        _ => "unknown",
    }
}

/// A number of up to 38 digits, rounded down; `None` beyond 64 bits.
fn whole(digits: &str) -> Option<i64> {
    if let Ok(number) = digits.parse() {
        return Some(number);
    }
    if let Some((before, after)) = digits.split_once('.')
        && let (Ok(floor), true) = (before.parse::<i64>(), after.bytes().all(|byte| byte.is_ascii_digit()))
    {
        let fraction = after.bytes().any(|byte| byte != b'0');
        return if fraction && digits.starts_with('-') { floor.checked_sub(1) } else { Some(floor) };
    }
    scientific(digits)
}

/// Spelt with an exponent: to the precision of a double, which is exact below 2^53.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn scientific(digits: &str) -> Option<i64> {
    const BOUND: f64 = 9_223_372_036_854_775_808.0;
    let number = digits.parse::<f64>().ok()?.floor();
    (-BOUND..BOUND).contains(&number).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::primitives::Blob;

    use super::*;
    use crate::client::ClientId;
    use crate::secret::Secret;

    fn read(name: &str, value: AttributeValue) -> Value {
        let raw = HashMap::from([(name.to_owned(), value)]);
        decode(raw).get(name).cloned().expect("the attribute is read")
    }

    #[test]
    fn an_item_survives_the_table_without_its_key() {
        let key = Key::Token(ClientId::new("c").expect("a valid id"));
        let item = Item::default()
            .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new("t")))
            .with(attr::EXPIRES_AT, Value::N(i64::MIN))
            .with("flag", Value::Bool(true))
            .with("list", Value::L(vec![Value::S("a".into()), Value::N(1)]))
            .with("map", Value::M(BTreeMap::from([("x".into(), Value::S(String::new()))])));
        let raw = encode(&key, &item).expect("encodes");
        assert_eq!(key_of(&raw), Some(("CLIENT#c", "TOKEN#ACCESS")));
        assert_eq!(decode(raw), item);
    }

    #[test]
    fn every_foreign_type_is_read_by_its_name() {
        let blob = || Blob::new([1, 2]);
        let foreign = [
            (AttributeValue::B(blob()), "B"),
            (AttributeValue::Bs(vec![blob()]), "BS"),
            (AttributeValue::Ss(vec!["a".into()]), "SS"),
            (AttributeValue::Ns(vec!["1".into()]), "NS"),
            (AttributeValue::Null(true), "NULL"),
            (AttributeValue::N("1e40".into()), "N"),
            (AttributeValue::N("rubbish".into()), "N"),
        ];
        for (value, name) in foreign {
            assert_eq!(read("x", value.clone()), Value::Other(name));
            assert_eq!(read("x", AttributeValue::L(vec![value])), Value::L(vec![Value::Other(name)]));
        }
    }

    #[test]
    fn numbers_are_rounded_down() {
        let cases = [
            ("7", 7),
            ("7.0", 7),
            ("7.9", 7),
            ("-7.1", -8),
            ("-7.0", -7),
            ("-0.5", -1),
            ("1.5E+3", 1500),
            ("9007199254740993.5", 9_007_199_254_740_993),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ];
        for (digits, number) in cases {
            assert_eq!(read("x", AttributeValue::N(digits.into())), Value::N(number), "{digits}");
        }
        for digits in ["9223372036854775808", "-9223372036854775808.5", "-1e19", "1e19"] {
            assert_eq!(read("x", AttributeValue::N(digits.into())), Value::Other("N"), "{digits}");
        }
    }

    #[test]
    fn secrets_are_secrets_whatever_their_type() {
        for name in attr::SECRETS {
            assert_eq!(read(name, AttributeValue::S("s".into())), Value::Secret(Secret::new("s")));
            assert_eq!(read(name, AttributeValue::N("123".into())), Value::Other("N"));
            let list = AttributeValue::L(vec![AttributeValue::S("s".into())]);
            assert!(!format!("{:?}", read(name, list)).contains('s'), "{name}");
        }
    }

    #[test]
    fn a_foreign_value_is_never_written_back() {
        let nested = Value::M(BTreeMap::from([("x".into(), Value::L(vec![Value::Other("B")]))]));
        let error = encode_value("params", &nested).expect_err("refused");
        assert!(error.to_string().contains("`params` holds a B"), "{error}");
    }
}
