//! One string of a JSON object that is a secret.
//!
//! What stands there instead is not said: it may be another secret.

use serde_json::{Map, Value};

use super::Failure;
use crate::secret::Secret;

/// The string that stands there under this key.
pub(super) fn string(whole: &Secret, key: &str) -> Result<Secret, Failure> {
    let refused = |why: &str| Failure::Refused(why.to_owned());
    let object: Map<String, Value> = serde_json::from_str(whole.expose())
        .map_err(|_| refused("is no JSON object, and a key of one is asked for"))?;
    match object.into_iter().find(|(name, _)| name == key) {
        Some((_, Value::String(secret))) => Ok(Secret::new(secret)),
        Some(_) => Err(refused("has another value than a string under that key")),
        None => Err(refused("has no such key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_string_is_taken_out_of_an_object_and_nothing_else_is_told() {
        let text = r#"{"client_secret": "s", "port": 5432, "x#y": "z"}"#;
        let of = |text: &str, key| string(&Secret::new(text), key);
        assert_eq!(of(text, "client_secret"), Ok(Secret::new("s")));
        assert_eq!(of(text, "x#y"), Ok(Secret::new("z")));
        for (text, key) in [(text, "port"), (text, "absent"), ("canary", "x"), ("[\"canary\"]", "x")] {
            let told = format!("{:?}", of(text, key).expect_err("refused"));
            assert!(!told.contains("canary") && !told.contains("5432"), "{told}");
        }
    }
}
