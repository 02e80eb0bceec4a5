//! Secrets that must not show: those that a test has planted, in every form in which they travel, and every token of the
//! strict provider by its form.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use percent::encoded;

/// What must not be found in any output.
#[derive(Debug, Default)]
pub(crate) struct Canaries(BTreeSet<String>);

/// Tokens of the strict provider begin so.
const TOKENS: [&str; 3] = ["rt-", "at-", "cc-"];

impl Canaries {
    /// Plants a secret: as it is, percent- and form-encoded, in hexadecimal, in both alphabets of base64 wherever it
    /// stands in what is encoded, and as JSON, TOML and Rust quote it.
    pub(crate) fn add(&mut self, secret: impl Into<String>) {
        let secret = secret.into();
        let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        for travelling in [&form, &secret] {
            self.0.extend(in_base64(travelling.as_bytes()));
        }
        let hex = |digits: fn(&u8) -> String| secret.as_bytes().iter().map(digits).collect::<String>();
        self.0.extend([hex(|byte| format!("{byte:02x}")), hex(|byte| format!("{byte:02X}"))]);
        let quoted = [format!("{secret:?}"), serde_json::Value::from(secret.as_str()).to_string()];
        self.0.extend(quoted.map(|text| text[1..text.len() - 1].to_owned()));
        self.0.extend([encoded(&secret), form, secret]);
    }

    /// Plants a client's credentials, which also travel as one Basic header.
    pub(crate) fn add_basic(&mut self, id: &str, secret: &str) {
        self.add(secret);
        self.0.extend(in_base64(format!("{id}:{secret}").as_bytes()));
    }

    /// Plants a secret that is no text, as it travels where texts do.
    pub(crate) fn add_bytes(&mut self, secret: &[u8]) {
        self.0.extend(in_base64(secret));
        self.0.extend([format!("{secret:?}"), format!("{secret:02x?}")]);
    }

    /// # Panics
    /// When a secret is in the text; the message shows where, and not the secret.
    #[track_caller]
    pub(crate) fn assert_absent(&self, what: &str, text: &str) {
        self.assert_absent_but(&[], what, text);
    }

    /// As [`Canaries::assert_absent`], where access tokens are what was asked for.
    #[track_caller]
    pub(crate) fn assert_absent_but_access_tokens(&self, what: &str, text: &str) {
        self.assert_absent_but(&["at-", "cc-"], what, text);
    }

    #[track_caller]
    fn assert_absent_but(&self, allowed: &[&str], what: &str, text: &str) {
        let planted = self.0.iter().filter_map(|secret| Some((text.find(secret)?, secret.len())));
        let issued = TOKENS.iter().filter(|kind| !allowed.contains(kind));
        let issued = issued.filter_map(|kind| token_in(text, kind));
        if let Some((at, len)) = planted.chain(issued).min() {
            let context: String = text[..at].chars().rev().take(300).collect();
            let context: String = context.chars().rev().collect();
            panic!("{what} shows a secret of {len} characters after:\n{context}");
        }
    }
}

mod percent {
    /// RFC 3986 section 2.1, of all but unreserved characters.
    pub(super) fn encoded(text: &str) -> String {
        let unreserved = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
        let bytes = text.bytes();
        bytes
            .map(|byte| if unreserved(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
            .collect()
    }
}

/// The characters that stand for these bytes whatever stands before and behind them: three bytes are four characters, so
/// there are three ways.
fn in_base64(bytes: &[u8]) -> Vec<String> {
    let mut ways = Vec::new();
    for before in 0..3 {
        let all = [&vec![0; before], bytes].concat();
        // Of the characters at either end some bits are another byte's.
        let own = (before * 8).div_ceil(6)..all.len() * 8 / 6;
        for alphabet in [BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD] {
            ways.push(alphabet.encode(&all)[own.clone()].to_owned());
        }
    }
    ways
}

/// A token of the strict provider: its kind, numbers in hexadecimal, a dot, and a seal.
fn token_in(text: &str, kind: &str) -> Option<(usize, usize)> {
    let mut found = text.match_indices(kind).filter_map(|(at, kind)| {
        let numbers = text[at + kind.len()..].split('.').next()?;
        let hex = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let begins = !text[..at].ends_with(|before: char| before.is_ascii_alphanumeric());
        let is_token = begins && numbers.contains('-') && numbers.split('-').all(hex);
        is_token.then_some((at, kind.len() + numbers.len()))
    });
    found.next()
}
