//! What an operation costs, by DynamoDB's documented rules.
//!
//! The in-memory store charges by them, so that a simulated fleet has a bill; the real one needs them where an
//! answer does not say, which is a failed condition ("Read and write operations" and "Item sizes and formats" in
//! the Amazon DynamoDB Developer Guide).

use crate::item::{Item, Value, attr};

const WRITE_UNIT: usize = 1024;
const READ_UNIT: usize = 4096;

/// The size of an item in bytes: names and values, the key's among them.
pub(super) fn size(pk: &str, sk: &str, item: &Item) -> usize {
    let key = attr::PK.len() + pk.len() + attr::SK.len() + sk.len();
    key + item.0.iter().map(|(name, value)| name.len() + value_size(value)).sum::<usize>()
}

fn value_size(value: &Value) -> usize {
    const CONTAINER: usize = 3;
    match value {
        Value::S(text) => text.len(),
        Value::Secret(secret) => secret.len(),
        Value::N(number) => number_size(*number),
        Value::Bool(_) | Value::Other(_) => 1,
        Value::L(list) => CONTAINER + list.iter().map(|value| 1 + value_size(value)).sum::<usize>(),
        Value::M(map) => {
            CONTAINER + map.iter().map(|(name, value)| 1 + name.len() + value_size(value)).sum::<usize>()
        }
    }
}

/// About a byte for two significant digits, one more, and one for a sign.
fn number_size(number: i64) -> usize {
    let digits = number.unsigned_abs().to_string();
    let significant = digits.trim_end_matches('0').len();
    significant.div_ceil(2) + 1 + usize::from(number < 0)
}

/// Write units for an item of so many bytes: one for each begun KB, at least one.
pub(super) fn write_units(bytes: usize) -> f64 {
    count(bytes.div_ceil(WRITE_UNIT).max(1))
}

/// Read units for so many bytes read strongly: one for each begun 4 KB, at least one.
pub(super) fn read_units(bytes: usize) -> f64 {
    count(bytes.div_ceil(READ_UNIT).max(1))
}

#[expect(clippy::cast_precision_loss, reason = "an item has at most 400 KB")]
fn count(units: usize) -> f64 {
    units as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_begun_kilobytes_and_never_zero() {
        assert_eq!([0, 1, 1024, 1025, 4096, 4097].map(write_units), [1.0, 1.0, 1.0, 2.0, 4.0, 5.0]);
        assert_eq!([0, 1, 4096, 4097].map(read_units), [1.0, 1.0, 1.0, 2.0]);
    }

    #[test]
    fn an_item_is_as_large_as_its_names_and_values() {
        let item = Item::default()
            .with("st", Value::S("F".into()))
            .with("gen", Value::N(-1200))
            .with("b", Value::Bool(true));
        // PK + "p" + SK + "s", st + F, gen + (one byte for 12, one, one for the sign), b + one
        assert_eq!(size("p", "s", &item), 6 + 3 + 6 + 2);
    }
}
